// SPDX-License-Identifier: Apache-2.0

//! The endpoint's pages for people: `/statusz` and `/flagz` as in Kubernetes' components, and `/` for browsers. The
//! program's own part is a [`Page`]: data that the program fills in and that only this module converts to HTML.
//!
//! The formats are those of text/plain in Kubernetes
//! (<https://github.com/kubernetes/enhancements/tree/master/keps/sig-instrumentation/4827-component-statusz>,
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-instrumentation/4828-component-flagz>, and
//! `staging/src/k8s.io/apiserver/pkg/server/{statusz,flagz}`, which write them from 1.35 on). Kubernetes chooses the
//! character between name and value at random from four; here it is always the one used in its documentation. There is
//! no Go version to display. The response is text for every `Accept`, as RFC 9110 (12.5.1) permits; Kubernetes' JSON
//! format, which is an alpha API, is not supported.

mod html;
mod visible;

use std::fmt::Write as _;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};

pub use self::html::{Cell, Column, MOST_ROWS, Page, Table, smallest};
use self::visible::visible;
use crate::flags::Values;
use crate::http::{Handler, Reply, StatusCode, reply, text};

/// The paths of this module.
const OWN: [&str; 3] = ["/", "/flagz", "/statusz"];

/// The second and third line of both texts.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// The policy permits only the page's own style: no script, frame or form, and no request to any host. Tests compare
/// the hash with the style.
const POLICY: &str = "default-src 'none'; style-src 'sha256-+4iygushJce9yaZz6fRGHe9KCFsr1eAqrMlaHotWkJw='; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A handler that has a page.
pub trait Pages: Handler {
    /// The handler's paths, without queries.
    const PATHS: &'static [&'static str];

    /// Returns the handler's part of the page at `/`, which follows the part that all programs have.
    fn page(&self) -> impl Future<Output = Page> {
        async { Page::default() }
    }
}

/// Returns all paths of a handler that is wrapped in [`Served`], sorted.
#[must_use]
pub fn paths<H: Pages>() -> Vec<&'static str> {
    let mut paths = [&OWN, H::PATHS].concat();
    paths.sort_unstable();
    paths
}

/// The description of a program for its pages.
#[derive(Debug, Clone)]
pub struct About {
    /// The name of the program.
    pub program: &'static str,
    /// The version of the program.
    pub version: &'static str,
    /// The flags of the program.
    pub flags: Values,
}

/// A handler that serves these pages in addition to its own paths.
#[derive(Debug)]
pub struct Served<H> {
    about: About,
    handler: H,
    started: SystemTime,
    clock: Instant,
}

impl<H: Pages> Served<H> {
    /// Wraps a handler. The program's start time is now.
    #[must_use]
    pub fn new(about: About, handler: H) -> Self {
        Self {
            about,
            handler,
            started: SystemTime::now(),
            clock: Instant::now(),
        }
    }

    fn statusz(&self) -> String {
        let About {
            program, version, ..
        } = self.about;
        let (started, up) = (unix_date(self.started), uptime(self.clock.elapsed()));
        let mut paths = paths::<H>();
        paths.retain(|path| *path != "/");
        let paths = paths.join(" ");
        // The empty line is the place of the version that a component emulates.
        format!(
            "\n{program} statusz\n{WARNING}\n\nStarted: {started}\nUp: {up}\nBinary version: {version}\n\nPaths: {paths}\n"
        )
    }

    fn flagz(&self) -> String {
        let mut lines = format!("\n{} flagz\n{WARNING}\n", self.about.program);
        for (name, value) in self.about.flags.iter() {
            let value = visible(value, usize::MAX);
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{name}={value}");
        }
        lines
    }

    async fn index(&self) -> Reply {
        let head = html::Head {
            program: self.about.program,
            version: self.about.version,
            up: uptime(self.clock.elapsed()),
            now: unix_date(SystemTime::now()),
            paths: paths::<H>(),
        };
        let body = html::document(&head, &self.handler.page().await);
        let mut reply = reply(StatusCode::OK, "text/html; charset=utf-8", body);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        reply
    }
}

impl<H: Pages> Handler for Served<H> {
    async fn get(&self, path: &str, query: Option<&str>) -> Reply {
        match path {
            "/" => self.index().await,
            "/statusz" => text(StatusCode::OK, self.statusz()),
            "/flagz" => text(StatusCode::OK, self.flagz()),
            _ => self.handler.get(path, query).await,
        }
    }

    fn moved(&self, host: &str, path: &str, query: Option<&str>) -> Option<String> {
        self.handler.moved(host, path, query)
    }
}

/// Formats a time like Go's `time.UnixDate` in UTC: `Mon Nov  2 13:41:33 UTC 2026`. A time before 1970 is formatted as
/// the start of 1970.
fn unix_date(time: SystemTime) -> String {
    let date = httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH));
    // The date always has the form `Mon, 02 Nov 2026 13:41:33 GMT` (RFC 9110, 5.6.7).
    let mut parts = date.split([',', ' ']).filter(|part| !part.is_empty());
    let [weekday, day, month, year, clock] = [(); 5].map(|()| parts.next().unwrap_or_default());
    let day = day.trim_start_matches('0');
    format!("{weekday} {month} {day:>2} {clock} UTC {year}")
}

/// Formats an uptime like Kubernetes.
fn uptime(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours} hr {minutes:02} min {:02} sec", seconds % 60)
}

#[cfg(test)]
mod tests;
