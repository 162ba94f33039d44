// SPDX-License-Identifier: Apache-2.0

//! The first request of a connection: read with a limit in time and bytes, and refused where it cannot be served.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tracing::debug;

use super::Failure;
use super::head::{self, Form, Head, HeadError};

/// How long a client may take for its head, as in upstream.
const HEAD: Duration = Duration::from_mins(1);

/// How long a client may take to read an answer that ends its connection.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// A client's request, and all bytes that were read, those of the head too. None if it is nothing that can be served:
/// then it has its answer. Requests in absolute form are refused unless `absolute`.
pub async fn asked<S>(socket: &mut S, absolute: bool) -> Option<(Head, BytesMut)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::with_capacity(512);
    let refusal = match timeout(HEAD, read(socket, &mut buffer)).await {
        Ok(Ok(head)) if head.form == Form::Absolute && !absolute => HeadError::Method,
        Ok(Ok(head)) => return Some((head, buffer)),
        Ok(Err(Some(refusal))) => refusal,
        Ok(Err(None)) => return None,
        Err(_) => {
            debug!(
                "a client has sent no complete head within {} s",
                HEAD.as_secs()
            );
            return None;
        }
    };
    debug!("refusing a request: {refusal}");
    farewell(socket, &refusal.answer()).await;
    None
}

/// Reads until the head is complete. No error: the client has gone.
async fn read<S: AsyncRead + Unpin>(
    socket: &mut S,
    buffer: &mut BytesMut,
) -> Result<Head, Option<HeadError>> {
    loop {
        match socket.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(_) => {}
        }
        if let Some(head) = head::parse(buffer).map_err(Some)? {
            return Ok(head);
        }
    }
}

/// The whole answer to a client whose target is not reached.
#[must_use]
pub fn refusal(failure: &Failure) -> Vec<u8> {
    let Failure { status, text } = failure;
    let length = text.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{text}\n"
    )
    .into_bytes()
}

/// The last bytes of a connection.
pub async fn farewell<S: AsyncWrite + Unpin>(socket: &mut S, answer: &[u8]) {
    let send = async {
        socket.write_all(answer).await?;
        socket.shutdown().await
    };
    // A client that does not read its answer gets none.
    let _ = timeout(FAREWELL, send).await;
}
