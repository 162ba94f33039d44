// SPDX-License-Identifier: Apache-2.0

//! Reads the first request of a connection, within limits of time and size, and rejects it if it cannot be served.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tracing::debug;

use super::Failure;
use super::head::{self, Form, Head, HeadError};

/// The time that a client has to send its request's head. It is the same as upstream's.
const HEAD: Duration = Duration::from_mins(1);

/// The time that a client has to read the response that ends its connection.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// Returns a client's request, and all bytes that were read, including those of the head. Returns `None` if the request
/// cannot be served; in that case the client has already received its response. Requests in absolute form are rejected
/// unless `absolute` is true.
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

/// Reads until the head is complete. `Err(None)` means that the client has disconnected.
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

/// Returns the complete response for a client whose target was not reached.
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

/// Sends the last bytes of a connection and ends it.
pub async fn farewell<S: AsyncWrite + Unpin>(socket: &mut S, answer: &[u8]) {
    let send = async {
        socket.write_all(answer).await?;
        socket.shutdown().await
    };
    // A client that does not read its response within the limit does not receive it.
    let _ = timeout(FAREWELL, send).await;
}
