// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask`. The library implements it, because tests of the documentation read its command line too.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::main()
}
