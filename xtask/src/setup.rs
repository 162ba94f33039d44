// SPDX-License-Identifier: Apache-2.0

//! `setup`: finds or installs the tools for building, tests and demo.
//!
//! Three steps, one module each: [`machine`] looks (files only, no other program, so that it costs
//! nothing), [`plan`] decides the steps, and this file carries them out or prints the commands.

mod machine;
mod plan;
pub mod python;
mod tools;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::machine::Machine;
pub use self::machine::{BPF_TARGET, Compiler};
use self::plan::{Line, LlvmMajor, Step};
pub use self::tools::TOOLS;
use crate::sh;

/// The purpose of a set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that compiles the agent: the eBPF toolchain.
    Build,
    /// That, and the programs that tests and demo run.
    Programs,
    /// That, and what only some tests need: Python packages and a browser. A machine that cannot have these skips the tests.
    Everything,
    /// Everything that compiles the agent, and that builds and starts programs for this Rust
    /// target.
    Cross(&'static str),
    /// That, and everything that boots guests with other kernels.
    Guests,
    /// What compiles the agent, and a browser.
    Browser,
}

/// Makes sure that everything in `scope` is there. Prints one line with the tools that were found.
///
/// # Errors
/// When something is missing and cannot be installed here; the error then holds the commands.
pub fn ensure(scope: Scope) -> Result<()> {
    ensure_programs(scope)?;
    if scope == Scope::Everything {
        if let Err(error) = python::ensure() {
            eprintln!("setup: {error:#}");
        }
        if let Err(error) = ensure_programs(Scope::Browser) {
            eprintln!("setup: {error:#}; the tests that open pages in a browser will be skipped");
        }
    }
    Ok(())
}

/// Whether [`ensure`] would install something.
pub fn lacks_something(scope: Scope) -> bool {
    !plan::steps(&Machine::look(scope)).is_empty()
}

fn ensure_programs(scope: Scope) -> Result<()> {
    let machine = Machine::look(scope);
    let steps = plan::steps(&machine);
    if steps.is_empty() {
        println!("setup: {}", machine.summary());
        return Ok(());
    }
    if !(machine.root && machine.apt) {
        bail!("{}", by_hand(&machine, &steps));
    }
    let start = Instant::now();
    println!("setup: missing: {}", machine.missing().join(", "));
    for (number, step) in (1..).zip(&steps) {
        println!("[{number}/{}] {}: {}", steps.len(), step.what, step.why);
        let start = Instant::now();
        for line in &step.lines {
            execute(line, &machine)?;
        }
        println!("      done in {}", sh::duration(start.elapsed()));
    }
    let after = Machine::look(scope);
    if !plan::steps(&after).is_empty() {
        bail!(
            "every step succeeded and still this is missing: {}. {}",
            after.missing().join(", "),
            "Is another cargo or rustup earlier in PATH than the one that was set up?"
        );
    }
    println!(
        "setup: {}, done in {}",
        after.summary(),
        sh::duration(start.elapsed())
    );
    Ok(())
}

/// The compiler that builds the eBPF programs here, if there is one.
pub fn compiler() -> Option<Compiler> {
    Machine::look(Scope::Build).compiler
}

fn execute(line: &Line, machine: &Machine) -> Result<()> {
    let line = if line.needs_llvm_major() {
        &line.with_llvm_major(llvm_major(&machine.rustc())?)
    } else {
        line
    };
    let mut command = sh::command(&line.words[0]);
    command
        .args(&line.words[1..])
        .envs(line.variables.iter().map(|(k, v)| (*k, v)));
    if line.root {
        // Packages must not ask anything.
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    // `cargo install` must not fill this checkout's target directory with another project.
    command.env_remove("CARGO_TARGET_DIR");
    sh::run(&mut command).with_context(|| line.advice)
}

/// The LLVM release of this compiler: bpf-linker must be built for the same.
fn llvm_major(rustc: &Path) -> Result<LlvmMajor> {
    let version = sh::read(sh::command(rustc).arg("-vV"))?;
    plan::parse_llvm_major(&version)
        .with_context(|| format!("cannot find the LLVM release of {}", rustc.display()))
}

/// The message for a machine on which setup cannot install.
fn by_hand(machine: &Machine, steps: &[Step]) -> String {
    let reason = if machine.apt {
        "Installing needs root. Run `cargo xtask setup` as root, or these commands:"
    } else {
        "Installing is for Debian and Ubuntu, and there is no apt-get here. These are the commands \
         there; use what your system has in their place:"
    };
    let mut text = vec![format!(
        "missing: {}. {reason}\n",
        machine.missing().join(", ")
    )];
    let mut named = false;
    for line in steps.iter().flat_map(|step| &step.lines) {
        if line.needs_llvm_major() && !named {
            named = true;
            text.push(format!("  {}", plan::shell_llvm_major(&machine.rustc())));
        }
        text.push(format!("  {}", line.shell()));
    }
    if machine.compiler.is_none() && machine.rustup {
        text.push(
            "\nA nightly serves as well as Debian's rustc-web: \
             rustup toolchain install nightly --component rust-src"
                .to_owned(),
        );
    }
    text.join("\n")
}
