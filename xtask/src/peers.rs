// SPDX-License-Identifier: Apache-2.0

//! `peers`: upstream's konnectivity server, agent, test client and test server, and the client library of
//! kube-apiserver, for the tests of the tunnel. Debian packages upstream's source with everything that it imports. The
//! packages are unpacked below the target directory, and built with Debian's Go, which is unpacked there as well.
//! Nothing of it is installed on the machine or stored in the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::debian::{Archive, make_dir, write};
use crate::sh;
use crate::workspace::Workspace;

/// The variable with the directory of upstream's programs, for tests and demo.
pub const VARIABLE: &str = "PROXY_TUNNEL_PEERS";

/// The Debian suite that contains upstream's source.
const SUITE: &str = "sid";

/// The packages of upstream's source and of the compiler. Their dependencies are fetched too.
const PACKAGES: [&str; 2] = ["golang-k8s-sigs-apiserver-network-proxy-dev", "golang-go"];

/// Upstream's import path.
const UPSTREAM: &str = "sigs.k8s.io/apiserver-network-proxy";

/// The path in the checkout of our program that uses the client library.
const LIBRARY_CLIENT: &str = "tests/peers/library-client/main.go";

/// The directory of apt's lists and Go's cache, below that of the programs.
const APT: &str = "apt";
const GO_CACHE: &str = "cache";

/// A program that is built.
struct Peer {
    /// The name of the program's file.
    name: &'static str,
    /// The import path below upstream's that Go builds, or a file of the checkout.
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

/// Builds upstream's programs unless they exist, and prints their directory.
///
/// # Errors
/// Returns an error under the same conditions as [`ensure`].
pub fn peers(workspace: &Workspace) -> Result<()> {
    let directory = ensure(workspace)?;
    for Peer { name, .. } in PEERS {
        println!("{}", workspace.relative(&directory.join(name)).display());
    }
    Ok(())
}

/// Returns the directory of upstream's programs. They are built first if they do not exist or if our program has
/// changed.
///
/// # Errors
/// Returns an error if Debian's packages cannot be fetched or built.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let cache = workspace.target.join("peers");
    let (root, programs) = (cache.join("root"), cache.join("bin"));
    let library_client = fs::read_to_string(workspace.root.join(LIBRARY_CLIENT))
        .with_context(|| format!("cannot read {LIBRARY_CLIENT}"))?;
    // This file is written last: if it exists, the directory is complete.
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
    // These are about 3 GiB, which only a changed program of ours would need again.
    for part in [&root, &cache.join(APT), &cache.join(GO_CACHE)] {
        fs::remove_dir_all(part).with_context(|| format!("cannot remove {}", part.display()))?;
    }
    println!("peers: built in {}", sh::duration(start.elapsed()));
    Ok(programs)
}

/// Fetches the packages, about 300 MiB, and unpacks them.
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

/// Returns a command for the unpacked Go, which reads and writes only below `cache`.
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
        // The packages' sources are in the directory layout that Go used before modules.
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0");
    Ok(command)
}
