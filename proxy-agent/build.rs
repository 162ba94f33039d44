// SPDX-License-Identifier: Apache-2.0

//! Builds the eBPF programs that the agent embeds, with whichever toolchain is here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// The name under which `cargo xtask setup` links the distribution's toolchain into rustup.
const SYSTEM_TOOLCHAIN: &str = "system-bpf";
/// Set by `cargo xtask` for the fuzzer, which runs no eBPF programs, so that it needs no toolchain for
/// them. The feature alone does not say so: cargo gives it to an agent that is built beside the fuzzer.
const WITHOUT_PROGRAMS: &str = "PROXY_AGENT_WITHOUT_PROGRAMS";
const TARGET: &str = "bpfel-unknown-none";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={WITHOUT_PROGRAMS}");
    let fuzzed = std::env::var_os("CARGO_FEATURE_FUZZING").is_some();
    if fuzzed && std::env::var_os(WITHOUT_PROGRAMS).is_some() {
        let out = std::env::var("OUT_DIR").context("cargo sets OUT_DIR")?;
        return std::fs::write(Path::new(&out).join("proxy-ebpf"), [])
            .context("writing an empty file in the place of the eBPF programs");
    }
    let manifest = std::env::var("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?;
    let workspace = Path::new(&manifest)
        .parent()
        .context("the crate has a parent directory")?;
    println!(
        "cargo:rerun-if-changed={}",
        workspace.join("proxy-common/src").display()
    );
    if !runs(Command::new("bpf-linker").arg("--version")) {
        bail!("bpf-linker is missing: run `cargo xtask setup`");
    }
    let programs = workspace.join("proxy-ebpf");
    let root_dir = programs.to_str().context("the path is UTF-8")?;
    aya_build::build_ebpf(
        [Package {
            name: "proxy-ebpf",
            root_dir,
            ..Package::default()
        }],
        toolchain()?,
    )
    .context("building the eBPF programs; `cargo xtask setup` installs what that needs")
}

/// A toolchain that has `core` for the BPF target: prebuilt, or as source for a nightly.
fn toolchain() -> Result<Toolchain<'static>> {
    let has_rustup = runs(Command::new("rustup").arg("--version"));
    let prebuilt = if has_rustup {
        let mut rustc = Command::new("rustup");
        rustc.args(["run", SYSTEM_TOOLCHAIN, "rustc"]);
        sysroot(rustc)
    } else {
        sysroot(Command::new("rustc"))
    };
    if let Some(sysroot) = prebuilt
        && Path::new(&sysroot)
            .join("lib/rustlib")
            .join(TARGET)
            .is_dir()
    {
        // SAFETY: a build script starts with one thread and this is its only one.
        // The crate's name, not `1`, which would ask for a rebuild of `core` from source.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf") };
        return Ok(Toolchain::Custom(SYSTEM_TOOLCHAIN));
    }
    let mut nightly = Command::new("rustup");
    nightly.args(["run", "nightly", "rustc"]);
    if let Some(sysroot) = sysroot(nightly)
        && Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library")
            .is_dir()
    {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "no toolchain can build eBPF programs: neither a rustc with `core` for {TARGET} nor a \
         nightly with rust-src is here; run `cargo xtask setup`"
    )
}

fn sysroot(mut rustc: Command) -> Option<String> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| sysroot.trim().to_owned())
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
