// SPDX-License-Identifier: Apache-2.0

//! Tests the replies of an agent to each message, as upstream's agent 0.36.0 sends them, with real targets on loopback.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::flow::OutboxStream;

pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) struct Rig {
    pub(super) link: Arc<Link>,
    sent: OutboxStream,
    pub(super) listener: TcpListener,
}

impl Rig {
    pub(super) async fn new(extensions: Extensions) -> Self {
        let shared = Arc::new(Shared {
            agent_id: "agent".into(),
            metrics: AgentMetrics::new(),
            budget: Arc::new(Budget::new(64 << 20)),
            limits: Limits::default(),
            allowed: Destinations::default(),
        });
        let outbox = Outbox::new();
        Self {
            sent: outbox.stream(),
            link: Link::new("server".into(), outbox, extensions, shared),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub(super) fn dial(&self, random: i64) {
        self.link.receive(Message::DialRequest(DialRequest {
            protocol: "tcp".into(),
            address: self.listener.local_addr().unwrap().to_string(),
            random,
        }));
    }

    pub(super) async fn next(&mut self) -> Message {
        let next = timeout(SOON, self.sent.next()).await;
        next.expect("nothing was sent").unwrap().unwrap()
    }

    /// Returns a message that is waiting to be sent, if there is one.
    pub(super) fn waiting(&mut self) -> Option<Message> {
        self.sent.next().now_or_never()?.transpose().unwrap()
    }

    /// Establishes a connection, and returns its number and the target's end of it.
    pub(super) async fn connect(&mut self, random: i64) -> (i64, TcpStream) {
        self.dial(random);
        let (target, _) = self.listener.accept().await.unwrap();
        let Message::DialResponse(response) = self.next().await else {
            panic!("no answer to the dial");
        };
        assert_eq!((response.random, response.error.as_str()), (random, ""));
        (response.connect_id, target)
    }

    pub(super) fn nothing_is_left(&self) {
        let table = self.link.table();
        assert!(table.pending.is_empty() && table.endpoints.is_empty());
        assert_eq!(self.link.shared.budget.used(), 0);
    }
}

#[tokio::test]
async fn numbers_start_at_one_and_failed_dials_spend_them() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (first, _target) = rig.connect(7).await;
    assert_eq!(first, 1);
    rig.link.receive(Message::DialRequest(DialRequest {
        protocol: "bogus".into(),
        address: "a:1".into(),
        random: 8,
    }));
    assert_eq!(
        rig.next().await,
        Message::dial_error(8, "dial bogus: unknown network bogus")
    );
    let (third, _target) = rig.connect(9).await;
    assert_eq!(third, 3);
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_targets_end_closes() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (id, mut target) = rig.connect(1).await;
    rig.link
        .receive(Message::Data(id, Bytes::from_static(b"ping")));
    let mut got = [0; 4];
    target.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    target.write_all(b"pong").await.unwrap();
    drop(target);
    assert_eq!(
        rig.next().await,
        Message::Data(id, Bytes::from_static(b"pong"))
    );
    assert_eq!(rig.next().await, Message::closed(id, ""));
    rig.nothing_is_left();
}

#[tokio::test]
async fn unknown_connections_are_answered_in_upstreams_words() {
    let mut rig = Rig::new(Extensions::default()).await;
    rig.link.receive(Message::Data(0, Bytes::from_static(b"x")));
    rig.link.receive(Message::Data(5, Bytes::from_static(b"x")));
    rig.link.receive(Message::CloseRequest(6));
    rig.link.receive(Message::CloseDial(1));
    assert_eq!(
        rig.next().await,
        Message::closed(5, "unrecognized connectID")
    );
    assert_eq!(rig.next().await, Message::closed(6, "Unknown connectID"));
    assert!(rig.sent.next().now_or_never().is_none());
}

/// Covers defect 14 of upstream, which loses the last mebibytes before a close. Bytes for a connection that its target
/// has closed cross the close message: no reply to them may overtake it.
#[tokio::test]
async fn late_bytes_cost_no_answer() {
    for extensions in [Extensions::default(), Extensions::ALL] {
        let mut rig = Rig::new(extensions).await;
        let (id, mut target) = rig.connect(1).await;
        target.write_all(&vec![1; 100_000]).await.unwrap();
        if extensions.half_close {
            rig.link.receive(Message::Finish(id));
        }
        drop(target);
        until_forgotten(&rig, id).await;
        rig.link
            .receive(Message::Data(id, Bytes::from_static(b"late")));
        rig.link.receive(Message::CloseRequest(id));
        let mut got = 0;
        let closed = loop {
            match rig.next().await {
                Message::Data(_, data) => got += data.len(),
                Message::Finish(_) => {}
                other => break other,
            }
        };
        assert_eq!((closed, got), (Message::closed(id, ""), 100_000));
        assert_eq!(rig.waiting(), None);
    }
}

async fn until_forgotten(rig: &Rig, id: i64) {
    let forgotten = async {
        while rig.link.find(id).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, forgotten).await.expect("it is kept");
}

#[tokio::test]
async fn everything_before_a_close_arrives() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (id, mut target) = rig.connect(1).await;
    let chunk = Bytes::from(vec![7; 32 * 1024]);
    for _ in 0..64 {
        rig.link.receive(Message::Data(id, chunk.clone()));
    }
    rig.link.receive(Message::CloseRequest(id));
    let mut all = Vec::new();
    timeout(SOON, target.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all.len(), 64 * chunk.len());
    assert_eq!(rig.next().await, Message::closed(id, ""));
}

