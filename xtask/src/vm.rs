// SPDX-License-Identifier: Apache-2.0

//! `vm`: the agent on other kernels than this machine's, in guests of qemu.
//!
//! [`debian`] and [`kernel`] bring a kernel, [`guest`] and [`initramfs`] its files, [`qemu`] boots
//! it, [`matrix`] runs the tests on each kernel of `tests/kernels.toml` and judges them, [`report`] shows it.

mod debian;
mod emulator;
mod guest;
mod initramfs;
mod kernel;
mod matrix;
mod qemu;
mod report;
mod verifier;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use self::guest::Job;
use self::kernel::Kernel;
use self::qemu::{Accelerator, Host, Setting};
use crate::build;
use crate::kernels::{self, Kernels};
use crate::setup::{self, Scope};
use crate::sh;
use crate::variables;
use crate::workspace::{AGENT, Shipped, Workspace};

pub use self::debian::numbers;

/// The command that stands for a shell.
const SHELL: &str = "shell";

/// Which kernel runs a command when none is named.
const DEFAULT: &str = "newest";

/// The options of `vm`.
#[derive(Debug)]
pub struct Options {
    /// A version, `newest`, or a file; all of the matrix if none is given.
    pub kernel: Option<String>,
    /// Only the tests that CI runs.
    pub ci: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Only the tests of these files; all if there are none.
    pub files: Vec<String>,
    /// More words for the kernel's command line.
    pub append: String,
    /// A command, or `shell`; none for the tests.
    pub command: Vec<OsString>,
}

/// Runs tests, a command or a shell in guests.
///
/// # Errors
/// When a needed file cannot be fetched or built, or a guest or its job fails.
pub fn vm(workspace: &Workspace, options: &Options) -> Result<()> {
    let agent = prepare(workspace, options.ci)?;
    let cache = cache(workspace);
    if options.command.is_empty() {
        let host = Host::open(workspace, cache, agent)?;
        return matrix::run(workspace, &host, options);
    }
    let job = match options.command.as_slice() {
        [word] if word == SHELL => Job::Shell,
        words => Job::Command(words.to_vec()),
    };
    let kernel = choose(options.kernel.as_deref().unwrap_or(DEFAULT), &cache)?;
    let host = Host::open(workspace, cache, agent)?;
    let (accelerator, why) = host.accelerator(&kernel)?;
    println!("vm: Linux {}, {accelerator:?}: {why}", kernel.release);
    if matches!(job, Job::Shell) {
        println!("vm: Ctrl-A x ends the guest at once");
    }
    let talk = Setting {
        name: "talk",
        job: &job,
        environment: &environment(accelerator),
        append: &options.append,
        accelerator,
    };
    let outcome = host.guest(&kernel, &talk)?.talk()?;
    match (outcome.trouble, outcome.status) {
        (None, Some(0)) => Ok(()),
        (Some(trouble), _) => bail!("the guest failed: {trouble}"),
        // Its own messages are on the terminal.
        (None, status) => std::process::exit(status.unwrap_or(1)),
    }
}

/// Makes the tables of `tests/kernels.toml` again, and that of the verifier, from guests.
///
/// # Errors
/// As [`vm`], and when a document cannot be written.
pub fn tables(workspace: &Workspace, without_verifier: bool) -> Result<()> {
    kernels::remake(workspace)?;
    if without_verifier {
        return Ok(());
    }
    let agent = prepare(workspace, false)?;
    let host = Host::open(workspace, cache(workspace), agent)?;
    verifier::remake(workspace, &host, &Kernels::read(workspace)?)
}

/// Builds the programs that all guests run: the agent, whose path is returned, and what tries it. The agent is the shipped
/// one, which takes minutes to build; the tests of CI run the one that tests on this machine run.
fn prepare(workspace: &Workspace, is_ci: bool) -> Result<PathBuf> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("guests run the programs of this machine, and their kernels are for x86-64 only");
    }
    setup::ensure(Scope::Guests)?;
    build::beside_tests(workspace)?;
    if is_ci {
        return Ok(workspace.program(AGENT));
    }
    let agent = Shipped::named(AGENT)?;
    agent.compile(workspace)?;
    Ok(workspace.shipped(agent))
}

/// Kernels, package lists and the output of guests.
fn cache(workspace: &Workspace) -> PathBuf {
    workspace.target.join("vm")
}

/// The kernel in this file, else Debian's of this version.
fn choose(kernel: &str, cache: &Path) -> Result<Kernel> {
    let path = Path::new(kernel);
    if path.is_file() {
        Kernel::of_file(path, cache)
    } else {
        Kernel::of_debian(kernel, cache)
    }
}

/// How much longer things may take where qemu carries out each instruction.
const PATIENCE: u32 = 5;

/// Variables that everything in a guest gets.
fn environment(accelerator: Accelerator) -> Vec<(&'static str, String)> {
    let mut variables = vec![(
        variables::AGENT_VARIABLE,
        format!("/proxy-agent/target/release/{AGENT}"),
    )];
    if accelerator == Accelerator::Tcg {
        variables.push((variables::PATIENCE_VARIABLE, PATIENCE.to_string()));
    }
    variables
}

/// The last lines of a guest's console.
fn tail(console: &Path, count: usize) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// How many kernels there are in words, and how long it took.
fn took(count: usize, start: std::time::Instant) -> String {
    let kernels = if count == 1 { "kernel" } else { "kernels" };
    format!("{count} {kernels} in {}", sh::duration(start.elapsed()))
}
