// SPDX-License-Identifier: Apache-2.0

//! The number of servers that an agent connects to, if it uses the number that servers announce behind a load balancer
//! without session affinity. Upstream's agents stay connected to two of three servers after one is replaced (hypershift
//! #9260).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use proxy_tunnel::client::Mode;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::rig::{Agent, Options, Rig, until};

/// A load balancer that selects the servers in turn.
struct Balancer {
    port: u16,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let servers = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let chosen = Arc::clone(&servers);
        tokio::spawn(async move {
            for number in 0.. {
                let (mut near, _) = listener.accept().await.unwrap();
                let server = {
                    let servers = chosen.lock().unwrap();
                    servers[number % servers.len()]
                };
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(server).await {
                        // Either end may disconnect.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { port, servers }
    }
}

async fn server(number: u32, count: u32, first: Option<&Rig>) -> Rig {
    let mut options = Options::new(Mode::Grpc);
    options.id = format!("server-{number}");
    options.count = count;
    options.scratch = first.map(|first| Arc::clone(&first.scratch));
    Rig::with(options).await
}

#[tokio::test]
async fn every_server_is_found_and_a_replaced_one_too() {
    let balancer = Balancer::new().await;
    let first = server(0, 3, None).await;
    let second = server(1, 3, Some(&first)).await;
    let third = server(2, 3, Some(&first)).await;
    *balancer.servers.lock().unwrap() = vec![first.agents, second.agents, third.agents];
    let agent = Agent::start(&first, &[balancer.port]);
    agent.until_counted("open_server_connections 3").await;
    agent.until_counted("known_server_count 3").await;
    let fourth = server(3, 3, Some(&first)).await;
    *balancer.servers.lock().unwrap() = vec![first.agents, second.agents, fourth.agents];
    third.server.cut_agents();
    drop(third);
    fourth.until_ready().await;
    agent.until_counted("open_server_connections 3").await;
}

/// Upstream #739: the number changes in a rolling update, while old servers still reply with the old one.
#[tokio::test]
async fn a_larger_number_is_believed_when_a_server_says_it() {
    let balancer = Balancer::new().await;
    let first = server(0, 2, None).await;
    let second = server(1, 2, Some(&first)).await;
    *balancer.servers.lock().unwrap() = vec![first.agents, second.agents];
    let agent = Agent::start(&first, &[balancer.port]);
    agent.until_counted("open_server_connections 2").await;
    let mut new = Vec::new();
    for number in 2..8 {
        new.push(server(number, 6, Some(&first)).await);
    }
    let addresses: Vec<_> = new.iter().map(|server| server.agents).collect();
    // One old server is left, and the agent connects to it again after the first new ones.
    *balancer.servers.lock().unwrap() = [&[second.agents], addresses.as_slice()].concat();
    first.server.cut_agents();
    drop(first);
    agent.until_counted("known_server_count 6").await;
    agent.until_counted("open_server_connections 6").await;
    second.server.streams()[0].outbox.end();
    agent.until_counted("open_server_connections 6").await;
    agent.until_counted("known_server_count 6").await;
    *balancer.servers.lock().unwrap() = addresses;
    second.server.cut_agents();
    drop(second);
    for server in &new {
        server.until_ready().await;
    }
    agent.until_counted("open_server_connections 6").await;
}

#[tokio::test]
async fn a_stream_that_ends_is_replaced() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    for _ in 0..5 {
        let stream = rig.server.streams().remove(0);
        stream.outbox.finish(None);
        until("another stream", || {
            let all = rig.server.streams();
            all.iter().any(|other| !Arc::ptr_eq(other, &stream))
        })
        .await;
    }
    agent.until_counted("open_server_connections 1").await;
}
