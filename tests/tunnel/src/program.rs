// SPDX-License-Identifier: Apache-2.0

//! The programs of a tunnel, ours and upstream's, and their paths.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tests::agent::program;
use tests::skip;

/// The variable with the directory of upstream's programs, which xtask's commands `test` and `peers`
/// use too.
const PEERS: &str = "PROXY_TUNNEL_PEERS";

/// The project that a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// This workspace.
    Ours,
    /// The Kubernetes project.
    Upstream,
}

impl Make {
    /// Both makes.
    pub const ALL: [Self; 2] = [Self::Ours, Self::Upstream];

    /// Returns the name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Upstream => "upstream's",
        }
    }
}

/// A part of a tunnel that is a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The server, which the API server and agents connect to.
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
    /// Returns the path of the program of this make.
    ///
    /// # Errors
    /// Returns an error that says how to build the program if it does not exist.
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

/// Returns the path of our program that uses the client library of kube-apiserver.
///
/// # Errors
/// Returns an error if it is not built.
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

/// Returns the directory of upstream's programs: the variable's value, or the directory below the
/// target directory.
fn peers() -> Option<PathBuf> {
    let named = env::var_os(PEERS).map(PathBuf::from);
    let own = env::current_exe().ok()?;
    let built = own.ancestors().map(|above| above.join("peers/bin"));
    named.into_iter().chain(built).find(|path| path.is_dir())
}

/// Returns whether upstream's programs are missing, and in this case records that `test` did not
/// run.
///
/// # Errors
/// Returns an error if the record cannot be written.
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
