// SPDX-License-Identifier: Apache-2.0

//! The file of `--tenants-config` of a running server: files that are rejected at the start, and changes while the
//! server runs.

use std::fs;
use std::os::unix::net::UnixStream;

use rcgen::{DistinguishedName, DnType};

use super::process::{AGENT, Program, Setup, get, port, until, until_connected};

/// Returns a tenant with agents by certificate and clients by socket.
fn tenant(name: &str, socket: &str) -> String {
    format!(
        "
- name: {name}
  agents:
  - certificate: {{organization: {name}}}
  clients:
  - unixSocket: {socket}"
    )
}

fn setup(tenants: &[&str]) -> Setup {
    let setup = Setup::new();
    for tenant in tenants {
        setup.scratch.issue(tenant, |params| {
            params.distinguished_name = DistinguishedName::new();
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationName, *tenant);
        });
    }
    setup
}

fn agent(setup: &Setup, tenant: &str, health: u16) -> Program {
    let args = [
        format!("--ca-cert={}", setup.file("ca.crt")),
        format!("--agent-cert={}", setup.file(&format!("{tenant}.crt"))),
        format!("--agent-key={}", setup.file(&format!("{tenant}.key"))),
        format!("--agent-id={tenant}"),
        format!("--proxy-server-port={}", setup.agents),
        format!("--health-server-port={health}"),
        format!("--admin-server-port={}", port()),
        "--sync-interval=50ms".to_owned(),
        "--sync-interval-cap=200ms".to_owned(),
    ];
    let log = setup.scratch.file(&format!("agent-{tenant}.log"));
    Program::start(AGENT, log, &args)
}

fn connected(health: u16) -> bool {
    get(health, "/readyz").0.contains("200")
}

fn answers(setup: &Setup, socket: &str) -> bool {
    let mut client = setup.client(&[&format!("--proxy-uds={}", setup.file(socket))]);
    client.end().0 == Some(0)
}

#[test]
fn rules_change_while_tunnels_go_on() {
    let setup = setup(&["one", "two"]);
    let (socket, other, third) = (
        setup.file("socket"),
        setup.file("other"),
        setup.file("third"),
    );
    let rules = setup.file("tenants.yaml");
    let write = |tenants: &[String]| {
        fs::write(&rules, format!("tenants:{}\n", tenants.concat())).unwrap();
    };
    write(&[tenant("one", &socket)]);
    let server = setup.server(&[&format!("--tenants-config={rules}")]);
    let _target = setup.target();
    let (health_one, health_two) = (port(), port());
    let _one = agent(&setup, "one", health_one);
    let _two = agent(&setup, "two", health_two);
    until("the first", || connected(health_one), || server.log());
    assert!(answers(&setup, "socket"), "{}", server.log());
    server.until_logged("refusing an agent");
    setup.until_server("tenants 1");
    assert!(!connected(health_two));
    let path = "/sleep?time=14";
    let mut slow = setup.client(&[&format!("--request-path={path}")]);
    server.until_logged("\"Proxy connection established\"");

    // A socket that cannot be created, and a misspelt key: nothing changes.
    let missing = setup.file("missing/socket");
    write(&[tenant("one", &socket), tenant("two", &missing)]);
    server.until_logged("missing/socket");
    write(&[
        tenant("one", &socket),
        tenant("two", &other) + "\n  limit: {}",
    ]);
    server.until_logged("limit");
    setup.until_server("tenants_config_reloads_total{result=\"refused\"} 2");
    assert!(answers(&setup, "socket"), "{}", server.log());
    assert!(UnixStream::connect(&other).is_err());

    // The second tenant receives its own socket, the first one another socket.
    write(&[
        tenant("one", &socket) + &format!("\n  - unixSocket: {third}"),
        tenant("two", &other),
    ]);
    setup.until_server("tenants_config_reloads_total{result=\"used\"} 1");
    until("the second", || connected(health_two), || server.log());
    for socket in ["socket", "other", "third"] {
        assert!(answers(&setup, socket), "{socket}: {}", server.log());
    }
    assert_eq!(slow.end().0, Some(0), "{}", slow.log());

    // The first tenant is removed, with its agents and its sockets except that of the flag.
    write(&[tenant("two", &other)]);
    // In no order that is promised.
    until("its end", || !connected(health_one), || server.log());
    let is_closed = || UnixStream::connect(&third).is_err() && !fs::exists(&third).unwrap();
    until("the end of its socket", is_closed, || server.log());
    until(
        "the end of its clients",
        || !answers(&setup, "socket"),
        || server.log(),
    );
    assert!(answers(&setup, "other"), "{}", server.log());
    let metrics = get(setup.health, "/metrics").2;
    assert!(!metrics.contains("tenant=\"one\""), "{metrics}");
    assert!(
        metrics.contains("tenant_tunnels{tenant=\"two\"}"),
        "{metrics}"
    );
}

#[test]
fn rules_that_cannot_be_used_are_refused_at_the_start() {
    for (text, want) in [
        (None, "--tenants-config says where they are"),
        (Some("tenants: []"), "give 1 to"),
        (
            Some("tenants: [{name: a, agents: [], clients: []}]"),
            "agents",
        ),
        (Some("nonsense"), "cannot be used"),
    ] {
        let setup = setup(&[]);
        let rules = setup.file("tenants.yaml");
        if let Some(text) = text {
            fs::write(&rules, text).unwrap();
        }
        let mut server = setup.server(&[&format!("--tenants-config={rules}")]);
        assert_eq!(server.end().0, Some(1));
        assert!(server.log().contains(&rules), "{}", server.log());
        assert!(server.log().contains(want), "{}", server.log());
    }
    let setup = setup(&[]);
    let mut server = setup.server(&[
        "--tenants-config=x",
        "--agent-namespace=a",
        "--agent-service-account=b",
        "--authentication-audience=c",
    ]);
    assert_eq!(server.end().0, Some(1));
    let want = "--tenants-config excludes --agent-namespace";
    assert!(server.log().contains(want), "{}", server.log());
}

/// Each tenant has a port for its agents: firewalls and load balancers decide which peers reach it.
#[test]
fn agents_are_distinguished_by_their_port() {
    let setup = setup(&[]);
    let (socket, second) = (setup.file("socket"), port());
    let rules = setup.file("tenants.yaml");
    let text = format!(
        "
tenants:
- name: one
  agents: [{{port: {}}}]
  clients: [{{unixSocket: {socket}}}]
- name: two
  agents: [{{port: {second}}}]
  clients: [{{unixSocket: {}}}]
",
        setup.agents,
        setup.file("other"),
    );
    fs::write(&rules, text).unwrap();
    let server = setup.server(&[&format!("--tenants-config={rules}")]);
    until_connected(second);
    let _target = setup.target();
    server.until_logged("can choose to match it");
    let _agent = setup.agent(&[&format!("--proxy-server-port={second}")]);
    setup.until_ready();
    assert!(answers(&setup, "other"), "{}", server.log());
    assert!(!answers(&setup, "socket"));
    setup.until_server("dial_failure_count{reason=\"no_agent\"} 1");
}
