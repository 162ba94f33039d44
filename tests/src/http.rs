// SPDX-License-Identifier: Apache-2.0

//! Sends HTTP requests to the agent, with curl in its node's namespace.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd;
use crate::metrics::Sample;
use crate::netns::Netns;

/// The default address of `--listen`.
pub const ADDRESS: &str = "127.0.0.1:9465";
/// The time-out of a request, in seconds.
const TIMEOUT: &str = "30";
/// The maximum time until the agent sends the expected response.
const PATIENCE: Duration = Duration::from_secs(30);

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    /// The status code, or 0 if there was no response.
    pub code: u16,
    /// The response header.
    pub header: String,
    /// The response body.
    pub body: String,
}

/// Requests a path from `address`; `args` are passed to curl.
///
/// # Errors
/// Returns an error if curl cannot be run.
pub fn ask(netns: &Netns, address: &str, path: &str, args: &[&str]) -> Result<Answer> {
    ask_by(netns.command("curl"), address, path, args)
}

/// Works like [`ask`], with a command that runs curl in the right namespace or container.
///
/// # Errors
/// Returns the same errors as [`ask`].
pub fn ask_by(mut curl: Command, address: &str, path: &str, args: &[&str]) -> Result<Answer> {
    curl.args([
        "--silent",
        "--include",
        "--noproxy",
        "*",
        "--max-time",
        TIMEOUT,
    ])
    .args(["--write-out", "\n%{http_code}"])
    .args(args)
    .arg(format!("http://{address}{path}"));
    let output = cmd::output(&mut curl, "")?;
    let text = String::from_utf8(output.stdout)?;
    let (text, code) = text.rsplit_once('\n').context("curl writes the code")?;
    let (header, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    Ok(Answer {
        code: code.parse()?,
        header: header.to_owned(),
        body: body.to_owned(),
    })
}

/// Requests a path from the agent of a node with the default `--listen`.
///
/// # Errors
/// Returns the same errors as [`ask`].
pub fn get(netns: &Netns, path: &str) -> Result<Answer> {
    ask(netns, ADDRESS, path, &[])
}

/// Returns the samples of a path.
///
/// # Errors
/// Returns an error if there is no response, or if it is not in the text format.
pub fn scrape(netns: &Netns, path: &str) -> Result<Vec<Sample>> {
    let answer = get(netns, path)?;
    anyhow::ensure!(answer.code == 200, "no metrics: {answer:?}");
    crate::metrics::samples(&answer.body)
}

/// Waits until the response for a path has a status code, and returns that response.
///
/// # Errors
/// Returns an error if this does not happen in time; the error contains the last response.
pub fn wait_for(netns: &Netns, path: &str, code: u16) -> Result<Answer> {
    let mut last = None;
    let found = cmd::wait_until(PATIENCE, &format!("{code} from {path}"), || {
        let answer = get(netns, path)?;
        if answer.code == code {
            return Ok(Some(answer));
        }
        last = Some(answer);
        Ok(None)
    });
    found.with_context(|| format!("{last:?}"))
}
