// SPDX-License-Identifier: Apache-2.0

//! The program `konnectivity`: server, agent and sidecar in one binary, as used in images. The library implements it.

use std::process::ExitCode;

use proxy_tunnel::app::by_name;

fn main() -> ExitCode {
    by_name::main()
}
