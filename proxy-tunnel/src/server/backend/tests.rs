// SPDX-License-Identifier: Apache-2.0

//! The effect of each message of an agent on tunnels, message by message, as in upstream's server 0.36.0.

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::flow::inbox::Item;

fn backend() -> Arc<Backend> {
    Backend::new(
        "agent".into(),
        Identifiers::default(),
        Extensions::default(),
        Arc::new(Shared::for_tests()),
    )
}

fn request(random: i64) -> DialRequest {
    DialRequest {
        protocol: "tcp".into(),
        address: "10.0.0.1:443".into(),
        random,
    }
}

fn answer(random: i64, connect_id: i64) -> Message {
    Message::DialResponse(DialResponse {
        error: String::new(),
        connect_id,
        random,
    })
}

fn dial(backend: &Arc<Backend>, random: i64) -> Arc<Tunnel> {
    let inbox = Arc::new(backend.shared.inbox(Mode::Grpc));
    backend.dial(request(random), inbox).unwrap()
}

fn sent(backend: &Backend) -> Vec<Message> {
    let mut stream = backend.outbox.stream();
    let mut sent = Vec::new();
    while let Some(Some(Ok(message))) = stream.next().now_or_never() {
        sent.push(message);
    }
    std::mem::forget(stream);
    sent
}

fn events(tunnel: &Tunnel) -> Vec<Item<Event>> {
    std::iter::from_fn(|| tunnel.inbox.next().now_or_never()).collect()
}

fn text(backend: &Backend) -> String {
    prometheus::TextEncoder::new()
        .encode_to_string(&backend.shared.metrics.registry().gather())
        .unwrap()
}

#[test]
fn a_dial_is_answered_and_closed_by_the_agent() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    assert_eq!(sent(&backend), [Message::DialRequest(request(7))]);
    assert_eq!(backend.counts(), (1, 0, 0));
    backend.receive(answer(7, 3));
    backend.receive(Message::Data(3, Bytes::from_static(b"x")));
    backend.receive(Message::closed(3, ""));
    assert_eq!(backend.counts(), (0, 0, 0));
    let events = events(&tunnel);
    assert!(matches!(events[0], Item::Event(Event::Dialed(_))));
    assert_eq!(events[1], Item::Data(Bytes::from_static(b"x")));
    assert!(matches!(events[2], Item::Event(Event::Closed(_))));
    // A second close, by the client, has no effect.
    tunnel.release();
    tunnel.release();
    assert_eq!(sent(&backend), []);
    let text = text(&backend);
    assert!(text.contains("established_connections 0"), "{text}");
    assert!(text.contains("connection_duration_seconds_count 1"));
}

#[test]
fn an_unknown_dial_is_closed() {
    let backend = backend();
    backend.receive(answer(9, 4));
    backend.receive(Message::dial_error(9, "no"));
    assert_eq!(sent(&backend), [Message::CloseRequest(4)]);
    assert!(text(&backend).contains("dial_failure_count{reason=\"unrecognized_response\"} 2"));
}

#[test]
fn a_dial_error_establishes_nothing() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    backend.receive(Message::dial_error(7, "dial tcp: no"));
    assert_eq!(backend.counts(), (0, 0, 0));
    let Some(Item::Event(Event::Dialed(response))) = events(&tunnel).pop() else {
        panic!("no answer");
    };
    assert_eq!(response.error, "dial tcp: no");
    assert!(text(&backend).contains("dial_failure_count{reason=\"error_response\"} 1"));
}

#[test]
fn data_without_a_client_is_answered_by_a_close() {
    let backend = backend();
    backend.receive(Message::Data(0, Bytes::from_static(b"x")));
    assert_eq!(sent(&backend), []);
    backend.receive(Message::Data(5, Bytes::from_static(b"x")));
    assert_eq!(sent(&backend), [Message::CloseRequest(5)]);
}

