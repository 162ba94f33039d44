// SPDX-License-Identifier: Apache-2.0

//! What the documentation says of command lines: [`programs`] has the programs' own, [`mod@reference`] writes
//! `docs/reference` from them, [`shell`] reads the commands of a page. Their tests compare the pages with these.

pub mod programs;
pub mod reference;
pub mod shell;
