// SPDX-License-Identifier: Apache-2.0

//! Services whose address is one of the node's own. With kube-proxy in IPVS mode every ClusterIP is, and IPVS receives its packets.
//! Such Services are ignored: no route, no decisions, no program for `connect(2)`; connections that end on the proxy already are
//! drained.

use tracing::{info, warn};

use super::{Ebpf, PART};
use crate::config::Service;
use crate::link::LinkTable;
use crate::reconcile::Report;
use crate::services::Undecided;

impl Ebpf {
    /// The Services that should end on the proxy of this node.
    pub(super) fn wanted(&self, table: &LinkTable) -> Vec<Service> {
        let is_own = |service: &&Service| table.services.contains_key(&service.cluster_ip.ip());
        let services = self.config.services.iter();
        services
            .filter(|service| !is_own(service))
            .copied()
            .collect()
    }

    /// Ignores Services whose address has become one of the node's own, and handles them again once it is no longer.
    pub(super) fn ignore_own_addresses(&mut self, table: &LinkTable, report: &mut Report) {
        for service in self.config.services.clone() {
            let cluster_ip = service.cluster_ip;
            let link = table.services.get(&cluster_ip.ip());
            if link.is_some() == self.left.contains(&cluster_ip) {
                continue;
            }
            let programs = self.programs.as_mut();
            let set = programs.map(|programs| programs.set_service(&service, link.is_some()));
            if let Some(Err(error)) = set {
                let task = "update the programs' map of Services";
                report.failed(PART, task, &error);
                continue;
            }
            if let Some(index) = link {
                let why = Undecided::OwnAddress(table.name_of(*index));
                warn!(part = PART.name(), "ignoring {cluster_ip}: {why}");
                self.left.insert(cluster_ip);
                self.drain.add(service, self.config.drain_timeout);
                // The address is local without the agent's route.
                self.drain.former.insert(cluster_ip.ip());
            } else {
                info!(
                    part = PART.name(),
                    "{cluster_ip} is no longer an address of the node: connections to it end on the proxy"
                );
                self.left.remove(&cluster_ip);
                self.drain.cancel(&service);
            }
        }
    }
}
