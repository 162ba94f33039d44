// SPDX-License-Identifier: Apache-2.0

//! Clocks that are wrong or that jump: agents count a server, and servers delete its lease, by whether they see the
//! lease being renewed. Everything else in server and agent uses the monotonic clock.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use kube::api::WatchEvent;
use proxy_tunnel::cluster::counting::Leases;
use proxy_tunnel::cluster::lease;
use proxy_tunnel::cluster::publishing::WATCHED;
use proxy_tunnel::metrics::server::ServerMetrics;

use super::cluster::publisher;
use super::stub::Stub;

/// The agent's clock is an hour ahead of the servers', as after a jump: their leases look expired, but are renewed.
#[test]
fn servers_are_counted_by_a_clock_that_is_wrong() {
    let leases = Leases::default();
    let renewed = |id: &str, second| {
        let at = Timestamp::from_second(second).unwrap();
        lease::renewed(id, &BTreeMap::new(), at)
    };
    let hour = Timestamp::from_second(4600).unwrap();
    for id in ["a", "b", "c"] {
        leases.apply(WatchEvent::Added(renewed(id, 1000))).unwrap();
    }
    assert_eq!(
        leases.count(hour),
        Some(1),
        "none is seen to be renewed yet"
    );
    for id in ["a", "b"] {
        let event = WatchEvent::Modified(renewed(id, 1015));
        leases.apply(event).unwrap();
    }
    // Only a label has changed.
    leases
        .apply(WatchEvent::Modified(renewed("c", 1000)))
        .unwrap();
    assert_eq!(leases.count(hour), Some(2));
    leases
        .apply(WatchEvent::Deleted(renewed("a", 1015)))
        .unwrap();
    leases.apply(WatchEvent::Added(renewed("a", 1015))).unwrap();
    assert_eq!(leases.count(hour), Some(1));
}

/// A server whose clock is an hour ahead of the others' deletes no lease that is renewed.
#[tokio::test]
async fn a_server_whose_clock_is_ahead_forgets_no_other() {
    const HOUR: i64 = 3600;
    let stub = Stub::new().await;
    let publisher = publisher(stub.client().await, "ahead", &ServerMetrics::new());
    let mut now = Instant::now();
    stub.put("gone", HOUR + 5);
    for age in [20, 5, 20, 5] {
        stub.put("renewed", HOUR + age);
        publisher.delete_expired(now).await;
        assert_eq!(stub.names().len(), 2, "none has been watched for long");
        now += WATCHED / 5;
    }
    stub.put("renewed", HOUR + 5);
    publisher.delete_expired(now + WATCHED).await;
    assert_eq!(stub.names(), ["konnectivity-proxy-server-renewed"]);
}
