// SPDX-License-Identifier: Apache-2.0

//! The file of `--tenants-config`, which contains the settings that differ between tenants. All others come from the
//! flags.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::args::Args;
use crate::destinations::{Destination, Destinations};

/// The maximum number of tenants: each has a listening address, a task, and lines in the metrics.
const MOST: usize = 1000;

/// The maximum length of the file, in bytes.
const LONGEST: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenants: Vec<Entry>,
}

/// A tenant in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    /// The tenant's name.
    pub name: String,
    /// The address on which the sidecar listens for this tenant.
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
    /// Returns the flags with the changes of this entry.
    #[must_use]
    pub fn change(&self, flags: &Args) -> Args {
        let mut args = flags.clone();
        let reach = &mut args.reach;
        if self.proxy_uds.is_some() {
            // The entry specifies its own server, so the server address and certificates of the flags do not apply.
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

    /// Returns the tenant's targets, or those of the flags if the entry has none.
    ///
    /// # Errors
    /// Returns an error if an entry cannot be parsed.
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

/// Reads and parses the file.
///
/// # Errors
/// Returns an error if the file cannot be read or its content is invalid.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the tenants in {}; --tenants-config says where they are",
            path.display()
        )
    })?;
    parse(&text).with_context(|| format!("the tenants in {} cannot be used", path.display()))
}

/// Parses the text of the file.
///
/// # Errors
/// Returns an error if the content is invalid.
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
