// SPDX-License-Identifier: Apache-2.0

//! Certificates that change while the webhook works, and clients that must show one.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tests::cmd::wait_until;
use tests::dir::Dir;
use webhook_tests::certs::{Authority, Mounted, Pair};
use webhook_tests::client::{Client, Tls};
use webhook_tests::load::Load;
use webhook_tests::oracle::{check, review};
use webhook_tests::{PATIENCE, Webhook};

const RELOADS: &str = "apiserver_proxy_webhook_certificate_reloads_total{result=";

/// How often the certificate is exchanged under load.
const EXCHANGES: u32 = 5;

fn body() -> Vec<u8> {
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    review(&pod).to_string().into_bytes()
}

/// Waits until new connections are shown this certificate.
fn wait_for(webhook: &Webhook, tls: &Tls, pair: &Pair) -> Result<()> {
    let expected = CertificateDer::from_pem_slice(&fs::read(&pair.certificate)?)?;
    wait_until(PATIENCE, "the new certificate", || {
        let shown = Client::connect(webhook.reviews, tls)?.server_certificate();
        Ok((shown.as_deref() == Some(expected.as_ref())).then_some(()))
    })
    .with_context(|| webhook.log())
}

#[test]
fn exchanged_under_load() -> Result<()> {
    let dir = Dir::new()?;
    let authority = Authority::new(&dir.path().join("authority"))?;
    let mut mounted = Mounted::new(dir.path(), &authority.issue("server-0")?)?;
    let webhook = Webhook::start_in(dir, authority, &[])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = body();
    let stop = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let load = Load {
            address: webhook.reviews,
            tls: &tls,
            clients: 8,
            // Kept connections and new ones.
            reconnect: Some(20),
            review: &body,
        };
        let stop = &stop;
        let running = scope.spawn(move || load.run(stop, || ()));
        let exchanged = (1..=EXCHANGES).try_for_each(|number| {
            let pair = webhook.authority.issue(&format!("server-{number}"))?;
            mounted.exchange(&pair)?;
            wait_for(&webhook, &tls, &pair)
        });
        stop.store(true, Ordering::Relaxed);
        let served = running
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        exchanged.and(served)
    })?;
    println!("{} reviews, none failed", served.reviews);
    let reloads = webhook.metric(&format!("{RELOADS}\"success\"}}"))?;
    ensure!(reloads == u64::from(EXCHANGES), "{reloads} reloads");
    ensure!(webhook.metric(&format!("{RELOADS}\"failure\"}}"))? == 0);
    Ok(())
}

#[test]
fn unusable_certificates_are_logged_once() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let tls = Tls::new(&webhook.authority)?;
    let body = body();
    let failures = format!("{RELOADS}\"failure\"}}");
    let message = "the changed certificates cannot be used";
    let other = webhook.authority.issue("other")?;
    let certificate = webhook.dir.path().join("tls.crt");
    let kept = fs::read(&certificate)?;
    // The certificate first, as when both are copied by hand.
    let of_another_key = fs::read(&other.certificate)?;
    for (number, (what, content)) in (1..).zip([
        ("mismatched", Some(of_another_key.as_slice())),
        ("garbage", Some(b"garbage")),
        ("missing", None),
    ]) {
        match content {
            Some(content) => fs::write(&certificate, content)?,
            None => fs::remove_file(&certificate)?,
        }
        wait_until(PATIENCE, what, || {
            Ok((webhook.metric(&failures)? == number).then_some(()))
        })
        .with_context(|| webhook.log())?;
        check(&body, &webhook.client()?.review(&body)?).context(what)?;
    }
    // The previous certificate is no change.
    fs::write(&certificate, kept)?;
    other.install(webhook.dir.path())?;
    wait_for(&webhook, &tls, &other)?;
    let log = webhook.log();
    let lines = log.matches(message).count();
    // Between the two files of the last pair a look may find one of each.
    ensure!((3..=4).contains(&lines), "{lines} lines\n{log}");
    ensure!(!log.contains("PRIVATE KEY"), "{log}");
    Ok(())
}

#[test]
fn clients_must_show_a_certificate() -> Result<()> {
    let dir = Dir::new()?;
    let authority = Authority::new(&dir.path().join("authority"))?;
    authority.issue("server")?.install(dir.path())?;
    let of_clients = Authority::new(&dir.path().join("clients"))?;
    let stranger = Authority::new(&dir.path().join("strangers"))?.issue("stranger")?;
    let known = of_clients.issue("apiserver")?;
    let ca = dir.path().join("ca.crt");
    fs::copy(of_clients.certificate(), &ca)?;
    let webhook = Webhook::start_in(dir, authority, &["--client-ca-name=ca.crt"])?;
    let body = body();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let ask = |own: Option<&Pair>| -> Result<()> {
            let tls = Tls::with(&webhook.authority, own, &[version])?;
            // With TLS 1.3 the client learns of its refusal when it reads.
            let answer = Client::connect(webhook.reviews, &tls)?.review(&body)?;
            check(&body, &answer)
        };
        ask(Some(&known))?;
        ensure!(
            ask(None).is_err(),
            "a client without a certificate is served"
        );
        ensure!(ask(Some(&stranger)).is_err(), "a stranger is served");
    }
    // Another authority, from now on.
    let next = Authority::new(&webhook.dir.path().join("next"))?;
    fs::copy(next.certificate(), &ca)?;
    let served = |pair: &Pair| -> Result<bool> {
        let tls = Tls::with(&webhook.authority, Some(pair), &[&rustls::version::TLS13])?;
        let answer = Client::connect(webhook.reviews, &tls).and_then(|mut c| c.review(&body));
        Ok(answer.is_ok())
    };
    let next = next.issue("apiserver")?;
    wait_until(PATIENCE, "the new authority", || {
        Ok(served(&next)?.then_some(()))
    })?;
    ensure!(!served(&known)?, "the old authority still counts");
    Ok(())
}
