// SPDX-License-Identifier: Apache-2.0

//! TLS: converts certificate files to configurations of rustls, for [`server`]s and [`client`]s. [`names`] contains
//! Go's names of versions and cipher suites, [`subject`] parses the subject of a certificate.

pub mod client;
pub mod facts;
pub mod names;
pub mod server;
pub mod subject;
#[cfg(test)]
mod tests;
mod verified;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

pub use self::names::Policy;

/// The ALPN name of HTTP/2.
pub const HTTP2: &[u8] = b"h2";
/// The ALPN name of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";

/// The reason why the files cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}, the {what}; {location}", path.display())]
    Read {
        /// The expected content.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The flags that specify the path of the file.
        location: &'static str,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The content of a file is not of the expected type.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// The expected content.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: pem::Error,
    },
    /// A certificate cannot be parsed as X.509.
    #[error("a certificate in {} cannot be read", path.display())]
    Certificate {
        /// The path of the file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: x509_cert::der::Error,
    },
    /// A certificate and a key do not match, or rustls cannot use them.
    #[error("the certificate {} and the key {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The path of the certificate.
        certificate: PathBuf,
        /// The path of the key.
        key: PathBuf,
        /// The error from rustls.
        #[source]
        source: rustls::Error,
    },
    /// A CA certificate cannot be used as a trust anchor.
    #[error("the CAs in {} cannot be used to verify {peers}", path.display())]
    Authority {
        /// The path of the file.
        path: PathBuf,
        /// `clients` or `servers`.
        peers: &'static str,
        /// The error from rustls.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The selected versions and cipher suites permit no connection.
    #[error("the TLS versions and cipher suites that were chosen have nothing in common")]
    Policy(#[source] rustls::Error),
}

/// The paths of a certificate chain and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The path of the certificate and its chain.
    pub certificate: PathBuf,
    /// The path of the key.
    pub key: PathBuf,
}

/// A certificate chain and its key, loaded from files.
struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ends: Duration,
}

impl Pair {
    fn load(&self, certificate: &[u8], key: &[u8]) -> Result<Loaded, TlsError> {
        let chain = certificates("certificate", &self.certificate, certificate)?;
        let ends = end(&self.certificate, &chain[0])?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem {
            what: "private key",
            path: self.key.clone(),
            source,
        })?;
        Ok(Loaded { chain, key, ends })
    }

    fn mismatched(&self, source: rustls::Error) -> TlsError {
        TlsError::Pair {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        }
    }
}

/// CA certificates, loaded from a file.
struct Authorities {
    roots: Arc<RootCertStore>,
    /// The earliest expiry of the CAs.
    ends: Duration,
}

impl Authorities {
    /// Loads a bundle. A single invalid certificate makes the whole bundle invalid: otherwise some of the peers would
    /// be rejected, without an error that states the reason.
    fn load(path: &Path, peers: &'static str, pem: &[u8]) -> Result<Self, TlsError> {
        let mut ends = Duration::MAX;
        let mut roots = RootCertStore::empty();
        for authority in certificates("CA certificate", path, pem)? {
            ends = ends.min(end(path, &authority)?);
            roots
                .add(authority)
                .map_err(|source| unusable(path, peers, source))?;
        }
        Ok(Self {
            roots: roots.into(),
            ends,
        })
    }
}

fn unusable(
    path: &Path,
    peers: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> TlsError {
    TlsError::Authority {
        path: path.to_owned(),
        peers,
        source: Box::new(source),
    }
}

/// Returns the cryptography provider for all connections, with the cipher suites of `policy`.
fn provider(policy: &Policy) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: policy.suites.clone(),
        ..rustls::crypto::ring::default_provider()
    })
}

fn read(what: &'static str, path: &Path, location: &'static str) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        what,
        path: path.to_owned(),
        location,
        source,
    })
}

/// Parses certificates. At least one is required.
fn certificates(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match list {
        Ok(list) if list.is_empty() => Err(pem::Error::NoItemsFound),
        other => other,
    }
    .map_err(|source| TlsError::Pem {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Returns the expiry of a certificate, in Unix time.
fn end(path: &Path, certificate: &CertificateDer<'_>) -> Result<Duration, TlsError> {
    let certificate =
        Certificate::from_der(certificate).map_err(|source| TlsError::Certificate {
            path: path.to_owned(),
            source,
        })?;
    let end = certificate.tbs_certificate.validity.not_after;
    Ok(end.to_unix_duration())
}

/// Formats a Unix time for the log.
fn date(time: Duration) -> String {
    let date = x509_cert::der::DateTime::from_unix_duration(time);
    date.map_or_else(|_| "never".to_owned(), |date| date.to_string())
}
