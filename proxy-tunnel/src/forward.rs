// SPDX-License-Identifier: Apache-2.0

//! Code that the server and the sidecar share as HTTP proxies: the first request of a connection ([`ask`], [`head`]),
//! and requests in absolute form with all that follows on their connection ([`absolute`]). How a target is reached is
//! the program's business: it is a [`Dial`].

pub mod absolute;
pub mod ask;
pub mod head;
pub mod pool;
pub mod request;

use std::future::Future;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::Refusal;

/// Reaches targets.
pub trait Dial: Send + Sync + 'static {
    /// A connection to a target: an end of file is the target's, and a cut is an error.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `target`, a `host:port`. Dropping the future gives it up.
    fn dial(&self, target: &str) -> impl Future<Output = Result<Self::Io, Failure>> + Send;
}

/// Why a target is not reached, as the client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    /// The reason.
    pub text: String,
}

/// The status for a client whose dial a server has refused: the server's, if it is one of an error.
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
