// SPDX-License-Identifier: Apache-2.0

//! Flags of programs that are clients of a server: its address, the protocol, the certificates.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use proxy_serve::tls::client::{Client as Tls, ServerName};
use proxy_serve::tls::{Pair, Policy};

use super::args::server_name;
use super::both;
use crate::client::Mode;

// This is not a doc comment, because clap would use it as the program's description.
#[derive(Debug, Clone, clap::Args)]
pub struct ReachArgs {
    /// Certificate that the server is shown
    #[arg(long, value_name = "FILE", default_value = "")]
    pub client_cert: String,
    /// Key of --client-cert
    #[arg(long, value_name = "FILE", default_value = "")]
    pub client_key: String,
    /// CAs of the server
    #[arg(long, value_name = "FILE", default_value = "")]
    pub ca_cert: String,
    /// Host of the server; empty with --proxy-uds
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    pub proxy_host: String,
    /// Port of the server; 0 with --proxy-uds
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub proxy_port: u16,
    /// Unix socket of the server
    #[arg(long, value_name = "FILE", default_value = "")]
    pub proxy_uds: String,
    /// Name that the server is asked for by TLS (SNI), and must have a certificate for; empty: its host
    #[arg(long, value_name = "NAME", default_value = "")]
    pub proxy_server_name: String,
    /// How the server is spoken to: grpc or http-connect
    #[arg(long, default_value = "grpc")]
    pub mode: String,
}

/// The address of a server, with the certificate files to be read for it.
#[derive(Debug, Clone)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address with TLS.
    Tls {
        /// The host name or the IP address.
        host: String,
        /// The port.
        port: u16,
        /// The name that is sent as SNI and that the server's certificate must match, if it is not the host.
        name: Option<ServerName<'static>>,
        /// The certificate files.
        tls: Tls,
    },
}

impl ReachArgs {
    /// Returns the protocol of the server.
    ///
    /// # Errors
    /// Returns an error if the mode is unknown.
    pub fn mode(&self) -> Result<Mode> {
        let mode = self.mode.parse().map_err(anyhow::Error::msg);
        mode.context("--mode")
    }

    /// Returns the address of the server.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other or a required flag is missing.
    pub fn place(&self) -> Result<Place> {
        let has_pair = both(
            ("client-cert", &self.client_cert),
            ("client-key", &self.client_key),
        )?;
        if !self.proxy_uds.is_empty() {
            ensure!(
                self.proxy_host.is_empty() && self.proxy_port == 0,
                "--proxy-uds needs --proxy-host= and --proxy-port=0"
            );
            ensure!(
                !has_pair && self.ca_cert.is_empty() && self.proxy_server_name.is_empty(),
                "--proxy-uds excludes --client-cert, --client-key, --ca-cert and --proxy-server-name: there is no TLS on \
                 a Unix socket"
            );
            return Ok(Place::Unix((&self.proxy_uds).into()));
        }
        ensure!(
            !self.proxy_host.is_empty() && self.proxy_port != 0,
            "where is the server? give --proxy-host and --proxy-port, or --proxy-uds"
        );
        ensure!(
            !self.ca_cert.is_empty(),
            "--ca-cert is needed: it says which servers are trusted"
        );
        Ok(Place::Tls {
            host: self.proxy_host.clone(),
            port: self.proxy_port,
            name: server_name(&self.proxy_server_name)?,
            tls: Tls {
                server_ca: (&self.ca_cert).into(),
                pair: has_pair.then(|| Pair {
                    certificate: (&self.client_cert).into(),
                    key: (&self.client_key).into(),
                }),
                location: "--ca-cert, --client-cert and --client-key say where they are",
                // The mode determines ALPN.
                alpn: Vec::new(),
                policy: Policy::default(),
            },
        })
    }
}
