// SPDX-License-Identifier: Apache-2.0

//! The admission webhook.

mod webhook_certificates;
mod webhook_command_line;
mod webhook_image;
mod webhook_manifests;
mod webhook_reviews;
mod webhook_server;
