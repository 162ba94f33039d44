// SPDX-License-Identifier: Apache-2.0

//! The file of `--tenants-config`: the settings that differ for each tenant. All others come from
//! the flags.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::args::Args;
use crate::destinations::{Destination, Destinations};

/// Tenants at most: each has an address, a task, and lines in the metrics.
const MOST: usize = 1000;

/// Bytes of the longest file.
const LONGEST: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenants: Vec<Entry>,
}

/// A tenant as the file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: String,
    client_cert: Option<String>,
    client_key: Option<String>,
    ca_cert: Option<String>,
    proxy_host: Option<String>,
    proxy_port: Option<u16>,
    proxy_uds: Option<String>,
    proxy_server_name: Option<String>,
    mode: Option<String>,
    allow_destination: Option<Vec<String>>,
}

impl Entry {
    /// The flags as this entry changes them.
    #[must_use]
    pub fn change(&self, flags: &Args) -> Args {
        let mut args = flags.clone();
        let reach = &mut args.reach;
        if self.proxy_uds.is_some() {
            // A place of its own: nothing of that of the flags goes with it.
            for other in [
                &mut reach.proxy_host,
                &mut reach.client_cert,
                &mut reach.client_key,
                &mut reach.ca_cert,
                &mut reach.proxy_server_name,
            ] {
                other.clear();
            }
            reach.proxy_port = 0;
        }
        if self.proxy_host.is_some() {
            reach.proxy_uds.clear();
        }
        for (flag, value) in [
            (&mut reach.client_cert, &self.client_cert),
            (&mut reach.client_key, &self.client_key),
            (&mut reach.ca_cert, &self.ca_cert),
            (&mut reach.proxy_host, &self.proxy_host),
            (&mut reach.proxy_uds, &self.proxy_uds),
            (&mut reach.proxy_server_name, &self.proxy_server_name),
            (&mut reach.mode, &self.mode),
        ] {
            if let Some(value) = value {
                flag.clone_from(value);
            }
        }
        reach.proxy_port = self.proxy_port.unwrap_or(reach.proxy_port);
        args
    }

    /// Its targets, or those of the flags.
    ///
    /// # Errors
    /// An entry cannot be read.
    pub fn allowed(&self, flags: Destinations) -> Result<Destinations> {
        let Some(list) = &self.allow_destination else {
            return Ok(flags);
        };
        ensure!(
            !list.is_empty(),
            "allowDestination is empty; give targets, or leave it out for those of --allow-destination"
        );
        let entries: Result<Vec<Destination>, _> = list.iter().map(|entry| entry.parse()).collect();
        Ok(Destinations::new(entries.context("allowDestination")?))
    }
}

/// Reads a file.
///
/// # Errors
/// It cannot be read, or has something else in it.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the tenants in {}; --tenants-config says where they are",
            path.display()
        )
    })?;
    parse(&text).with_context(|| format!("the tenants in {} cannot be used", path.display()))
}

/// Reads a file's text.
///
/// # Errors
/// It has something else in it.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    ensure!(
        text.len() <= LONGEST,
        "{} bytes, more than {LONGEST}",
        text.len()
    );
    let file: File = serde_saphyr::from_str(text)?;
    ensure!(
        (1..=MOST).contains(&file.tenants.len()),
        "{} tenants; give 1 to {MOST}",
        file.tenants.len()
    );
    Ok(file.tenants)
}
