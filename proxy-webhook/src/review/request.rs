// SPDX-License-Identifier: Apache-2.0

//! Reads a review. The whole body must be JSON; only the fields that determine the answer are read.

use std::borrow::Cow;
use std::str::Utf8Error;

use serde::de::MapAccess;
use thiserror::Error;

use super::VARIABLE;
use super::object::{Fields, Fold, List, Object, Text};

/// The supported values of `apiVersion`. The first one is that of the answer if a request has none of them.
const API_VERSIONS: [&str; 2] = ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"];

/// The supported kind.
const KIND: &str = "AdmissionReview";

/// Why a request is not a valid review.
#[derive(Debug, Error)]
pub enum Malformed {
    /// It is not UTF-8.
    #[error("it is not UTF-8: {0}")]
    Utf8(#[from] Utf8Error),
    /// It is not JSON, or something in it has the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It is another kind of object.
    #[error("kind is {0:?}, not AdmissionReview")]
    Kind(String),
    /// It has an unsupported group or version.
    #[error("apiVersion is {0:?}, neither admission.k8s.io/v1 nor admission.k8s.io/v1beta1")]
    Version(String),
    /// It has no request.
    #[error("there is no request")]
    NoRequest,
    /// Without a uid the API server could not match the answer to the request.
    #[error("the request has no uid")]
    NoUid,
    /// The API has no such operation.
    #[error("operation is {0:?}, not one of CREATE, UPDATE, DELETE, CONNECT")]
    Operation(String),
    /// A request to create a pod has no pod.
    #[error("the request has no object")]
    NoObject,
}

/// The operation on the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The pod is created, or the request names no operation.
    Create,
    /// Another one. The environment of an existing pod cannot be changed: the API server would reject a patch.
    Other,
}

/// A valid request.
#[derive(Debug)]
pub struct Review<'a> {
    /// One of [`API_VERSIONS`].
    pub api_version: &'static str,
    /// The id by which the API server matches the answer.
    pub uid: Cow<'a, str>,
    /// The containers.
    pub pod: Pod,
}

/// A review and its operation.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// The review.
    pub review: Review<'a>,
    /// The operation.
    pub operation: Operation,
}

/// The state of a container's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Env {
    /// There is no list, or it is null.
    Absent,
    /// There is a list without the variable.
    Lacking,
    /// There is a list with the variable, whatever its value.
    Set,
}

/// The containers of a pod, in order.
#[derive(Debug, Default)]
pub struct Pod {
    /// `spec.initContainers`
    pub init_containers: Containers,
    /// `spec.containers`
    pub containers: Containers,
}

/// The environments of a list of containers.
pub type Containers = Vec<Env>;

/// Reads a review.
///
/// # Errors
/// If it is not a valid review.
pub fn read(body: &[u8]) -> Result<Parsed<'_>, Malformed> {
    // serde_json checks skipped values to be JSON, but not to be UTF-8.
    let text = std::str::from_utf8(body)?;
    let Object(envelope) = serde_json::from_str::<Object<Envelope<'_, Request<'_>>>>(text)?;
    let kind = envelope.kind.unwrap_or_default();
    if kind.0 != KIND {
        return Err(Malformed::Kind(kind.0.into_owned()));
    }
    let api_version = envelope.api_version.unwrap_or_default().0;
    let Some(api_version) = known_version(&api_version) else {
        return Err(Malformed::Version(api_version.into_owned()));
    };
    let Object(request) = envelope.request.ok_or(Malformed::NoRequest)?;
    let Text(uid) = request.uid.unwrap_or_default();
    if uid.is_empty() {
        return Err(Malformed::NoUid);
    }
    let operation = match request.operation.as_ref().map(|operation| &*operation.0) {
        Some("CREATE") | None => Operation::Create,
        Some("UPDATE" | "DELETE" | "CONNECT") => Operation::Other,
        Some(other) => return Err(Malformed::Operation(other.to_owned())),
    };
    let pod = match request.object {
        Some(Object(object)) => object.spec.unwrap_or_default().0,
        None if operation == Operation::Create => return Err(Malformed::NoObject),
        None => Pod::default(),
    };
    Ok(Parsed {
        review: Review {
            api_version,
            uid,
            pod,
        },
        operation,
    })
}

