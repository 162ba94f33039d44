// SPDX-License-Identifier: Apache-2.0

//! Recognises the agent's rules in printed ones. Versions and flavours print the same rule differently, so rules are compared in a
//! normalised form. Ownership is not considered here.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_rules::xtables;

use super::{Detail, Kind, LinkName, Rule, Table};
use crate::instance::Instance;

/// Match modules of the agent's rules. Another module may restrict the match without options.
const MODULES: [&str; 4] = ["tcp", "comment", "set", "conntrack"];

/// The normalised options of a rule, without its comment.
#[derive(Debug, PartialEq, Eq)]
struct Meaning(Vec<Item>);

/// An option with its arguments.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    option: String,
    negated: bool,
    args: Vec<String>,
}

impl Rule {
    /// The rule of `owner` that a line of `iptables-save` represents; none if it differs from all of its rules. `words` are those after
    /// the chain's name, unquoted.
    pub fn recognise(owner: Instance, table: Table, chain: &str, words: &[String]) -> Option<Self> {
        let meaning = Meaning::of(words)?;
        let (vip, port) = meaning.endpoint()?;
        let details = meaning.details();
        Kind::all()
            .filter(|kind| kind.table() == table && kind.chain(owner) == chain)
            .flat_map(|kind| {
                let fitting = details.iter().filter(move |detail| kind.fits(detail));
                fitting.map(move |detail| Self {
                    kind,
                    vip,
                    port,
                    owner,
                    detail: *detail,
                })
            })
            .find(|rule| {
                let words = xtables::words(&rule.spec());
                words.and_then(|words| Meaning::of(&words)).as_ref() == Some(&meaning)
            })
    }
}

impl Meaning {
    /// None if it cannot be a rule of the agent.
    fn of(words: &[String]) -> Option<Self> {
        let mut items: Vec<Item> = Vec::new();
        let mut negated = false;
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            let mut args = Vec::new();
            if word == "--comment" {
                // The comment may begin with a hyphen.
                args.push(words.next()?.to_owned());
            }
            let is_arg = |word: &&str| *word != "!" && !word.starts_with('-');
            while let Some(arg) = words.next_if(is_arg) {
                args.push(arg.to_owned());
            }
            let item = Item {
                option: word.to_owned(),
                negated: std::mem::take(&mut negated),
                args,
            };
            items.push(item.normal()?);
        }
        items.retain(|item| !item.option.is_empty());
        items.sort();
        // Two names of the same target, depending on flavour and version.
        let notrack = [item("--notrack", &[]), item("-j", &["CT"])];
        if notrack.iter().all(|part| items.contains(part)) {
            items.retain(|item| !notrack.contains(item));
            items.push(item("-j", &["NOTRACK"]));
            items.sort();
        }
        Some(Self(items))
    }

    /// The candidate parameters besides VIP and port.
    fn details(&self) -> Vec<Detail> {
        let value = |option: &str| {
            let item = self.0.iter().find(|item| item.option == option)?;
            Some(item.args.first()?.as_str())
        };
        let link = value("-i").and_then(LinkName::new).map(Detail::Link);
        let network = value("-s").and_then(|text| text.parse().ok());
        let mut details = vec![Detail::None];
        details.extend(link);
        details.extend(network.map(Detail::Network));
        details
    }

    /// The VIP and the port; zero if it applies to all ports.
    fn endpoint(&self) -> Option<(IpAddr, u16)> {
        let arg = |options: [&str; 2]| {
            let mut items = self.0.iter();
            let item = items.find(|item| !item.negated && options.contains(&&*item.option))?;
            item.args.first()
        };
        // If both options exist, the sorted order has the destination first.
        let vip: IpNet = arg(["-s", "-d"])?.parse().ok()?;
        let port = match arg(["--sport", "--dport"]) {
            Some(port) => port.parse().ok()?,
            None => 0,
        };
        let whole = vip.prefix_len() == vip.max_prefix_len();
        whole.then_some((vip.addr(), port))
    }
}

impl Item {
    /// The normalised form, with an empty option if it has no effect. None if the agent's rules have no such option.
    fn normal(mut self) -> Option<Self> {
        match (&*self.option, &*self.args) {
            ("-m", [module]) => {
                (!self.negated && MODULES.contains(&&**module)).then_some(())?;
                self.option.clear();
            }
            ("--comment", _) => self.option.clear(),
            ("-p", [protocol]) if protocol == "6" => self.args = vec!["tcp".to_owned()],
            ("-s" | "-d", [address]) => {
                self.args = vec![network(address)?.to_string()];
            }
            ("--syn", []) => {
                "--tcp-flags".clone_into(&mut self.option);
                self.args = ["ACK,FIN,RST,SYN", "SYN"].map(str::to_owned).to_vec();
            }
            ("--tcp-flags", flags) => self.args = flags.iter().map(|list| sorted(list)).collect(),
            _ => {}
        }
        Some(self)
    }
}

fn item(option: &str, args: &[&str]) -> Item {
    Item {
        option: option.to_owned(),
        negated: false,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
    }
}

fn sorted(list: &str) -> String {
    let mut names: Vec<&str> = list.split(',').collect();
    names.sort_unstable();
    names.join(",")
}

/// Parses a network; a single address is a network of full prefix length.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => text.parse().ok(),
    }
}
