// SPDX-License-Identifier: Apache-2.0

//! Targets behind a tunnel, well-behaved and not. They listen on a free port of a namespace's loopback address until
//! this process exits.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::Result;
use tests::netns::Netns;

/// Starts a target that sends back what it receives, until its client has closed its sending side.
///
/// # Errors
/// Returns an error if it cannot listen.
pub fn echo(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |stream| {
        // A client may disconnect in the middle.
        let _ = io::copy(&mut &stream, &mut &stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Starts a target that sends without end, and reads nothing.
///
/// # Errors
/// Returns an error if it cannot listen.
pub fn flood(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |mut stream| {
        let piece = vec![b'x'; 64 << 10];
        while stream.write_all(&piece).is_ok() {}
    })
}

/// Starts a target that neither reads nor sends, until the connection is closed.
///
/// # Errors
/// Returns an error if it cannot listen.
pub fn silent(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |stream| {
        thread::park();
        drop(stream);
    })
}

/// Starts a target that reads until its client closes its sending side, and then sends the number of bytes that it
/// read.
///
/// # Errors
/// Returns an error if it cannot listen.
pub fn count(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |mut stream| {
        if let Ok(bytes) = io::copy(&mut &stream, &mut io::sink()) {
            let _ = write!(stream, "{bytes} bytes");
        }
    })
}

fn start(netns: &Netns, serve: fn(TcpStream)) -> Result<SocketAddr> {
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}
