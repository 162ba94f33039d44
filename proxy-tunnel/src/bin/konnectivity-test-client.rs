// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-test-client`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, test_client};

fn main() -> ExitCode {
    run::<test_client::Args>()
}
