// SPDX-License-Identifier: Apache-2.0

//! A client or an agent may use only its own connection IDs and dial IDs. A wrong one fails no dial
//! and closes no connection of another client.

use proxy_tunnel::wire::{DialResponse, Message};

use super::peers::Peer;
use super::rig::until;
use super::wire::{data, established, pair};

const MISMATCH: &str = "mismatched connection IDs";

fn answer(random: i64, connect_id: i64) -> Message {
    Message::DialResponse(DialResponse {
        error: String::new(),
        connect_id,
        random,
    })
}

/// Upstream's server asks the agent to close the other connection ID too.
#[tokio::test]
async fn a_client_that_mixes_up_numbers_loses_its_own_connection() {
    let (_rig, mut agent, mut client) = established().await;
    client.send(data(0, "ignored"));
    client.send(data(4, "x"));
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    assert_eq!(client.message().await, Message::closed(4, MISMATCH));
    assert_eq!(client.message().await, Message::closed(3, MISMATCH));
    agent.nothing().await;
}

/// Upstream forwards any connection ID that a client sends.
#[tokio::test]
async fn a_client_cannot_reach_the_connection_of_another() {
    let (rig, mut agent, mut client) = established().await;
    let mut other = Peer::client(&rig).await;
    other.dial(8, "a:1");
    agent.accept(4).await;
    other.answered().await;
    other.send(data(3, "not mine"));
    assert_eq!(agent.message().await, Message::CloseRequest(4));
    client.send(data(3, "mine"));
    assert_eq!(agent.message().await, data(3, "mine"));
    agent.send(data(3, "answer"));
    assert_eq!(client.message().await, data(3, "answer"));
}

/// The agent has assigned this connection ID to another client's dial, and its response is in
/// transit.
#[tokio::test]
async fn a_client_that_names_a_number_to_come_costs_no_dial() {
    let names: [fn() -> Message; 3] = [
        || data(4, "x"),
        || Message::CloseRequest(4),
        || Message::Finish(4),
    ];
    for name in names {
        let (rig, mut agent, client) = established().await;
        let mut other = Peer::client(&rig).await;
        other.dial(8, "a:1");
        let request = agent.asked().await;
        client.send(name());
        client.send(Message::CloseDial(8));
        // The result does not depend on whether the client's own connection is still open.
        client.send(Message::CloseRequest(3));
        assert_eq!(agent.message().await, Message::CloseRequest(3));
        agent.send(answer(request.random, 4));
        assert_eq!(other.answered().await.connect_id, 4);
        other.send(data(4, "ping"));
        assert_eq!(agent.message().await, data(4, "ping"));
        agent.send(data(4, "pong"));
        assert_eq!(other.message().await, data(4, "pong"));
    }
}

/// Each agent assigns its own connection IDs, and here they are equal.
#[tokio::test]
async fn an_agent_reaches_no_connection_and_no_dial_of_another() {
    let (rig, mut agent, mut client) = established().await;
    let mut other = Peer::agent(&rig, &[("agentid", "other")]).await;
    other.opened().await.unwrap();
    // This agent drains, so that the server selects it for no dial.
    other.send(Message::Drain);
    until("a drain", || {
        rig.metrics()
            .contains("packet_type=\"DRAIN\",segment=\"from_agent\"} 1\n")
    })
    .await;
    let mut dialing = Peer::client(&rig).await;
    dialing.dial(8, "a:1");
    let request = agent.asked().await;
    for wrong in [
        Message::closed(3, ""),
        data(3, "x"),
        Message::Finish(3),
        Message::Window(3, u32::MAX),
        Message::CloseDial(request.random),
        Message::dial_error(request.random, "no"),
        answer(request.random, 3),
    ] {
        other.send(wrong);
    }
    // The server sends these in reply to the bytes and to the last message.
    assert_eq!(other.message().await, Message::CloseRequest(3));
    assert_eq!(other.message().await, Message::CloseRequest(3));
    agent.send(answer(request.random, 4));
    assert_eq!(dialing.answered().await.connect_id, 4);
    client.send(data(3, "ping"));
    assert_eq!(agent.message().await, data(3, "ping"));
    agent.send(data(3, "pong"));
    assert_eq!(client.message().await, data(3, "pong"));
}

#[tokio::test]
async fn two_pending_dials_with_one_number() {
    let (rig, mut agent, mut client) = pair().await;
    client.dial(7, "a:1");
    let first = agent.asked().await;
    let mut other = Peer::client(&rig).await;
    other.dial(7, "b:1");
    let second = agent.asked().await;
    assert_eq!((first.random, first.address.as_str()), (7, "a:1"));
    assert!(second.random != 7 && second.address == "b:1", "{second:?}");
    agent.send(answer(second.random, 4));
    agent.send(answer(7, 3));
    for (client, number) in [(&mut client, 3), (&mut other, 4)] {
        let answer = client.answered().await;
        assert_eq!((answer.random, answer.connect_id), (7, number));
    }
    // The client receives the agent's error and its closed dial with its own dial ID, too.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = Peer::client(&rig).await;
        client.dial(9, "a:1");
        clients.push((client, agent.asked().await.random));
    }
    agent.send(Message::dial_error(clients[1].1, "no"));
    agent.send(Message::CloseDial(clients[2].1));
    assert_eq!(clients[1].0.message().await, Message::dial_error(9, "no"));
    assert_eq!(clients[2].0.message().await, Message::CloseDial(9));
    agent.vanish();
    let why = "Backend context error: context canceled";
    for (client, _) in &mut [clients.pop().unwrap(), clients.swap_remove(0)] {
        assert_eq!(client.message().await, Message::dial_error(9, why));
    }
}

#[tokio::test]
async fn one_dial_for_each_stream() {
    let (_rig, mut agent, mut client) = established().await;
    client.dial(8, "b:1");
    let answer = client.answered().await;
    assert_eq!(answer.random, 8);
    assert!(answer.error.contains("another stream"), "{}", answer.error);
    client.send(data(3, "x"));
    assert_eq!(agent.message().await, data(3, "x"));
}
