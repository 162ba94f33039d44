// SPDX-License-Identifier: Apache-2.0

//! What systemd is told of the agent's state, where it has given a socket: `sd_notify(3)`.
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use tracing::warn;

/// The service manager, if there is one that wants to know.
#[derive(Debug, Default)]
pub struct Systemd {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants a sign of life, at least.
    watchdog: Option<Duration>,
    /// What it was told last.
    status: String,
    warned: bool,
}

impl Systemd {
    /// Finds the socket that the environment names; none: nobody is told anything.
    pub fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match open(&name) {
            Ok(manager) => Self {
                manager: Some(manager),
                watchdog: watchdog(|name| env::var(name).ok(), process::id()),
                ..Self::default()
            },
            Err(error) => {
                let name = name.display();
                warn!("systemd is told nothing: cannot use NOTIFY_SOCKET={name}: {error}");
                Self::default()
            }
        }
    }

    /// How far apart signs of life should be; none if nobody wants any.
    pub fn heartbeat(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// The first pass that worked has ended, or the one that was asked for by a signal.
    pub fn ready(&mut self) {
        self.tell("READY=1");
    }

    /// The agent looks at everything again, because it was asked to.
    pub fn reloading(&mut self) {
        let now = monotonic_micros();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The agent is about to end.
    pub fn stopping(&mut self) {
        self.tell("STOPPING=1");
    }

    /// The agent gets on.
    pub fn alive(&mut self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// Ending takes longer: at least so much.
    pub fn more_time(&mut self, time: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            self.tell(&format!("STATUS={}", status.replace('\n', " ")));
            self.status = status;
        }
    }

    fn tell(&mut self, message: &str) {
        let Some((socket, manager)) = &self.manager else {
            return;
        };
        let sent = socket.send_to_addr(message.as_bytes(), manager);
        if let Err(error) = sent
            && !self.warned
        {
            self.warned = true;
            warn!("cannot tell systemd {message:?}: {error}");
        }
    }
}

/// An address that begins with `@` is an abstract one.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let manager = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold the agent up.
    socket.set_nonblocking(true)?;
    Ok((socket, manager))
}

/// The interval of the watchdog, if it is meant for this process.
fn watchdog(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    let is_meant = match variable("WATCHDOG_PID") {
        Some(pid) => pid.parse() == Ok(own),
        None => true,
    };
    (is_meant && micros > 1).then(|| Duration::from_micros(micros))
}

/// What systemd compares the time of a reload with, in microseconds.
fn monotonic_micros() -> u128 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a valid structure. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = Duration::from_secs(now.tv_sec.unsigned_abs());
    seconds.as_micros() + u128::from(now.tv_nsec.unsigned_abs() / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_meant_for_one_process() {
        let of = |usec: &'static str, pid: Option<&'static str>| {
            let variable = move |name: &str| match name {
                "WATCHDOG_USEC" => Some(usec.to_owned()),
                _ => pid.map(str::to_owned),
            };
            watchdog(variable, 7)
        };
        let interval = Some(Duration::from_secs(3));
        assert_eq!(of("3000000", None), interval);
        assert_eq!(of("3000000", Some("7")), interval);
        assert_eq!(of("3000000", Some("8")), None);
        assert_eq!(of("0", None), None);
        assert_eq!(of("soon", None), None);
        assert_eq!(watchdog(|_| None, 7), None);
    }

    #[test]
    fn an_abstract_socket_is_told_each_status_once() {
        let name = format!("proxy-agent-notify-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut systemd = Systemd {
            manager: Some(open(OsStr::new(&format!("@{name}"))).unwrap()),
            ..Systemd::default()
        };
        systemd.ready();
        systemd.status("a\nb".to_owned());
        systemd.status("a\nb".to_owned());
        systemd.alive();
        let mut told = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(length) = manager.recv(&mut buffer) {
            told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(told, ["READY=1", "STATUS=a b"]);
    }
}