#[test]
fn a_client_that_leaves_closes_once() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    backend.receive(answer(7, 3));
    sent(&backend);
    tunnel.release();
    assert_eq!(sent(&backend), [Message::CloseRequest(3)]);
    // Data that was in flight when the request to close was sent.
    backend.receive(Message::Data(3, Bytes::from_static(b"x")));
    tunnel.release();
    assert_eq!(sent(&backend), []);
    assert_eq!(backend.counts(), (0, 0, 1));
    backend.receive(Message::closed(3, ""));
    assert_eq!(backend.counts(), (0, 0, 0));
}

/// Checks defect 15 of upstream.
#[test]
fn a_client_that_leaves_while_its_dial_is_pending_leaves_nothing() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    sent(&backend);
    tunnel.release();
    assert_eq!(sent(&backend), [Message::CloseDial(7)]);
    backend.receive(answer(7, 3));
    assert_eq!(sent(&backend), [Message::CloseRequest(3)]);
    // The target may send until the agent has closed the connection.
    backend.receive(Message::Data(3, Bytes::from_static(b"x")));
    assert_eq!(sent(&backend), []);
    backend.receive(Message::closed(3, ""));
    assert_eq!(backend.counts(), (0, 0, 0));
    let text = text(&backend);
    assert!(text.contains("dial_failure_count{reason=\"frontend_close\"} 1"));
    assert!(text.contains("pending_backend_dials 0"), "{text}");
}

#[test]
fn an_agent_gives_up_a_dial() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    backend.receive(Message::CloseDial(7));
    assert_eq!(events(&tunnel), [Item::Event(Event::DialClosed(7))]);
    assert!(text(&backend).contains("dial_failure_count{reason=\"backend_close\"} 1"));
}

/// Checks defect 4 of upstream, and the end of established connections.
#[test]
fn a_lost_agent_is_an_error_for_all() {
    let backend = backend();
    let (pending, established) = (dial(&backend, 1), dial(&backend, 2));
    backend.receive(answer(2, 1));
    backend.receive(Message::Data(1, Bytes::from_static(b"half of an answer")));
    backend.lost();
    assert_eq!(events(&pending), [Item::Event(Event::PendingLost(1))]);
    let lost = Item::Event(Event::Lost(ESTABLISHED_LOST.into()));
    assert_eq!(events(&established), [lost]);
    let inbox = Arc::new(backend.shared.inbox(Mode::Grpc));
    let refused = backend.dial(request(3), inbox).unwrap_err();
    assert_eq!(refused, DialRefused);
    let text = text(&backend);
    assert!(text.contains("pending_backend_dials 0"), "{text}");
    assert!(text.contains("established_connections 0"), "{text}");
    assert_eq!(backend.shared.budget.used(), 0);
}

/// Returns the IDs of the dial requests that were sent to the agent.
fn asked(backend: &Backend) -> Vec<i64> {
    let number = |message| match message {
        Message::DialRequest(request) => request.random,
        other => panic!("{other:?}"),
    };
    sent(backend).into_iter().map(number).collect()
}

fn answered(tunnel: &Tunnel) -> (i64, i64) {
    match events(tunnel).as_slice() {
        [Item::Event(Event::Dialed(response))] => (response.random, response.connect_id),
        other => panic!("{other:?}"),
    }
}

/// Upstream forgets the first of two dials with the same ID, and connects the client of the second to the first one's
/// target.
#[test]
fn clients_that_choose_the_same_number_get_their_own_targets() {
    let backend = backend();
    let (one, two) = (dial(&backend, 7), dial(&backend, 7));
    let numbers = asked(&backend);
    assert!(numbers[0] == 7 && numbers[1] > 0 && numbers[1] != 7);
    backend.receive(answer(numbers[1], 4));
    backend.receive(answer(7, 3));
    assert_eq!((answered(&one), answered(&two)), ((7, 3), (7, 4)));
    // The ID 7 is free again.
    let _three = dial(&backend, 7);
    assert_eq!(asked(&backend), [7]);
}

