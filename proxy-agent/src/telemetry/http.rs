// SPDX-License-Identifier: Apache-2.0

//! The HTTP server of `--listen`: a thread of its own, so that neither the agent's passes nor those
//! who ask wait for the other. What it answers stands in `answer.rs`.

mod answer;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info};

use self::answer::Answers;
use super::board::Board;
use crate::config::Config;

/// Connections at the same time. A further one ends the oldest: who is slow keeps nobody else out.
const MAX_CONNECTIONS: usize = 32;
/// A connection has one request, and so much time for it and its answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request that are looked at; the least that hyper takes.
const MAX_REQUEST: usize = 8192;
/// First delay after the address could not be bound; it doubles up to the longest.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How often it is told again that it cannot be.
const REMIND: Duration = Duration::from_mins(10);
/// How long nothing is accepted after the kernel has refused to.
const REST: Duration = Duration::from_millis(100);
/// Address space only: what is not used takes no memory.
const STACK: usize = 1 << 20;

/// Answers on the address of `config`, if there is one, as long as the process lives.
///
/// What goes wrong is logged and tried again: the VIP is more important than who looks at it.
pub fn start(config: &Config, board: &Board) {
    if config.serve.addresses.is_empty() {
        return;
    }
    let (candidates, answers) = (config.serve.addresses.clone(), Answers::new(config, board));
    let thread = thread::Builder::new()
        .name("http".to_owned())
        .stack_size(STACK);
    let spawned = thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => LocalSet::new().block_on(&runtime, serve(&candidates, answers)),
            Err(error) => tell(&candidates, &error),
        }
    });
    if let Err(error) = spawned {
        tell(&config.serve.addresses, &error);
    }
}

fn tell(candidates: &[SocketAddr], error: &io::Error) {
    let address = spelled(candidates);
    error!(
        "no metrics and no health are served: cannot listen on {address}: {error}; give another \
         address with --listen, or an empty one to serve none"
    );
}

/// The first candidate stands for all.
fn spelled(candidates: &[SocketAddr]) -> String {
    candidates
        .first()
        .map(SocketAddr::to_string)
        .unwrap_or_default()
}

async fn serve(candidates: &[SocketAddr], answers: Answers) {
    let answers = Rc::new(answers);
    let listener = bind(candidates).await;
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("cannot accept a connection: {error}");
                sleep(REST).await;
                continue;
            }
        };
        oldest.retain(|connection| !connection.is_finished());
        if oldest.len() >= MAX_CONNECTIONS
            && let Some(connection) = oldest.pop_front()
        {
            connection.abort();
        }
        oldest.push_back(connections.spawn_local(attend(stream, Rc::clone(&answers))));
    }
}

/// Tries until it works.
async fn bind(candidates: &[SocketAddr]) -> TcpListener {
    let mut delay = RETRY;
    let mut told: Option<(String, Instant)> = None;
    loop {
        // As a list: the first that works.
        let error = match TcpListener::bind(candidates).await {
            Ok(listener) => {
                match listener.local_addr() {
                    Ok(address) => info!("serving metrics and health on {address}"),
                    Err(error) => debug!("no address of the listener is known: {error}"),
                }
                return listener;
            }
            Err(error) => error,
        };
        let is_known =
            |(text, at): &(String, Instant)| *text == error.to_string() && at.elapsed() < REMIND;
        if !told.as_ref().is_some_and(is_known) {
            tell(candidates, &error);
            told = Some((error.to_string(), Instant::now()));
        }
        sleep(delay).await;
        delay = (2 * delay).min(LONGEST_RETRY);
    }
}

/// One connection, to its end.
async fn attend(stream: TcpStream, answers: Rc<Answers>) {
    let service = service_fn(|request| answers.to(request));
    let connection = http1::Builder::new()
        .keep_alive(false)
        // Who has nothing more to say may still listen.
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    // Who does not ask properly, or leaves early, is not worth a line.
    let _ = timeout(TIME_LIMIT, connection).await;
}
