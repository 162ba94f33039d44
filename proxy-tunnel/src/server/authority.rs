// SPDX-License-Identifier: Apache-2.0

//! Makes `:authority` acceptable before hyper sees it. Go's gRPC clients that are given a Unix socket by its
//! path, kube-apiserver among them, call the server by that path, escaped: `%2Frun%2Fkonnectivity.sock`. That
//! is no authority by RFC 3986, and h2 ends every stream of such a client with `PROTOCOL_ERROR`, without a
//! setting for it (<https://github.com/hyperium/h2/blob/v0.4.12/src/server.rs>, `convert_poll_message`). Nothing
//! here uses the name, so such characters are replaced by `x`; the length stays, and with it the size of the
//! entry in HPACK's table, which both ends have to agree on (RFC 7541, section 4.1).
//!
//! Only frames of type HEADERS are looked at; all others go to the reader as they come, without a copy. What
//! cannot be read here is passed on as it is: h2 judges it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, BytesMut};
use httlib_huffman::{DecoderSpeed, decode};
use http::uri::Authority;
use tokio::io::{AsyncRead, ReadBuf};

use crate::rewound::take;
use crate::writes::writes_to_field;

/// Bytes that a client sends before its first frame.
const PREFACE: usize = 24;
/// Bytes of a frame's head.
const HEAD: usize = 9;
/// The type of frames with header fields.
const HEADERS: u8 = 1;
/// Flags of such a frame.
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longer frames are passed on as they are.
const LONGEST: usize = 16 * 1024;
/// How much is read at once while a frame is incomplete.
const STEP: usize = 4096;
/// The number of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// A stream of HTTP/2 from a client.
#[derive(Debug)]
pub struct Lenient<I> {
    io: I,
    rewriter: Rewriter,
}

impl<I> Lenient<I> {
    /// Reads a client's bytes from their first one on.
    #[must_use]
    pub fn new(io: I) -> Self {
        Self {
            io,
            rewriter: Rewriter::new(),
        }
    }
}

/// Finds frames in a stream of bytes, however it is cut.
#[derive(Debug)]
pub(crate) struct Rewriter {
    /// Bytes of the current frame that are passed on as they are.
    pass: usize,
    /// The beginning of a frame that cannot be judged yet.
    held: BytesMut,
    /// Bytes that are ready to be read.
    ready: BytesMut,
}

impl Rewriter {
    pub(crate) fn new() -> Self {
        Self {
            pass: PREFACE,
            held: BytesMut::new(),
            ready: BytesMut::new(),
        }
    }

    /// How many of these bytes, which follow those before, can be read as they are; the others are to be given
    /// to [`Self::hold`].
    fn untouched(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let step = self.pass.min(bytes.len() - at);
            at += step;
            self.pass -= step;
            if self.pass > 0 {
                return at;
            }
            match frame(&bytes[at..]) {
                Some((length, kind)) if !is_candidate(length, kind) => self.pass = HEAD + length,
                _ => return at,
            }
        }
    }

    /// Takes bytes that begin with a frame's head or follow such, and prepares the part that can be read.
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.held.put_slice(bytes);
        loop {
            let step = self.pass.min(self.held.len());
            self.ready.put(self.held.split_to(step));
            self.pass -= step;
            if self.pass > 0 {
                return;
            }
            let Some((length, kind)) = frame(&self.held) else {
                return;
            };
            if is_candidate(length, kind) {
                if self.held.len() < HEAD + length {
                    return;
                }
                let whole = self.held.split_to(HEAD + length);
                match rewrite(&whole) {
                    Some(rewritten) => self.ready.put_slice(&rewritten),
                    None => self.ready.put(whole),
                }
            } else {
                self.pass = HEAD + length;
            }
        }
    }

    /// The data that [`Self::hold`] has prepared.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn take(&mut self) -> BytesMut {
        self.ready.split()
    }
}

const fn is_candidate(length: usize, kind: u8) -> bool {
    kind == HEADERS && length <= LONGEST
}

/// Length and type of the frame whose head this begins with.
fn frame(bytes: &[u8]) -> Option<(usize, u8)> {
    let head = bytes.first_chunk::<HEAD>()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    Some((usize::try_from(length).ok()?, head[3]))
}

