// SPDX-License-Identifier: Apache-2.0

//! The page for browsers: VIPs, backend, counters and repairs as of the last pass. Reads nothing beyond what metrics and
//! readiness read; drift, which needs a dry run, is part of `/status`.

use proxy_serve::pages::{Cell, Column, Page, Table};

use super::health::{Condition, Health};
use super::metrics::Reading;
use super::shared::Snapshot;
use crate::config::Service;
use crate::link::Vip;
use crate::state::State;
use crate::state::history::{History, Repair};
use crate::state::upstream::Endpoint;
use crate::status::model::OfVip;
use crate::time::rfc3339;

const CONDITIONS: [Column; 3] = [
    Column::words("Condition"),
    Column::words("State"),
    Column::words("Found"),
];
const VIPS: [Column; 3] = [
    Column::words("VIP"),
    Column::words("Link"),
    Column::words("State"),
];
const SERVICES: [Column; 2] = [Column::words("ClusterIP"), Column::words("Ends at")];
const COUNTERS: [Column; 9] = [
    Column::words("VIP"),
    Column::numbers("Requests"),
    Column::numbers("Bytes"),
    Column::numbers("Replies"),
    Column::numbers("Bytes"),
    Column::numbers("Decided"),
    Column::numbers("Translated"),
    Column::numbers("Undecided"),
    Column::numbers("Dropped"),
];
const UPSTREAM: [Column; 2] = [Column::words("API server"), Column::words("State")];
const REPAIRS: [Column; 4] = [
    Column::words("At"),
    Column::words("Part"),
    Column::words("What"),
    Column::words("Because of"),
];

/// Renders the page; `reading` holds the kernel's counters, none before the first pass.
pub fn page(snapshot: &Snapshot, readiness: &Health, reading: Option<&Reading>) -> Page {
    let mut page = Page::default();
    let conditions = Table::of(&CONDITIONS, &readiness.0, condition);
    let Some(state) = &snapshot.state else {
        page.table("Readiness", conditions);
        return page;
    };
    facts(&mut page, state, readiness.is_good());
    page.table("Readiness", conditions);
    page.table("VIPs", Table::of(&VIPS, &snapshot.vips, vip));
    let services = &state.settings.services;
    // With other backends no Service ends on the proxy. `/status` shows which listener counts.
    if !services.is_empty() && state.backend.backend == "ebpf" {
        page.table("Services", Table::of(&SERVICES, services, service));
    }
    match reading.map(|reading| &reading.counters) {
        Some(Some(counters)) => page.table("Counters", Table::of(&COUNTERS, counters, counts)),
        _ => page.facts("Counters", [("State", Cell::bad("cannot be read"))]),
    }
    let endpoints = &state.upstream.endpoints;
    if !endpoints.is_empty() {
        let table = Table::of(&UPSTREAM, endpoints, endpoint);
        page.table("The proxy's own connections", table);
    }
    let newest_first = state.history.repairs.iter().rev();
    page.table("Repairs", Table::of(&REPAIRS, newest_first, repair));
    page
}

fn facts(page: &mut Page, state: &State, is_ready: bool) {
    let State {
        backend,
        guard,
        history,
        ..
    } = state;
    let ready = if is_ready { "ready" } else { "not ready" };
    let asked = &backend.asked;
    let mut facts = vec![
        ("State", Cell::judged(is_ready, ready)),
        (
            "Backend",
            Cell::text(format_args!("{backend} (--backend={asked})")),
        ),
    ];
    for rejected in &backend.rejected {
        let text = format!("{}: {}", rejected.backend, rejected.reason);
        facts.push(("Backend that cannot be used", Cell::text(text)));
    }
    for place in &backend.breaks {
        facts.push(("Breaks connections sent to a VIP by", Cell::bad(place)));
    }
    if guard.links.is_empty() {
        facts.push(("Guard", Cell::text("no link")));
    }
    for link in &guard.links {
        let text = format!("{} by {}", link.link, link.how);
        facts.push(("Guard", Cell::text(text)));
    }
    for note in &guard.notes {
        facts.push(("Not guarded", Cell::text(note)));
    }
    facts.extend(passes(history));
    page.facts("Agent", facts);
}

fn passes(history: &History) -> Vec<(&'static str, Cell)> {
    let mut facts = Vec::new();
    if let Some(pass) = &history.last_pass {
        let (at, cause, changes) = (rfc3339(pass.at), pass.cause.name(), pass.changes);
        let took = pass.took.as_secs_f64() * 1000.0;
        let text = format!("{at}, by {cause}, in {took:.1} ms, changes: {changes}");
        facts.push(("Last pass", Cell::text(text)));
    }
    let repairs: u64 = history.repaired.values().sum();
    let (total, failed) = (history.passes, history.failed_passes);
    facts.push((
        "Passes",
        Cell::judged(history.ready, format_args!("{total}, failed: {failed}")),
    ));
    facts.push(("Repairs", Cell::count(repairs)));
    facts
}

fn condition(condition: &Condition) -> Vec<Cell> {
    let verdict = if condition.holds { "ok" } else { "failed" };
    vec![
        Cell::text(condition.name.replace('_', " ")),
        Cell::judged(condition.holds, verdict),
        Cell::text(&condition.found),
    ]
}

fn vip(vip: &Vip) -> Vec<Cell> {
    let is_up = vip.present && vip.link_up;
    vec![
        Cell::text(vip.ip),
        Cell::text(&vip.link),
        Cell::judged(is_up, vip.state()),
    ]
}

fn service(service: &Service) -> Vec<Cell> {
    vec![Cell::text(service.cluster_ip), Cell::text(service.vip)]
}

fn counts(of_vip: &OfVip) -> Vec<Cell> {
    let counts = &of_vip.total;
    vec![
        Cell::text(of_vip.vip),
        Cell::count(counts.requests.packets),
        Cell::bytes(counts.requests.bytes),
        Cell::count(counts.replies.packets),
        Cell::bytes(counts.replies.bytes),
        Cell::count(counts.decided),
        Cell::count(counts.translated),
        Cell::count(counts.undecided.values().sum()),
        Cell::count(counts.dropped.values().sum()),
    ]
}

fn endpoint(endpoint: &Endpoint) -> Vec<Cell> {
    let state = match &endpoint.tracked {
        None => Cell::good("untracked"),
        Some(why) => Cell::text(format_args!("tracked: {}", why.detail)),
    };
    vec![Cell::text(endpoint.endpoint), state]
}

fn repair(repair: &Repair) -> Vec<Cell> {
    let why = match &repair.trigger {
        None => "found without an event".to_owned(),
        Some(event) => {
            let by = event.by.as_ref();
            let by = by.map(|by| format!(", by {by}")).unwrap_or_default();
            format!("{}{by}", event.event)
        }
    };
    vec![
        Cell::text(rfc3339(repair.at)),
        Cell::text(&repair.part),
        Cell::text(&repair.what),
        Cell::text(why),
    ]
}
