// SPDX-License-Identifier: Apache-2.0

//! `image --check`: starts the programs of an image, and for another architecture runs them and the
//! unit tests under qemu. `cargo xtask test` tests them with traffic.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::arch::Arch;
use super::compile::Cross;
use super::debian;
use super::kind::Kind;
use super::tree::{Node, Tree};
use crate::sh;
use crate::workspace::{QUICK, Workspace};

/// A program, its arguments, and the output that shows that it and its libraries exist.
type Start = (&'static str, &'static [&'static str], &'static str);

/// Our programs in the node agent's image.
const AGENTS: [Start; 3] = [
    ("usr/bin/proxy-agent", &["--help"], "--ip-address"),
    (
        "apiserver-proxy-pod-webhook",
        &["--help"],
        "--apiserver-fqdn",
    ),
    ("apiserver-proxy-sidecar", &["--version"], "proxy-agent "),
];

/// The tunnel's programs, by each of their names.
const TUNNELS: [Start; 5] = [
    (
        "usr/bin/konnectivity-agent",
        &["--help"],
        "--proxy-server-host",
    ),
    ("usr/bin/konnectivity-server", &["--help"], "--cluster-cert"),
    (
        "usr/bin/konnectivity-sidecar",
        &["--version"],
        "konnectivity-sidecar ",
    ),
    ("proxy-agent", &["--version"], "konnectivity-agent "),
    ("proxy-server", &["--version"], "konnectivity-server "),
];

/// The programs of Debian's packages.
const PACKAGED: [Start; 6] = [
    ("usr/sbin/iptables-nft", &["--version"], "nf_tables"),
    ("usr/sbin/iptables-legacy", &["--version"], "legacy"),
    (
        "usr/sbin/ip6tables-nft-restore",
        &["--version"],
        "nf_tables",
    ),
    ("usr/sbin/ip6tables-legacy-save", &["--version"], "legacy"),
    (
        "usr/sbin/iptables-legacy",
        &["-m", "set", "--help"],
        "--match-set",
    ),
    ("usr/sbin/ipset", &["--version"], "ipset v"),
];

/// The message of the nft flavour if netlink does not support netfilter, as in qemu; it shows that
/// the program has started.
const NO_NETFILTER: &str = "Failed to initialize nft: Protocol not supported";

/// The unit tests that ask the kernel for sockets (`sock_diag`), a netlink protocol that qemu does not support.
const ASK_FOR_SOCKETS: [&str; 2] = [
    "sock_diag::list::tests::sockets_are_listed_and_found",
    "sock_diag::tests::a_connection_is_reset_and_one_that_is_gone_is_no_error",
];

/// The exit codes of `doctor` after a complete run: no problem, warnings, a failure.
const DOCTOR: [i32; 3] = [0, 3, 4];

/// Starts the programs of the image.
///
/// # Errors
/// Returns an error if a program does not start or prints other output than expected.
pub fn check(
    workspace: &Workspace,
    cross: &Cross,
    kind: Kind,
    arch: Arch,
    tree: &Tree,
) -> Result<()> {
    let directory = workspace
        .target
        .join("image")
        .join(format!("root-{}", arch.name()));
    debian::remove(&directory)?;
    unpack(tree, &directory)?;
    let root = Root { arch, directory };
    let outcome = programs(&root, kind);
    debian::remove(&root.directory)?;
    outcome?;
    if !arch.is_host() {
        let runner = arch.cargo_variable("RUNNER");
        let mut cargo = cross.cargo(workspace, "test");
        for package in kind.tested() {
            cargo.args(["--package", package]);
        }
        cargo
            .args(["--profile", QUICK, "--lib", "--bins", "--no-fail-fast"])
            .args(["--", "--exact"])
            .env(runner, arch.emulator());
        for test in ASK_FOR_SOCKETS {
            println!("{test} is skipped: qemu has no netlink protocol for lists of sockets");
            cargo.args(["--skip", test]);
        }
        sh::run(&mut cargo)?;
    }
    Ok(())
}

fn programs(root: &Root, kind: Kind) -> Result<()> {
    let (ours, packaged): (&[Start], &[Start]) = match kind {
        Kind::ProxyAgent => (&AGENTS, &PACKAGED),
        Kind::ProxyTunnel => (&TUNNELS, &[]),
    };
    for &(program, args, wanted) in ours {
        let output = root.run(program, args)?;
        ensure!(
            output.code == Some(0) && output.text.contains(wanted),
            "{program} {args:?}: {}",
            output.text
        );
    }
    if kind == Kind::ProxyAgent {
        doctor(root)?;
    }
    for &(program, args, wanted) in packaged {
        let output = root.run(program, args)?;
        let emulated = !root.arch.is_host() && output.text.contains(NO_NETFILTER);
        ensure!(
            output.text.contains(wanted) || emulated,
            "{program} {args:?}: {}",
            output.text
        );
    }
    println!(
        "{}: every program of {} starts",
        root.arch.name(),
        kind.name()
    );
    Ok(())
}

/// Runs the doctor, which checks this machine; any finding is accepted.
fn doctor(root: &Root) -> Result<()> {
    let program = "usr/bin/proxy-agent";
    let doctor = root.run(program, &["doctor"])?;
    ensure!(
        doctor.code.is_some_and(|code| DOCTOR.contains(&code)),
        "{program} doctor: {}",
        doctor.text
    );
    println!(
        "{}: {}",
        root.arch.name(),
        doctor.text.lines().last().unwrap_or_default()
    );
    Ok(())
}

/// The image's file system in a directory.
struct Root {
    arch: Arch,
    directory: PathBuf,
}

struct Output {
    code: Option<i32>,
    text: String,
}

impl Root {
    /// Runs a program: with the image's own loader for this architecture, and with qemu for others.
    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let path = self.directory.join(program);
        let mut command = if self.arch.is_host() {
            self.by_loader(&path)?
        } else {
            let mut command = sh::command(self.arch.emulator());
            command.arg("-L").arg(&self.directory).arg(&path);
            command
        };
        let plugins = self
            .directory
            .join("usr/lib")
            .join(self.arch.triplet())
            .join("xtables");
        let output = command
            .args(args)
            .env("XTABLES_LIBDIR", plugins)
            .output()
            .with_context(|| format!("cannot start {command:?}"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Output {
            code: output.status.code(),
            text: String::from_utf8_lossy(&text).trim().to_owned(),
        })
    }

    /// Returns the command that starts a program with the image's loader; static programs are
    /// started directly.
    fn by_loader(&self, path: &Path) -> Result<Command> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let needs = super::elf::needs(&bytes)?;
        let Some(loader) = needs.and_then(|needs| needs.interpreter) else {
            return Ok(sh::command(path));
        };
        let libraries = self.directory.join("usr/lib").join(self.arch.triplet());
        let name = path.file_name().map_or_else(OsString::new, OsString::from);
        let mut command = sh::command(self.directory.join(loader.trim_start_matches('/')));
        command
            .arg("--library-path")
            .arg(libraries)
            .arg("--argv0")
            .arg(name)
            .arg(path);
        Ok(command)
    }
}

fn unpack(tree: &Tree, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for (path, node) in tree.iter() {
        let path = directory.join(path);
        let made = match node {
            Node::Directory(_) => fs::create_dir_all(&path),
            Node::Link(target) => symlink(target, &path),
            Node::File(mode, bytes) => fs::write(&path, bytes)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode))),
        };
        if let Err(error) = made {
            bail!("cannot unpack {}: {error}", path.display());
        }
    }
    Ok(())
}