/// A late answer of the agent refers to the first dial's target.
#[test]
fn the_number_of_a_dial_that_was_given_up_is_not_used_again() {
    let backend = backend();
    let end: [fn(&Arc<Tunnel>); 2] = [Tunnel::release, |tunnel| assert!(tunnel.expire())];
    for (number, end) in (7..).zip(end) {
        let first = dial(&backend, number);
        end(&first);
        let mut numbers = Vec::new();
        let second = dial(&backend, number);
        for message in sent(&backend) {
            match message {
                Message::DialRequest(request) => numbers.push(request.random),
                other => assert_eq!(other, Message::CloseDial(number)),
            }
        }
        assert!(numbers[0] == number && numbers[1] != number, "{numbers:?}");
        backend.receive(answer(number, number));
        assert_eq!(sent(&backend), [Message::CloseRequest(number)]);
        backend.receive(answer(numbers[1], 100 + number));
        assert_eq!(answered(&second), (number, 100 + number));
    }
}

#[test]
fn a_dial_that_is_answered_twice_lives_on() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    sent(&backend);
    backend.receive(answer(7, 3));
    backend.receive(answer(7, 3));
    assert_eq!(sent(&backend), []);
    backend.receive(Message::Data(3, Bytes::from_static(b"x")));
    assert_eq!(events(&tunnel).len(), 2);
    assert_eq!(backend.counts(), (0, 1, 0));
}

#[test]
fn an_answer_with_neither_connection_nor_error_is_an_error() {
    let backend = backend();
    let tunnel = dial(&backend, 7);
    backend.receive(answer(7, 0));
    let Some(Item::Event(Event::Dialed(response))) = events(&tunnel).pop() else {
        panic!("no answer");
    };
    assert_eq!((response.random, response.error.as_str()), (7, NO_NUMBER));
    assert_eq!(backend.counts(), (0, 0, 0));
    assert!(text(&backend).contains("dial_failure_count{reason=\"error_response\"} 1"));
}

#[test]
fn an_agent_that_uses_a_number_twice_cuts_the_first() {
    let backend = backend();
    let (one, two) = (dial(&backend, 1), dial(&backend, 2));
    backend.receive(answer(1, 5));
    backend.receive(answer(2, 5));
    assert!(matches!(
        events(&one).last(),
        Some(Item::Event(Event::Lost(_)))
    ));
    one.release();
    assert_eq!(backend.counts(), (0, 1, 0), "the second one is not touched");
    two.release();
    assert_eq!(backend.counts(), (0, 0, 1));
}

#[test]
fn a_client_that_does_not_read_is_closed_alone() {
    let shared = Shared {
        budget: Arc::new(Budget::new(8 << 20)),
        ..Shared::for_tests()
    };
    let backend = Backend::new(
        "agent".into(),
        Identifiers::default(),
        Extensions::default(),
        Arc::new(shared),
    );
    let (stalled, other) = (dial(&backend, 1), dial(&backend, 2));
    backend.receive(answer(1, 1));
    backend.receive(answer(2, 2));
    sent(&backend);
    let chunk = Bytes::from(vec![0; 256 * 1024]);
    for _ in 0..40 {
        backend.receive(Message::Data(1, chunk.clone()));
    }
    backend.receive(Message::Data(2, chunk));
    assert!(matches!(
        events(&stalled).as_slice(),
        [Item::Event(Event::Lost(_))]
    ));
    assert_eq!(events(&other).len(), 2);
    assert_eq!(sent(&backend), [Message::CloseRequest(1)]);
    let text = text(&backend);
    assert!(
        text.contains("tunnels_closed_total{reason=\"budget\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("full_receive_channels{service_method=\"Connect\"} 0"),
        "{text}"
    );
}

#[test]
fn a_client_that_leaves_takes_no_other_dial_with_its_number_along() {
    let backend = backend();
    let first = dial(&backend, 1);
    backend.receive(answer(1, 3));
    let second = dial(&backend, 1);
    first.release();
    assert_eq!(backend.counts().0, 1);
    assert!(second.expire());
    assert_eq!(backend.counts().0, 0);
}
