// SPDX-License-Identifier: Apache-2.0

//! Prints what the running kernel's verifier says of each program, as `name instructions states`.
//! `cargo xtask kernels` runs it on each kernel; nothing is attached. Its argument is a directory on a BPF
//! file system that does not exist yet, for as long as it runs.

use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os()
        .nth(1)
        .context("usage: verifier DIRECTORY (below /sys/fs/bpf, not there yet)")?;
    for verified in proxy_agent::verify_programs(&PathBuf::from(directory))? {
        println!(
            "{} {} {}",
            verified.program, verified.instructions, verified.states
        );
    }
    Ok(())
}
