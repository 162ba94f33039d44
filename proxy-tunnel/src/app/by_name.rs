// SPDX-License-Identifier: Apache-2.0

//! Server, agent and sidecar in one executable, which selects the program by the name with which it is started. In an
//! image this needs a third of the space, and it saves memory if several of the programs run on one node.

use std::env;
use std::process::ExitCode;

use super::called::{self, Called};
use super::{agent, doctor, server, sidecar};

/// The `main` function of the program by whose name this process was started.
#[must_use]
pub fn main() -> ExitCode {
    let word = env::args_os().next().unwrap_or_default();
    match Called::by(&word) {
        Some(Called::Server) => doctor::main::<server::Args>(),
        Some(Called::Agent) => doctor::main::<agent::Args>(),
        Some(Called::Sidecar) => super::main::<sidecar::Args>(),
        None => {
            eprintln!(
                "Error: started as {}, which names none of its programs; start it by a link called {}, {} or {}",
                word.display(),
                called::SERVER,
                called::AGENT,
                called::SIDECAR
            );
            ExitCode::FAILURE
        }
    }
}
