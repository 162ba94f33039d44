// SPDX-License-Identifier: Apache-2.0

//! Compiles our programs as static ones: they use none of an image's libraries, and run wherever they are copied to.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::arch::Arch;
use super::debian::Apt;
use super::kind::Kind;
use crate::setup::{self, Compiler};
use crate::sh;
use crate::workspace::{QUICK, USER_SPACE, Workspace, by};

/// The Debian package with the standard library of Debian's compiler.
const STD: &str = "libstd-rust-web-dev";

/// The flags that link the C library into the program, and omit symbols. Everything else is the same as in the program
/// that the tests run.
const LINKING: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Cstrip=symbols"];

/// A compiler that can build for an architecture, and the files that it needs for that.
pub struct Cross {
    arch: Arch,
    /// The directory with `bin/cargo` and `bin/rustc`; `None` for the checkout's own toolchain.
    toolchain: Option<PathBuf>,
    /// The directory of the architecture's standard library, if it is not the compiler's.
    sysroot: Option<PathBuf>,
}

impl Cross {
    /// Selects the checkout's own toolchain if it can build for `arch`, otherwise Debian's toolchain with its library
    /// for `arch`.
    ///
    /// # Errors
    /// Returns an error if neither is available.
    pub fn find(workspace: &Workspace, arch: Arch, apt: &Apt) -> Result<Self> {
        let own = sh::read(
            sh::command("rustc")
                .args(["--print", "sysroot"])
                .current_dir(&workspace.root),
        )?;
        let has_std = |sysroot: PathBuf| {
            let libraries = sysroot.join("lib/rustlib").join(arch.target()).join("lib");
            libraries.is_dir()
        };
        if has_std(own.trim().into()) {
            return Ok(Self {
                arch,
                toolchain: None,
                sysroot: None,
            });
        }
        let advice = format!("`rustup target add {}` where rustup is used", arch.target());
        let Some(Compiler::Prebuilt { sysroot, .. }) = setup::compiler() else {
            bail!(
                "no Rust compiler here has the standard library of {}: {advice}",
                arch.target()
            );
        };
        let version = sh::read(sh::command("dpkg-query").args([
            "--show",
            "--showformat=${Version}",
            "rustc-web",
        ]))
        .with_context(|| format!("only Debian's rustc-web can be completed here; {advice}"))?;
        let std = apt.unpacked(STD, &version).context(advice)?;
        Ok(Self {
            arch,
            toolchain: Some(sysroot),
            sysroot: Some(std.join("usr")),
        })
    }

    /// Returns a cargo command for this architecture.
    pub fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut command = workspace.cargo(subcommand);
        if let Some(toolchain) = &self.toolchain {
            command = sh::command(toolchain.join("bin/cargo"));
            command
                .arg(subcommand)
                .current_dir(&workspace.root)
                .env("CARGO_TARGET_DIR", &workspace.target)
                .env("RUSTC", toolchain.join("bin/rustc"))
                // rustup's libraries must only be used by rustup's compilers.
                .env_remove("LD_LIBRARY_PATH")
                .env_remove("RUSTUP_TOOLCHAIN");
        }
        command
            .args(["--locked", "--target", self.arch.target()])
            .env(self.arch.cargo_variable("LINKER"), self.arch.linker())
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                self.flags(workspace).join("\u{1f}"),
            );
        command
    }

    /// Returns the flags of the compiler. They rename the directories of the checkout and of cargo's files, which would
    /// otherwise change the output. The agent's build script passes the renaming to the compiler of the eBPF programs.
    fn flags(&self, workspace: &Workspace) -> Vec<String> {
        let mut flags: Vec<String> = LINKING.map(str::to_owned).into();
        flags.push(format!(
            "--remap-path-prefix={}=/proxy-agent",
            workspace.root.display()
        ));
        if let Some(cargo) = sh::home("CARGO_HOME", ".cargo") {
            flags.push(format!(
                "--remap-path-prefix={}=/crates",
                cargo.join("registry/src").display()
            ));
        }
        if let Some(sysroot) = &self.sysroot {
            flags.push(format!("--sysroot={}", sysroot.display()));
        }
        flags
    }

    /// Builds the programs of an image.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be built.
    pub fn programs(&self, workspace: &Workspace, kind: Kind) -> Result<Vec<PathBuf>> {
        let directory = workspace.target.join(self.arch.target());
        let mut programs = Vec::new();
        for shipped in kind.programs() {
            sh::run(
                self.cargo(workspace, "build")
                    .args(shipped.arguments(shipped.profile)),
            )?;
            programs.push(directory.join(shipped.profile).join(shipped.program));
        }
        Ok(programs)
    }

    /// Returns the version of the compiler.
    ///
    /// # Errors
    /// Returns an error if the compiler does not report it.
    pub fn version(&self) -> Result<String> {
        version(self.toolchain.as_deref())
    }
}

