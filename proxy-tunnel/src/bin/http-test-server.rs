// SPDX-License-Identifier: Apache-2.0

//! The program `http-test-server`. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, test_server};

fn main() -> ExitCode {
    run::<test_server::Args>()
}
