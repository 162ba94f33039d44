// SPDX-License-Identifier: Apache-2.0

//! Notifications to systemd, if it has provided a socket: `sd_notify(3)`.
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

/// The connection to the service manager; without one, notifications are dropped.
#[derive(Debug, Default)]
pub struct Systemd {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Maximum time between heartbeats.
    watchdog: Option<Duration>,
    /// The last status line sent.
    status: String,
    warned: bool,
}

impl Systemd {
    /// Opens the socket that `NOTIFY_SOCKET` names, if it is set.
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
                warn!("no notifications to systemd: cannot use NOTIFY_SOCKET={name}: {error}");
                Self::default()
            }
        }
    }

    /// The interval of heartbeats, half of the watchdog's; none without a watchdog.
    pub fn heartbeat(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// Reports that the first successful pass, or the requested resync, has ended.
    pub fn ready(&mut self) {
        self.notify("READY=1");
    }

    /// Reports the start of a requested resync.
    pub fn reloading(&mut self) {
        let now = monotonic_micros();
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// Reports the shutdown.
    pub fn stopping(&mut self) {
        self.notify("STOPPING=1");
    }

    /// Sends a heartbeat.
    pub fn alive(&mut self) {
        if self.watchdog.is_some() {
            self.notify("WATCHDOG=1");
        }
    }

    /// Requests at least `time` more for the shutdown.
    pub fn more_time(&mut self, time: Duration) {
        self.notify(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    /// Sends one line for `systemctl status`, if it has changed.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            self.notify(&format!("STATUS={}", status.replace('\n', " ")));
            self.status = status;
        }
    }

    fn notify(&mut self, message: &str) {
        let Some((socket, manager)) = &self.manager else {
            return;
        };
        let sent = socket.send_to_addr(message.as_bytes(), manager);
        if let Err(error) = sent
            && !self.warned
        {
            self.warned = true;
            warn!("cannot notify systemd of {message:?}: {error}");
        }
    }
}

/// Opens a socket to `name`; a leading `@` marks an abstract address.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let manager = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not block the agent.
    socket.set_nonblocking(true)?;
    Ok((socket, manager))
}

/// The watchdog's timeout, if it applies to this process.
fn watchdog(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    let is_meant = match variable("WATCHDOG_PID") {
        Some(pid) => pid.parse() == Ok(own),
        None => true,
    };
    (is_meant && micros > 1).then(|| Duration::from_micros(micros))
}

/// Microseconds of `CLOCK_MONOTONIC`, which systemd compares with the time of a reload.
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
    fn an_abstract_socket_gets_each_status_once() {
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
        let mut received = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(length) = manager.recv(&mut buffer) {
            received.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(received, ["READY=1", "STATUS=a b"]);
    }
}
