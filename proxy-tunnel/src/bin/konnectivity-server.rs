// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, server};

fn main() -> ExitCode {
    run::<server::Args>()
}
