// SPDX-License-Identifier: Apache-2.0

//! `http-test-server`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, test_server};

fn main() -> ExitCode {
    run::<test_server::Args>()
}
