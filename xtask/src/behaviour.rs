// SPDX-License-Identifier: Apache-2.0

//! The behaviour tests, as they are built: few programs, each of several files of `tests/tests`.
//!
//! Lists of tests ([`crate::kernels`], [`crate::nodes`]) and people name files, as `paths`, and tests in them, as
//! `ebpf::veth::nftables`. Only this module knows the program of a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::kernels::Selection;
use crate::sh;
use crate::workspace::{QUICK, USER_SPACE, Workspace, by};

/// A file of behaviour tests.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name, without directory and ending.
    pub name: String,
    /// The program that has its tests.
    pub program: PathBuf,
    /// The tests as that program names them: with the file's name in front.
    tests: Vec<String>,
}

/// One call of a program, for tests of one or several of its files.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// The names of these files.
    pub files: Vec<String>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// All files.
#[derive(Debug)]
pub struct Files(Vec<File>);

impl Files {
    /// Builds the programs and asks each for its tests.
    ///
    /// # Errors
    /// When one cannot be built or run, or two files have the same name.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        let mut files: Vec<File> = Vec::new();
        for program in programs(workspace)? {
            let listed = sh::read(sh::command(&program).args(["--list", "--format", "terse"]))?;
            for test in listed
                .lines()
                .filter_map(|line| line.strip_suffix(": test"))
            {
                let (name, _) = test
                    .split_once("::")
                    .with_context(|| format!("{}: {test} is in no file", program.display()))?;
                match files.iter_mut().find(|file| file.name == name) {
                    Some(file) if file.program == program => file.tests.push(test.to_owned()),
                    Some(file) => bail!(
                        "two files of tests are called {name}, in {} and in {}",
                        file.program.display(),
                        program.display()
                    ),
                    None => files.push(File {
                        name: name.to_owned(),
                        program: program.clone(),
                        tests: vec![test.to_owned()],
                    }),
                }
            }
        }
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self(files))
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &File> {
        self.0.iter()
    }

    /// The one that `list` names.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, list: &str, name: &str) -> Result<&File> {
        self.0
            .iter()
            .find(|file| file.name == name)
            .with_context(|| format!("{list} names {name}, which is no file of behaviour tests"))
    }

    /// As few calls as run these tests: one of each program. Tests of different files then run beside each other, and at
    /// the end of one file no processor waits for its longest test.
    ///
    /// # Errors
    /// When `list` names what is not there.
    pub fn calls(&self, list: &str, selections: &[Selection]) -> Result<Vec<Call>> {
        let mut calls: Vec<Call> = Vec::new();
        for selection in selections {
            let file = self.get(list, &selection.file)?;
            let tests = file.named(list, &selection.tests)?;
            match calls.iter_mut().find(|call| call.program == file.program) {
                Some(call) => {
                    call.files.push(file.name.clone());
                    call.arguments.extend(tests);
                }
                None => calls.push(Call {
                    files: vec![file.name.clone()],
                    program: file.program.clone(),
                    arguments: exactly(tests),
                }),
            }
        }
        Ok(calls)
    }
}

impl File {
    /// The arguments with which its program runs these tests of the file, or all if there are none.
    ///
    /// # Errors
    /// When `list` names a test that is not there: it would run nothing, and pass.
    pub fn arguments(&self, list: &str, tests: &[String]) -> Result<Vec<String>> {
        Ok(exactly(self.named(list, tests)?))
    }

    /// These tests of the file, or all if there are none, as its program names them.
    fn named(&self, list: &str, tests: &[String]) -> Result<Vec<String>> {
        let mut wanted = Vec::new();
        for test in tests {
            let test = format!("{}::{test}", self.name);
            if !self.tests.contains(&test) {
                bail!("{list} names {test}, which is no behaviour test");
            }
            wanted.push(test);
        }
        Ok(if wanted.is_empty() {
            self.tests.clone()
        } else {
            wanted
        })
    }