/// Covers defect 12 of upstream, where a close waits for its target and delays all other connections.
#[tokio::test]
async fn a_close_that_waits_keeps_nothing_else_waiting() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (stalled, _target) = rig.connect(1).await;
    // This is more than the kernel's buffers can hold.
    for _ in 0..15 {
        rig.link
            .receive(Message::Data(stalled, Bytes::from(vec![0; 1 << 20])));
    }
    rig.link.receive(Message::CloseRequest(stalled));
    let (other, mut target) = rig.connect(2).await;
    rig.link
        .receive(Message::Data(other, Bytes::from_static(b"x")));
    target.read_exact(&mut [0]).await.unwrap();
}

/// Covers defect 1 of upstream, with a peer that does not support windows.
#[tokio::test]
async fn a_target_that_does_not_read_is_cut_alone() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (stalled, _target) = rig.connect(1).await;
    let (other, mut target) = rig.connect(2).await;
    let chunk = Bytes::from(vec![0; 256 << 10]);
    let closed = loop {
        rig.link.receive(Message::Data(stalled, chunk.clone()));
        if let Some(message) = rig.sent.next().now_or_never() {
            break message.unwrap().unwrap();
        }
        tokio::task::yield_now().await;
    };
    let Message::CloseResponse(closed) = closed else {
        panic!("{closed:?}");
    };
    assert_eq!(closed.connect_id, stalled);
    assert!(!closed.error.is_empty());
    rig.link
        .receive(Message::Data(other, Bytes::from_static(b"x")));
    target.read_exact(&mut [0]).await.unwrap();
    rig.link.receive(Message::CloseRequest(other));
    drop(target);
    while rig.next().await != Message::closed(other, "") {}
    rig.nothing_is_left();
}

/// Covers defect 6 of upstream, between two peers of this project.
#[tokio::test]
async fn a_half_closed_connection_still_answers() {
    let mut rig = Rig::new(Extensions::ALL).await;
    let (id, mut target) = rig.connect(1).await;
    rig.link
        .receive(Message::Data(id, Bytes::from_static(b"question")));
    rig.link.receive(Message::Finish(id));
    let mut question = String::new();
    target.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    target.write_all(b"answer").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(
        rig.next().await,
        Message::Data(id, Bytes::from_static(b"answer"))
    );
    assert_eq!(rig.next().await, Message::closed(id, ""));
    rig.nothing_is_left();
}

