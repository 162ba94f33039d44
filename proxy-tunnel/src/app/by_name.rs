// SPDX-License-Identifier: Apache-2.0

//! Server, agent and sidecar as one executable, which is the program by whose name it is started: in an image it takes a
//! third of the room, and of the memory where several run on a node.

use std::env;
use std::process::ExitCode;

use super::called::{self, Called};
use super::{agent, doctor, server, sidecar};

/// The whole of the program by whose name this process was started.
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