/// Returns the version of a toolchain's compiler, or of the checkout's own. It is also the version of the standard
/// library.
///
/// # Errors
/// Returns an error if the compiler does not report it.
pub fn version(toolchain: Option<&Path>) -> Result<String> {
    let rustc = toolchain.map_or_else(
        || PathBuf::from("rustc"),
        |toolchain| toolchain.join("bin/rustc"),
    );
    let version = sh::read(sh::command(rustc).arg("--version"))?;
    let number = version.split_whitespace().nth(1);
    Ok(number.context("rustc tells no version")?.to_owned())
}

/// Builds the programs of an image as the tests run them, but linked statically.
///
/// # Errors
/// Returns an error if one of them cannot be built.
pub fn relinked(workspace: &Workspace, kind: Kind) -> Result<Vec<PathBuf>> {
    kind.programs()
        .map(|shipped| relink(workspace, shipped.program))
        .collect()
}

/// Links a program of the tests once more. Each program is one file that calls its package's library. With cargo, other
/// linker flags would apply to all crates, and these would be built again.
fn relink(workspace: &Workspace, program: &str) -> Result<PathBuf> {
    let messages = sh::read(
        workspace
            .cargo("build")
            .args(by(QUICK))
            .args(USER_SPACE)
            .args([
                "--bin",
                program,
                "--message-format",
                "json-render-diagnostics",
            ]),
    )?;
    let messages: Vec<Value> = messages
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("cargo printed something else than JSON")?;
    let target = |message: &Value, key: &str| message["target"][key].as_str().map(str::to_owned);
    let own = messages
        .iter()
        .find(|message| {
            target(message, "name").as_deref() == Some(program)
                && message["target"]["kind"][0] == "bin"
        })
        .with_context(|| format!("cargo does not say that it built {program}"))?;
    let library = messages
        .iter()
        .find(|message| {
            message["package_id"] == own["package_id"] && message["target"]["kind"][0] == "lib"
        })
        .with_context(|| format!("cargo does not say that it built the library of {program}"))?;
    let (Some(source), Some(edition), Some(name), Some(file)) = (
        target(own, "src_path"),
        target(own, "edition"),
        target(library, "name"),
        library["filenames"][0].as_str(),
    ) else {
        bail!("cargo does not say how {program} is built");
    };
    let copy = workspace.target.join("image").join(program);
    let mut dependencies = OsString::from("dependency=");
    dependencies.push(workspace.target.join(QUICK).join("deps"));
    sh::run(
        sh::command("rustc")
            .current_dir(&workspace.root)
            .args(["--crate-type", "bin", "--edition", &edition])
            .args(["--extern", &format!("{}={file}", name.replace('-', "_"))])
            .arg("-L")
            .arg(dependencies)
            .args(LINKING)
            .arg(source)
            .arg("-o")
            .arg(&copy),
    )?;
    Ok(copy)
}

/// Returns the package of the C library that is linked in, with its version.
///
/// # Errors
/// Returns an error if the linker does not find one.
pub fn c_library(arch: Arch) -> Result<(String, String)> {
    let path = sh::read(sh::command(arch.linker()).arg("-print-file-name=libc.a"))?;
    let path = fs::canonicalize(path.trim()).with_context(|| {
        format!(
            "{} has no libc.a to link programs with statically",
            arch.linker()
        )
    })?;
    let owner = sh::read(sh::command("dpkg-query").arg("--search").arg(&path))
        .context("which package has the C library")?;
    let package = owner.split(':').next().unwrap_or_default().to_owned();
    let version = sh::read(sh::command("dpkg-query").args([
        "--show",
        "--showformat=${Version}\\n",
        &package,
    ]))?;
    Ok((
        package,
        version.lines().next().unwrap_or_default().to_owned(),
    ))
}
