// SPDX-License-Identifier: Apache-2.0

//! Builds the eBPF programs that the agent embeds, with whichever toolchain is here.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, Section, SectionData};
use object::elf::SHT_STRTAB;

/// The name under which `cargo xtask setup` links the distribution's toolchain into rustup.
const SYSTEM_TOOLCHAIN: &str = "system-bpf";
/// Set by `cargo xtask` for the fuzzer, which runs no eBPF programs, so that it needs no toolchain for
/// them. The feature alone does not say so: cargo gives it to an agent that is built beside the fuzzer.
const WITHOUT_PROGRAMS: &str = "PROXY_AGENT_WITHOUT_PROGRAMS";
const TARGET: &str = "bpfel-unknown-none";
const PROGRAMS: &str = "proxy-ebpf";
/// Set where cargo starts this program in the place of the eBPF programs' compiler: further flags for it.
const COMPILER_FLAGS: &str = "PROXY_AGENT_COMPILER_FLAGS";
/// What separates flags in cargo's own variable and in ours.
const SEPARATOR: char = '\u{1f}';

fn main() -> Result<()> {
    if let Some(flags) = std::env::var_os(COMPILER_FLAGS) {
        return compile(&flags);
    }
    println!("cargo:rerun-if-env-changed={WITHOUT_PROGRAMS}");
    let fuzzed = std::env::var_os("CARGO_FEATURE_FUZZING").is_some();
    let out = std::env::var("OUT_DIR").context("cargo sets OUT_DIR")?;
    let built = Path::new(&out).join(PROGRAMS);
    if fuzzed && std::env::var_os(WITHOUT_PROGRAMS).is_some() {
        return std::fs::write(built, [])
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
    let programs = workspace.join(PROGRAMS);
    let root_dir = programs.to_str().context("the path is UTF-8")?;
    rename_paths()?;
    let shared = shared(&out)?;
    std::fs::create_dir_all(&shared).context("making the directory of the eBPF programs")?;
    // SAFETY: a build script starts with one thread and this is its only one.
    unsafe { std::env::set_var("OUT_DIR", &shared) };
    aya_build::build_ebpf(
        [Package {
            name: PROGRAMS,
            root_dir,
            ..Package::default()
        }],
        toolchain()?,
    )
    .context("building the eBPF programs; `cargo xtask setup` installs what that needs")?;
    let elf = std::fs::read(shared.join(PROGRAMS)).context("reading the eBPF programs")?;
    let stripped = without_dwarf(&elf).context("leaving DWARF out of the eBPF programs")?;
    std::fs::write(built, stripped).context("writing the eBPF programs")
}

/// Where the eBPF programs are built: one place for all profiles of a target directory, since they have a profile of
/// their own, and cargo runs this script once for each profile and set of features.
fn shared(out: &str) -> Result<PathBuf> {
    // target[/TRIPLE]/PROFILE/build/proxy-agent-HASH/out
    let target = Path::new(out).ancestors().nth(4);
    Ok(target
        .context("OUT_DIR is in a target directory")?
        .join("ebpf"))
}

/// Has the eBPF programs' compiler rename paths as this build does, so that the lines named in their BTF do
/// not tell where the checkout is. aya-build gives that compiler flags of its own only, and so it is started
/// through this program.
fn rename_paths() -> Result<()> {
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let renaming: Vec<&str> = flags
        .split(SEPARATOR)
        .filter(|flag| flag.starts_with("--remap-path-prefix="))
        .collect();
    if renaming.is_empty() {
        return Ok(());
    }
    let this = std::env::current_exe().context("finding the build script")?;
    // SAFETY: a build script starts with one thread and this is its only one.
    unsafe {
        std::env::set_var(COMPILER_FLAGS, renaming.join(&SEPARATOR.to_string()));
        std::env::set_var("RUSTC_WRAPPER", this);
    }
    Ok(())
}

/// Becomes the compiler that cargo names in the first argument.
fn compile(flags: &OsStr) -> Result<()> {
    let flags = flags.to_str().context("flags that are not UTF-8")?;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.extend(flags.split(SEPARATOR).map(OsString::from));
    let [compiler, arguments @ ..] = &*arguments else {
        bail!("cargo names the compiler");
    };
    let error = Command::new(compiler).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", compiler.display()))
}

/// The object file without the DWARF that its BTF was made from: seven eighths of it, which neither the
/// loader nor the kernel reads.
fn without_dwarf(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_");
    }
    builder.delete_orphans();
    // The linker keeps the names of sections and symbols in one table; this writer wants two.
    let has_names = |section: &Section| matches!(section.data, SectionData::SectionString);
    if !builder.sections.iter().any(has_names) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
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
