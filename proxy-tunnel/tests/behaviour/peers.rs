// SPDX-License-Identifier: Apache-2.0

//! Peers that speak only upstream's protocol, packet by packet: they send raw bytes, so that they can also send packets
//! that none of our programs sends.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use prost::Message as _;
use proxy_tunnel::channel::{Channel, Settings};
use proxy_tunnel::wire::schema::Packet;
use proxy_tunnel::wire::{
    AGENT_PATH, DialRequest, DialResponse, Encode, Inbound, Message, PROXY_PATH,
};
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::rig::{Rig, SOON, WHILE};

/// Returns settings without pings, which a server of upstream allows a client only every 5 minutes, and with the window
/// of a client.
fn quiet() -> Settings {
    Settings {
        windows: (1 << 20, 32 << 20),
        ..Settings::link(Duration::from_hours(1))
    }
}

/// A codec that sends bytes as messages.
struct Raw;

impl Encode for Raw {
    type Message = Vec<u8>;

    fn encode(&self, message: Vec<u8>, buffer: &mut BytesMut) -> Option<Bytes> {
        buffer.put_u8(0);
        buffer.put_u32(message.len().try_into().unwrap());
        Some(message.into())
    }

    fn batch(&self) -> usize {
        1
    }
}

type TlsChannel = (Socket, Channel, &'static str);

type Opening = JoinHandle<Result<(MetadataMap, Inbound), Status>>;

/// A peer with one stream of packets.
pub struct Peer {
    sender: Option<mpsc::UnboundedSender<Vec<u8>>>,
    opening: Option<Opening>,
    pub headers: MetadataMap,
    inbound: Option<Inbound>,
    socket: Socket,
}

/// Metadata as pairs of name and value.
pub type Pairs<'a> = &'a [(&'static str, &'a str)];

impl Peer {
    fn open(socket: Socket, channel: Channel, path: &'static str, pairs: Pairs<'_>) -> Self {
        let mut metadata = MetadataMap::new();
        for (key, value) in pairs {
            metadata.append(*key, value.parse().unwrap());
        }
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let messages =
            stream::poll_fn(move |context| receiver.poll_recv(context).map(|item| item.map(Ok)));
        let opening =
            tokio::spawn(async move { channel.stream(path, Raw, metadata, messages).await });
        Self {
            sender: Some(sender),
            opening: Some(opening),
            headers: MetadataMap::new(),
            inbound: None,
            socket,
        }
    }

    /// Connects an agent with this metadata.
    pub async fn agent(rig: &Rig, pairs: Pairs<'_>) -> Self {
        Self::agent_by(rig, pairs, quiet()).await
    }

    /// Opens a TLS session of an agent.
    pub async fn session(rig: &Rig) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(rig.agents).await.unwrap();
        let config = Arc::clone(&rig.scratch.client_tls().current().get().config);
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(config).connect(name, stream);
        connecting.await.unwrap()
    }

    /// Connects an agent with these settings of its HTTP/2 connection.
    pub async fn agent_by(rig: &Rig, pairs: Pairs<'_>, settings: Settings) -> Self {
        let session = Self::session(rig).await;
        let socket = SockRef::from(session.get_ref().0).try_clone().unwrap();
        let channel = Channel::open(session, "localhost", settings).await.unwrap();
        Self::open(socket, channel, AGENT_PATH, pairs)
    }

    /// Connects a peer with the certificate and the SNI of these names to this port.
    async fn by_tls(rig: &Rig, port: u16, way: (&str, &str), path: &'static str) -> TlsChannel {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let config = Arc::clone(&rig.scratch.client_tls_as(way.0).current().get().config);
        let name = ServerName::try_from(way.1.to_owned()).unwrap();
        let session = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap();
        let socket = SockRef::from(session.get_ref().0).try_clone().unwrap();
        let channel = Channel::open(session, "localhost", quiet()).await;
        (socket, channel.unwrap(), path)
    }

    /// Connects an agent with the certificate and the SNI of these names.
    pub async fn agent_with(rig: &Rig, way: (&str, &str), pairs: Pairs<'_>) -> Self {
        let (socket, channel, path) = Self::by_tls(rig, rig.agents.port(), way, AGENT_PATH).await;
        Self::open(socket, channel, path, pairs)
    }

    /// Connects a client with the certificate and the SNI of these names.
    pub async fn client_with(rig: &Rig, way: (&str, &str)) -> Self {
        let (socket, channel, path) = Self::by_tls(rig, rig.tls.port(), way, PROXY_PATH).await;
        Self::open(socket, channel, path, &[])
    }

    /// Connects an agent, and waits until the server has accepted it.
    pub async fn accepted_agent(rig: &Rig) -> Self {
        let mut agent = Self::agent(rig, &[("agentid", "raw")]).await;
        agent.opened().await.unwrap();
        rig.until_ready().await;
        agent
    }

    /// Connects a client.
    pub async fn client(rig: &Rig) -> Self {
        Self::client_by(rig, quiet()).await
    }

    /// Connects a client with these settings of its HTTP/2 connection.
    pub async fn client_by(rig: &Rig, settings: Settings) -> Self {
        let stream = UnixStream::connect(&rig.socket).await.unwrap();
        let socket = SockRef::from(&stream).try_clone().unwrap();
        let channel = Channel::open(stream, "localhost", settings).await.unwrap();
        Self::open(socket, channel, PROXY_PATH, &[])
    }

    /// Waits for the server's headers.
    pub async fn opened(&mut self) -> Result<(), Status> {
        if let Some(opening) = self.opening.take() {
            let opened = timeout(SOON, opening).await.expect("no headers").unwrap();
            let (headers, inbound) = opened?;
            self.headers = headers;
            self.inbound = Some(inbound);
        }
        Ok(())
    }

    pub fn send(&self, message: Message) {
        self.send_bytes(Packet::from(message).encode_to_vec());
    }

    pub fn send_bytes(&self, bytes: Vec<u8>) {
        if let Some(sender) = &self.sender {
            // Some tests expect that the stream has ended.
            let _ = sender.send(bytes);
        }
    }

    /// Closes the connection below the stream without any frame.
    pub fn vanish(&self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }

    /// Closes the sending side.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    /// Returns the next message, `None` at the end of the stream, or the stream's error.
    pub async fn next(&mut self) -> Result<Option<Message>, Status> {
        self.opened().await?;
        let inbound = self.inbound.as_mut().expect("it is open");
        let next = timeout(SOON, inbound.message())
            .await
            .expect("nothing came");
        Ok(next?.map(|received| received.expect("no program of ours sends such")))
    }

    /// Returns the next message.
    pub async fn message(&mut self) -> Message {
        self.next().await.unwrap().expect("the stream has ended")
    }

    /// Checks that no message arrives.
    pub async fn nothing(&mut self) {
        self.opened().await.unwrap();
        let inbound = self.inbound.as_mut().expect("it is open");
        let next = timeout(WHILE, inbound.message()).await;
        assert!(next.is_err(), "{next:?}");
    }

    pub fn dial(&self, random: i64, address: &str) {
        self.send(Message::DialRequest(DialRequest {
            protocol: "tcp".into(),
            address: address.into(),
            random,
        }));
    }

    /// As an agent: replies to the next dial with this connection ID.
    pub async fn accept(&mut self, connect_id: i64) -> DialRequest {
        let request = self.asked().await;
        self.send(Message::DialResponse(DialResponse {
            error: String::new(),
            connect_id,
            random: request.random,
        }));
        request
    }

    /// As an agent: returns the next dial. Closes of earlier connections may arrive before it.
    pub async fn asked(&mut self) -> DialRequest {
        loop {
            match self.message().await {
                Message::DialRequest(request) => return request,
                Message::CloseRequest(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// As a client: returns the response to its dial.
    pub async fn answered(&mut self) -> DialResponse {
        match self.message().await {
            Message::DialResponse(response) => response,
            other => panic!("{other:?}"),
        }
    }
}
