// SPDX-License-Identifier: Apache-2.0

//! The properties of a peer that the server knows before the peer's first message: the address it connected to, the
//! server name it requested, and the subject of its certificate. They come from the handshake; none of them is a mere
//! claim of the peer.

use std::fmt;
use std::path::PathBuf;

use proxy_serve::tls::subject::Subject;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entrance {
    /// A TCP port.
    Port(u16),
    /// A Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Socket(path) => write!(f, "socket {}", path.display()),
        }
    }
}

/// A peer, as the handshake describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The listening socket that the peer connected to.
    pub entrance: Entrance,
    /// The server name that the peer requested (SNI).
    pub server_name: Option<String>,
    /// The subject of the peer's certificate, which the handshake has verified.
    pub subject: Option<Subject>,
}

impl Peer {
    /// Creates a peer that connected to a Unix socket.
    #[must_use]
    pub const fn on_socket(path: PathBuf) -> Self {
        Self {
            entrance: Entrance::Socket(path),
            server_name: None,
            subject: None,
        }
    }

    /// Creates a peer with a TLS session on this port.
    #[must_use]
    pub fn with_session(port: u16, session: &TlsStream<TcpStream>) -> Self {
        let (_, session) = session.get_ref();
        let own = session.peer_certificates().and_then(<[_]>::first);
        let subject = own.and_then(|certificate| {
            Subject::read(certificate)
                .map_err(|error| debug!("the names in a certificate cannot be read: {error}"))
                .ok()
        });
        Self {
            entrance: Entrance::Port(port),
            server_name: session.server_name().map(str::to_owned),
            subject,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.entrance)?;
        if let Some(name) = &self.server_name {
            write!(f, ", SNI {name:?}")?;
        }
        let Some(subject) = &self.subject else {
            return f.write_str(", no certificate");
        };
        for (field, values) in [
            ("O", &subject.organizations),
            ("OU", &subject.organizational_units),
            ("CN", &subject.common_names),
            ("URI", &subject.uris),
        ] {
            for value in values {
                write!(f, ", {field} {value:?}")?;
            }
        }
        Ok(())
    }
}
