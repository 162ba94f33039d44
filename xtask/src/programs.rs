// SPDX-License-Identifier: Apache-2.0

//! `demo`, `soak`, `bench` and `certs`: programs of the test crates, which are built and then take the place of this
//! one, so that signals and the exit status are theirs.
//!
//! Demos run what the tests run, by the profile `quick`: it is built soonest. A soak and a benchmark run what is shipped. A
//! short benchmark says that the benchmark works and has no use for that.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, Scope};
use crate::sh;
use crate::variables::AGENT_VARIABLE;
use crate::workspace::{AGENT, QUICK, RELEASE, Shipped, TUNNEL, USER_SPACE, Workspace, by};

/// The tunnel's programs that are not shipped: a client and a target.
const TUNNEL_PEERS: [&str; 2] = ["konnectivity-test-client", "http-test-server"];

/// The tunnel's programs, each by itself: the name, and the variable by which its path is given to those that start it.
const TUNNEL_PROGRAMS: [(&str, &str); 3] = [
    ("konnectivity-server", "KONNECTIVITY_SERVER_BIN"),
    ("konnectivity-agent", "KONNECTIVITY_AGENT_BIN"),
    ("konnectivity-sidecar", "KONNECTIVITY_SIDECAR_BIN"),
];

/// What a program of the test crates starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Agent,
    Tunnel,
}

/// Builds the demos and becomes one of them.
///
/// # Errors
/// Without root, when something it needs cannot be had, or when it cannot be built or started.
pub fn demo(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    require_root("demo")?;
    // Both demos at once: what they need is built once, in one go.
    let mut programs = vec!["demo", "tunnel-demo"];
    programs.extend(Half::Tunnel.programs());
    set_up_beside(workspace, &programs)?;
    programs.push(AGENT);
    compile(workspace, QUICK, &programs)?;
    match args.split_first() {
        Some((first, rest)) if first == "tunnel" => {
            start(workspace, QUICK, "tunnel-demo", rest, &[])
        }
        _ => start(workspace, QUICK, "demo", args, &[]),
    }
}

/// Builds the program that writes the tunnel's certificates, and becomes it.
///
/// # Errors
/// When it cannot be built or started.
pub fn certs(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    compile(workspace, QUICK, &["certs"])?;
    start(workspace, QUICK, "certs", args, &[])
}

/// Builds the soak, of the agent or of the tunnel as they are shipped, and becomes it.
///
/// # Errors
/// As [`demo`].
pub fn soak(workspace: &Workspace, minutes: u64, is_tunnel: bool) -> Result<()> {
    require_root("soak")?;
    let args = ["--minutes".into(), minutes.to_string().into()];
    let (half, program) = if is_tunnel {
        (Half::Tunnel, "tunnel-soak")
    } else {
        (Half::Agent, "soak")
    };
    with_shipped(workspace, half, QUICK, program, &args)
}

/// Builds the benchmark and becomes it, at the top of the checkout.
///
/// # Errors
/// As [`demo`].
pub fn bench(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    require_root("bench")?;
    let (half, program, args) = match tunnel_part(args) {
        Some((program, args)) => (Half::Tunnel, program, args),
        None => (Half::Agent, "bench", args.to_vec()),
    };
    let asks = |options: &[&str]| {
        args.iter()
            .any(|arg| options.iter().any(|option| arg == option))
    };
    let is_short = asks(&["--short"]);
    if is_short || asks(&["--help", "-h"]) {
        if is_short {
            println!("bench: short, with everything built by {QUICK}: slower than what is shipped");
        }
        setup::ensure(Scope::Programs)?;
        let mut programs = half.programs();
        programs.push(program);
        compile(workspace, QUICK, &programs)?;
        return start(workspace, QUICK, program, &args, &[]);
    }
    with_shipped(workspace, half, RELEASE, program, &args)
}

/// Builds a program by this profile, and one half as it is shipped, and becomes the program.
fn with_shipped(
    workspace: &Workspace,
    half: Half,
    profile: &'static str,
    program: &str,
    args: &[OsString],
) -> Result<()> {
    setup::ensure(Scope::Programs)?;
    let variables = half.shipped(workspace)?;
    let mut programs = vec![program];
    if half == Half::Tunnel {
        programs.extend(TUNNEL_PEERS);
    }
    compile(workspace, profile, &programs)?;
    start(workspace, profile, program, args, &variables)
}

