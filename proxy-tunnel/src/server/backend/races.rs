// SPDX-License-Identifier: Apache-2.0

//! Threads that act on one tunnel at the same moment, as the tasks of a server do: the task that reads the agent's
//! stream, and the two halves of the client's stream. The model orders whole steps; here, steps overlap. In every case
//! the agent is asked to close once, the client is told of one outcome and one end, and no state is left.

use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::flow::inbox::Item;

/// The agent's ID for the connection.
const ID: i64 = 1;

/// How often each combination of three scripts runs.
const ROUNDS: usize = 50;

/// The steps of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    Answer,
    Data,
    Finish,
    Close,
    GiveUp,
    /// The agent's stream ends.
    Lose,
}

const THEIRS: [&[Theirs]; 9] = [
    &[],
    &[Theirs::Answer],
    &[Theirs::Answer, Theirs::Data],
    &[Theirs::Answer, Theirs::Data, Theirs::Close],
    &[Theirs::Answer, Theirs::Finish, Theirs::Close],
    &[Theirs::Answer, Theirs::Close, Theirs::Lose],
    &[Theirs::Answer, Theirs::Lose],
    &[Theirs::GiveUp],
    &[Theirs::Lose],
];

/// The steps of one half of the client's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    /// Asks for the end of the connection, if it is established.
    Ask,
    /// Ends the agent's side of the tunnel, and reads on.
    Detach,
    /// The agent's time to answer has passed.
    Expire,
    /// The client disconnects.
    Release,
}

const RECEIVER: [&[Ours]; 6] = [
    &[],
    &[Ours::Ask],
    &[Ours::Detach],
    &[Ours::Expire],
    &[Ours::Ask, Ours::Detach],
    &[Ours::Expire, Ours::Detach],
];

const SENDER: [&[Ours]; 3] = [&[], &[Ours::Detach], &[Ours::Release]];

fn theirs(backend: &Arc<Backend>, tunnel: &Arc<Tunnel>, script: &[Theirs]) {
    for step in script {
        match step {
            Theirs::Answer => backend.receive(Message::DialResponse(DialResponse {
                error: String::new(),
                connect_id: ID,
                random: tunnel.number,
            })),
            Theirs::Data => backend.receive(Message::Data(ID, Bytes::from_static(b"x"))),
            Theirs::Finish => backend.receive(Message::Finish(ID)),
            Theirs::Close => backend.receive(Message::closed(ID, "")),
            Theirs::GiveUp => backend.receive(Message::CloseDial(tunnel.number)),
            Theirs::Lose => backend.lost(),
        }
    }
}

fn ours(tunnel: &Arc<Tunnel>, script: &[Ours]) {
    for step in script {
        match step {
            // A stream that has ended accepts no messages.
            Ours::Ask if tunnel.connect_id() != 0 => drop(tunnel.ask_to_close()),
            Ours::Ask => {}
            Ours::Detach => tunnel.detach(),
            Ours::Expire => drop(tunnel.expire()),
            Ours::Release => tunnel.release(),
        }
    }
}

