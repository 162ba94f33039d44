// SPDX-License-Identifier: Apache-2.0

//! The rtnetlink connection that changes links, addresses and routes.

use std::io;

use netlink_sys::AsyncSocket as _;
use proxy_netlink::actor;
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::PART;
use crate::reconcile::Report;

/// Opens an rtnetlink socket; the task ends when the connection is lost.
///
/// # Errors
///
/// The kernel's answer.
pub fn connect() -> io::Result<(Handle, JoinHandle<()>)> {
    let (mut connection, handle, _) = rtnetlink::new_connection()?;
    actor::note_own_port(
        connection
            .socket_mut()
            .socket_mut()
            .bind_auto()?
            .port_number(),
    );
    Ok((handle, tokio::spawn(connection)))
}

/// Reports a lost connection: rtnetlink treats a request as done if the connection is lost before the answer.
pub fn report_if_lost(connection: &JoinHandle<()>, report: &mut Report) {
    if connection.is_finished() {
        let lost = io::Error::from(io::ErrorKind::ConnectionAborted);
        report.failed(PART, "make sure of the last change", &lost);
    }
}
