// SPDX-License-Identifier: Apache-2.0

//! Checks the life of tunnels against a model: clients and an agent act in any order while packets are in flight in
//! both directions. However a tunnel ends (by the client, by the agent, by a time limit, by the loss of the agent's
//! stream, or by several of these at once), it ends once: each side is told of one end only, and no state is left.

use std::collections::{BTreeMap, VecDeque};

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::flow::OutboxStream;
use crate::flow::inbox::Item;

/// The possible events. The argument is the number of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The client dials.
    Dial(usize),
    /// The client sends data.
    Send(usize),
    /// The client closes its sending side.
    Finish(usize),
    /// The client asks for the end of the connection, and continues to read.
    Close(usize),
    /// The client cancels the dial, or its stream ends; it continues to read.
    Detach(usize),
    /// The client disconnects.
    Vanish(usize),
    /// The client's dial exceeds its time limit.
    Expire(usize),
    /// The agent receives the next packet.
    Take,
    /// The agent connects for the oldest dial, or fails to connect.
    Connect,
    Fail,
    /// The agent cancels the oldest dial.
    GiveUp,
    /// A target sends data, closes its sending side, or closes the connection.
    TargetSends,
    TargetFinishes,
    TargetCloses,
    /// The agent announces that it is about to exit.
    Drain,
    /// The server receives the next packet from the agent.
    Deliver,
    /// The agent's stream ends.
    Lose,
}

/// All steps, for one client.
const STEPS: [Step; 17] = [
    Step::Dial(0),
    Step::Send(0),
    Step::Finish(0),
    Step::Close(0),
    Step::Detach(0),
    Step::Vanish(0),
    Step::Expire(0),
    Step::Take,
    Step::Connect,
    Step::Fail,
    Step::GiveUp,
    Step::TargetSends,
    Step::TargetFinishes,
    Step::TargetCloses,
    Step::Drain,
    Step::Deliver,
    Step::Lose,
];

/// An agent that follows the protocol, with its side of the connections.
#[derive(Debug, Default)]
struct Agent {
    /// The dial ID and the address of each dial.
    dials: VecDeque<(i64, String)>,
    next: i64,
    /// Connections by ID; true while the connection is open.
    connections: BTreeMap<i64, bool>,
    /// The target addresses of the connections, by ID.
    addresses: BTreeMap<i64, String>,
    /// The number of requests to close, by connection ID.
    asked: BTreeMap<i64, usize>,
    /// The packets in flight to the server.
    sent: VecDeque<Message>,
    /// False for upstream's agent, which ignores `CloseDial` and answers for connections that it has already closed.
    is_ours: bool,
}

impl Agent {
    fn receive(&mut self, message: Message) {
        match message {
            Message::DialRequest(request) => {
                let is_known = self
                    .dials
                    .iter()
                    .any(|(number, _)| *number == request.random);
                assert!(!is_known, "two dials have the number {}", request.random);
                self.dials.push_back((request.random, request.address));
            }
            Message::CloseDial(random) if self.is_ours => {
                self.dials.retain(|(number, _)| *number != random);
            }
            Message::CloseRequest(number) => {
                *self.asked.entry(number).or_default() += 1;
                let open = self
                    .connections
                    .get_mut(&number)
                    .expect("it was never opened");
                let was_open = std::mem::replace(open, false);
                if was_open {
                    self.sent.push_back(Message::closed(number, ""));
                } else if !self.is_ours {
                    self.sent
                        .push_back(Message::closed(number, "Unknown connectID"));
                }
            }
            Message::Data(number, _) if !self.is_ours && !self.connections[&number] => {
                let text = "unrecognized connectID";
                self.sent.push_back(Message::closed(number, text));
            }
            Message::CloseDial(_)
            | Message::Data(..)
            | Message::Finish(_)
            | Message::Window(..) => {}
            other => panic!("no agent gets {other:?}"),
        }
    }

    fn connect(&mut self, fails: bool) {
        let Some((random, address)) = self.dials.pop_front() else {
            return;
        };
        self.next += 1;
        self.sent.push_back(if fails {
            Message::dial_error(random, "refused")
        } else {
            self.connections.insert(self.next, true);
            self.addresses.insert(self.next, address);
            Message::DialResponse(DialResponse {
                error: String::new(),
                connect_id: self.next,
                random,
            })
        });
    }

    /// Lets the target of the oldest open connection take a step. Returns false if no connection is open.
    fn target(&mut self, step: Step) -> bool {
        let Some((number, open)) = self.open() else {
            return false;
        };
        let message = match step {
            Step::TargetSends => Message::Data(*number, Bytes::from_static(b"y")),
            Step::TargetFinishes => Message::Finish(*number),
            _ => Message::closed(*number, ""),
        };
        *open = step != Step::TargetCloses;
        self.sent.push_back(message);
        true
    }

    /// Returns the oldest open connection.
    fn open(&mut self) -> Option<(&i64, &mut bool)> {
        self.connections.iter_mut().find(|(_, open)| **open)
    }
}

