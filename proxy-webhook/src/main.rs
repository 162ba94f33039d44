// SPDX-License-Identifier: Apache-2.0

//! The program; everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_webhook::main()
}
