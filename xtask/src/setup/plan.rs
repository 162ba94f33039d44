// SPDX-License-Identifier: Apache-2.0

//! The steps that set up a machine, as data: the functions are pure, so that tests can describe machines.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::machine::{Compiler, LINKED, Machine};

/// The release of bpf-linker, which can be built with the LLVM of current compilers.
const BPF_LINKER: &str = "0.13.0";

/// The LLVM releases for which this release of bpf-linker has a feature.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Stands for the LLVM release in a [`Line`], until [`Line::with_llvm_major`] writes it there: the release is known only after
/// a compiler is installed, because Debian updates it. It is a shell's variable in the commands that people run by hand.
const N: &str = "$N";

/// A step with its reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The description, for example `installing haproxy`.
    pub what: String,
    /// The reason, for example `tests and demo need it`.
    pub why: &'static str,
    /// The commands in order.
    pub lines: Vec<Line>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The variables that are set for the command.
    pub variables: Vec<(&'static str, String)>,
    /// Whether only root can run the command.
    pub root: bool,
    /// The advice that is printed if the step fails.
    pub advice: &'static str,
}

/// An LLVM release, such as 22, that bpf-linker can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlvmMajor(u32);

/// Returns the steps in order; empty if nothing is missing.
pub fn steps(machine: &Machine) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut packages: Vec<&str> = machine
        .missing_tools
        .iter()
        .flat_map(|tool| tool.package.split(' '))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        steps.push(Step {
            what: format!("installing {}", packages.join(", ")),
            why: "tests and demo run these",
            lines: vec![install(
                &packages,
                "Install them by hand and repeat the command",
            )],
        });
    }
    if machine.compiler.is_none() {
        // clippy is installed too, so that `check` lints the eBPF programs for their own target.
        let packages = [
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "rust-web-clippy",
        ];
        steps.push(Step {
            what: "installing Debian's Rust compiler with `core` for BPF".to_owned(),
            why: "it compiles the eBPF programs without a nightly toolchain",
            lines: vec![install(
                &packages,
                "Where these packages cannot be had, `rustup toolchain install nightly --component rust-src` serves as well",
            )],
        });
    }
    if machine.linker.is_none() {
        steps.push(Step {
            what: "installing the LLVM libraries of that compiler's release".to_owned(),
            why: "bpf-linker is built against them",
            lines: vec![install(
                &[&format!("llvm-{N}-dev")],
                "The LLVM libraries must be of the compiler's own LLVM release",
            )],
        });
        steps.push(Step {
            what: format!("building bpf-linker {BPF_LINKER}, about a minute"),
            why: "it links the eBPF programs",
            lines: vec![build_linker()],
        });
    }
    if needs_linking(machine) {
        steps.push(Step {
            what: format!("naming the system's Rust compiler {LINKED} in rustup"),
            why: "the build calls it through rustup; no other toolchain changes",
            lines: vec![line(&["rustup", "toolchain", "link", LINKED, "/usr"])],
        });
    }
    if steps
        .iter()
        .any(|step| step.lines.iter().any(|line| line.root))
    {
        steps.insert(
            0,
            Step {
                what: "reading the package lists".to_owned(),
                why: "packages must be installed",
                lines: vec![Line {
                    root: true,
                    advice: "Are the package sources reachable from here?",
                    ..line(&["apt-get", "update", "-q"])
                }],
            },
        );
    }
    steps
}

fn needs_linking(machine: &Machine) -> bool {
    match &machine.compiler {
        Some(Compiler::Prebuilt { unlinked, .. }) => *unlinked,
        Some(Compiler::Nightly { .. }) => false,
        None => machine.rustup,
    }
}

/// Returns the command that installs packages. With `--no-remove`, apt does not change a machine where one of the
/// packages would replace another one.
fn install(packages: &[&str], advice: &'static str) -> Line {
    let words = [
        "apt-get",
        "install",
        "-q",
        "-y",
        "--no-remove",
        "--no-install-recommends",
    ];
    Line {
        root: true,
        advice,
        ..line(&[&words, packages].concat())
    }
}

/// Returns the command that builds bpf-linker, without optimisation and debug information, which saves three fifths of
/// the compiler's time. LLVM does the work of linking, and the eBPF programs are identical to the byte.
fn build_linker() -> Line {
    let feature = format!("llvm-{N}");
    Line {
        variables: vec![
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0".to_owned()),
            ("CARGO_PROFILE_RELEASE_DEBUG", "0".to_owned()),
            ("LLVM_PREFIX", format!("/usr/lib/llvm-{N}")),
        ],
        advice: "bpf-linker is built by the Rust toolchain in PATH; see its messages above",
        ..line(&[
            "cargo",
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--no-default-features",
            "--features",
            &feature,
            "--locked",
        ])
    }
}

fn line(words: &[&str]) -> Line {
    Line {
        words: words.iter().map(|&word| word.to_owned()).collect(),
        variables: Vec::new(),
        root: false,
        advice: "See its messages above",
    }
}

impl Line {
    /// Returns whether the command depends on the compiler's LLVM release.
    pub fn needs_llvm_major(&self) -> bool {
        self.words.iter().any(|word| word.contains(N))
    }

    /// Returns the command for this LLVM release.
    pub fn with_llvm_major(&self, major: LlvmMajor) -> Self {
        let fill = |text: &String| text.replace(N, &major.0.to_string());
        Self {
            words: self.words.iter().map(fill).collect(),
            variables: self
                .variables
                .iter()
                .map(|(key, value)| (*key, fill(value)))
                .collect(),
            ..self.clone()
        }
    }

    /// Returns the command for the shell of a user who is not root.
    pub fn shell(&self) -> String {
        let variables = self
            .variables
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let sudo = self.root.then(|| "sudo".to_owned());
        let words = sudo
            .into_iter()
            .chain(variables)
            .chain(self.words.iter().cloned());
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Returns the shell command that determines the LLVM release of this compiler, for [`Line::shell`].
pub fn shell_llvm_major(rustc: &Path) -> String {
    let sed = r"s/^LLVM version: \([0-9]*\).*/\1/p";
    format!("N=$({} -vV | sed -n '{sed}')", rustc.display())
}

/// Parses the LLVM release in the output of `rustc -vV`.
///
/// # Errors
/// Returns an error if there is none, or if bpf-linker cannot be built for it.
pub fn parse_llvm_major(version: &str) -> Result<LlvmMajor> {
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .context("`rustc -vV` names no LLVM version")?
        .trim();
    let major: u32 = llvm
        .split('.')
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("`{llvm}` is no LLVM version"))?;
    if !LLVM.contains(&major) {
        bail!(
            "the compiler uses LLVM {major}, and bpf-linker {BPF_LINKER} can be built for LLVM {} to {} only: \
             install a bpf-linker for LLVM {major} by hand",
            LLVM.start(),
            LLVM.end()
        );
    }
    Ok(LlvmMajor(major))
}

#[cfg(test)]
mod tests;
