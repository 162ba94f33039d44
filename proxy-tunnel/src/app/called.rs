// SPDX-License-Identifier: Apache-2.0

//! The names of the programs, and the selection of a program by the first word of a command line.

use std::ffi::OsStr;
use std::path::Path;

/// The name of the server.
pub const SERVER: &str = "konnectivity-server";
/// The name of the agent.
pub const AGENT: &str = "konnectivity-agent";
/// The name of the sidecar, the HTTP proxy in the pod of Prometheus.
pub const SIDECAR: &str = "konnectivity-sidecar";

/// A program that can be selected by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// `konnectivity-server`
    Server,
    /// `konnectivity-agent`
    Agent,
    /// `konnectivity-sidecar`
    Sidecar,
}

impl Called {
    /// Returns the program that the first word of a command line names, either with upstream's name or with this
    /// project's.
    #[must_use]
    pub fn by(word: &OsStr) -> Option<Self> {
        let name = Path::new(word).file_name()?.to_str()?;
        match name {
            SERVER | "proxy-server" => Some(Self::Server),
            AGENT | "proxy-agent" => Some(Self::Agent),
            SIDECAR => Some(Self::Sidecar),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_our_names_and_upstreams() {
        for (word, want) in [
            ("/usr/bin/konnectivity-server", Some(Called::Server)),
            ("/proxy-server", Some(Called::Server)),
            ("konnectivity-agent", Some(Called::Agent)),
            ("/proxy-agent", Some(Called::Agent)),
            ("./konnectivity-sidecar", Some(Called::Sidecar)),
            ("/usr/bin/konnectivity", None),
            ("konnectivity-server-2", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(Called::by(OsStr::new(word)), want, "{word}");
        }
    }
}
