// SPDX-License-Identifier: Apache-2.0

//! The filter table of legacy iptables, as `iptables-save` prints it.

use proxy_netlink::netfilter::expression::End;

use super::Found;
use super::packet::{Direction, Known, Packet};
use super::walk::{self, Action, Chains, Fate, Step, Truth};
use crate::xtables::{self, SavedTable, contains};

/// The chains that packets to and from the proxy pass.
const BASES: [(&str, Direction); 2] = [("INPUT", Direction::Request), ("OUTPUT", Direction::Reply)];

/// Returns the chains that do not simply let the packets pass.
#[must_use]
pub fn find(table: &SavedTable, program: &str, packets: &[Packet]) -> Vec<Found> {
    let mut found = Vec::new();
    for packet in packets {
        let mut chains = Chains::new();
        for rule in &table.rules {
            let step = step(&rule.spec, packet);
            chains.entry(rule.chain.clone()).or_default().push(step);
        }
        for (base, direction) in BASES {
            if packet.direction != direction {
                continue;
            }
            let drops = table
                .chains
                .iter()
                .any(|chain| chain.name == base && chain.policy == "DROP");
            let (fate, chain) = walk::walk(&chains, base, drops);
            if fate != Fate::Passes {
                let chain = chain.filter(|_| fate == Fate::MayDrop).unwrap_or(base);
                found.push(Found {
                    place: format!("{program} table filter, chain {chain}"),
                    packet: *packet,
                    fate,
                    of_iptables: true,
                    command: command(program, base, packet),
                });
            }
        }
    }
    found
}

fn command(program: &str, chain: &str, packet: &Packet) -> String {
    let (ip, port) = (packet.end.ip(), packet.end.port());
    let (address, number) = match packet.place() {
        End::Destination => ("-d", "--dport"),
        End::Source => ("-s", "--sport"),
    };
    let state = match packet.known {
        Known::Vip | Known::Service => "",
        Known::Upstream => " -m conntrack --ctstate UNTRACKED",
    };
    format!("{program} -I {chain} {address} {ip} -p tcp {number} {port}{state} -j ACCEPT")
}

/// Returns the effect of a printed rule on a packet. An unknown word makes the result a "maybe".
fn step(spec: &str, packet: &Packet) -> Step {
    let words = xtables::words(spec).unwrap_or_default();
    let mut words = words.iter().map(String::as_str);
    let mut step = Step {
        matches: Truth::Yes,
        action: Action::Nothing,
    };
    let mut inverted = false;
    while let Some(word) = words.next() {
        if word == "!" {
            inverted = true;
            continue;
        }
        let mut value = || words.next().unwrap_or_default();
        let matches = match word {
            "-j" => {
                step.action = action(value());
                // The following words are options of the target.
                break;
            }
            "-g" => {
                step.action = Action::Goto(value().to_owned());
                break;
            }
            "-m" | "--comment" => {
                value();
                Truth::Yes
            }
            "-d" => address(value(), packet, End::Destination),
            "-s" => address(value(), packet, End::Source),
            "-p" => truth(value() == "tcp"),
            "--dport" => port(value(), packet, End::Destination),
            "--sport" => port(value(), packet, End::Source),
            "-i" => by_link(value(), packet, Direction::Request),
            "-o" => by_link(value(), packet, Direction::Reply),
            "--dst-type" => kind(value(), packet, End::Destination),
            "--src-type" => kind(value(), packet, End::Source),
            "--ctstate" | "--state" => truth(value().split(',').any(|state| state == "UNTRACKED")),
            // The packet has no conntrack entry.
            "--ctstatus" => truth(inverted),
            _ => Truth::Maybe,
        };
        let matches = match (matches, inverted) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (matches, _) => matches,
        };
        inverted = false;
        step.matches = step.matches.min(matches);
    }
    step
}

fn action(target: &str) -> Action {
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" => Action::Nothing,
        "QUEUE" | "NFQUEUE" => Action::Unknown,
        chain => Action::Jump(chain.to_owned()),
    }
}