    /// The arguments with which its program runs those tests of the file whose names contain `filter`; none if there
    /// are no such tests.
    pub fn matching(&self, filter: Option<&str>) -> Option<Vec<String>> {
        let wanted: Vec<String> = self
            .tests
            .iter()
            .filter(|test| filter.is_none_or(|filter| test.contains(filter)))
            .cloned()
            .collect();
        (!wanted.is_empty()).then(|| exactly(wanted))
    }
}

fn exactly(mut tests: Vec<String>) -> Vec<String> {
    tests.insert(0, "--exact".to_owned());
    tests
}

/// The programs, built: a directory with files of tests each. All packages are selected, as for `cargo xtask test`: with
/// another selection cargo would build the dependencies again, with other features. Programs of the tunnel's tests that have
/// the same names are left out.
fn programs(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let directory = workspace.root.join("tests/tests");
    let manifest = workspace.root.join("tests/Cargo.toml");
    let mut cargo = workspace.cargo("test");
    cargo.args(by(QUICK)).args(USER_SPACE);
    for entry in
        fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?
    {
        cargo.arg("--test").arg(entry?.file_name());
    }
    let messages =
        sh::read(cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]))?;
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: serde_json::Value =
            serde_json::from_str(message).context("cargo printed something else than JSON")?;
        let is_ours = message["manifest_path"].as_str().map(Path::new) == Some(&manifest);
        if let (Some("test"), Some(file), true) = (
            message["target"]["kind"][0].as_str(),
            message["executable"].as_str(),
            is_ours,
        ) {
            programs.push(file.into());
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let tests = ["paths::ebpf::veth", "paths::iptables::veth"];
        File {
            name: "paths".to_owned(),
            program: "/nowhere".into(),
            tests: tests.map(str::to_owned).to_vec(),
        }
    }

    #[test]
    fn tests_are_named_without_their_file() {
        let arguments = |tests: &[&str]| {
            let tests: Vec<String> = tests.iter().map(|&test| test.to_owned()).collect();
            file().arguments("a list", &tests)
        };
        assert_eq!(
            arguments(&["iptables::veth"]).unwrap(),
            ["--exact", "paths::iptables::veth"]
        );
        assert_eq!(arguments(&[]).unwrap().len(), 3);
        let error = arguments(&["veth"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "a list names paths::veth, which is no behaviour test"
        );
    }

    #[test]
    fn files_of_one_program_are_one_call() {
        let other = |name: &str, program: &str| File {
            name: name.to_owned(),
            program: program.into(),
            tests: vec![format!("{name}::a")],
        };
        let files = Files(vec![
            file(),
            other("links", "/else"),
            other("stale", "/nowhere"),
        ]);
        let selection = |file: &str, tests: &[&str]| Selection {
            file: file.to_owned(),
            tests: tests.iter().map(|&test| test.to_owned()).collect(),
            why: String::new(),
        };
        let selections = [
            selection("paths", &["ebpf::veth"]),
            selection("links", &[]),
            selection("stale", &["a"]),
        ];
        let calls = files.calls("a list", &selections).unwrap();
        assert_eq!(calls[0].files, ["paths", "stale"]);
        assert_eq!(
            calls[0].arguments,
            ["--exact", "paths::ebpf::veth", "stale::a"]
        );
        assert_eq!(calls[1].arguments, ["--exact", "links::a"]);
        assert_eq!(calls.len(), 2);
        assert!(files.calls("a list", &[selection("other", &[])]).is_err());
    }

    #[test]
    fn a_filter_that_no_test_has_leaves_nothing_to_run() {
        assert_eq!(
            file().matching(Some("ebpf")).unwrap(),
            ["--exact", "paths::ebpf::veth"]
        );
        assert_eq!(file().matching(None).unwrap().len(), 3);
        assert_eq!(file().matching(Some("links")), None);
    }
}
