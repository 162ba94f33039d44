// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets of this crate: functions that accept arbitrary bytes and panic if these reveal a fault. The package
//! `fuzz` runs them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response, Uri};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use prost::Message as _;
use proxy_serve::tls::subject::Subject;

use crate::app;
use crate::client::Mode;
use crate::cluster::counting::Leases;
use crate::cluster::lease as leases;
use crate::cluster::tokens::Holder;
use crate::destinations::{Destination, Destinations};
use crate::forward::{head, request};
use crate::go_error;
use crate::identifiers::Identifiers;
use crate::server::authority::Rewriter;
use crate::server::backend::tunnel::Tunnel;
use crate::server::backend::{Backend, Shared};
use crate::server::tenants::file::{self, Offered};
use crate::server::tenants::peer::{Entrance, Peer};
use crate::server::tenants::rules::{NoTenant, Rules, Side};
use crate::wire::metadata::Extensions;
use crate::wire::schema::Packet;
use crate::wire::{DialRequest, DialResponse, Message};

/// The maximum number of steps in one history. Longer histories reveal nothing new.
const STEPS: usize = 200;

/// Decodes one packet. A message that is accepted must be unchanged after it is encoded and decoded again.
pub fn packet(data: &[u8]) {
    let Ok(packet) = Packet::decode(data) else {
        return;
    };
    match Message::try_from(packet) {
        Ok(message) => {
            let written = Packet::from(message.clone()).encode_to_vec();
            let again = Packet::decode(written.as_slice()).expect("it was just written");
            assert_eq!(Message::try_from(again), Ok(message));
        }
        Err(malformed) => assert!(!malformed.type_name().is_empty()),
    }
}

/// Applies an agent's packets and clients' actions in any order. Every connection must end exactly once, every dial
/// must be counted, and no state may remain after the agent disconnects.
pub fn server(data: &[u8]) {
    let shared = Arc::new(Shared::for_tests());
    let identifiers = Identifiers::default();
    let extensions = if data.first().is_some_and(|byte| byte & 1 == 0) {
        Extensions::ALL
    } else {
        Extensions::default()
    };
    let backend = Backend::new("agent".into(), identifiers, extensions, Arc::clone(&shared));
    let mut stream = backend.outbox.stream();
    let mut tunnels: Vec<Arc<Tunnel>> = Vec::new();
    // The number of times that the agent has used each connection number.
    let mut named: HashMap<i64, usize> = HashMap::new();
    for step in data.chunks_exact(3).take(STEPS) {
        let number = i64::from(step[1] % 8);
        let random = i64::from(step[2] % 8);
        if matches!(step[0] % 12, 2 | 3 | 5) {
            *named.entry(number).or_default() += 1;
        }
        match step[0] % 12 {
            0 | 1 => {
                let request = DialRequest {
                    protocol: "tcp".into(),
                    address: "a:1".into(),
                    random,
                };
                let inbox = Arc::new(shared.inbox(Mode::Grpc));
                tunnels.extend(backend.dial(request, inbox));
            }
            2 | 3 => backend.receive(Message::DialResponse(DialResponse {
                error: String::new(),
                connect_id: number,
                random,
            })),
            4 => backend.receive(Message::dial_error(random, "no")),
            5 => {
                let data = Bytes::from(vec![0; usize::from(step[2]) * 4096]);
                backend.receive(Message::Data(number, data));
            }
            6 => backend.receive(Message::closed(number, "")),
            7 => backend.receive(Message::CloseDial(random)),
            8 => backend.receive(Message::Finish(number)),
            9 => backend.receive(Message::Window(number, u32::MAX)),
            10 => {
                if let Some(tunnel) = tunnels.get(usize::from(step[1])) {
                    tunnel.release();
                }
            }
            _ => {
                if let Some(tunnel) = tunnels.get(usize::from(step[1])) {
                    tunnel.expire();
                    // This fails only if the stream has already ended.
                    let _ = tunnel.ask_to_close();
                }
            }
        }
        let (pending, established) = shared.metrics.open();
        assert!(pending >= 0 && established >= 0, "something ended twice");
    }
    // The server sends at most one close request for each response to a dial and for each packet with bytes that belong
    // to no connection.
    let mut closes: HashMap<i64, usize> = HashMap::new();
    let mut dials = 0;
    while let Some(Some(Ok(message))) = stream.next().now_or_never() {
        match message {
            Message::CloseRequest(number) => *closes.entry(number).or_default() += 1,
            Message::DialRequest(_) => dials += 1,
            _ => {}
        }
    }
    assert_eq!(dials, tunnels.len());
    // Number 0 stands for connections that this history closed before they had a number, which no client does.
    for (number, closes) in closes.into_iter().filter(|(number, _)| *number != 0) {
        let named = named.get(&number).copied().unwrap_or_default();
        assert!(closes <= named, "{number} is closed {closes} times");
    }
    backend.lost();
    for tunnel in &tunnels {
        tunnel.release();
    }
    assert_eq!(shared.metrics.open(), (0, 0), "something is left");
    assert_eq!(shared.budget.used(), 0, "memory is left");
}