impl Half {
    /// Its programs beside those that start them.
    fn programs(self) -> Vec<&'static str> {
        match self {
            Self::Agent => vec![AGENT],
            Self::Tunnel => {
                let programs = TUNNEL_PROGRAMS.iter().map(|(name, _)| *name);
                programs.chain(TUNNEL_PEERS).collect()
            }
        }
    }

    /// Builds what is shipped of it: the variables that say where that is.
    fn shipped(self, workspace: &Workspace) -> Result<Vec<(&'static str, PathBuf)>> {
        match self {
            Self::Agent => {
                let agent = Shipped::named(AGENT)?;
                agent.compile(workspace)?;
                Ok(vec![(AGENT_VARIABLE, workspace.shipped(agent))])
            }
            Self::Tunnel => {
                let tunnel = Shipped::named(TUNNEL)?;
                tunnel.compile(workspace)?;
                let program = workspace.shipped(tunnel);
                // It is the program by whose name it is started.
                let links = program.with_file_name("links");
                fs::create_dir_all(&links)
                    .with_context(|| format!("cannot make {}", links.display()))?;
                let link = |&(name, variable)| {
                    let link = links.join(name);
                    match symlink(&program, &link) {
                        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                            Err(error).with_context(|| format!("cannot make {}", link.display()))
                        }
                        _ => Ok((variable, link)),
                    }
                };
                TUNNEL_PROGRAMS.iter().map(link).collect()
            }
        }
    }
}

/// The tunnel's parts of the benchmark, each a program of its own.
const TUNNEL_PARTS: [(&str, &str); 2] =
    [("tunnel", "tunnel-bench"), ("tunnel-scale", "tunnel-scale")];

/// The program and the other arguments, if these ask for one of the tunnel's parts.
fn tunnel_part(args: &[OsString]) -> Option<(&'static str, Vec<OsString>)> {
    TUNNEL_PARTS.iter().find_map(|(part, program)| {
        let is_one = |pair: &[OsString]| pair[0] == "--part" && pair[1] == *part;
        let joined = format!("--part={part}");
        let (at, length) = match args.iter().position(|arg| *arg == *joined) {
            Some(at) => (at, 1),
            None => (args.windows(2).position(is_one)?, 2),
        };
        Some((*program, [&args[..at], &args[at + length..]].concat()))
    })
}

fn require_root(command: &str) -> Result<()> {
    sh::require_root(
        command,
        "it makes network namespaces and loads eBPF programs",
    )
}

/// Builds programs by this profile, as `cargo xtask test` does.
///
/// # Errors
/// When one of them cannot be built.
pub fn compile(workspace: &Workspace, profile: &'static str, programs: &[&str]) -> Result<()> {
    sh::run(&mut compilation(workspace, profile, programs))
}

fn compilation(workspace: &Workspace, profile: &'static str, programs: &[&str]) -> Command {
    let mut cargo = workspace.cargo("build");
    cargo.args(by(profile)).args(USER_SPACE);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    cargo
}

/// Sets this machine up. If that takes time, programs are built meanwhile that need none of it: set-up waits for the network
/// and for a few large crates.
fn set_up_beside(workspace: &Workspace, programs: &[&str]) -> Result<()> {
    let mut meanwhile = None;
    if setup::lacks_something(Scope::Programs) {
        println!("building what needs no set-up meanwhile");
        let mut cargo = compilation(workspace, QUICK, programs);
        meanwhile = Some(cargo.spawn().context("cannot start cargo")?);
    }
    let outcome = setup::ensure(Scope::Programs);
    if let Some(mut cargo) = meanwhile {
        if outcome.is_err() {
            cargo.kill().context("ending cargo")?;
        }
        // If it failed, so does the build of everything, which says why.
        cargo.wait().context("waiting for cargo")?;
    }
    outcome
}

/// Becomes a program that was built by this profile, at the top of the checkout.
fn start(
    workspace: &Workspace,
    profile: &str,
    program: &str,
    args: &[OsString],
    variables: &[(&'static str, PathBuf)],
) -> Result<()> {
    let mut command = sh::command(workspace.by_profile(profile, program));
    command
        .args(args)
        .current_dir(&workspace.root)
        .envs(variables.iter().map(|(name, path)| (name, path)));
    sh::exec(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnels_part_of_the_benchmark_is_recognised() {
        let args = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
        let part = |text| {
            let (program, rest) = tunnel_part(&args(text))?;
            Some((
                program,
                rest.join(&OsString::from(" ")).into_string().unwrap(),
            ))
        };
        assert_eq!(part("--short --part costs"), None);
        for (text, program, rest) in [
            (
                "--short --part tunnel --peer",
                "tunnel-bench",
                "--short --peer",
            ),
            ("--part=tunnel --short", "tunnel-bench", "--short"),
            ("--part=tunnel-scale --short", "tunnel-scale", "--short"),
            ("--short --part tunnel-scale", "tunnel-scale", "--short"),
        ] {
            assert_eq!(part(text).unwrap(), (program, rest.to_owned()), "{text}");
        }
    }
}
