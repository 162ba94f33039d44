// SPDX-License-Identifier: Apache-2.0

//! The client side of TLS: the CAs of servers, and the client's certificate for servers that require one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tracing::info;

use super::{Authorities, Pair, Policy, TlsError, date, provider, read};
use crate::reload::{Files, Source};

pub use rustls::pki_types::ServerName;

/// The paths of a client's files, and the TLS parameters that it offers.
#[derive(Debug, Clone)]
pub struct Client {
    /// The CAs of servers.
    pub server_ca: PathBuf,
    /// The client's certificate and key, or `None` if the client presents no certificate.
    pub pair: Option<Pair>,
    /// The flags that specify the paths of the files, as the end of an error message: `--x says where it is`.
    pub location: &'static str,
    /// The ALPN protocols, in descending order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// The permitted versions and cipher suites.
    pub policy: Policy,
}

/// The configuration for opening connections.
#[derive(Debug, Clone)]
pub struct Identity {
    /// rustls' configuration.
    pub config: Arc<ClientConfig>,
    /// The expiry of the client's certificate, in Unix time.
    pub ends: Option<Duration>,
    /// The earliest expiry of the servers' CAs, in Unix time.
    pub server_ca_ends: Duration,
}

impl Source for Client {
    type Made = Identity;
    type Error = TlsError;

    const CONTENT: &'static str = "certificates";

    fn read(&self) -> Result<Files, TlsError> {
        let mut files = vec![read("CAs of servers", &self.server_ca, self.location)?];
        if let Some(Pair { certificate, key }) = &self.pair {
            files.push(read("client's certificate", certificate, self.location)?);
            files.push(read("client's key", key, self.location)?);
        }
        Ok(Files::new(files))
    }

    fn make(&self, files: &Files) -> Result<Identity, TlsError> {
        let authorities = Authorities::load(&self.server_ca, "servers", files.at(0))?;
        let builder = ClientConfig::builder_with_provider(provider(&self.policy))
            .with_protocol_versions(self.policy.versions)
            .map_err(TlsError::Policy)?
            .with_root_certificates(authorities.roots);
        let (mut config, ends) = match &self.pair {
            Some(pair) => {
                let loaded = pair.load(files.at(1), files.at(2))?;
                let config = builder
                    .with_client_auth_cert(loaded.chain, loaded.key)
                    .map_err(|source| pair.mismatched(source))?;
                (config, Some(loaded.ends))
            }
            None => (builder.with_no_client_auth(), None),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(Identity {
            config: Arc::new(config),
            ends,
            server_ca_ends: authorities.ends,
        })
    }

    fn announce(made: &Identity) {
        let own = made.ends.map_or_else(
            || "no client certificate".to_owned(),
            |ends| format!("the client's certificate until {}", date(ends)),
        );
        let authorities = date(made.server_ca_ends);
        info!("in use are the servers' CAs until {authorities}, and {own}");
    }

    fn expiry(made: &Identity) -> Option<(Duration, &'static str)> {
        made.ends.map(|ends| {
            (
                ends,
                "the client's certificate has expired: servers will refuse it",
            )
        })
    }
}