/// Converts a request in absolute form (the URL in the first line and a field in each further line) and a response with
/// the same fields. No hop-by-hop field may reach the target, and `Host` must be the URL's authority.
pub fn absolute(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let Ok(uri) = lines.next().unwrap_or_default().parse::<Uri>() else {
        return;
    };
    let Ok(target) = request::target(&uri) else {
        return;
    };
    let (host, port) = go_error::split_host_port(&target).expect("it has a port");
    assert!(!host.is_empty() && port.parse::<u16>().is_ok(), "{target}");
    let mut asked = Request::new(());
    let mut answered = Response::new(());
    let authority = uri.authority().expect("it has a target").to_string();
    *asked.uri_mut() = uri;
    // The maximum number of fields in a head.
    for (name, value) in lines.take(100).filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            asked.headers_mut().append(name.clone(), value.clone());
            answered.headers_mut().append(name, value);
        }
    }
    let (mut asked, ()) = asked.into_parts();
    let (mut answered, ()) = answered.into_parts();
    request::to_target(&mut asked);
    request::to_client(&mut answered);
    assert!(asked.uri.scheme().is_none() && asked.uri.authority().is_none());
    assert_eq!(asked.headers.get_all("host").iter().count(), 1);
    assert_eq!(asked.headers["host"], authority);
    for fields in [&asked.headers, &answered.headers] {
        for gone in [
            "connection",
            "proxy-authorization",
            "transfer-encoding",
            "upgrade",
            "te",
        ] {
            assert!(!fields.contains_key(gone), "{gone}");
        }
    }
}

/// Parses the tenants of a sidecar.
pub fn sidecar_tenants(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        app::sidecar::read_tenants(text);
    }
}

/// Parses the head of a CONNECT request and of a response. A prefix of a complete head must be incomplete, and a target
/// must not contain characters that could alter a line.
pub fn head(data: &[u8]) {
    if let Ok(Some(head)) = head::parse(data) {
        assert!(head.length <= data.len());
        assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic()));
        let same = head::parse(&data[..head.length]);
        assert_eq!(same, Ok(Some(head.clone())));
        for end in [0, head.length / 2, head.length - 1] {
            assert_eq!(head::parse(&data[..end]), Ok(None));
        }
    }
    if let Ok(Some((_, _, length))) = crate::client::parse_answer(data) {
        assert!(length <= data.len());
    }
}

/// Rewrites HTTP/2 frames. The output must not depend on how the stream is divided into chunks.
pub fn frames(data: &[u8]) {
    let preface = [b'P'; 24];
    let whole = passed([&preface[..], data].concat().chunks(usize::MAX));
    let single = passed([&preface[..], data].concat().chunks(1));
    assert_eq!(whole, single);
    let few = passed([&preface[..], data].concat().chunks(7));
    assert_eq!(whole, few);
}

fn passed<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut rewriter = Rewriter::new();
    let mut all = Vec::new();
    for chunk in chunks {
        rewriter.hold(chunk);
        all.extend_from_slice(&rewriter.take());
    }
    all
}

