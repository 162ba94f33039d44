// SPDX-License-Identifier: Apache-2.0

//! Why a stream of packets ended early, as the status codes of Go's gRPC, which upstream's metrics and logs contain.
//! tonic reports every HTTP/2 failure as `Unknown` with its cause, and a message over the size limit with another code
//! than Go.

use std::error::Error;
use std::iter::successors;

use tonic::{Code, Status};

/// Returns the code and the text at a server whose client's or agent's stream failed. In Go, both a reset stream and a
/// closed connection cancel the stream's context.
#[must_use]
pub fn at_server(status: &Status) -> (Code, String) {
    if cause::<hyper::Error>(status).is_some() {
        return (Code::Cancelled, "context canceled".to_owned());
    }
    by_contents(status)
}

/// Returns the code and the text at an agent whose server's stream failed.
#[must_use]
pub fn at_agent(status: &Status) -> (Code, String) {
    let Some(error) = cause::<hyper::Error>(status) else {
        return by_contents(status);
    };
    let reason = cause::<h2::Error>(status)
        .filter(|error| error.is_reset())
        .and_then(h2::Error::reason);
    let code = match reason {
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::FLOW_CONTROL_ERROR | h2::Reason::ENHANCE_YOUR_CALM) => {
            Code::ResourceExhausted
        }
        Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(h2::Reason::REFUSED_STREAM) | None => Code::Unavailable,
        Some(_) => Code::Internal,
    };
    let root = successors(Some(error as &dyn Error), |error| (*error).source()).last();
    let root = root.map_or_else(String::new, ToString::to_string);
    (code, format!("error reading from server: {root}"))
}

/// Returns the status of a message that cannot be decoded, or the status that the peer sent.
fn by_contents(status: &Status) -> (Code, String) {
    match status.code() {
        Code::OutOfRange => (
            Code::ResourceExhausted,
            format!("received message larger than max: {}", status.message()),
        ),
        code => (code, status.message().to_owned()),
    }
}

/// Returns the error of type `E` that caused a status.
fn cause<E: Error + 'static>(status: &Status) -> Option<&E> {
    successors(status.source(), |error| (*error).source()).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;
    use h2::Reason;
    use http::Response;
    use tonic::metadata::MetadataMap;

    use super::*;
    use crate::channel::{Channel, Settings};
    use crate::wire::{AGENT_PATH, LINK, Message};

    /// How a server ends its agent's stream.
    #[derive(Debug, Clone, Copy)]
    enum Leaves {
        /// The server resets the stream with this reason.
        Reset(Reason),
        /// The server closes the connection.
        Silently,
        /// The server is suspended, or the network between server and agent is cut.
        Suspended,
    }

    /// Returns the error that an agent reads when its server ends the stream like this.
    async fn read(leaves: Leaves) -> Status {
        let (near, far) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut sender = respond.send_response(Response::new(()), false).unwrap();
            // Sends the headers first.
            let sent = std::future::poll_fn(|context| connection.poll_closed(context));
            let _ = tokio::time::timeout(Duration::from_millis(50), sent).await;
            match leaves {
                Leaves::Reset(reason) => {
                    sender.send_reset(reason);
                    while connection.accept().await.is_some() {}
                }
                Leaves::Silently => {}
                Leaves::Suspended => std::future::pending().await,
            }
        });
        let settings = Settings {
            keepalive: Duration::from_millis(100),
            ping_timeout: Duration::from_millis(100),
            ..Settings::link(Duration::ZERO)
        };
        let channel = Channel::open(near, "server", settings).await.unwrap();
        let messages = stream::pending::<Result<Message, Status>>();
        let opened = channel.stream(AGENT_PATH, LINK, MetadataMap::new(), messages);
        let (_, mut inbound) = opened.await.unwrap();
        let status = inbound.message().await.unwrap_err();
        serving.abort();
        status
    }

    #[tokio::test]
    async fn codes_are_those_of_go() {
        use Leaves::{Reset, Silently, Suspended};
        for (reason, want) in [
            (Reset(Reason::CANCEL), Code::Cancelled),
            (Reset(Reason::REFUSED_STREAM), Code::Unavailable),
            (Reset(Reason::ENHANCE_YOUR_CALM), Code::ResourceExhausted),
            (Reset(Reason::INTERNAL_ERROR), Code::Internal),
            (Silently, Code::Unavailable),
            (Suspended, Code::Unavailable),
        ] {
            let status = read(reason).await;
            let (code, text) = at_agent(&status);
            assert_eq!(code, want, "{reason:?}: {status:?}");
            assert!(text.starts_with("error reading from server: "), "{text}");
            assert_eq!(at_server(&status).0, Code::Cancelled, "{reason:?}");
        }
    }

    #[test]
    fn a_message_beyond_the_limit_exhausts_resources() {
        for read in [at_server, at_agent] {
            let (code, text) = read(&Status::out_of_range("5 bytes"));
            assert_eq!(code, Code::ResourceExhausted);
            assert_eq!(text, "received message larger than max: 5 bytes");
            assert_eq!(read(&Status::aborted("x")), (Code::Aborted, "x".to_owned()));
        }
    }
}
