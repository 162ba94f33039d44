// SPDX-License-Identifier: Apache-2.0

//! The processor architectures that images are built for, and their names in other programs.

use clap::ValueEnum;

/// A processor architecture, as OCI and Debian name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Arch {
    /// x86-64
    Amd64,
    /// aarch64
    Arm64,
}

/// The values of `--arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// x86-64
    Amd64,
    /// aarch64
    Arm64,
    /// Both, in one image index
    All,
}

impl Wanted {
    /// Returns the architectures in order.
    pub fn archs(self) -> &'static [Arch] {
        match self {
            Self::Amd64 => &[Arch::Amd64],
            Self::Arm64 => &[Arch::Arm64],
            Self::All => &[Arch::Amd64, Arch::Arm64],
        }
    }

    /// Returns this machine's architecture.
    pub fn host() -> Self {
        match Arch::host() {
            Arch::Amd64 => Self::Amd64,
            Arch::Arm64 => Self::Arm64,
        }
    }

    /// Returns the value of `--arch`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => Arch::Amd64.name(),
            Self::Arm64 => Arch::Arm64.name(),
            Self::All => "all",
        }
    }
}

impl Arch {
    /// Returns this machine's architecture.
    pub const fn host() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    /// Returns whether programs of this architecture run here without an emulator.
    pub fn is_host(self) -> bool {
        self == Self::host()
    }

    /// Returns the name in OCI and Debian.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns Debian's name of the directory of libraries, which is also the prefix of the
    /// compilers' names.
    pub const fn triplet(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Returns Rust's target.
    pub const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Returns the linker: the C compiler for this architecture.
    pub const fn linker(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }

    /// Returns the emulator of user-space programs.
    pub const fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-x86_64-static",
            Self::Arm64 => "qemu-aarch64-static",
        }
    }

    /// Returns the variable from which cargo reads a setting for this target, such as `LINKER`.
    pub fn cargo_variable(self, setting: &str) -> String {
        let target = self.target().to_uppercase().replace('-', "_");
        format!("CARGO_TARGET_{target}_{setting}")
    }
}
