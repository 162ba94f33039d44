// SPDX-License-Identifier: Apache-2.0

//! The sidecar is an HTTP proxy for the programs of its pod that reaches targets through a konnectivity server. Clients
//! need no certificate for the server, and keep their own TLS settings for their targets.

mod relay;
pub mod tenant;

use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proxy_serve::shutdown::Phase;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::watch;
use tracing::{debug, info};

use self::relay::End;
use self::tenant::Tenant;
use crate::forward::ask::{asked, farewell, refusal};
use crate::forward::head::{self, Form, Head};
use crate::forward::{Dial as _, absolute};
use crate::metrics::Counted;
use crate::rewound::Rewound;

/// Serves a client's connection until it ends.
pub async fn serve<S>(mut socket: S, tenant: Arc<Tenant>, phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    let _counted = Counted::new(&tenant.lines.connections);
    let Some((head, read)) = asked(&mut socket, true).await else {
        return;
    };
    match head.form {
        Form::Connect => {
            let rest = Bytes::copy_from_slice(&read[head.length..]);
            drop(read);
            connect(socket, &head, rest, &tenant).await;
        }
        Form::Absolute => {
            let io = Rewound::new(read.freeze(), socket);
            let pool = Arc::clone(&tenant.pool);
            if let Err(why) = absolute::serve(io, tenant, pool, phase).await {
                debug!("a client's connection has ended: {why}");
            }
        }
    }
}

/// Serves one tunnel. `rest` contains the bytes that follow the head.
async fn connect<S>(mut socket: S, head: &Head, rest: Bytes, tenant: &Tenant)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let mut early = BytesMut::from(rest);
    let dialed = tokio::select! {
        dialed = tenant.dial(&head.target) => dialed,
        () = gone(&mut socket, &mut early) => {
            debug!("a client left before {} was reached", head.target);
            return;
        }
    };
    let tunnel = match dialed {
        Ok(tunnel) => tunnel,
        Err(failure) => {
            farewell(&mut socket, &refusal(&failure)).await;
            return;
        }
    };
    if let End::Cut(why) = relay::run(socket, tunnel, early.freeze()).await {
        info!(host = head.target.as_str(), "connection cut: {why}");
    }
}

/// Completes when the client has disconnected. Stores a limited number of bytes from a client that sends before it has
/// received its response.
async fn gone<S: AsyncRead + Unpin>(socket: &mut S, early: &mut BytesMut) {
    while early.len() < head::LONGEST {
        match socket.read_buf(early).await {
            // A client that has ended its sending side may still read.
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    std::future::pending::<()>().await;
}
