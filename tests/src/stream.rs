// SPDX-License-Identifier: Apache-2.0

//! A live connection: bytes flow in both directions at once, all the time, until the client ends it, and both ends
//! check them. If bytes are lost, duplicated or damaged in transit, one of the ends detects it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::slow_machine;
use crate::transfer::{DAMAGED, Generator, INTACT, header};

/// The length in the header that starts an endless stream.
pub(crate) const ENDLESS: u64 = u64::MAX;
const CHUNK: usize = 8 * 1024;
/// The pause between two chunks, which results in about 800 KiB/s in each direction.
const PAUSE: Duration = Duration::from_millis(10);

/// A pseudo-random sequence that is consumed in pieces of any length.
struct Sequence {
    generator: Generator,
    chunk: Vec<u8>,
    used: usize,
}

impl Sequence {
    fn new(seed: u64) -> Self {
        Self {
            generator: Generator(seed),
            chunk: vec![0; CHUNK],
            used: CHUNK,
        }
    }

    fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.used == CHUNK {
                self.generator.fill(&mut self.chunk);
                self.used = 0;
            }
            let left = &self.chunk[self.used..];
            let (now, later) = out.split_at_mut(left.len().min(out.len()));
            now.copy_from_slice(&left[..now.len()]);
            self.used += now.len();
            out = later;
        }
    }

    /// Returns true if the next bytes of the sequence are these.
    fn goes_on_with(&mut self, bytes: &[u8]) -> bool {
        let mut expected = vec![0; bytes.len()];
        self.fill(&mut expected);
        expected == bytes
    }
}

/// The server's end: replies to each piece with one of the same length from another sequence, and reports at the end
/// whether all bytes it received were correct.
pub(crate) fn serve(stream: &mut (impl Read + Write), seed: u64) -> Result<()> {
    let (mut requests, mut replies) = (Sequence::new(seed), Sequence::new(!seed));
    let mut piece = vec![0; CHUNK];
    let mut end = INTACT;
    loop {
        let n = stream.read(&mut piece)?;
        if n == 0 {
            return Ok(stream.write_all(end)?);
        }
        if !requests.goes_on_with(&piece[..n]) {
            end = DAMAGED;
        }
        replies.fill(&mut piece[..n]);
        stream.write_all(&piece[..n])?;
    }
}

/// The client's end of a live connection.
#[derive(Debug)]
pub struct Live {
    name: String,
    port: u16,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<u64>>,
}

impl Live {
    /// Starts streaming on a new connection to a [`crate::transfer::Server`].
    ///
    /// # Errors
    /// Returns an error if the connection is broken.
    pub fn start(name: &str, stream: &TcpStream, seed: u64) -> Result<Self> {
        Self::start_at(PAUSE, name, stream, seed)
    }

    /// Starts streaming with a pause between two chunks of 8 KiB, for very many streams at once. On a slow machine a
    /// chunk needs more processor time and the tested operation takes longer: the pause grows with both, so that
    /// streams leave enough processor time to the tested operation.
    ///
    /// # Errors
    /// Returns an error if the connection is broken.
    pub fn start_at(pause: Duration, name: &str, stream: &TcpStream, seed: u64) -> Result<Self> {
        let pause = slow_machine::of(slow_machine::of(pause));
        stream.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (mut to, from) = (stream.try_clone()?, stream.try_clone()?);
        to.write_all(&header(seed, ENDLESS))
            .context("sending the header")?;
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        Ok(Self {
            name: name.to_owned(),
            port: stream.local_addr()?.port(),
            stop,
            received,
            writer: std::thread::spawn(move || write(&to, seed, pause, &stopped)),
            reader: std::thread::spawn(move || read(from, !seed, &count)),
        })
    }

