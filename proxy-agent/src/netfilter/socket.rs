// SPDX-License-Identifier: Apache-2.0

//! The nfnetlink socket: transactions and dumps.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as RawSocket, SocketAddr};

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h: which subsystem a batch is for.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// How often a dump that another writer interrupted is begun anew.
const DUMP_ATTEMPTS: usize = 10;

/// Why nf_tables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no nf_tables, or does not let this process use it.
    #[error(
        "cannot open a netfilter netlink socket; the kernel needs CONFIG_NF_TABLES \
         (`modprobe nf_tables`)"
    )]
    Open(#[source] io::Error),
    /// The socket broke.
    #[error("cannot talk to nf_tables")]
    Io(#[source] io::Error),
    /// The kernel refused.
    #[error("nf_tables refused to {what}")]
    Refused {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        #[source]
        answer: io::Error,
    },
    /// The answer is not a netlink message.
    #[error("cannot understand the answer of nf_tables")]
    Decode(#[source] DecodeError),
    /// The kernel did not answer at all.
    #[error("nf_tables did not answer to the request to {what}")]
    NoAnswer {
        /// What was being done.
        what: String,
    },
    /// Other writers changed the tables during every attempt to read them.
    #[error("nf_tables changed during each of {DUMP_ATTEMPTS} attempts to {what}")]
    Interrupted {
        /// What was being done.
        what: String,
    },
}

impl Error {
    /// The kernel's answer, if it was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { answer, .. } => answer.raw_os_error(),
            _ => None,
        }
    }
}

/// A netlink socket for nf_tables.
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

    /// Sends messages as one transaction: all of them take effect at once, or none.
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
        self.inner.send(&buffer, 0).map_err(Error::Io)?;

        let mut done = false;
        let mut refused = None;
        while let Some(datagram) = self.receive()? {
            for message in messages_in(&datagram) {
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
                what: what.to_owned(),
                answer,
            }),
            None if done => Ok(()),
            None => Err(Error::NoAnswer {
                what: what.to_owned(),
            }),
        }
    }

    /// Asks for one object, which may not exist.
    ///
    /// # Errors
    ///
    /// If the kernel refuses for another reason than that it does not exist.
    pub fn get(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: NfTablesMessage,
    ) -> Result<Option<NfTablesMessage>, Error> {
        match self.request(what, family, request, NLM_F_ACK) {
            Ok(objects) => Ok(objects.into_iter().next()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Dumps objects. A dump that changes of others interrupted is repeated.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the dump is interrupted again and again; never a part of it.
    pub fn dump(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: &NfTablesMessage,
    ) -> Result<Vec<NfTablesMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.request(what, family, request.clone(), NLM_F_DUMP) {
                Err(Error::Interrupted { .. }) => {}
                result => return result,
            }
        }
        Err(Error::Interrupted {
            what: what.to_owned(),
        })
    }

    fn request(
        &mut self,
        what: &str,
        family: NetfilterProtoFamily,
        request: NfTablesMessage,
        flags: u16,
    ) -> Result<Vec<NfTablesMessage>, Error> {
        let mut buffer = Vec::new();
        let header = NetfilterHeader::new(family, 0, 0);
        self.push(&mut buffer, flags, NetfilterMessage::new(header, request));
        self.inner.send(&buffer, 0).map_err(Error::Io)?;

        let mut objects = Vec::new();
        let mut interrupted = false;
        let mut answer = None;
        // Each read makes the kernel put the next part of a dump into the queue.
        while let Some(datagram) = self.receive()? {
            for message in messages_in(&datagram) {
                let message = message?;
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::NfTables(object),
                        ..
                    }) => objects.push(object),
                    NetlinkPayload::Done(done) => answer = Some(done.code),
                    NetlinkPayload::Error(error) => answer = Some(error.raw_code()),
                    _ => {}
                }
            }
        }
        match answer {
            Some(0) if interrupted => Err(Error::Interrupted {
                what: what.to_owned(),
            }),
            Some(0) => Ok(objects),
            Some(code) if code == -libc::EINTR || code == -libc::EAGAIN => {
                Err(Error::Interrupted {
                    what: what.to_owned(),
                })
            }
            Some(code) => Err(Error::Refused {
                what: what.to_owned(),
                answer: io::Error::from_raw_os_error(code.abs()),
            }),
            None => Err(Error::NoAnswer {
                what: what.to_owned(),
            }),
        }
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

    fn receive(&self) -> Result<Option<Vec<u8>>, Error> {
        match self.inner.recv_from_full() {
            Ok((datagram, _)) => Ok(Some(datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

/// The messages of one datagram.
fn messages_in(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<NetfilterMessage>, Error>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(Error::Decode);
        rest = match &message {
            Ok(message) => {
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest.get(length.next_multiple_of(4)..).unwrap_or(&[])
            }
            Err(_) => &[],
        };
        Some(message)
    })
}
