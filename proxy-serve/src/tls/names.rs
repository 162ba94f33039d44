// SPDX-License-Identifier: Apache-2.0

//! TLS versions and cipher suites by their names in Go and Kubernetes. rustls implements neither TLS versions below 1.2
//! nor suites with CBC; these are rejected with an error that contains their name.

use rustls::crypto::ring::cipher_suite;
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};
use thiserror::Error;

/// The supported suites with their names in Go, in Go's order: AES with the shorter key, which needs fewer rounds,
/// comes first.
const SUITES: [(&str, SupportedCipherSuite); 9] = [
    (
        "TLS_AES_128_GCM_SHA256",
        cipher_suite::TLS13_AES_128_GCM_SHA256,
    ),
    (
        "TLS_AES_256_GCM_SHA384",
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ),
    (
        "TLS_CHACHA20_POLY1305_SHA256",
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// The suites that Go programs accept and rustls does not implement.
const LACKING: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

/// TLS 1.2 and 1.3.
const FROM_12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
/// TLS 1.3 only.
const FROM_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// The versions and cipher suites of connections.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) suites: Vec<SupportedCipherSuite>,
    pub(super) versions: &'static [&'static SupportedProtocolVersion],
}

/// The reason why a name is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// The suite uses CBC.
    #[error(
        "the cipher suite {0} uses CBC, which this program's TLS library does not implement; leave it out and \
         name one with GCM or CHACHA20"
    )]
    Cbc(String),
    /// No suite has this name.
    #[error("unknown cipher suite '{0}'; there are {names}", names = known())]
    Suite(String),
    /// The version is lower than 1.2.
    #[error(
        "{0}: this program's TLS library implements no version below TLS 1.2; give VersionTLS12 or VersionTLS13"
    )]
    OldVersion(String),
    /// No version has this name.
    #[error("unknown TLS version '{0}'; give VersionTLS12 or VersionTLS13")]
    Version(String),
}

fn known() -> String {
    SUITES.map(|(name, _)| name).join(", ")
}

impl Default for Policy {
    /// All suites that rustls implements, in Go's order, with TLS 1.2 and 1.3.
    fn default() -> Self {
        Self {
            suites: SUITES.map(|(_, suite)| suite).to_vec(),
            versions: FROM_12,
        }
    }
}

impl Policy {
    /// Creates a policy with only these suites (an empty list means all), and no version below `min_version` (empty
    /// means TLS 1.2).
    ///
    /// As in Go, the suites of TLS 1.3 are included unless the list contains some of them: a list with suites of TLS
    /// 1.2 does not disable TLS 1.3.
    ///
    /// # Errors
    /// Returns an error if a name is unknown or denotes a feature that rustls does not implement.
    pub fn parse(suites: &[String], min_version: &str) -> Result<Self, NameError> {
        let all = Self::default();
        let versions = match min_version {
            "" | "VersionTLS12" => FROM_12,
            "VersionTLS13" => FROM_13,
            "VersionTLS10" | "VersionTLS11" => {
                return Err(NameError::OldVersion(min_version.to_owned()));
            }
            _ => return Err(NameError::Version(min_version.to_owned())),
        };
        let named: Vec<_> = suites
            .iter()
            .map(|name| suite(name))
            .collect::<Result<_, _>>()?;
        if named.is_empty() {
            return Ok(Self { versions, ..all });
        }
        let is_13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
        let mut suites = named;
        if !suites.iter().any(is_13) {
            suites.extend(all.suites.into_iter().filter(is_13));
        }
        Ok(Self { suites, versions })
    }
}

fn suite(name: &str) -> Result<SupportedCipherSuite, NameError> {
    if let Some((_, suite)) = SUITES.iter().find(|(known, _)| *known == name) {
        return Ok(*suite);
    }
    Err(if LACKING.contains(&name) {
        NameError::Cbc(name.to_owned())
    } else {
        NameError::Suite(name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(suites: &[&str], version: &str) -> Result<Policy, NameError> {
        let suites: Vec<_> = suites.iter().map(|&name| name.to_owned()).collect();
        Policy::parse(&suites, version)
    }

    #[test]
    fn every_suite_of_rustls_has_a_name() {
        let all: Vec<_> = SUITES.iter().map(|(name, _)| *name).collect();
        let mut named = parse(&all, "").unwrap().suites;
        let mut default = rustls::crypto::ring::DEFAULT_CIPHER_SUITES.to_vec();
        let key = |suite: &SupportedCipherSuite| u16::from(suite.suite());
        named.sort_by_key(key);
        default.sort_by_key(key);
        assert_eq!(named, default);
    }

    #[test]
    fn the_cheapest_suite_is_the_first() {
        let suites = Policy::default().suites;
        assert_eq!(suites.len(), SUITES.len());
        assert_eq!(suites[0], cipher_suite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn suites_of_1_2_leave_those_of_1_3() {
        let policy = parse(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], "").unwrap();
        assert_eq!(policy.suites.len(), 4);
        let policy = parse(&["TLS_AES_128_GCM_SHA256"], "VersionTLS13").unwrap();
        assert_eq!(policy.suites.len(), 1);
        assert_eq!(policy.versions.len(), 1);
    }

    #[test]
    fn unimplemented_names_are_refused_by_name() {
        for name in LACKING {
            let error = parse(&[name], "").unwrap_err();
            assert_eq!(error, NameError::Cbc(name.to_owned()));
            assert!(error.to_string().contains(name), "{error}");
        }
        for name in ["VersionTLS10", "VersionTLS11"] {
            let error = parse(&[], name).unwrap_err();
            assert_eq!(error, NameError::OldVersion(name.to_owned()));
        }
        let error = parse(&["TLS_NULL"], "").unwrap_err();
        assert!(
            error.to_string().contains("TLS_AES_128_GCM_SHA256"),
            "{error}"
        );
        let error = parse(&[], "VersionSSL30").unwrap_err();
        assert_eq!(error, NameError::Version("VersionSSL30".to_owned()));
    }
}
