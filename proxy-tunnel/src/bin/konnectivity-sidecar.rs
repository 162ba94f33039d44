// SPDX-License-Identifier: Apache-2.0

//! The program `konnectivity-sidecar`. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::{main as run, sidecar};

fn main() -> ExitCode {
    run::<sidecar::Args>()
}
