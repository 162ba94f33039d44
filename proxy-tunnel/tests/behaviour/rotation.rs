// SPDX-License-Identifier: Apache-2.0

//! Every certificate and every CA is replaced a hundred times while a stream is open: no byte of the stream is lost,
//! and a peer that connects later needs the new ones. tests/tunnel does the same with the programs.

use std::fs;

use proxy_serve::reload::Look as _;
use proxy_tunnel::client::{Dialer, Mode};

use super::rig::{Agent, Options, Rig, Target, round_trip};

const ROTATIONS: usize = 100;

/// The number of rounds in which an agent connects with the new certificates too.
const AGENTS: usize = 10;

/// Returns a client with the certificates that the files contain now.
fn dialer(rig: &Rig) -> Dialer {
    Dialer::new(rig.tls_endpoint(), rig.mode)
}

#[tokio::test]
async fn nothing_is_lost_under_a_hundred_rotations() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
        let echo = Target::echo().await;
        let mut stream = dialer(&rig).dial(&echo).await.unwrap();
        for number in 0..ROTATIONS {
            let old = dialer(&rig);
            rig.scratch.renew();
            rig.look();
            agent.tls.lock().unwrap().look();
            let piece: Vec<u8> = (0..50_000).map(|_| fastrand::u8(..)).collect();
            round_trip(&mut stream, &piece).await;
            let mut new = dialer(&rig).dial(&echo).await.unwrap();
            round_trip(&mut new, b"new").await;
            assert!(
                old.dial(&echo).await.is_err(),
                "{number}: old certificates are taken"
            );
            if number % AGENTS == 0 {
                // The stream continues with the agent that carries it.
                let second = Agent::start(&rig, &[rig.agents.port()]);
                second.until_counted("open_server_connections 1").await;
                drop(second);
                rig.until_counted("ready_backend_connections 1").await;
            }
        }
        rig.until_counted(&format!(
            "certificate_reloads_total{{certificate=\"server-cert\",result=\"used\"}} {ROTATIONS}"
        ))
        .await;
    }
}

/// Files that are not certificates change nothing but a counter.
#[tokio::test]
async fn a_broken_file_is_counted_and_not_used() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let echo = Target::echo().await;
    let good = fs::read(rig.scratch.file("ca.crt")).unwrap();
    let line = |count| {
        format!(
            "certificate_reloads_total{{certificate=\"cluster-cert\",result=\"refused\"}} {count}"
        )
    };
    rig.until_counted(&line(0)).await;
    let before = dialer(&rig);
    let bad: [&[u8]; 3] = [b"", b"no PEM", &good[..good.len() / 2]];
    for (count, bytes) in (1..).zip(bad) {
        fs::write(rig.scratch.file("ca.crt"), bytes).unwrap();
        rig.look();
        rig.look();
        rig.until_counted(&line(count)).await;
        round_trip(&mut before.dial(&echo).await.unwrap(), b"x").await;
    }
    fs::write(rig.scratch.file("ca.crt"), &good).unwrap();
    rig.look();
    rig.until_counted(&line(bad.len())).await;
}

#[tokio::test]
async fn when_certificates_end_is_counted() {
    let rig = Rig::new(Mode::Grpc).await;
    let end = time(2040);
    rig.scratch
        .issue("server", |params| params.not_after = end.into());
    rig.look();
    let text = rig.metrics();
    for name in ["server-cert", "cluster-cert"] {
        let line = format!(
            "konnectivity_network_proxy_server_certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}} {}",
            end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
    for name in ["server-ca-cert", "cluster-ca-cert"] {
        assert!(text.contains(&format!(
            "certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}}"
        )));
    }
}

/// Returns the middle of a year, to the second.
fn time(year: u64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_hours((year - 1970) * 8766)
}
