// SPDX-License-Identifier: Apache-2.0

//! `setup`: finds or installs the tools for building, tests and demo.
//!
//! There are three steps: [`machine`] inspects the machine (it reads only files and runs no program, so that it is
//! fast), [`plan`] decides the steps, and this file runs them or prints the commands.

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

/// The purpose of a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that compiles the agent: the eBPF toolchain.
    Build,
    /// The above, and the programs that tests and demo run.
    Programs,
    /// The above, and the requirements of only some tests: Python packages and a browser. These tests are skipped on a
    /// machine where they cannot be installed.
    Everything,
    /// Everything that compiles the agent, and everything that builds and starts programs for this Rust target.
    Cross(&'static str),
    /// The programs that tests and demo run, and everything that boots guests with other kernels.
    Guests,
    /// Everything that compiles the agent, and a browser.
    Browser,
}

/// Ensures that everything in `scope` is installed. Prints one line with the tools that were found.
///
/// # Errors
/// Returns an error that contains the commands if a requirement is missing and cannot be installed here.
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

/// Returns whether [`ensure`] would install something.
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

/// Returns the compiler that builds the eBPF programs here, if there is one.
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
        // Packages must not ask questions.
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    // `cargo install` must not fill this checkout's target directory with another project.
    command.env_remove("CARGO_TARGET_DIR");
    sh::run(&mut command).with_context(|| line.advice)
}

/// Returns the LLVM release of this compiler; bpf-linker must be built for the same one.
fn llvm_major(rustc: &Path) -> Result<LlvmMajor> {
    let version = sh::read(sh::command(rustc).arg("-vV"))?;
    plan::parse_llvm_major(&version)
        .with_context(|| format!("cannot find the LLVM release of {}", rustc.display()))
}

/// Returns the message for a machine on which setup cannot install packages.
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
