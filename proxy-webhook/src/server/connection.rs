// SPDX-License-Identifier: Apache-2.0

//! One connection: the TLS handshake, HTTP/1.1 or HTTP/2 as negotiated in it, and its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proxy_serve::connection::{Activity, Watched, drive};
use proxy_serve::tls::HTTP2;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::Shared;
use crate::limits;

/// Serves a connection to its end.
pub async fn serve(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let session = match handshake(stream, shared).await {
        Ok(session) => session,
        Err(why) => {
            shared.metrics.handshake_failures.inc();
            debug!("{peer}: the TLS handshake failed: {why}");
            return;
        }
    };
    let activity = Arc::new(Activity::new(limits::CONNECTION));
    let owned = (Arc::clone(shared), Arc::clone(&activity));
    let service = service_fn(move |request| {
        let (shared, activity) = owned.clone();
        async move {
            let _busy = activity.request();
            Ok::<_, Infallible>(shared.service.answer(request).await)
        }
    });
    let is_http2 = session.get_ref().1.alpn_protocol() == Some(HTTP2);
    let io = TokioIo::new(session);
    let phase = shared.phase.clone();
    let ended = if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
            .max_concurrent_streams(limits::HTTP2_STREAMS)
            .max_header_list_size(limits::HTTP2_HEADERS)
            .serve_connection(io, service);
        drive(connection, &activity, phase).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // `Activity` limits the time for the head.
            .header_read_timeout(None)
            .max_buf_size(limits::HTTP1_BUFFER)
            .serve_connection(Watched::new(io, Arc::clone(&activity)), service);
        drive(connection, &activity, phase).await
    };
    if let Err(why) = ended {
        debug!("{peer}: {why}");
    }
}

async fn handshake(stream: TcpStream, shared: &Shared) -> Result<TlsStream<TcpStream>, String> {
    // Each answer is written at once, so Nagle's algorithm would only delay it.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let acceptor = TlsAcceptor::from(shared.current.get().config.clone());
    match timeout(limits::HANDSHAKE, acceptor.accept(stream)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!(
            "it did not end within {} s",
            limits::HANDSHAKE.as_secs()
        )),
    }
}
