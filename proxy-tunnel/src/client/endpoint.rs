// SPDX-License-Identifier: Apache-2.0

//! The address of a server, and the byte stream to it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Mode;
use crate::tcp::{
    self,
    upkeep::{self, Use},
};

/// The time for which a probe waits for the alert of a server that rejects the client's certificate.
const REFUSAL: Duration = Duration::from_millis(500);

/// The address of a server.
#[derive(Clone)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address with TLS.
    Tls {
        /// The host name or the IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The name that the client sends as SNI and that the server's certificate must match, if it is not `host`.
        name: Option<ServerName<'static>>,
        /// The CAs and the client's certificate. The mode determines ALPN.
        config: Arc<ClientConfig>,
    },
}

impl Endpoint {
    /// Returns the endpoint for a Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::Unix(path.into())
    }

    /// Returns the endpoint for TCP with TLS. The server's certificate must match `host`.
    #[must_use]
    pub fn tls(host: impl Into<String>, port: u16, config: Arc<ClientConfig>) -> Self {
        Self::Tls {
            host: host.into(),
            port,
            name: None,
            config,
        }
    }

    /// Returns the same server with this name for SNI and for its certificate, if one is specified. A router that
    /// selects servers by SNI needs this. A Unix socket has no such name.
    #[must_use]
    pub fn named(mut self, server_name: Option<ServerName<'static>>) -> Self {
        if let Self::Tls { name, .. } = &mut self {
            *name = server_name;
        }
        self
    }

    /// Connects as for a tunnel and then disconnects. A server that rejects this client's certificate reports that only
    /// after the handshake, so this function waits for a short time.
    ///
    /// # Errors
    /// Returns an error if the server does not accept this client.
    pub async fn probe(&self, mode: Mode) -> io::Result<()> {
        let mut io = timeout(super::LIMIT, self.open(mode)).await??;
        match timeout(REFUSAL, io.read(&mut [0])).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => Err(error),
            // The server sent bytes of HTTP/2, or nothing.
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    /// Returns the server's authority for HTTP requests.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// Connects to the server.
    pub(super) async fn open(&self, mode: Mode) -> io::Result<Io> {
        match self {
            Self::Unix(path) => Ok(Io::Unix(UnixStream::connect(path).await?)),
            Self::Tls {
                host,
                port,
                name,
                config,
            } => {
                let stream = tcp::connect(host, *port, super::LIMIT).await?;
                upkeep::prepare(&stream, Use::Tunnel)?;
                let mut config = ClientConfig::clone(config);
                config.alpn_protocols = match mode {
                    Mode::Grpc => vec![b"h2".to_vec()],
                    Mode::HttpConnect => vec![b"http/1.1".to_vec()],
                };
                let name = match name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(host.clone())
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
                };
                let connector = TlsConnector::from(Arc::new(config));
                Ok(Io::Tls(Box::new(connector.connect(name, stream).await?)))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { .. } => f.write_str(&self.authority()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration is omitted because it contains the private key.
        write!(f, "Endpoint({self})")
    }
}

/// A byte stream to a server.
#[derive(Debug)]
pub enum Io {
    /// A connection over a Unix socket.
    Unix(UnixStream),
    /// A connection over TCP with TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(io) => Pin::new(io).poll_write_vectored(context, slices),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(io) => Pin::new(io).poll_shutdown(context),
            // Only TLS's close_notify is sent. The end of the TCP stream as well would mean that this client is gone.
            Self::Tls(io) => {
                io.get_mut().1.send_close_notify();
                Pin::new(io).poll_flush(context)
            }
        }
    }
}
