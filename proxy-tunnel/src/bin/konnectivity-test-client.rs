// SPDX-License-Identifier: Apache-2.0

//! The program `konnectivity-test-client`. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, test_client};

fn main() -> ExitCode {
    run::<test_client::Args>()
}
