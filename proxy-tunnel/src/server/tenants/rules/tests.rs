// SPDX-License-Identifier: Apache-2.0

//! Files that are refused, and decisions compared with those of a slower implementation.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proxy_serve::tls::subject::Subject;

use super::super::file::{Offered, parse};
use super::*;

const ALL: Offered = Offered {
    agent_certificates: true,
    client_tls: true,
    tokens: true,
};

fn problem(text: &str, offered: Offered) -> String {
    parse(text, offered).unwrap_err().to_string()
}

/// Returns a file with one tenant, whose first rules for agents and for clients are the given ones.
fn file(agents: &str, clients: &str) -> String {
    format!("tenants: [{{name: a, agents: [{agents}], clients: [{clients}]}}]")
}

#[test]
fn the_documented_file_is_accepted() {
    let docs = include_str!("../../../../../docs/tenants.md");
    let (_, text) = docs.split_once("```yaml\n").unwrap();
    let (text, _) = text.split_once("```").unwrap();
    let rules = parse(text, ALL).unwrap();
    assert_eq!(rules.tenants().count(), 2);
    assert_eq!(rules.audiences(), ["konnectivity.shoot-b"]);
    assert_eq!(rules.entrances(Side::Client).len(), 1);
    // Every key is documented in the table.
    for key in [
        "organization",
        "organizationalUnit",
        "commonName",
        "uri",
        "audience",
        "namespace",
        "serviceAccount",
        "serverName",
        "port",
        "unixSocket",
        "agents",
        "tunnels",
        "dialsPerSecond",
        "bufferedMiB",
    ] {
        assert!(docs.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    const GOOD: &str = "{certificate: {organization: a}}";
    for (agents, clients, want) in [
        ("", GOOD, "tenants[0] (a), agents: give at least one rule"),
        (GOOD, "", "tenants[0] (a), clients: give at least one rule"),
        (
            "{}",
            GOOD,
            "tenants[0] (a), agents[0]: give at least one condition",
        ),
        (
            "{certificate: {}}",
            GOOD,
            "agents[0]: certificate: give organization, organizationalUnit, commonName or uri",
        ),
        ("{certificate: {uri: ''}}", GOOD, "certificate.uri is empty"),
        ("{serverName: 'a b'}", GOOD, "serverName: \"a b\""),
        ("{port: 0}", GOOD, "port: give 1 to 65535"),
        (
            "{port: 1, unixSocket: /a}",
            GOOD,
            "give port or unixSocket, not both",
        ),
        ("{unixSocket: /a}", GOOD, "only clients have one"),
        (GOOD, "{unixSocket: a}", "by an absolute path"),
        (
            GOOD,
            "{unixSocket: /a, certificate: {uri: a}}",
            "clients[0]: certificate: clients show one only on TCP",
        ),
        (GOOD, "{unixSocket: /a, serverName: a}", "serverName"),
        (GOOD, "{token: {audience: a}}", "only agents show one"),
        (
            "{token: {audience: ''}}",
            GOOD,
            "audience, namespace and serviceAccount must not be empty",
        ),
        (
            "{port: 9000}",
            "{port: 9000}",
            "port 9000: agents and clients",
        ),
    ] {
        let error = problem(&file(agents, clients), ALL);
        assert!(error.contains(want), "{agents} {clients}: {error}");
    }
    for text in [
        "",
        "tenants:",
        "tenants: {}",
        "tenants: [{name: a}]",
        "tenant: []",
        "tenants: [{name: a, agents: [{organization: a}], clients: [{port: 1}]}]",
        "tenants: [{name: a, agents: [{port: 70000}], clients: [{port: 1}]}]",
        "tenants: [{name: a, name: b, agents: [{port: 2}], clients: [{port: 1}]}]",
        "tenants: [{name: a, agents: [{port: 2}], clients: [{port: 1}]}]\n---\ntenants: []",
        "tenants: [{name: a, agents: [{port: 2}], clients: [{port: 1}], limits: {agents: -1}}]",
    ] {
        let error = problem(text, ALL);
        assert!(error.starts_with("the file: "), "{text}: {error}");
    }
    let limits = file(GOOD, GOOD).replace("clients:", "limits: {tunnels: 0}, clients:");
    assert!(problem(&limits, ALL).contains("limits.tunnels: give 1 or more"));
    for name in ["", "A", "-a", "a-", "a_b", "a b", &"a".repeat(64)] {
        let text = file(GOOD, GOOD).replace("name: a", &format!("name: {name:?}"));
        assert!(problem(&text, ALL).contains("a name has"), "{name}");
    }
}

#[test]
fn tenants_that_cannot_be_told_apart_are_refused() {
    let tenant = |name: &str, agents: &str| {
        format!("{{name: {name}, agents: [{agents}], clients: [{{unixSocket: /{name}}}]}}")
    };
    let two = |one: &str, other: &str| problem(&format!("tenants: [{one}, {other}]"), ALL);
    let (first, second) = ("{serverName: a.example}", "{serverName: A.example}");
    let error = two(&tenant("a", first), &tenant("b", second));
    assert_eq!(error, "tenant b, agents: a rule is that of tenant a");
    let error = two(&tenant("a", first), &tenant("a", "{port: 1}"));
    assert_eq!(error, "tenant a: the name stands twice");
}

#[test]
fn rules_that_no_peer_can_fit_or_any_can_are_refused() {
    const SOCKET: &str = "{unixSocket: /a}";
    let without = |change: fn(&mut Offered)| {
        let mut offered = ALL;
        change(&mut offered);
        offered
    };
    let no_certificates = without(|offered| offered.agent_certificates = false);
    let no_tls = without(|offered| offered.client_tls = false);
    let no_tokens = without(|offered| offered.tokens = false);
    for (agents, clients, offered, want) in [
        (
            "{certificate: {uri: a}}",
            SOCKET,
            no_certificates,
            "--cluster-ca-cert",
        ),
        ("{serverName: a}", SOCKET, no_certificates, "needs a token"),
        ("{port: 1}", SOCKET, no_certificates, "needs a token"),
        ("{token: {audience: a}}", SOCKET, no_tokens, "--kubeconfig"),
        ("{port: 1}", "{port: 2}", no_tls, "--server-cert"),
        ("{port: 1}", "{serverName: a}", no_tls, "--server-cert"),
        (
            "{port: 1}",
            "{certificate: {uri: a}}",
            no_tls,
            "--server-ca-cert",
        ),
    ] {
        let error = problem(&file(agents, clients), offered);
        assert!(error.contains(want), "{agents} {clients}: {error}");
    }
    let rules = parse(
        &file("{token: {audience: a}, port: 1}", SOCKET),
        no_certificates,
    );
    assert_eq!(rules.unwrap().unproved(Side::Agent).count(), 0);
    let rules = parse(&file("{serverName: a}", SOCKET), ALL).unwrap();
    assert_eq!(rules.unproved(Side::Agent).collect::<Vec<_>>(), ["a"]);
    assert_eq!(rules.unproved(Side::Client).count(), 0);
}

/// The names to choose from; there are few, so that equal names are frequent.
const WORDS: [&str; 4] = ["a", "b", "aa", "ab"];

/// The conditions of a random rule as pairs of field and value, for the slower implementation.
type Conditions = Vec<(&'static str, &'static str)>;

fn random_rule(random: &mut fastrand::Rng) -> Conditions {
    const FIELDS: [&str; 6] = [
        "organization",
        "commonName",
        "uri",
        "audience",
        "serverName",
        "port",
    ];
    let mut rule = Conditions::new();
    while rule.is_empty() {
        for field in FIELDS {
            if random.u8(..4) == 0 {
                rule.push((field, WORDS[random.usize(..4)]));
            }
        }
    }
    rule
}

fn number(word: &str) -> u16 {
    word.bytes().fold(0, |sum, byte| sum * 7 + u16::from(byte))
}

fn written(rule: &Conditions) -> String {
    let mut parts = Vec::new();
    let certificate: Vec<String> = rule
        .iter()
        .filter(|(field, _)| ["organization", "commonName", "uri"].contains(field))
        .map(|(field, value)| format!("{field}: {value}"))
        .collect();
    if !certificate.is_empty() {
        parts.push(format!("certificate: {{{}}}", certificate.join(", ")));
    }
    for (field, value) in rule {
        match *field {
            "audience" => parts.push(format!("token: {{audience: {value}}}")),
            "serverName" => parts.push(format!("serverName: {value}")),
            "port" => parts.push(format!("port: {}", number(value))),
            _ => {}
        }
    }
    format!("{{{}}}", parts.join(", "))
}

#[test]
fn judgements_are_those_of_a_slower_judge() {
    let mut random = fastrand::Rng::with_seed(24);
    let mut outcomes = [0; 3];
    for _ in 0..3000 {
        let tenants: Vec<(&str, Vec<Conditions>)> = WORDS[..random.usize(1..=4)]
            .iter()
            .map(|name| {
                let rules = std::iter::repeat_with(|| random_rule(&mut random));
                (*name, rules.take(1 + name.len()).collect())
            })
            .collect();
        let mut text = "tenants:\n".to_owned();
        for (name, rules) in &tenants {
            let rules: Vec<String> = rules.iter().map(written).collect();
            writeln!(
                text,
                "- {{name: {name}, agents: [{}], clients: [{{unixSocket: /{name}}}]}}",
                rules.join(", ")
            )
            .unwrap();
        }
        // Two tenants with the same rule are refused; other tests check that.
        let Ok(rules) = parse(&text, ALL) else {
            continue;
        };
        for _ in 0..20 {
            let mut words = || -> Vec<String> {
                let all = WORDS.iter().filter(|_| random.bool());
                all.map(ToString::to_string).collect()
            };
            let subject = Subject {
                organizations: words(),
                common_names: words(),
                uris: words(),
                ..Subject::default()
            };
            let holder = Holder {
                namespace: "n".into(),
                account: "s".into(),
                audiences: words(),
            };
            let entrance = WORDS[random.usize(..4)];
            let peer = Peer {
                entrance: Entrance::Port(number(entrance)),
                server_name: random.bool().then(|| WORDS[random.usize(..4)].to_owned()),
                subject: random.bool().then_some(subject),
            };
            let token = random.bool().then_some(&holder);
            let has = |list: &[String], value: &str| list.iter().any(|one| one == value);
            let holds = |(field, value): &(&str, &str)| match *field {
                "port" => entrance == *value,
                "serverName" => peer.server_name.as_deref() == Some(value),
                "audience" => token.is_some_and(|token| has(&token.audiences, value)),
                field => peer.subject.as_ref().is_some_and(|subject| match field {
                    "organization" => has(&subject.organizations, value),
                    "commonName" => has(&subject.common_names, value),
                    _ => has(&subject.uris, value),
                }),
            };
            let own: BTreeSet<&str> = tenants
                .iter()
                .filter(|(_, rules)| rules.iter().any(|rule| rule.iter().all(holds)))
                .map(|(name, _)| *name)
                .collect();
            outcomes[own.len().min(2)] += 1;
            match rules.judge(Side::Agent, &peer, token) {
                Ok(name) => assert_eq!(own, BTreeSet::from([&**name]), "{text} {peer}"),
                Err(NoTenant::Unknown) => assert_eq!(own.len(), 0, "{text} {peer}"),
                Err(NoTenant::Several(one, other)) => {
                    assert!(one != other && own.contains(&*one) && own.contains(&*other));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 1000), "{outcomes:?}");
}
