// SPDX-License-Identifier: Apache-2.0

//! `http-test-server`. What it does is the library's business.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_tunnel::app::test_server::main()
}
