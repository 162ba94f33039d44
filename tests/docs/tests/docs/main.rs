// SPDX-License-Identifier: Apache-2.0

//! The documentation beside the programs: `docs/reference`, the commands of every page, and the workflows.

mod commands;
mod reference;
mod workflows;