    /// Returns the name of the stream.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the client's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the number of bytes received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Closes the connection in order, and returns the number of bytes that it carried in each direction.
    ///
    /// # Errors
    /// Returns an error if a byte was lost or damaged, or if the connection was broken.
    ///
    /// # Panics
    /// Panics if one of its threads has panicked.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.writer.join().expect("it does not panic");
        let received = self.reader.join().expect("it does not panic");
        let sent = sent.with_context(|| format!("{}: sending", self.name))?;
        let received = received.with_context(|| format!("{}: receiving", self.name))?;
        ensure!(
            sent == received,
            "{}: {sent} bytes sent, {received} came back",
            self.name
        );
        Ok(sent)
    }
}

fn write(mut stream: &TcpStream, seed: u64, pause: Duration, stop: &AtomicBool) -> Result<u64> {
    let mut sequence = Sequence::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        sequence.fill(&mut chunk);
        stream
            .write_all(&chunk)
            .with_context(|| format!("after {sent} bytes"))?;
        sent += CHUNK as u64;
        std::thread::sleep(pause);
    }
    match stream.shutdown(Shutdown::Write) {
        // It was reset since the last write; the reader gets the reset and returns it.
        Err(error) if error.kind() == ErrorKind::NotConnected => {}
        result => result.context("ending it")?,
    }
    Ok(sent)
}

/// Returns the number of bytes that arrived before the server's verdict.
fn read(mut stream: TcpStream, seed: u64, received: &AtomicU64) -> Result<u64> {
    let mut sequence = Sequence::new(seed);
    let mut piece = vec![0; CHUNK];
    // Bytes at the end that may be the server's verdict.
    let mut held: Vec<u8> = Vec::new();
    let mut checked = 0;
    loop {
        let n = stream
            .read(&mut piece)
            .with_context(|| format!("after {checked} bytes"))?;
        if n == 0 {
            break;
        }
        held.extend(&piece[..n]);
        let body = held.len().saturating_sub(INTACT.len());
        if !sequence.goes_on_with(&held[..body]) {
            bail!("damaged in the {body} bytes from offset {checked}");
        }
        held.drain(..body);
        checked += body as u64;
        received.store(checked, Ordering::Relaxed);
    }
    if held == DAMAGED {
        bail!("the server found its bytes damaged");
    }
    ensure!(
        held == INTACT,
        "it ended without the server's confirmation after {checked} bytes"
    );
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn stream_to(server: impl FnOnce(TcpStream) + Send + 'static) -> Result<u64> {
        stream_at(PAUSE, server)
    }

    fn stream_at(pause: Duration, server: impl FnOnce(TcpStream) + Send + 'static) -> Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (mut peer, _) = listener.accept()?;
        let server = std::thread::spawn(move || {
            peer.read_exact(&mut [0; 16]).expect("a header");
            server(peer);
        });
        let live = Live::start_at(pause, "test", &stream, 7)?;
        std::thread::sleep(Duration::from_millis(50));
        let result = live.finish();
        server.join().expect("the server does not panic");
        result
    }

    #[test]
    fn intact() {
        let sent = stream_to(|mut peer| serve(&mut peer, 7).expect("the client reads everything"));
        assert!(sent.expect("nothing is lost") > 0);
    }

    #[test]
    fn damage_is_found_at_both_ends() {
        let result = stream_to(|mut peer| {
            // The seed differs from the client's, so the sequence differs, too.
            let _ = serve(&mut peer, 8);
        });
        assert!(result.is_err(), "{result:?}");
    }

    #[test]
    fn an_early_end_is_found() {
        assert!(stream_to(drop).is_err());
    }

    /// The client sends nothing between the reset and the end.
    #[test]
    fn a_reset_is_returned_as_one() {
        let error = stream_at(Duration::from_millis(200), |mut peer| {
            peer.read_exact(&mut [0; 1]).expect("the first chunk");
            // Unread bytes: the kernel resets the connection.
            drop(peer);
        });
        let error = format!("{:#}", error.expect_err("the server has reset it"));
        assert!(error.contains("reset"), "{error}");
    }
}
