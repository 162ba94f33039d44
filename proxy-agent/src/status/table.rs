// SPDX-License-Identifier: Apache-2.0

//! Formats the status as aligned text, at most [`WIDTH`] columns wide unless a single word is longer.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use proxy_serve::quantity::{bytes, count};

use super::model::{Counts, OfService, OfVip, Repair, Status, UpstreamEndpoint};
use crate::config::Service;
use crate::link::Vip;
use crate::reconcile::trigger::Cause;
use crate::state::history::Problem;
use crate::time::{rfc3339, rough};

/// Maximum width of a line.
pub const WIDTH: usize = 100;
/// Width of the labels at the beginning of lines.
const NAME: usize = 11;
/// Width of the first column of the table of counters.
const ROW: usize = 30;

/// A status; the flag shows links without traffic too.
pub struct Table<'a>(pub &'a Status, pub bool);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(status, all) = self;
        agent(f, status)?;
        backend(f, status)?;
        guard(f, status)?;
        upstream(f, status)?;
        if let Some(connections) = &status.connections {
            let text = format!(
                "{} of {} connections stored",
                connections.entries, connections.size
            );
            line(f, "decisions", &text)?;
        }
        passes(f, status)?;
        drift(f, status)?;
        for error in &status.unreadable {
            line(f, "unreadable", error)?;
        }
        vips(f, &status.vips)?;
        for OfService { service, undecided } in &status.services {
            let Service { cluster_ip, vip } = service;
            let text = match undecided {
                None => format!("{cluster_ip} ends on the proxy at {vip}"),
                Some(why) => format!("{cluster_ip} goes through kube-proxy: {why}"),
            };
            wrapped(f, "", "  ", &text)?;
        }
        counters(f, &status.counters, *all)?;
        repairs(f, &status.repairs.last)
    }
}

fn agent(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let agent = &status.agent;
    let (version, pid) = (&agent.version, agent.pid);
    let text = match agent.uptime_seconds {
        None => format!("{version}, not running (was pid {pid})"),
        Some(uptime) => {
            let uptime = rough(Duration::from_secs(uptime));
            let ready = if agent.ready { "ready" } else { "not ready" };
            format!("{version}, pid {pid}, up {uptime}, {ready}")
        }
    };
    line(f, "agent", &text)?;
    for failure in &agent.failures {
        line(f, "", &problem(failure))?;
    }
    Ok(())
}

fn backend(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let backend = &status.backend;
    line(
        f,
        "backend",
        &format!("{backend} (--backend={})", backend.asked),
    )?;
    for rejected in &backend.rejected {
        let text = format!("not {}: {}", rejected.backend, rejected.reason);
        line(f, "", &text)?;
    }
    for hidden in &status.hidden {
        let (link, by) = (&hidden.link, hidden.by.join(", "));
        let text = format!("on {link} these programs run before the agent's: {by}");
        line(f, "", &text)?;
    }
    for place in &backend.breaks {
        let text = format!("breaks connections sent to a VIP by {place}");
        line(f, "", &text)?;
    }
    Ok(())
}

fn guard(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let links = status.guard.links.iter();
    let links = links.map(|link| format!("{} by {}", link.link, link.how));
    let notes = status.guard.notes.iter();
    let texts: Vec<_> = links
        .chain(notes.map(|note| format!("not: {note}")))
        .collect();
    if texts.is_empty() {
        return line(f, "guard", "no link");
    }
    for (number, text) in texts.iter().enumerate() {
        line(f, if number == 0 { "guard" } else { "" }, text)?;
    }
    Ok(())
}

fn upstream(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let upstream = &status.upstream;
    let endpoint = |known: &UpstreamEndpoint| match &known.detail {
        None => format!(
            "{} untracked, from cgroup {}",
            known.endpoint,
            upstream.cgroups.join(" and ")
        ),
        Some(detail) => format!("{} tracked: {detail}", known.endpoint),
    };
    let mut lines: Vec<_> = upstream.endpoints.iter().map(endpoint).collect();
    match &upstream.detail {
        Some(detail) => lines.push(format!("no endpoint is learned: {detail}")),
        None if !lines.is_empty() => {}
        None if upstream.learns => lines.push(
            "no endpoint is known yet: the proxy's own connections are tracked until one without NAT \
             is observed"
                .to_owned(),
        ),
        None => lines.push("off: the proxy's own connections are tracked".to_owned()),
    }
    for (number, text) in lines.iter().enumerate() {
        line(f, if number == 0 { "upstream" } else { "" }, text)?;
    }
    Ok(())
}

fn passes(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let passes = &status.passes;
    if let Some(pass) = &passes.last {
        let cause = match pass.cause {
            Cause::Event => "event",
            Cause::Resync => "resync",
        };
        let took = pass.took.as_secs_f64() * 1000.0;
        let (at, changes) = (rfc3339(pass.at), pass.changes);
        let text = format!("{at}, by {cause}, in {took:.1} ms, changes: {changes}");
        line(f, "last pass", &text)?;
    }
    let repairs: u64 = status.repairs.total.values().sum();
    let (total, failed) = (passes.total, passes.failed);
    let text = format!("passes: {total}, failed: {failed}, repairs: {repairs}");
    line(f, "so far", &text)
}

fn drift(f: &mut Formatter<'_>, status: &Status) -> fmt::Result {
    let drift = &status.drift;
    if drift.changes.is_empty() && drift.failures.is_empty() {
        return line(f, "drift", "none: the node is as desired");
    }
    let changes = drift
        .changes
        .iter()
        .map(|change| format!("{}: {}", change.part, change.what));
    let failures = drift.failures.iter().map(problem);
    for (number, text) in changes.chain(failures).enumerate() {
        line(f, if number == 0 { "drift" } else { "" }, &text)?;
    }
    Ok(())
}