/// The version and the uid of a refused request, as far as they can be read.
pub fn salvage(body: &[u8]) -> (&'static str, Cow<'_, str>) {
    let envelope = std::str::from_utf8(body)
        .ok()
        .and_then(|text| serde_json::from_str::<Object<Envelope<'_, OnlyUid<'_>>>>(text).ok());
    let Some(Object(envelope)) = envelope else {
        return (API_VERSIONS[0], Cow::default());
    };
    let api_version = envelope.api_version.unwrap_or_default();
    (
        known_version(&api_version.0).unwrap_or(API_VERSIONS[0]),
        envelope
            .request
            .and_then(|request| request.0.uid)
            .unwrap_or_default()
            .0,
    )
}

fn known_version(text: &str) -> Option<&'static str> {
    API_VERSIONS.into_iter().find(|known| *known == text)
}

/// The review itself, with as much of its request as `R` reads.
#[derive(Debug, Default)]
struct Envelope<'a, R> {
    api_version: Option<Text<'a>>,
    kind: Option<Text<'a>>,
    request: Option<Object<R>>,
}

impl<'de, R: Fields<'de>> Fields<'de> for Envelope<'de, R> {
    const WHAT: &'static str = "an AdmissionReview";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "apiVersion" => self.api_version = map.next_value()?,
            "kind" => self.kind = map.next_value()?,
            "request" => self.request = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Debug, Default)]
struct Request<'a> {
    uid: Option<Text<'a>>,
    operation: Option<Text<'a>>,
    object: Option<Object<PodObject>>,
}

impl<'de> Fields<'de> for Request<'de> {
    const WHAT: &'static str = "a request";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        match key {
            "uid" => self.uid = map.next_value()?,
            "operation" => self.operation = map.next_value()?,
            "object" => self.object = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The readable part of a request that is otherwise malformed.
#[derive(Debug, Default)]
struct OnlyUid<'a> {
    uid: Option<Text<'a>>,
}

impl<'de> Fields<'de> for OnlyUid<'de> {
    const WHAT: &'static str = "a request";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        let is_uid = key == "uid";
        if is_uid {
            self.uid = map.next_value()?;
        }
        Ok(is_uid)
    }
}

#[derive(Debug, Default)]
struct PodObject {
    spec: Option<Object<Pod>>,
}

impl<'de> Fields<'de> for PodObject {
    const WHAT: &'static str = "a pod";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        let is_spec = key == "spec";
        if is_spec {
            self.spec = map.next_value()?;
        }
        Ok(is_spec)
    }
}

impl<'de> Fields<'de> for Pod {
    const WHAT: &'static str = "a pod's spec";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        let containers = match key {
            "initContainers" => &mut self.init_containers,
            "containers" => &mut self.containers,
            _ => return Ok(false),
        };
        *containers = map
            .next_value::<Option<List<Containers>>>()?
            .unwrap_or_default()
            .0;
        Ok(true)
    }
}

impl Fold<'_> for Containers {
    const WHAT: &'static str = "containers";
    type Element = Object<Container>;

    fn take(&mut self, Object(container): Self::Element) {
        self.push(match container.env {
            None => Env::Absent,
            Some(List(HasVariable(false))) => Env::Lacking,
            Some(List(HasVariable(true))) => Env::Set,
        });
    }
}

/// A container, as far as it is read.
#[derive(Debug, Default)]
pub struct Container {
    env: Option<List<HasVariable>>,
}

impl<'de> Fields<'de> for Container {
    const WHAT: &'static str = "a container";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        let is_env = key == "env";
        if is_env {
            self.env = map.next_value()?;
        }
        Ok(is_env)
    }
}

/// Whether a list of variables contains [`VARIABLE`].
#[derive(Debug, Default)]
struct HasVariable(bool);

impl<'de> Fold<'de> for HasVariable {
    const WHAT: &'static str = "variables";
    type Element = Object<EnvVar<'de>>;

    fn take(&mut self, Object(variable): Self::Element) {
        self.0 |= variable.name.is_some_and(|name| name.0 == VARIABLE);
    }
}

#[derive(Debug, Default)]
struct EnvVar<'a> {
    name: Option<Text<'a>>,
}

impl<'de> Fields<'de> for EnvVar<'de> {
    const WHAT: &'static str = "a variable";

    fn read<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        let is_name = key == "name";
        if is_name {
            self.name = map.next_value()?;
        }
        Ok(is_name)
    }
}