#[tokio::test]
async fn a_target_that_half_closes_is_still_written_to() {
    let mut rig = Rig::new(Extensions::ALL).await;
    let (id, mut target) = rig.connect(1).await;
    target.shutdown().await.unwrap();
    assert_eq!(rig.next().await, Message::Finish(id));
    rig.link
        .receive(Message::Data(id, Bytes::from_static(b"more")));
    rig.link.receive(Message::CloseRequest(id));
    let mut more = String::new();
    target.read_to_string(&mut more).await.unwrap();
    assert_eq!(more, "more");
    assert_eq!(rig.next().await, Message::closed(id, ""));
}

#[tokio::test]
async fn windows_bound_what_is_sent_and_are_granted_by_what_is_taken() {
    let mut rig = Rig::new(Extensions::ALL).await;
    let (id, target) = rig.connect(1).await;
    let (mut reader, mut writer) = target.into_split();
    let flood = tokio::spawn(async move {
        // The loop ends when the connection ends.
        while writer.write_all(&[0; 8192]).await.is_ok() {}
    });
    let mut total = 0;
    while total < WINDOW as usize {
        total += rig.next().await.payload_len();
    }
    assert_eq!(total, WINDOW as usize);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        rig.sent.next().now_or_never().is_none(),
        "the window is used up"
    );
    rig.link.receive(Message::Window(id, 1000));
    assert_eq!(rig.next().await.payload_len(), 1000);
    for _ in 0..8 {
        rig.link
            .receive(Message::Data(id, Bytes::from(vec![0; 64 << 10])));
    }
    let reading =
        tokio::spawn(async move { reader.read_exact(&mut vec![0; 512 << 10]).await.map(|_| ()) });
    let Message::Window(granted_for, granted) = rig.next().await else {
        panic!("no window");
    };
    assert_eq!(granted_for, id);
    assert!(granted >= WINDOW / 4);
    reading.await.unwrap().unwrap();
    flood.abort();
}

#[tokio::test]
async fn a_dial_that_is_given_up_leaves_nothing() {
    let mut rig = Rig::new(Extensions::default()).await;
    // No host responds: the address is reserved for documentation (RFC 5737), or it is unreachable and the dial fails
    // at once.
    rig.link.receive(Message::DialRequest(DialRequest {
        protocol: "tcp".into(),
        address: "192.0.2.1:1".into(),
        random: 1,
    }));
    rig.link.receive(Message::CloseDial(1));
    tokio::task::yield_now().await;
    rig.nothing_is_left();
    let (id, _target) = rig.connect(2).await;
    assert_eq!(id, 2);
}

#[tokio::test]
async fn a_lost_server_resets_all_targets() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (id, mut target) = rig.connect(1).await;
    rig.link
        .receive(Message::Data(id, Bytes::from_static(b"half of a request")));
    target.read_exact(&mut [0; 17]).await.unwrap();
    rig.link.lost();
    let error = timeout(SOON, target.read(&mut [0]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    rig.nothing_is_left();
}

#[tokio::test]
async fn a_target_that_resets_is_an_error_for_the_client() {
    let mut rig = Rig::new(Extensions::default()).await;
    let (id, target) = rig.connect(1).await;
    socket2::SockRef::from(&target)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(target);
    let Message::CloseResponse(closed) = rig.next().await else {
        panic!("no close");
    };
    assert_eq!(closed.connect_id, id);
    assert!(
        closed.error.contains("connection reset by peer"),
        "{}",
        closed.error
    );
}

#[tokio::test]
async fn drain_is_sent_on_an_idle_stream() {
    let mut rig = Rig::new(Extensions::default()).await;
    rig.link.drain();
    assert_eq!(rig.next().await, Message::Drain);
}

#[tokio::test]
async fn a_connection_that_rests_takes_little_memory() {
    let rig = Rig::new(Extensions::default()).await;
    let request = DialRequest {
        protocol: "tcp".into(),
        address: "127.0.0.1:1".into(),
        random: 1,
    };
    let (_sender, given_up) = oneshot::channel();
    let future = Arc::clone(&rig.link).dial_and_serve(request, 1, given_up);
    let size = size_of_val(&future);
    assert!(size <= 1536, "{size} bytes");
}
