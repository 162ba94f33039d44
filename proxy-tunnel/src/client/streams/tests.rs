// SPDX-License-Identifier: Apache-2.0

//! Tests what happens to written bytes when their tunnel is dropped and the server has no window for them, or opens it
//! in time.

use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::*;

/// The default window of a server that announces no other (RFC 9113, section 6.5.2), in bytes.
const ROOM: usize = 65_535;

/// The number of bytes that the client sends.
const SENT: usize = 200_000;

/// A time limit that suffices on a loaded machine.
const SOON: Duration = Duration::from_secs(20);

/// How the server of a test reads the bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// The server reads no bytes, so the client can send only one window.
    Nothing,
    /// The server reads with pauses that are shorter than the client's grace period.
    Slowly,
}

/// Serves one stream. Returns the number of received bytes, and the reason if the stream was reset.
async fn serve(io: DuplexStream, reads: Reads) -> (usize, Option<Reason>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let (request, mut respond) = connection.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
    let _answers: SendStream<Bytes> = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    let mut count = 0;
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                count += data.len();
                if reads == Reads::Slowly {
                    sleep(GRACE / 20).await;
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
            }
            Err(error) => return (count, error.reason()),
        }
    }
    (count, None)
}

/// Returns a stream that sends, and the task that returns its server's result.
async fn opened(reads: Reads) -> (Opened, tokio::task::JoinHandle<(usize, Option<Reason>)>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn(serve(far, reads));
    let streams = Streams::begin(near, "server").await.unwrap();
    let data = Message::Data(1, Bytes::from(vec![0; SENT]));
    let messages = stream::iter([Ok(data)]);
    let opened = streams.open(MetadataMap::new(), messages).await.unwrap();
    (opened, serving)
}

#[tokio::test]
async fn a_dropped_stream_does_not_wait_for_a_window_that_stays_closed() {
    let (opened, serving) = opened(Reads::Nothing).await;
    sleep(GRACE * 2).await;
    assert!(!serving.is_finished(), "as long as it is used it waits");
    let Opened { inbound, hold, .. } = opened;
    let dropped = Instant::now();
    drop(hold);
    let (count, reason) = timeout(SOON, serving).await.unwrap().unwrap();
    assert_eq!((count, reason), (ROOM, Some(Reason::CANCEL)));
    assert!(dropped.elapsed() >= GRACE);
    drop(inbound);
}

#[tokio::test]
async fn a_dropped_stream_sends_what_was_written_to_a_server_that_reads() {
    let (opened, serving) = opened(Reads::Slowly).await;
    let Opened { inbound, hold, .. } = opened;
    drop(hold);
    let (count, reason) = timeout(SOON, serving).await.unwrap().unwrap();
    assert!(count > SENT, "{count}");
    assert_eq!(reason, None);
    drop(inbound);
}

/// Tests that the tasks that wait for a stream end when the server resets the stream or disconnects.
#[tokio::test]
async fn an_ended_stream_is_an_error_for_its_reader() {
    let (opened, serving) = opened(Reads::Nothing).await;
    let Opened {
        mut inbound, hold, ..
    } = opened;
    serving.abort();
    let read = timeout(SOON, inbound.next()).await.unwrap();
    assert!(read.unwrap().is_err());
    drop(hold);
}
