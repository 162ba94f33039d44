// SPDX-License-Identifier: Apache-2.0

//! The service that gRPC clients call. What becomes of a stream is [`grpc`]'s business.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::async_trait;
use tonic::body::Body;

use super::Server;
use super::frontend::grpc;
use super::transport::{self, Answer};
use crate::wire::metadata::{self, Extensions};
use crate::wire::{PROXY_PATH, TUNNEL};

/// The service for clients.
#[derive(Debug)]
pub struct ProxyService(pub Arc<Server>);

#[async_trait]
impl Answer for ProxyService {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != PROXY_PATH {
            return transport::unknown(request.uri().path());
        }
        let server = &self.0;
        transport::streaming(TUNNEL, request, |request| {
            let server = Arc::clone(server);
            async move {
                let (headers, _, inbound) = request.into_parts();
                let extensions = Extensions::read(&headers);
                let user_agent = metadata::values(&headers, "user-agent").join(", ");
                let answers = grpc::serve(server, inbound, extensions, &user_agent);
                let mut response = tonic::Response::new(answers);
                Extensions {
                    window: false,
                    ..extensions
                }
                .write(response.metadata_mut());
                Ok(response)
            }
        })
        .await
    }
}
