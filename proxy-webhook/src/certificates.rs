// SPDX-License-Identifier: Apache-2.0

//! Loads the server's certificates from the files that the command line names, and counts reloads.

use std::sync::Arc;

use proxy_serve::reload::{Change, Reloader};
use proxy_serve::tls::server::{Identity, Server};
use proxy_serve::tls::{HTTP1, HTTP2, Pair, Policy, TlsError};

use crate::cli::Args;
use crate::metrics::Metrics;

/// Loads the certificates.
///
/// # Errors
/// If they cannot be used.
pub fn load(args: &Args, metrics: Arc<Metrics>) -> Result<Reloader<Server>, TlsError> {
    let file = |name| args.cert_dir.join(name);
    let server = Server {
        pair: Pair {
            certificate: file(&args.cert_name),
            key: file(&args.key_name),
        },
        client_ca: (!args.client_ca_name.is_empty()).then(|| file(&args.client_ca_name)),
        location: "--cert-dir and the flags for file names set its path",
        alpn: vec![HTTP2.to_vec(), HTTP1.to_vec()],
        policy: Policy::default(),
    };
    Reloader::new(server, move |change| count(&change, &metrics))
}

fn count(change: &Change<'_, Identity>, metrics: &Metrics) {
    match change {
        Change::Loaded(identity) => expiry(identity, metrics),
        Change::Reloaded(identity) => {
            expiry(identity, metrics);
            metrics.reloaded.inc();
        }
        Change::Refused(_) => metrics.refused.inc(),
    }
}

fn expiry(identity: &Identity, metrics: &Metrics) {
    metrics.server_ends.set(identity.ends.as_secs_f64());
    if let Some(first) = identity.client_ca_ends {
        metrics.client_ca_ends(first);
    }
}
