// SPDX-License-Identifier: Apache-2.0

//! `peers`: upstream's konnectivity server, agent, test client and test server, and the client library that
//! kube-apiserver links, for the tests of the tunnel. Debian packages upstream's source with everything that it
//! imports; here the packages are unpacked below the target directory and built with Debian's Go, unpacked
//! there as well. Nothing of it is installed on the machine or stored in the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::debian::{Archive, make_dir, write};
use crate::sh;
use crate::workspace::Workspace;

/// Names the directory of the peers, for tests and demo.
pub const VARIABLE: &str = "PROXY_TUNNEL_PEERS";

/// Debian's suite that has upstream's source.
const SUITE: &str = "sid";

/// Upstream's source, and the compiler. Both bring their dependencies.
const PACKAGES: [&str; 2] = ["golang-k8s-sigs-apiserver-network-proxy-dev", "golang-go"];

/// Upstream's import path.
const UPSTREAM: &str = "sigs.k8s.io/apiserver-network-proxy";

/// Our program that drives the client library, in the checkout.
const LIBRARY_CLIENT: &str = "tests/peers/library-client/main.go";

/// apt's lists and Go's cache, in the directory of peers.
const APT: &str = "apt";
const GO_CACHE: &str = "cache";

/// A program that is built.
struct Peer {
    /// Its name in the directory of peers.
    name: &'static str,
    /// The import path that go builds, below upstream's, or a file of the checkout.
    source: &'static str,
}

const PEERS: [Peer; 5] = [
    peer("proxy-server", "cmd/server"),
    peer("proxy-agent", "cmd/agent"),
    peer("proxy-test-client", "cmd/test-client"),
    peer("http-test-server", "cmd/test-server"),
    peer("library-client", LIBRARY_CLIENT),
];

const fn peer(name: &'static str, source: &'static str) -> Peer {
    Peer { name, source }
}

/// Builds the peers unless they are there, and says where they are.
///
/// # Errors
/// As [`ensure`].
pub fn peers(workspace: &Workspace) -> Result<()> {
    let directory = ensure(workspace)?;
    for Peer { name, .. } in PEERS {
        println!("{}", workspace.relative(&directory.join(name)).display());
    }
    Ok(())
}

/// The directory of the peers, which are built first if they are not there or if our program has changed.
///
/// # Errors
/// When Debian's packages cannot be had, or do not build.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let cache = workspace.target.join("peers");
    let (root, programs) = (cache.join("root"), cache.join("bin"));
    let library_client = fs::read_to_string(workspace.root.join(LIBRARY_CLIENT))
        .with_context(|| format!("cannot read {LIBRARY_CLIENT}"))?;
    // Written last: with it everything is there.
    let stamp = cache.join("built");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == library_client) {
        return Ok(programs);
    }
    let start = Instant::now();
    if !root.is_dir() {
        fetch(&root, cache.join(APT)).context(
            "upstream's peers of the tunnel come from Debian's unstable packages; DEBIAN_MIRROR=URL names a \
             mirror that can be reached from here",
        )?;
    }
    make_dir(&programs)?;
    for (number, peer) in (1..).zip(&PEERS) {
        println!("peers: [{number}/{}] building {}", PEERS.len(), peer.name);
        peer.build(workspace, &cache, &programs)?;
    }
    write(&stamp, &library_client)?;
    // Some 3 GiB that only a changed program of ours would need again.
    for part in [&root, &cache.join(APT), &cache.join(GO_CACHE)] {
        fs::remove_dir_all(part).with_context(|| format!("cannot remove {}", part.display()))?;
    }
    println!("peers: built in {}", sh::duration(start.elapsed()));
    Ok(programs)
}

/// Fetches the packages, some 300 MiB, and unpacks them.
fn fetch(root: &Path, lists: PathBuf) -> Result<()> {
    let archive = Archive::empty(lists, &[SUITE])?;
    let packages = archive.plan(SUITE, &PACKAGES)?;
    println!(
        "peers: fetching {} packages to {}; nothing is installed",
        packages.len(),
        root.display()
    );
    archive.unpack(packages, root)
}

impl Peer {
    fn build(&self, workspace: &Workspace, cache: &Path, programs: &Path) -> Result<()> {
        let source = if Path::new(self.source).extension().is_some() {
            workspace.root.join(self.source).display().to_string()
        } else {
            format!("{UPSTREAM}/{}", self.source)
        };
        sh::run(
            go(cache)?
                .args(["build", "-trimpath", "-o"])
                .arg(programs.join(self.name))
                .arg(source),
        )
    }
}

/// go from the unpacked packages, with everything it reads and writes below `cache`.
fn go(cache: &Path) -> Result<Command> {
    let root = cache.join("root");
    let goroot = root.join("usr/lib/go");
    let goroot = fs::canonicalize(&goroot)
        .with_context(|| format!("Debian's Go is not in {}", goroot.display()))?;
    let mut command = sh::command(goroot.join("bin/go"));
    command
        .current_dir(cache)
        .env("GOROOT", goroot)
        .env("GOPATH", root.join("usr/share/gocode"))
        .env("GOCACHE", cache.join(GO_CACHE))
        .env("GOENV", "off")
        .env("GOFLAGS", "")
        .env("GOTOOLCHAIN", "local")
        // The packages' sources lie where Go looked for them before there were modules.
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0");
    Ok(command)
}
