// SPDX-License-Identifier: Apache-2.0

//! Opens one connection to a server, from the resolution of its name to the stream of packets: TCP (directly or through
//! a proxy), TLS, HTTP/2, and the request with the agent's name, identifiers and token. [`super::sync`] decides when to
//! connect.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proxy_serve::reload::Current;
use proxy_serve::tls::client::{Identity, ServerName};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::MetadataMap;
use tracing::{debug, info};

use super::answer::Answer;
use super::link::{Link, Shared};
use super::proxy::{self, ProxyError};
use crate::channel::{Channel, Settings};
use crate::client::{Refusal, handshake};
use crate::flow::Outbox;
use crate::metrics::packets::{Counted, Segment};
use crate::tcp::{
    self,
    upkeep::{self, Use},
};
use crate::wire::metadata::{
    self, AGENT_ID, AGENT_IDENTIFIERS, AUTHORIZATION, BEARER, Extensions, MetadataError,
};
use crate::wire::{AGENT_PATH, Inbound, LINK};

/// The maximum size of a token, in bytes. It is larger than any header field may be.
const TOKEN: u64 = 64 * 1024;

/// The time limit for a connection attempt, from the resolution of the name to the server's response headers.
const LIMIT: Duration = Duration::from_secs(30);

/// A TLS session with a server on which no HTTP/2 has been exchanged yet.
pub type Session = TlsStream<TcpStream>;

/// The settings for connections to servers.
#[derive(Debug)]
pub struct Connector {
    /// The port of the servers.
    pub port: u16,
    /// The CAs and the agent's certificate.
    pub tls: Current<Identity>,
    /// The name that the agent sends as SNI and that the server's certificate must match; `None` for the name of the
    /// server's host.
    pub server_name: Option<ServerName<'static>>,
    /// The time without received bytes after which the agent pings the server.
    pub keepalive: Duration,
    /// The file that contains the agent's token.
    pub token: Option<PathBuf>,
    /// The agent's identifiers, as the flag specifies them.
    pub identifiers: String,
    /// The state that all streams share.
    pub shared: Arc<Shared>,
}

