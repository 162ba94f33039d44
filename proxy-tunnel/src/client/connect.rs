// SPDX-License-Identifier: Apache-2.0

//! The client side of HTTP CONNECT, used for tunnels and for an agent behind a proxy.

use std::io;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::tunnel::Tunnel;
use super::{DialError, Endpoint, Mode};

/// The maximum length of a response's head, and of the text after a refusal, in bytes.
const LONGEST: usize = 64 * 1024;

/// The maximum number of header fields in a response.
const FIELDS: usize = 100;

/// The reason why a proxy did not connect.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The proxy responded with a status other than 200.
    #[error("code {code}: {text}")]
    Status {
        /// The status code.
        code: u16,
        /// The text in the response's body, or else the reason phrase of the status line.
        text: String,
    },
    /// The response is not valid HTTP.
    #[error("the answer is no HTTP response")]
    Malformed,
    /// The connection failed.
    #[error("the connection failed before the answer")]
    Io(#[source] io::Error),
}

/// Dials a target through a server.
pub(super) async fn dial(
    endpoint: &Endpoint,
    user_agent: &str,
    address: &str,
) -> Result<Tunnel, DialError> {
    let mut io = endpoint
        .open(Mode::HttpConnect)
        .await
        .map_err(|source| DialError::Server {
            server: endpoint.to_string(),
            source,
        })?;
    let fields = format!("User-Agent: {user_agent}\r\n");
    match handshake(&mut io, address, &fields).await {
        Ok(rest) => Ok(Tunnel::http(io, rest)),
        Err(source) => Err(DialError::Refused {
            server: endpoint.to_string(),
            address: address.to_owned(),
            source,
        }),
    }
}

/// Requests a connection to `address` and returns the bytes that follow the response's head. `fields` are additional
/// header fields, each with its line ending.
///
/// # Errors
/// Returns an error if the proxy refuses the request or the connection fails.
pub async fn handshake<I>(io: &mut I, address: &str, fields: &str) -> Result<Bytes, Refusal>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n");
    io.write_all(request.as_bytes())
        .await
        .map_err(Refusal::Io)?;
    io.flush().await.map_err(Refusal::Io)?;
    answer(io).await
}

/// Reads the response to a CONNECT request and returns the bytes that follow its head.
///
/// # Errors
/// Returns an error if the proxy refuses the request or the connection fails.
pub(crate) async fn answer<I: AsyncRead + Unpin>(io: &mut I) -> Result<Bytes, Refusal> {
    let mut buffer = BytesMut::with_capacity(512);
    loop {
        let ended = io.read_buf(&mut buffer).await.map_err(Refusal::Io)? == 0;
        match parse(&buffer)? {
            Some((200, _, length)) => return Ok(buffer.split_off(length).freeze()),
            Some((code, phrase, length)) => {
                let mut body = buffer.split_off(length);
                while body.len() < LONGEST && matches!(io.read_buf(&mut body).await, Ok(1..)) {}
                let text = String::from_utf8_lossy(&body).trim().to_owned();
                let text = if text.is_empty() { phrase } else { text };
                return Err(Refusal::Status { code, text });
            }
            None if ended => return Err(Refusal::Io(io::ErrorKind::UnexpectedEof.into())),
            None => {}
        }
    }
}

/// Returns the status code, the reason phrase and the length of a response's head, or `None` if the head is incomplete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(u16, String, usize)>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Ok(Some((
            response.code.unwrap_or_default(),
            response.reason.unwrap_or_default().to_owned(),
            length,
        ))),
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST => Ok(None),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> Result<Bytes, Refusal> {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let server = tokio::spawn(async move {
            let mut request = vec![0; 256];
            let length = far.read(&mut request).await.unwrap();
            far.write_all(answer).await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let outcome = handshake(&mut near, "a:1", "X: y\r\n").await;
        let request = server.await.unwrap();
        assert_eq!(request, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nX: y\r\n\r\n");
        outcome
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_kept() {
        let rest = answered(b"HTTP/1.1 200 Connection Established\r\n\r\nhello").await;
        assert_eq!(rest.unwrap(), "hello");
    }

    #[tokio::test]
    async fn refusals_carry_the_servers_words() {
        let refusal =
            answered(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\ndial tcp: no").await;
        assert_eq!(refusal.unwrap_err().to_string(), "code 502: dial tcp: no");
        let refusal = answered(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await;
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "code 405: Method Not Allowed"
        );
        let refusal = answered(b"SSH-2.0-x\r\n").await.unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed));
        let refusal = answered(b"HTTP/1.1 200").await.unwrap_err();
        assert!(matches!(refusal, Refusal::Io(_)));
    }
}
