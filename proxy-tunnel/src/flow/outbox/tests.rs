// SPDX-License-Identifier: Apache-2.0

//! The order in which the lanes' messages are sent, and when the sources may be read.

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};

use super::*;

fn data(connect_id: i64, length: usize) -> Message {
    Message::Data(connect_id, Bytes::from(vec![0; length]))
}

async fn take(stream: &mut OutboxStream) -> Message {
    stream.next().await.unwrap().unwrap()
}

#[tokio::test]
async fn lanes_take_turns_and_keep_their_order() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    let (one, two) = (outbox.lane(None), outbox.lane(None));
    for _ in 0..3 {
        one.push(data(1, 1)).unwrap();
    }
    one.push(Message::CloseRequest(1)).unwrap();
    two.push(data(2, 1)).unwrap();
    outbox.control(Message::Drain).unwrap();
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(take(&mut stream).await);
    }
    let want = [
        Message::Drain,
        data(1, 1),
        data(2, 1),
        data(1, 1),
        data(1, 1),
        Message::CloseRequest(1),
    ];
    assert_eq!(order, want);
    assert!(stream.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_full_lane_waits_and_others_do_not() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    let (one, two) = (outbox.lane(None), outbox.lane(None));
    one.push(data(1, LANE)).unwrap();
    assert!(one.ready().now_or_never().is_none());
    assert_eq!(two.ready().now_or_never(), Some(Ok(CHUNK)));
    let waits = one.ready();
    take(&mut stream).await;
    assert_eq!(waits.await, Ok(CHUNK));
}

#[tokio::test]
async fn a_full_stream_leaves_one_chunk_to_each() {
    let outbox = Outbox::new();
    let _stream = outbox.stream();
    let (one, two) = (outbox.lane(None), outbox.lane(None));
    one.push(data(1, LINK)).unwrap();
    assert_eq!(two.ready().now_or_never(), Some(Ok(CHUNK)));
    two.push(data(2, 1)).unwrap();
    assert_eq!(two.ready().now_or_never(), None);
}

#[tokio::test]
async fn a_window_bounds_what_is_sent() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    let lane = outbox.lane(Some(10));
    assert_eq!(lane.ready().now_or_never(), Some(Ok(10)));
    lane.push(data(1, 12)).unwrap();
    take(&mut stream).await;
    assert_eq!(lane.ready().now_or_never(), None);
    lane.grant(2);
    assert_eq!(lane.ready().now_or_never(), None);
    lane.grant(3);
    assert_eq!(lane.ready().now_or_never(), Some(Ok(3)));
}

#[tokio::test]
async fn a_dropped_lane_is_sent_to_its_end() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    let lane = outbox.lane(None);
    lane.push(data(1, 1)).unwrap();
    lane.push(Message::CloseRequest(1)).unwrap();
    drop(lane);
    assert_eq!(take(&mut stream).await, data(1, 1));
    assert_eq!(take(&mut stream).await, Message::CloseRequest(1));
    assert!(outbox.lock().lanes.is_empty());
}

#[tokio::test]
async fn the_end_is_seen_by_all() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    let lane = outbox.lane(None);
    lane.push(data(1, 1)).unwrap();
    outbox.finish(Some(Status::unavailable("gone")));
    assert_eq!(lane.ready().await, Err(Ended));
    assert_eq!(take(&mut stream).await, data(1, 1));
    let status = stream.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(stream.next().await.is_none());
    let cut = Outbox::new();
    let lane = cut.lane(None);
    drop(cut.stream());
    assert_eq!(lane.push(Message::Drain), Err(Ended));
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answers_is_given_up() {
    let outbox = Outbox::new();
    let mut stream = outbox.stream();
    for _ in 0..MOST {
        outbox.control(Message::Drain).unwrap();
    }
    assert_eq!(outbox.control(Message::Drain), Err(Ended));
    assert!(outbox.has_ended());
    assert!(stream.next().await.is_none());
}
