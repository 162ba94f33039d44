// SPDX-License-Identifier: Apache-2.0

//! Publishes the state after a pass, and logs its changes.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::endpoints::MAX_LEARNED;
use super::plan::Facts;
use super::{PART, Stage, Upstream};
use crate::reconcile::Report;
use crate::state::upstream::{self as published, Reason, Tracked};

impl Upstream {
    /// Publishes and logs the state of each endpoint.
    pub(super) fn publish(&mut self, stage: &Stage, report: &mut Report) {
        let repeated = self.repeated(report);
        let facts = Facts {
            unsupported: stage.unsupported.clone(),
            proxy: &stage.proxy,
            translated: self.endpoints.translated(),
            filtered: self.endpoints.filtered(),
            repeated: &repeated,
        };
        let all = self.endpoints.all().into_iter();
        let limit = self.endpoints.are_full().then(|| {
            let text = format!("the maximum of {MAX_LEARNED} learned endpoints is reached");
            Tracked::new(Reason::Limit, text)
        });
        let learns_not = facts.learns_not(stage.others.clone(), limit);
        let learns = self.endpoints.are_learned();
        let now = published::Upstream {
            endpoints: all.map(|one| facts.judge(one)).collect(),
            learns,
            learns_not: learns_not.filter(|_| learns),
            cgroups: self.cgroups.clone(),
            unsupported: self.unsupported.clone(),
        };
        log_changes(&self.published, &now);
        self.published = now;
    }
}

fn log_changes(before: &published::Upstream, now: &published::Upstream) {
    for endpoint in &now.endpoints {
        if before.endpoints.contains(endpoint) && before.cgroups == now.cgroups {
            continue;
        }
        match &endpoint.tracked {
            None => info!(
                part = PART.name(),
                "the proxy's connections to {} are untracked: those of cgroup {}",
                endpoint.endpoint,
                now.places()
            ),
            Some(tracked) => warn!(
                part = PART.name(),
                "the proxy's connections to {} are tracked: {}", endpoint.endpoint, tracked.detail
            ),
        }
    }
    let known = now.endpoints.iter().map(|known| known.endpoint);
    let known: BTreeSet<_> = known.collect();
    for endpoint in &before.endpoints {
        if !known.contains(&endpoint.endpoint) {
            let endpoint = endpoint.endpoint;
            info!(
                part = PART.name(),
                "{endpoint} has expired: the proxy has no connections to it"
            );
        }
    }
    if let Some(why) = &now.learns_not
        && now.learns_not != before.learns_not
    {
        info!(
            part = PART.name(),
            "learning of the proxy's endpoints is suspended: {}", why.detail
        );
    }
}
