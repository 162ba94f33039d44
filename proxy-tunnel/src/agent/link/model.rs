// SPDX-License-Identifier: Apache-2.0

//! Tests the life of an agent's connections with real targets on loopback. Server and target act in any order, and
//! often at the same time. In every case the server must receive exactly one end of the connection, after all bytes
//! that the target sent, and no state may remain.

use std::collections::HashSet;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::tests::{Rig, SOON};
use super::*;

/// An event of an established connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The server sends bytes, the client's end of sending, or a request to close.
    Send,
    Finish,
    Close,
    /// The target sends bytes, half-closes, closes, or resets.
    TargetSends,
    TargetFinishes,
    TargetCloses,
    TargetResets,
    /// Other tasks run for a moment.
    Yield,
    /// The stream to the server ends.
    Lose,
}

const STEPS: [Step; 9] = [
    Step::Send,
    Step::Finish,
    Step::Close,
    Step::TargetSends,
    Step::TargetFinishes,
    Step::TargetCloses,
    Step::TargetResets,
    Step::Yield,
    Step::Lose,
];

/// Runs one sequence of steps.
async fn play(extensions: Extensions, steps: &[Step]) {
    let mut rig = Rig::new(extensions).await;
    let (id, target) = rig.connect(7).await;
    let mut target = Some(target);
    let (mut sent, mut is_lost) = (0, false);
    for step in steps {
        match step {
            Step::Send => rig
                .link
                .receive(Message::Data(id, Bytes::from_static(b"x"))),
            Step::Finish => rig.link.receive(Message::Finish(id)),
            Step::Close => rig.link.receive(Message::CloseRequest(id)),
            Step::TargetSends => {
                if let Some(target) = &mut target {
                    // The write fails if the agent has already closed the connection.
                    sent += usize::from(target.write_all(b"y").await.is_ok());
                }
            }
            Step::TargetFinishes => {
                if let Some(target) = &mut target {
                    let _ = target.shutdown().await;
                }
            }
            Step::TargetCloses => target = None,
            Step::TargetResets => {
                if let Some(target) = target.take() {
                    let reset = Some(std::time::Duration::ZERO);
                    socket2::SockRef::from(&target).set_linger(reset).unwrap();
                }
            }
            Step::Yield => run().await,
            Step::Lose => {
                is_lost = true;
                rig.link.lost();
            }
        }
    }
    if is_lost {
        if let Some(mut target) = target {
            let mut rest = [0; 64];
            let end = async { while matches!(target.read(&mut rest).await, Ok(1..)) {} };
            timeout(SOON, end).await.expect("a target is kept");
        }
    } else {
        let mut received = Received::default();
        // Bytes in the other direction may arrive at a closed socket, and the resulting reset overtakes the target's
        // bytes.
        let rude = [Step::Send, Step::Close, Step::TargetResets];
        if !rude.iter().any(|step| steps.contains(step)) {
            while received.bytes < sent {
                received.take(id, rig.next().await);
            }
        }
        rig.link.receive(Message::CloseRequest(id));
        drop(target);
        while received.ends == 0 {
            received.take(id, rig.next().await);
        }
        // Messages that cross the end of the connection must not produce a second end.
        rig.link
            .receive(Message::Data(id, Bytes::from_static(b"late")));
        rig.link.receive(Message::CloseRequest(id));
        rest(&rig).await;
        while let Some(message) = rig.waiting() {
            received.take(id, message);
        }
        assert_eq!(
            received.ends, 1,
            "the server got the end {} times",
            received.ends
        );
        assert!(received.bytes <= sent, "{} bytes of {sent}", received.bytes);
    }
    rest(&rig).await;
}

/// The messages that the server received about one connection.
#[derive(Debug, Default)]
struct Received {
    bytes: usize,
    has_finished: bool,
    ends: usize,
}

