// SPDX-License-Identifier: Apache-2.0

//! The reasons why netfilter could not be read or written, and what the operator can do about them.

use std::io;

use netlink_packet_core::DecodeError;
use netlink_packet_netfilter::conntrack::ConntrackMessage;

use super::{Failure, Message as _};

/// The reason why netfilter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no nfnetlink, or does not permit this process to use it.
    #[error(
        "cannot open a netfilter netlink socket; the kernel needs CONFIG_NF_TABLES \
         (`modprobe nf_tables`)"
    )]
    Open(#[source] io::Error),
    /// Sending or receiving on the socket failed.
    #[error("cannot talk to netfilter")]
    Io(#[source] io::Error),
    /// The kernel rejected a request.
    #[error("{subsystem} refused to {what}{}", advice(subsystem, answer))]
    Refused {
        /// The subsystem of netfilter.
        subsystem: &'static str,
        /// The attempted operation.
        what: String,
        /// The kernel's error.
        #[source]
        answer: io::Error,
    },
    /// The response is not a valid netlink message.
    #[error("cannot understand the answer of netfilter")]
    Decode(#[source] DecodeError),
    /// The kernel did not respond at all.
    #[error("{subsystem} did not answer to the request to {what}")]
    NoAnswer {
        /// The subsystem of netfilter.
        subsystem: &'static str,
        /// The attempted operation.
        what: String,
    },
    /// Other processes made changes during every attempt.
    #[error("{subsystem} changed during each of {attempts} attempts to {what}")]
    Interrupted {
        /// The subsystem of netfilter.
        subsystem: &'static str,
        /// The attempted operation.
        what: String,
        /// The number of attempts.
        attempts: usize,
    },
}

/// Returns advice for the operator, for errors whose text does not contain it.
fn advice(subsystem: &str, answer: &io::Error) -> &'static str {
    match answer.raw_os_error() {
        Some(libc::ENOMEM) if subsystem == ConntrackMessage::SUBSYSTEM => {
            " (is its table full? see net.netfilter.nf_conntrack_max)"
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) if subsystem == ConntrackMessage::SUBSYSTEM => {
            "; the kernel needs CONFIG_NF_CT_NETLINK and CONFIG_NF_NAT \
             (`modprobe nf_conntrack_netlink nf_nat`)"
        }
        _ => "",
    }
}

impl Error {
    /// Converts the reason why the response to a request to do `what` cannot be used.
    pub(super) fn of(failure: Failure, subsystem: &'static str, what: &str) -> Self {
        let what = what.to_owned();
        match failure {
            Failure::Interrupted => Self::Interrupted {
                subsystem,
                what,
                attempts: 1,
            },
            Failure::Refused(answer) => Self::Refused {
                subsystem,
                what,
                answer,
            },
            Failure::Lost(error) => Self::Io(error),
            Failure::Incomplete => Self::NoAnswer { subsystem, what },
        }
    }

    /// Returns true if the kernel lacks the subsystem, in which case it has no objects of it.
    ///
    /// nfnetlink responds with `EINVAL` to messages of a subsystem that it does not know.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Open(cause) => matches!(
                cause.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
            ),
            Self::Refused { answer, .. } => {
                matches!(answer.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
            }
            _ => false,
        }
    }

    /// Returns the errno of the kernel's response if the kernel rejected the request.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { answer, .. } => answer.raw_os_error(),
            _ => None,
        }
    }
}
