// SPDX-License-Identifier: Apache-2.0

//! Command lines in the documentation: [`programs`] returns the programs' own, [`mod@reference`] writes
//! `docs/reference` from them, and [`shell`] parses the commands of a page. The tests compare the pages with them.

pub mod programs;
pub mod reference;
pub mod shell;