/// A frame of type HEADERS with an authority that h2 accepts; none if nothing has to change or can be read.
fn rewrite(whole: &[u8]) -> Option<Vec<u8>> {
    let flags = whole[4];
    if flags & END_HEADERS == 0 {
        return None;
    }
    let payload = &whole[HEAD..];
    let mut start = 0;
    let mut padding = 0;
    if flags & PADDED != 0 {
        padding = usize::from(*payload.first()?);
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    let block = payload.get(start..payload.len().checked_sub(padding)?)?;
    let (value, replacement) = unacceptable(block)?;
    let mut changed = whole[..HEAD + start].to_vec();
    changed.extend_from_slice(&block[..value.start]);
    string(&mut changed, &replacement);
    changed.extend_from_slice(&block[value.end..]);
    changed.extend_from_slice(&payload[payload.len() - padding..]);
    let length = u32::try_from(changed.len() - HEAD).ok()?.to_be_bytes();
    changed[..3].copy_from_slice(&length[1..]);
    Some(changed)
}

/// Where in a block of fields the value of `:authority` stands that h2 would refuse, and what to put there.
fn unacceptable(block: &[u8]) -> Option<(std::ops::Range<usize>, Vec<u8>)> {
    let mut at = 0;
    loop {
        let first = *block.get(at)?;
        let prefix = match first {
            // A field of a table; a new size of the table.
            0x80.. => {
                at = integer(block, at, 7)?.1;
                continue;
            }
            0x20..0x40 => {
                at = integer(block, at, 5)?.1;
                continue;
            }
            0x40.. => 6,
            _ => 4,
        };
        let (name, next) = integer(block, at, prefix)?;
        // Go's clients name it by the static table, those of gRPC's C library letter by letter.
        let (is_authority, start) = if name == 0 {
            let (name, end) = literal(block, next)?;
            (name == b":authority", end)
        } else {
            (name == AUTHORITY, next)
        };
        let (value, end) = literal(block, start)?;
        if is_authority {
            if Authority::try_from(value.as_slice()).is_ok() {
                return None;
            }
            return Some((start..end, acceptable(value)));
        }
        at = end;
    }
}

fn acceptable(mut value: Vec<u8>) -> Vec<u8> {
    for byte in &mut value {
        if !byte.is_ascii_alphanumeric() && !b"-._".contains(byte) {
            *byte = b'x';
        }
    }
    value
}

/// An integer with a prefix of so many bits, and where it ends.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in (0..28).step_by(7) {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// A string, and where it ends.
fn literal(block: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let is_compressed = block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    let bytes = block.get(start..end)?;
    if !is_compressed {
        return Some((bytes.to_vec(), end));
    }
    let mut plain = Vec::new();
    decode(bytes, &mut plain, DecoderSpeed::FourBits).ok()?;
    Some((plain, end))
}

/// Writes a string without compression.
fn string(block: &mut Vec<u8>, value: &[u8]) {
    const MOST: usize = 0x7f;
    let mut rest = value.len();
    if rest < MOST {
        block.push(u8::try_from(rest).unwrap_or(0));
    } else {
        block.push(0x7f);
        rest -= MOST;
        while rest >= 0x80 {
            block.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
            rest >>= 7;
        }
        block.push(u8::try_from(rest).unwrap_or(0));
    }
    block.extend_from_slice(value);
}

impl<I: AsyncRead + Unpin> AsyncRead for Lenient<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, rewriter } = self.get_mut();
        loop {
            if !rewriter.ready.is_empty() {
                take(&mut rewriter.ready, buffer);
                return Poll::Ready(Ok(()));
            }
            if rewriter.held.is_empty() {
                let before = buffer.filled().len();
                ready!(Pin::new(&mut *io).poll_read(context, buffer))?;
                let bytes = &buffer.filled()[before..];
                let count = rewriter.untouched(bytes);
                if count == bytes.len() {
                    return Poll::Ready(Ok(()));
                }
                rewriter.hold(&bytes[count..]);
                buffer.set_filled(before + count);
                if count > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut step = [0; STEP];
                let mut bytes = ReadBuf::new(&mut step);
                ready!(Pin::new(&mut *io).poll_read(context, &mut bytes))?;
                if bytes.filled().is_empty() {
                    // An incomplete frame is the reader's to judge.
                    let rest = rewriter.held.split();
                    rewriter.ready.put(rest);
                    if rewriter.ready.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                } else {
                    rewriter.hold(bytes.filled());
                }
            }
        }
    }
}

writes_to_field!(Lenient<I>, io);

#[cfg(test)]
mod tests;
