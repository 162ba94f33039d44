// SPDX-License-Identifier: Apache-2.0

//! Certificates and CAs of server, agent and sidecar are replaced while a stream is open; invalid files change nothing.
//! With `PROXY_AGENT_TEST_LOAD=full` they are replaced a hundred times, which takes some seconds each time. The tests
//! of `proxy-tunnel` do the same within one process in every run.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::{self, wait_until};
use tests::{http, slow_machine};
use tunnel_tests::certs::{self, Existing};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::target;
use tunnel_tests::tunnel::{AGENT, AGENT_HEALTH, Example, PATIENCE, SERVER_HEALTH, Tunnel};

/// The health ports of the sidecar and of a second agent.
const SIDECAR_HEALTH: &str = "127.0.0.1:8096";
const SECOND_HEALTH: &str = "127.0.0.1:8193";

/// The address that the sidecar listens on.
const SIDECAR: &str = "127.0.0.1:8097";

/// The files of each program, with their names in its metrics.
const USES: [(&str, &str); 4] = [
    (SERVER_HEALTH, "server-cert"),
    (SERVER_HEALTH, "cluster-cert"),
    (AGENT_HEALTH, "agent-cert"),
    (SIDECAR_HEALTH, "client-cert"),
];

/// The end of a broken bundle of CAs: only the frame of this certificate is valid.
const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// Returns the number of reloads of a program's files with this result.
fn reloads(tunnel: &Tunnel, (health, certificate): (&str, &str), result: &str) -> Result<u64> {
    let metrics = http::ask(tunnel.netns(), health, "/metrics", &[])?.body;
    let certificate = format!("certificate=\"{certificate}\"");
    let result = format!("result=\"{result}\"");
    let mut lines = metrics.lines().filter(|line| {
        line.contains("_certificate_reloads_total{")
            && line.contains(&certificate)
            && line.contains(&result)
    });
    let line = lines
        .next()
        .with_context(|| format!("no {certificate} {result}: {metrics}"))?;
    let (_, count) = line.rsplit_once(' ').context("a line without value")?;
    Ok(count.parse()?)
}

/// Waits until a program counts more reloads with this result than before.
fn wait_for_reload(tunnel: &Tunnel, of: (&str, &str), result: &str, before: u64) -> Result<()> {
    wait_until(PATIENCE, &format!("{result} files for {}", of.1), || {
        Ok((reloads(tunnel, of, result)? > before).then_some(()))
    })
    .with_context(|| tunnel.logs())
}

/// Opens a connection to a target through the sidecar.
fn connect(tunnel: &Tunnel, target: &str) -> Result<TcpStream> {
    let mut stream = tunnel.netns().run(|| TcpStream::connect(SIDECAR))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .context("no answer of the sidecar")?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(stream)
}

/// Sends a message that is unique to the round, and reads it back.
fn round_trip(stream: &mut TcpStream, round: u64) -> Result<()> {
    let piece: Vec<u8> = (round..).take(8192).flat_map(u64::to_be_bytes).collect();
    let mut writer = stream.try_clone()?;
    let sent = piece.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let mut got = vec![0; piece.len()];
    stream
        .read_exact(&mut got)
        .context("the stream has ended")?;
    writing.join().expect("writing does not panic")?;
    ensure!(got == piece, "round {round}: other bytes");
    Ok(())
}

#[test]
fn certificates_and_authorities_change_under_a_stream() -> Result<()> {
    let example = Example::HttpConnect;
    let mut tunnel = Tunnel::start(example, Make::Ours, Make::Ours)?;
    let client = Part::TestClient.of(Make::Ours)?;
    let sidecar = [
        &["--mode=http-connect"][..],
        &example.client()[2..],
        &["--proxy-host=localhost"],
    ]
    .concat();
    tunnel.spawn("sidecar", &Part::Sidecar.of(Make::Ours)?, &sidecar)?;
    tunnel.wait_for(SIDECAR_HEALTH, "/readyz")?;
    let echo = target::echo(tunnel.netns())?.to_string();
    let mut stream = connect(&tunnel, &echo)?;
    let directory = tunnel.dir().join("certs");
    let rounds = if slow_machine::is_load_full() { 100 } else { 1 };
    for round in 0..rounds {
        round_trip(&mut stream, 2 * round)?;
        let old = tunnel.dir().join("old");
        cmd::run(
            std::process::Command::new("cp")
                .arg("-rT")
                .arg(&directory)
                .arg(&old),
            "",
        )?;
        let mut before = Vec::new();
        for of in USES {
            before.push(reloads(&tunnel, of, "used")?);
        }
        // The CAs are new too, so that no old certificate is valid any more.
        certs::write(&directory, &[], Existing::Replace)?;
        for (of, before) in USES.into_iter().zip(before) {
            wait_for_reload(&tunnel, of, "used", before)?;
        }
        // A program may have loaded an incomplete set of files during the replacement; the test waits for the final
        // files.
        wait_until(PATIENCE, "the last files in use everywhere", || {
            let is_in_use = connect(&tunnel, &echo).is_ok()
                && tunnel.run(&client, &example.client())?.status.success();
            Ok(is_in_use.then_some(()))
        })
        .with_context(|| tunnel.logs())?;
        let stale: Vec<String> = example
            .client()
            .iter()
            .map(|flag| flag.replace("=certs/", "=old/"))
            .collect();
        let stale: Vec<&str> = stale.iter().map(String::as_str).collect();
        let output = tunnel.run(&client, &stale)?;
        ensure!(!output.status.success(), "an old certificate is taken");
        let ports = ["--health-server-port=8193", "--admin-server-port=8194"];
        let agent = [AGENT.as_slice(), &ports].concat();
        tunnel.spawn("second agent", &Part::Agent.of(Make::Ours)?, &agent)?;
        tunnel
            .wait_for(SECOND_HEALTH, "/readyz")
            .with_context(|| tunnel.logs())?;
        tunnel.stop("second agent")?;
        round_trip(&mut stream, 2 * round + 1)?;
    }

    // A bundle with one malformed certificate is not used, and the last valid one stays in use.
    let bundle = directory.join("frontend/issued/ca.crt");
    let good = fs::read_to_string(&bundle)?;
    let before = reloads(&tunnel, USES[0], "refused")?;
    fs::write(&bundle, good.clone() + BROKEN)?;
    wait_for_reload(&tunnel, USES[0], "refused", before)?;
    // The client reads this file too.
    fs::write(&bundle, good)?;
    tunnel.request(&client, &example.client())?;
    round_trip(&mut stream, 2 * rounds)?;
    let refused = reloads(&tunnel, USES[0], "refused")?;
    ensure!(
        refused == before + 1,
        "{refused} refusals\n{}",
        tunnel.logs()
    );
    ensure!(
        !tunnel.lines("server", "cannot be used").is_empty(),
        "{}",
        tunnel.logs()
    );
    Ok(())
}
