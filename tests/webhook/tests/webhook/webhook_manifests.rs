// SPDX-License-Identifier: Apache-2.0

//! `deploy/webhook`, rendered: Kubernetes accepts it, the webhook accepts its flags, and the
//! webhook configuration fits the webhook's behaviour.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::cmd;
use tests::dir::Dir;
use tests::manifests::{Tool, VERSIONS, of_kind, repository};
use webhook_tests::certs::{Authority, Pair};
use webhook_tests::client::{Client, Tls};
use webhook_tests::oracle::{check, review};
use webhook_tests::{PATH, PATIENCE, Webhook, binary};

/// The kustomizations that can be applied.
const COMPLETE: [&str; 2] = ["cert-manager", "by-hand"];

/// A copy of `deploy/webhook` with a certificate made by its script.
fn copy() -> Result<Dir> {
    let dir = Dir::new()?;
    let source = repository().join("deploy/webhook/.");
    cmd::run(Command::new("cp").arg("-r").arg(source).arg(dir.path()), "")?;
    // Not the one of a developer who tries it in this checkout.
    let certificates = dir.path().join("by-hand/certificates");
    if certificates.exists() {
        fs::remove_dir_all(&certificates)?;
    }
    make_certificate(dir.path())?;
    Ok(dir)
}

fn make_certificate(top: &Path) -> Result<()> {
    cmd::run(
        &mut Command::new(top.join("by-hand/make-certificate.sh")),
        "",
    )
    .map(drop)
}

fn only<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let mut found = of_kind(objects, kind);
    let (_, object) = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "more than one {kind}");
    Ok(object)
}

#[test]
fn kubernetes_takes_the_webhooks_manifests() -> Result<()> {
    let Some(tool) = Tool::find("kubernetes_takes_the_webhooks_manifests")? else {
        return Ok(());
    };
    let copy = copy()?;
    for name in COMPLETE {
        let objects = tool.kustomize(&copy.path().join(name))?;
        // No schema of cert-manager's is at hand.
        let (foreign, known): (Vec<Value>, Vec<Value>) = objects
            .into_iter()
            .partition(|object| object["apiVersion"] == "cert-manager.io/v1");
        for version in VERSIONS {
            let faults = tool.validate(version, &known)?;
            ensure!(
                faults.is_empty(),
                "{name}, Kubernetes {version}: {faults:#?}"
            );
        }
        let deployment = only(&known, "Deployment")?;
        let pod = &deployment["spec"]["template"];
        let selected = json!({"app.kubernetes.io/name": "apiserver-proxy-pod-webhook"});
        ensure!(deployment["spec"]["selector"]["matchLabels"] == selected);
        ensure!(only(&known, "Service")?["spec"]["selector"] == selected);
        ensure!(
            only(&known, "PodDisruptionBudget")?["spec"]["selector"]["matchLabels"] == selected
        );
        ensure!(
            pod["metadata"]["labels"]["app.kubernetes.io/name"]
                == selected["app.kubernetes.io/name"]
        );
        // Everything that the pod mounts and reads exists.
        let spec = &pod["spec"];
        ensure!(spec["serviceAccountName"] == only(&known, "ServiceAccount")?["metadata"]["name"]);
        let map = &spec["containers"][0]["envFrom"][0]["configMapRef"]["name"];
        ensure!(*map == only(&known, "ConfigMap")?["metadata"]["name"]);
        let secret = &spec["volumes"][0]["secret"]["secretName"];
        let webhook = only(&known, "MutatingWebhookConfiguration")?;
        let bundle = &webhook["webhooks"][0]["clientConfig"]["caBundle"];
        if name == "by-hand" {
            let made = only(&known, "Secret")?;
            ensure!(made["metadata"]["name"] == *secret && made["type"] == "kubernetes.io/tls");
            ensure!(bundle.is_string(), "no CA bundle");
        } else {
            let (_, certificate) = of_kind(&foreign, "Certificate")
                .find(|(_, certificate)| certificate["spec"]["secretName"] == *secret)
                .context("no certificate for the Secret")?;
            let place = format!(
                "{}/{}",
                certificate["metadata"]["namespace"]
                    .as_str()
                    .unwrap_or_default(),
                certificate["metadata"]["name"].as_str().unwrap_or_default()
            );
            ensure!(
                webhook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == place,
                "{place} is not injected"
            );
        }
    }
    Ok(())
}

