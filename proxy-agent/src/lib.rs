// SPDX-License-Identifier: Apache-2.0

//! The agent as a library, for programs that need parts of it. Only [`main`] and [`verify_programs`] are meant to be called.

#![cfg_attr(
    feature = "fuzzing",
    expect(
        clippy::missing_panics_doc,
        reason = "a fuzz target reports a fault by a panic"
    )
)]

mod app;
mod backend;
mod claims;
mod cleanup;
mod cli;
mod config;
mod conntrack;
mod doctor;
mod features;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod instance;
mod klog;
mod link;
mod lock;
mod monitor;
mod node;
mod ownership;
mod reconcile;
mod services;
mod state;
mod status;
mod telemetry;
mod time;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;

pub use crate::backend::ebpf::{Verified, verify_programs};
use crate::cli::Invocation;
pub use crate::cli::command;

/// The whole program: parses the command line and runs the requested operation.
#[must_use]
pub fn main() -> ExitCode {
    match try_main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("proxy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main() -> Result<ExitCode> {
    let config = match cli::parse() {
        Invocation::Run(config) => *config,
        Invocation::Completions(shell) => {
            io::stdout().write_all(&cli::completions(shell))?;
            return Ok(ExitCode::SUCCESS);
        }
        Invocation::KernelFeatures => {
            io::stdout().write_all(features::known().as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        Invocation::Cleanup(request) => return block_on(cleanup::run(&request)),
        Invocation::Doctor(options) => return block_on(doctor::run(&options)),
        Invocation::Status(request) => return block_on(status::run(&request)),
    };
    proxy_serve::log::init(&config.log)?;
    block_on(app::run(config))
}

fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    // One thread: the agent is idle most of the time, and sequential execution is easier to follow.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
