// SPDX-License-Identifier: Apache-2.0

//! Konnectivity's wire format: the messages, the gRPC bodies that carry them, the paths and the metadata. Upstream
//! generates its types from two proto files; the types here are written by hand, so that no protoc is needed. `server`,
//! `agent` and `client` implement what a peer does with a message.

mod data;
pub mod failure;
pub mod inbound;
pub mod message;
pub mod metadata;
pub mod outbound;
pub mod schema;

pub use inbound::{Inbound, Received};
pub use message::{Malformed, Message};
pub use outbound::{Encode, LINK, Outbound, TUNNEL};
pub use schema::{CloseResponse, Data, DialRequest, DialResponse, PacketType};

/// The content type of all requests and responses.
pub const GRPC: &str = "application/grpc";

/// The path of the service that agents call.
pub const AGENT_PATH: &str = "/AgentService/Connect";

/// The path of the service that clients call.
pub const PROXY_PATH: &str = "/ProxyService/Proxy";

/// The maximum size of a message that server, agent or client receives, in bytes: gRPC's default in Go, which upstream
/// does not change.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
