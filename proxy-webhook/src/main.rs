// SPDX-License-Identifier: Apache-2.0

//! The program; its code is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_webhook::main()
}
