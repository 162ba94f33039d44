// SPDX-License-Identifier: Apache-2.0

//! `check`: everything that can be said of the code without running it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::fuzz::WITHOUT_PROGRAMS;
use crate::setup::{self, BPF_TARGET, Compiler, Scope};
use crate::sh;
use crate::tidy;
use crate::workspace::{QUICK, Workspace, by};

/// The package of the eBPF programs.
const EBPF: &str = "proxy-ebpf";

/// Lets this crate, and no other, use the unstable feature it needs on BPF.
const BOOTSTRAP: (&str, &str) = ("RUSTC_BOOTSTRAP", "aya_ebpf");

/// Warnings are errors.
const DENIED: [&str; 3] = ["--", "-D", "warnings"];

/// One kind of check.
type Step = fn(&Workspace) -> Result<()>;

/// Runs every step, and names the failed ones at the end.
///
/// # Errors
/// When a step fails, or when a tool it needs is missing.
pub fn check(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    // clippy runs the agent's build script, and that compiles the eBPF programs.
    setup::ensure(Scope::Build)?;
    require_components(workspace)?;
    let steps: [(&str, Step); 5] = [
        ("formatting", format),
        ("tidy", tidy::tidy),
        ("lints of user space", lint_user_space),
        ("lints of the eBPF programs", lint_ebpf),
        ("documentation", document),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        if let Err(error) = step(workspace) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!(
        "check: nothing to put right, in {}",
        sh::duration(start.elapsed())
    );
    Ok(())
}

/// rustfmt and clippy are parts of Rust that a machine may lack.
fn require_components(workspace: &Workspace) -> Result<()> {
    let parts = [
        ("fmt", "rustfmt", "rustfmt-web"),
        ("clippy", "clippy", "rust-web-clippy"),
    ];
    for (subcommand, component, package) in parts {
        if let Err(error) = sh::read(workspace.cargo(subcommand).arg("--version")) {
            bail!(
                "{component} is missing: `rustup component add {component}`, or without rustup on Debian \
                 `apt-get install {package}` ({error:#})"
            );
        }
    }
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    sh::run(workspace.cargo("fmt").args(["--all", "--", "--check"]))
}

fn lint_user_space(workspace: &Workspace) -> Result<()> {
    sh::run(
        workspace
            .cargo("clippy")
            .args(by(QUICK))
            .args(["--all-targets", "--keep-going"])
            .args(DENIED),
    )?;
    // By itself: the fuzz targets are in the libraries by a feature that nothing else has. All libraries are selected: with
    // another selection cargo would give the dependencies other features, and check them again.
    sh::run(
        workspace
            .cargo("clippy")
            .args(by(QUICK))
            .args(["--workspace", "--exclude", EBPF, "--lib", "--keep-going"])
            .args(DENIED)
            .env(WITHOUT_PROGRAMS.0, WITHOUT_PROGRAMS.1),
    )
}

/// Lints for the BPF target with the clippy of the compiler that builds for it, if it has one; else
/// for this machine's own target, where everything compiles but the code for BPF only.
fn lint_ebpf(workspace: &Workspace) -> Result<()> {
    let target = workspace.target.join("ebpf-lint");
    let mut command = match setup::compiler() {
        Some(Compiler::Prebuilt { sysroot, .. }) if has_clippy(&sysroot) => {
            println!(
                "for {BPF_TARGET}, by {}",
                sysroot.join("bin/cargo-clippy").display()
            );
            // By its own name: `cargo clippy` would start the cargo-clippy beside rustup.
            let mut command = sh::command(sysroot.join("bin/cargo-clippy"));
            command
                .arg("clippy")
                .current_dir(&workspace.root)
                .env("CARGO", sysroot.join("bin/cargo"))
                .env("RUSTC", sysroot.join("bin/rustc"))
                // rustup's libraries are for rustup's compilers.
                .env_remove("LD_LIBRARY_PATH")
                .env_remove("RUSTUP_TOOLCHAIN")
                .args(["--target", BPF_TARGET]);
            command
        }
        Some(Compiler::Nightly { sysroot }) if has_clippy(&sysroot) => {
            println!("for {BPF_TARGET}, by rustup's nightly");
            let mut command = sh::command("rustup");
            command
                .args(["run", "nightly", "cargo", "clippy", "-Z", "build-std=core"])
                .current_dir(&workspace.root)
                .args(["--target", BPF_TARGET]);
            command
        }
        _ => {
            println!(
                "for this machine, not for {BPF_TARGET}: its compiler has no clippy \
                 (Debian's is in the package rust-web-clippy)"
            );
            let mut command = workspace.cargo("clippy");
            // Without `std` nothing can unwind.
            command.env("CARGO_PROFILE_RELEASE_PANIC", "abort");
            command
        }
    };
    command
        .args(["--package", EBPF, "--release", "--locked", "--target-dir"])
        .arg(target)
        .args(DENIED)
        .env(BOOTSTRAP.0, BOOTSTRAP.1);
    sh::run(&mut command)
}

fn has_clippy(sysroot: &Path) -> bool {
    ["cargo-clippy", "clippy-driver"]
        .iter()
        .all(|program| sh::is_executable(&sysroot.join("bin").join(program)))
}

fn document(workspace: &Workspace) -> Result<()> {
    sh::run(
        workspace
            .cargo("doc")
            .args(by(QUICK))
            .arg("--no-deps")
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
