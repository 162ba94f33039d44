// SPDX-License-Identifier: Apache-2.0

//! The certificates of the examples: their files, modes and names. openssl accepts them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::cmd;
use tests::dir::Dir;
use tunnel_tests::certs::{self, Existing};

fn openssl(line: &str, dir: &Path) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(line.split_whitespace()).current_dir(dir);
    cmd::run(&mut command, "")
}

#[test]
fn the_files_that_the_examples_name() -> Result<()> {
    let dir = Dir::new()?;
    let names = ["tunnel.example.com".to_owned()];
    let files = certs::write(dir.path(), &names, Existing::Keep)?;
    ensure!(files.len() == 12, "{files:?}");
    for (group, members) in [
        ("frontend", ["proxy-frontend", "proxy-client"]),
        ("agent", ["proxy-frontend", "proxy-agent"]),
    ] {
        for member in members {
            let verified = openssl(
                &format!("verify -CAfile {group}/issued/ca.crt {group}/issued/{member}.crt"),
                dir.path(),
            )?;
            ensure!(verified.contains("OK"), "{verified}");
            let text = openssl(
                &format!("x509 -in {group}/issued/{member}.crt -noout -text"),
                dir.path(),
            )?;
            for name in [
                "DNS:localhost",
                "IP Address:127.0.0.1",
                "DNS:tunnel.example.com",
            ] {
                ensure!(text.contains(name), "{name}: {text}");
            }
            let key = dir.path().join(format!("{group}/private/{member}.key"));
            let mode = fs::metadata(key)?.permissions().mode();
            ensure!(mode & 0o7777 == 0o600, "{mode:o}");
        }
    }
    let other = openssl(
        "verify -CAfile agent/issued/ca.crt frontend/issued/proxy-client.crt",
        dir.path(),
    );
    ensure!(other.is_err(), "one CA vouches for the other's clients");
    Ok(())
}

#[test]
fn nothing_is_overwritten_unless_asked() -> Result<()> {
    let dir = Dir::new()?;
    certs::write(dir.path(), &[], Existing::Keep)?;
    let key = dir.path().join("agent/private/proxy-agent.key");
    let before = fs::read(&key)?;
    let error = certs::write(dir.path(), &[], Existing::Keep).unwrap_err();
    ensure!(error.to_string().contains("--force"), "{error}");
    ensure!(fs::read(&key)? == before, "a key was overwritten");
    certs::write(dir.path(), &[], Existing::Replace)?;
    ensure!(fs::read(&key)? != before, "the key is still the old one");
    let mode = fs::metadata(&key)?.permissions().mode();
    ensure!(mode & 0o7777 == 0o600, "{mode:o}");
    Ok(())
}
