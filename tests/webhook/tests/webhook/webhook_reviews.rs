// SPDX-License-Identifier: Apache-2.0

//! The webhook's answers over TLS: the patch, applied by a library for JSON patches, gives exactly the pod that is
//! expected, and bodies that are no review are refused.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::pages;
use webhook_tests::client::{Client, Tls, header};
use webhook_tests::load::{Random, mutated};
use webhook_tests::oracle::{apply, check, entry, patch, review};
use webhook_tests::{GARDENER_PATH, PATH, Webhook};

/// Number of random malformed reviews.
const MUTATED: u64 = 100_000;

/// How many clients send them.
const CLIENTS: u64 = 4;

/// Environments of a container, and the path's end of the operation they need.
fn environments() -> Vec<(Value, Option<&'static str>)> {
    let name = "KUBERNETES_SERVICE_HOST";
    vec![
        (json!({"name": "a"}), Some("env")),
        (json!({"name": "a", "env": null}), Some("env")),
        (json!({"name": "a", "env": []}), Some("env/-")),
        (
            json!({"name": "a", "env": [{"name": "A", "value": "b", "new": {"x": [1]}}]}),
            Some("env/-"),
        ),
        (
            json!({"env": [{"name": "kubernetes_service_host", "value": "x"}]}),
            Some("env/-"),
        ),
        (
            json!({"env": [{"name": "A", "value": name}, {"value": name}, {"name": null}]}),
            Some("env/-"),
        ),
        (
            json!({"envFrom": [{"configMapRef": {"name": name}}]}),
            Some("env"),
        ),
        (json!({"env": [{"name": name}]}), None),
        (json!({"env": [{"name": name, "value": ""}]}), None),
        (
            json!({"env": [{"name": "A"}, {"name": name, "value": "other"}]}),
            None,
        ),
        (
            json!({"env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]}),
            None,
        ),
        (
            json!({"env": [{"valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}, "name": name}]}),
            None,
        ),
        (json!({"env": [{"name": name, "of": "tomorrow"}]}), None),
    ]
}

/// Sends a review, compares the answer with the expected one, and returns the paths of the patch's operations.
fn paths(client: &mut Client, body: &[u8]) -> Result<Vec<String>> {
    let answer = client.review(body)?;
    check(body, &answer)?;
    let operations = patch(&answer.json()?)?.unwrap_or_default();
    Ok(operations
        .as_array()
        .into_iter()
        .flatten()
        .map(|operation| operation["path"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn every_form_of_an_environment() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let mut client = webhook.client()?;
    for list in ["containers", "initContainers"] {
        for (container, end) in environments() {
            let pod = json!({"spec": {list: [container]}});
            let got = paths(&mut client, review(&pod).to_string().as_bytes())?;
            let expected: Vec<String> = end
                .map(|end| format!("/spec/{list}/0/{end}"))
                .into_iter()
                .collect();
            ensure!(got == expected, "{got:?} for {pod}");
        }
    }
    // Pretty, and with the name and a key in escapes.
    let pod = json!({"spec": {"containers": [{"env": [{"name": "KUBERNETES_SERVICE_HOST"}]}]}});
    let text = serde_json::to_string_pretty(&review(&pod))?;
    let text = text
        .replace("\"env\"", "\"\\u0065nv\"")
        .replace("SERVICE_HOST", "\\u0053ERVICE\\u005fHOST");
    ensure!(paths(&mut client, text.as_bytes())?.is_empty());
    Ok(())
}

#[test]
fn whole_pods() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let mut client = webhook.client()?;
    let everything: Vec<Value> = environments().into_iter().map(|(c, _)| c).collect();
    // Native sidecars are init containers; ephemeral containers are left alone.
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "пример-例-🦀", "annotations": {"a/b~c": "\u{0} \"\\ \u{7f}"}},
        "spec": {
            "initContainers": [{"name": "sidecar", "restartPolicy": "Always"}, {"name": "init"}],
            "containers": everything,
            "ephemeralContainers": [{"name": "debug"}],
            "ofTomorrow": {"containers": [{"name": "no container"}]},
        },
        "ofTomorrow": [1.5e300, -0.0, 18_446_744_073_709_551_615_u64],
        "status": {},
    });
    let got = paths(&mut client, review(&pod).to_string().as_bytes())?;
    ensure!(
        got.len() == 9 && got[0] == "/spec/initContainers/0/env",
        "{got:?}"
    );
    ensure!(got.iter().all(|path| !path.contains("ephemeral")));

    let many = |count: usize| -> Vec<Value> {
        let container = |n| json!({"name": format!("c{n}"), "env": [{"name": format!("V{n}")}]});
        (0..count).map(container).collect()
    };
    pod["spec"]["containers"] = json!(many(700));
    let got = paths(&mut client, review(&pod).to_string().as_bytes())?;
    ensure!(got.len() == 702, "{}", got.len());

    pod["metadata"]["annotations"]["large"] = json!("lörge \\ ".repeat(330_000));
    let body = review(&pod).to_string();
    ensure!(body.len() > 3 << 20, "{} bytes", body.len());
    ensure!(paths(&mut client, body.as_bytes())?.len() == 702);

    for nothing in [
        json!({}),
        json!({"spec": null}),
        json!({"spec": {}}),
        json!({"spec": {"containers": null, "initContainers": []}}),
        json!({"spec": {"containers": [{"env": [entry()]}]}}),
    ] {
        ensure!(paths(&mut client, review(&nothing).to_string().as_bytes())?.is_empty());
    }
    Ok(())
}

/// The requests of controllers that own pods: create one, look at it again, try out a change of it, and send their own
/// spec, which does not have the variable.
#[test]
fn a_pod_that_was_reviewed_before() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let mut client = webhook.client()?;
    let bare = json!({
        "metadata": {"name": "agent-1"},
        "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "env": [{"name": "A", "value": "b"}]}],
        },
    });
    let mut ask = |pod: &Value, change: &dyn Fn(&mut Value)| {
        let mut asked = review(pod);
        change(&mut asked["request"]);
        let body = asked.to_string();
        let answer = client.review(body.as_bytes())?;
        check(body.as_bytes(), &answer)?;
        patch(&answer.json()?)
    };
    let operations = ask(&bare, &|_| {})?.context("no patch")?;
    // A server-side dry run shows the pod as it will be.
    let tried = ask(&bare, &|request| request["dryRun"] = json!(true))?;
    ensure!(tried.as_ref() == Some(&operations), "{tried:?}");
    let mut pod = bare.clone();
    apply(&mut pod, &operations)?;
    ensure!(pod != bare);
    for dry_run in [false, true] {
        // Reinvoked for it, and created again from the output of `kubectl get`.
        let again = ask(&pod, &|request| request["dryRun"] = json!(dry_run))?;
        ensure!(again.is_none(), "reviewed again: {again:?}");
        // An update with the spec that the operator knows: the API server compares it with the pod that is there.
        let update = ask(&bare, &|request| {
            request["operation"] = json!("UPDATE");
            request["oldObject"] = pod.clone();
            request["dryRun"] = json!(dry_run);
        })?;
        ensure!(update.is_none(), "an update: {update:?}");
    }
    // Another webhook has added a container in between: only that one gets the variable.
    let containers = pod["spec"]["containers"].as_array_mut();
    containers
        .context("a list")?
        .push(json!({"name": "sidecar"}));
    let added = ask(&pod, &|_| {})?.context("no patch")?;
    ensure!(
        added.as_array().is_some_and(|added| added.len() == 1)
            && added[0]["path"] == "/spec/containers/2/env",
        "{added}"
    );
    Ok(())
}

#[test]
fn versions_operations_and_paths() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let mut client = webhook.client()?;
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let mut asked = review(&pod);
        asked["apiVersion"] = json!(version);
        ensure!(paths(&mut client, asked.to_string().as_bytes())?.len() == 1);
    }
    // Nothing but a pod that is created can have its environment changed.
    for operation in ["DELETE", "UPDATE", "CONNECT"] {
        for object in [&pod, &Value::Null] {
            let mut asked = review(object);
            asked["request"]["operation"] = json!(operation);
            asked["request"]["oldObject"] = pod.clone();
            ensure!(paths(&mut client, asked.to_string().as_bytes())?.is_empty());
        }
    }
    let body = review(&pod).to_string();
    for path in [GARDENER_PATH, &format!("{PATH}?timeout=2s")] {
        let json = Some("application/json; charset=utf-8");
        let answer = client.request("POST", path, json, body.as_bytes())?;
        check(body.as_bytes(), &answer)?;
        ensure!(header(&answer.head, "content-type") == Some("application/json"));
    }
    Ok(())
}

#[test]
fn what_is_no_review() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let mut client = webhook.client()?;
    let body = review(&json!({"spec": {}}));
    let replace = |from: &str, to: &str| {
        let text = body.to_string();
        assert!(text.contains(from), "{from} in {text}");
        text.replace(from, to)
    };
    for malformed in [
        String::new(),
        " ".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "{".to_owned(),
        format!("{body}}}"),
        format!("{body}{body}"),
        format!("\u{feff}{body}"),
        replace("AdmissionReview", "admissionreview"),
        replace("admission.k8s.io/v1", "admission.k8s.io/v2"),
        replace("\"request\"", "\"req\""),
        replace("\"uid\"", "\"id\""),
        replace("CREATE", "create"),
        replace("{\"spec\":{}}", "null"),
        replace("{\"spec\":{}}", "[{\"spec\":{}}]"),
        replace("{\"spec\":{}}", "{\"spec\":[]}"),
        replace("\"spec\":{}", "\"spec\":{\"containers\":{}}"),
        replace("\"spec\":{}", "\"spec\":{\"containers\":[null]}"),
        replace("\"spec\":{}", "\"spec\":{\"containers\":[[[]]]}"),
        replace("\"spec\":{}", "\"spec\":{\"containers\":[{\"env\":{}}]}"),
        replace("\"spec\":{}", "\"spec\":{\"containers\":[{\"env\":[[]]}]}"),
        replace(
            "\"spec\":{}",
            "\"spec\":{\"containers\":[{\"env\":[{\"name\":1}]}]}",
        ),
        replace("\"dryRun\":false", "\"dryRun\":fals"),
        replace("\"dryRun\":false", "\"dryRun\":\"\n\""),
        replace("\"dryRun\":false", "\"dryRun\":\"\\x\""),
        replace("\"dryRun\":false", "\"dryRun\":01"),
    ] {
        let answer = client.review(malformed.as_bytes())?;
        check(malformed.as_bytes(), &answer).context("malformed")?;
        ensure!(
            answer.json()?["response"]["allowed"] == false,
            "{malformed}"
        );
    }
    // The question is named, where it can be read.
    let answer = client
        .review(replace("CREATE", "create").as_bytes())?
        .json()?;
    ensure!(
        answer["response"]["uid"] == body["request"]["uid"],
        "{answer}"
    );
    // Invalid UTF-8 in skipped values, and depth without end.
    let mut bytes = replace("my-namespace", "X").into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'X').context("X")?;
    bytes[at] = 0xff;
    check(&bytes, &client.review(&bytes)?)?;
    let deep = replace(
        "\"dryRun\":false",
        &format!("\"dryRun\":{}", "[".repeat(1 << 20)),
    );
    let answer = client.review(deep.as_bytes())?;
    ensure!(answer.json()?["response"]["allowed"] == false);

    let json = Some("application/json");
    let sound = body.to_string();
    for (method, path, content_type, status) in [
        ("POST", "/", json, 404),
        ("POST", "/webhook/pod-apiserver-env/", json, 404),
        ("GET", PATH, None, 405),
        ("PUT", PATH, json, 405),
        ("POST", PATH, None, 415),
        ("POST", PATH, Some("text/plain"), 415),
        ("POST", PATH, Some("application/yaml"), 415),
    ] {
        // hyper may close behind a body that it has not read.
        let answer = webhook
            .client()?
            .request(method, path, content_type, sound.as_bytes())?;
        ensure!(answer.status == status, "{method} {path}: {}", answer.head);
        let is_allowed = header(&answer.head, "allow") == Some("POST");
        ensure!(is_allowed == (status == 405), "{}", answer.head);
    }
    let mut head = String::new();
    write!(head, "POST {PATH} HTTP/1.1\r\nHost: a\r\n")?;
    write!(
        head,
        "Content-Type: application/json\r\nContent-Length: 7340033\r\n\r\n"
    )?;
    let mut client = webhook.client()?;
    client.send(head.as_bytes())?;
    ensure!(client.receive()?.status == 413);
    for (result, at_least) in [("malformed", 30), ("unacceptable", 5), ("too_large", 1)] {
        let name = format!("apiserver_proxy_webhook_requests_total{{result=\"{result}\"}}");
        ensure!(webhook.metric(&name)? >= at_least, "{name}");
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_malformed_reviews() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let pod = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [
                {"name": "c", "env": []},
                {"name": "d", "env": [{"name": "A", "value": "b"}]},
                {"name": "e", "env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "x"}]},
            ],
        },
    });
    let sound = review(&pod);
    let tls = Tls::new(&webhook.authority)?;
    let allowed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (sound, tls, allowed) = (&sound, &tls, &allowed);
                let address = webhook.reviews;
                scope.spawn(move || -> Result<()> {
                    let mut random = Random::new(number + 1);
                    let mut client = Client::connect(address, tls)?;
                    for _ in 0..MUTATED / CLIENTS {
                        let body = mutated(sound, &mut random);
                        let answer = client.review(&body)?;
                        check(&body, &answer)?;
                        let is_allowed = answer.json()?["response"]["allowed"] == true;
                        allowed.fetch_add(u64::from(is_allowed), Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let allowed = allowed.into_inner();
    println!("{allowed} of {MUTATED} were allowed");
    // Otherwise the mutations say nothing.
    ensure!(
        allowed > MUTATED / 10 && allowed < MUTATED * 9 / 10,
        "{allowed}"
    );
    ensure!(!webhook.log().contains("panicked"), "{}", webhook.log());
    let (status, log) = webhook.terminate()?;
    ensure!(status.success(), "{status}\n{log}");
    Ok(())
}

#[test]
fn probes_and_metrics() -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    let body = review(&pod).to_string();
    let mut client = webhook.client()?;
    for _ in 0..3 {
        check(body.as_bytes(), &client.review(body.as_bytes())?)?;
    }
    for path in ["/healthz", "/readyz"] {
        ensure!(webhook.probe(path)? == (200, "ok\n".to_owned()));
    }
    ensure!(webhook.probe("/x")?.0 == 404);
    let curl = || Command::new("curl");
    let address = webhook.probes().to_string();
    let name = "apiserver-proxy-pod-webhook";
    pages::check(curl, &address, name, "apiserver-fqdn=foo.bar.")?;
    let metric = |name: &str| webhook.metric(&format!("apiserver_proxy_webhook_{name}"));
    ensure!(metric("requests_total{result=\"patched\"}")? == 3);
    ensure!(metric("review_duration_seconds_count")? == 3);
    ensure!(metric("connections")? == 1);
    ensure!(metric("requests_in_flight")? == 0);
    // Issued for a day.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let ends = metric("certificate_expiry_timestamp_seconds{certificate=\"server\"}")?;
    let left = Duration::from_secs(ends).saturating_sub(now);
    ensure!(
        left < Duration::from_hours(24) && left > Duration::from_hours(22),
        "{left:?}"
    );
    Ok(())
}
