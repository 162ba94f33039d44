// SPDX-License-Identifier: Apache-2.0

//! The service that gRPC clients call. [`grpc`] handles the streams.

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Status, async_trait};

use super::frontend::{Client, ClientRefused, grpc};
use super::transport::{self, Answer};
use crate::wire::metadata::{self, Extensions};
use crate::wire::{PROXY_PATH, TUNNEL};

/// The service for the clients on one connection.
#[derive(Debug)]
pub struct ProxyService(pub Client);

/// The service that refuses all requests of the clients on one connection.
#[derive(Debug)]
pub struct RefusingService(pub ClientRefused);

#[async_trait]
impl Answer for RefusingService {
    async fn answer(&self, _: Request<Incoming>) -> Response<Body> {
        let text = self.0.to_string();
        let status = match self.0 {
            ClientRefused::NoTenant(_) => Status::permission_denied(text),
            ClientRefused::Limit(_) => Status::resource_exhausted(text),
        };
        status.into_http()
    }
}

#[async_trait]
impl Answer for ProxyService {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != PROXY_PATH {
            return transport::unknown(request.uri().path());
        }
        transport::streaming(TUNNEL, request, |request| {
            let client = self.0.clone();
            async move {
                let (headers, _, inbound) = request.into_parts();
                let extensions = Extensions::read(&headers);
                let user_agent = metadata::values(&headers, "user-agent").join(", ");
                let answers = grpc::serve(client, inbound, extensions, &user_agent);
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
