// SPDX-License-Identifier: Apache-2.0

//! Prints what the running kernel's verifier says of each program, as `name instructions states`.
//! `cargo xtask kernels` runs it on each kernel; nothing is attached.

fn main() -> anyhow::Result<()> {
    for verified in proxy_agent::verify_programs()? {
        println!(
            "{} {} {}",
            verified.program, verified.instructions, verified.states
        );
    }
    Ok(())
}
