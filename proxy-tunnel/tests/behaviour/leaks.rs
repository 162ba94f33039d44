// SPDX-License-Identifier: Apache-2.0

//! Tunnels are opened, and closed from both ends in every order: no task, byte or connection of them is left, neither
//! at the server nor at the agent. `PROXY_AGENT_TEST_LOAD=full` opens 100,000 of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proxy_tunnel::client::{Dialer, Mode, Tunnel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::rig::{Options, Rig, SOON, Target, load, until};

/// The behaviour of a target, which the first byte that it receives selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    /// Closes at once.
    Close,
    /// Resets the connection.
    Reset,
    /// Closes its sending side, and reads to the end.
    Finish,
    /// Sends more than its client reads, and closes.
    Flood,
    /// Reads to the end, replies, and closes.
    Answer,
}

const THEIRS: [Theirs; 5] = [
    Theirs::Close,
    Theirs::Reset,
    Theirs::Finish,
    Theirs::Flood,
    Theirs::Answer,
];

/// The behaviour of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    /// Disconnects at once.
    Leave,
    /// Disconnects when it has received the first byte.
    ReadAndLeave,
    /// Closes its sending side, and reads to the end.
    Finish,
    /// Sends until the connection ends.
    Send,
    /// Disconnects during its dial.
    LeaveWhileDialing,
}

const OURS: [Ours; 5] = [
    Ours::Leave,
    Ours::ReadAndLeave,
    Ours::Finish,
    Ours::Send,
    Ours::LeaveWhileDialing,
];

/// The number of concurrent tunnels.
const AT_ONCE: usize = 32;

/// The number of bytes of a flood: more than all buffers on the path hold.
const FLOOD: usize = 300_000;

/// Serves one connection; errors are caused by the client.
async fn serve(mut stream: TcpStream) {
    let Ok(command) = stream.read_u8().await else {
        return;
    };
    match THEIRS[usize::from(command)] {
        Theirs::Close => {}
        Theirs::Reset => {
            let reset = Some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(reset).unwrap();
        }
        Theirs::Finish => {
            let _ = stream.write_all(b"x").await;
            let _ = stream.shutdown().await;
            let mut rest = [0; 4096];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        }
        Theirs::Flood => drop(stream.write_all(&vec![0; FLOOD]).await),
        Theirs::Answer => {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let _ = stream.write_all(b"answer").await;
        }
    }
}

/// Starts a target. Returns its address and its number of connections.
async fn target() -> (String, Arc<AtomicUsize>) {
    let target = Target::new().await;
    let address = target.address.clone();
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        loop {
            let stream = target.accept().await;
            let count = Arc::clone(&count);
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                serve(stream).await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

async fn dial(dialer: &Dialer, address: &str, theirs: Theirs) -> Tunnel {
    let mut tunnel = dialer.dial(address).await.unwrap();
    let command = THEIRS.iter().position(|one| *one == theirs).unwrap();
    let command = u8::try_from(command).unwrap();
    tunnel.write_all(&[command]).await.unwrap();
    // If the connection has ended meanwhile, the end is not a failure.
    let _ = tunnel.flush().await;
    tunnel
}

/// Opens one tunnel and ends it in this way.
async fn live(dialer: Dialer, address: String, ours: Ours, theirs: Theirs) {
    if ours == Ours::LeaveWhileDialing {
        let patience = Duration::from_micros(fastrand::u64(1..2000));
        let _ = timeout(patience, dialer.dial(&address)).await;
        return;
    }
    let mut tunnel = dial(&dialer, &address, theirs).await;
    let mut rest = Vec::new();
    match ours {
        Ours::ReadAndLeave if theirs != Theirs::Answer => {
            let _ = tunnel.read(&mut [0]).await;
        }
        Ours::Finish => {
            let _ = tunnel.shutdown().await;
            let read = tunnel.read_to_end(&mut rest).await;
            if theirs == Theirs::Answer {
                assert_eq!((read.unwrap(), rest.as_slice()), (6, b"answer".as_slice()));
            }
        }
        Ours::Send if matches!(theirs, Theirs::Close | Theirs::Reset) => {
            let piece = [0; 8192];
            while tunnel.write_all(&piece).await.is_ok() && tunnel.flush().await.is_ok() {}
        }
        _ => {}
    }
}

async fn nothing_is_left(mode: Mode, count: usize) {
    let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
    let (address, open) = target().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    // Objects that are created only once exist after the first round.
    live(rig.dialer(), address.clone(), Ours::Finish, Theirs::Answer).await;
    let rest = async || {
        let mode = match mode {
            Mode::Grpc => "grpc_connections{service_method=\"Proxy\"} 0",
            Mode::HttpConnect => "http_connections 0",
        };
        for line in [mode, "established_connections 0", "pending_backend_dials 0"] {
            rig.until_counted(line).await;
        }
        agent.until_counted("open_endpoint_connections 0").await;
        until("all targets are left", || open.load(Ordering::SeqCst) == 0).await;
    };
    rest().await;
    let before = tasks();
    let mut living = JoinSet::new();
    for number in 0..count {
        if living.len() >= AT_ONCE {
            let ended = timeout(SOON, living.join_next()).await;
            ended.expect("a tunnel does not end").unwrap().unwrap();
        }
        let (ours, theirs) = (
            OURS[number % OURS.len()],
            THEIRS[number / OURS.len() % THEIRS.len()],
        );
        living.spawn(live(rig.dialer(), address.clone(), ours, theirs));
    }
    while let Some(ended) = timeout(SOON, living.join_next())
        .await
        .expect("a tunnel does not end")
    {
        ended.unwrap();
    }
    rest().await;
    until("tasks have ended", || tasks() <= before).await;
    assert_eq!((rig.budget.used(), agent.shared.budget.used()), (0, 0));
    // Server and agent still serve.
    live(rig.dialer(), address, Ours::Finish, Theirs::Answer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_tunnels_leave_nothing() {
    nothing_is_left(Mode::Grpc, load(750, 50_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_connect_tunnels_leave_nothing() {
    nothing_is_left(Mode::HttpConnect, load(750, 50_000)).await;
}