/// Returns whether an end of the packet is in a network. The client's end is unknown.
fn address(network: &str, packet: &Packet, known_in: End) -> Truth {
    if packet.place() != known_in {
        let is_client = packet.is_client(12, 4) || packet.is_client(8, 16);
        if known_in != End::Source || !is_client {
            return Truth::Maybe;
        }
        // The client has no address of the loopback range.
        let is_loopback = network.starts_with("127.") || network == "::1/128";
        return if is_loopback {
            Truth::No
        } else {
            Truth::Likely
        };
    }
    contains(network, packet.end.ip()).map_or(Truth::Maybe, truth)
}

/// Returns whether an end's port is in a range. The client's port is unknown.
fn port(range: &str, packet: &Packet, known_in: End) -> Truth {
    if packet.place() != known_in {
        return Truth::Maybe;
    }
    let (first, last) = range.split_once(':').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse()) {
        (Ok(first), Ok(last)) => truth((first..=last).contains(&packet.end.port())),
        _ => Truth::Maybe,
    }
}

/// Returns whether the packet passes a link. Nothing is known about the link, except that it may be known not to be
/// `lo`.
fn by_link(link: &str, packet: &Packet, known_in: Direction) -> Truth {
    if packet.direction == known_in && link == "lo" && !packet.by_loopback() {
        return Truth::No;
    }
    if packet.direction == known_in {
        Truth::Likely
    } else {
        Truth::Maybe
    }
}

/// Returns whether an end is an address of these types: VIPs are addresses of the node, and so are Services because of
/// the agent's route.
fn kind(kinds: &str, packet: &Packet, known_in: End) -> Truth {
    if packet.known == Known::Upstream || packet.place() != known_in {
        return Truth::Maybe;
    }
    truth(kinds.split(',').any(|kind| kind == "LOCAL"))
}

