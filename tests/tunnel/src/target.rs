// SPDX-License-Identifier: Apache-2.0

//! Targets behind a tunnel, well-behaved and not. They serve on a free port of a namespace's loopback for as long
//! as this process lives.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::Result;
use tests::netns::Netns;

/// Sends back what it receives, until its client has closed the sending side.
///
/// # Errors
/// It cannot listen.
pub fn echo(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |stream| {
        // A client may leave in the middle.
        let _ = io::copy(&mut &stream, &mut &stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Sends without end, and reads nothing.
///
/// # Errors
/// It cannot listen.
pub fn flood(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |mut stream| {
        let piece = vec![b'x'; 64 << 10];
        while stream.write_all(&piece).is_ok() {}
    })
}

/// Neither reads nor sends, until the connection is gone.
///
/// # Errors
/// It cannot listen.
pub fn silent(netns: &Netns) -> Result<SocketAddr> {
    start(netns, |stream| {
        thread::park();
        drop(stream);
    })
}

/// Reads to the end of what its client sends, and then sends back how many bytes it was.
///
/// # Errors
/// It cannot listen.
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