/// The scripts that run at the same time.
type Scripts = (&'static [Theirs], &'static [Ours], &'static [Ours]);

/// The tunnel, and the scripts that act on it.
type Scene = (Arc<Tunnel>, Scripts);

/// Hands the scene to the two other threads.
#[derive(Default)]
struct Stage(Mutex<Option<Scene>>);

impl Stage {
    fn set(&self, scene: Option<Scene>) {
        *self.0.lock().unwrap() = scene;
    }

    fn get(&self) -> Option<Scene> {
        self.0.lock().unwrap().clone()
    }
}

/// Counts the outcomes of the dial and the ends that the client received.
fn learned(inbox: &Inbox<Event>) -> (usize, usize) {
    let (mut outcomes, mut ends) = (0, 0);
    let mut context = Context::from_waker(Waker::noop());
    while let Poll::Ready(item) = inbox.poll_next(&mut context) {
        match item {
            Item::Event(Event::Dialed(_) | Event::DialClosed(_) | Event::PendingLost(_)) => {
                outcomes += 1;
            }
            Item::Event(Event::Closed(_) | Event::Lost(_)) => ends += 1,
            _ => {}
        }
    }
    (outcomes, ends)
}

fn check(backend: &Arc<Backend>, tunnel: &Arc<Tunnel>, (theirs, receiver, sender): Scripts) {
    let shared = &backend.shared;
    let (outcomes, ends) = learned(&tunnel.inbox);
    assert!(
        outcomes <= 1 && ends <= 1,
        "{outcomes} outcomes, {ends} ends"
    );
    if receiver.is_empty() && sender.is_empty() {
        let closes = [Theirs::Close, Theirs::Lose].map(|step| theirs.contains(&step));
        let is_answered = theirs.contains(&Theirs::Answer);
        assert_eq!(
            ends > 0,
            is_answered && closes.contains(&true),
            "the end is lost"
        );
        // A cut replaces all waiting messages, including the dial's answer.
        let has_learned = outcomes + ends > 0;
        assert_eq!(has_learned, !theirs.is_empty(), "the outcome is lost");
    }
    tunnel.release();
    let mut asked = 0;
    let mut sent = backend.outbox.stream();
    while let Some(Some(Ok(message))) = sent.next().now_or_never() {
        asked += usize::from(message == Message::CloseRequest(ID));
    }
    let is_lost = theirs.contains(&Theirs::Lose);
    let is_open = theirs.contains(&Theirs::Answer) && !theirs.contains(&Theirs::Close);
    assert!(asked <= 1, "asked to close {asked} times");
    if is_open && !is_lost {
        assert_eq!(asked, 1, "the agent keeps its connection");
        backend.receive(Message::closed(ID, ""));
    }
    assert_eq!(backend.counts(), (0, 0, 0), "something is left");
    assert_eq!(shared.metrics.open(), (0, 0), "a gauge is off");
    assert_eq!(shared.budget.used(), 0, "memory is left");
    backend.lost();
}

/// Runs each script of the agent together with each pair of scripts of the client's halves.
#[test]
fn ends_at_the_same_moment_are_one_end() {
    let shared = Arc::new(Shared::for_tests());
    let stage = Stage::default();
    let (begin, end) = (Barrier::new(3), Barrier::new(3));
    thread::scope(|scope| {
        for half in 0..2 {
            let (stage, begin, end) = (&stage, &begin, &end);
            scope.spawn(move || {
                loop {
                    begin.wait();
                    let Some((tunnel, (_, receiver, sender))) = stage.get() else {
                        return;
                    };
                    ours(&tunnel, [receiver, sender][half]);
                    drop(tunnel);
                    end.wait();
                }
            });
        }
        let mut failed = None;
        let scripts = THEIRS.iter().flat_map(|theirs| {
            RECEIVER.iter().flat_map(move |receiver| {
                SENDER
                    .iter()
                    .map(move |sender| (*theirs, *receiver, *sender))
            })
        });
        'all: for scripts in scripts {
            for extensions in [Extensions::ALL, Extensions::default()] {
                for _ in 0..ROUNDS {
                    let backend = Backend::new(
                        "agent".into(),
                        Identifiers::default(),
                        extensions,
                        Arc::clone(&shared),
                    );
                    let request = DialRequest {
                        protocol: "tcp".into(),
                        address: "a:1".into(),
                        random: 7,
                    };
                    let inbox = Arc::new(shared.inbox(Mode::Grpc));
                    let tunnel = backend.dial(request, inbox).unwrap();
                    stage.set(Some((Arc::clone(&tunnel), scripts)));
                    begin.wait();
                    theirs(&backend, &tunnel, scripts.0);
                    end.wait();
                    // A panic here would leave the other threads waiting at the barrier.
                    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        check(&backend, &tunnel, scripts);
                    }));
                    if checked.is_err() {
                        failed = Some((extensions, scripts));
                        break 'all;
                    }
                }
            }
        }
        stage.set(None);
        begin.wait();
        assert!(failed.is_none(), "{failed:?}");
    });
}
