// SPDX-License-Identifier: Apache-2.0

//! The webhook as a server: protocols, slow clients, too many, the end.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::cmd;
use tests::dir::Dir;
use tests::leftovers;
use tests::netns::Netns;
use webhook_tests::certs::Authority;
use webhook_tests::client::{Client, Tls, header};
use webhook_tests::load::Load;
use webhook_tests::oracle::{check, review};
use webhook_tests::{PATH, PATIENCE, Webhook, binary};

/// The certificates of Debian's curl are of no use here: it gets the authority's.
fn curl(webhook: &Webhook, args: &[&str], body: &str) -> Result<String> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--cacert"])
        .arg(webhook.authority.certificate())
        .args([
            "-H",
            "Content-Type: application/json",
            "--data-binary",
            "@-",
        ])
        .args(args)
        .arg(format!(
            "https://localhost:{}{PATH}",
            webhook.reviews.port()
        ));
    cmd::run(&mut command, body)
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}})
}

#[test]
fn versions_of_tls_and_http() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let body = review(&pod()).to_string();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let tls = Tls::with(&webhook.authority, None, &[version])?;
        let mut client = Client::connect(webhook.reviews, &tls)?;
        ensure!(client.version() == Some(version.version));
        check(body.as_bytes(), &client.review(body.as_bytes())?)?;
    }
    // Larger than HTTP/2's windows.
    let mut large = pod();
    large["metadata"]["annotations"] = json!({"a": "b".repeat(2 << 20)});
    for pod in [pod(), large] {
        let body = review(&pod).to_string();
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let text = curl(
                &webhook,
                &[flag, "-w", "\n%{http_version} %{http_code}"],
                &body,
            )?;
            let (answer, version_and_code) = text.rsplit_once('\n').context("no status")?;
            ensure!(
                version_and_code == format!("{version} 200"),
                "{version_and_code}"
            );
            let answer: Value = serde_json::from_str(answer)?;
            ensure!(answer["response"]["patchType"] == "JSONPatch", "{answer}");
        }
    }
    let tls11 = curl(&webhook, &["--tls-max", "1.1"], &body);
    ensure!(tls11.is_err(), "TLS 1.1 is no more: {tls11:?}");
    // A client without TLS is not served and disturbs no other client.
    let mut plain = TcpStream::connect(webhook.reviews)?;
    write!(plain, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    check(body.as_bytes(), &webhook.client()?.review(body.as_bytes())?)?;
    Ok(())
}

#[test]
fn slow_and_half_open_clients_do_not_stop_others() -> Result<()> {
    const EACH: u32 = 100;
    let webhook = Webhook::start(&[])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = review(&pod()).to_string();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
    let start = Instant::now();
    let mut silent = Vec::new();
    let mut slow: Vec<Client> = Vec::new();
    for _ in 0..EACH {
        // Nothing at all, and the beginning of a handshake.
        silent.push(TcpStream::connect(webhook.reviews)?);
        let mut begun = TcpStream::connect(webhook.reviews)?;
        begun.write_all(&[22, 3, 1, 2, 0, 1])?;
        silent.push(begun);
        // Half a head, and half a body.
        let mut client = Client::connect(webhook.reviews, &tls)?;
        client.send(head.as_bytes())?;
        slow.push(client);
        let mut client = Client::connect(webhook.reviews, &tls)?;
        client.send(format!("{head}Content-Length: 7000000\r\n\r\n{{").as_bytes())?;
        slow.push(client);
    }
    // They are all connected, and another client is served at once, on old and new connections.
    let mut kept = webhook.client()?;
    for _ in 0..50 {
        check(body.as_bytes(), &kept.review(body.as_bytes())?)?;
        check(body.as_bytes(), &webhook.client()?.review(body.as_bytes())?)?;
    }
    println!("{} slow clients for {:?}", 4 * EACH, start.elapsed());
    // And they are sent away after a while.
    for (number, mut client) in slow.into_iter().enumerate() {
        let rest = client.wait_for_end()?;
        let is_half_body = number % 2 == 1;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        ensure!(
            rest.starts_with("HTTP/1.1 408") == is_half_body,
            "{number}: {rest}"
        );
    }
    let failures = "apiserver_proxy_webhook_handshake_failures_total";
    cmd::wait_until(PATIENCE, "silent clients to be cut", || {
        let all = webhook.metric(failures)? >= u64::from(2 * EACH);
        Ok(all.then_some(()))
    })?;
    check(body.as_bytes(), &kept.review(body.as_bytes())?)?;
    // A failed handshake is counted before its connection ends.
    cmd::wait_until(PATIENCE, "all other connections to have ended", || {
        let is_alone = webhook.metric("apiserver_proxy_webhook_connections")? == 1;
        Ok(is_alone.then_some(()))
    })
}