fn problem(problem: &Problem) -> String {
    format!("{}: {}: {}", problem.part, problem.what, problem.cause)
}

fn vips(f: &mut Formatter<'_>, vips: &[Vip]) -> fmt::Result {
    let width = vips.iter().map(|vip| vip.ip.to_string().len()).max();
    let width = width.unwrap_or_default().max("VIP".len());
    let link = vips.iter().map(|vip| vip.link.len()).max();
    let link = link.unwrap_or_default().max("LINK".len());
    writeln!(f, "\n{:width$}  {:link$}  STATE", "VIP", "LINK")?;
    for vip in vips {
        let start = format!("{:width$}  {:link$}  ", vip.ip.to_string(), vip.link);
        let indent = " ".repeat(start.len());
        wrapped(f, &start, &indent, &vip.state())?;
    }
    Ok(())
}

fn counters(f: &mut Formatter<'_>, vips: &[OfVip], all: bool) -> fmt::Result {
    if vips.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "\n{:ROW$} {:>9} {:>9} {:>9} {:>9} {:>8} {:>10} {:>9}",
        "COUNTERS", "REQUESTS", "BYTES", "REPLIES", "BYTES", "DECIDED", "TRANSLATED", "UNDECIDED"
    )?;
    for of_vip in vips {
        row(f, &of_vip.vip.to_string(), &of_vip.total)?;
        for of_link in &of_vip.links {
            if all || of_link.counts.any() {
                let link = of_link.link.as_deref().unwrap_or("(this node)");
                row(f, &format!("  {link}"), &of_link.counts)?;
                reasons(f, &of_link.counts)?;
            }
        }
    }
    Ok(())
}

fn row(f: &mut Formatter<'_>, name: &str, counts: &Counts) -> fmt::Result {
    let Counts {
        requests,
        replies,
        decided,
        translated,
        undecided,
        dropped: _,
    } = counts;
    if name.len() > ROW {
        writeln!(f, "{name}")?;
    }
    let name = if name.len() > ROW { "" } else { name };
    writeln!(
        f,
        "{name:ROW$} {:>9} {:>9} {:>9} {:>9} {:>8} {:>10} {:>9}",
        count(requests.packets),
        bytes(requests.bytes),
        count(replies.packets),
        bytes(replies.bytes),
        count(*decided),
        count(*translated),
        count(undecided.values().copied().fold(0, u64::saturating_add)),
    )
}

/// The reasons for undecided connections and dropped packets, if there are any.
fn reasons(f: &mut Formatter<'_>, counts: &Counts) -> fmt::Result {
    named(f, "undecided", &counts.undecided)?;
    named(f, "dropped", &counts.dropped)
}

fn named(f: &mut Formatter<'_>, what: &str, counts: &BTreeMap<&str, u64>) -> fmt::Result {
    let reasons: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(reason, number)| format!("{} {}", count(*number), reason.replace('_', " ")))
        .collect();
    if reasons.is_empty() {
        return Ok(());
    }
    wrapped(f, &format!("    {what}: "), "    ", &reasons.join(", "))
}

fn repairs(f: &mut Formatter<'_>, repairs: &[Repair]) -> fmt::Result {
    if repairs.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nREPAIRS")?;
    for repair in repairs {
        let start = format!("{}  ", rfc3339(repair.at));
        let text = format!("{}: {}", repair.part, repair.what);
        wrapped(f, &start, &" ".repeat(start.len()), &text)?;
        let Some((since, event)) = repair.since.zip(repair.event.as_ref()) else {
            wrapped(f, "      ", "      ", "found without an event")?;
            continue;
        };
        let by = repair.by.as_ref();
        let by = by.map(|by| format!(", by {by}")).unwrap_or_default();
        let text = format!("{event}{by}, at {}", rfc3339(since));
        wrapped(f, "      ", "      ", &text)?;
    }
    Ok(())
}

/// A line with a label.
fn line(f: &mut Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    wrapped(f, &format!("{name:NAME$}"), &" ".repeat(NAME), text)
}

/// Writes words after `start`, and continues on lines that begin with `indent`.
fn wrapped(f: &mut Formatter<'_>, start: &str, indent: &str, text: &str) -> fmt::Result {
    let mut at = start.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        let space = usize::from(!is_empty);
        if !is_empty && at.chars().count() + space + word.chars().count() > WIDTH {
            writeln!(f, "{}", at.trim_end())?;
            indent.clone_into(&mut at);
        } else if !is_empty {
            at.push(' ');
        }
        at.push_str(word);
        is_empty = false;
    }
    writeln!(f, "{}", at.trim_end())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Wrapped<'a>(&'a str);

    impl Display for Wrapped<'_> {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            wrapped(f, "start ", "  ", self.0)
        }
    }

    proptest! {
        #[test]
        fn lines_are_no_wider_than_allowed_and_no_word_is_lost(text in "([a-zé]{1,20} {1,2}){0,60}") {
            let written = Wrapped(&text).to_string();
            prop_assert!(written.lines().all(|line| line.chars().count() <= WIDTH));
            let words: Vec<_> = written.split_whitespace().skip(1).collect();
            prop_assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
        }

        #[test]
        fn any_text_is_written(text: String) {
            prop_assert!(Wrapped(&text).to_string().ends_with('\n'));
        }
    }
}
