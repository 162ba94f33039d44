// SPDX-License-Identifier: Apache-2.0

//! Tests handshakes in memory with certificates that rcgen generates, and changes of files.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConnection, ServerConnection};

use super::client::{Client, ServerName};
use super::server::Server;
use super::*;
use crate::reload::{Change, Look as _, Reloader, Source as _};

/// A directory for one test, which is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("serve-tls-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes a certificate for a name, signed by `authority`, and its key.
    fn issue(&self, authority: &Authority, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, authority).unwrap();
        Pair {
            certificate: self.write(&format!("{name}.crt"), &certificate.pem()),
            key: self.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn server(pair: Pair, client_ca: Option<PathBuf>) -> Server {
    Server {
        pair,
        client_ca,
        location: "--server-cert says where it is",
        alpn: vec![HTTP2.to_vec()],
        policy: Policy::default(),
    }
}

fn client(server_ca: PathBuf, pair: Option<Pair>) -> Client {
    Client {
        server_ca,
        pair,
        location: "--ca-cert says where it is",
        alpn: vec![HTTP2.to_vec()],
        policy: Policy::default(),
    }
}

/// Performs a handshake in memory and returns the negotiated protocol.
fn handshake(server: &Server, client: &Client, name: &str) -> Result<Vec<u8>, rustls::Error> {
    let accepting = server.make(&server.read().unwrap()).unwrap().config;
    let opening = client.make(&client.read().unwrap()).unwrap().config;
    let mut accepting = ServerConnection::new(accepting)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut opening = ClientConnection::new(opening, name)?;
    while accepting.is_handshaking() || opening.is_handshaking() {
        let mut wire = Vec::new();
        opening.write_tls(&mut wire).unwrap();
        accepting.read_tls(&mut wire.as_slice()).unwrap();
        accepting.process_new_packets()?;
        let mut wire = Vec::new();
        accepting.write_tls(&mut wire).unwrap();
        opening.read_tls(&mut wire.as_slice()).unwrap();
        opening.process_new_packets()?;
    }
    Ok(opening.alpn_protocol().unwrap_or_default().to_vec())
}

#[test]
fn both_sides_show_certificates() {
    let scratch = Scratch::new("mutual");
    let (of_servers, of_clients) = (authority(), authority());
    let server_ca = scratch.write("servers.crt", &of_servers.pem());
    let client_ca = scratch.write("clients.crt", &of_clients.pem());
    let server = server(scratch.issue(&of_servers, "server"), Some(client_ca));
    let own = scratch.issue(&of_clients, "client");
    let known = client(server_ca.clone(), Some(own.clone()));
    assert_eq!(handshake(&server, &known, "localhost").unwrap(), HTTP2);
    let error = handshake(&server, &known, "example.com").unwrap_err();
    assert!(error.to_string().contains("example.com"), "{error}");
    handshake(&server, &client(server_ca.clone(), None), "localhost").unwrap_err();
    let stranger = scratch.issue(&of_servers, "stranger");
    handshake(&server, &client(server_ca, Some(stranger)), "localhost").unwrap_err();
    let other_ca = scratch.write("others.crt", &authority().pem());
    handshake(&server, &client(other_ca, Some(own)), "localhost").unwrap_err();
}

#[test]
fn one_malformed_certificate_makes_a_bundle_useless() {
    let scratch = Scratch::new("bundle");
    let of_servers = authority();
    let own = scratch.issue(&of_servers, "server");
    let good = of_servers.pem();
    let other = authority().pem();
    // One text is valid base64 that is not a certificate, the other one is truncated.
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let torn = &other[..other.len() / 2];
    for bad in [
        format!("{good}{garbage}"),
        format!("{garbage}{good}"),
        format!("{good}{torn}"),
    ] {
        let path = scratch.write("bundle.crt", &bad);
        let opening = client(path.clone(), None);
        let error = opening.make(&opening.read().unwrap()).unwrap_err();
        assert!(error.to_string().contains("bundle.crt"), "{error}");
        let accepting = server(own.clone(), Some(path));
        accepting.make(&accepting.read().unwrap()).unwrap_err();
    }
    // The bundle contains a comment and two valid certificates.
    let path = scratch.write("bundle.crt", &format!("# old and new\n{other}{good}"));
    let server = server(own, None);
    handshake(&server, &client(path, None), "localhost").unwrap();
}

#[test]
fn errors_name_file_and_flag() {
    let scratch = Scratch::new("errors");
    let missing = client(scratch.0.join("missing.crt"), None);
    let error = missing.read().unwrap_err().to_string();
    assert!(error.contains("missing.crt"), "{error}");
    assert!(error.contains("--ca-cert says where it is"), "{error}");
    let of_servers = authority();
    let mixed = Pair {
        key: scratch.issue(&of_servers, "other").key,
        ..scratch.issue(&of_servers, "server")
    };
    let server = server(mixed, None);
    let error = server.make(&server.read().unwrap()).unwrap_err();
    assert!(error.to_string().contains("other.key"), "{error}");
}

#[test]
fn the_last_good_certificates_stay_in_use() {
    let scratch = Scratch::new("reload");
    let of_servers = authority();
    let server = server(scratch.issue(&of_servers, "server"), None);
    let (reloads, refusals) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let counters = (Arc::clone(&reloads), Arc::clone(&refusals));
    let mut reloader = Reloader::new(server, move |change| match change {
        Change::Loaded(_) => {}
        Change::Reloaded(_) => drop(counters.0.fetch_add(1, Ordering::Relaxed)),
        Change::Refused(_) => drop(counters.1.fetch_add(1, Ordering::Relaxed)),
    })
    .unwrap();
    let counted = || {
        (
            reloads.load(Ordering::Relaxed),
            refusals.load(Ordering::Relaxed),
        )
    };
    let current = reloader.current();
    let first = current.get();
    reloader.look();
    assert_eq!(counted(), (0, 0));
    scratch.write("server.crt", "garbage");
    reloader.look();
    reloader.look();
    assert_eq!(counted(), (0, 1));
    assert!(Arc::ptr_eq(&first, &current.get()));
    fs::remove_file(scratch.0.join("server.key")).unwrap();
    reloader.look();
    reloader.look();
    assert_eq!(counted(), (0, 2));
    scratch.issue(&of_servers, "server");
    reloader.look();
    assert_eq!(counted(), (1, 2));
    assert!(!Arc::ptr_eq(&first, &current.get()));
}
