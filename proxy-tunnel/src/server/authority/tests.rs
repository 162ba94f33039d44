// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 byte streams as Go's clients write them, split at every byte.

use httlib_huffman::encode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const PATH: &[u8] = b"%2Frun%2Fkonnectivity.sock";
const PLAIN: &[u8] = b"x2Frunx2Fkonnectivity.sock";

fn framed(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

/// Returns a header block: `:method: POST` from the static table, an authority as Go encodes it, and a field with a
/// literal name.
fn block(authority: &[u8], is_compressed: bool) -> Vec<u8> {
    let mut block = vec![0x83, 0x41];
    if is_compressed {
        let mut bytes = Vec::new();
        encode(authority, &mut bytes).unwrap();
        block.push(0x80 | u8::try_from(bytes.len()).unwrap());
        block.extend(bytes);
    } else {
        string(&mut block, authority);
    }
    block.push(0x40);
    string(&mut block, b"user-agent");
    string(&mut block, b"go");
    block
}

#[tokio::test]
async fn an_authority_that_is_named_letter_by_letter_is_found_too() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // The encoding of gRPC's C library.
    let block = |authority: &[u8]| {
        let mut block = vec![0x83, 0x40];
        string(&mut block, b":authority");
        string(&mut block, authority);
        block
    };
    let sent = [preface.clone(), framed(HEADERS, END_HEADERS, &block(PATH))].concat();
    let want = [preface, framed(HEADERS, END_HEADERS, &block(PLAIN))].concat();
    assert_eq!(passed(&sent, 64).await, want);
}

async fn passed(bytes: &[u8], step: usize) -> Vec<u8> {
    let (mut near, far) = tokio::io::duplex(step);
    let bytes = bytes.to_vec();
    let writer = tokio::spawn(async move {
        near.write_all(&bytes).await.unwrap();
    });
    let mut all = Vec::new();
    Lenient::new(far).read_to_end(&mut all).await.unwrap();
    writer.await.unwrap();
    all
}

#[tokio::test]
async fn a_path_becomes_an_authority_however_the_stream_is_cut() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let other = framed(0, 0, &[7; 100]);
    for is_compressed in [false, true] {
        let request = framed(HEADERS, END_HEADERS, &block(PATH, is_compressed));
        let want = framed(HEADERS, END_HEADERS, &block(PLAIN, false));
        let sent = [&preface, &other, &request, &other, &request, &other].map(Vec::as_slice);
        let want = [&preface, &other, &want, &other, &want, &other].map(Vec::as_slice);
        for step in [1, 5, 9, 64, 4096] {
            assert_eq!(passed(&sent.concat(), step).await, want.concat(), "{step}");
        }
    }
}

#[test]
fn padding_and_priority_are_kept() {
    let fields = block(PATH, true);
    let payload = [&[2, 0, 0, 0, 0, 16][..], &fields, &[0, 0]].concat();
    let flags = END_HEADERS | PADDED | PRIORITY;
    let rewritten = rewrite(&framed(HEADERS, flags, &payload)).unwrap();
    let payload = [&[2, 0, 0, 0, 0, 16][..], &block(PLAIN, false), &[0, 0]].concat();
    assert_eq!(rewritten, framed(HEADERS, flags, &payload));
}

#[test]
fn what_is_acceptable_or_unreadable_is_left_alone() {
    for fields in [
        block(b"localhost:8090", true),
        block(b"[::1]:80", false),
        vec![0x83],
        vec![0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        vec![0x41, 0x05, b'%'],
        vec![],
    ] {
        assert_eq!(rewrite(&framed(HEADERS, END_HEADERS, &fields)), None);
    }
    assert_eq!(rewrite(&framed(HEADERS, 0, &block(PATH, false))), None);
    assert_eq!(
        rewrite(&framed(HEADERS, END_HEADERS | PADDED, &[200])),
        None
    );
}

#[test]
fn long_names() {
    let path = [b'/'; 300];
    let rewritten = rewrite(&framed(HEADERS, END_HEADERS, &block(&path, false))).unwrap();
    let want = framed(HEADERS, END_HEADERS, &block(&[b'x'; 300], false));
    assert_eq!(rewritten, want);
}
