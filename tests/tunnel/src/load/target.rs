// SPDX-License-Identifier: Apache-2.0

//! The target of clients under load. The first byte of a connection selects the target's behaviour.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{self, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The target sends back what it receives.
pub const ECHO: u8 = b'e';
/// The target receives as many bytes as the next eight bytes (big endian) say, and replies with one
/// byte.
pub const TAKE: u8 = b't';
/// The target sends as many bytes as the next eight bytes say.
pub const GIVE: u8 = b'g';
/// The target reads nothing more.
pub const IGNORE: u8 = b'i';

/// The number of bytes of one write.
pub const PIECE: usize = 64 << 10;

/// Serves on a free port of loopback until the runtime ends.
///
/// # Errors
/// Returns an error if it cannot listen.
pub async fn start() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Ok(address)
}

/// Serves one connection. The client may disconnect at any moment.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        ECHO => {
            let (mut reader, mut writer) = stream.split();
            io::copy(&mut reader, &mut writer).await?;
        }
        TAKE => {
            let bytes = stream.read_u64().await?;
            let (mut reader, mut writer) = stream.split();
            io::copy(&mut (&mut reader).take(bytes), &mut io::sink()).await?;
            writer.write_u8(0).await?;
        }
        GIVE => {
            let bytes = stream.read_u64().await?;
            give(&mut stream, bytes).await?;
            // The target waits for the client's close: only the announced bytes are measured.
            stream.read_u8().await?;
        }
        _ => std::future::pending().await,
    }
    Ok(())
}

/// Sends this number of bytes.
///
/// # Errors
/// Returns an error if they cannot be written.
pub async fn give(to: &mut (impl io::AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
    static PIECES: [u8; PIECE] = [b'x'; PIECE];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        to.write_all(&PIECES[..length]).await?;
        left -= length as u64;
    }
    to.flush().await
}
