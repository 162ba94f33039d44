// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server`. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::{doctor, server};

fn main() -> ExitCode {
    doctor::main::<server::Args>()
}
