// SPDX-License-Identifier: Apache-2.0

//! Konnectivity's wire format: messages, the bodies of gRPC that they make, paths and metadata. Upstream generates its
//! types from two proto files; ours are written by hand, so that no protoc is needed. What a peer does with a
//! message lives in `server`, `agent` and `client`.

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

/// The type of the content of all requests and answers.
pub const GRPC: &str = "application/grpc";

/// Path of the service that agents call.
pub const AGENT_PATH: &str = "/AgentService/Connect";

/// Path of the service that clients call.
pub const PROXY_PATH: &str = "/ProxyService/Proxy";

/// Largest message in bytes that any of the three parties receives: gRPC's default in Go, which upstream
/// does not change.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