#[test]
fn the_webhook_accepts_its_flags() -> Result<()> {
    let Some(tool) = Tool::find("the_webhook_accepts_its_flags")? else {
        return Ok(());
    };
    let objects = tool.kustomize(&repository().join("deploy/webhook/base"))?;
    let container = &only(&objects, "Deployment")?["spec"]["template"]["spec"]["containers"][0];
    let command = container["command"][0].as_str().context("no command")?;
    ensure!(
        Path::new(command).file_name() == binary()?.file_name(),
        "{command}"
    );
    let words: Vec<&str> = container["args"]
        .as_array()
        .context("no arguments")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    // All of its flags, with places of our own.
    let help = cmd::run(Command::new(binary()?).arg("--help"), "")?;
    let mut flags = Vec::new();
    for word in &words {
        let (name, _) = word.split_once('=').context("a flag without a value")?;
        ensure!(help.contains(&format!("{name} <")), "no {name} in\n{help}");
        if !["--apiserver-fqdn", "--cert-dir", "--listen", "--port"].contains(&name) {
            flags.push(*word);
        }
    }
    let port = |name: &str| {
        let ports = container["ports"].as_array()?;
        let port = ports.iter().find(|port| port["name"] == name)?;
        port["containerPort"].as_i64()
    };
    let mounted = &container["volumeMounts"][0]["mountPath"];
    for expected in [
        format!("--port={}", port("https").context("no port")?),
        format!("--listen=:{}", port("metrics").context("no port")?),
        format!("--cert-dir={}", mounted.as_str().context("no mount")?),
        "--apiserver-fqdn=$(APISERVER_FQDN)".to_owned(),
    ] {
        ensure!(
            words.contains(&expected.as_str()),
            "{expected} in {words:?}"
        );
    }
    let name = &only(&objects, "ConfigMap")?["data"]["APISERVER_FQDN"];
    ensure!(
        name.as_str().is_some_and(|name| name.contains('.')),
        "{name}"
    );
    let mut webhook = Webhook::start(&flags)?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        ensure!(get["port"] == "metrics", "{get}");
        let path = get["path"].as_str().context(probe)?;
        ensure!(webhook.probe(path)?.0 == 200, "{path}");
    }
    // The two signals: the delay is not waited for.
    webhook.process.signal(libc::SIGTERM)?;
    cmd::wait_until(PATIENCE, "it to leave", || {
        Ok((webhook.probe("/readyz")?.0 == 503).then_some(()))
    })?;
    webhook.process.signal(libc::SIGTERM)?;
    ensure!(webhook.process.wait(PATIENCE)?.success());
    Ok(())
}

#[test]
fn the_api_server_is_configured_for_what_is_served() -> Result<()> {
    let Some(tool) = Tool::find("the_api_server_is_configured_for_what_is_served")? else {
        return Ok(());
    };
    let objects = tool.kustomize(&repository().join("deploy/webhook/base"))?;
    let webhook = &only(&objects, "MutatingWebhookConfiguration")?["webhooks"][0];
    let service = only(&objects, "Service")?;
    let called = &webhook["clientConfig"]["service"];
    ensure!(called["path"] == PATH, "{called}");
    ensure!(called["name"] == service["metadata"]["name"], "{called}");
    ensure!(
        called["namespace"] == service["metadata"]["namespace"],
        "{called}"
    );
    ensure!(
        called["port"] == service["spec"]["ports"][0]["port"],
        "{called}"
    );
    for (field, expected) in [
        ("failurePolicy", json!("Ignore")),
        ("sideEffects", json!("None")),
        ("timeoutSeconds", json!(2)),
        ("reinvocationPolicy", json!("IfNeeded")),
        ("admissionReviewVersions", json!(["v1", "v1beta1"])),
    ] {
        ensure!(webhook[field] == expected, "{field}: {}", webhook[field]);
    }
    let rule = &webhook["rules"][0];
    ensure!(rule["operations"] == json!(["CREATE"]), "{rule}");
    ensure!(rule["resources"] == json!(["pods"]), "{rule}");
    // Both spellings, on namespaces and on pods; none of the values may turn into a boolean.
    let key = "apiserver-proxy.networking.gardener.cloud/inject";
    let opt_out = json!([
        {"key": key, "operator": "NotIn", "values": ["f", "F", "FALSE", "false", "False", "0"]},
        {"key": key, "operator": "NotIn", "values": ["disable"]},
    ]);
    for selector in ["namespaceSelector", "objectSelector"] {
        let expressions = &webhook[selector]["matchExpressions"];
        ensure!(*expressions == opt_out, "{selector}: {expressions}");
    }
    Ok(())
}

/// The webhook serves the certificate that the script makes, and a client with its CA bundle trusts
/// it.
#[test]
fn a_certificate_made_by_hand() -> Result<()> {
    let dir = copy()?;
    let made = dir.path().join("by-hand/certificates");
    let bundle = fs::read_to_string(made.join("ca-bundle.yaml"))?;
    // The second time the authority is kept.
    make_certificate(dir.path())?;
    ensure!(bundle == fs::read_to_string(made.join("ca-bundle.yaml"))?);
    let (_, encoded) = bundle.split_once("caBundle: ").context("no bundle")?;
    let decoded = cmd::run(Command::new("base64").arg("-d"), encoded.trim())?;
    ensure!(decoded == fs::read_to_string(made.join("ca.crt"))?);
    let pair = Pair {
        certificate: made.join("tls.crt"),
        key: made.join("tls.key"),
    };
    pair.install(dir.path())?;
    let webhook = Webhook::start_in(dir, Authority::existing(&made), &[])?;
    let tls = Tls::new(&webhook.authority)?.named("apiserver-proxy-pod-webhook.kube-system.svc")?;
    let body = review(&json!({"spec": {"containers": [{"name": "a"}]}})).to_string();
    let mut client = Client::connect(webhook.reviews, &tls)?;
    check(body.as_bytes(), &client.review(body.as_bytes())?)
}
