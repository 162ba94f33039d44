// SPDX-License-Identifier: Apache-2.0

//! The webhook's command line: a mistake is reported once, with exit code 1, and no request is
//! served.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::cmd;
use tests::dir::Dir;
use webhook_tests::binary;
use webhook_tests::certs::Authority;

/// Flags that are wrong behind sound ones, and words of the message.
const WRONG: [(&str, &str); 19] = [
    ("--apiserver-fqdn=", "--apiserver-fqdn"),
    ("--apiserver-fqdn=foo", "--apiserver-fqdn two labels"),
    ("--apiserver-fqdn=foo..bar", "--apiserver-fqdn empty"),
    ("--apiserver-fqdn=foo_.bar", "--apiserver-fqdn foo_"),
    ("--cert-dir=/nonexistent", "/nonexistent/tls.crt --cert-dir"),
    ("--cert-name=none", "none certificate"),
    ("--cert-name=garbage", "garbage certificate"),
    ("--cert-name=tls.key", "tls.key certificate"),
    ("--key-name=none", "none key"),
    ("--key-name=tls.crt", "tls.crt private"),
    ("--key-name=other.key", "other.key together"),
    ("--client-ca-name=none", "none CA"),
    ("--client-ca-name=tls.key", "tls.key CA"),
    ("--port=65536", "--port 65536"),
    ("--port=-1", "--port -1"),
    ("--port=https", "--port https"),
    (
        "--host=not.an.address.invalid",
        "--host not.an.address.invalid",
    ),
    ("--host=192.0.2.1", "--host 192.0.2.1"),
    ("--listen=9466", "--listen 9466"),
];

/// Runs it and sees that it fails, with these words.
fn fails(args: &[&str], words: &str) -> Result<()> {
    let output = cmd::output(Command::new(binary()?).args(args), "")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    ensure!(status.code() == Some(1), "{args:?}: {status}\n{stderr}");
    for word in words.split(' ') {
        ensure!(stderr.contains(word), "{args:?}: no {word} in\n{stderr}");
    }
    for never in ["reviews on", "panicked"] {
        ensure!(!stderr.contains(never), "{args:?}: {stderr}");
    }
    Ok(())
}

#[test]
fn mistakes() -> Result<()> {
    let dir = Dir::new()?;
    let authority = Authority::new(&dir.path().join("authority"))?;
    authority.issue("server")?.install(dir.path())?;
    let other = authority.issue("other")?;
    fs::copy(&other.key, dir.path().join("other.key"))?;
    let garbage = "-----BEGIN CERTIFICATE-----\n!\n";
    fs::write(dir.path().join("garbage"), garbage)?;
    let fqdn = "--apiserver-fqdn=foo.bar";
    let certs = format!("--cert-dir={}", dir.path().display());
    let sound = [fqdn, &certs, "--host=127.0.0.1", "--port=0", "--listen="];
    for (wrong, words) in WRONG {
        fails(&[&sound, [wrong].as_slice()].concat(), words)?;
    }
    fails(&[&certs], "--apiserver-fqdn")?;
    fails(&[fqdn], "--cert-dir")?;
    fails(
        &[&sound, ["--no-such-flag"].as_slice()].concat(),
        "--no-such-flag",
    )?;
    fails(&[&sound, ["word"].as_slice()].concat(), "word")?;
    // Both listeners or none: the first one is not left behind.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let port = format!("--port={}", address.port());
    fails(
        &[&sound, [port.as_str()].as_slice()].concat(),
        "--port 127.0.0.1",
    )?;
    let listen = format!("--listen={address}");
    fails(
        &[&sound, [listen.as_str()].as_slice()].concat(),
        "--listen 127.0.0.1",
    )
}

#[test]
fn help_and_version() -> Result<()> {
    for flag in ["--help", "--version"] {
        let printed = cmd::run(Command::new(binary()?).arg(flag), "")?;
        ensure!(
            printed.contains("KUBERNETES_SERVICE_HOST") || printed.contains("0."),
            "{printed}"
        );
    }
    Ok(())
}
