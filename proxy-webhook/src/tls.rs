// SPDX-License-Identifier: Apache-2.0

//! Certificates: from files to what rustls serves with. When files are read again is [`reload`]'s
//! business.

pub mod reload;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// ALPN: HTTP/2 if the client has it.
pub const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs of clients; none: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// What the files hold, at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// What connections are accepted with.
#[derive(Debug, Clone)]
pub struct Identity {
    /// rustls' configuration.
    pub config: Arc<ServerConfig>,
    /// When the server's certificate ends, in Unix time.
    pub ends: Duration,
    /// When the first of the clients' CAs ends.
    pub client_ca_ends: Option<Duration>,
}

/// Why the files cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}, the {what}; --cert-dir and the names of the files say where it is", path.display())]
    Read {
        /// What is in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: pem::Error,
    },
    /// A certificate is not X.509.
    #[error("a certificate in {} cannot be read", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: x509_cert::der::Error,
    },
    /// A certificate and a key do not go together, or rustls cannot use them.
    #[error("the certificate {} and the key {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// A CA cannot be trusted.
    #[error("the CAs in {} cannot be used to verify clients", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Paths {
    /// Reads all files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(&self) -> Result<Files, TlsError> {
        Ok(Files {
            certificate: read("server's certificate", &self.certificate)?,
            key: read("server's key", &self.key)?,
            client_ca: self
                .client_ca
                .as_deref()
                .map(|path| read("CAs of clients", path))
                .transpose()?,
        })
    }

    /// Makes of the files' contents what connections are accepted with.
    ///
    /// # Errors
    /// The contents cannot be used.
    pub fn identity(&self, files: &Files) -> Result<Identity, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates("certificate", &self.certificate, &files.certificate)?;
        let ends = end(&self.certificate, &chain[0])?;
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|source| TlsError::Pem {
            what: "private key",
            path: self.key.clone(),
            source,
        })?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3");
        let (builder, client_ca_ends) = match (&self.client_ca, &files.client_ca) {
            (Some(path), Some(pem)) => {
                let authorities = certificates("CA certificate", path, pem)?;
                let mut first = Duration::MAX;
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    first = first.min(end(path, &authority)?);
                    roots
                        .add(authority)
                        .map_err(|source| client_ca(path, source))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .map_err(|source| client_ca(path, source))?;
                (builder.with_client_cert_verifier(verifier), Some(first))
            }
            _ => (builder.with_no_client_auth(), None),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Pair {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            })?;
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        // The API server keeps its connections and resumes no session. None outlives a CA this way.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Identity {
            config: Arc::new(config),
            ends,
            client_ca_ends,
        })
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

/// At least one certificate.
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

/// When a certificate ends, in Unix time.
fn end(path: &Path, certificate: &CertificateDer<'_>) -> Result<Duration, TlsError> {
    let certificate =
        Certificate::from_der(certificate).map_err(|source| TlsError::Certificate {
            path: path.to_owned(),
            source,
        })?;
    let end = certificate.tbs_certificate.validity.not_after;
    Ok(end.to_unix_duration())
}

fn client_ca(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::ClientCa {
        path: path.to_owned(),
        source: Box::new(source),
    }
}
