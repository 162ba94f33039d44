// SPDX-License-Identifier: Apache-2.0

//! What the logs say if the server refuses a certificate: the agent's has the reason, and the server's a warning.

use std::net::Shutdown;

use super::process::{Setup, until_connected};
use super::rig::Scratch;

#[test]
fn both_logs_have_the_reason_of_a_refused_certificate() {
    for (certificate, alert, reason) in [
        ("expired", "CertificateExpired", "certificate expired"),
        ("stranger", "DecryptError", "BadSignature"),
    ] {
        let setup = Setup::new();
        setup.scratch.issue("expired", |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        });
        // The CA of this certificate has the same name and another key.
        let others = Scratch::new();
        for suffix in ["crt", "key"] {
            let file = |name: &str| format!("{name}.{suffix}");
            let to = setup.scratch.file(&file("stranger"));
            std::fs::copy(others.file(&file("client")), to).unwrap();
        }
        let server = setup.server(&["-v=4"]);
        // A port scan ends the connection before the handshake.
        let scan = until_connected(setup.agents);
        scan.shutdown(Shutdown::Both).unwrap();
        server.until_logged("handshake eof");
        let own = setup.file(certificate);
        let agent = setup.agent(&[
            &format!("--agent-cert={own}.crt"),
            &format!("--agent-key={own}.key"),
        ]);
        agent.until_logged(&format!("received fatal alert: {alert}"));
        server.until_logged(reason);
        let log = server.log();
        let severity = |words: &str| {
            let line = log.lines().find(|line| line.contains(words)).unwrap();
            line.chars().next()
        };
        assert_eq!(severity("handshake eof"), Some('I'), "{log}");
        assert_eq!(severity(reason), Some('W'), "{log}");
    }
}
