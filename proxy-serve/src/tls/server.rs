// SPDX-License-Identifier: Apache-2.0

//! The server side of TLS: the server's certificate, and the CAs of clients if these must present a certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use tracing::info;

use super::verified::Remembering;
use super::{Authorities, Pair, Policy, TlsError, date, provider, read, unusable};
use crate::reload::{Files, Source};

/// The paths of a server's files, and the TLS parameters that it offers.
#[derive(Debug, Clone)]
pub struct Server {
    /// The server's certificate and key.
    pub pair: Pair,
    /// The CAs of clients, or `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// The flags that specify the paths of the files, as the end of an error message: `--x says where it is`.
    pub location: &'static str,
    /// The ALPN protocols, in descending order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// The permitted versions and cipher suites.
    pub policy: Policy,
}

/// The configuration for accepting connections.
#[derive(Debug, Clone)]
pub struct Identity {
    /// rustls' configuration.
    pub config: Arc<ServerConfig>,
    /// The expiry of the server's certificate, in Unix time.
    pub ends: Duration,
    /// The earliest expiry of the clients' CAs, in Unix time.
    pub client_ca_ends: Option<Duration>,
}

impl Source for Server {
    type Made = Identity;
    type Error = TlsError;

    const CONTENT: &'static str = "certificates";

    fn read(&self) -> Result<Files, TlsError> {
        let Pair { certificate, key } = &self.pair;
        let mut files = vec![
            read("server's certificate", certificate, self.location)?,
            read("server's key", key, self.location)?,
        ];
        if let Some(path) = &self.client_ca {
            files.push(read("CAs of clients", path, self.location)?);
        }
        Ok(Files::new(files))
    }

    fn make(&self, files: &Files) -> Result<Identity, TlsError> {
        let pair = self.pair.load(files.at(0), files.at(1))?;
        let provider = provider(&self.policy);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.policy.versions)
            .map_err(TlsError::Policy)?;
        let (builder, client_ca_ends) = match &self.client_ca {
            Some(path) => {
                let authorities = Authorities::load(path, "clients", files.at(2))?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(authorities.roots, provider)
                        .build()
                        .map_err(|source| unusable(path, "clients", source))?;
                let builder = builder.with_client_cert_verifier(Remembering::new(verifier));
                (builder, Some(authorities.ends))
            }
            None => (builder.with_no_client_auth(), None),
        };
        let mut config = builder
            .with_single_cert(pair.chain, pair.key)
            .map_err(|source| self.pair.mismatched(source))?;
        config.alpn_protocols.clone_from(&self.alpn);
        // Resumption is disabled: the clients keep their connections, so they do not need it, and no session can
        // outlive a change of CAs.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Identity {
            config: Arc::new(config),
            ends: pair.ends,
            client_ca_ends,
        })
    }

    fn announce(made: &Identity) {
        let clients = match made.client_ca_ends {
            Some(_) => "clients need a certificate",
            None => "clients need no certificate",
        };
        info!(
            "the server's certificate is in use, until {}; {clients}",
            date(made.ends)
        );
    }

    fn expiry(made: &Identity) -> Option<(Duration, &'static str)> {
        Some((
            made.ends,
            "the server's certificate has expired: clients will refuse it",
        ))
    }
}
