// SPDX-License-Identifier: Apache-2.0

//! Checks of certificate files: the files fit together, the certificates are valid now and for some time, and their
//! usage and names are those that peers accept.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use proxy_serve::doctor::Check;
use proxy_serve::reload::Source;
use proxy_serve::tls::facts::Facts;
use proxy_serve::tls::{client, server};

use super::words::chain;
use crate::metrics::certificates::Names;

/// The id of the check.
const ID: &str = "certificate";

/// The remaining validity below which the check reports a warning. The alert uses the same value.
const SOON: Duration = Duration::from_hours(7 * 24);

/// The side that presents a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
    Authority,
}

/// Checks the certificates of a server's listener.
#[must_use]
pub fn of_server(tls: &server::Server, names: Names, now: Timestamp) -> Vec<Check> {
    let own = (tls.pair.certificate.as_path(), Side::Server);
    let authorities = tls.client_ca.as_deref();
    judge(tls, Some(own), authorities, names, tls.location, now)
}

/// Checks the certificates of a client.
#[must_use]
pub fn of_client(tls: &client::Client, names: Names, now: Timestamp) -> Vec<Check> {
    let own = tls.pair.as_ref();
    let own = own.map(|pair| (pair.certificate.as_path(), Side::Client));
    let authorities = Some(tls.server_ca.as_path());
    judge(tls, own, authorities, names, tls.location, now)
}

fn judge<S: Source>(
    source: &S,
    own: Option<(&Path, Side)>,
    authorities: Option<&Path>,
    names: Names,
    location: &'static str,
    now: Timestamp,
) -> Vec<Check> {
    // The files are loaded together, as the program does it.
    let made = source.read().and_then(|files| source.make(&files));
    if let Err(error) = made {
        let finding = format!("--{}: {}", names.own, chain(&error));
        return vec![Check::broken(
            ID,
            finding,
            "mount or write the file, with a certificate, its own key and the CA of the peers; the program does not start without",
        )];
    }
    let mut checks = Vec::new();
    let files = [
        own.map(|(path, side)| (names.own, path, side)),
        authorities.map(|path| (names.authorities, path, Side::Authority)),
    ];
    for (flag, path, side) in files.into_iter().flatten() {
        let facts = match Facts::of_file(path, location) {
            Ok(facts) => facts,
            Err(error) => {
                let remedy = "give a file with certificates in PEM";
                checks.push(Check::broken(ID, chain(&error), remedy));
                continue;
            }
        };
        // Of a chain, only the first certificate is presented as the identity. Of the CAs, each may have issued a
        // peer's certificate.
        let judged = if side == Side::Authority {
            &facts[..]
        } else {
            &facts[..1]
        };
        checks.extend(judged.iter().map(|facts| one(flag, facts, side, now)));
    }
    checks
}

fn one(flag: &str, facts: &Facts, side: Side, now: Timestamp) -> Check {
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let ends = date(facts.ends);
    let what = format!("--{flag}, {}", facts.subject);
    let wrong = |finding: String, remedy: &str| Check::broken(ID, finding, remedy);
    if now >= facts.ends {
        return wrong(
            format!("{what}: it has expired, at {ends}"),
            "renew it; changed files are taken into use within 5 s. If it was renewed: is the new one in this file?",
        );
    }
    if now < facts.begins {
        let begins = date(facts.begins);
        return wrong(
            format!(
                "{what}: it is valid from {begins} on, which is later than this machine's clock"
            ),
            "set the clock, or have it issued for an earlier time",
        );
    }
    if side == Side::Server && !facts.is_for_servers {
        let remedy = "have it issued with the extended key usage serverAuth";
        return wrong(format!("{what}: it is not for servers"), remedy);
    }
    if side == Side::Client && !facts.is_for_clients {
        let remedy = "have it issued with the extended key usage clientAuth";
        return wrong(format!("{what}: it is not for clients"), remedy);
    }
    if side == Side::Server && facts.names.is_empty() {
        return wrong(
            format!(
                "{what}: it has neither a DNS name nor an address, and no peer checks the subject's CN"
            ),
            "have it issued with the names that peers dial as subjectAltName",
        );
    }
    let names = match facts.names.join(", ") {
        names if names.is_empty() => String::new(),
        names => format!(", for {names}"),
    };
    if side == Side::Server && !facts.unusable_names.is_empty() {
        let addresses = facts.unusable_names.join(", ");
        return Check::warning(
            ID,
            format!(
                "{what}{names}, until {ends}: as a DNS name, an address does not count; peers that dial {addresses} refuse it"
            ),
            "have it issued with each address as an IP entry in subjectAltName",
        );
    }
    if facts.ends.saturating_sub(now) < SOON {
        let remedy = "renew it; changed files are taken into use within 5 s";
        return Check::warning(
            ID,
            format!("{what}{names}: it ends soon, at {ends}"),
            remedy,
        );
    }
    Check::ok(ID, format!("{what}{names}, until {ends}"))
}

fn date(time: Duration) -> String {
    let second = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(second).map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    const DAY: u64 = 86_400;

    fn verdict(facts: &Facts, side: Side, day: u64) -> (Verdict, String) {
        let now = Timestamp::from_second(i64::try_from(day * DAY).unwrap()).unwrap();
        let check = one("cluster-cert", facts, side, now);
        (check.verdict, check.finding)
    }

    #[test]
    fn times_names_and_usage() {
        let good = Facts {
            subject: "CN=a".into(),
            names: vec!["tunnel.example".into()],
            unusable_names: Vec::new(),
            begins: Duration::from_secs(10 * DAY),
            ends: Duration::from_secs(100 * DAY),
            is_for_servers: true,
            is_for_clients: false,
        };
        let (found, finding) = verdict(&good, Side::Server, 50);
        assert_eq!(found, Verdict::Ok);
        assert!(finding.contains("tunnel.example"), "{finding}");
        for (side, day, wanted, words) in [
            (Side::Server, 9, Verdict::Broken, "later than"),
            (Side::Server, 94, Verdict::Warning, "ends soon"),
            (Side::Server, 100, Verdict::Broken, "expired"),
            (Side::Client, 50, Verdict::Broken, "not for clients"),
            (Side::Authority, 50, Verdict::Ok, "until"),
            (Side::Authority, 101, Verdict::Broken, "expired"),
        ] {
            let (found, finding) = verdict(&good, side, day);
            assert_eq!(found, wanted, "{finding}");
            assert!(finding.contains(words), "{finding}");
        }
        let wrong_kind = Facts {
            unusable_names: vec!["192.0.2.1".into()],
            ..good.clone()
        };
        let (found, finding) = verdict(&wrong_kind, Side::Server, 50);
        assert_eq!(found, Verdict::Warning);
        assert!(finding.contains("dial 192.0.2.1"), "{finding}");
        assert_eq!(verdict(&wrong_kind, Side::Authority, 50).0, Verdict::Ok);
        let nameless = Facts {
            names: Vec::new(),
            ..good
        };
        let (found, finding) = verdict(&nameless, Side::Server, 50);
        assert_eq!(found, Verdict::Broken);
        assert!(finding.contains("neither"), "{finding}");
        assert_eq!(verdict(&nameless, Side::Authority, 50).0, Verdict::Ok);
    }
}
