// SPDX-License-Identifier: Apache-2.0

//! The running process of the program: its flags, taken from its command line, and the responses of its health port.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use proxy_serve::listen::Bind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::called::Called;

/// The time limit for a response.
const LIMIT: Duration = Duration::from_secs(5);

/// The maximum length of a response, in bytes.
const LONGEST: u64 = 16 << 20;

/// The first argument that selects the doctor of a program.
pub const WORD: &str = "doctor";

/// A process that runs this program.
#[derive(Debug)]
pub struct Process {
    /// The process ID.
    pub id: u32,
    /// The command line, without the program's name.
    pub words: Vec<OsString>,
}

/// Returns the other processes in this network namespace that run this program, except for doctors.
///
/// # Errors
/// Returns an error if /proc cannot be read.
pub fn processes() -> io::Result<Vec<Process>> {
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let of = |id: &str| {
        let process = Path::new("/proc").join(id);
        Some((
            identity(&process.join("exe"))?,
            identity(&process.join("ns/net"))?,
        ))
    };
    let own = of("self").ok_or_else(|| io::Error::other("/proc/self cannot be read"))?;
    // The programs of an image are one executable, so the name with which a process was started identifies the program.
    let called = Called::by(&env::args_os().next().unwrap_or_default());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(id) = name.parse::<u32>() else {
            continue;
        };
        if id == std::process::id() || of(&name) != Some(own) {
            continue;
        }
        // The process may have ended in the meantime.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0);
        let mut words = words.map(|word| OsString::from_vec(word.into()));
        let other = Called::by(&words.next().unwrap_or_default());
        if other.is_some() && called.is_some() && other != called {
            continue;
        }
        let mut words: Vec<OsString> = words.collect();
        // The last word, too, is followed by a zero byte.
        words.pop();
        if words.first().is_none_or(|word| word != WORD) {
            found.push(Process { id, words });
        }
    }
    Ok(found)
}

/// Returns the address at which this host reaches a listener.
#[must_use]
pub fn address(bind: Bind) -> SocketAddr {
    match bind {
        Bind::Every(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        Bind::One(address) => address,
    }
}

/// A response of a health port.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: String,
}

/// Sends a request to a health port.
///
/// # Errors
/// Returns an error if the port does not respond, or if the response is not HTTP.
pub async fn ask(bind: Bind, path: &str) -> io::Result<Answer> {
    let asked = async {
        let mut stream = TcpStream::connect(address(bind)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(LONGEST).read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let text = timeout(LIMIT, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no HTTP"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Answer {
        code,
        body: body.to_owned(),
    })
}

/// Returns the sum of a metric's samples in the text of `/metrics`.
#[must_use]
pub fn metric(text: &str, name: &str) -> Option<i64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = if rest.starts_with('{') {
            rest.rsplit_once(' ')?.1
        } else {
            rest.strip_prefix(' ')?
        };
        value.parse::<i64>().ok()
    });
    samples.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let text = "# TYPE a gauge\na 3\na_b 4\nb{x=\"1\"} 1\nb{x=\"2 3\"} 2\nc 0.5\n";
        assert_eq!(metric(text, "a"), Some(3));
        assert_eq!(metric(text, "a_b"), Some(4));
        assert_eq!(metric(text, "b"), Some(3));
        assert_eq!(metric(text, "c"), None);
        assert_eq!(metric(text, "d"), None);
    }

    #[test]
    fn answers_are_read() {
        let answer = parse("HTTP/1.1 503 x\r\nA: b\r\n\r\nbody").unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (503, "body"));
        for bad in ["", "SSH-2.0\r\n\r\n", "HTTP/1.1 20"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_test_is_no_other_process_of_its_own() {
        let own = std::process::id();
        assert!(processes().unwrap().iter().all(|found| found.id != own));
    }
}
