// SPDX-License-Identifier: Apache-2.0

//! Defines which modules and packages may import which. ARCHITECTURE.md contains the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::graph::{Graph, Import};
use super::list;
use crate::tidy::Finding;

/// The layers between the children of a module.
struct Layers {
    /// The package of the library.
    package: &'static str,
    /// The module; empty for the crate's root.
    module: &'static [&'static str],
    /// The layers from the top: a module imports from its own layer and from those below.
    from_the_top: &'static [Layer],
}

struct Layer {
    modules: &'static [&'static str],
    /// Whether its modules must not import each other.
    is_apart: bool,
}

const fn layer(modules: &'static [&'static str]) -> Layer {
    Layer {
        modules,
        is_apart: false,
    }
}

const fn apart(modules: &'static [&'static str]) -> Layer {
    Layer {
        modules,
        is_apart: true,
    }
}

/// Every child of these modules is in one of the layers.
const LAYERS: [Layers; 2] = [
    Layers {
        package: "proxy-agent",
        module: &[],
        from_the_top: &[
            apart(&["app", "cli"]),
            layer(&["cleanup", "doctor", "status", "telemetry"]),
            layer(&["node"]),
            layer(&["backend", "claims", "conntrack", "guard", "link", "state"]),
            layer(&["reconcile", "services"]),
            layer(&["config"]),
            layer(&[
                "features",
                "instance",
                "klog",
                "lock",
                "monitor",
                "ownership",
                "time",
            ]),
        ],
    },
    Layers {
        package: "proxy-agent",
        module: &["backend"],
        from_the_top: &[
            layer(&["discover", "select"]),
            apart(&["ebpf", "iptables", "nftables"]),
            layer(&["decisions", "live", "tables", "upstream"]),
        ],
    },
];

/// Packages, with the packages that each must not depend on.
const STRANGERS: [(&str, &[&str]); 8] = [
    ("proxy-agent", &["proxy-tunnel", "proxy-webhook"]),
    ("proxy-tunnel", &["proxy-agent", "proxy-webhook"]),
    ("proxy-webhook", &["proxy-agent", "proxy-tunnel"]),
    ("proxy-serve", NOT_BELOW),
    ("proxy-common", NOT_BELOW),
    ("proxy-kernel", NOT_BELOW),
    ("proxy-netlink", NOT_BELOW),
    ("proxy-rules", NOT_BELOW),
];
/// The one dependency between shared packages: rules are read over netlink.
const PERMITTED: (&str, &str) = ("proxy-rules", "proxy-netlink");
/// The programs, and the shared packages that are independent of each other.
const NOT_BELOW: &[&str] = &[
    "proxy-agent",
    "proxy-common",
    "proxy-kernel",
    "proxy-netlink",
    "proxy-rules",
    "proxy-serve",
    "proxy-tunnel",
    "proxy-webhook",
];

/// Returns the packages that depend on packages which they must not depend on. `packages` is the
/// output of `cargo metadata`.
pub fn packages(packages: &[serde_json::Value], root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some((name, strangers)) = STRANGERS.iter().find(|(name, _)| package["name"] == *name)
        else {
            continue;
        };
        let dependencies = list(&package["dependencies"]).iter();
        let dependencies: BTreeSet<_> = dependencies
            .filter_map(|dependency| dependency["name"].as_str())
            .collect();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let is_forbidden = |stranger: &&&str| {
            dependencies.contains(**stranger) && (*name, **stranger) != PERMITTED
        };
        for stranger in strangers.iter().filter(is_forbidden) {
            let what = format!("{name} must not depend on {stranger}");
            findings.push(Finding::file(&manifest.display().to_string(), what));
        }
    }
    findings
}

/// Returns the imports of a package's library against the layers, and the modules that are in no
/// layer.
pub fn modules(package: &str, graph: &Graph<'_>) -> Vec<Finding> {
    let of_package = LAYERS.iter().filter(|layers| layers.package == package);
    of_package
        .flat_map(|layers| layers.findings(graph))
        .collect()
}

impl Layers {
    fn findings(&self, graph: &Graph<'_>) -> Vec<Finding> {
        let numbered = (0..).zip(self.from_the_top);
        let floors: BTreeMap<&str, usize> = numbered
            .flat_map(|(number, layer)| layer.modules.iter().map(move |name| (*name, number)))
            .collect();
        let mut findings = Vec::new();
        let children = graph.children(self.module).unwrap_or_default();
        for name in children.iter().filter(|name| !floors.contains_key(**name)) {
            let what = format!(
                "module {} stands in no layer of {}",
                self.path(name),
                file!()
            );
            findings.push(Finding::file(graph.root(), what));
        }
        for name in floors.keys().filter(|name| !children.contains(**name)) {
            let what = format!(
                "{} names a module {} that is not there",
                file!(),
                self.path(name)
            );
            findings.push(Finding::file(graph.root(), what));
        }
        for (from, to, Import { file, line }) in graph.arrows(self.module) {
            let (Some(above), Some(below)) = (floors.get(from), floors.get(to)) else {
                continue;
            };
            let (source, target) = (self.path(from), self.path(to));
            let what = if above > below {
                format!("{source} imports {target}, which is in a layer above it")
            } else if above == below && self.from_the_top[*above].is_apart {
                format!("{source} imports {target}: modules of their layer stand by themselves")
            } else {
                continue;
            };
            findings.push(Finding::line(file, *line, what));
        }
        findings
    }

    fn path(&self, child: &str) -> String {
        [self.module, &[child]].concat().join("::")
    }
}

#[cfg(test)]
mod tests;
