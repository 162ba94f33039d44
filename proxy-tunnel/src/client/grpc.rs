// SPDX-License-Identifier: Apache-2.0

//! Dials over gRPC, with one stream of packets per tunnel.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tracing::debug;

use super::streams::{Opened, Streams};
use super::tunnel::{GrpcTunnel, Tunnel};
use super::{DialError, Endpoint, Mode};
use crate::flow::{Lane, Outbox};
use crate::wire::metadata::Extensions;
use crate::wire::{DialRequest, Inbound, Message};

/// One gRPC connection to a server, for any number of tunnels. It is closed when it and all its tunnels have been
/// dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    streams: Streams,
    server: String,
    user_agent: String,
}

/// Cancels a dial when the dial's future is dropped.
struct Dialing {
    outbox: Arc<Outbox>,
    lane: Option<Lane>,
    random: i64,
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            // The message is unnecessary if the stream has already ended.
            let _ = lane.push(Message::CloseDial(self.random));
            self.outbox.finish(None);
        }
    }
}

impl Connection {
    /// Connects to a server.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached.
    pub async fn open(endpoint: &Endpoint, user_agent: &str) -> Result<Self, DialError> {
        let server = endpoint.to_string();
        let failed = |source| DialError::Server {
            server: server.clone(),
            source,
        };
        let io = endpoint.open(Mode::Grpc).await.map_err(failed)?;
        let streams = Streams::begin(io, &endpoint.authority())
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self {
            streams,
            server,
            user_agent: user_agent.to_owned(),
        })
    }

    /// Opens a tunnel to `address`, a `host:port` that the agent's node resolves. There is no time limit other than
    /// those of the server and the agent. Dropping the future cancels the dial.
    ///
    /// # Errors
    /// Returns an error if the target cannot be reached.
    pub async fn dial(&self, address: &str) -> Result<Tunnel, DialError> {
        let outbox = Outbox::new();
        let random = fastrand::i64(1..);
        let request = Message::DialRequest(DialRequest {
            protocol: "tcp".to_owned(),
            address: address.to_owned(),
            random,
        });
        let lane = outbox.lane(None);
        // This cannot fail: the outbox is new and therefore has not ended.
        let _ = lane.push(request);
        let mut dialing = Dialing {
            outbox: Arc::clone(&outbox),
            lane: Some(lane),
            random,
        };
        let mut metadata = MetadataMap::new();
        if let Ok(user_agent) = self.user_agent.parse() {
            metadata.insert("user-agent", user_agent);
        }
        Extensions {
            half_close: true,
            window: false,
        }
        .write(&mut metadata);
        let opened = self.streams.open(metadata, outbox.stream());
        let Opened {
            headers,
            mut inbound,
            hold,
        } = opened.await.map_err(|status| DialError::StreamSetup {
            server: self.server.clone(),
            source: Box::new(status),
        })?;
        let connect_id = answer(&mut inbound, random, address).await?;
        let lane = dialing
            .lane
            .take()
            .ok_or_else(|| DialError::TunnelClosed(address.to_owned()))?;
        let can_finish = Extensions::read(&headers).half_close;
        Ok(Tunnel::grpc(GrpcTunnel::new(
            outbox, lane, inbound, hold, connect_id, can_finish,
        )))
    }
}

/// Waits for the response to the dial and returns the number of the connection.
async fn answer(inbound: &mut Inbound, random: i64, address: &str) -> Result<i64, DialError> {
    loop {
        match inbound.message().await {
            Ok(Some(Ok(Message::DialResponse(response)))) if response.random == random => {
                let text = match (response.error.as_str(), response.connect_id) {
                    ("", 0) => "the answer has no connection".to_owned(),
                    ("", connect_id) => return Ok(connect_id),
                    _ => response.error,
                };
                return Err(DialError::Endpoint {
                    address: address.to_owned(),
                    text,
                });
            }
            Ok(Some(Ok(Message::CloseDial(number)))) if number == random => {
                return Err(DialError::Closed(address.to_owned()));
            }
            Ok(Some(Ok(Message::CloseResponse(close)))) if !close.error.is_empty() => {
                return Err(DialError::Endpoint {
                    address: address.to_owned(),
                    text: close.error,
                });
            }
            Ok(Some(Ok(other))) => debug!("ignoring {other:?} while a dial is pending"),
            Ok(Some(Err(malformed))) => debug!("ignoring a packet of the server: {malformed}"),
            Ok(None) | Err(_) => return Err(DialError::TunnelClosed(address.to_owned())),
        }
    }
}
