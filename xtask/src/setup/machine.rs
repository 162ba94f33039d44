// SPDX-License-Identifier: Apache-2.0

//! Inspects the machine: programs in `PATH`, compilers for BPF, the linker. It reads only the file
//! system.

use std::fs;
use std::path::{Path, PathBuf};

use super::Scope;
use super::tools::{self, BROWSER, GUESTS, TOOLS, Tool};
use crate::sh;

/// The compilation target of the eBPF programs, with this machine's byte order.
pub const BPF_TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// The name of the system's compiler in rustup.
pub const LINKED: &str = "system-bpf";

/// The sysroot of the compiler from Debian's packages.
const SYSTEM: &str = "/usr";

/// A Rust compiler that can build for [`BPF_TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A compiler with a prebuilt `core` for the target, such as Debian's.
    Prebuilt {
        /// The directory that has `bin/rustc` and `lib/rustlib`.
        sysroot: PathBuf,
        /// Whether rustup is used here and does not know this compiler yet, so that aya-build
        /// cannot call it.
        unlinked: bool,
    },
    /// rustup's nightly with the sources of `core`.
    Nightly {
        /// The directory that has `bin/rustc` and `lib/rustlib`.
        sysroot: PathBuf,
    },
}

impl Compiler {
    /// Returns the directory that has `bin/rustc` and `lib/rustlib`.
    pub fn sysroot(&self) -> &Path {
        match self {
            Self::Prebuilt { sysroot, .. } | Self::Nightly { sysroot } => sysroot,
        }
    }
}

/// The facts about this machine that setup needs.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The required programs that are missing.
    pub missing_tools: Vec<&'static Tool>,
    /// The number of required programs.
    pub tools: usize,
    /// The compiler for eBPF.
    pub compiler: Option<Compiler>,
    /// The linker for eBPF.
    pub linker: Option<PathBuf>,
    /// Whether rustup is in `PATH`: if so, aya-build calls compilers through it.
    pub rustup: bool,
    /// Whether this process runs as root.
    pub root: bool,
    /// Whether apt-get is available.
    pub apt: bool,
}

impl Machine {
    /// Inspects this machine.
    pub fn look(scope: Scope) -> Self {
        let path = sh::search_path();
        let rustup = sh::find("rustup", &path).is_some();
        let wanted = match scope {
            Scope::Build => Vec::new(),
            Scope::Programs | Scope::Everything => TOOLS.iter().collect(),
            Scope::Browser => BROWSER.iter().collect(),
            Scope::Guests => TOOLS.iter().chain(GUESTS).collect(),
            Scope::Cross(target) => tools::cross(target).iter().collect(),
        };
        let compiler = if rustup {
            let toolchains = sh::home("RUSTUP_HOME", ".rustup").map(|home| home.join("toolchains"));
            rustups_compiler(&toolchains.unwrap_or_default(), Path::new(SYSTEM))
        } else {
            // Without rustup, aya-build uses the cargo in PATH, which uses the rustc in PATH.
            sh::find("rustc", &path).and_then(|rustc| plain_compiler(&rustc))
        };
        Self {
            tools: wanted.len(),
            missing_tools: wanted
                .into_iter()
                .filter(|tool| sh::find(tool.program, &path).is_none())
                .collect(),
            compiler,
            linker: sh::find("bpf-linker", &path),
            rustup,
            root: sh::is_root(),
            apt: sh::find("apt-get", &path).is_some(),
        }
    }

    /// Returns the compiler whose LLVM release is needed; if there is none, the one that will be
    /// installed.
    pub fn rustc(&self) -> PathBuf {
        let sysroot = self
            .compiler
            .as_ref()
            .map_or(Path::new(SYSTEM), Compiler::sysroot);
        sysroot.join("bin/rustc")
    }

    /// Returns the missing programs, in words.
    pub fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self
            .missing_tools
            .iter()
            .map(|tool| tool.program.to_owned())
            .collect();
        match &self.compiler {
            None => missing.push("a Rust compiler for BPF".to_owned()),
            Some(Compiler::Prebuilt {
                sysroot,
                unlinked: true,
            }) => missing.push(format!(
                "the name {LINKED} for {} in rustup",
                sysroot.join("bin/rustc").display()
            )),
            Some(_) => {}
        }
        if self.linker.is_none() {
            missing.push("bpf-linker".to_owned());
        }
        missing
    }

    /// Returns the programs that were found, on one line.
    pub fn summary(&self) -> String {
        let compiler = match &self.compiler {
            None => "none".to_owned(),
            Some(Compiler::Prebuilt { sysroot, .. }) => {
                let rustc = sysroot.join("bin/rustc");
                if self.rustup {
                    format!(
                        "rustup's {LINKED} ({})",
                        fs::canonicalize(&rustc).unwrap_or(rustc).display()
                    )
                } else {
                    rustc.display().to_string()
                }
            }
            Some(Compiler::Nightly { .. }) => "rustup's nightly with rust-src".to_owned(),
        };
        let linker = self
            .linker
            .as_ref()
            .map_or("none".into(), |linker| linker.to_string_lossy());
        let tools = match self.tools {
            0 => String::new(),
            tools => format!(
                ", {} of {tools} programs for tests and demo",
                tools - self.missing_tools.len()
            ),
        };
        format!("eBPF compiler {compiler}, linker {linker}{tools}")
    }
}

/// Returns the compiler that aya-build can call through rustup, or could call after it has been
/// linked.
fn rustups_compiler(toolchains: &Path, system: &Path) -> Option<Compiler> {
    let linked = toolchains.join(LINKED);
    if has_prebuilt_core(&linked) {
        return Some(Compiler::Prebuilt {
            sysroot: linked,
            unlinked: false,
        });
    }
    if has_prebuilt_core(system) {
        return Some(Compiler::Prebuilt {
            sysroot: system.to_owned(),
            unlinked: true,
        });
    }
    entries(toolchains)
        .into_iter()
        .find(|directory| is_nightly(directory) && has_core_sources(directory))
        .map(|sysroot| Compiler::Nightly { sysroot })
}

/// Returns the compiler in `PATH` if rustup is not used. Its sysroot is the directory above `bin`.
fn plain_compiler(rustc: &Path) -> Option<Compiler> {
    let rustc = fs::canonicalize(rustc).ok()?;
    let sysroot = rustc.parent()?.parent()?;
    has_prebuilt_core(sysroot).then(|| Compiler::Prebuilt {
        sysroot: sysroot.to_owned(),
        unlinked: false,
    })
}

/// Returns whether this is `nightly-x86_64-…`, which `rustup run nightly` selects, and not the
/// nightly of a date.
fn is_nightly(toolchain: &Path) -> bool {
    let name = toolchain.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("nightly-")
        .is_some_and(|host| host.starts_with(|c: char| c.is_ascii_alphabetic()))
}

fn has_core_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

fn has_prebuilt_core(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(BPF_TARGET).join("lib");
    sh::is_executable(&sysroot.join("bin/rustc"))
        && entries(&libraries).iter().any(|library| {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libcore-") && library.extension().is_some_and(|e| e == "rlib")
        })
}

/// Returns the entries of a directory in order, or nothing if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests;
