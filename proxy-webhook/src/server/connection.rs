// SPDX-License-Identifier: Apache-2.0

//! One connection: the TLS handshake, HTTP/1.1 or HTTP/2 as agreed in it, and its end.

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::activity::{Activity, Overdue, Watched};
use super::{Phase, Shared};
use crate::limits;
use crate::tls::HTTP2;

/// Serves a connection to its end.
pub async fn serve(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let session = match handshake(stream, shared).await {
        Ok(session) => session,
        Err(why) => {
            shared.metrics.handshake_failures.inc();
            debug!("{peer}: no TLS session: {why}");
            return;
        }
    };
    let activity = Arc::new(Activity::new());
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
            // `Activity` has finer ones.
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
    // Answers are written whole: waiting for more only costs time.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let acceptor = TlsAcceptor::from(shared.current.config());
    match timeout(limits::HANDSHAKE, acceptor.accept(stream)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not within {} s", limits::HANDSHAKE.as_secs())),
    }
}

/// What happens to a connection.
enum Event<E> {
    Ended(Result<(), E>),
    Drain,
    Alarm,
}

/// Runs a connection until it ends by itself, takes too long, or the process drains.
async fn drive<C>(
    connection: C,
    activity: &Activity,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), String>
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    // Moved forward only, not with each request: when it fires, it is looked whether there is a reason.
    let mut alarm = pin!(sleep_until(activity.deadline().0));
    let mut leaving = false;
    loop {
        let progress = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Event::Ended(ended));
            }
            // A head has begun: there is less time for it than for asking nothing.
            let (deadline, _) = activity.deadline();
            if !leaving && deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(context).map(|()| Event::Alarm)
        });
        let event = tokio::select! {
            // First, so that an answer that is sent from now on tells the client that it is the last one.
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Draining), if !leaving => Event::Drain,
            event = progress => event,
        };
        match event {
            Event::Ended(ended) => return ended.map_err(|error| error.to_string()),
            Event::Drain => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            Event::Alarm => {
                let (deadline, overdue) = activity.deadline();
                if deadline > Instant::now() {
                    alarm.as_mut().reset(deadline);
                } else if leaving || overdue == Overdue::Head {
                    return Err(format!("cut: {overdue:?} for too long"));
                } else {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                    alarm.as_mut().reset(Instant::now() + limits::FAREWELL);
                }
            }
        }
    }
}
