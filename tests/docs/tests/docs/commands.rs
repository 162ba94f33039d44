// SPDX-License-Identifier: Apache-2.0

//! The commands of README.md, docs/ and deploy/: each is parsed by its program's own command line, rendered or run, or
//! its block has a mark that says what it needs. docs/README.md lists the marks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use anyhow::{Context as _, Result, bail, ensure};
use clap::error::ErrorKind;
use docs_tests::programs::{self, Program};
use docs_tests::shell::{self, Command};
use serde_json::Value;
use tests::fences::{self, Block};
use tests::manifests::{Tool, repository};
use tests::{agent, cmd};

/// The marks of blocks that are not run here, with the requirement of each.
const MARKS: [(&str, &str); 4] = [
    ("cluster", "a Kubernetes cluster"),
    ("machine", "a node, or programs that run on it"),
    ("release", "a registry, or a release"),
    ("tested", "a test of its own, which runs it unchanged"),
];

/// Commands of every shell, which are not checked.
const SHELL: [&str; 5] = ["cd", "export", "mkdir", "man", "kill"];

/// The directories of this repository's files, as commands name them.
const TREES: [&str; 4] = ["deploy/", "docs/", "./docs/", "tests/"];

/// Words of command lines that only print.
const HARMLESS: [&str; 3] = ["--help", "--version", "completions"];

/// A kustomization of files that a script writes first; `tests/webhook` renders it after the script.
const MADE: &str = "deploy/webhook/by-hand";

/// A page with its commands.
struct Page {
    path: String,
    text: String,
}

fn pages() -> Result<Vec<Page>> {
    let mut paths = vec![
        PathBuf::from("README.md"),
        "SECURITY.md".into(),
        "tests/README.md".into(),
    ];
    let mut directories = vec![PathBuf::from("docs"), "deploy".into()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(repository().join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(repository().join(&path));
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        Ok(Page {
            path: path.display().to_string(),
            text,
        })
    };
    paths.into_iter().map(read).collect()
}

/// The known names of the repository.
struct Known {
    programs: Vec<Program>,
    /// The packages and targets of the workspace, as `cargo` accepts them behind a flag.
    cargo: BTreeSet<(&'static str, String)>,
    tool: Option<Tool>,
}

impl Known {
    fn new() -> Result<Self> {
        Ok(Self {
            programs: programs::all(),
            cargo: cargo_names()?,
            tool: Tool::find("documented_commands")?,
        })
    }

    /// Returns whether a command could be checked without the requirement of a mark.
    ///
    /// # Errors
    /// Returns an error if the command is wrong.
    fn check(&self, words: &[String]) -> Result<bool> {
        for word in words {
            let path = word.rsplit('=').next().unwrap_or_default();
            if TREES.iter().any(|tree| path.starts_with(tree)) {
                ensure!(repository().join(path).exists(), "there is no {path}");
            }
        }
        let program = words[0].rsplit('/').next().unwrap_or_default();
        if let Some(at) = words.iter().position(|word| word == "--")
            && program == "kubectl"
        {
            self.check(&words[at + 1..])?;
            return Ok(false);
        }
        match program {
            "cargo" => self.cargo(&words[1..]).map(|()| true),
            "kubectl" | "helm" => {
                self.render(words)?;
                Ok(false)
            }
            _ if SHELL.contains(&program) => Ok(true),
            _ if TREES.iter().any(|tree| words[0].starts_with(tree)) => {
                let script = repository().join(&words[0]);
                cmd::run(Process::new("bash").arg("-n").arg(script), "").map(|_| true)
            }
            _ => match self.programs.iter().find(|one| one.name == program) {
                Some(known) => parse(known, &words[1..]).map(|()| true),
                None => Ok(false),
            },
        }
    }

    fn cargo(&self, words: &[String]) -> Result<()> {
        if words.first().is_some_and(|word| word == "xtask") {
            let xtask = self.programs.iter().find(|one| one.name == "cargo-xtask");
            return parse(xtask.context("no xtask")?, &words[1..]);
        }
        for pair in words.windows(2) {
            let flag = ["-p", "--example", "--test", "--bin"]
                .into_iter()
                .find(|flag| pair[0] == **flag);
            if let Some(flag) = flag {
                let is_known = self.cargo.contains(&(flag, pair[1].clone()));
                ensure!(is_known, "cargo knows no {flag} {}", pair[1]);
            }
        }
        Ok(())
    }

    /// Renders the objects that a cluster would receive.
    fn render(&self, words: &[String]) -> Result<()> {
        let Some(tool) = &self.tool else {
            return Ok(());
        };
        let Some(path) = words.iter().find(|word| word.starts_with("deploy/")) else {
            return Ok(());
        };
        if words[0] == "helm" {
            let chart = repository().join(path).join("Chart.yaml");
            ensure!(chart.is_file(), "{path} is no chart");
            return Ok(());
        }
        let is_rendered = words.iter().any(|word| word == "-k" || word == "kustomize");
        if is_rendered && path != MADE {
            let objects = tool.kustomize(&repository().join(path))?;
            ensure!(!objects.is_empty(), "{path} gives nothing");
        }
        Ok(())
    }
}

/// Parses a line by the program's own command line; a command that only prints is run.
fn parse(program: &Program, words: &[String]) -> Result<()> {
    let is_doctor = words.first().is_some_and(|word| word == "doctor");
    let doctor = program.doctor.as_ref().filter(|_| is_doctor);
    let parsed = if let Some(doctor) = doctor {
        doctor.clone().try_get_matches_from(words)
    } else {
        let line = std::iter::once(&program.name).chain(words);
        program.command.clone().try_get_matches_from(line)
    };
    if let Err(error) = parsed {
        let is_shown = matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        );
        ensure!(is_shown, "{error}");
    }
    if words.iter().any(|word| HARMLESS.contains(&word.as_str())) && program.manual.is_some() {
        let variable = format!("{}_BIN", program.name.replace('-', "_").to_uppercase());
        let binary = if program.name == "proxy-agent" {
            agent::binary()?
        } else {
            agent::program(&variable, &program.name)?
        };
        cmd::run(Process::new(binary).args(words), "")?;
    }
    Ok(())
}

fn cargo_names() -> Result<BTreeSet<(&'static str, String)>> {
    let mut cargo = Process::new("cargo");
    cargo.args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]);
    let metadata: Value = serde_json::from_str(&cmd::run(cargo.current_dir(repository()), "")?)?;
    let mut names = BTreeSet::new();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    for package in metadata["packages"].as_array().context("no packages")? {
        names.insert(("-p", name(package)));
        for target in package["targets"].as_array().into_iter().flatten() {
            for (kind, flag) in [
                ("bin", "--bin"),
                ("example", "--example"),
                ("test", "--test"),
            ] {
                if target["kind"][0] == kind {
                    names.insert((flag, name(target)));
                }
            }
        }
    }
    Ok(names)
}

