// SPDX-License-Identifier: Apache-2.0

//! The service that agents call. It checks names, identifiers and tokens, finds the agent's tenant, and then passes the
//! packets of the stream to the [`Backend`].

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, async_trait};
use tracing::{debug, error, info, warn};

use super::Server;
use super::backend::Backend;
use super::tenants::peer::Peer;
use super::tenants::tenant::Tenant;
use super::transport::{self, Answer};
use crate::cluster::tokens::Holder;
use crate::flow::OutboxStream;
use crate::identifiers::Identifiers;
use crate::metrics::packets::{Counted, Segment};
use crate::metrics::server::Method;
use crate::wire::failure;
use crate::wire::metadata::{self, AUTHORIZATION, BEARER, Extensions, SERVER_COUNT, SERVER_ID};
use crate::wire::{AGENT_PATH, Inbound, LINK};

/// The service for the agents of one connection.
#[derive(Debug)]
pub struct AgentService {
    server: Arc<Server>,
    peer: Arc<Peer>,
}

impl AgentService {
    /// Creates the service for the agents on a connection from `peer`.
    #[must_use]
    pub fn new(server: &Arc<Server>, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            server: Arc::clone(server),
            peer: Arc::new(peer),
        })
    }
}

#[async_trait]
impl Answer for AgentService {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != AGENT_PATH {
            return transport::unknown(request.uri().path());
        }
        transport::streaming(LINK, request, |request| {
            connect(Arc::clone(&self.server), Arc::clone(&self.peer), request)
        })
        .await
    }
}

async fn connect(
    server: Arc<Server>,
    peer: Arc<Peer>,
    request: tonic::Request<Inbound>,
) -> Result<tonic::Response<Counted<OutboxStream>>, Status> {
    let (headers, _, inbound) = request.into_parts();
    let refuse = |error: &dyn std::error::Error| {
        error!(err = %error, "Invalid backend");
        Status::unknown(error.to_string())
    };
    let agent_id = metadata::agent_id(&headers).map_err(|error| refuse(&error))?;
    let identifiers = metadata::identifiers(&headers).map_err(|error| refuse(&error))?;
    let identifiers = Identifiers::parse(&identifiers).map_err(|error| refuse(&error))?;
    info!(
        agentID = agent_id.as_str(),
        serverID = server.id.as_str(),
        "Connect request from agent"
    );
    let token = authenticate(&server, &peer, &headers, &agent_id).await?;
    let tenant = server
        .tenants
        .of_agent(&peer, token.as_ref())
        .map_err(|why| Status::permission_denied(why.to_string()))?;
    let extensions = Extensions::read(&headers);
    let backend = tenant
        .join(agent_id, identifiers, extensions)
        .map_err(|why| {
            error!(err = %why, "refusing an agent");
            Status::resource_exhausted(why.to_string())
        })?;
    info!(
        agentID = backend.agent_id.as_str(),
        serverID = server.id.as_str(),
        tenant = tenant.name(),
        "Agent connected"
    );
    let member = Member { tenant, backend };
    let backend = &member.backend;
    let metrics = Arc::clone(&server.metrics);
    let answers = Counted {
        inner: backend.outbox.stream(),
        packets: Arc::clone(&metrics.packets),
        segment: Segment::ToAgent,
    };
    let mut response = tonic::Response::new(answers);
    let answer = response.metadata_mut();
    let id = server.id.parse().map_err(|_| {
        Status::internal("the server's name cannot be sent; --server-id must be ASCII")
    })?;
    answer.insert(SERVER_ID, id);
    answer.insert(SERVER_COUNT, server.count.into());
    extensions.write(answer);
    metrics.grpc(Method::Connect, 1);
    if server.is_leaving() {
        backend.outbox.finish(None);
    }
    tokio::spawn(receive(server, member, inbound));
    Ok(response)
}

/// The membership of an agent's stream in its tenant. Dropping it removes the stream from the tenant.
struct Member {
    tenant: Arc<Tenant>,
    backend: Arc<Backend>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tenant.leave(&self.backend);
    }
}

/// Returns the identity behind an agent's token. Returns `None` if no setting and no rule needs a token, or if tokens
/// are optional and the agent sent none.
async fn authenticate(
    server: &Server,
    peer: &Peer,
    headers: &MetadataMap,
    agent_id: &str,
) -> Result<Option<Holder>, Status> {
    let Some(reviewer) = &server.reviewer else {
        return Ok(None);
    };
    let audiences = server.tenants.audiences();
    if reviewer.is_optional() && audiences.is_empty() {
        return Ok(None);
    }
    let mut tokens = metadata::values(headers, AUTHORIZATION);
    let checked = match (tokens.pop(), tokens.len()) {
        (None, _) if reviewer.is_optional() => return Ok(None),
        (None, _) => Err("Authentication context was not found in metadata".to_owned()),
        (Some(token), 0) => match token.strip_prefix(BEARER) {
            Some(token) => reviewer
                .review(token, audiences)
                .await
                .map_err(|error| format!("Failed to validate authentication token, err:{error}")),
            None => Err(format!("received token does not have {BEARER:?} prefix")),
        },
        (Some(_), others) => Err(format!("too many ({}) tokens are received", others + 1)),
    };
    match checked {
        Ok(holder) => {
            debug!(
                username = %holder,
                agentID = agent_id,
                "Agent successfully authenticated via token"
            );
            Ok(Some(holder))
        }
        Err(why) => {
            error!(
                agentID = agent_id,
                err = why.as_str(),
                "Client authentication failed"
            );
            server.tenants.refuse_token(peer, &why);
            Err(Status::unknown(why))
        }
    }
}

/// Receives an agent's messages until its stream ends.
async fn receive(server: Arc<Server>, member: Member, mut inbound: Inbound) {
    let (metrics, backend) = (&server.metrics, &member.backend);
    let agent_id = backend.agent_id.as_str();
    loop {
        match inbound.message().await {
            Ok(Some(Ok(message))) => {
                if !inbound.has_continued() {
                    metrics.packets.count(Segment::FromAgent, &message);
                }
                backend.receive(message);
            }
            Ok(Some(Err(malformed))) => {
                metrics
                    .packets
                    .count_malformed(Segment::FromAgent, malformed);
                debug!(
                    agentID = agent_id,
                    "ignoring a packet of an agent: {malformed}"
                );
            }
            Ok(None) => {
                info!(agentID = agent_id, "Receive stream from agent is closed");
                break;
            }
            Err(status) => {
                let (code, text) = failure::at_server(&status);
                metrics.packets.receive_error(Segment::FromAgent, code);
                if code == Code::Cancelled {
                    info!(agentID = agent_id, "Stream read from agent cancelled");
                } else {
                    warn!(
                        agentID = agent_id,
                        err = text.as_str(),
                        "Receive stream from agent read failure"
                    );
                }
                backend.outbox.finish(Some(Status::new(code, text)));
                break;
            }
        }
        // Yields now and then, so that a fast agent does not starve the other tasks of this thread.
        tokio::task::coop::consume_budget().await;
    }
    drop(member);
    metrics.grpc(Method::Connect, -1);
}