/// Parses identifiers, labels and addresses.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(read) = Identifiers::parse(text) {
        let pairs = read.hosts.iter().map(|host| ("host", host));
        let pairs = pairs.chain(read.cidrs.iter().map(|cidr| ("cidr", cidr)));
        let mut written: Vec<String> = pairs
            .map(|(key, value)| {
                let mut escaped = String::new();
                for byte in value.bytes() {
                    // Writing to a `String` cannot fail.
                    let _ = write!(escaped, "%{byte:02X}");
                }
                format!("{key}={escaped}")
            })
            .collect();
        if read.default_route {
            written.push("default-route=true".to_owned());
        }
        // A name that is not valid UTF-8 becomes longer when it is parsed.
        if let Ok(again) = Identifiers::parse(&written.join("&")) {
            assert_eq!((again.hosts, again.cidrs), (read.hosts, read.cidrs));
            assert_eq!(again.default_route, read.default_route);
        }
    }
    if let Ok(labels) = leases::parse_labels(text) {
        assert_eq!(leases::parse_labels(&leases::selector(&labels)), Ok(labels));
    }
    match text.parse::<Destination>() {
        Ok(entry) => {
            assert_eq!(entry.to_string().parse(), Ok(entry.clone()));
            let only = Destinations::new(vec![entry]);
            // A local address must not be allowed by name unless it is allowed by address, even for a name with invalid
            // characters.
            for local in ["127.0.0.1:80", "[::1]:80", "169.254.169.254:80"] {
                let address = local.parse().expect("it is an address");
                assert!(only.permits(None, address) || !only.permits(Some(text), address));
            }
        }
        Err(refused) => assert!(refused.to_string().contains("; give ADDRESS")),
    }
    match go_error::split_host_port(text) {
        Ok((host, port)) => {
            assert!(text.contains(host) && text.ends_with(port));
            // The port may be a name or a number.
            let _ = go_error::port(port);
        }
        Err(problem) => assert!(problem.to_string().contains(text)),
    }
}

/// Parses rules of tenants and, after a line `---`, the properties of a peer, one word per line. The judgement about
/// each tenant must equal that of a server with only this tenant.
pub fn tenants(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (text, peer) = text.split_once("\n---\n").unwrap_or((text, ""));
    let offered = Offered {
        agent_certificates: true,
        client_tls: true,
        tokens: true,
    };
    let rules = match file::parse(text, offered) {
        Ok(rules) => rules,
        Err(refused) => return assert!(refused.to_string().contains(": ")),
    };
    let words: Vec<String> = peer.lines().map(str::to_owned).collect();
    let names = |start: usize| words.iter().skip(start).step_by(5).cloned().collect();
    let subject = Subject {
        organizations: names(0),
        organizational_units: names(1),
        common_names: names(2),
        uris: names(3),
    };
    let first = words.first().map_or("", String::as_str);
    let peer = Peer {
        entrance: first
            .parse()
            .map_or_else(|_| Entrance::Socket(first.into()), Entrance::Port),
        server_name: words.get(1).cloned(),
        subject: Some(subject),
    };
    let holder = Holder {
        namespace: words.get(2).cloned().unwrap_or_default(),
        account: words.get(3).cloned().unwrap_or_default(),
        audiences: names(4),
    };
    for side in [Side::Agent, Side::Client] {
        let own: Vec<_> = rules
            .tenants()
            .filter(|tenant| {
                let alone = Rules::new(vec![(*tenant).clone()]).expect("it was among others");
                alone.judge(side, &peer, Some(&holder)).is_ok()
            })
            .map(|tenant| &tenant.name)
            .collect();
        match rules.judge(side, &peer, Some(&holder)) {
            Ok(name) => assert_eq!(own, [name]),
            Err(NoTenant::Unknown) => assert!(own.is_empty()),
            Err(_) => assert!(own.len() > 1),
        }
    }
}

/// Parses a command line for each of the programs, one word per line. A rejected command line must have a reason.
pub fn flags(data: &[u8]) {
    let words: Vec<&OsStr> = data
        .split(|byte| *byte == b'\n')
        .map(OsStr::from_bytes)
        .collect();
    app::read_command_lines(&words);
}

/// Parses a lease, or a watch event, as the API server sends it.
pub fn lease(data: &[u8]) {
    let now = Timestamp::UNIX_EPOCH;
    if let Ok(lease) = serde_json::from_slice::<Lease>(data) {
        let written = serde_json::to_vec(&lease).expect("it was read");
        let again: Lease = serde_json::from_slice(&written).expect("it was written");
        assert_eq!(leases::is_valid(&lease, now), leases::is_valid(&again, now));
    }
    if let Ok(event) = serde_json::from_slice(data) {
        let leases = Leases::default();
        // An error event ends the watch.
        let _ = leases.apply(event);
        assert!(leases.count(now).is_none_or(|count| count == 1));
    }
}
