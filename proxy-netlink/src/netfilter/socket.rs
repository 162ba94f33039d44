// SPDX-License-Identifier: Apache-2.0

//! The nfnetlink socket: transactions, single requests and dumps, for every subsystem of netfilter.

mod error;
mod message;

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as RawSocket, SocketAddr};

pub use self::error::Error;
pub use self::message::Message;
use crate::answer::{Answer, Failure};
use crate::wire;

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h, the subsystem to which a batch is addressed.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// The maximum number of attempts at a dump that concurrent changes interrupt.
const DUMP_ATTEMPTS: usize = 10;

/// A netlink socket for netfilter.
pub struct Socket {
    inner: RawSocket,
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the current network namespace.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel has no nfnetlink or rejects the socket.
    pub fn open() -> Result<Self, Error> {
        let mut inner = RawSocket::new(NETLINK_NETFILTER).map_err(Error::Open)?;
        inner.bind_auto().map_err(Error::Open)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // The response to a transaction is already in the queue when send returns, so there is no need to wait.
        inner.set_non_blocking(true).map_err(Error::Open)?;
        Ok(Self { inner, sequence: 0 })
    }

    /// Sends messages to nf_tables as one transaction: either all of them take effect at once, or none.
    ///
    /// # Errors
    ///
    /// Returns the first error that the kernel reports.
    pub fn transact(
        &mut self,
        what: &str,
        messages: Vec<(u16, NetfilterProtoFamily, NfTablesMessage)>,
    ) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let control = |res_id| NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, res_id);
        let last = messages.len();
        self.push(
            &mut buffer,
            0,
            NetfilterMessage::new(control(SUBSYSTEM_NFTABLES), ControlMessage::BatchBegin),
        );
        for (at, (flags, family, message)) in messages.into_iter().enumerate() {
            // The acknowledgement of the last message means that all were accepted.
            let ack = if at + 1 == last { NLM_F_ACK } else { 0 };
            let header = NetfilterHeader::new(family, 0, 0);
            self.push(
                &mut buffer,
                flags | ack,
                NetfilterMessage::new(header, message),
            );
        }
        let acknowledged = self.sequence;
        self.push(
            &mut buffer,
            0,
            NetfilterMessage::new(control(SUBSYSTEM_NFTABLES), ControlMessage::BatchEnd),
        );
        self.make_room(buffer.len()).map_err(Error::Io)?;
        self.inner.send(&buffer, 0).map_err(Error::Io)?;

        let mut done = false;
        let mut refused = None;
        while let Some(datagram) = self.receive()? {
            for message in wire::messages(&datagram) {
                let message = message.map_err(Error::Decode)?;
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match message
                    .payload
                    .first_chunk()
                    .map(|code| i32::from_ne_bytes(*code))
                {
                    Some(0) => done |= message.sequence == acknowledged,
                    Some(code) => {
                        let answer = io::Error::from_raw_os_error(code.saturating_abs());
                        refused.get_or_insert(answer);
                    }
                    None => return Err(Error::Decode("an error without its code".into())),
                }
            }
        }
        match refused {
            Some(answer) => Err(Error::Refused {
                subsystem: NfTablesMessage::SUBSYSTEM,
                what: what.to_owned(),
                answer,
            }),
            None if done => Ok(()),
            None => Err(Error::NoAnswer {
                subsystem: NfTablesMessage::SUBSYSTEM,
                what: what.to_owned(),
            }),
        }
    }

    /// Makes one change, which the kernel acknowledges.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error.
    pub fn change<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        flags: u16,
        request: M,
    ) -> Result<(), Error> {
        self.request(what, family, request, flags | NLM_F_ACK, |_| {})
    }

    /// Requests one object, which may not exist.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel rejects the request for a reason other than that the object does not exist.
    pub fn get<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: M,
    ) -> Result<Option<M>, Error> {
        let mut found = None;
        match self.request(what, family, request, NLM_F_ACK, |object| {
            found.get_or_insert(object);
        }) {
            Ok(()) => Ok(found),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Dumps objects. A dump that was interrupted by concurrent changes is repeated.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel rejects the request or if every attempt is interrupted. A partial dump is never
    /// returned.
    pub fn dump<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &M,
    ) -> Result<Vec<M>, Error> {
        self.fold(what, family, request, Vec::push)
    }

    /// Dumps objects and passes each of them to `each` as it is read, for dumps that are too long to keep in memory. A
    /// dump that was interrupted by concurrent changes is repeated with a new `T`.
    ///
    /// # Errors
    ///
    /// Returns an error under the same conditions as [`Socket::dump`].
    pub fn fold<M: Message, T: Default>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &M,
        mut each: impl FnMut(&mut T, M),
    ) -> Result<T, Error> {
        again(M::SUBSYSTEM, what, |result| {
            self.request(what, family, request.clone(), NLM_F_DUMP, |object| {
                each(result, object);
            })
        })
    }

    /// Works like [`Socket::fold`], but passes the attributes of each message as bytes: decoding every rule of a node
    /// with 20,000 rules takes seconds, while a search for a few bytes is very fast.
    ///
    /// # Errors
    ///
    /// Returns an error under the same conditions as [`Socket::dump`].
    pub fn fold_raw<M: Message, T: Default>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &M,
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, Error> {
        again(M::SUBSYSTEM, what, |result| {
            /// The length of `struct nfgenmsg`.
            const HEADER: usize = 4;
            self.send(family, request.clone(), NLM_F_DUMP)?;
            let answer = Answer::to_dump(self.sequence);
            self.read(answer, M::SUBSYSTEM, what, |message| {
                let length = message.payload.len();
                let attributes = message.payload.get(HEADER..);
                let too_small = || DecodeError::buffer_too_small(length, HEADER);
                each(result, attributes.ok_or_else(too_small)?);
                Ok(())
            })
        })
    }

    fn request<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: M,
        flags: u16,
        mut each: impl FnMut(M),
    ) -> Result<(), Error> {
        self.send(family, request, flags)?;
        let answer = if flags & NLM_F_DUMP == NLM_F_DUMP {
            Answer::to_dump(self.sequence)
        } else {
            Answer::to(self.sequence)
        };
        self.read(answer, M::SUBSYSTEM, what, |message| {
            if let Some(object) = object(message)? {
                each(object);
            }
            Ok(())
        })
    }

    fn send<M: Message>(
        &mut self,
        family: NetfilterProtoFamily,
        request: M,
        flags: u16,
    ) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let header = NetfilterHeader::new(family, 0, 0);
        self.push(&mut buffer, flags, NetfilterMessage::new(header, request));
        self.inner.send(&buffer, 0).map_err(Error::Io)?;
        Ok(())
    }

    /// Reads the response to the last request until its end.
    fn read(
        &mut self,
        mut answer: Answer,
        subsystem: &'static str,
        what: &str,
        mut each: impl FnMut(wire::Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), Error> {
        // Each read makes the kernel put the next part of a dump into the queue.
        while let Some(datagram) = self.receive()? {
            answer.read(&datagram, &mut each).map_err(Error::Decode)?;
        }
        answer
            .end()
            .map_err(|failure| Error::of(failure, subsystem, what))
    }

    fn push(&mut self, buffer: &mut Vec<u8>, flags: u16, message: NetfilterMessage) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = buffer.len();
        // Messages in a datagram start at multiples of four bytes (NLMSG_ALIGNTO).
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }

    /// Enlarges the send buffer: the kernel rejects a message that is larger, and the default size suffices only for a
    /// few thousand members of a set.
    fn make_room(&self, length: usize) -> io::Result<()> {
        const ALWAYS_THERE: usize = 1 << 16;
        if length <= ALWAYS_THERE {
            return Ok(());
        }
        let wanted = libc::c_int::try_from(length).map_err(io::Error::other)?;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
        // SAFETY: the pointer refers to an integer of the given size.
        let refused = unsafe {
            libc::setsockopt(
                self.inner.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                (&raw const wanted).cast(),
                size,
            )
        };
        if refused == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn receive(&self) -> Result<Option<Vec<u8>>, Error> {
        match self.inner.recv_from_full() {
            Ok((datagram, _)) => Ok(Some(datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

/// Repeats a dump that was interrupted, with a new result for each attempt.
fn again<T: Default>(
    subsystem: &'static str,
    what: &str,
    mut attempt: impl FnMut(&mut T) -> Result<(), Error>,
) -> Result<T, Error> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut result = T::default();
        match attempt(&mut result) {
            Ok(()) => return Ok(result),
            Err(Error::Interrupted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Interrupted {
        subsystem,
        what: what.to_owned(),
        attempts: DUMP_ATTEMPTS,
    })
}

/// Returns the object in a message if it belongs to this subsystem of netfilter.
pub(crate) fn object<M: Message>(message: wire::Message<'_>) -> Result<Option<M>, DecodeError> {
    Ok(match message.decode::<NetfilterMessage>()?.payload {
        NetlinkPayload::InnerMessage(message) => M::of(message.inner),
        _ => None,
    })
}
