// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask demo tunnel`: runs the three examples of the tunnel with real programs, and prints the path of each
//! request and the metrics before and after it. Prometheus then scrapes a node exporter through the tunnel.

mod metrics;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tests::signals;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::prometheus;
use tunnel_tests::tunnel::{CURL, Example, TARGET, Tunnel};

use self::metrics::Metrics;

/// The number of acts: one for each example, and one for Prometheus.
const ACTS: usize = Example::ALL.len() + 1;

/// The log lines that show a request's path: the process, and words of the line.
const TRACES: [(&str, &str); 4] = [
    ("server", "Received DIAL_REQ"),
    ("agent", "Endpoint connection established"),
    ("server", "Proxy connection established"),
    ("agent", "error dialing backend"),
];

fn main() -> ExitCode {
    if let Some(arg) = std::env::args().nth(1) {
        println!(
            "Usage: cargo xtask demo tunnel\n\nStarts konnectivity-server, konnectivity-agent and a target in network \
             namespaces of their own, and sends\nrequests through the tunnel: gRPC with mTLS, gRPC on a Unix socket, \
             HTTP CONNECT with mTLS, curl, and\nPrometheus. Needs root; touches nothing outside of its namespaces and \
             leaves nothing behind."
        );
        return ExitCode::from(if ["-h", "--help"].contains(&arg.as_str()) {
            0
        } else {
            2
        });
    }
    signals::run("\nThe demo failed", demo)
}

fn demo() -> Result<()> {
    let start = Instant::now();
    for part in [
        Part::Server,
        Part::Agent,
        Part::TestClient,
        Part::TestServer,
    ] {
        println!("{}", part.of(Make::Ours)?.display());
    }
    for (number, example) in (1..).zip(Example::ALL) {
        println!("\n[{number}/{ACTS}] {}\n", example.name());
        act(example).with_context(|| example.name())?;
    }
    println!("\n[{ACTS}/{ACTS}] Prometheus through the tunnel\n");
    monitoring().context("Prometheus")?;
    println!(
        "\nAll requests were answered through the tunnel, in {:.1} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Returns the connections of an example, from the client to the target.
const fn road(example: Example) -> &'static str {
    match example {
        Example::Grpc => {
            "client ==gRPC, mTLS==> 127.0.0.1:8090 server 127.0.0.1:8091 <==gRPC, mTLS== agent --> 127.0.0.1:8000"
        }
        Example::GrpcUds => {
            "client ==gRPC==> unix:uds-proxy server 127.0.0.1:8091 <==gRPC, mTLS== agent --> 127.0.0.1:8000"
        }
        Example::HttpConnect => {
            "client ==CONNECT, mTLS==> 127.0.0.1:8090 server 127.0.0.1:8091 <==gRPC, mTLS== agent --> 127.0.0.1:8000"
        }
    }
}

fn act(example: Example) -> Result<()> {
    println!("{}\n", road(example));
    println!("$ http-test-server");
    println!("$ konnectivity-server {}", example.server().join(" "));
    println!(
        "$ konnectivity-agent {}",
        tunnel_tests::tunnel::AGENT.join(" ")
    );
    let tunnel = Tunnel::start(example, Make::Ours, Make::Ours)?;
    let client = Part::TestClient.of(Make::Ours)?;
    send(
        &tunnel,
        "konnectivity-test-client",
        &client,
        &example.client(),
    )?;
    if example == Example::HttpConnect {
        let args = [CURL.as_slice(), &[TARGET]].concat();
        send(&tunnel, "curl", Path::new("curl"), &args)?;
    }
    Ok(())
}

/// Makes one request, and prints the command, the response, its path in the logs, and the changes of the metrics.
fn send(tunnel: &Tunnel, name: &str, program: &Path, args: &[&str]) -> Result<()> {
    let before = Metrics::read(tunnel)?;
    let lines_before = TRACES.map(|(process, words)| tunnel.lines(process, words).len());
    println!("\n$ {name} {}", args.join(" "));
    let page = tunnel.request(program, args)?;
    let title = page
        .split_once("<title>")
        .and_then(|(_, rest)| rest.split_once("</title>"));
    println!(
        "  answer: a page with the title {}",
        title.context("no title")?.0
    );
    for ((process, words), skipped) in TRACES.into_iter().zip(lines_before) {
        for line in tunnel.lines(process, words).into_iter().skip(skipped) {
            println!("  {process:6}: {line}");
        }
    }
    println!("  metrics, before and after:");
    for line in Metrics::read(tunnel)?.since(&before) {
        println!("    {line}");
    }
    Ok(())
}

fn monitoring() -> Result<()> {
    println!(
        "Prometheus ==CONNECT, mTLS==> 127.0.0.1:8090 server 127.0.0.1:8091 <==gRPC, mTLS== agent --> \
         127.0.0.1:9100 node exporter\n(the scrape itself is TLS from end to end)\n"
    );
    for line in prometheus::CONFIGURATION.lines() {
        println!("  {line}");
    }
    let mut tunnel = Tunnel::start(Example::HttpConnect, Make::Ours, Make::Ours)?;
    let before = Metrics::read(&tunnel)?;
    prometheus::start(&mut tunnel)?;
    let found = prometheus::scraped(&tunnel)?;
    println!("\n  up{{job=\"node\"}} 1");
    println!(
        "  node_uname_info{{instance={}, sysname={}, release={}}} 1",
        found["instance"], found["sysname"], found["release"]
    );
    println!("  metrics of the tunnel, before and after:");
    for line in Metrics::read(&tunnel)?.since(&before) {
        println!("    {line}");
    }
    Ok(())
}