/// The events that a client has received about its tunnel.
#[derive(Debug)]
struct Client {
    tunnel: Arc<Tunnel>,
    /// How the dial ended.
    dial: Option<Event>,
    end: Option<Event>,
    has_vanished: bool,
    /// The client cancelled the dial or the connection, so it need not be told of the end.
    has_left: bool,
}

impl Client {
    /// Reads the messages that have arrived for the client.
    fn read(&mut self) {
        while let Some(item) = self.tunnel.inbox.next().now_or_never() {
            assert!(!self.has_vanished, "{item:?} for a client that has gone");
            assert!(self.end.is_none(), "{item:?} after the end: {self:?}");
            let is_open = matches!(&self.dial, Some(Event::Dialed(dial)) if dial.error.is_empty());
            match item {
                Item::Data(_) | Item::Event(Event::Finished) => assert!(is_open, "{self:?}"),
                Item::Event(end @ (Event::Closed(_) | Event::Lost(_))) => {
                    assert!(is_open, "{end:?} without a connection: {self:?}");
                    self.end = Some(end);
                }
                Item::Event(
                    outcome @ (Event::Dialed(_) | Event::DialClosed(_) | Event::PendingLost(_)),
                ) => {
                    assert!(
                        self.dial.is_none(),
                        "{outcome:?} is a second outcome: {self:?}"
                    );
                    self.dial = Some(outcome);
                }
                Item::Event(other) => panic!("{other:?} is no event of an agent"),
            }
        }
    }
}

struct World {
    backend: Arc<Backend>,
    to_agent: OutboxStream,
    agent: Agent,
    clients: Vec<Option<Client>>,
    is_lost: bool,
}

impl World {
    fn new(shared: &Arc<Shared>, clients: usize, extensions: Extensions) -> Self {
        let shared = Arc::clone(shared);
        let backend = Backend::new("agent".into(), Identifiers::default(), extensions, shared);
        Self {
            to_agent: backend.outbox.stream(),
            backend,
            agent: Agent {
                is_ours: extensions.half_close,
                ..Agent::default()
            },
            clients: std::iter::repeat_with(|| None).take(clients).collect(),
            is_lost: false,
        }
    }

    fn client(&self, number: usize) -> Option<&Arc<Tunnel>> {
        let client = self.clients[number].as_ref()?;
        (!client.has_vanished).then_some(&client.tunnel)
    }

    /// Takes a step. Returns false if the step has no effect in this state.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Dial(number) => {
                if self.clients[number].is_some() {
                    return false;
                }
                // Clients choose their IDs independently; two of three choose the same.
                let random = i64::try_from(number % 2).unwrap() + 100;
                let inbox = Arc::new(self.backend.shared.inbox(Mode::Grpc));
                let request = DialRequest {
                    protocol: "tcp".into(),
                    address: format!("target-{number}:1"),
                    random,
                };
                let dialed = self.backend.dial(request, inbox);
                assert_eq!(dialed.is_err(), self.is_lost);
                self.clients[number] = dialed.ok().map(|tunnel| Client {
                    tunnel,
                    dial: None,
                    end: None,
                    has_vanished: false,
                    has_left: false,
                });
            }
            Step::Send(number) | Step::Finish(number) => {
                let Some(tunnel) = self.client(number) else {
                    return false;
                };
                let id = tunnel.connect_id();
                if id == 0 {
                    return false;
                }
                // A stream that has ended accepts no messages.
                let _ = tunnel.send(match step {
                    Step::Send(_) => Message::Data(id, Bytes::from_static(b"x")),
                    _ => Message::Finish(id),
                });
            }
            Step::Close(number) => {
                // Both frontends do this.
                let Some(tunnel) = self.client(number) else {
                    return false;
                };
                if tunnel.connect_id() == 0 {
                    return self.step(Step::Detach(number));
                }
                let _ = tunnel.ask_to_close();
            }
            Step::Detach(number) | Step::Vanish(number) | Step::Expire(number) => {
                let Some(tunnel) = self.client(number).cloned() else {
                    return false;
                };
                let has_left = match step {
                    Step::Detach(_) => {
                        tunnel.detach();
                        true
                    }
                    Step::Vanish(_) => {
                        tunnel.release();
                        true
                    }
                    _ => tunnel.expire(),
                };
                let client = self.clients[number].as_mut().expect("it has a tunnel");
                client.has_left |= has_left;
                client.has_vanished |= matches!(step, Step::Vanish(_));
            }
            Step::Take => match self.to_agent.next().now_or_never() {
                Some(Some(Ok(message))) => self.agent.receive(message),
                _ => return false,
            },
            Step::Connect => self.agent.connect(false),
            Step::Fail => self.agent.connect(true),
            Step::GiveUp => match self.agent.dials.pop_front() {
                Some((random, _)) => self.agent.sent.push_back(Message::CloseDial(random)),
                None => return false,
            },
            Step::TargetSends | Step::TargetFinishes | Step::TargetCloses => {
                return self.agent.target(step);
            }
            Step::Drain => self.agent.sent.push_back(Message::Drain),
            Step::Deliver => match self.agent.sent.pop_front() {
                Some(message) if !self.is_lost => self.backend.receive(message),
                _ => return false,
            },
            Step::Lose => {
                // Both the receiver and the shutdown of the process may call this.
                self.is_lost = true;
                self.backend.lost();
            }
        }
        for client in self.clients.iter_mut().flatten() {
            if !client.has_vanished {
                client.read();
            }
        }
        true
    }

    /// Delivers all packets in flight.
    fn settle(&mut self) {
        while self.step(Step::Take) || self.step(Step::Deliver) {}
    }

    /// Ends everything, and checks that no state is left.
    fn end(mut self) {
        self.settle();
        // Answers the dials that are still pending, so that each client learns of an outcome.
        while !self.agent.dials.is_empty() {
            self.step(Step::Connect);
            self.settle();
        }
        for client in self.clients.iter().flatten() {
            let has_learned = client.dial.is_some() || client.has_left;
            assert!(has_learned, "the outcome of a dial is lost: {client:?}");
            let Some(Event::Dialed(dial)) = &client.dial else {
                continue;
            };
            assert_eq!(dial.random, client.tunnel.random, "another's answer");
            let target = self.agent.addresses.get(&dial.connect_id);
            let is_own = target.is_none_or(|target| *target == client.tunnel.address);
            assert!(is_own, "{client:?} is connected to {target:?}");
            let is_closed =
                self.is_lost || self.agent.connections.get(&dial.connect_id) == Some(&false);
            if dial.error.is_empty() && is_closed {
                let has_learned = client.end.is_some() || client.has_left;
                assert!(has_learned, "the end of a connection is lost: {client:?}");
            }
        }
        for number in 0..self.clients.len() {
            self.step(Step::Vanish(number));
        }
        self.settle();
        let asked = &self.agent.asked;
        assert!(
            asked.values().all(|count| *count == 1),
            "closed twice: {asked:?}"
        );
        if !self.is_lost {
            let open: Vec<_> = self.agent.open().into_iter().collect();
            assert!(open.is_empty(), "the agent keeps {open:?}");
        }
        assert_eq!(self.backend.counts(), (0, 0, 0), "something is left");
        self.backend.lost();
    }
}

