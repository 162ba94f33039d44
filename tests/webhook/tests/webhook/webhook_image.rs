// SPDX-License-Identifier: Apache-2.0

//! The agent's container image has the webhook as well, which needs nothing else of it.

use serde_json::json;
use tests::dir::Dir;
use tests::image::Image;
use webhook_tests::Webhook;
use webhook_tests::certs::Authority;
use webhook_tests::oracle::{check, review};

#[test]
fn answers_reviews() -> anyhow::Result<()> {
    let Some(image) = Image::given("PROXY_AGENT_IMAGE", "image_webhook")? else {
        return Ok(());
    };
    let (unpacked, certificates) = (Dir::new()?, Dir::new()?);
    let root = image.unpack(unpacked.path())?;
    let authority = Authority::new(&certificates.path().join("authority"))?;
    authority.issue("server")?.install(certificates.path())?;
    let program = root.directory().join("usr/bin/apiserver-proxy-pod-webhook");
    let webhook = Webhook::start_program(&program, certificates, authority, &[])?;
    let body = review(&json!({"spec": {"containers": [{"name": "a"}]}})).to_string();
    check(body.as_bytes(), &webhook.client()?.review(body.as_bytes())?)
}