#[test]
fn too_many_at_once() -> Result<()> {
    let webhook = Webhook::start(&["--max-requests=2", "--max-connections=5"])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = review(&pod()).to_string();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(webhook.reviews, &tls)?;
        client.send(format!("{head}Content-Length: 100\r\n\r\n").as_bytes())?;
        slow.push(client);
    }
    cmd::wait_until(PATIENCE, "two requests in flight", || {
        let two = webhook.metric("apiserver_proxy_webhook_requests_in_flight")? == 2;
        Ok(two.then_some(()))
    })?;
    let answer = webhook.client()?.review(body.as_bytes())?;
    ensure!(answer.status == 503, "{}", answer.head);
    ensure!(header(&answer.head, "retry-after") == Some("1"));
    // Connections beyond the limit wait until others have ended.
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(Client::connect(webhook.reviews, &tls)?);
    }
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Client::connect(webhook.reviews, &tls));
        drop(idle);
        waiting.join()
    });
    drop(slow);
    let mut client = waiting.map_err(|_| anyhow::anyhow!("it panicked"))??;
    cmd::wait_until(PATIENCE, "room for a request", || {
        Ok((client.review(body.as_bytes())?.status == 200).then_some(()))
    })
}

#[test]
fn the_memory_of_bodies_is_bounded() -> Result<()> {
    const LARGE: usize = 6 << 20;
    let webhook = Webhook::start(&[])?;
    let tls = Tls::new(&webhook.authority)?;
    let mut head = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
    head.push_str("Content-Length: 7000000\r\n\r\n");
    let half = " ".repeat(LARGE);
    let mut refused = 0;
    let mut clients = Vec::new();
    // Each sends most of its body; those for which there is no room get an error.
    for _ in 0..10 {
        let mut client = Client::connect(webhook.reviews, &tls)?;
        client.send(head.as_bytes())?;
        if client.send(half.as_bytes()).is_err() {
            refused += 1;
        }
        clients.push(client);
    }
    let body = review(&pod()).to_string();
    cmd::wait_until(PATIENCE, "requests to be refused", || {
        let name = "apiserver_proxy_webhook_requests_total{result=\"overload\"}";
        Ok((webhook.metric(name)? >= 1).then_some(()))
    })?;
    let resident = webhook.resident()?;
    println!("{refused} refused, {resident} KiB resident");
    ensure!(resident < 64 << 10, "{resident} KiB are resident");
    drop(clients);
    let mut client = webhook.client()?;
    cmd::wait_until(PATIENCE, "room for a body", || {
        Ok((client.review(body.as_bytes())?.status == 200).then_some(()))
    })?;
    let in_flight = "apiserver_proxy_webhook_requests_in_flight";
    cmd::wait_until(PATIENCE, "requests to end with their clients", || {
        Ok((webhook.metric(in_flight)? == 0).then_some(()))
    })?;
    // The memory of large bodies is given back.
    cmd::wait_until(PATIENCE, "memory to be given back", || {
        Ok((webhook.resident()? < 16 << 10).then_some(()))
    })
}

