// SPDX-License-Identifier: Apache-2.0

//! A target that sends back what it receives, until its client has closed the sending side.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread;

use anyhow::Result;
use tests::netns::Netns;

/// Echoes on a free port of the namespace's loopback for as long as this process lives.
///
/// # Errors
/// It cannot listen.
pub fn start(netns: &Netns) -> Result<SocketAddr> {
    let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                // A client may leave in the middle.
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(address)
}
