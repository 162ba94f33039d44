// SPDX-License-Identifier: Apache-2.0

//! The interfaces for operators: status, doctor, metrics, health, images, manifests and examples.

mod doctor;
mod health;
mod image;
mod listen;
mod manifests;
mod metrics;
mod monitoring;
mod pages;
mod proxy_examples;
mod quickstart;
mod status;
mod status_backends;
