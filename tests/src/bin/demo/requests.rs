// SPDX-License-Identifier: Apache-2.0

//! Sends TLS requests with curl on every path to the proxy, and counts the entries that they leave in conntrack.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::conntrack::{self, Entry};
use tests::node::{Node, Topology};
use tests::path::Path;
use tests::{Family, cmd, slow_machine};

/// curl's exit code for a time-out.
const CURL_TIMED_OUT: i32 = 28;
/// The time-out of a request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The results of the requests on one path.
#[derive(Debug)]
pub struct Row {
    /// The description of the path.
    pub path: String,
    /// `ok`, `timed out`, or curl's error message.
    pub result: String,
    /// The median time of a request, including the TCP and TLS handshakes, if all were answered.
    pub latency: Option<Duration>,
    /// The number of conntrack entries that the requests left.
    pub entries: usize,
}

/// Sends `count` requests on every path.
pub fn on_every_path(node: &Node, ca: &FilePath, count: usize) -> Result<Vec<Row>> {
    let paths = node.paths();
    let mut results = one_on_every_path(&paths, ca)?;
    // The latency is measured on an idle machine, with one request after the other.
    for (path, result) in paths.iter().zip(&mut results) {
        if result.is_err() {
            continue;
        }
        let mut times = Vec::new();
        for _ in 1..count {
            match request(path, ca)? {
                Ok(time) => times.push(time),
                Err(error) => *result = Err(error),
            }
        }
        times.sort_unstable();
        if result.is_ok() {
            *result = Ok(times[times.len() / 2]);
        }
    }
    let mut rows = Vec::new();
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        for (path, result) in paths.iter().zip(&results) {
            if path.family == family {
                rows.push(row(node, path, result, &entries));
            }
        }
    }
    Ok(rows)
}

/// Sends one request on each path, all at once, so that the time-outs overlap. Returns, for each, the time it took or
/// its error.
pub fn one_on_every_path(
    paths: &[Path<'_>],
    ca: &FilePath,
) -> Result<Vec<Result<Duration, String>>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .iter()
            .map(|path| scope.spawn(move || request(path, ca)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .collect()
    })
}

fn row(node: &Node, path: &Path<'_>, result: &Result<Duration, String>, entries: &[Entry]) -> Row {
    let topology = match path.client.as_str() {
        "pod0" => describe("pod", Topology::Veth),
        "pod1" => describe("pod", Topology::BridgeNetfilter),
        client => client.to_owned(),
    };
    Row {
        path: path.to_string().replace(&path.client, &topology),
        result: result
            .as_ref()
            .map_or_else(Clone::clone, |_| "ok".to_owned()),
        latency: result.as_ref().ok().copied(),
        entries: entries
            .iter()
            .filter(|entry| belongs_to(node, path, entry))
            .count(),
    }
}

fn describe(client: &str, topology: Topology) -> String {
    match topology {
        Topology::Veth => format!("{client} (veth)"),
        Topology::Bridge | Topology::BridgeNetfilter => format!("{client} (bridge)"),
    }
}

/// Returns true if the entry belongs to a connection on this path, in whichever direction conntrack saw it first.
fn belongs_to(node: &Node, path: &Path<'_>, entry: &Entry) -> bool {
    let ends = [entry.source, entry.destination];
    let pod = node
        .pods
        .iter()
        .position(|pod| ends.iter().any(|end| end.ip() == pod.address(path.family)));
    let client = pod.map_or_else(|| "host".to_owned(), |n| format!("pod{n}"));
    client == path.client && ends.contains(&path.destination())
}

/// Sends one request and returns the time it took, or its error.
fn request(path: &Path<'_>, ca: &FilePath) -> Result<Result<Duration, String>> {
    let to: SocketAddr = path.destination();
    let output = cmd::output(
        path.netns
            .command("curl")
            .args([
                "-sS",
                "--noproxy",
                "*",
                "--max-time",
                &slow_machine::of(TIMEOUT).as_secs().to_string(),
                "-o",
                "/dev/null",
            ])
            .args(["-w", "%{time_total}", "--cacert"])
            .arg(ca)
            .arg(format!("https://{to}/version")),
        "",
    )?;
    if output.status.code() == Some(CURL_TIMED_OUT) {
        return Ok(Err("timed out".to_owned()));
    }
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Ok(Err(complaint.trim().to_owned()));
    }
    let seconds = String::from_utf8(output.stdout)?;
    let seconds: f64 = seconds
        .parse()
        .with_context(|| format!("curl's time {seconds:?}"))?;
    Ok(Ok(Duration::from_secs_f64(seconds)))
}
