// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-agent`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{agent, doctor};

fn main() -> ExitCode {
    doctor::main::<agent::Args>()
}
