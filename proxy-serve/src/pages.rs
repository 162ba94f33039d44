// SPDX-License-Identifier: Apache-2.0

//! What an endpoint shows to people: `/statusz` and `/flagz` as Kubernetes' components have them, and `/` for a browser.
//! What a program shows of itself is a [`Page`]: data, which the program fills and this module alone turns into HTML.
//!
//! The formats are those of text/plain in Kubernetes
//! (<https://github.com/kubernetes/enhancements/tree/master/keps/sig-instrumentation/4827-component-statusz>,
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-instrumentation/4828-component-flagz>, and
//! `staging/src/k8s.io/apiserver/pkg/server/{statusz,flagz}`, written from 1.35 on). Kubernetes draws the character between
//! name and value at random out of four; here it is always the one of its documentation. There is no version of Go to show.
//! Every `Accept` is answered with text, as RFC 9110 (12.5.1) permits; Kubernetes' JSON, an alpha API, is not there.

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

/// Nothing but the page's own style: no script, no frame, no form, no request to anywhere. Tests compare the hash with the
/// style.
const POLICY: &str = "default-src 'none'; style-src 'sha256-+4iygushJce9yaZz6fRGHe9KCFsr1eAqrMlaHotWkJw='; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A handler that has something to show.
pub trait Pages: Handler {
    /// Its paths, without queries.
    const PATHS: &'static [&'static str];

    /// What it shows at `/`, below what all programs show.
    fn page(&self) -> impl Future<Output = Page> {
        async { Page::default() }
    }
}

/// All paths where a handler is served as [`Served`], in order.
#[must_use]
pub fn paths<H: Pages>() -> Vec<&'static str> {
    let mut paths = [&OWN, H::PATHS].concat();
    paths.sort_unstable();
    paths
}

/// A program, as its pages name it.
#[derive(Debug, Clone)]
pub struct About {
    /// Its name.
    pub program: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its flags.
    pub flags: Values,
}

/// A handler with pages beside its own paths.
#[derive(Debug)]
pub struct Served<H> {
    about: About,
    handler: H,
    started: SystemTime,
    clock: Instant,
}

impl<H: Pages> Served<H> {
    /// For a program that starts now.
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
        // The empty line is that of the version that a component emulates.
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

/// As Go's `time.UnixDate` in UTC: `Mon Nov  2 13:41:33 UTC 2026`. A time before 1970 is 1970.
fn unix_date(time: SystemTime) -> String {
    let date = httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH));
    // Such as `Mon, 02 Nov 2026 13:41:33 GMT`, always (RFC 9110, 5.6.7).
    let mut parts = date.split([',', ' ']).filter(|part| !part.is_empty());
    let [weekday, day, month, year, clock] = [(); 5].map(|()| parts.next().unwrap_or_default());
    let day = day.trim_start_matches('0');
    format!("{weekday} {month} {day:>2} {clock} UTC {year}")
}

/// As Kubernetes writes it.
fn uptime(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours} hr {minutes:02} min {:02} sec", seconds % 60)
}

#[cfg(test)]
mod tests;
