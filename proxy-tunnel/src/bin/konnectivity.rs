// SPDX-License-Identifier: Apache-2.0

//! `konnectivity`: server, agent and sidecar in one, as images have it. What it does is the library's business.

use std::process::ExitCode;

use proxy_tunnel::app::by_name;

fn main() -> ExitCode {
    by_name::main()
}
