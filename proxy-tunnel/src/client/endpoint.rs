// SPDX-License-Identifier: Apache-2.0

//! Where a server is, and a stream of bytes to it.

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

/// How long a server that refuses a certificate may take to say so.
const REFUSAL: Duration = Duration::from_millis(500);

/// Where a server is.
#[derive(Clone)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP with TLS.
    Tls {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The name that the server is asked for (SNI) and must have a certificate for, if it is not `host`.
        name: Option<ServerName<'static>>,
        /// CAs and the client's certificate. ALPN is set by the mode.
        config: Arc<ClientConfig>,
    },
}

impl Endpoint {
    /// A Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::Unix(path.into())
    }

    /// TCP with TLS, the certificate being for `host`.
    #[must_use]
    pub fn tls(host: impl Into<String>, port: u16, config: Arc<ClientConfig>) -> Self {
        Self::Tls {
            host: host.into(),
            port,
            name: None,
            config,
        }
    }

    /// The same server with a certificate for this name instead of its host's, if one is given, as behind a router by
    /// SNI. A Unix socket has no such name.
    #[must_use]
    pub fn named(mut self, server_name: Option<ServerName<'static>>) -> Self {
        if let Self::Tls { name, .. } = &mut self {
            *name = server_name;
        }
        self
    }

    /// Connects as for a tunnel, and leaves. A server that refuses this client's certificate says so only behind the
    /// handshake: that is waited for a little.
    ///
    /// # Errors
    /// It does not accept this client.
    pub async fn probe(&self, mode: Mode) -> io::Result<()> {
        let mut io = timeout(super::LIMIT, self.open(mode)).await??;
        match timeout(REFUSAL, io.read(&mut [0])).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => Err(error),
            // Bytes of HTTP/2, or none.
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    /// The server's authority in HTTP.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// Connects.
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
        // Not the keys.
        write!(f, "Endpoint({self})")
    }
}

/// A stream of bytes to a server.
#[derive(Debug)]
pub enum Io {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP with TLS.
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
            // Only TLS's own end: TCP's end as well would mean that this client has gone.
            Self::Tls(io) => {
                io.get_mut().1.send_close_notify();
                Pin::new(io).poll_flush(context)
            }
        }
    }
}
