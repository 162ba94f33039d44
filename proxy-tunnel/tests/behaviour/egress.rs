// SPDX-License-Identifier: Apache-2.0

//! kube-apiserver's side in deploy/tunnel/egress: the files are parsed as strictly as kube-apiserver does
//! (`EgressSelectorConfiguration` of `apiserver.k8s.io/v1beta1`), and used to dial through the server that they name.

use std::fs;
use std::path::PathBuf;

use proxy_tunnel::client::{Dialer, Endpoint, Mode};
use serde::Deserialize;

use super::process::{Program, Setup, get, port, until, until_connected};
use super::rig::{Target, round_trip};

/// The configuration in Kubernetes' types, with exactly the keys that they have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Configuration {
    api_version: String,
    kind: String,
    egress_selections: Vec<Selection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    name: String,
    connection: Connection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Connection {
    proxy_protocol: Protocol,
    transport: Option<Transport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Protocol {
    #[serde(rename = "GRPC")]
    Grpc,
    #[serde(rename = "HTTPConnect")]
    HttpConnect,
    Direct,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transport {
    tcp: Option<Tcp>,
    uds: Option<Uds>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Tcp {
    url: String,
    tls_config: Option<TlsConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Uds {
    uds_name: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TlsConfig {
    ca_bundle: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    #[serde(rename = "tlsServerName")]
    server_name: Option<String>,
}

/// Checks the properties that kube-apiserver requires of a connection, in addition to its types.
fn check(connection: &Connection) -> Result<(), &'static str> {
    let transport = connection.transport.as_ref();
    let is_named = |uds: &Uds| uds.uds_name.is_absolute();
    match (connection.proxy_protocol, transport) {
        (Protocol::Direct, None) => Ok(()),
        (Protocol::Direct, Some(_)) => Err("Direct has no transport"),
        (
            Protocol::Grpc,
            Some(Transport {
                tcp: None,
                uds: Some(uds),
            }),
        ) if is_named(uds) => Ok(()),
        (Protocol::Grpc, _) => Err("GRPC has a Unix socket"),
        (
            Protocol::HttpConnect,
            Some(Transport {
                tcp: None,
                uds: Some(uds),
            }),
        ) if is_named(uds) => Ok(()),
        (
            Protocol::HttpConnect,
            Some(Transport {
                tcp: Some(tcp),
                uds: None,
            }),
        ) => {
            let tls = tcp.tls_config.as_ref();
            // With http it is accepted, but then there are no certificates to dial with.
            let is_whole =
                tls.is_some_and(|tls| tls.client_cert.is_some() && tls.client_key.is_some());
            if tcp.url.starts_with("https://") && is_whole {
                Ok(())
            } else {
                Err("TCP has https, and the client's pair")
            }
        }
        (Protocol::HttpConnect, _) => Err("HTTPConnect has a Unix socket or TCP"),
    }
}

fn parse(text: &str) -> Result<Configuration, String> {
    let read: Configuration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if read.kind != "EgressSelectorConfiguration" || read.api_version != "apiserver.k8s.io/v1beta1"
    {
        return Err(format!("{} of {}", read.kind, read.api_version));
    }
    for selection in &read.egress_selections {
        check(&selection.connection)?;
    }
    Ok(read)
}

/// Returns the files by name.
fn files() -> Vec<(String, String)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tunnel/egress");
    let mut files: Vec<(String, String)> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Returns the server's flags in a file's comment.
fn documented(text: &str) -> Vec<String> {
    let comment = text.lines().filter_map(|line| line.strip_prefix("# "));
    let words = comment
        .flat_map(str::split_whitespace)
        .skip_while(|word| *word != "konnectivity-server");
    let flags = words.skip(1).take_while(|word| word.starts_with("--"));
    flags.map(str::to_owned).collect()
}

#[test]
fn a_selection_that_kube_apiserver_refuses_is_refused_here() {
    let head = "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n";
    let one = |connection: &str| {
        parse(&format!(
            "{head}- {{name: cluster, connection: {connection}}}\n"
        ))
    };
    for good in [
        "{proxyProtocol: Direct}",
        "{proxyProtocol: GRPC, transport: {uds: {udsName: /s}}}",
        "{proxyProtocol: HTTPConnect, transport: {tcp: {url: 'https://a:1', tlsConfig: {clientCert: c, clientKey: k}}}}",
    ] {
        one(good).unwrap();
    }
    for bad in [
        "{proxyProtocol: Direct, transport: {uds: {udsName: /s}}}",
        "{proxyProtocol: GRPC, transport: {tcp: {url: 'https://a:1'}}}",
        "{proxyProtocol: grpc, transport: {uds: {udsName: /s}}}",
        "{proxyProtocol: HTTPConnect, transport: {uds: {udsName: /s}, tcp: {url: 'https://a:1'}}}",
        "{proxyProtocol: HTTPConnect, transport: {tcp: {url: 'https://a:1', tlsConfig: {caBundle: c}}}}",
        "{proxyProtocol: HTTPConnect, transport: {tcp: {url: 'a:1', tlsConfig: {clientCert: c, clientKey: k}}}}",
        "{proxyProtocol: HTTPConnect, transport: {uds: {name: /s}}}",
    ] {
        assert!(one(bad).is_err(), "{bad}");
    }
}

/// Tests each transport, with both kinds of connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_file_works_with_the_server_that_it_names() {
    let files = files();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "grpc-uds.yaml",
            "http-connect-tls.yaml",
            "http-connect-uds.yaml"
        ]
    );
    let echo = Target::echo().await;
    for (name, text) in files {
        let read = parse(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        let selected: Vec<&str> = read
            .egress_selections
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(selected, ["cluster", "controlplane"], "{name}");
        let flags = documented(&text);
        assert!(flags.len() > 2, "{name}: {flags:?}");
        let setup = Setup::new();
        let clients = port();
        // The paths of the file are replaced by those of the test.
        let here: Vec<String> = flags
            .iter()
            .map(|flag| match flag.split_once('=').unwrap() {
                ("--uds-name", socket) => {
                    for one in &read.egress_selections {
                        let uds = one
                            .connection
                            .transport
                            .as_ref()
                            .unwrap()
                            .uds
                            .as_ref()
                            .unwrap();
                        assert_eq!(uds.uds_name.to_str(), Some(socket), "{name}");
                    }
                    format!("--uds-name={}", setup.file("socket"))
                }
                ("--server-port", "8090") => format!("--server-port={clients}"),
                ("--server-cert", _) => format!("--server-cert={}", setup.file("server.crt")),
                ("--server-key", _) => format!("--server-key={}", setup.file("server.key")),
                ("--server-ca-cert", _) => format!("--server-ca-cert={}", setup.file("ca.crt")),
                _ => flag.clone(),
            })
            .collect();
        let has_socket = here.iter().any(|flag| flag.starts_with("--uds-name="));
        let none = if has_socket {
            vec![]
        } else {
            vec!["--uds-name=".to_owned()]
        };
        let here: Vec<&str> = here.iter().chain(&none).map(String::as_str).collect();
        let server: Program = setup.server(&here);
        let _agent = setup.agent(&[]);
        let ready = || get(setup.health, "/readyz").0.contains("200");
        until("an agent", ready, || server.log());
        for selection in &read.egress_selections {
            let Connection {
                proxy_protocol,
                transport,
            } = &selection.connection;
            let mode = match proxy_protocol {
                Protocol::Grpc => Mode::Grpc,
                Protocol::HttpConnect => Mode::HttpConnect,
                Protocol::Direct => panic!("{name}: nothing is tunnelled"),
            };
            let endpoint = match transport
                .as_ref()
                .and_then(|transport| transport.tcp.as_ref())
            {
                None => Endpoint::unix(setup.scratch.file("socket")),
                Some(tcp) => {
                    let tls = tcp.tls_config.as_ref().unwrap();
                    assert!(
                        tls.ca_bundle.is_some() && tls.server_name.is_none(),
                        "{name}"
                    );
                    assert!(tcp.url.ends_with(":8090"), "{name}: {}", tcp.url);
                    drop(until_connected(clients));
                    let config = setup.scratch.client_tls().current().get().config.clone();
                    Endpoint::tls("localhost", clients, config)
                }
            };
            let dialed = Dialer::new(endpoint, mode).dial(&echo).await;
            let mut tunnel = dialed.unwrap_or_else(|why| panic!("{name}: {why}\n{}", server.log()));
            round_trip(&mut tunnel, selection.name.as_bytes()).await;
        }
    }
}

/// Checks names, issuers and usages in cert-manager.yaml; tests/tunnel runs make-certificates.sh.
#[test]
fn certificates_by_cert_manager() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/tunnel/certificates/cert-manager.yaml"
    );
    let text = fs::read_to_string(path).unwrap();
    let objects: Vec<serde_json::Value> = text
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect();
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let issuers: Vec<_> = of_kind("Issuer")
        .map(|issuer| &issuer["metadata"]["name"])
        .collect();
    let secrets: Vec<_> = of_kind("Certificate")
        .map(|one| &one["spec"]["secretName"])
        .collect();
    for issuer in of_kind("Issuer") {
        let ca = &issuer["spec"]["ca"]["secretName"];
        assert!(
            ca.is_null() || secrets.contains(&ca),
            "no certificate for {ca}"
        );
    }
    let mut uses = Vec::new();
    for one in of_kind("Certificate") {
        let spec = &one["spec"];
        assert!(issuers.contains(&&spec["issuerRef"]["name"]), "{spec}");
        assert_eq!(one["metadata"]["name"], spec["secretName"]);
        if spec["isCA"] == true {
            continue;
        }
        let usage = spec["usages"][1].as_str().unwrap();
        // A server's certificate has names; a client's has the organization that tenants' rules match.
        let (names, subject) = (
            spec["dnsNames"].is_array(),
            spec["subject"]["organizations"].is_array(),
        );
        assert_eq!(
            (names, subject),
            (usage == "server auth", usage == "client auth"),
            "{spec}"
        );
        uses.push((spec["issuerRef"]["name"].as_str().unwrap(), usage));
    }
    uses.sort_unstable();
    assert_eq!(
        uses,
        [
            ("konnectivity-agents", "client auth"),
            ("konnectivity-agents", "server auth"),
            ("konnectivity-clients", "client auth"),
            ("konnectivity-clients", "client auth"),
            ("konnectivity-clients", "server auth"),
        ]
    );
}
