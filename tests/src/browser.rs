// SPDX-License-Identifier: Apache-2.0

//! Opens pages in a real browser: headless Chromium, controlled by the `DevTools` protocol over two pipes
//! (<https://chromedevtools.github.io/devtools-protocol/>, `--remote-debugging-pipe`). The browser reports the requests
//! of a page, its errors and warnings, and the resulting document.

use std::env;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cmd::{self, Process};
use crate::dir::Dir;
use crate::netns::Netns;
use crate::{skip, slow_machine};

/// The executable of Debian's package.
const PROGRAM: &str = "chromium";

/// The maximum time until the browser replies, with a margin for a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// The time in which a page may still change after it has loaded.
const SETTLE: Duration = Duration::from_millis(500);

/// The descriptor of the command pipe in the browser.
const COMMANDS: RawFd = 3;
const ANSWERS: RawFd = 4;

/// The width of the window, in CSS pixels.
const WIDTH: u32 = 1000;
const HEIGHT: u32 = 1400;

/// A running browser, which is killed when this is dropped.
pub struct Browser {
    process: Process,
    commands: PipeWriter,
    messages: Receiver<Value>,
    events: Vec<Value>,
    session: Option<String>,
    next: u64,
    dir: Dir,
}

/// The state of a page after it has loaded.
#[derive(Debug)]
pub struct Seen {
    /// The URL of every request, the page's own first.
    pub requests: Vec<String>,
    /// The messages in the console and in the log of the page, including errors of scripts.
    pub complaints: Vec<String>,
    /// The page's title.
    pub title: String,
    /// All visible text.
    pub text: String,
    /// The names of the elements, each once, sorted.
    pub elements: Vec<String>,
    /// The maximum width that the page's own style sets for the body.
    pub max_width: String,
    /// The contents of the window, as PNG.
    pub picture: Vec<u8>,
}

/// The script that collects the fields of [`Seen`] that describe the document.
const LOOK: &str = "({
    title: document.title,
    text: document.body.innerText,
    elements: [...new Set([...document.querySelectorAll('*')].map((one) => one.localName))].sort(),
    maxWidth: getComputedStyle(document.body).maxWidth,
})";

