// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask certs`: writes the certificates that the commands of the tunnel's examples refer to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tunnel_tests::certs::{self, Existing};

/// Writes the certificates that the tunnel's examples name: DIR/frontend and DIR/agent, each with a CA, a
/// certificate and key of the server, and one of its peer. Valid for a year.
#[derive(Debug, Parser)]
#[command(name = "certs", bin_name = "cargo xtask certs", max_term_width = 100)]
struct Args {
    /// Where they are written, for example certs
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A further DNS name or IP address that certificates are for; repeatable
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    match certs::write(&args.directory, &args.name, existing) {
        Ok(files) => {
            for file in files {
                println!("{}", file.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
