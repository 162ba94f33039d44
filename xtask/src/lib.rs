// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask`: one entry point for people and for CI.
//!
//! This file contains the command line. Each command is implemented in the module with its name; `sh` runs and reports
//! commands, and `workspace` contains paths. Nothing here depends on the agent or on the eBPF toolchain, so that
//! `cargo xtask setup` works on a bare machine.

mod behaviour;
mod build;
mod check;
mod debian;
mod fuzz;
mod image;
mod kernels;
mod nodes;
mod parallel;
mod peers;
mod previous;
mod programs;
mod reference;
mod setup;
mod sh;
mod test;
mod tests_map;
mod tidy;
mod variables;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::setup::Scope;
use crate::workspace::{AGENT, TUNNEL, WEBHOOK, Workspace};

/// Builds, checks, tests and shows proxy-agent.
///
/// A fresh machine needs Rust and git, nothing else: every command first finds or installs what it
/// needs. A second run does nothing twice.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building, tests and demo need
    ///
    /// Looks for the eBPF toolchain and for the programs that tests and demo run (iptables, nft,
    /// conntrack, haproxy, …). As root on Debian or Ubuntu it installs what is missing; elsewhere
    /// it prints the exact commands, changes nothing and fails.
    Setup,
    /// Build the agent, optimised, with its eBPF programs inside, the webhook and the tunnel
    Build {
        /// Only this one
        #[arg(value_parser = [AGENT, WEBHOOK, TUNNEL])]
        program: Option<String>,
    },
    /// Formatting, lints (user space and eBPF), documentation, tidy
    ///
    /// Runs every step even when one fails, and names the failed ones at the end.
    Check,
    /// Look for what no other tool looks for: layout, licences, links, leftovers
    Tidy {
        /// First make tests/README.md again from the files of tests
        #[arg(long)]
        fix: bool,
    },
    /// Run all tests on this machine's kernel; needs root
    ///
    /// The tests work in network namespaces of their own and leave this machine's network alone. After all of them a
    /// reduced set of the behaviour tests runs on each node of tests/nodes.toml: strict conntrack, strict reverse
    /// path filter, and a kube-proxy that checks the Service range.
    Test {
        /// Run only the tests whose name contains this
        filter: Option<String>,
        /// Run only behaviour tests, on nodes with a setting of tests/nodes.toml, for example `service-range`
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Arguments for the test programs, for example `-- --nocapture`
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Show the agent on real traffic, in network namespaces; needs root
    ///
    /// `cargo xtask demo tunnel` shows the way back: the tunnel's three examples, and Prometheus through it.
    Demo {
        /// `tunnel`, or arguments for the demo; `--help` after `--` lists them
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Have the agent work for long and see that it holds no more at the end; needs root
    ///
    /// Pods come and go, connections stream, rules and addresses are removed and repaired. Memory, open
    /// files, threads and BPF objects are sampled meanwhile, and printed as a table.
    Soak {
        /// How long
        #[arg(long, value_name = "N", default_value_t = 30)]
        minutes: u64,
        /// The tunnel's server and agent instead: tunnels of all kinds, and each of the two killed under them
        #[arg(long)]
        tunnel: bool,
    },
    /// Look for inputs that show a fault in a parser or in the decision
    ///
    /// Without a target it lists them; `all` runs each of them. What a run has come upon is kept in
    /// target/fuzz for the next one, and so are the inputs that failed.
    Fuzz {
        /// What is fuzzed
        target: Option<String>,
        /// How many inputs each target gets
        #[arg(long, value_name = "N", default_value_t = 1_000_000)]
        runs: u64,
        /// Arguments for libFuzzer, for example `-- -max_total_time=60`
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Build the container images, without a container daemon
    ///
    /// An OCI layout each: proxy-agent has the agent and the webhook, linked statically, and the iptables and ipset
    /// programs of Debian that the agent's iptables backend calls; proxy-tunnel has the tunnel's server, agent and sidecar,
    /// and nothing else. `docker load`, `podman load` and `ctr images import` take them.
    Image(image::Options),
    /// Write the certificates that the tunnel's examples name, for example `cargo xtask certs certs`
    #[command(disable_help_flag = true)]
    Certs {
        /// The directory, and options; `--help` lists them
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Build upstream's konnectivity programs, peers for the tests of the tunnel, and say where they are
    ///
    /// From Debian's unstable packages, which are unpacked in target/peers and not installed: some 300 MiB, and
    /// some minutes the first time.
    Peers,
    /// Measure the agent side by side with every other way; needs root
    ///
    /// In network namespaces of its own; some fifteen minutes on a quiet machine. Renews
    /// docs/benchmarks.md and its plots. `cargo xtask bench --short` takes about a minute and only
    /// reports; `cargo xtask bench --help` lists the parts. `--part tunnel` measures the tunnel instead, with
    /// `--peer` beside upstream's programs.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments for the benchmark
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run the behaviour tests, a command or a shell on other kernels, in guests of qemu
    ///
    /// Without a command: the behaviour tests on each kernel of tests/kernels.toml, and what that file says
    /// of the kernel. `-- shell` gives a shell with the agent, the demo and everything that tests use,
    /// `-- COMMAND` runs a command and exits with its status. Kernels are Debian's packages; they are
    /// kept in target/vm.
    Vm {
        /// Only this kernel: the start of its version (6.12), `newest`, a kernel package, or an image
        #[arg(long, value_name = "VERSION|PATH")]
        kernel: Option<String>,
        /// Only a short selection, meant for CI: a list in tests/kernels.toml
        #[arg(long)]
        ci: bool,
        /// Run only the tests whose name contains this
        #[arg(long, value_name = "NAME", conflicts_with = "ci")]
        filter: Option<String>,
        /// Only the tests of these files below tests/tests, for example `paths`
        #[arg(
            long,
            value_name = "FILE",
            value_delimiter = ',',
            conflicts_with = "ci"
        )]
        file: Vec<String>,
        /// More words for the kernel's command line, for example `module_blacklist=xt_bpf`
        #[arg(
            long,
            value_name = "WORDS",
            default_value = "",
            hide_default_value = true
        )]
        append: String,
        /// `shell`, or a command
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Make the tables of kernels in docs/agent.md and docs/kernel-support.md again
    ///
    /// From tests/kernels.toml; the table of what each kernel's verifier says of each program from guests.
    Kernels {
        /// Leave the table of the verifier as it is: no guest is booted
        #[arg(long)]
        without_verifier: bool,
    },
    /// Make the manual pages and the reference of all command lines in docs/reference again
    Reference,
    /// Build the agent and run it, for example `cargo xtask run -- --help`
    Run {
        /// Arguments for the agent
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

/// Runs `cargo xtask`.
#[must_use]
pub fn main() -> ExitCode {
    let task = Cli::parse().task;
    match dispatch(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the command line, for the documentation and its tests.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

fn dispatch(task: Task) -> anyhow::Result<()> {
    // Setup runs before the workspace is read and does not call cargo: it must be fast if nothing is missing.
    if let Task::Setup = task {
        return setup::ensure(Scope::Everything);
    }
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => Ok(()),
        Task::Build { program } => build::build(&workspace, program.as_deref()),
        Task::Check => check::check(&workspace),
        Task::Tidy { fix } => {
            let fixed = if fix {
                tests_map::remake(&workspace)
            } else {
                Ok(())
            };
            fixed.and_then(|()| tidy::tidy(&workspace))
        }
        Task::Test { filter, node, args } => {
            let options = test::Options { filter, node, args };
            test::test(&workspace, &options)
        }
        Task::Demo { args } => programs::demo(&workspace, &args),
        Task::Bench { args } => programs::bench(&workspace, &args),
        Task::Soak { minutes, tunnel } => programs::soak(&workspace, minutes, tunnel),
        Task::Fuzz { target, runs, args } => fuzz::fuzz(&workspace, target.as_deref(), runs, &args),
        Task::Certs { args } => programs::certs(&workspace, &args),
        Task::Peers => peers::peers(&workspace),
        Task::Image(options) => image::image(&workspace, &options),
        Task::Vm {
            kernel,
            ci,
            filter,
            file,
            append,
            command,
        } => {
            let options = vm::Options {
                kernel,
                ci,
                filter,
                files: file,
                append,
                command,
            };
            vm::vm(&workspace, &options)
        }
        Task::Kernels { without_verifier } => vm::tables(&workspace, without_verifier),
        Task::Reference => reference::remake(&workspace),
        Task::Run { args } => build::run(&workspace, &args),
    }
}
