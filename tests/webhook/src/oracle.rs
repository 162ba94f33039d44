// SPDX-License-Identifier: Apache-2.0

//! The expected answers of the webhook, computed in another way than its own: on whole JSON values,
//! by changing the pod. A library for JSON patches is the judge of its patches.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::FQDN;
use super::client::Answer;

const VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// A review of a pod that is created.
#[must_use]
pub fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "foo",
            "namespace": "my-namespace",
            "operation": "CREATE",
            "userInfo": {"username": "admin", "groups": ["system:authenticated"]},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

/// The variable as the webhook adds it.
#[must_use]
pub fn entry() -> Value {
    json!({"name": VARIABLE, "value": FQDN})
}

/// The expected outcome of a review.
#[derive(Debug, PartialEq)]
pub enum Expected {
    /// Allowed, and this is the pod afterwards.
    Allowed(Value),
    /// Refused as malformed.
    Malformed,
}

/// The expected outcome for the bytes of a review.
#[must_use]
pub fn expected(body: &[u8]) -> Expected {
    let Ok(review) = serde_json::from_slice::<Value>(body) else {
        return Expected::Malformed;
    };
    pod_after(&review).map_or(Expected::Malformed, Expected::Allowed)
}

/// The pod after the review; `None`: it makes no sense.
fn pod_after(review: &Value) -> Option<Value> {
    let text = |value: &Value| match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    let version = text(&review["apiVersion"])?;
    let known = ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"].contains(&version.as_str());
    let request = review["request"].as_object()?;
    let member = |name: &str| request.get(name).unwrap_or(&Value::Null);
    let uid = text(member("uid"))?;
    if !known || text(&review["kind"])? != "AdmissionReview" || uid.is_empty() {
        return None;
    }
    let creates = match (
        member("operation").is_null(),
        text(member("operation"))?.as_str(),
    ) {
        (true, _) | (_, "CREATE") => true,
        (_, "UPDATE" | "DELETE" | "CONNECT") => false,
        _ => return None,
    };
    let before = member("object");
    let after = match before {
        Value::Null if creates => return None,
        Value::Null => Value::Null,
        pod => mutated(pod)?,
    };
    Some(if creates { after } else { before.clone() })
}

/// The pod with the variable in every container; `None`: something in the way there has a wrong type.
fn mutated(pod: &Value) -> Option<Value> {
    let mut pod = pod.clone();
    let Some(spec) = present(pod.as_object_mut()?.get_mut("spec")) else {
        return Some(pod);
    };
    let spec = spec.as_object_mut()?;
    for list in ["initContainers", "containers"] {
        let Some(containers) = present(spec.get_mut(list)) else {
            continue;
        };
        for container in containers.as_array_mut()? {
            let container = container.as_object_mut()?;
            match present(container.get_mut("env")) {
                None => {
                    container.insert("env".to_owned(), json!([entry()]));
                }
                Some(env) => {
                    let env = env.as_array_mut()?;
                    let mut is_set = false;
                    for variable in env.iter() {
                        match variable.as_object()?.get("name") {
                            None | Some(Value::Null) => {}
                            Some(name) => is_set |= name.as_str()? == VARIABLE,
                        }
                    }
                    if !is_set {
                        env.push(entry());
                    }
                }
            }
        }
    }
    Some(pod)
}

fn present(value: Option<&mut Value>) -> Option<&mut Value> {
    value.filter(|value| !value.is_null())
}

/// The operations of an answer's patch; none if there is no patch.
///
/// # Errors
/// When it is no answer.
pub fn patch(answer: &Value) -> Result<Option<Value>> {
    let response = &answer["response"];
    let Some(patch) = response.get("patch") else {
        ensure!(response.get("patchType").is_none(), "a type and no patch");
        return Ok(None);
    };
    ensure!(response["patchType"] == "JSONPatch", "{response}");
    let patch = BASE64.decode(patch.as_str().context("a patch is a string")?)?;
    Ok(Some(serde_json::from_slice(&patch)?))
}

/// Checks an answer.
///
/// # Errors
/// When it is another one than it must be.
pub fn check(body: &[u8], answer: &Answer) -> Result<()> {
    let what = || {
        let shown = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.chars().take(4000).collect::<String>()
        };
        format!("{}\n{}", shown(body), shown(&answer.body))
    };
    ensure!(answer.status == 200, "{}\n{}", answer.head, what());
    let json = answer.json()?;
    ensure!(json["kind"] == "AdmissionReview", "{}", what());
    let response = &json["response"];
    match expected(body) {
        Expected::Malformed => {
            ensure!(response["allowed"] == false, "{}", what());
            ensure!(response["status"]["code"] == 400, "{}", what());
            ensure!(response.get("patch").is_none(), "{}", what());
            let message = response["status"]["message"].as_str().unwrap_or_default();
            ensure!(!message.is_empty(), "{}", what());
        }
        Expected::Allowed(pod) => {
            let review: Value = serde_json::from_slice(body)?;
            ensure!(json["apiVersion"] == review["apiVersion"], "{}", what());
            ensure!(response["uid"] == review["request"]["uid"], "{}", what());
            ensure!(response["allowed"] == true, "{}", what());
            let mut patched = review["request"]["object"].clone();
            match patch(&json)? {
                None => {}
                Some(operations) => {
                    ensure!(pod != patched, "a patch that does nothing: {}", what());
                    apply(&mut patched, &operations).with_context(what)?;
                }
            }
            ensure!(pod == patched, "another pod: {}", what());
        }
    }
    Ok(())
}

/// Applies a patch, and sees that it only adds.
///
/// # Errors
/// When it does something else, or cannot be applied.
pub fn apply(pod: &mut Value, operations: &Value) -> Result<()> {
    for operation in operations.as_array().context("a patch is a list")? {
        ensure!(operation["op"] == "add", "{operation}");
        let path = operation["path"].as_str().unwrap_or_default();
        ensure!(path.ends_with("/env") || path.ends_with("/env/-"), "{path}");
    }
    let patch: json_patch::Patch = serde_json::from_value(operations.clone())?;
    json_patch::patch(pod, &patch).context("the patch cannot be applied")
}
