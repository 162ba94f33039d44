// SPDX-License-Identifier: Apache-2.0

//! The answer to an `AdmissionReview`: a pure function of its bytes.
//!
//! `request` reads the fields that matter and skips the others, `patch` writes the JSON patch, and this file assembles
//! the answer. HTTP is in `service`.
//!
//! The API group: <https://kubernetes.io/docs/reference/config-api/apiserver-admission.v1/>

mod object;
mod patch;
mod request;

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

pub use self::patch::EnvEntry;
use self::request::{Operation, Parsed, Review};

/// The variable from which client libraries in pods take the API server's name.
pub const VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// Maximum length of a refusal's message in bytes. A parser's error may quote its whole input.
const MESSAGE_LIMIT: usize = 512;

/// The outcome of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The pod is allowed and patched.
    Patched,
    /// The pod is allowed as it is.
    Unchanged,
    /// The body is not a valid review.
    Malformed,
}

/// The answer to a review.
#[derive(Debug)]
pub struct Answer {
    /// An `AdmissionReview` with a response, as JSON.
    pub body: Vec<u8>,
    /// The outcome that the metrics count.
    pub verdict: Verdict,
}

/// Answers a review. A `body` that is not a valid review is refused in the form that the API server expects: a review
/// with `allowed: false` and code 400.
#[must_use]
pub fn answer(body: &[u8], entry: &EnvEntry) -> Answer {
    match request::read(body) {
        Ok(Parsed { review, operation }) => {
            let patch = match operation {
                Operation::Create => patch::patch(&review.pod, entry),
                Operation::Other => None,
            };
            allowed(&review, patch.as_deref())
        }
        Err(malformed) => refused(body, &malformed.to_string()),
    }
}

fn allowed(review: &Review<'_>, patch: Option<&[u8]>) -> Answer {
    // The rest of an answer takes less than 256 bytes.
    let length = 256 + review.uid.len() + patch.map_or(0, |patch| patch.len() * 4 / 3);
    let mut body = String::with_capacity(length);
    head(&mut body, review.api_version, &review.uid);
    body.push_str(",\"allowed\":true");
    if let Some(patch) = patch {
        body.push_str(",\"patchType\":\"JSONPatch\",\"patch\":\"");
        BASE64.encode_string(patch, &mut body);
        body.push('"');
    }
    body.push_str("}}");
    Answer {
        body: body.into_bytes(),
        verdict: if patch.is_some() {
            Verdict::Patched
        } else {
            Verdict::Unchanged
        },
    }
}

fn refused(request: &[u8], why: &str) -> Answer {
    // The API server accepts a refusal only if it has the version and the uid of the request.
    let (api_version, uid) = request::salvage(request);
    let mut message = format!("malformed AdmissionReview: {why}");
    if message.len() > MESSAGE_LIMIT {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
        message.push('…');
    }
    let mut body = String::new();
    head(&mut body, api_version, &uid);
    body.push_str(",\"allowed\":false,\"status\":{\"status\":\"Failure\",\"message\":");
    push_string(&mut body, &message);
    body.push_str(",\"reason\":\"BadRequest\",\"code\":400}}}");
    Answer {
        body: body.into_bytes(),
        verdict: Verdict::Malformed,
    }
}

/// Appends the start of an answer, up to its uid.
fn head(body: &mut String, api_version: &str, uid: &str) {
    body.push_str("{\"apiVersion\":\"");
    body.push_str(api_version);
    body.push_str("\",\"kind\":\"AdmissionReview\",\"response\":{\"uid\":");
    push_string(body, uid);
}

/// Appends a JSON string.
fn push_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}
