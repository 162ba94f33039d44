// SPDX-License-Identifier: Apache-2.0

//! The metrics of server and agent that a request changes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tests::http;
use tunnel_tests::tunnel::{AGENT_HEALTH, SERVER_HEALTH, Tunnel};

/// The prefix of the metrics' names.
const PREFIX: &str = "konnectivity_network_proxy_";

/// The values of samples by name and labels.
pub struct Metrics(BTreeMap<String, String>);

impl Metrics {
    /// Reads the metrics of server and agent, without the parts of histograms.
    pub fn read(tunnel: &Tunnel) -> Result<Self> {
        let mut samples = BTreeMap::new();
        for address in [SERVER_HEALTH, AGENT_HEALTH] {
            let answer = http::ask(tunnel.netns(), address, "/metrics", &[])?;
            ensure!(answer.code == 200, "no metrics from {address}: {answer:?}");
            for line in answer.body.lines() {
                let sample = line.strip_prefix(PREFIX);
                if let Some((name, value)) = sample.and_then(|sample| sample.rsplit_once(' ')) {
                    samples.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        samples.retain(|name, _| !name.contains("_bucket{") && !name.contains("_seconds_sum"));
        Ok(Self(samples))
    }

    /// Returns the samples that have changed, one per line.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let was = |name| before.0.get(name).map_or("-", String::as_str);
        self.0
            .iter()
            .filter(|(name, value)| was(name.as_str()) != value.as_str())
            .map(|(name, value)| format!("{name} {} → {value}", was(name.as_str())))
            .collect()
    }
}
