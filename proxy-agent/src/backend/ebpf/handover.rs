// SPDX-License-Identifier: Apache-2.0

//! Gives live translated connections over to conntrack, before the agent stops translating them.
//!
//! Conntrack gets the entry that kube-proxy's DNAT would have made. From the moment the decision
//! is taken back, both directions go through it: the client notices nothing.

use super::maps::{self, Decisions, Translated};
use crate::config::Service;
use crate::kernel::sockets;
use crate::netfilter::{self, Socket, conntrack};

/// A connection could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The map of decisions could not be read or written.
    #[error(transparent)]
    Map(#[from] maps::Error),
    /// The proxy's connections could not be read.
    #[error("cannot read the list of TCP connections")]
    Sockets(#[source] std::io::Error),
    /// conntrack refused an entry.
    #[error(
        "cannot hand the connection {client} → {service} over to conntrack",
        client = connection.client,
        service = connection.service.cluster_ip
    )]
    Conntrack {
        /// The connection.
        connection: Box<Translated>,
        /// The kernel's answer.
        #[source]
        source: netfilter::Error,
    },
}

/// Hands over the translated connections of the services that `concerns` names. Decisions about
/// connections that have ended are taken back too.
///
/// # Errors
///
/// The first connection that could not be handed over; the others are.
pub fn hand_over(
    decisions: &mut Decisions,
    concerns: impl Fn(&Service) -> bool,
) -> Result<(), Error> {
    let mut translated = decisions.translated()?;
    translated.retain(|connection| concerns(&connection.service));
    if translated.is_empty() {
        return Ok(());
    }
    let alive = sockets::connections().map_err(Error::Sockets)?;
    let mut outcome = Ok(());
    for connection in translated {
        let Translated { client, service } = connection;
        let created = if alive.contains(&(service.vip, client)) {
            Socket::open()
                .and_then(|mut socket| {
                    conntrack::create_translated(
                        &mut socket,
                        client,
                        service.cluster_ip,
                        service.vip,
                    )
                })
                .map_err(|source| Error::Conntrack {
                    connection: Box::new(connection),
                    source,
                })
        } else {
            Ok(())
        };
        outcome = outcome.and(created);
        // In any case: without the rules that translate, an entry only does harm.
        decisions.take_back(client, service.vip)?;
    }
    outcome
}
