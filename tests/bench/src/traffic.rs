// SPDX-License-Identifier: Apache-2.0

//! The work of clients and servers: small exchanges, connections, bulk. User space does as little
//! as possible, so that the differences are the kernel's.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::clock::{self, Instructions, ThreadClock};
use tests::client;
use tests::netns::Netns;

/// Bytes of a request and of an answer.
const MESSAGE: usize = 64;
/// Bytes of a write in bulk.
const CHUNK: usize = 64 * 1024;
/// Bytes in one operation in bulk.
const BULK: usize = 1024 * 1024;
/// A connection that hangs longer than this is broken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The operation that a client repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A request and its answer on a connection that stays.
    Exchange,
    /// Connect, a request and its answer, close.
    Connect,
    /// 1 MiB to the server.
    Send,
    /// 1 MiB from the server.
    Receive,
}

impl Work {
    /// All.
    pub const ALL: [Self; 4] = [Self::Exchange, Self::Connect, Self::Send, Self::Receive];

    /// In results, and for file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

impl Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exchange => "request/response",
            Self::Connect => "connect + request + close",
            Self::Send => "1 MiB to the server",
            Self::Receive => "1 MiB from the server",
        })
    }
}

/// The time of one operation, as the mean of one slot.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Nanoseconds.
    pub wall: f64,
    /// Nanoseconds of processor time of client and server.
    pub cpu: f64,
    /// Instructions of the processor, where it counts them.
    pub instructions: Option<f64>,
}

/// A server of one address, in a thread of its own. It takes one connection at a time.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: OwnedFd,
    clock: ThreadClock,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one in a namespace.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn listen(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind(address))
            .with_context(|| format!("listening on {address}"))?;
        let descriptor = OwnedFd::from(listener.try_clone()?);
        let thread = std::thread::spawn(move || {
            // Unpinned it would still be right, only not comparable; the client fails in the same way.
            if clock::pin(clock::processor()).is_ok() {
                accept(&listener);
            }
        });
        Ok(Self {
            address,
            listener: descriptor,
            clock: ThreadClock::of(&thread)?,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes it from accept(2).
        // SAFETY: shutdown has no memory effects.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener) {
    let mut kept = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        // An error here also fails the client, which reports it.
        if let Ok(Some(stream)) = serve(stream) {
            kept.push(stream);
        }
    }
}

/// Serves a connection to its end; returns it if the client wants to have it kept.
fn serve(mut stream: TcpStream) -> io::Result<Option<TcpStream>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut buffer = vec![0_u8; CHUNK];
    let mut request = [0_u8; MESSAGE];
    loop {
        match stream.read_exact(&mut request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        match request[0] {
            SEND => {
                receive(&mut stream, &mut buffer)?;
                stream.write_all(&request)?;
            }
            RECEIVE => send(&mut stream, &buffer)?,
            KEEP => {
                stream.write_all(&request)?;
                return Ok(Some(stream));
            }
            _ => stream.write_all(&request)?,
        }
    }
}

/// The first byte of a request.
const EXCHANGE: u8 = 0;
const SEND: u8 = 1;
const RECEIVE: u8 = 2;
const KEEP: u8 = 3;

fn send(stream: &mut TcpStream, buffer: &[u8]) -> io::Result<()> {
    for _ in 0..BULK / buffer.len() {
        stream.write_all(buffer)?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut left = BULK;
    while left > 0 {
        let most = left.min(buffer.len());
        match stream.read(&mut buffer[..most])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => left -= length,
        }
    }
    Ok(())
}

/// A client in the namespace of the calling thread.
struct Client {
    to: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.to, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(stream)
    }

    fn ask(stream: &mut TcpStream, what: u8) -> io::Result<()> {
        let mut message = [what; MESSAGE];
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    }

    fn work(&mut self, work: Work) -> io::Result<()> {
        if work == Work::Connect {
            let mut stream = self.connect()?;
            Self::ask(&mut stream, EXCHANGE)?;
            return stream.shutdown(Shutdown::Both);
        }
        if self.stream.is_none() {
            self.stream = Some(self.connect()?);
        }
        let (Some(stream), buffer) = (&mut self.stream, &mut self.buffer) else {
            return Err(ErrorKind::NotConnected.into());
        };
        match work {
            Work::Exchange | Work::Connect => Self::ask(stream, EXCHANGE),
            Work::Send => {
                stream.write_all(&[SEND; MESSAGE])?;
                send(stream, buffer)?;
                stream.read_exact(&mut [0; MESSAGE])
            }
            Work::Receive => {
                stream.write_all(&[RECEIVE; MESSAGE])?;
                receive(stream, buffer)
            }
        }
    }

    /// How often the clock is looked at.
    fn batch(work: Work) -> u32 {
        match work {
            Work::Exchange => 16,
            Work::Connect => 4,
            Work::Send | Work::Receive => 1,
        }
    }
}

/// Works for a slot from a namespace, after a quarter of one to warm up.
///
/// # Errors
/// When a connection fails: the variant does not work.
pub fn measure(
    from: &Netns,
    to: SocketAddr,
    server: &Server,
    work: Work,
    slot: Duration,
) -> Result<Sample> {
    from.run(|| -> io::Result<Sample> {
        clock::pin(clock::processor())?;
        let counter = Instructions::open(clock::processor());
        let mut client = Client {
            to,
            stream: None,
            buffer: vec![0; CHUNK],
        };
        let batch = Client::batch(work);
        let mut repeat = |time: Duration| -> io::Result<(u32, Duration)> {
            let (start, mut count) = (Instant::now(), 0);
            loop {
                for _ in 0..batch {
                    client.work(work)?;
                }
                count += batch;
                let elapsed = start.elapsed();
                if elapsed >= time {
                    return Ok((count, elapsed));
                }
            }
        };
        repeat(slot / 4)?;
        let used = || Ok::<_, io::Error>(ThreadClock::OWN.read()? + server.clock.read()?);
        let instructions_run = || counter.as_ref().map(Instructions::read).transpose();
        let (cpu, instructions) = (used()?, instructions_run()?);
        let (count, wall) = repeat(slot)?;
        let (cpu, after) = (used()?.saturating_sub(cpu), instructions_run()?);
        let per_operation = |total: f64| total / f64::from(count);
        let difference = after
            .zip(instructions)
            .map(|(after, before)| after - before);
        Ok(Sample {
            wall: per_operation(wall.as_secs_f64() * 1e9),
            cpu: per_operation(cpu.as_secs_f64() * 1e9),
            #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 in a slot")]
            instructions: difference.map(|count| per_operation(count as f64)),
        })
    })
    .with_context(|| format!("{work} from netns {} to {to}", from.name()))
}

/// Opens connections that the server keeps until it ends.
///
/// # Errors
/// When one cannot be opened.
pub fn keep_open(from: &Netns, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let mut stream = client::connect(from, to, TIMEOUT)?;
            Client::ask(&mut stream, KEEP)?;
            Ok(stream)
        })
        .collect::<io::Result<_>>()
        .with_context(|| format!("opening {count} connections to {to}"))
}
