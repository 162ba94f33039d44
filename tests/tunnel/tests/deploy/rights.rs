// SPDX-License-Identifier: Apache-2.0

//! The rights in `deploy/tunnel` are exactly those that the requests of servers and agents to an API server need.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::cmd::wait_until;
use tests::manifests::{Tool, of_kind};
use tunnel_tests::api_server::Asked;
use tunnel_tests::pod::Pod;
use tunnel_tests::tunnel::PATIENCE;

use super::site::{AGENT_USER, SERVER_USER, Site, chart, kustomize};

const NAMESPACE: &str = "konnectivity-leases";

/// Returns the rights that bindings among these objects grant.
fn allowed(objects: &[Value]) -> Result<BTreeSet<Asked>> {
    let mut allowed = BTreeSet::new();
    for (binding, role) in [
        ("RoleBinding", "Role"),
        ("ClusterRoleBinding", "ClusterRole"),
    ] {
        for (name, binding) in of_kind(objects, binding) {
            let wanted = &binding["roleRef"]["name"];
            ensure!(binding["roleRef"]["kind"] == role, "{name}");
            let mut roles = of_kind(objects, role);
            let (_, role) = roles
                .find(|(found, _)| *wanted == *found)
                .with_context(|| format!("{name}: no {role} {wanted}"))?;
            let namespace = text(&binding["metadata"]["namespace"]);
            ensure!(
                namespace == text(&role["metadata"]["namespace"]),
                "{name}: the role is elsewhere"
            );
            for subject in list(&binding["subjects"]) {
                let name = text(&subject["name"]);
                let user = match subject["kind"].as_str() {
                    Some("ServiceAccount") => format!(
                        "system:serviceaccount:{}:{name}",
                        text(&subject["namespace"])
                    ),
                    _ => name,
                };
                allowed.extend(rules(role, &user, &namespace));
            }
        }
    }
    Ok(allowed)
}

fn rules<'a>(
    role: &'a Value,
    user: &'a str,
    namespace: &'a str,
) -> impl Iterator<Item = Asked> + 'a {
    list(&role["rules"]).flat_map(move |rule| {
        list(&rule["apiGroups"]).flat_map(move |group| {
            list(&rule["resources"]).flat_map(move |resource| {
                list(&rule["verbs"]).map(move |verb| Asked {
                    user: user.to_owned(),
                    group: text(group),
                    resource: text(resource),
                    namespace: namespace.to_owned(),
                    verb: text(verb),
                })
            })
        })
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
fn rights_are_what_is_asked_for() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-rights")? else {
        return Ok(());
    };
    let (server, agent) = (
        kustomize(&tool, "static-pod")?,
        kustomize(&tool, "example/agent")?,
    );
    let rights = [&agent[..], &kustomize(&tool, "rights")?].concat();
    let allowed = allowed(&rights)?;
    for user in [SERVER_USER, AGENT_USER] {
        ensure!(allowed.iter().any(|right| right.user == user), "{user}");
    }
    let mut site = Site::new()?;
    site.api.put_expired_lease(NAMESPACE, "long-gone");
    let server = Pod::of(&server, "Pod")?;
    site.start(&server, &Pod::of(&agent, "Deployment")?)?;
    // After 15 s the server renews its lease and looks for expired ones.
    wait_until(PATIENCE, "use of every right", || {
        let asked = site.api.asked();
        let beyond: Vec<_> = asked.difference(&allowed).collect();
        ensure!(beyond.is_empty(), "not allowed: {beyond:#?}");
        Ok((asked == allowed).then_some(()))
    })
    .with_context(|| format!("of {allowed:#?}: {:#?}", site.api.asked()))
}

/// The chart grants the same rights.
#[test]
fn the_charts_rights_are_the_same() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-chart-rights")? else {
        return Ok(());
    };
    let values = json!({"rights": {"enabled": true}, "agent": {"countLeases": true}});
    let by_chart = allowed(&chart(&tool, &values)?)?;
    let rights = kustomize(&tool, "rights")?;
    let by_kustomize = allowed(&[&rights[..], &kustomize(&tool, "example/agent")?].concat())?;
    ensure!(by_chart == by_kustomize, "{by_chart:#?} {by_kustomize:#?}");
    Ok(())
}
