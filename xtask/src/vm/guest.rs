// SPDX-License-Identifier: Apache-2.0

//! The contents of a guest: the kernel's modules, the programs that tests run, the agent and the
//! tests, and the job that `init.sh` does there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use crate::setup::TOOLS;
use crate::sh;
use crate::variables;
use crate::workspace::Workspace;

/// The directory of this project's files in a guest.
const HOME: &str = "proxy-agent";

/// Other tools of a node: those that kube-proxy's IPVS mode needs, and a shell.
const MORE_TOOLS: [&str; 6] = ["ipvsadm", "modprobe", "bash", "mount", "umount", "ss"];

/// Tools that tests of this machine need and tests of a kernel do not: a compiler, a reader of
/// images, monitoring.
const LEFT_OUT: [&str; 4] = ["c++", "skopeo", "prometheus", "prometheus-node-exporter"];

/// Files without which programs work less well.
const FILES: [&str; 4] = [
    "/etc/protocols",
    "/etc/services",
    "/etc/ethertypes",
    "/usr/lib/ssl/openssl.cnf",
];

/// The programs of this workspace that are in each guest beside the agent: for the tests, and for people.
const BESIDE: [&str; 2] = ["demo", "examples/verifier"];

/// The agent of the previous release.
const PREVIOUS: &str = "previous";

/// The job of a guest.
#[derive(Clone, Debug)]
pub enum Job {
    /// Comes up and ends.
    Nothing,
    /// A shell on the console.
    Shell,
    /// A command on the console.
    Command(Vec<OsString>),
    /// Loads every program and reports the verifier's statistics.
    Verifier,
    /// Runs tests; with the agent of the previous release where it is at hand.
    Tests(Vec<Run>, Option<PathBuf>),
}

/// Tests that a guest runs with one call of a program.
#[derive(Clone, Debug)]
pub struct Run {
    /// The file that they stand in.
    pub name: String,
    /// The program, on this machine.
    pub program: PathBuf,
    /// Its arguments, of which none has white space.
    pub arguments: Vec<String>,
    /// How many seconds it may take.
    pub limit: u64,
}

/// Writes the initramfs of a guest, with this program as the agent.
///
/// # Errors
/// When something that belongs in it is not here.
pub fn write(
    workspace: &Workspace,
    agent: &Path,
    kernel: &Kernel,
    job: &Job,
    environment: &[(&str, String)],
    path: &Path,
) -> Result<()> {
    let mut image = Initramfs::new();
    base(&mut image)?;
    if let Some(root) = &kernel.root {
        image.tree(&root.join("lib"), "usr/lib")?;
    }
    if !matches!(job, Job::Nothing) {
        node(&mut image)?;
        let beside = BESIDE.map(|program| workspace.program(program));
        for file in [agent.to_owned()].into_iter().chain(beside) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            image.copy(&file, &format!("{HOME}/target/release/{name}"));
            image.libraries(&file)?;
        }
    }
    let mut variables = format!("JOB={}\n", job.name());
    for (name, value) in environment {
        let _ = writeln!(variables, "export {name}={}", quoted(value));
    }
    match job {
        Job::Nothing | Job::Shell | Job::Verifier => {}
        Job::Command(words) => {
            let words: Vec<_> = words
                .iter()
                .map(|word| quoted(&word.to_string_lossy()))
                .collect();
            image.text(
                &format!("{HOME}/command"),
                &format!("{}\n", words.join(" ")),
                false,
            );
        }
        Job::Tests(runs, previous) => {
            tests(&mut image, runs)?;
            repository(&mut image, workspace)?;
            if let Some(previous) = previous {
                image.copy(previous, &format!("{HOME}/{PREVIOUS}"));
                let _ = writeln!(
                    variables,
                    "export {}=/{HOME}/{PREVIOUS}",
                    variables::PREVIOUS_VARIABLE
                );
            }
        }
    }
    image.text(&format!("{HOME}/environment"), &variables, false);
    applets(&mut image)?;
    image.write(path)
}

impl Job {
    /// The name by which `init.sh` knows it.
    fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Shell => "shell",
            Self::Command(_) => "command",
            Self::Verifier => "verifier",
            Self::Tests(..) => "tests",
        }
    }
}

