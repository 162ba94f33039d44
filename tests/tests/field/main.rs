// SPDX-License-Identifier: Apache-2.0

//! Cases that were reported from the field.

mod field;
