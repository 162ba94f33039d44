// SPDX-License-Identifier: Apache-2.0

//! What was reported from the field.

mod field;