/// Takes these steps in a new world, and checks the gauges and the memory at the end.
fn play(shared: &Arc<Shared>, clients: usize, extensions: Extensions, steps: &[Step]) {
    let mut world = World::new(shared, clients, extensions);
    for step in steps {
        world.step(*step);
    }
    world.end();
    assert_eq!(shared.metrics.open(), (0, 0), "a gauge is off");
    assert_eq!(shared.budget.used(), 0, "memory is left");
}

/// Calls [`play`]; a failure reports the steps.
fn check(shared: &Arc<Shared>, clients: usize, extensions: Extensions, steps: &[Step]) {
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        play(shared, clients, extensions, steps);
    }));
    assert!(played.is_ok(), "{extensions:?}: {steps:?}");
}

const BOTH: [Extensions; 2] = [
    Extensions::ALL,
    Extensions {
        half_close: false,
        window: false,
    },
];

/// Checks every sequence of three steps after each of these beginnings.
#[test]
fn every_short_history_ends_once() {
    let dialed = [Step::Dial(0), Step::Take];
    let answered = [Step::Dial(0), Step::Take, Step::Connect];
    let open = [Step::Dial(0), Step::Take, Step::Connect, Step::Deliver];
    let shared = Arc::new(Shared::for_tests());
    for extensions in BOTH {
        for beginning in [&[][..], &dialed, &answered, &open] {
            for one in STEPS {
                for two in STEPS {
                    for three in STEPS {
                        let steps = [beginning, &[one, two, three]].concat();
                        check(&shared, 1, extensions, &steps);
                    }
                }
            }
        }
    }
}

/// Checks long random sequences of several clients. The seed is fixed, so that a failure can be repeated.
#[test]
fn long_histories_end_once() {
    let shared = Arc::new(Shared::for_tests());
    let mut random = fastrand::Rng::with_seed(889);
    for round in 0..10_000 {
        let clients = random.usize(1..4);
        let length = random.usize(5..60);
        let steps: Vec<Step> = std::iter::repeat_with(|| {
            let client = random.usize(..clients);
            match STEPS[random.usize(..STEPS.len())] {
                Step::Dial(_) => Step::Dial(client),
                Step::Send(_) => Step::Send(client),
                Step::Finish(_) => Step::Finish(client),
                Step::Close(_) => Step::Close(client),
                Step::Detach(_) => Step::Detach(client),
                Step::Vanish(_) => Step::Vanish(client),
                Step::Expire(_) => Step::Expire(client),
                // Most streams survive.
                Step::Lose if random.u8(..) < 200 => Step::Deliver,
                // Most packets are delivered.
                Step::Drain | Step::Fail | Step::GiveUp if random.bool() => Step::Take,
                other => other,
            }
        })
        .take(length)
        .collect();
        check(&shared, clients, BOTH[round % 2], &steps);
    }
}
