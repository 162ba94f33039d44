// SPDX-License-Identifier: Apache-2.0

//! The webhook as a library, so that tests, benchmarks and fuzz targets can use its parts: [`review::answer`] computes
//! the answer to a review, [`main`] is the whole program.

mod app;
mod certificates;
mod cli;
mod fqdn;
mod limits;
mod metrics;
mod probes;
pub mod review;
mod server;
mod service;

use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result};
use proxy_serve::flags::{self, OnBadUsage, Values};
use proxy_serve::log;
use proxy_serve::memory::{self, Blocks};

use crate::cli::Args;

/// Maximum number of threads. A review takes microseconds, so more threads do not help.
const MAX_THREADS: usize = 4;

/// The command line, for the generated documentation.
#[must_use]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Args::command()
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    memory::set_up(Blocks {
        mapped: 128 << 10,
        kept: 256 << 10,
    });
    let (args, values): (Args, _) = match flags::parse(OnBadUsage::Error) {
        Ok(read) => read,
        Err(code) => return code,
    };
    match try_main(&args, values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apiserver-proxy-pod-webhook: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &Args, values: Values) -> Result<()> {
    log::init(&args.log_options())?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(MAX_THREADS))
        .enable_all()
        .build()
        .context("cannot start the server's threads")?
        .block_on(app::run(args, values))
}