fn truth(matches: bool) -> Truth {
    if matches { Truth::Yes } else { Truth::No }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xtables::SavedRule;

    fn packet(direction: Direction) -> Packet {
        Packet {
            end: "10.96.0.2:443".parse().unwrap(),
            known: Known::Vip,
            direction,
        }
    }

    /// The rule that the doctor proposes lets the responses of an API server pass, but no tracked packets.
    #[test]
    fn answers_of_an_api_server_have_it_as_their_source() {
        let answer = Packet {
            end: "192.0.2.1:443".parse().unwrap(),
            known: Known::Upstream,
            direction: Direction::Request,
        };
        let matches = |spec: &str| step(spec, &answer).matches;
        assert_eq!(
            matches("-s 192.0.2.1/32 -p tcp --sport 443 -j ACCEPT"),
            Truth::Yes
        );
        assert_eq!(matches("-d 192.0.2.1/32 -j ACCEPT"), Truth::Maybe);
        assert_eq!(
            matches("-m conntrack --ctstate ESTABLISHED -j ACCEPT"),
            Truth::No
        );
        let command = command("iptables", "INPUT", &answer);
        let spec = command.strip_prefix("iptables -I INPUT ").unwrap();
        assert_eq!(matches(spec), Truth::Yes);
        assert!(spec.contains("--ctstate UNTRACKED"), "{spec}");
    }

    #[test]
    fn rules_are_read_as_printed() {
        let matches = |spec: &str| step(spec, &packet(Direction::Request)).matches;
        assert_eq!(
            matches("-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"),
            Truth::Yes
        );
        assert_eq!(
            matches("-d 10.96.0.0/16 -m comment --comment \"-p udp\" -j ACCEPT"),
            Truth::Yes
        );
        assert_eq!(matches("-p tcp -m tcp --dport 22 -j ACCEPT"), Truth::No);
        assert_eq!(
            matches("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
            Truth::No
        );
        assert_eq!(
            matches("-m conntrack ! --ctstate INVALID -j ACCEPT"),
            Truth::Yes
        );
        assert_eq!(matches("-i lo -j ACCEPT"), Truth::Likely);
        assert_eq!(matches("-s 10.244.0.0/16 -j ACCEPT"), Truth::Likely);
        assert_eq!(
            matches("! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate DNAT -j DROP"),
            Truth::No
        );
    }

    #[test]
    fn what_is_known_of_a_service_counts() {
        let vip = packet(Direction::Reply);
        let service = Packet {
            end: "10.96.0.1:443".parse().unwrap(),
            known: Known::Service,
            ..vip
        };
        let matches = |spec: &str, packet: &Packet| step(spec, packet).matches;
        assert_eq!(matches("-o lo -j ACCEPT", &vip), Truth::Likely);
        assert_eq!(matches("-o lo -j ACCEPT", &service), Truth::No);
        assert_eq!(matches("! -o lo -j ACCEPT", &service), Truth::Yes);
        assert_eq!(matches("-o eth0 -j ACCEPT", &service), Truth::Likely);
        let local = "-m addrtype --src-type LOCAL -j ACCEPT";
        assert_eq!(matches(local, &service), Truth::Yes);
        let here = "-m addrtype ! --src-type LOCAL -j REJECT";
        assert_eq!(matches(here, &service), Truth::No);
        let there = "-m addrtype --dst-type LOCAL -j ACCEPT";
        assert_eq!(matches(there, &service), Truth::Maybe);
    }

    #[test]
    fn a_firewall_is_judged_with_its_policy() {
        let fates = |rules: &[(&str, &str)]| {
            let printed: Vec<_> = rules
                .iter()
                .map(|(chain, spec)| format!("-A {chain} {spec}\n"))
                .collect();
            let text = format!(
                "*filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:X - [0:0]\n{}COMMIT\n",
                printed.concat()
            );
            let table = xtables::parse(&text, "filter").unwrap();
            let both = [packet(Direction::Request), packet(Direction::Reply)];
            let found = find(&table, "iptables-legacy", &both);
            found
                .into_iter()
                .map(|found| (found.fate, found.command))
                .collect::<Vec<_>>()
        };
        let command =
            "iptables-legacy -I INPUT -d 10.96.0.2 -p tcp --dport 443 -j ACCEPT".to_owned();
        assert_eq!(fates(&[]), [(Fate::Dropped, command.clone())]);
        assert_eq!(
            fates(&[("INPUT", "-j X"), ("X", "-i lo -j ACCEPT")]),
            [(Fate::MayPass, command)]
        );
        assert_eq!(
            fates(&[("INPUT", "-j X"), ("X", "-d 10.96.0.2/32 -j ACCEPT")]),
            []
        );
        assert_eq!(
            fates(&[("INPUT", "-j ACCEPT"), ("OUTPUT", "-j REJECT")]).len(),
            1
        );
        let [(Fate::MayDrop, _)] = &fates(&[
            ("INPUT", "-i eth1 -j DROP"),
            ("INPUT", "-m mark --mark 0x8000/0x8000 -j DROP"),
            ("INPUT", "-j ACCEPT"),
        ])[..] else {
            panic!("a drop on one link");
        };
        // Rules of kube-proxy and, for the links of pods, of Calico.
        let others = [
            ("INPUT", "-m mark --mark 0x8000/0x8000 -j DROP"),
            ("INPUT", "-i cali+ -g X"),
            ("X", "-m comment --comment \"Unknown interface\" -j DROP"),
            ("INPUT", "-j ACCEPT"),
            (
                "OUTPUT",
                "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            ),
        ];
        assert_eq!(fates(&others), []);
        let table = SavedTable {
            chains: Vec::new(),
            rules: vec![SavedRule {
                chain: "INPUT".to_owned(),
                spec: String::new(),
            }],
        };
        assert_eq!(find(&table, "x", &[packet(Direction::Request)]), []);
    }

    proptest! {
        #[test]
        fn any_rule_is_read(spec in "(-[djgpsm] |--dport |--ctstate |! |[0-9./:a-f]{0,6} ?|.){0,30}") {
            let _ = step(&spec, &packet(Direction::Request));
            let _ = step(&spec, &packet(Direction::Reply));
        }
    }
}
