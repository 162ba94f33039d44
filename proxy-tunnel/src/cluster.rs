// SPDX-License-Identifier: Apache-2.0

//! Requests of server and agent to the Kubernetes API: reviews of tokens, and leases that say which
//! servers there are. Bodies are JSON: `kube` speaks no protobuf, and the API server answers both.

pub mod counting;
pub mod lease;
pub mod publishing;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;

/// How long the API server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How long one request may take. Watches have a limit of their own.
pub const REQUEST: Duration = Duration::from_secs(30);

/// Why the API server cannot be asked.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// A kubeconfig cannot be used.
    #[error("the kubeconfig {} cannot be used; --kubeconfig says where it is", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The process does not run in a pod, or has no service account.
    #[error(
        "this process has no service account of a pod; give a file with --kubeconfig outside of clusters"
    )]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// A client cannot be made.
    #[error("no client for the Kubernetes API can be made of these settings")]
    Client(#[source] Box<kube::Error>),
}

/// A client by a kubeconfig, or by the pod's service account if there is none. Tokens and CAs that are files
/// are read again when they change.
///
/// # Errors
/// The settings cannot be used. Whether the API server answers is not known before the first request.
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

/// The HTTP status and the reason of a failed request, for metrics; 0 where there was no answer.
#[must_use]
pub fn outcome(error: &kube::Error) -> (u16, &str) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.as_str()),
        _ => (0, "NoAnswer"),
    }
}
