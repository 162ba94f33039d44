// SPDX-License-Identifier: Apache-2.0

//! Limits for clients. Sizes are in bytes.

use std::time::Duration;

use proxy_serve::connection::Limits;

/// Maximum length of a request's body. A pod has at most 3 MiB, the API server's own limit for a request, and a review
/// may contain an old and a new one.
pub const BODY: usize = 7 << 20;

/// Maximum memory of all bodies that are being received. A request that would need more is answered with 503.
pub const BODIES: usize = 32 << 20;

/// Maximum length of the head of an HTTP/1 request, and size of the buffer for answers.
pub const HTTP1_BUFFER: usize = 64 << 10;

/// Maximum length of the headers of an HTTP/2 request.
pub const HTTP2_HEADERS: u32 = 16 << 10;

/// Flow-control window of one HTTP/2 stream.
pub const HTTP2_STREAM_WINDOW: u32 = 256 << 10;

/// Flow-control window of all streams of an HTTP/2 connection together.
pub const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// Maximum number of concurrent requests in one HTTP/2 connection. A Go client opens another connection when it needs
/// more.
pub const HTTP2_STREAMS: u32 = 128;

/// Time limit from the acceptance of a connection to the end of its TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Time limit from the end of a request's head to the end of its body. The API server gives up after at most 30 s.
pub const RECEIVE: Duration = Duration::from_secs(10);

/// Time limits of a connection. Go's clients close an idle one after 90 s; the server waits longer, because a request
/// that a client sends while the server closes is lost.
pub const CONNECTION: Limits = Limits {
    head: Duration::from_secs(5),
    idle: Duration::from_mins(2),
    farewell: Duration::from_secs(5),
};

/// Interval of the checks for changed certificates.
pub const RELOAD: Duration = Duration::from_secs(1);

/// Time for requests in progress when the process shuts down.
pub const DRAIN: Duration = Duration::from_secs(10);
