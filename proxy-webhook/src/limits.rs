// SPDX-License-Identifier: Apache-2.0

//! The bounds for clients: sizes in bytes, times, numbers.

use std::time::Duration;

use proxy_serve::connection::Limits;

/// The longest body of a request. A pod is at most 3 MiB (the API server's own limit for a request), and
/// a review may hold an old and a new one.
pub const BODY: usize = 7 << 20;

/// Total memory of all bodies that are being received. A request that would need more is refused
/// with 503.
pub const BODIES: usize = 32 << 20;

/// The longest head of an HTTP/1 request, and the buffer for answers.
pub const HTTP1_BUFFER: usize = 64 << 10;

/// The longest list of headers of an HTTP/2 request.
pub const HTTP2_HEADERS: u32 = 16 << 10;

/// Flow-control window of one HTTP/2 stream.
pub const HTTP2_STREAM_WINDOW: u32 = 256 << 10;

/// Flow-control window of all streams of an HTTP/2 connection together.
pub const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// Requests at once in one HTTP/2 connection. A Go client opens a further connection when it needs more.
pub const HTTP2_STREAMS: u32 = 128;

/// From the connection to the end of the TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// From the head to the end of the body. The API server itself gives up after 30 s at the latest.
pub const RECEIVE: Duration = Duration::from_secs(10);

/// A connection's: Go's clients close an idle one after 90 s, and it is better if they do it.
pub const CONNECTION: Limits = Limits {
    head: Duration::from_secs(5),
    idle: Duration::from_mins(2),
    farewell: Duration::from_secs(5),
};

/// Between two looks at the certificates.
pub const RELOAD: Duration = Duration::from_secs(1);

/// Time to finish requests in progress when the process receives SIGTERM.
pub const DRAIN: Duration = Duration::from_secs(10);