impl Received {
    fn take(&mut self, id: i64, message: Message) {
        match message {
            Message::Data(number, data) => {
                assert_eq!(number, id);
                assert!(self.ends == 0 && !self.has_finished, "bytes after the end");
                self.bytes += data.len();
            }
            Message::Finish(number) => {
                assert_eq!(number, id);
                assert!(self.ends == 0 && !self.has_finished, "a second end");
                self.has_finished = true;
            }
            Message::CloseResponse(close) => {
                assert_eq!(close.connect_id, id);
                self.ends += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Yields so that other tasks run for a moment.
async fn run() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Waits until all connections have ended.
async fn rest(rig: &Rig) {
    let left = async {
        while rig.link.shared.metrics.endpoint_connections.get() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, left).await.expect("a connection is left");
    rig.nothing_is_left();
}

/// Tests every sequence of three steps.
#[tokio::test]
async fn every_short_history_ends_once() {
    for extensions in [Extensions::ALL, Extensions::default()] {
        for one in STEPS {
            for two in STEPS {
                for three in STEPS {
                    let steps = [one, two, three];
                    let played = tokio::spawn(async move { play(extensions, &steps).await }).await;
                    assert!(played.is_ok(), "{extensions:?}: {steps:?}");
                }
            }
        }
    }
}

/// The server cancels dials at arbitrary times. Each dial must get at most one response, and a connection that was
/// reported must be closed.
#[tokio::test]
async fn dials_that_are_given_up_leave_nothing() {
    const LAST: i64 = 1000;
    let mut rig = Rig::new(Extensions::ALL).await;
    for random in 1..=100 {
        rig.dial(random);
        for _ in 0..random % 10 {
            tokio::task::yield_now().await;
        }
        rig.link.receive(Message::CloseDial(random));
    }
    rig.dial(LAST);
    let mut answered = HashSet::new();
    while !answered.contains(&LAST) {
        let response = match rig.next().await {
            Message::DialResponse(response) => response,
            Message::CloseResponse(_) => continue,
            other => panic!("{other:?}"),
        };
        assert_eq!(response.error, "");
        assert!(
            answered.insert(response.random),
            "{} twice",
            response.random
        );
        rig.link.receive(Message::CloseRequest(response.connect_id));
    }
    // Connections that the listener never accepted end when it is dropped.
    rig.listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    rest(&rig).await;
}

/// The server sends messages with numbers that belong to no connection, or not yet. The pending dial must still get its
/// response, and another connection must survive.
#[tokio::test]
async fn wrong_numbers_harm_no_dial_and_no_connection() {
    let wrong: [fn(i64) -> Message; 4] = [
        |id| Message::Data(id, Bytes::from_static(b"x")),
        Message::Finish,
        Message::CloseRequest,
        |id| Message::Window(id, u32::MAX),
    ];
    for extensions in [Extensions::ALL, Extensions::default()] {
        for wrong in wrong {
            let mut rig = Rig::new(extensions).await;
            let (first, mut target) = rig.connect(7).await;
            rig.dial(8);
            // The second dial is in progress: its number is reserved but does not belong to a connection yet.
            for id in [first + 1, first + 2, -1, i64::MAX, i64::MIN] {
                rig.link.receive(wrong(id));
            }
            let mut other = rig.listener.accept().await.unwrap().0;
            let second = loop {
                match rig.next().await {
                    Message::DialResponse(response) => break response,
                    // Only numbers that were never assigned get this reply.
                    Message::CloseResponse(close) => assert_ne!(close.connect_id, first + 1),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!((second.random, second.connect_id), (8, first + 1));
            for (id, target) in [(first, &mut target), (first + 1, &mut other)] {
                rig.link
                    .receive(Message::Data(id, Bytes::from_static(b"x")));
                target.read_exact(&mut [0]).await.unwrap();
            }
        }
    }
}

/// Upstream's server forwards the numbers that its clients chose, even if they are equal. Each dial must get a
/// response.
#[tokio::test]
async fn dials_of_one_number_are_all_answered() {
    for gives_up in [false, true] {
        let mut rig = Rig::new(Extensions::default()).await;
        rig.dial(7);
        rig.dial(7);
        if gives_up {
            rig.link.receive(Message::CloseDial(7));
        }
        let mut targets = Vec::new();
        let mut numbers = HashSet::new();
        for _ in 0..2 {
            targets.push(rig.listener.accept().await.unwrap());
            let Message::DialResponse(response) = rig.next().await else {
                panic!("no answer");
            };
            assert_eq!((response.random, response.error.as_str()), (7, ""));
            numbers.insert(response.connect_id);
        }
        assert_eq!(numbers, HashSet::from([1, 2]));
    }
}
