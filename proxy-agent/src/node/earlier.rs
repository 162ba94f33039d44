// SPDX-License-Identifier: Apache-2.0

//! What earlier starts with the same run directory have put on the node.

use std::path::Path;

use tracing::warn;

use super::Node;
use crate::backend::discover;
use crate::config::Config;
use crate::link::LinkTable;
use crate::reconcile::Report;
use crate::state::owned::Owned;

/// What earlier starts have put on the node, and what an agent with these settings is about to.
pub(super) async fn owned(config: &Config) -> Owned {
    let mut owned = Owned::load(&config.run_dir);
    if owned.is_empty() {
        // No agent has published anything, or the directory was lost: its marks name its VIPs.
        // What cannot be read is logged there, and what it names is left where it is.
        let mut report = Report::default();
        let vips = discover::vips(config.instance, &config.bpffs, &mut report).await;
        owned.add(&vips, &config.interface);
    }
    let mut owned = owned.without_claimed(&config.vips).await;
    owned.add_of(config);
    owned
}

pub(super) fn publish(owned: &Owned, run_dir: &Path) {
    if let Err(error) = owned.store(run_dir) {
        warn!("{error}");
    }
}

impl Node {
    /// Forgets what an earlier start has put on the node and a whole table does not show any more.
    pub(super) fn forget_gone(&mut self, table: &LinkTable) {
        let left = self.owned.still(table, &self.config);
        if left != self.owned {
            publish(&left, &self.config.run_dir);
            self.link.set_earlier(left.of_links());
            self.owned = left;
        }
    }
}
