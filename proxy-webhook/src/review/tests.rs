// SPDX-License-Identifier: Apache-2.0

//! Answers, byte by byte. Whether a patch results in the expected pod is tested over TLS, with a library for JSON patches,
//! in the crate `tests`.

use super::*;

fn text(body: &str) -> (Verdict, String) {
    let answer = answer(body.as_bytes(), &EnvEntry::new("foo.bar."));
    (answer.verdict, String::from_utf8(answer.body).unwrap())
}

/// A review in this version of the API.
fn review(version: &str, request: &str) -> (Verdict, String) {
    text(&format!(
        r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/{version}","request":{request}}}"#
    ))
}

/// The patch for a pod with this spec.
fn patch_of(spec: &str) -> String {
    let object = format!(r#"{{"uid":"u","operation":"CREATE","object":{{"spec":{spec}}}}}"#);
    let (_, answer) = review("v1", &object);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let patch = answer["response"]["patch"].as_str().unwrap_or_default();
    String::from_utf8(BASE64.decode(patch).unwrap()).unwrap()
}

#[test]
fn answers_are_as_the_api_has_them() {
    let nothing = r#"{"uid":"a \"b\"","object":{"spec":{}}}"#;
    assert_eq!(
        review("v1beta1", nothing),
        (
            Verdict::Unchanged,
            r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","response":{"uid":"a \"b\"","allowed":true}}"#.to_owned()
        )
    );
    let (verdict, patched) = review(
        "v1",
        r#"{"uid":"u","operation":"CREATE","object":{"spec":{"containers":[{}]}}}"#,
    );
    assert_eq!(verdict, Verdict::Patched);
    let start = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true,"patchType":"JSONPatch","patch":""#;
    assert!(patched.starts_with(start), "{patched}");
    assert!(patched.ends_with("\"}}"), "{patched}");
}

#[test]
fn patches_add_and_do_nothing_else() {
    let entry = r#"{"name":"KUBERNETES_SERVICE_HOST","value":"foo.bar."}"#;
    assert_eq!(
        patch_of(r#"{"containers":[{},{"env":[]}],"initContainers":[{"env":null}]}"#),
        format!(
            r#"[{{"op":"add","path":"/spec/initContainers/0/env","value":[{entry}]}},{{"op":"add","path":"/spec/containers/0/env","value":[{entry}]}},{{"op":"add","path":"/spec/containers/1/env/-","value":{entry}}}]"#
        )
    );
    assert_eq!(
        patch_of(r#"{"containers":[{"env":[{"name":"KUBERNETES_SERVICE_HOST"}]}]}"#),
        ""
    );
}

#[test]
fn of_equal_keys_the_last_one_counts() {
    let set = r#"[{"name":"KUBERNETES_SERVICE_HOST"}]"#;
    let twice = format!(r#"{{"containers":[{{"env":{set},"env":[]}}]}}"#);
    assert!(patch_of(&twice).contains("/env/-"));
    let twice = format!(r#"{{"containers":[{{"env":[],"env":{set}}}]}}"#);
    assert_eq!(patch_of(&twice), "");
    let none = r#"{"containers":[{}],"containers":null}"#;
    assert_eq!(patch_of(none), "");
}

#[test]
fn refusals_name_the_question_where_they_can() {
    let (verdict, answer) = review("v1beta1", r#"{"uid":"u","operation":"PATCH"}"#);
    assert_eq!(verdict, Verdict::Malformed);
    assert_eq!(
        answer,
        r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","response":{"uid":"u","allowed":false,"status":{"status":"Failure","message":"malformed AdmissionReview: operation is \"PATCH\", not one of CREATE, UPDATE, DELETE, CONNECT","reason":"BadRequest","code":400}}}"#
    );
    let (_, answer) = text("{");
    assert!(answer.starts_with(
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"","allowed":false"#
    ));
}

#[test]
fn messages_are_short_whatever_they_quote() {
    let (verdict, answer) = review("v1", &format!("\"{}\"", "ä".repeat(1 << 20)));
    assert_eq!(verdict, Verdict::Malformed);
    assert!(answer.len() < 1024, "{} bytes", answer.len());
}

#[test]
fn depth_and_numbers_are_of_no_concern_where_they_are_skipped() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    for skipped in [deep.as_str(), "1e999", r#""\ud800""#] {
        let request = format!(r#"{{"uid":"u","object":{{"x":{skipped},"spec":{{}}}}}}"#);
        assert_eq!(review("v1", &request).0, Verdict::Unchanged);
    }
}
