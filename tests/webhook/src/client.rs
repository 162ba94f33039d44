// SPDX-License-Identifier: Apache-2.0

//! A client of the webhook: HTTP/1.1 over TLS on a connection that is kept, blocking, without anything
//! that would cost more than the server.

use std::fs;
use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use serde_json::Value;

use super::certs::{Authority, Pair};
use super::{PATH, PATIENCE};

/// The certificates that a client trusts and presents.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts certificates of this authority.
    ///
    /// # Errors
    /// When the authority's certificate cannot be read.
    pub fn new(authority: &Authority) -> Result<Self> {
        Self::with(authority, None, rustls::ALL_VERSIONS)
    }

    /// As [`Tls::new`], shows a certificate, and speaks certain versions of TLS.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn with(
        authority: &Authority,
        own: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&fs::read(
            authority.certificate(),
        )?)?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&fs::read(
                    &pair.certificate,
                )?)?],
                PrivateKeyDer::from_pem_slice(&fs::read(&pair.key)?)?,
            )?,
        };
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from("localhost")?,
        })
    }

    /// Expects the server to be called so, not `localhost`.
    ///
    /// # Errors
    /// When that is no name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = ServerName::try_from(name)?.to_owned();
        Ok(self)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

/// The answer of the webhook.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is something else.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}\n{}", self.head, String::from_utf8_lossy(&self.body)))
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When there is no session.
    pub fn connect(address: SocketAddr, tls: &Tls) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("connecting to the webhook")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone())?;
        while connection.is_handshaking() {
            connection
                .complete_io(&mut stream)
                .context("in the TLS handshake")?;
        }
        Ok(Self {
            stream: StreamOwned::new(connection, stream),
            buffer: Vec::new(),
        })
    }

    /// The certificate that the server has shown.
    #[must_use]
    pub fn server_certificate(&self) -> Option<Vec<u8>> {
        let chain = self.stream.conn.peer_certificates()?;
        chain.first().map(|first| first.as_ref().to_vec())
    }

    /// The version of TLS.
    #[must_use]
    pub fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.stream.conn.protocol_version()
    }

    /// Has a review answered.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn review(&mut self, body: &[u8]) -> Result<Answer> {
        self.request("POST", PATH, Some("application/json"), body)
    }

    /// Sends a request and receives its answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Answer> {
        let content_type =
            content_type.map_or_else(String::new, |value| format!("Content-Type: {value}\r\n"));
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{content_type}Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(&request)?;
        self.receive()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Receives an answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn receive(&mut self) -> Result<Answer> {
        self.buffer.clear();
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let length: usize = header(&head, "content-length")
            .context("an answer without content-length")?
            .parse()?;
        while self.buffer.len() < end + length {
            self.read_more()?;
        }
        if self.buffer.len() > end + length {
            bail!("bytes behind the answer");
        }
        Ok(Answer {
            status,
            head,
            body: self.buffer.split_off(end),
        })
    }

    /// Waits until the server ends the connection; returns the bytes that it sent before.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_end(&mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => Ok(rest),
            // Cut, without a farewell.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                Ok(rest)
            }
            Err(error) => Err(error).context("waiting for the end of the connection"),
        }
    }

    fn read_more(&mut self) -> Result<()> {
        let mut chunk = [0; 16 << 10];
        let length = self.stream.read(&mut chunk).context("receiving")?;
        if length == 0 {
            bail!("the connection was closed");
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(())
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The value of a header; hyper writes their names in lower case.
#[must_use]
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}
