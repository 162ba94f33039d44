// SPDX-License-Identifier: Apache-2.0

//! Described machines, and the steps for each.

use super::*;
use crate::setup::tools::{TOOLS, Tool};

/// Returns a machine with rustup on which nothing is missing.
fn complete() -> Machine {
    Machine {
        missing_tools: Vec::new(),
        tools: TOOLS.len(),
        compiler: Some(Compiler::Prebuilt {
            sysroot: "/usr".into(),
            unlinked: false,
        }),
        linker: Some("/usr/bin/bpf-linker".into()),
        rustup: true,
        root: true,
        apt: true,
    }
}

fn shell(machine: &Machine) -> Vec<String> {
    let steps = steps(machine);
    steps
        .iter()
        .flat_map(|step| &step.lines)
        .map(Line::shell)
        .collect()
}

const UPDATE: &str = "sudo apt-get update -q";
const INSTALL: &str = "sudo apt-get install -q -y --no-remove --no-install-recommends";

#[test]
fn a_complete_machine_is_left_alone() {
    assert_eq!(steps(&complete()), []);
    let nightly = Some(Compiler::Nightly {
        sysroot: "/nightly".into(),
    });
    assert_eq!(
        steps(&Machine {
            compiler: nightly,
            ..complete()
        }),
        []
    );
}

#[test]
fn a_package_is_installed_once_for_all_its_programs() {
    let lacks = |tool: &&Tool| ["iptables", "haproxy"].contains(&tool.package);
    let missing_tools = TOOLS.iter().filter(lacks).collect();
    let machine = Machine {
        missing_tools,
        ..complete()
    };
    assert_eq!(
        shell(&machine),
        [UPDATE.to_owned(), format!("{INSTALL} haproxy iptables")]
    );
}

#[test]
fn an_empty_machine_gets_everything_in_order() {
    let machine = Machine {
        missing_tools: TOOLS.iter().collect(),
        compiler: None,
        linker: None,
        ..complete()
    };
    assert_eq!(
        shell(&machine),
        [
            UPDATE,
            &format!(
                "{INSTALL} conntrack curl ethtool g++ haproxy iproute2 ipset iptables jq nftables openssl prometheus prometheus-node-exporter python3 python3-pip skopeo strace util-linux"
            ),
            &format!("{INSTALL} rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-clippy"),
            &format!("{INSTALL} llvm-$N-dev"),
            "CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 LLVM_PREFIX=/usr/lib/llvm-$N cargo install bpf-linker --version 0.13.0 \
             --no-default-features --features llvm-$N --locked",
            "rustup toolchain link system-bpf /usr",
        ]
    );
}

#[test]
fn without_rustup_nothing_is_linked() {
    let machine = Machine {
        compiler: None,
        rustup: false,
        ..complete()
    };
    let lines = shell(&machine);
    assert_eq!(lines.len(), 2);
    assert!(
        !lines.iter().any(|line| line.contains("rustup")),
        "{lines:?}"
    );
}

#[test]
fn a_name_in_rustup_needs_no_package() {
    let compiler = Some(Compiler::Prebuilt {
        sysroot: "/usr".into(),
        unlinked: true,
    });
    let machine = Machine {
        compiler,
        ..complete()
    };
    assert_eq!(shell(&machine), ["rustup toolchain link system-bpf /usr"]);
}

#[test]
fn the_llvm_release_is_read_from_the_compiler() {
    let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                  binary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
    let major = parse_llvm_major(debian).unwrap();
    assert_eq!(major, LlvmMajor(22));
    let line = build_linker();
    assert!(line.needs_llvm_major());
    let line = line.with_llvm_major(major);
    assert!(!line.needs_llvm_major());
    assert_eq!(
        line.shell(),
        "CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
         --no-default-features --features llvm-22 --locked"
    );
}

#[test]
fn an_llvm_release_without_a_linker_is_named() {
    let error = parse_llvm_major("LLVM version: 19.1.7")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("LLVM 19") && error.contains("LLVM 21 to 23"),
        "{error}"
    );
    assert!(parse_llvm_major("LLVM version: new").is_err());
    assert!(parse_llvm_major("rustc 1.96.0").is_err());
}
