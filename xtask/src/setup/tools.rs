// SPDX-License-Identifier: Apache-2.0

//! The programs that tests and demo run, and the Debian package of each.

/// A program and the package that contains it.
#[derive(Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's name in `PATH`.
    pub program: &'static str,
    /// The package in Debian and Ubuntu, or several packages if one alone is of no use.
    pub package: &'static str,
}

/// The tools. They are looked up by program and not by package, because other systems name and split their packages
/// differently.
pub const TOOLS: &[Tool] = &[
    tool("iptables-legacy", "iptables"),
    tool("iptables-legacy-save", "iptables"),
    tool("iptables-nft", "iptables"),
    tool("iptables-nft-save", "iptables"),
    tool("ip6tables-legacy", "iptables"),
    tool("ip6tables-nft", "iptables"),
    tool("nft", "nftables"),
    tool("conntrack", "conntrack"),
    tool("ipset", "ipset"),
    tool("ip", "iproute2"),
    tool("tc", "iproute2"),
    tool("bridge", "iproute2"),
    tool("haproxy", "haproxy"),
    tool("curl", "curl"),
    tool("ethtool", "ethtool"),
    tool("jq", "jq"),
    tool("openssl", "openssl"),
    tool("nsenter", "util-linux"),
    tool("promtool", "prometheus"),
    tool("prometheus", "prometheus"),
    tool("prometheus-node-exporter", "prometheus-node-exporter"),
    tool("setpriv", "util-linux"),
    tool("strace", "strace"),
    tool("python3", "python3"),
    tool("pip3", "python3-pip"),
    // libFuzzer is compiled with it.
    tool("c++", "g++"),
    tool("skopeo", "skopeo"),
];

/// Returns the tools that build and test images for another processor, by Rust target.
pub fn cross(target: &str) -> &'static [Tool] {
    const AARCH64: &[Tool] = &[
        tool(
            "aarch64-linux-gnu-gcc",
            "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        ),
        tool("qemu-aarch64-static", "qemu-user-static"),
    ];
    const X86_64: &[Tool] = &[
        tool(
            "x86_64-linux-gnu-gcc",
            "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
        ),
        tool("qemu-x86_64-static", "qemu-user-static"),
    ];
    match target {
        "aarch64-unknown-linux-gnu" => AARCH64,
        "x86_64-unknown-linux-gnu" => X86_64,
        _ => &[],
    }
}

/// The tools that create guests with other kernels, and those that run inside them in addition to [`TOOLS`]. qemu is
/// not one of them: see `vm/emulator.rs`.
pub const GUESTS: &[Tool] = &[
    tool("busybox", "busybox-static"),
    tool("depmod", "kmod"),
    tool("modprobe", "kmod"),
    tool("unxz", "xz-utils"),
    tool("ipvsadm", "ipvsadm"),
];

/// The browser that opens the programs' pages. It is large and not available everywhere. Only tests need it, and they
/// are skipped without it.
pub const BROWSER: &[Tool] = &[tool("chromium", "chromium")];

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}
