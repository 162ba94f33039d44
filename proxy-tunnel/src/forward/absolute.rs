// SPDX-License-Identifier: Apache-2.0

//! Serves requests in absolute form, one after the other on a client's connection, each to its own target. A request is
//! aborted when the client disconnects. If a response is cut, the client's connection is closed, so that the response
//! never appears complete.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, request as http_request};
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proxy_serve::connection::{Activity, Busy, Limits, Watched, drive};
use proxy_serve::reload::chain;
use proxy_serve::shutdown::Phase;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tracing::debug;

use super::head::LONGEST;
use super::pool::{Outgoing, Pool, Sender};
use super::{Dial, Failure, request};

/// The time limits of a client's connection. Prometheus closes its connections after five minutes without a scrape.
const LIMITS: Limits = Limits {
    head: Duration::from_mins(1),
    idle: Duration::from_mins(6),
    farewell: Duration::from_secs(10),
};

/// The error text for a client that sends CONNECT after requests in absolute form.
const CONNECT: &str =
    "CONNECT must be the first request of a connection; open another connection for it\n";

/// Serves all requests of a connection, including the first one.
///
/// # Errors
/// Returns the reason for the log if the connection ended early.
pub async fn serve<I, D>(
    io: I,
    dial: Arc<D>,
    pool: Arc<Pool>,
    phase: watch::Receiver<Phase>,
) -> Result<(), String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Dial,
{
    let activity = Arc::new(Activity::new(LIMITS));
    let owned = (dial, pool, Arc::clone(&activity));
    let service = service_fn(move |request| {
        let (dial, pool, activity) = owned.clone();
        async move {
            let busy = activity.request();
            let answer = answer(request, &*dial, &pool).await;
            Ok::<_, Infallible>(answer.map(|inner| Answer { inner, _busy: busy }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // `Activity` applies more precise limits.
        .header_read_timeout(None)
        .max_buf_size(LONGEST)
        .preserve_header_case(true)
        .serve_connection(
            Watched::new(TokioIo::new(io), Arc::clone(&activity)),
            service,
        );
    drive(connection, &activity, phase).await
}

/// The body of a response: the target's, or a text of this proxy.
type Content = Either<Incoming, Full<Bytes>>;

/// The body of a response. The connection counts as busy until the body is sent.
struct Answer {
    inner: Content,
    _busy: Busy,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = <Content as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

async fn answer<D: Dial>(
    request: Request<Incoming>,
    dial: &D,
    pool: &Arc<Pool>,
) -> Response<Content> {
    if request.method() == Method::CONNECT {
        return text(StatusCode::METHOD_NOT_ALLOWED, CONNECT);
    }
    let target = match request::target(request.uri()) {
        Ok(target) => target,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let (mut parts, body) = request.into_parts();
    request::to_target(&mut parts);
    match exchange(&target, parts, body, dial, pool).await {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            request::to_client(&mut parts);
            Response::from_parts(parts, Either::Left(body))
        }
        Err(failure) => {
            debug!("{target}: {}: {}", failure.status, failure.text);
            text(failure.status, format!("{}\n", failure.text))
        }
    }
}

/// Sends a request to its target, over an idle connection or a new one.
async fn exchange<D: Dial>(
    target: &str,
    parts: http_request::Parts,
    body: Incoming,
    dial: &D,
    pool: &Arc<Pool>,
) -> Result<Response<Incoming>, Failure> {
    // A safe request without a body can be sent again if a reused connection is closed at that moment (RFC 9110
    // §9.2.2): a target may close an idle connection at any time.
    let is_safe = matches!(parts.method, Method::GET | Method::HEAD) && body.is_end_stream();
    let spare = is_safe.then(|| parts.clone());
    let mut request = Request::from_parts(parts, Outgoing::Left(body));
    loop {
        let (mut sender, is_used) = match pool.take(target) {
            Some(sender) => (sender, true),
            None => (open(target, dial).await?, false),
        };
        let mut failed = match sender.try_send_request(request).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(bad_gateway("the target switches protocols unasked"));
            }
            Ok(response) => {
                keep(target.to_owned(), sender, Arc::clone(pool));
                return Ok(response);
            }
            Err(failed) => failed,
        };
        let again = failed.take_message().or_else(|| {
            let parts = spare.clone()?;
            Some(Request::from_parts(parts, Outgoing::Right(Empty::new())))
        });
        request = match again {
            Some(request) if is_used => request,
            _ => return Err(bad_gateway(&chain(&failed.into_error()))),
        };
    }
}

async fn open<D: Dial>(target: &str, dial: &D) -> Result<Sender, Failure> {
    let io = dial.dial(target).await?;
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(LONGEST)
        .preserve_header_case(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| bad_gateway(&chain(&error)))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // The request on this connection reports the error to the client.
            debug!("a connection to a target has ended: {error}");
        }
    });
    Ok(sender)
}

/// Puts a connection into the pool as soon as the response on it has been read.
fn keep(target: String, mut sender: Sender, pool: Arc<Pool>) {
    tokio::spawn(async move {
        if sender.ready().await.is_ok() {
            pool.put(target, sender);
        }
    });
}

fn bad_gateway(why: &str) -> Failure {
    Failure {
        status: StatusCode::BAD_GATEWAY,
        text: format!("no answer of the target: {why}"),
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Content> {
    let mut response = Response::new(Either::Right(Full::new(text.into())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