/// Adds the files of every guest: the first process and the small programs it needs.
fn base(image: &mut Initramfs) -> Result<()> {
    image.text("init", include_str!("init.sh"), true);
    for directory in [
        "proc", "sys", "dev", "run", "tmp", "etc", "var/run", "var/lib",
    ] {
        image.directory(directory);
    }
    image.text("etc/passwd", "root:x:0:0:root:/:/bin/bash\n", false);
    image.text("etc/group", "root:x:0:\n", false);
    image.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", false);
    image.link("etc/mtab", "/proc/self/mounts");
    image.program("busybox")?;
    // `ip` sets lo up; modprobe is what the kernel itself calls for a module.
    image.program("ip")?;
    image.program("modprobe")
}

/// Adds the tools that tests and people use on a node.
fn node(image: &mut Initramfs) -> Result<()> {
    let tools = TOOLS.iter().map(|tool| tool.program);
    for tool in tools
        .filter(|tool| !LEFT_OUT.contains(tool))
        .chain(MORE_TOOLS)
    {
        image.program(tool)?;
    }
    // busybox as a shell would take its own `ip` and `tc`.
    image.link("usr/bin/sh", "bash");
    // The plain names are what scripts and people type.
    for name in ["iptables", "ip6tables", "iptables-save", "iptables-restore"] {
        if sh::find(name, &sh::search_path()).is_some() {
            image.program(name)?;
        }
    }
    for name in ["legacy", "nft"] {
        for program in ["iptables", "ip6tables"] {
            for end in ["-save", "-restore"] {
                image.program(&format!("{program}-{name}{end}"))?;
            }
        }
    }
    // iptables loads its extensions by their names.
    let extensions = extensions().context("iptables has no extensions here")?;
    let place = extensions
        .to_string_lossy()
        .trim_start_matches('/')
        .to_owned();
    image.tree(&extensions, &place)?;
    for extension in fs::read_dir(&extensions).into_iter().flatten().flatten() {
        image.libraries(&extension.path())?;
    }
    for file in FILES.map(Path::new) {
        if file.is_file() {
            image.copy(file, file.to_string_lossy().trim_start_matches('/'));
        }
    }
    Ok(())
}

/// busybox provides the commands that are not installed.
fn applets(image: &mut Initramfs) -> Result<()> {
    let applets = sh::read(sh::command("busybox").arg("--list"))?;
    for applet in applets.lines() {
        let there = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|directory| image.has(&format!("{directory}/{applet}")));
        if !there {
            image.link(&format!("usr/bin/{applet}"), "/bin/busybox");
        }
    }
    Ok(())
}

/// `/usr/lib/x86_64-linux-gnu/xtables`, or the like.
fn extensions() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut places: Vec<PathBuf> = places.map(|entry| entry.path().join("xtables")).collect();
    places.push("/usr/lib/xtables".into());
    places.push("/usr/lib64/xtables".into());
    places.into_iter().find(|path| path.is_dir())
}

fn tests(image: &mut Initramfs, runs: &[Run]) -> Result<()> {
    let mut plan = String::new();
    let mut copied = BTreeSet::new();
    for run in runs {
        let file = run.program.file_name().context("a program has a name")?;
        let file = file.to_string_lossy();
        if copied.insert(&run.program) {
            image.copy(&run.program, &format!("{HOME}/target/release/deps/{file}"));
            image.libraries(&run.program)?;
        }
        let (name, limit) = (&run.name, run.limit);
        let _ = writeln!(plan, "{name} {file} {limit} {}", run.arguments.join(" "));
    }
    // Tests find the directory for their records of skips by this.
    image.text(&format!("{HOME}/target/CACHEDIR.TAG"), "", false);
    image.text(&format!("{HOME}/plan"), &plan, false);
    Ok(())
}

/// The files of the repository, where they are on this machine: tests compare the agent with some.
fn repository(image: &mut Initramfs, workspace: &Workspace) -> Result<()> {
    let listed = sh::read(
        sh::command("git")
            .arg("-C")
            .arg(&workspace.root)
            .args(["ls-files", "-z"]),
    )?;
    for name in listed.split_terminator('\0') {
        let file = workspace.root.join(name);
        if file.is_file() {
            let place = file.to_string_lossy().trim_start_matches('/').to_owned();
            image.copy(&file, &place);
        }
    }
    Ok(())
}

/// For a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