/// Returns whether a test contains the name of this page, as a test that runs its commands does.
fn is_named_by_a_test(page: &str) -> Result<bool> {
    for directory in [
        "tests/tests/operate",
        "tests/webhook/tests/webhook",
        "tests/tunnel/tests/operate",
        "tests/tunnel/tests/deploy",
    ] {
        for entry in fs::read_dir(repository().join(directory))? {
            let path = entry?.path();
            let is_source = path.extension().is_some_and(|extension| extension == "rs");
            if is_source && fs::read_to_string(&path)?.contains(page) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn check_block(known: &Known, page: &Page, block: &Block) -> Result<()> {
    for mark in &block.marks {
        ensure!(
            MARKS.iter().any(|(known, _)| known == mark),
            "{mark} is no mark: {MARKS:?}"
        );
    }
    if block.marks.iter().any(|mark| mark == "tested") {
        ensure!(is_named_by_a_test(&page.path)?, "no test names this page");
        return Ok(());
    }
    let mut unchecked = Vec::new();
    for Command { line, words } in shell::commands(&block.text)? {
        let line = block.line + 1 + line;
        let is_checked = known
            .check(&words)
            .with_context(|| format!("line {line}: {}", words.join(" ")))?;
        if !is_checked {
            unchecked.push(format!("line {line}: {}", words.join(" ")));
        }
    }
    match (unchecked.is_empty(), block.marks.is_empty()) {
        (true, false) => bail!("everything is checked without a mark: {:?}", block.marks),
        (false, true) => bail!("neither parsed nor run, and without a mark: {unchecked:#?}"),
        _ => Ok(()),
    }
}

#[test]
fn documented_commands_are_what_programs_take() -> Result<()> {
    let known = Known::new()?;
    let (mut wrong, mut blocks) = (Vec::new(), 0);
    for page in pages()? {
        for block in fences::blocks(&page.text) {
            if block.language != "sh" {
                ensure!(
                    block.marks.is_empty(),
                    "{}:{}: a mark",
                    page.path,
                    block.line
                );
                continue;
            }
            blocks += 1;
            if let Err(error) = check_block(&known, &page, &block) {
                wrong.push(format!("{}:{}: {error:#}", page.path, block.line));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(blocks > 40, "only {blocks} blocks of commands");
    Ok(())
}

/// Wrong commands are found: each kind of check can fail.
#[test]
fn wrong_commands_are_found() -> Result<()> {
    let known = Known::new()?;
    let page = Page {
        path: "docs/none.md".to_owned(),
        text: String::new(),
    };
    let check = |marks: &[&str], text: &str| {
        let marks = marks.iter().map(|mark| (*mark).to_owned()).collect();
        let block = Block {
            line: 1,
            language: "sh".to_owned(),
            marks,
            text: text.to_owned(),
        };
        check_block(&known, &page, &block)
    };
    for text in [
        "cargo xtask tset",
        "cargo xtask image --arch riscv",
        "cargo test -p proxy-tunel",
        "proxy-agent --ip-adress=169.254.20.2",
        "target/dist/proxy-agent",
        "konnectivity-server --agent-prot=1",
        "konnectivity-agent doctor --output=xml",
        "kubectl apply -k deploy/kustomize/base",
        "nft list ruleset",
        "deploy/no-such-script.sh",
    ] {
        ensure!(check(&[], text).is_err(), "{text}");
    }
    for text in [
        "kubectl apply -k deploy/kustomize/none",
        "kubectl exec ds/proxy-agent -- proxy-agent dcotor",
        "helm upgrade -i x deploy/helm/none",
        "cargo xtask test",
    ] {
        ensure!(check(&["cluster"], text).is_err(), "{text}");
    }
    ensure!(check(&["nonsense"], "nft list ruleset").is_err());
    ensure!(check(&["tested"], "nft list ruleset").is_err());
    check(
        &[],
        "cargo xtask image --arch all  # both\nproxy-agent doctor",
    )?;
    check(&["cluster"], "kubectl apply -k deploy/kustomize/base")?;
    check(&["machine"], "nft list ruleset")
}

/// The marks are explained to readers.
#[test]
fn marks_are_documented() -> Result<()> {
    let text = fs::read_to_string(repository().join(Path::new("docs/README.md")))?;
    for (mark, needs) in MARKS {
        let line = format!("| `sh {mark}` | {needs} |");
        ensure!(text.contains(&line), "docs/README.md has no line {line:?}");
    }
    Ok(())
}