impl Browser {
    /// Starts a browser in a namespace. Returns `None` if it is not installed; `test` is then recorded as skipped.
    ///
    /// # Errors
    /// Returns an error if the browser cannot be started or does not reply.
    pub fn start(netns: &Netns, test: &str) -> Result<Option<Self>> {
        skip::clear(test)?;
        if installed().is_none() {
            let reason = format!("{PROGRAM} is not installed, which opens the pages");
            skip::record(test, &reason)?;
            return Ok(None);
        }
        let dir = Dir::new()?;
        let (read_commands, commands) = io::pipe()?;
        let (answers, write_answers) = io::pipe()?;
        let mut command = netns.command(PROGRAM);
        command
            .args([
                "--headless",
                "--remote-debugging-pipe",
                "--no-sandbox",
                "--no-first-run",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-extensions",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
            ])
            .arg(format!("--user-data-dir={}", dir.path().display()))
            .arg("about:blank")
            .env("HOME", dir.path())
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("browser.log"))?);
        let ends = (read_commands.as_raw_fd(), write_answers.as_raw_fd());
        // SAFETY: the closure only makes system calls that are safe after fork(2), on descriptors that are open until
        // exec(2).
        unsafe { command.pre_exec(move || place(ends)) };
        let child = cmd::guard_child(&mut command)
            .spawn()
            .context("starting the browser")?;
        drop((read_commands, write_answers));
        let mut browser = Self {
            process: Process::new(child),
            commands,
            messages: read(answers),
            events: Vec::new(),
            session: None,
            next: 0,
            dir,
        };
        browser
            .attach()
            .with_context(|| format!("the browser's log:\n{}", browser.log()))?;
        Ok(Some(browser))
    }

    /// Opens a page, waits until it is idle, and reads its state.
    ///
    /// # Errors
    /// Returns an error if the browser does not reply or cannot load the page.
    pub fn open(&mut self, address: &str) -> Result<Seen> {
        self.events.clear();
        let loaded = self.call("Page.navigate", &json!({"url": address}))?;
        if let Some(error) = loaded["errorText"].as_str() {
            bail!("{address}: {error}");
        }
        self.wait_for("Page.loadEventFired")?;
        self.listen_for(SETTLE)?;
        let look = json!({"expression": LOOK, "returnByValue": true});
        let document = self.call("Runtime.evaluate", &look)?["result"]["value"].take();
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}))?;
        let picture = picture["data"].as_str().context("no picture")?;
        let text = |name: &str| document[name].as_str().map(str::to_owned);
        let elements = document["elements"].as_array().context("no elements")?;
        Ok(Seen {
            requests: self.all("Network.requestWillBeSent", &["request", "url"]),
            complaints: [
                self.all("Log.entryAdded", &["entry", "text"]),
                self.all("Runtime.consoleAPICalled", &["args"]),
                self.all("Runtime.exceptionThrown", &["exceptionDetails"]),
                self.all("Network.loadingFailed", &["errorText"]),
            ]
            .concat(),
            title: text("title").context("no title")?,
            text: text("text").context("no text")?,
            elements: elements
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            max_width: text("maxWidth").context("no style")?,
            picture: STANDARD.decode(picture)?,
        })
    }

    /// Opens a tab and enables all events of it.
    fn attach(&mut self) -> Result<()> {
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", &attach)?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Log", "Runtime"] {
            self.call(&format!("{domain}.enable"), &json!({}))?;
        }
        let size = json!({
            "width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": false
        });
        self.call("Emulation.setDeviceMetricsOverride", &size)?;
        Ok(())
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut command = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let mut line = serde_json::to_vec(&command)?;
        line.push(0);
        self.commands.write_all(&line).context(method.to_owned())?;
        let mut answer = self.until(method, |message| message["id"] == id)?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer["result"].take())
    }

    fn wait_for(&mut self, event: &str) -> Result<()> {
        let is_there = |message: &Value| message["method"] == event;
        if self.events.iter().any(is_there) {
            return Ok(());
        }
        let message = self.until(event, is_there)?;
        self.events.push(message);
        Ok(())
    }

    /// Returns the first message for which `is_it` returns true, and stores the events that arrive before it.
    fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let limit = slow_machine::of(PATIENCE);
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let message = self.messages.recv_timeout(left);
            let message = message.with_context(|| format!("waiting for {what}"))?;
            if is_it(&message) {
                return Ok(message);
            }
            self.events.push(message);
        }
    }

    fn listen_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self
                .messages
                .recv_timeout(time.saturating_sub(start.elapsed()))
            {
                Ok(message) => self.events.push(message),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(()),
                Err(gone) => bail!("the browser has ended: {gone}"),
            }
        }
    }

    /// Returns, as text, the values at a place in the parameters of all events of a method.
    fn all(&self, method: &str, place: &[&str]) -> Vec<String> {
        let of_method = self.events.iter().filter(|event| event["method"] == method);
        let found = of_method.map(|event| {
            let start = &event["params"];
            let value = place.iter().fold(start, |value, key| &value[*key]);
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        });
        found.collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("browser.log")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let Ok(group) = libc::pid_t::try_from(self.process.id()) else {
            return;
        };
        // The browser's helper processes are in its process group. SAFETY: kill has no memory effects; the group is
        // that of a child that is not reaped yet.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Returns the path of the browser.
fn installed() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut places = env::split_paths(&path).map(|directory| directory.join(PROGRAM));
    places.find(|place| Path::is_file(place))
}

/// Moves the pipes' ends to the descriptors that the browser expects.
fn place((commands, answers): (RawFd, RawFd)) -> io::Result<()> {
    // Both ends are first moved away from the two numbers, because either end may have the number of the other one.
    let away = |descriptor| {
        // SAFETY: the call is fcntl(2) on an open descriptor.
        check(unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, ANSWERS + 1) })
    };
    let (commands, answers) = (away(commands)?, away(answers)?);
    for (from, to) in [(commands, COMMANDS), (answers, ANSWERS)] {
        // SAFETY: the call is dup2(2) on an open descriptor; the descriptor that had the number before is not used any
        // more.
        check(unsafe { libc::dup2(from, to) })?;
    }
    Ok(())
}

fn check(result: RawFd) -> io::Result<RawFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Reads the messages as they arrive; each is terminated by a zero byte.
fn read(answers: PipeReader) -> Receiver<Value> {
    let (send, messages) = mpsc::channel();
    thread::spawn(move || {
        let parts = BufReader::new(answers).split(0);
        for part in parts.map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&part) else {
                return;
            };
            if send.send(message).is_err() {
                return;
            }
        }
    });
    messages
}
