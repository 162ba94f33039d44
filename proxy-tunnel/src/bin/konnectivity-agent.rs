// SPDX-License-Identifier: Apache-2.0

//! The program `konnectivity-agent`. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::{agent, doctor};

fn main() -> ExitCode {
    doctor::main::<agent::Args>()
}
