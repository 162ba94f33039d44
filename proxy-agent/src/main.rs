// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent`: keeps the VIP of a node's API server proxy up and conntrack out of its path.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_agent::main()
}
