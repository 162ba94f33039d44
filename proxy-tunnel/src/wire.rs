// SPDX-License-Identifier: Apache-2.0

//! Konnectivity's wire format: messages, the gRPC codec, paths and metadata. Upstream generates its types
//! from two proto files; ours are written by hand, so that no protoc is needed. What a peer does with a
//! message lives in `server`, `agent` and `client`.

pub mod codec;
pub mod failure;
pub mod message;
pub mod metadata;
pub mod schema;

pub use codec::{LINK, PacketCodec, Received, TUNNEL};
pub use message::{Malformed, Message};
pub use schema::{CloseResponse, Data, DialRequest, DialResponse, PacketType};

/// Path of the service that agents call.
pub const AGENT_PATH: &str = "/AgentService/Connect";

/// Path of the service that clients call.
pub const PROXY_PATH: &str = "/ProxyService/Proxy";

/// Largest message in bytes that any of the three parties receives: gRPC's default in Go, which upstream
/// does not change.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
