// SPDX-License-Identifier: Apache-2.0

//! The nfnetlink socket: transactions, single requests and dumps, for every subsystem of netfilter.

pub(super) mod answers;
mod error;
mod message;

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as RawSocket, SocketAddr};

use self::answers::{Answers, Raw, messages_in};
pub use self::error::Error;
pub use self::message::Message;

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h: which subsystem a batch is for.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// How often a dump that another writer interrupted is begun anew.
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
    /// If the kernel has no nfnetlink or refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let mut inner = RawSocket::new(NETLINK_NETFILTER).map_err(Error::Open)?;
        inner.bind_auto().map_err(Error::Open)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // The answer to a transaction is in the queue when send returns: nothing to wait for.
        inner.set_non_blocking(true).map_err(Error::Open)?;
        Ok(Self { inner, sequence: 0 })
    }

    /// Sends messages to nf_tables as one transaction: all of them take effect at once, or none.
    ///
    /// # Errors
    ///
    /// The kernel's first complaint.
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
            // The acknowledgement of the last one tells that all were taken.
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
            for message in messages_in::<NetfilterMessage>(&datagram) {
                let message = message?;
                if let NetlinkPayload::Error(answer) = message.payload {
                    if answer.code.is_some() {
                        refused.get_or_insert(answer.to_io());
                    } else if message.header.sequence_number == acknowledged {
                        done = true;
                    }
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
    /// The kernel's answer.
    pub fn change<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        flags: u16,
        request: M,
    ) -> Result<(), Error> {
        self.request(what, family, request, flags | NLM_F_ACK, |_| {})
    }

    /// Asks for one object, which may not exist.
    ///
    /// # Errors
    ///
    /// If the kernel refuses for another reason than that it does not exist.
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

    /// Dumps objects. A dump that changes of others interrupted is repeated.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the dump is interrupted again and again; never a part of it.
    pub fn dump<M: Message>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &M,
    ) -> Result<Vec<M>, Error> {
        self.fold(what, family, request, Vec::push)
    }

    /// Dumps objects and gives each of them to `each` as it is read, for dumps that are too long to
    /// be kept. A dump that changes of others interrupted is repeated with a new `T`.
    ///
    /// # Errors
    ///
    /// As [`Socket::dump`].
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

    /// Like [`Socket::fold`], with the attributes of each message as they came: to take every rule of
    /// a node with 20,000 of them apart costs seconds, and to look for a few bytes next to nothing.
    ///
    /// # Errors
    ///
    /// As [`Socket::dump`].
    pub fn fold_raw<M: Message, T: Default>(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &M,
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, Error> {
        again(M::SUBSYSTEM, what, |result| {
            self.send(family, request.clone(), NLM_F_DUMP)?;
            let answers = Answers::to_dump(self.sequence);
            self.answers(answers, M::SUBSYSTEM, what, |Raw(attributes)| {
                each(result, &attributes);
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
        let answers = if flags & NLM_F_DUMP == NLM_F_DUMP {
            Answers::to_dump(self.sequence)
        } else {
            Answers::to(self.sequence)
        };
        self.answers(answers, M::SUBSYSTEM, what, |message: NetfilterMessage| {
            if let Some(object) = M::of(message.inner) {
                each(object);
            }
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

    /// Reads what answers the last request, to its end.
    fn answers<P: NetlinkDeserializable<Error = DecodeError>>(
        &mut self,
        mut answers: Answers,
        subsystem: &'static str,
        what: &str,
        mut each: impl FnMut(P),
    ) -> Result<(), Error> {
        // Each read makes the kernel put the next part of a dump into the queue.
        while let Some(datagram) = self.receive()? {
            answers.read(&datagram, &mut each)?;
        }
        answers.end(subsystem, what)
    }

    fn push(&mut self, buffer: &mut Vec<u8>, flags: u16, message: NetfilterMessage) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = buffer.len();
        // Messages in a datagram start at multiples of four (NLMSG_ALIGNTO).
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }

    /// A message larger than the send buffer is refused, and the default one has room for a few
    /// thousand members of a set.
    fn make_room(&self, length: usize) -> io::Result<()> {
        const ALWAYS_THERE: usize = 1 << 16;
        if length <= ALWAYS_THERE {
            return Ok(());
        }
        let wanted = libc::c_int::try_from(length).map_err(io::Error::other)?;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
        // SAFETY: the pointer is to an integer of the size that is given.
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

/// Makes a dump until nobody's changes interrupt it, each time with a new result.
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