/// The reason why the agent could not connect to a server.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The proxy settings in the environment are invalid.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The server, or the proxy before it, cannot be reached.
    #[error("cannot reach {address}")]
    Reach {
        /// The address of the server or the proxy.
        address: String,
        /// The error that the kernel or the resolver returned.
        #[source]
        source: io::Error,
    },
    /// The proxy refused to connect to the server.
    #[error("the proxy {proxy} does not connect to {server}")]
    Refused {
        /// The proxy.
        proxy: String,
        /// The server.
        server: String,
        /// The proxy's response.
        #[source]
        source: Refusal,
    },
    /// The host's name is not valid as a name in a certificate.
    #[error("`{0}` can be no certificate's name; --proxy-server-host takes a name or an address")]
    Name(String),
    /// The TLS handshake failed.
    #[error(
        "no TLS session with {server}; --ca-cert, --agent-cert and --agent-key decide about it"
    )]
    Tls {
        /// The server.
        server: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The HTTP/2 connection could not be opened.
    #[error("{server} does not speak HTTP/2")]
    Http2 {
        /// The server.
        server: String,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The token cannot be read.
    #[error("cannot read the token {}; --service-account-token-path says where it is", path.display())]
    Token {
        /// The path of the file.
        path: PathBuf,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// A value cannot be sent as metadata.
    #[error("the {0} holds characters that cannot be sent")]
    Unsendable(&'static str),
    /// The server rejected the agent.
    #[error("{server} refuses this agent")]
    Denied {
        /// The server.
        server: String,
        /// The server's response, or the end of the connection before one.
        #[source]
        source: Answer,
    },
    /// The server's response lacks a required header or has an invalid one.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The server did not accept the agent within the time limit.
    #[error("{server} has not accepted this agent within {limit} s", limit = LIMIT.as_secs())]
    Timeout {
        /// The server.
        server: String,
    },
}

/// A stream that the server has accepted.
pub struct Connected {
    /// The number of servers, as announced by this server.
    pub count: u32,
    /// The stream.
    pub link: Arc<Link>,
    /// The messages that arrive from the server.
    pub inbound: Inbound,
}

impl Connector {
    /// Connects to a server.
    ///
    /// # Errors
    /// Returns an error if the server does not accept the agent, or does not do so within the time limit.
    pub async fn connect(&self, host: &str) -> Result<Connected, ConnectError> {
        let address = join(host, self.port);
        timeout(LIMIT, self.try_connect(host, &address))
            .await
            .unwrap_or(Err(ConnectError::Timeout { server: address }))
    }

    async fn try_connect(&self, host: &str, address: &str) -> Result<Connected, ConnectError> {
        info!(
            serverAddress = address,
            agentID = self.shared.agent_id.as_str(),
            "Connect to server"
        );
        let metadata = self.metadata()?;
        let session = self.secure(host, address).await?;
        let channel = Channel::open(session, address, Settings::link(self.keepalive))
            .await
            .map_err(|source| ConnectError::Http2 {
                server: address.to_owned(),
                source,
            })?;
        let outbox = Outbox::new();
        let messages = Counted {
            inner: outbox.stream(),
            packets: Arc::clone(&self.shared.metrics.packets),
            segment: Segment::FromAgent,
        };
        let opened = channel.stream(AGENT_PATH, LINK, metadata, messages).await;
        let (headers, inbound) = opened.map_err(|status| ConnectError::Denied {
            server: address.to_owned(),
            source: status.into(),
        })?;
        let (server_id, count) = metadata::server(&headers)?;
        let extensions = Extensions::read(&headers);
        debug!(
            serverID = server_id.as_str(),
            "the server understands: {extensions}"
        );
        let shared = Arc::clone(&self.shared);
        Ok(Connected {
            count,
            link: Link::new(server_id, outbox, extensions, shared),
            inbound,
        })
    }

    /// Establishes a TLS session with a server and nothing more.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached or if its certificate does not match.
    pub async fn session(&self, host: &str) -> Result<Session, ConnectError> {
        self.secure(host, &join(host, self.port)).await
    }

    async fn secure(&self, host: &str, address: &str) -> Result<Session, ConnectError> {
        let stream = self.reach(host, address).await?;
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| ConnectError::Name(host.to_owned()))?,
        };
        let connector = TlsConnector::from(Arc::clone(&self.tls.get().config));
        let session = connector.connect(name, stream).await;
        session.map_err(|source| ConnectError::Tls {
            server: address.to_owned(),
            source,
        })
    }

    /// Opens a TCP connection to the server, through a proxy if the environment names one.
    async fn reach(&self, host: &str, address: &str) -> Result<TcpStream, ConnectError> {
        let open = async |host: &str, port| {
            let opened = async {
                let stream = tcp::connect(host, port, LIMIT).await?;
                upkeep::prepare(&stream, Use::Link)?;
                Ok(stream)
            };
            opened.await.map_err(|source| ConnectError::Reach {
                address: join(host, port),
                source,
            })
        };
        let Some(proxy) = proxy::from_environment(host, self.port)? else {
            return open(host, self.port).await;
        };
        let mut stream = open(&proxy.host, proxy.port).await?;
        let refused = |source| ConnectError::Refused {
            proxy: join(&proxy.host, proxy.port),
            server: address.to_owned(),
            source,
        };
        let rest = handshake(&mut stream, address, &proxy.fields)
            .await
            .map_err(refused)?;
        if rest.is_empty() {
            Ok(stream)
        } else {
            // In TLS the client sends first, so these bytes cannot come from the server.
            Err(refused(Refusal::Malformed))
        }
    }

    fn metadata(&self) -> Result<MetadataMap, ConnectError> {
        let mut metadata = MetadataMap::new();
        let mut put = |key, value: &str, what| {
            let value = value.parse().map_err(|_| ConnectError::Unsendable(what))?;
            metadata.insert(key, value);
            Ok::<_, ConnectError>(())
        };
        put(AGENT_ID, &self.shared.agent_id, "agent's name (--agent-id)")?;
        put(
            AGENT_IDENTIFIERS,
            &self.identifiers,
            "agent's identifiers (--agent-identifiers)",
        )?;
        if let Some(path) = &self.token {
            // The token is read for each connection, because kubelet replaces it.
            let token = read_token(path).map_err(|source| ConnectError::Token {
                path: path.clone(),
                source,
            })?;
            put(AUTHORIZATION, &format!("{BEARER}{token}"), "token")?;
        }
        Extensions::ALL.write(&mut metadata);
        Ok(metadata)
    }
}

/// Reads the token and removes the newline that follows it.
fn read_token(path: &Path) -> io::Result<String> {
    // Opening a named pipe that has no writer would block the agent without this flag.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if !file.metadata()?.is_file() {
        return invalid("it is no regular file");
    }
    let mut token = String::new();
    let length = file.take(TOKEN + 1).read_to_string(&mut token)?;
    if length as u64 > TOKEN {
        return invalid("it is larger than 64 KiB");
    }
    match token.trim() {
        "" => invalid("it is empty"),
        token => Ok(token.to_owned()),
    }
}

/// Joins a host and a port, with brackets around an IPv6 address.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn tokens_are_read_without_their_newline_and_nothing_else_is_taken_for_one() {
        let directory = std::env::temp_dir().join(format!("token-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("token");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_token(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"a.b.c\n"), Ok("a.b.c".into()));
        let most = "x".repeat(65_536);
        assert_eq!(read(most.as_bytes()), Ok(most.clone()));
        let more = most + "x";
        for (bytes, why) in [
            (more.as_bytes(), "larger than"),
            (b"\n", "empty"),
            (b"\xff", "UTF-8"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        for path in [&path, &directory] {
            let error = read_token(path).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
