// SPDX-License-Identifier: Apache-2.0

//! One connection to a server, from its name to the stream of packets: TCP, directly or by a proxy, TLS, HTTP/2,
//! the agent's names and its token. When to connect is [`super::sync`]'s business.

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
use tonic::Status;
use tonic::metadata::MetadataMap;
use tracing::{debug, info};

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

/// Bytes of a token at most: more than a header field may have.
const TOKEN: u64 = 64 * 1024;

/// How long it may take from the name to the server's headers.
const LIMIT: Duration = Duration::from_secs(30);

/// TLS with a server, before anything is said on it.
pub type Session = TlsStream<TcpStream>;

/// The settings for connections to servers.
#[derive(Debug)]
pub struct Connector {
    /// The servers' port.
    pub port: u16,
    /// CAs and the agent's certificate.
    pub tls: Current<Identity>,
    /// The name that servers are asked for (SNI) and must prove; none: that of their host.
    pub server_name: Option<ServerName<'static>>,
    /// After how long without a byte a server is pinged.
    pub keepalive: Duration,
    /// The file with the agent's token.
    pub token: Option<PathBuf>,
    /// The agent's identifiers, as the flag gives them.
    pub identifiers: String,
    /// State that all streams share.
    pub shared: Arc<Shared>,
}

/// Why a server was not connected to.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The proxy's settings are wrong.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The server, or the proxy before it, cannot be reached.
    #[error("cannot reach {address}")]
    Reach {
        /// Where it should be.
        address: String,
        /// The error of the kernel or the resolver.
        #[source]
        source: io::Error,
    },
    /// The proxy does not connect.
    #[error("the proxy {proxy} does not connect to {server}")]
    Refused {
        /// The proxy.
        proxy: String,
        /// The server.
        server: String,
        /// The proxy's answer.
        #[source]
        source: Refusal,
    },
    /// The host's name is none that a certificate can have.
    #[error("`{0}` can be no certificate's name; --proxy-server-host takes a name or an address")]
    Name(String),
    /// TLS fails.
    #[error(
        "no TLS session with {server}; --ca-cert, --agent-cert and --agent-key decide about it"
    )]
    Tls {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HTTP/2 fails.
    #[error("{server} does not speak HTTP/2")]
    Http2 {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The token cannot be read.
    #[error("cannot read the token {}; --service-account-token-path says where it is", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A value cannot be sent as metadata.
    #[error("the {0} holds characters that cannot be sent")]
    Unsendable(&'static str),
    /// The server refuses the agent.
    #[error("{server} refuses this agent: {}", status.message())]
    Denied {
        /// The server.
        server: String,
        /// Its answer. It is no source of this error, whose text holds it already.
        status: Box<Status>,
    },
    /// The server's answer lacks a required header or has an invalid one.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// It took too long.
    #[error("{server} has not accepted this agent within {limit} s", limit = LIMIT.as_secs())]
    Timeout {
        /// The server.
        server: String,
    },
}

/// A stream that has been accepted.
pub struct Connected {
    /// How many servers there are, as this one says.
    pub count: u32,
    /// The stream.
    pub link: Arc<Link>,
    /// The messages of the server.
    pub inbound: Inbound,
}

impl Connector {
    /// Connects to a server.
    ///
    /// # Errors
    /// It does not accept the agent, or not in time.
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
            status: Box::new(status),
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

    /// Begins TLS with a server, and no more.
    ///
    /// # Errors
    /// It is not reached, or proves not to be the one that is meant.
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

    /// TCP to the server, by a proxy if the environment names one.
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
            // In TLS the client speaks first.
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
            // Anew for each connection: kubelet exchanges it.
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

/// The token without the newline behind it.
fn read_token(path: &Path) -> io::Result<String> {
    // A named pipe without a writer would keep the agent waiting here.
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

/// A host and a port, with brackets where they are needed.
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
