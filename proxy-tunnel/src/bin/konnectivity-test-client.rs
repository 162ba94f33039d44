// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-test-client`. What it does is the library's business.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_tunnel::app::test_client::main()
}
