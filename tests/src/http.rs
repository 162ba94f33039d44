// SPDX-License-Identifier: Apache-2.0

//! Asks the agent over HTTP, with curl in its node's namespace.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd;
use crate::metrics::Sample;
use crate::netns::Netns;

/// The address in `--listen`'s default.
pub const ADDRESS: &str = "127.0.0.1:9465";
/// How long an answer may take.
const TIMEOUT: &str = "30";
/// How long the agent may take until the expected answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code; 0 if there was no answer.
    pub code: u16,
    /// The header.
    pub header: String,
    /// The body.
    pub body: String,
}

/// Asks `address` for a path; `args` go to curl.
///
/// # Errors
/// When curl cannot be run.
pub fn ask(netns: &Netns, address: &str, path: &str, args: &[&str]) -> Result<Answer> {
    ask_by(netns.command("curl"), address, path, args)
}

/// As [`ask`], by a command that runs curl in the right place.
///
/// # Errors
/// As there.
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

/// Asks the agent of a node with the default `--listen`.
///
/// # Errors
/// As [`ask`].
pub fn get(netns: &Netns, path: &str) -> Result<Answer> {
    ask(netns, ADDRESS, path, &[])
}

/// The samples of a path.
///
/// # Errors
/// When there is no answer, or it is none in the text format.
pub fn scrape(netns: &Netns, path: &str) -> Result<Vec<Sample>> {
    let answer = get(netns, path)?;
    anyhow::ensure!(answer.code == 200, "no metrics: {answer:?}");
    crate::metrics::samples(&answer.body)
}

/// Waits until a path answers with a status code, and returns that answer.
///
/// # Errors
/// When it does not; the error contains the last answer.
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
