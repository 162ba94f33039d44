// SPDX-License-Identifier: Apache-2.0

//! Exchanges bytes that both ends can check: a client sends a seed, a length and that many pseudo-random bytes. The
//! server compares each with the sequence of the seed and replies with another sequence of the same length, which the
//! client compares. A length of 0 makes the server close the connection. An endless length makes it a stream in both
//! directions at once, see [`crate::stream`].

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::netns::Netns;
use crate::{Family, slow_machine, stream};

const CHUNK: usize = 64 * 1024;
/// The maximum number of bytes that is exchanged in full on slow machines, too.
const SMALL: u64 = 10_000;
/// The server's last bytes if everything that it received was correct.
pub(crate) const INTACT: &[u8; 8] = b"intact\r\n";
/// The server's last bytes otherwise.
pub(crate) const DAMAGED: &[u8; 8] = b"damaged\n";
/// The server's read time-out: longer than any test leaves a connection idle.
const TIMEOUT: Duration = Duration::from_hours(1);

/// Sends `len` bytes, receives as many, and checks all of them. On a slow machine it exchanges fewer bytes, except for
/// small exchanges.
///
/// # Errors
/// Returns an error if the connection breaks, or if a byte is wrong.
pub fn exchange(stream: &mut TcpStream, len: u64, seed: u64) -> Result<()> {
    let len = len.min(SMALL.max(slow_machine::times(usize::try_from(len)?) as u64));
    stream.set_nodelay(true)?;
    stream
        .write_all(&header(seed, len))
        .context("sending the header")?;
    send(stream, seed, len).context("sending")?;
    receive(stream, !seed, len).context("receiving")?;
    let mut end = [0; INTACT.len()];
    stream
        .read_exact(&mut end)
        .context("waiting for the server's confirmation")?;
    ensure!(&end == INTACT, "the server found its bytes damaged");
    Ok(())
}

/// Makes the server close the connection, and waits until it has closed it.
///
/// # Errors
/// Returns an error if the server does not close it.
pub fn hang_up(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[0; 16]).context("asking to hang up")?;
    ensure!(stream.read(&mut [0])? == 0, "an answer instead of the end");
    Ok(())
}

/// Returns the first 16 bytes of an exchange.
pub(crate) fn header(seed: u64, len: u64) -> [u8; 16] {
    let mut header = [0_u8; 16];
    header[..8].copy_from_slice(&seed.to_le_bytes());
    header[8..].copy_from_slice(&len.to_le_bytes());
    header
}

/// A server for such exchanges, with any number of connections at once.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the server on an address in a namespace.
    ///
    /// # Errors
    /// Returns an error if it cannot listen there.
    pub fn listen(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind(address))
            .with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let is_vip = |family: &Family| family.vip() == address.ip();
        if address.ip().is_unspecified() || Family::ALL.iter().any(is_vip) {
            slow_machine::be_noticed()?;
        }
        Ok(Self::start(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(stream)
        }))
    }

    /// Starts the server on a Unix socket, which no packet filter affects.
    ///
    /// # Errors
    /// Returns an error if it cannot listen there.
    pub fn listen_unix(path: &Path) -> Result<Self> {
        // It is no error if there is no socket of an earlier server.
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self::start(move || {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(stream)
        }))
    }

    /// Returns the number of connections that the server has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    fn start<S: Read + Write + Send + 'static>(
        mut accept: impl FnMut() -> io::Result<S> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match accept() {
                    // The client reports errors to the test.
                    Ok(stream) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        drop(std::thread::spawn(move || serve(stream)));
                    }
                    Err(_) => std::thread::sleep(slow_machine::of(Duration::from_millis(1))),
                }
            }
        });
        Self {
            stop,
            accepted,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    /// Stops listening; existing connections continue.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: impl Read + Write) -> Result<()> {
    loop {
        let mut header = [0_u8; 16];
        stream.read_exact(&mut header)?;
        let (seed, len) = header.split_at(8);
        let seed = u64::from_le_bytes(seed.try_into()?);
        let len = u64::from_le_bytes(len.try_into()?);
        if len == 0 {
            return Ok(());
        }
        if len == stream::ENDLESS {
            return stream::serve(&mut stream, seed);
        }
        let intact = receive(&mut stream, seed, len);
        send(&mut stream, !seed, len)?;
        let end = if intact.is_ok() { INTACT } else { DAMAGED };
        stream.write_all(end)?;
    }
}

fn send(stream: &mut impl Write, seed: u64, len: u64) -> io::Result<()> {
    let mut generator = Generator(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = len;
    while left > 0 {
        generator.fill(&mut chunk);
        let n = chunk_len(left);
        stream.write_all(&chunk[..n])?;
        left -= n as u64;
    }
    Ok(())
}

fn receive(stream: &mut impl Read, seed: u64, len: u64) -> Result<()> {
    let mut generator = Generator(seed);
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut left = len;
    let mut damaged = None;
    while left > 0 {
        generator.fill(&mut expected);
        let n = chunk_len(left);
        stream
            .read_exact(&mut chunk[..n])
            .with_context(|| format!("{left} of {len} bytes missing"))?;
        if chunk[..n] != expected[..n] && damaged.is_none() {
            damaged = Some(len - left);
        }
        left -= n as u64;
    }
    if let Some(offset) = damaged {
        bail!("damaged in the {CHUNK} bytes from offset {offset}");
    }
    Ok(())
}

fn chunk_len(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// `splitmix64`: fast, and every position of the sequence differs from its neighbours.
#[derive(Debug)]
pub struct Generator(pub(crate) u64);

impl Generator {
    pub(crate) fn fill(&mut self, chunk: &mut [u8]) {
        for bytes in chunk.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.number().to_le_bytes());
        }
    }

    /// Returns the next number of the sequence.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _) = listener.accept().expect("a client");
                send(&mut peer, 1, 100_000).expect("the client reads everything");
                send(&mut peer, 1, 100_000).expect("the client reads everything");
            });
            let mut stream = TcpStream::connect(address).expect("a server");
            receive(&mut stream, 1, 100_000).expect("the same seed");
            let damaged = receive(&mut stream, 2, 100_000).expect_err("another seed");
            assert!(damaged.to_string().contains("offset 0"), "{damaged}");
        });
    }
}
