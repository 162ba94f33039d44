// SPDX-License-Identifier: Apache-2.0

//! The program `konnectivity-server`. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::{doctor, server};

fn main() -> ExitCode {
    doctor::main::<server::Args>()
}
