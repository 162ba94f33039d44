// SPDX-License-Identifier: Apache-2.0

//! The files of `deploy/` as Kubernetes receives them: rendered by Helm and kustomize, and checked against the schemas.
//! The tools for this are Python packages, which `cargo xtask setup` installs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{agent, cmd, skip};

/// The variable with the directory of the packages; `cargo xtask test` sets it.
const VARIABLE: &str = "PROXY_AGENT_PYTHON";

/// The oldest and the newest Kubernetes version whose schemas are available.
pub const VERSIONS: [&str; 2] = ["1.25", "1.37"];

/// The subcommands of the agent that have flags.
const SUBCOMMANDS: [&str; 3] = ["status", "cleanup", "doctor"];

/// Returns the root directory of the repository.
///
/// # Panics
/// Never panics: this crate is in a subdirectory of it.
#[must_use]
pub fn repository() -> &'static Path {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent.expect("a member of the workspace has a parent")
}

/// The tool that renders and validates the files.
#[derive(Debug)]
pub struct Tool {
    packages: PathBuf,
}

impl Tool {
    /// Returns the tool, or `None` and records that `test` is skipped.
    ///
    /// # Errors
    /// Returns an error if the variable names no directory, or if the record cannot be written.
    pub fn find(test: &str) -> Result<Option<Self>> {
        let Some(packages) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
            let reason = format!(
                "{VARIABLE} is not set: cargo xtask test sets it if setup could install the packages"
            );
            skip::record(test, &reason)?;
            return Ok(None);
        };
        if !packages.is_dir() {
            bail!("{VARIABLE}={}: no such directory", packages.display());
        }
        skip::clear(test)?;
        Ok(Some(Self { packages }))
    }

    /// Returns the objects of a kustomization.
    ///
    /// # Errors
    /// Returns kustomize's error.
    pub fn kustomize(&self, directory: &Path) -> Result<Vec<Value>> {
        self.objects(&["kustomize".as_ref(), directory], "")
    }

    /// Returns the objects of the agent's chart with these values, as release `proxy-agent` in `kube-system`.
    ///
    /// # Errors
    /// Returns the error of Helm or of its linter.
    pub fn helm(&self, values: &Value) -> Result<Vec<Value>> {
        let release = ["proxy-agent", "kube-system"];
        self.chart("deploy/helm/proxy-agent", release, values)
    }

    /// Returns the objects of a chart with these values, as a release with this name in this namespace.
    ///
    /// # Errors
    /// Returns the error of Helm or of its linter.
    pub fn chart(&self, chart: &str, release: [&str; 2], values: &Value) -> Result<Vec<Value>> {
        let chart = repository().join(chart);
        let [name, namespace] = release.map(Path::new);
        self.objects(
            &["helm".as_ref(), &chart, name, namespace],
            &values.to_string(),
        )
    }

    /// Parses the documents of a YAML text.
    ///
    /// # Errors
    /// Returns an error if the text is not YAML.
    pub fn yaml(&self, text: &str) -> Result<Vec<Value>> {
        self.objects(&["yaml".as_ref()], text)
    }

    /// Parses and checks a workflow of GitHub.
    ///
    /// # Errors
    /// Returns the errors that GitHub's schema finds in it.
    pub fn workflow(&self, text: &str) -> Result<Vec<Value>> {
        self.objects(&["workflow".as_ref()], text)
    }

    /// Returns the errors of these objects for a version of Kubernetes, like 1.30.
    ///
    /// # Errors
    /// Returns an error if the version is not known.
    pub fn validate(&self, version: &str, objects: &[Value]) -> Result<Vec<String>> {
        let input = serde_json::to_string(objects)?;
        let faults = self.run(&["validate".as_ref(), version.as_ref()], &input)?;
        Ok(serde_json::from_str(&faults)?)
    }

    /// Returns the path of Envoy.
    #[must_use]
    pub fn envoy(&self) -> PathBuf {
        self.packages.join("envoy/_bin/envoy")
    }

    fn objects(&self, arguments: &[&Path], input: &str) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.run(arguments, input)?)?)
    }

    fn run(&self, arguments: &[&Path], input: &str) -> Result<String> {
        let mut command = Command::new("python3");
        command
            .arg(repository().join("tests/src/manifests/tool.py"))
            .arg(&self.packages)
            .args(arguments)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        cmd::run(&mut command, input)
    }
}

/// Returns the objects of a kind, with their names.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    objects
        .iter()
        .filter(move |object| object["kind"] == kind)
        .map(|object| {
            (
                object["metadata"]["name"].as_str().unwrap_or_default(),
                object,
            )
        })
}

/// Returns the flags (as `--flag`) and variables in the `--help` of the agent and of its subcommands.
///
/// # Errors
/// Returns an error if the agent is not built, or if its help lists none.
pub fn flags_and_variables() -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut flags, mut variables) = (BTreeSet::new(), BTreeSet::new());
    let mut texts = vec![cmd::run(Command::new(agent::binary()?).arg("--help"), "")?];
    for subcommand in SUBCOMMANDS {
        let mut command = Command::new(agent::binary()?);
        texts.push(cmd::run(command.args([subcommand, "--help"]), "")?);
    }
    for line in texts
        .iter()
        .flat_map(|text| text.lines())
        .map(str::trim_start)
    {
        if let Some(variable) = line.strip_prefix("[env: ") {
            let end = variable.find([']', '=']).unwrap_or(variable.len());
            variables.insert(variable[..end].to_owned());
        } else if line.starts_with('-') {
            flags.extend(flags_in(line));
        }
    }
    if flags.is_empty() || variables.is_empty() {
        bail!("--help names no flags or no variables: {texts:?}");
    }
    Ok((flags, variables))
}

/// Returns every `--flag` of a text, without its value.
pub fn flags_in(text: &str) -> impl Iterator<Item = String> {
    text.match_indices("--").filter_map(|(at, dashes)| {
        let is_middle =
            text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "-_".contains(c));
        let rest = &text[at + dashes.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || "-_".contains(c)));
        let name = &rest[..end.unwrap_or(rest.len())];
        let is_flag = !is_middle && name.starts_with(|c: char| c.is_ascii_lowercase());
        is_flag.then(|| format!("--{}", name.trim_end_matches('-')))
    })
}