#[test]
fn it_ends_on_sigterm() -> Result<()> {
    let webhook = Webhook::start(&["--shutdown-delay-seconds=3600"])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = review(&pod()).to_string();
    let mut idle = webhook.client()?;
    let mut client = webhook.client()?;
    webhook.process.signal(libc::SIGTERM)?;
    cmd::wait_until(PATIENCE, "not to be ready", || {
        Ok((webhook.probe("/readyz")?.0 == 503).then_some(()))
    })?;
    // Not ready, and still serving: on old and on new connections.
    ensure!(webhook.probe("/healthz")?.0 == 200);
    check(body.as_bytes(), &idle.review(body.as_bytes())?)?;
    check(
        body.as_bytes(),
        &Client::connect(webhook.reviews, &tls)?.review(body.as_bytes())?,
    )?;
    // A request that is under way is answered.
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n");
    client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    cmd::wait_until(PATIENCE, "the request to begin", || {
        let one = webhook.metric("apiserver_proxy_webhook_requests_in_flight")? == 1;
        Ok(one.then_some(()))
    })?;
    webhook.process.signal(libc::SIGTERM)?;
    ensure!(idle.wait_for_end()?.is_empty());
    cmd::wait_until(PATIENCE, "it to listen no more", || {
        Ok(TcpStream::connect(webhook.reviews).is_err().then_some(()))
    })?;
    client.send(body.as_bytes())?;
    let answer = client.receive()?;
    check(body.as_bytes(), &answer)?;
    ensure!(
        header(&answer.head, "connection") == Some("close"),
        "{}",
        answer.head
    );
    let mut webhook = webhook;
    let status = webhook.process.wait(PATIENCE)?;
    ensure!(status.success(), "{status}\n{}", webhook.log());
    Ok(())
}

/// The seeds' example, word for word, except for the programs: in a namespace, where all addresses
/// and port 9443 belong to no other process.
#[test]
fn the_example_of_the_seeds() -> Result<()> {
    let dir = Dir::new()?;
    let testdata = dir.path().join("internal/admission/testdata");
    fs::create_dir_all(&testdata)?;
    Authority::new(&dir.path().join("authority"))?
        .issue("server")?
        .install(&testdata)?;
    let mut asked = review(&json!({
        "spec": {
            "initContainers": [{"name": "foo-init", "resources": {}}],
            "containers": [
                {"name": "foo", "resources": {}},
                {"name": "set", "env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "kept"}]},
            ],
        },
    }));
    asked["request"]["dryRun"] = json!(false);
    fs::write(
        testdata.join("admission.json"),
        serde_json::to_string_pretty(&asked)?,
    )?;
    let netns = Netns::new(&format!("pa-{}-hook", leftovers::unique_id()?))?;
    let mut server = netns.command("bash");
    server
        .current_dir(dir.path())
        .env("WEBHOOK", binary()?)
        .args([
            "-c",
            "exec $WEBHOOK --apiserver-fqdn=foo.bar. --cert-dir ${PWD}/internal/admission/testdata",
        ])
        .stderr(Stdio::null());
    let _server = cmd::Process::new(cmd::guard_child(&mut server).spawn()?);
    cmd::wait_until(PATIENCE, "the webhook to serve", || {
        let mut probe = netns.command("curl");
        probe.args(["-k", "--silent", "https://localhost:9443/"]);
        Ok(cmd::output(&mut probe, "")?.status.success().then_some(()))
    })?;
    let mut client = netns.command("bash");
    client.current_dir(dir.path()).args([
        "-c",
        r#"curl -k -XPOST --silent \
            -H "Content-Type: application/json" \
            -d "@internal/admission/testdata/admission.json" \
            -H "Accept: application/json" \
            https://localhost:9443/webhook/pod-apiserver-env | jq -r '.response.patch' | base64 -d | jq -r '.'"#,
    ]);
    let printed = cmd::run(&mut client, "")?;
    let patch: Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    let value = json!([{"name": "KUBERNETES_SERVICE_HOST", "value": "foo.bar."}]);
    let expected = json!([
        {"op": "add", "path": "/spec/initContainers/0/env", "value": value},
        {"op": "add", "path": "/spec/containers/0/env", "value": value},
    ]);
    ensure!(patch == expected, "{printed}");
    Ok(())
}

#[test]
fn fifty_clients_and_little_memory() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = review(&pod()).to_string();
    let stop = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            stop.store(true, Ordering::Relaxed);
        });
        let load = Load {
            address: webhook.reviews,
            tls: &tls,
            clients: 50,
            reconnect: None,
            review: body.as_bytes(),
        };
        load.run(&stop, || ())
    })?;
    let resident = webhook.resident()?;
    println!(
        "{} reviews in {:?}, {resident} KiB",
        served.reviews, served.time
    );
    ensure!(resident <= 12 << 10, "{resident} KiB are resident");
    Ok(())
}
