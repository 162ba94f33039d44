// SPDX-License-Identifier: Apache-2.0

//! The Kubernetes API requests of server and agent: token reviews, and the leases from which agents count the servers.
//! Bodies are JSON, because `kube` does not support protobuf; the API server accepts both.

pub mod counting;
pub mod lease;
pub mod publishing;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;

/// The time limit for a connection to the API server.
const CONNECT: Duration = Duration::from_secs(10);

/// The time limit of one request. Watches have their own limit.
pub const REQUEST: Duration = Duration::from_secs(30);

/// Why there is no client for the API server.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The kubeconfig is not usable.
    #[error("the kubeconfig {} cannot be used; --kubeconfig says where it is", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The process does not run in a pod, or the pod has no service account.
    #[error(
        "this process has no service account of a pod; give a file with --kubeconfig outside of clusters"
    )]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The settings are not usable for a client.
    #[error("no client for the Kubernetes API can be made of these settings")]
    Client(#[source] Box<kube::Error>),
}

/// Creates a client from a kubeconfig or, if there is none, from the pod's service account. Files with tokens and CAs
/// are read again when they change.
///
/// # Errors
/// Returns an error if the settings cannot be used. The first request shows whether the API server is reachable.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong = |source| ClusterError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(wrong)?
        }
        None => Config::incluster().map_err(|source| ClusterError::InCluster(Box::new(source)))?,
    };
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|source| ClusterError::Client(Box::new(source)))
}

/// Returns the HTTP status and the reason of a failed request, for metrics. The status is 0 if there was no answer.
#[must_use]
pub fn outcome(error: &kube::Error) -> (u16, &str) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.as_str()),
        _ => (0, "NoAnswer"),
    }
}
