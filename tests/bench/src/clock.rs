// SPDX-License-Identifier: Apache-2.0

//! Where threads run and what they use: pinning, processor time, instructions.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::thread::JoinHandle;
use std::time::Duration;

/// The processor that clients and servers work on: the last one, away from the first, which mostly
/// has the interrupts. Both on one: then an operation takes exactly the time that all of it needs.
#[must_use]
pub fn processor() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// Has the calling thread run on one processor only.
///
/// # Errors
/// When the process may not use that one.
pub fn pin(processor: usize) -> io::Result<()> {
    pin_process(0, processor)
}

/// The same for another process that has one thread; 0 is the calling thread.
///
/// # Errors
/// When it has ended, or may not use that one.
pub fn pin_process(pid: u32, processor: usize) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: the set is plain bits, and valid for its size.
    let refused = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if refused != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The clock of the processor time of a thread.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// Of the calling thread.
    pub const OWN: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    /// Of another thread, which must not have ended when it is read.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of<T>(thread: &JoinHandle<T>) -> io::Result<Self> {
        let mut id = 0;
        // SAFETY: the handle keeps the thread's identity valid; the pointer is valid for the call.
        match unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut id) } {
            0 => Ok(Self(id)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The time the thread has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn read(self) -> io::Result<Duration> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is valid for the call.
        if unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Ok(Duration::new(
            seconds,
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        ))
    }
}

/// Counts the instructions of one processor, kernel included, where the machine has such a counter.
#[derive(Debug)]
pub struct Instructions(OwnedFd);

impl Instructions {
    /// None where there is no counter: in most virtual machines.
    #[must_use]
    pub fn open(processor: usize) -> Option<Self> {
        /// `struct perf_event_attr`, its first version: type, size, config, …
        #[repr(C)]
        struct Attributes {
            kind: u32,
            size: u32,
            rest: [u64; 7],
        }
        const HARDWARE: u32 = 0;
        /// `PERF_FLAG_FD_CLOEXEC`
        const CLOSE_ON_EXEC: u64 = 8;
        /// `PERF_COUNT_HW_INSTRUCTIONS`
        const INSTRUCTIONS: u64 = 1;
        let attributes = Attributes {
            kind: HARDWARE,
            size: 64,
            rest: [INSTRUCTIONS, 0, 0, 0, 0, 0, 0],
        };
        // All processes (-1) on one processor.
        // SAFETY: the attributes are valid for the size they name.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                -1,
                libc::c_int::try_from(processor).ok()?,
                -1,
                CLOSE_ON_EXEC,
            )
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: a new descriptor that nothing else owns.
        Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The count so far.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn read(&self) -> io::Result<u64> {
        let mut count = 0_u64;
        // SAFETY: the buffer is valid for its size.
        let length = unsafe {
            libc::read(
                self.0.as_raw_fd(),
                (&raw mut count).cast(),
                size_of::<u64>(),
            )
        };
        if usize::try_from(length) != Ok(size_of::<u64>()) {
            return Err(io::Error::last_os_error());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_uses_its_own_time() {
        let worker = std::thread::spawn(|| {
            pin(processor()).expect("a processor of this process");
            let before = ThreadClock::OWN.read().expect("this thread");
            while ThreadClock::OWN.read().expect("this thread") < before + Duration::from_millis(5)
            {
            }
            std::thread::park();
        });
        let clock = ThreadClock::of(&worker).expect("it waits");
        while clock.read().expect("it waits") < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        worker.thread().unpark();
        worker.join().expect("no panic");
    }
}
