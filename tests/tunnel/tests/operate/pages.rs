// SPDX-License-Identifier: Apache-2.0

//! The pages of server, agent and sidecar: `/statusz`, `/flagz`, and `/` as a browser renders it, with an agent whose
//! name is HTML.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::browser::{Browser, Seen};
use tests::{cmd, http, pages};
use tunnel_tests::certs;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT_HEALTH, CURL, Example, PATIENCE, SERVER_HEALTH, Tunnel};

/// The default admin ports.
const SERVER: &str = "127.0.0.1:8095";
const AGENT: &str = "127.0.0.1:8094";
const SIDECAR: &str = "127.0.0.1:8096";

/// The name of a hostile agent, the identifiers that it advertises, and their form on the page.
const HOSTILE: &str = "<script>alert('agent')</script>";
const REACHES: &str =
    "host=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E&host=gnp%E2%80%AE.exe&host=%3C/td%3E%22";
const REACHES_SHOWN: &str = "<img src=x onerror=alert(1)>, gnp\\u{202e}.exe, </td>\"";

const RULES: &str = "\
tenants:
- name: shoot-a
  agents:
  - certificate: {organization: a}
  clients:
  - certificate: {organization: a}
- name: shoot-b
  agents:
  - certificate: {organization: b}
  clients:
  - certificate: {organization: b}
";

#[test]
fn statusz_flagz_and_pages() -> Result<()> {
    let flags = [
        &Example::HttpConnect.server()[..],
        &["--server-id=the-server", "--backend-dial-timeout=7s"],
    ]
    .concat();
    let mut tunnel = Tunnel::start_with(&flags, Make::Ours, Make::Ours)?;
    tunnel.spawn(
        "sidecar",
        &Part::Sidecar.of(Make::Ours)?,
        &[
            "--mode=http-connect",
            "--proxy-host=127.0.0.1",
            "--ca-cert=certs/frontend/issued/ca.crt",
            "--client-cert=certs/frontend/issued/proxy-client.crt",
            "--client-key=certs/frontend/private/proxy-client.key",
            "--max-connections=17",
        ],
    )?;
    tunnel.wait_for(SIDECAR, "/readyz")?;
    let curl = || tunnel.netns().command("curl");
    for (address, program, flag) in [
        (SERVER, "konnectivity-server", "backend-dial-timeout=7s"),
        (
            AGENT,
            "konnectivity-agent",
            "ca-cert=certs/agent/issued/ca.crt",
        ),
        (SIDECAR, "konnectivity-sidecar", "max-connections=17"),
    ] {
        pages::check(curl, address, program, flag).with_context(|| program)?;
    }
    let page = |address| http::ask(tunnel.netns(), address, "/", &[]);
    ensure!(page(SERVER)?.body.contains("<small>the-server</small>"));
    ensure!(page(AGENT)?.body.contains(">the-server</th>"));
    ensure!(page(SIDECAR)?.body.contains(">up</span>"));
    // Upstream's ports for probes serve only upstream's paths.
    for health in [SERVER_HEALTH, AGENT_HEALTH] {
        for path in ["/", "/statusz", "/flagz"] {
            let answer = http::ask(tunnel.netns(), health, path, &[])?;
            ensure!(answer.code == 404, "{health}{path}: {answer:?}");
        }
    }
    Ok(())
}

