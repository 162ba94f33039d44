// SPDX-License-Identifier: Apache-2.0

//! Checks the pages that every program serves: `/statusz` and `/flagz` in Kubernetes' format, and `/` for browsers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::browser::Seen;
use crate::http::{self, Answer};

/// The directory for pictures of pages in the documentation, below the repository's root.
const PICTURES: &str = "docs/pages";

/// The elements that a page may consist of.
const ELEMENTS: [&str; 29] = [
    "a", "body", "dd", "div", "dl", "dt", "h1", "h2", "head", "header", "html", "li", "link",
    "main", "meta", "nav", "p", "section", "small", "span", "style", "table", "tbody", "td", "th",
    "thead", "title", "tr", "ul",
];

/// Requests the pages of the program with this name at an address, with the command that `curl` returns; `flag` is a
/// line that its `/flagz` must contain.
///
/// # Errors
/// Returns an error if the pages are not as expected.
pub fn check(curl: impl Fn() -> Command, address: &str, program: &str, flag: &str) -> Result<()> {
    let get = |path: &str, args: &[&str]| http::ask_by(curl(), address, path, args);
    let statusz = text(&get("/statusz", &[])?)?;
    let lines: Vec<&str> = statusz.lines().collect();
    ensure!(lines[1] == format!("{program} statusz"), "{statusz}");
    ensure!(lines[2].starts_with("Warning: "), "{statusz}");
    for name in ["Started", "Up", "Binary version", "Paths"] {
        ensure!(value(&statusz, name).is_some(), "no {name}: {statusz}");
    }
    ensure!(
        value(&statusz, "Binary version") == Some(env!("CARGO_PKG_VERSION")),
        "{statusz}"
    );
    // The paths that the page lists exist.
    let paths = value(&statusz, "Paths").unwrap_or_default();
    ensure!(
        paths.contains("/flagz") && paths.contains("/metrics"),
        "{paths}"
    );
    for path in paths.split(' ') {
        let code = get(path, &[])?.code;
        ensure!(code != 404 && code != 0, "{path}: {code}");
    }
    let flagz = text(&get("/flagz", &[])?)?;
    ensure!(
        flagz.starts_with(&format!("\n{program} flagz\nWarning: ")),
        "{flagz}"
    );
    ensure!(flagz.lines().any(|line| line == flag), "{flag}: {flagz}");
    for path in ["/", "/statusz", "/flagz"] {
        let posted = get(path, &["--data", "x"])?;
        ensure!(posted.code == 405, "POST {path}: {posted:?}");
        let head = get(path, &["--head"])?;
        ensure!(head.code == 200 && head.body.is_empty(), "{path}: {head:?}");
        ensure!(has(&head, "x-content-type-options: nosniff"), "{head:?}");
    }
    let page = get("/", &[])?;
    for field in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "cache-control: no-store",
        "referrer-policy: no-referrer",
    ] {
        ensure!(has(&page, field), "{field}: {}", page.header);
    }
    ensure!(
        page.body.starts_with("<!DOCTYPE html><html lang=\"en\">"),
        "{}",
        page.body
    );
    ensure!(
        page.body.contains(&format!("<h1>{program}")),
        "{}",
        page.body
    );
    Ok(())
}

/// Checks the state of a page at `address` in a browser: the browser made no other request and reported no error or
/// warning, the page's style was applied, and no element was injected by a name.
///
/// # Errors
/// Returns an error if this is not so.
pub fn judge(seen: &Seen, address: &str) -> Result<()> {
    ensure!(
        seen.requests.first().is_some_and(|first| first == address),
        "{:?}",
        seen.requests
    );
    // The icon is part of the page.
    let others = seen.requests.iter().skip(1);
    let elsewhere: Vec<_> = others.filter(|url| !url.starts_with("data:")).collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    ensure!(seen.complaints.is_empty(), "{:?}", seen.complaints);
    ensure!(seen.max_width == "1152px", "{}", seen.max_width);
    let strange = seen
        .elements
        .iter()
        .find(|name| !ELEMENTS.contains(&name.as_str()));
    ensure!(strange.is_none(), "{strange:?}");
    Ok(())
}

/// Writes the picture into the documentation if `UPDATE_GOLDEN` is set.
///
/// # Errors
/// Returns an error if the file cannot be written, or if the picture is too large for a document.
pub fn keep(seen: &Seen, name: &str) -> Result<()> {
    ensure!(seen.picture.len() < 150_000, "{} bytes", seen.picture.len());
    if std::env::var_os("UPDATE_GOLDEN").is_none() {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let path = root.context("no checkout")?.join(PICTURES).join(name);
    fs::write(&path, &seen.picture).with_context(|| format!("writing {}", path.display()))
}

/// Returns the value of a line of `/statusz`.
fn value<'a>(statusz: &'a str, name: &str) -> Option<&'a str> {
    let mut values = statusz
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    values.next().filter(|value| !value.is_empty())
}

fn text(answer: &Answer) -> Result<String> {
    ensure!(answer.code == 200, "{answer:?}");
    ensure!(
        has(answer, "content-type: text/plain; charset=utf-8"),
        "{answer:?}"
    );
    Ok(answer.body.clone())
}

fn has(answer: &Answer, field: &str) -> bool {
    answer.header.to_ascii_lowercase().contains(field)
}
