// SPDX-License-Identifier: Apache-2.0

//! Tests for operators of tunnels: certificates, tenants, Prometheus, documents, and `doctor`.

mod certs;
mod docs;
mod doctor;
mod doctor_alone;
mod image;
mod pages;
mod prometheus;
mod prometheus_clusters;
mod rotation;
mod sni;
mod tenants;
