// SPDX-License-Identifier: Apache-2.0

//! Certificates and CAs of server and agent are exchanged under traffic; files that cannot be used change nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tunnel_tests::certs::{self, Existing};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT, CURL, Example, PATIENCE, Tunnel};

/// The health port of a second agent.
const SECOND_HEALTH: &str = "127.0.0.1:8193";

/// The end of the bundle of CAs when it is broken: a certificate by its frame only.
const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// The server's report of changed files that it does not use.
const REFUSED: &str = "cannot be used";

/// Waits until a process has logged more than `count` lines with these words.
fn wait_for_lines(tunnel: &Tunnel, process: &str, words: &str, count: usize) -> Result<()> {
    wait_until(PATIENCE, &format!("{words:?} from the {process}"), || {
        Ok((tunnel.lines(process, words).len() > count).then_some(()))
    })
    .with_context(|| tunnel.logs())
}

#[test]
fn certificates_and_authorities_change_under_traffic() -> Result<()> {
    let example = Example::HttpConnect;
    let mut tunnel = Tunnel::start(example, Make::Ours, Make::Ours)?;
    let client = Part::TestClient.of(Make::Ours)?;
    let slow = [CURL.as_slice(), &["http://localhost:8000/sleep?time=12"]].concat();
    tunnel.spawn("slow request", Path::new("curl"), &slow)?;
    wait_for_lines(&tunnel, "server", "Proxy connection established", 0)?;

    // New CAs too: with the old ones nothing of this is good.
    let directory = tunnel.dir().join("certs");
    certs::write(&directory, &[], Existing::Replace)?;
    wait_until(
        PATIENCE,
        "a client with a certificate of the new CA",
        || {
            let output = tunnel.run(&client, &example.client())?;
            Ok(output.status.success().then_some(()))
        },
    )
    .with_context(|| tunnel.logs())?;
    let ports = ["--health-server-port=8193", "--admin-server-port=8194"];
    let agent = [AGENT.as_slice(), &ports].concat();
    tunnel.spawn("second agent", &Part::Agent.of(Make::Ours)?, &agent)?;
    tunnel
        .wait_for(SECOND_HEALTH, "/readyz")
        .with_context(|| tunnel.logs())?;

    // A bundle with one malformed certificate is not used, and the last good one stays.
    let bundle = directory.join("frontend/issued/ca.crt");
    let good = fs::read_to_string(&bundle)?;
    // While the files were exchanged, a pair may have been seen that does not match.
    let before = tunnel.lines("server", REFUSED).len();
    fs::write(&bundle, good.clone() + BROKEN)?;
    wait_for_lines(&tunnel, "server", REFUSED, before)?;
    // The client reads this file too.
    fs::write(&bundle, good)?;
    tunnel.request(&client, &example.client())?;

    // The request from before has its answer.
    wait_for_lines(&tunnel, "slow request", "Success", 0)?;
    let refused = tunnel.lines("server", REFUSED).len();
    ensure!(refused == before + 1, "{refused} lines\n{}", tunnel.logs());
    Ok(())
}
