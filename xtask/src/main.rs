// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask`. What it does is the library's business: tests of the documentation read its command line too.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::main()
}
