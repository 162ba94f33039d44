// SPDX-License-Identifier: Apache-2.0

//! The programs of a tunnel, ours and upstream's, and where they are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tests::agent::program;
use tests::skip;

/// Names the directory of upstream's programs; `cargo xtask test` and `cargo xtask peers` know it.
const PEERS: &str = "PROXY_TUNNEL_PEERS";

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// This workspace's.
    Ours,
    /// The Kubernetes project's.
    Upstream,
}

impl Make {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ours, Self::Upstream];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Upstream => "upstream's",
        }
    }
}

/// A part of a tunnel, as a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The server, which API server and agents connect to.
    Server,
    /// The agent, which connects to the targets.
    Agent,
    /// The client of the examples.
    TestClient,
    /// The target of the examples.
    TestServer,
    /// The HTTP proxy for the programs of a pod, which upstream does not have.
    Sidecar,
}

impl Part {
    /// The program of this make.
    ///
    /// # Errors
    /// There is none; says how to build it.
    pub fn of(self, make: Make) -> Result<PathBuf> {
        let (ours, upstreams) = match self {
            Self::Server => ("konnectivity-server", "proxy-server"),
            Self::Agent => ("konnectivity-agent", "proxy-agent"),
            Self::TestClient => ("konnectivity-test-client", "proxy-test-client"),
            Self::TestServer => ("http-test-server", "http-test-server"),
            Self::Sidecar => ("konnectivity-sidecar", "konnectivity-sidecar"),
        };
        match make {
            Make::Ours => {
                let variable = format!("{}_BIN", ours.replace('-', "_").to_uppercase());
                program(&variable, ours)
            }
            Make::Upstream => peer(upstreams),
        }
    }
}

/// Our program around the client library that kube-apiserver links.
///
/// # Errors
/// It is not built.
pub fn library_client() -> Result<PathBuf> {
    peer("library-client")
}

fn peer(name: &str) -> Result<PathBuf> {
    let directory = peers().with_context(|| {
        format!("no upstream programs: build them with `cargo xtask peers`, or set {PEERS}")
    })?;
    let program = directory.join(name);
    ensure!(program.is_file(), "{} is missing", program.display());
    Ok(program)
}

/// The directory of upstream's programs: the variable's, or the one below the target directory.
fn peers() -> Option<PathBuf> {
    let named = env::var_os(PEERS).map(PathBuf::from);
    let own = env::current_exe().ok()?;
    let built = own.ancestors().map(|above| above.join("peers/bin"));
    named.into_iter().chain(built).find(|path| path.is_dir())
}

/// Whether upstream's programs are missing; then it is recorded that `test` did not run.
///
/// # Errors
/// The record cannot be written.
pub fn lacks_peers(test: &str) -> Result<bool> {
    skip::clear(test)?;
    if peers().is_some() {
        return Ok(false);
    }
    skip::record(
        test,
        "no upstream programs, which `cargo xtask peers` builds from Debian's packages",
    )?;
    Ok(true)
}