/// Starts an agent with a tenant's certificate, on consecutive ports from this one.
fn agent(
    tunnel: &mut Tunnel,
    (process, tenant): (&'static str, &str),
    port: u16,
    flags: &[&str],
) -> Result<()> {
    let own = [
        "--ca-cert=certs/agent/issued/ca.crt".to_owned(),
        format!("--agent-cert=certs/agent/issued/{tenant}.crt"),
        format!("--agent-key=certs/agent/private/{tenant}.key"),
        format!("--health-server-port={port}"),
        format!("--admin-server-port={}", port + 1),
    ];
    let args: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(flags.iter().copied())
        .collect();
    tunnel.spawn(process, &Part::Agent.of(Make::Ours)?, &args)
}

/// Starts a server with two tenants and their agents, makes one request that is complete and one that continues.
fn busy() -> Result<Tunnel> {
    let mut tunnel = Tunnel::new()?;
    for tenant in ["a", "b"] {
        for group in ["agent", "frontend"] {
            certs::issue(&tunnel.dir().join("certs"), group, tenant, tenant)?;
        }
    }
    fs::write(tunnel.dir().join("tenants.yaml"), RULES)?;
    let flags = [
        &Example::HttpConnect.server()[..],
        &["--tenants-config=tenants.yaml", "--server-id=server-1"],
    ]
    .concat();
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &flags)?;
    tunnel.spawn("test server", &Part::TestServer.of(Make::Ours)?, &[])?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    let named = [
        "--agent-id=node-1",
        "--agent-identifiers=ipv4=10.0.0.1&host=node-1&default-route=true",
    ];
    agent(&mut tunnel, ("agent", "a"), 8193, &named)?;
    let hostile = [
        format!("--agent-id={HOSTILE}"),
        format!("--agent-identifiers={REACHES}"),
    ];
    agent(
        &mut tunnel,
        ("hostile", "b"),
        8293,
        &hostile.each_ref().map(String::as_str),
    )?;
    let own = [
        "--proxy-cert",
        "certs/frontend/issued/a.crt",
        "--proxy-key",
        "certs/frontend/private/a.key",
    ];
    let request = |path: &str| {
        let url = format!("http://localhost:8000{path}");
        let words = CURL.into_iter().chain(own).map(str::to_owned);
        words.chain([url]).collect::<Vec<_>>()
    };
    cmd::wait_until(PATIENCE, "an answer through node-1", || {
        let args = request("/success");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = tunnel.run(Path::new("curl"), &args)?;
        Ok(output.status.success().then_some(()))
    })
    .with_context(|| tunnel.logs())?;
    let args = request("/sleep?time=60");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tunnel.spawn("client", Path::new("curl"), &args)?;
    cmd::wait_until(PATIENCE, "both agents and a tunnel", || {
        let page = http::ask(tunnel.netns(), SERVER, "/", &[])?.body;
        let is_there = page.contains("<dt>Streams of agents</dt><dd>2</dd>")
            && page.contains("<dt>Tunnels</dt><dd>1</dd>");
        Ok(is_there.then_some(()))
    })
    .with_context(|| tunnel.logs())?;
    Ok(tunnel)
}

fn contains(seen: &Seen, texts: &[&str]) -> Result<()> {
    for text in texts {
        ensure!(seen.text.contains(text), "{text}: {}", seen.text);
    }
    Ok(())
}

#[test]
fn a_browser_shows_the_servers_page_and_runs_nothing_of_it() -> Result<()> {
    let tunnel = busy()?;
    let test = "the tunnel's pages in a browser";
    let Some(mut browser) = Browser::start(tunnel.netns(), test)? else {
        return Ok(());
    };
    let address = format!("http://{SERVER}/");
    let seen = browser.open(&address)?;
    pages::judge(&seen, &address)?;
    ensure!(
        seen.title == "konnectivity-server server-1",
        "{}",
        seen.title
    );
    contains(
        &seen,
        &[
            "ready",
            "shoot-a",
            "shoot-b",
            "node-1",
            "10.0.0.1, node-1, default route",
        ],
    )?;
    contains(
        &seen,
        &[
            HOSTILE,
            REACHES_SHOWN,
            "Tunnels that stand still",
            "Closed for that",
        ],
    )?;
    pages::keep(&seen, "konnectivity-server.png")?;
    let address = "http://127.0.0.1:8294/";
    let seen = browser.open(address)?;
    pages::judge(&seen, address)?;
    ensure!(
        seen.title == format!("konnectivity-agent {HOSTILE}"),
        "{}",
        seen.title
    );
    contains(&seen, &["1 of 1", "server-1", HOSTILE])
}
