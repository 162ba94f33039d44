// SPDX-License-Identifier: Apache-2.0

//! Tests the whole log, written to files.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use tracing::{debug, error, info, trace, warn};

use super::*;

/// A directory for one test, which is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("proxy-serve-log-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, max_bytes: u64) -> LogFile {
        LogFile {
            path: self.0.join("agent.log"),
            max_bytes,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn to_file(file: &LogFile) -> LogOptions {
    LogOptions {
        file: Some(file.clone()),
        stderr_threshold: Severity::Fatal,
        ..LogOptions::default()
    }
}

fn logged(options: &LogOptions, work: impl FnOnce()) -> String {
    dispatcher::with_default(&options.dispatch().unwrap(), work);
    read(&options.file.as_ref().unwrap().path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn text_starts_with_time_level_and_target() {
    let scratch = Scratch::new("text");
    let log = logged(&to_file(&scratch.file(0)), || {
        info!(part = "link", "added");
        debug!("not wanted");
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("Z  INFO "), "{log}");
    assert!(log.contains("log::tests: added part=\"link\"\n"), "{log}");
    assert!(!log.contains('\x1b'), "{log}");
}

#[test]
fn text_without_headers_with_source() {
    let scratch = Scratch::new("bare");
    let options = LogOptions {
        headers: false,
        ..to_file(&scratch.file(0))
    };
    assert_eq!(logged(&options, || info!("added")), "added\n");
    let options = LogOptions {
        source: true,
        ..options
    };
    let log = logged(&options, || error!("failed"));
    assert!(log.contains("src/log/tests.rs:"), "{log}");
}

#[test]
fn json_is_one_object_per_line() {
    let scratch = Scratch::new("json");
    let options = LogOptions {
        format: LogFormat::Json,
        ..to_file(&scratch.file(0))
    };
    let log = logged(&options, || {
        info!(part = "link", "two\nlines");
        error!("failed");
    });
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    for line in &lines {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
    assert!(
        lines[0].contains(r#""message":"two\nlines","part":"link""#),
        "{log}"
    );
    assert!(lines[1].contains(r#""level":"ERROR""#), "{log}");
}

#[test]
fn klog_lines_have_its_header() {
    let scratch = Scratch::new("klog");
    let mut options = LogOptions {
        format: LogFormat::Klog,
        ..to_file(&scratch.file(0))
    };
    let work = || {
        let by: Option<&str> = None;
        warn!(part = "link", count = 2, by, other = ?["x"], "two\n\"lines\"");
    };
    let log = logged(&options, work);
    let (header, content) = log.split_once("] ").unwrap();
    let expected = r#"two\n"lines" part="link" count=2 other="[\"x\"]""#;
    assert_eq!(content, format!("{expected}\n"));
    // W1124 20:12:34.567890    4711 tests.rs:1
    let shape: String = header
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let (time, rest) = shape.split_at("W0000 00:00:00.000000 ".len());
    assert_eq!(time, "W0000 00:00:00.000000 ");
    assert!(
        header.contains(&format!(" {:7} tests.rs:", process::id())),
        "{header}"
    );
    assert!(rest.trim_start().starts_with('0'), "{header}");
    options.source = true;
    assert!(logged(&options, work).contains(" log/tests.rs:"));
    options.headers = false;
    let log = logged(&options, work);
    assert_eq!(log.lines().last(), Some(expected));
}

#[test]
fn levels_of_everything_and_of_modules() {
    let scratch = Scratch::new("levels");
    let work = || {
        info!("one");
        debug!("two");
        trace!("three");
        debug!(target: "proxy_agent::link::apply", "four");
        trace!(target: "ebpf", "five");
    };
    let mut options = LogOptions {
        headers: false,
        ..to_file(&scratch.file(0))
    };
    assert_eq!(logged(&options, work), "one\n");
    options.file.as_mut().unwrap().path.set_extension("modules");
    options.modules = vec!["link/*=4".parse().unwrap(), "ebpf=6".parse().unwrap()];
    assert_eq!(logged(&options, work), "one\nfour\nfive\n");
    options.file.as_mut().unwrap().path.set_extension("debug");
    options.verbosity = 4;
    assert_eq!(logged(&options, work), "one\ntwo\nfour\nfive\n");
    options.file.as_mut().unwrap().path.set_extension("trace");
    options.verbosity = 6;
    assert_eq!(logged(&options, work), "one\ntwo\nthree\nfour\nfive\n");
}

#[test]
fn a_full_file_is_kept_as_old_and_a_new_one_begun() {
    let scratch = Scratch::new("rotate");
    let file = scratch.file(10);
    fs::write(&file.path, "before\n").unwrap();
    let options = LogOptions {
        headers: false,
        ..to_file(&file)
    };
    let log = logged(&options, || {
        info!("12");
        info!("3456");
        info!("a line longer than the limit");
        info!("end");
    });
    assert_eq!(log, "end\n");
    let old = scratch.0.join("agent.log.old");
    assert_eq!(read(&old), "a line longer than the limit\n");
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let scratch = Scratch::new("missing");
    let file = LogFile {
        path: scratch.0.join("no/such/agent.log"),
        max_bytes: 0,
    };
    let error = to_file(&file).dispatch().unwrap_err();
    assert!(error.to_string().contains("no/such/agent.log"), "{error}");
    assert!(error.to_string().contains("--log_file"), "{error}");
}

#[test]
fn expensive_debug_records_need_their_own_level() {
    let with = |verbosity, modules: &[&str]| LogOptions {
        verbosity,
        modules: modules.iter().map(|text| text.parse().unwrap()).collect(),
        ..LogOptions::default()
    };
    assert!(!LogOptions::default().is_debugging("ebpf"));
    assert!(!with(5, &[]).is_debugging("ebpf"));
    assert!(with(6, &[]).is_debugging("ebpf"));
    assert!(!with(0, &["ebpf=3"]).is_debugging("ebpf"));
    assert!(with(0, &["ebpf=4"]).is_debugging("ebpf"));
    assert!(with(0, &["link=4", "e*=5"]).is_debugging("ebpf"));
}
