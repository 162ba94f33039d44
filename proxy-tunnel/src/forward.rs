// SPDX-License-Identifier: Apache-2.0

//! Code of HTTP proxies that the server and the sidecar share: the first request of a connection ([`ask`], [`head`]),
//! and requests in absolute form with all that follow on the same connection ([`absolute`]). Each program implements
//! [`Dial`] to reach its targets.

pub mod absolute;
pub mod ask;
pub mod head;
pub mod pool;
pub mod request;

use std::future::Future;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Refusal;

/// Connects to targets.
pub trait Dial: Send + Sync + 'static {
    /// A connection to a target. It must report an end of file only if the target ended the stream, and an error if the
    /// connection was cut.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `target`, a `host:port`. Dropping the future cancels the dial.
    fn dial(&self, target: &str) -> impl Future<Output = Result<Self::Io, Failure>> + Send;
}

/// The reason why a target was not reached, as the client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status code of the response.
    pub status: StatusCode,
    /// The reason.
    pub text: String,
}

/// Returns the status code for a client whose dial a server has refused: the server's own code if that is an error
/// code, otherwise 502.
#[must_use]
pub fn status_of(refusal: &Refusal) -> StatusCode {
    let status = match refusal {
        Refusal::Status { code, .. } => StatusCode::from_u16(*code).ok(),
        Refusal::Malformed | Refusal::Io(_) => None,
    };
    status
        .filter(|status| status.is_client_error() || status.is_server_error())
        .unwrap_or(StatusCode::BAD_GATEWAY)
}
