// SPDX-License-Identifier: Apache-2.0

//! Rewrites `:authority` before hyper reads it. Go's gRPC clients that are configured with the path of a Unix socket,
//! such as kube-apiserver, send that path in escaped form as the authority: `%2Frun%2Fkonnectivity.sock`. RFC 3986 does
//! not allow it as an authority, and h2 ends every stream of such a client with `PROTOCOL_ERROR`; there is no setting
//! to change that (<https://github.com/hyperium/h2/blob/v0.4.12/src/server.rs>, `convert_poll_message`). The server
//! does not use the authority, so each invalid character is replaced by `x`. The length does not change, and so neither
//! does the size of the entry in HPACK's table, on which both peers must agree (RFC 7541, section 4.1).
//!
//! Only HEADERS frames are parsed; all other frames pass to the reader unchanged and without a copy. A frame that
//! cannot be parsed here is passed on unchanged too, and h2 decides about it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, BytesMut};
use httlib_huffman::{DecoderSpeed, decode};
use http::uri::Authority;
use tokio::io::{AsyncRead, ReadBuf};

use crate::rewound::take;
use crate::writes::writes_to_field;

/// The length of the connection preface that a client sends before its first frame, in bytes.
const PREFACE: usize = 24;
/// The length of a frame header, in bytes.
const HEAD: usize = 9;
/// The type of HEADERS frames.
const HEADERS: u8 = 1;
/// Flags of HEADERS frames.
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The longest payload that is parsed, in bytes; longer frames are passed on unchanged.
const LONGEST: usize = 16 * 1024;
/// The number of bytes per read while a frame is incomplete.
const STEP: usize = 4096;
/// The index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// A client's HTTP/2 byte stream whose `:authority` is made valid while it is read.
#[derive(Debug)]
pub struct Lenient<I> {
    io: I,
    rewriter: Rewriter,
}

impl<I> Lenient<I> {
    /// Wraps a client's byte stream. No byte may have been read from it before.
    #[must_use]
    pub fn new(io: I) -> Self {
        Self {
            io,
            rewriter: Rewriter::new(),
        }
    }
}

/// Finds the frames in a byte stream, independently of the sizes of the reads.
#[derive(Debug)]
pub(crate) struct Rewriter {
    /// The number of bytes of the current frame that are still to be passed on unchanged.
    pass: usize,
    /// The start of a frame that is still incomplete.
    held: BytesMut,
    /// The bytes that the reader can read.
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

    /// Returns how many of `bytes`, which continue the stream, can be passed on unchanged. The caller passes the others
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

    /// Adds bytes that begin with a frame header or continue the held bytes, and moves the part that can be read to
    /// `ready`.
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

    /// Returns the bytes that [`Self::hold`] has prepared.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn take(&mut self) -> BytesMut {
        self.ready.split()
    }
}

const fn is_candidate(length: usize, kind: u8) -> bool {
    kind == HEADERS && length <= LONGEST
}

/// Returns the length and the type of a frame from its header.
fn frame(bytes: &[u8]) -> Option<(usize, u8)> {
    let head = bytes.first_chunk::<HEAD>()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    Some((usize::try_from(length).ok()?, head[3]))
}

/// Returns a HEADERS frame with an authority that h2 accepts. Returns `None` if no change is needed, or if the frame
/// cannot be parsed.
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

/// Returns the position of an `:authority` value that h2 would refuse in a header block, and the value that replaces
/// it.
fn unacceptable(block: &[u8]) -> Option<(std::ops::Range<usize>, Vec<u8>)> {
    let mut at = 0;
    loop {
        let first = *block.get(at)?;
        let prefix = match first {
            // An indexed field; below, an update of the dynamic table's size.
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
        // Go's clients refer to the name in the static table; gRPC's C library sends it as a literal.
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

/// Decodes an integer with a prefix of `bits` bits. Returns it and the position behind it.
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

/// Decodes a string. Returns it and the position behind it.
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

/// Encodes a string without Huffman coding.
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
                    // At the end of the stream, an incomplete frame is passed on; the reader decides about it.
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
