// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-sidecar`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, sidecar};

fn main() -> ExitCode {
    run::<sidecar::Args>()
}
