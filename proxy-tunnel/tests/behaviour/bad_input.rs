// SPDX-License-Identifier: Apache-2.0

//! Arbitrary bytes on each port: the server keeps running and serves others.

use std::time::Duration;

use proxy_tunnel::client::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::rig::{Options, Rig, SOON, Target, round_trip};

/// Returns bytes that are not HTTP/2, HTTP/1 or TLS, or that begin like one of these and end otherwise.
fn garbage() -> Vec<Vec<u8>> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = b"\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut all = vec![
        Vec::new(),
        vec![0; 1000],
        vec![0xff; 1000],
        b"\x16\x03\x01\xff\xff\x01\0\xff\xff".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"CONNECT ".to_vec(),
        [b"CONNECT a:1 HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 100_000]].concat(),
        "CONNECT a:1 HTTP/1.1\r\nX: y\r\n".repeat(1000).into_bytes(),
        preface.clone(),
        [preface.clone(), vec![0xff; 100]].concat(),
        // A frame of the maximum length; header fields that refer to no table entry; one reference too many.
        [
            preface.clone(),
            settings.clone(),
            b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(),
        ]
        .concat(),
        [
            preface.clone(),
            settings.clone(),
            b"\0\0\x02\x01\x04\0\0\0\x01\xff\xff".to_vec(),
        ]
        .concat(),
        [
            preface.clone(),
            settings.clone(),
            b"\0\0\x02\x01\x04\0\0\0\x01\x41\xff".to_vec(),
        ]
        .concat(),
        [
            preface,
            settings,
            b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\0".repeat(1000),
        ]
        .concat(),
    ];
    for length in [1, 10, 100, 1000, 10_000] {
        all.push((0..length).map(|_| fastrand::u8(..)).collect());
    }
    all
}

async fn throw<S>(mut stream: S, bytes: &[u8])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // The server may close the connection at any byte, or wait for more.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let ended = timeout(SOON, stream.read_to_end(&mut rest)).await;
    assert!(
        ended.is_ok(),
        "{:?} bytes keep a connection open",
        bytes.len()
    );
}

#[tokio::test]
async fn garbage_on_every_port() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, _agent) = Rig::with_agent(Options::new(mode)).await;
        let echo = Target::echo().await;
        let mut tunnel = rig.dialer().dial(&echo).await.unwrap();
        for bytes in garbage() {
            throw(UnixStream::connect(&rig.socket).await.unwrap(), &bytes).await;
            throw(TcpStream::connect(rig.tls).await.unwrap(), &bytes).await;
            throw(TcpStream::connect(rig.agents).await.unwrap(), &bytes).await;
        }
        round_trip(&mut tunnel, b"still here").await;
        drop(tunnel);
        round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"new").await;
        rig.until_counted("http_connections 0").await;
    }
}

#[tokio::test]
async fn metadata_beyond_all_limits_ends_one_connection() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let long = "x".repeat(200_000);
    let mut peer = super::peers::Peer::agent(&rig, &[("agentid", long.as_str())]).await;
    assert!(peer.opened().await.is_err());
    let echo = Target::echo().await;
    round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
}

/// The server closes connections of idle clients after a time limit; until then they do not affect others.
#[tokio::test]
async fn idle_connections_keep_nothing_from_others() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(UnixStream::connect(&rig.socket).await.unwrap());
    }
    let echo = Target::echo().await;
    let answered = timeout(SOON, rig.dialer().dial(&echo)).await.unwrap();
    round_trip(&mut answered.unwrap(), b"x").await;
    // The time limit of a TLS handshake is ten seconds.
    let mut silent = TcpStream::connect(rig.agents).await.unwrap();
    let ended = timeout(Duration::from_secs(15), silent.read(&mut [0])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}
