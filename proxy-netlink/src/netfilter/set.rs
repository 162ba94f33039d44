// SPDX-License-Identifier: Apache-2.0

//! A set that rules fill and whose members expire, as a value: its creation, its initial members and its observation.
//! `expression` contains the expressions that look up and add members.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetDescription,
    SetElementAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use super::{Error, Family, Socket, title};

/// The maximum number of members per message: a list of members has at most 64 KiB.
const MEMBERS_PER_MESSAGE: usize = 500;
/// Every field of a key starts at a multiple of this number of bytes.
const ALIGNMENT: usize = 4;

/// A named set whose members are added and refreshed by packets and expire (`flags dynamic,timeout`).
#[derive(Debug, Clone)]
pub struct Set {
    /// The name.
    pub name: &'static str,
    /// The fields of a member's key.
    pub key: &'static [Field],
    /// The time after which a member expires unless it is refreshed; whole milliseconds.
    pub timeout: Duration,
    /// The maximum number of members.
    pub size: u32,
    /// The comment that nft displays with the set.
    pub comment: &'static str,
    /// The members with which the set is created.
    pub members: Vec<Vec<Value>>,
}

/// One field of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// An address of the table's family.
    Address,
    /// A TCP port.
    Port,
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The value of a [`Field::Address`].
    Address(IpAddr),
    /// The value of a [`Field::Port`].
    Port(u16),
}

/// The properties of a set that are compared: all except its members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetOutline {
    name: String,
    flags: u32,
    key: Option<(u32, u32)>,
    /// The timeout, in milliseconds.
    timeout: Option<u64>,
    size: Option<u32>,
    user_data: Vec<u8>,
}

impl Field {
    /// Returns the length of a value in bytes, without padding.
    #[must_use]
    pub fn length(self, family: Family) -> usize {
        match (self, family) {
            (Self::Address, Family::IPv6) => 16,
            (Self::Address, _) => 4,
            (Self::Port, _) => 2,
        }
    }

    /// Returns the number of bytes that a value occupies in a key, with padding.
    #[must_use]
    pub fn room(self, family: Family) -> usize {
        self.length(family).next_multiple_of(ALIGNMENT)
    }

    /// Returns nft's number of the type (`enum datatypes` of nftables' `datatype.h`; nft interprets these numbers when
    /// it reads a set from the kernel).
    fn datatype(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::IPv6) => 8,
            (Self::Address, _) => 7,
            (Self::Port, _) => 13,
        }
    }
}

impl Value {
    fn write(self, key: &mut Vec<u8>) {
        match self {
            Self::Address(IpAddr::V4(ip)) => key.extend(ip.octets()),
            Self::Address(IpAddr::V6(ip)) => key.extend(ip.octets()),
            Self::Port(port) => key.extend(port.to_be_bytes()),
        }
        key.resize(key.len().next_multiple_of(ALIGNMENT), 0);
    }
}

impl Set {
    fn key_type(&self, family: Family) -> u32 {
        /// The number of bits that each type occupies in the number of a concatenation (`TYPE_BITS`).
        const TYPE_BITS: u32 = 6;
        self.key.iter().fold(0, |concatenation, field| {
            (concatenation << TYPE_BITS) | field.datatype(family)
        })
    }

    fn key_length(&self, family: Family) -> u32 {
        let length: usize = self.key.iter().map(|field| field.room(family)).sum();
        u32::try_from(length).expect("at most 64 bytes")
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the message that creates the set in the given table. `id` is the set's number within the transaction.
    #[must_use]
    pub fn creation(&self, (family, table): (Family, &str), id: u32) -> NfTablesMessage {
        NfTablesMessage::NewSet(SetMessage {
            attributes: vec![
                SetAttribute::Table(table.to_owned()),
                SetAttribute::Name(self.name.to_owned()),
                SetAttribute::Flags(flags()),
                SetAttribute::KeyType(self.key_type(family)),
                SetAttribute::KeyLen(self.key_length(family)),
                SetAttribute::Id(id),
                SetAttribute::Timeout(self.milliseconds()),
                SetAttribute::Description(vec![SetDescription::Size(self.size)]),
                SetAttribute::UserData(user_data::encode(self)),
            ],
        })
    }

    /// Returns the messages that add the initial members to the set in the given table.
    pub fn insertions(&self, table: &str) -> impl Iterator<Item = NfTablesMessage> {
        let room = usize::try_from(self.size).unwrap_or(usize::MAX);
        let members = &self.members[..self.members.len().min(room)];
        members.chunks(MEMBERS_PER_MESSAGE).map(|members| {
            let elements = members.iter().map(|member| {
                let mut key = Vec::new();
                for value in member {
                    value.write(&mut key);
                }
                ListAttribute::Element(vec![SetElementAttribute::Key(DataAttribute::Value(key))])
            });
            NfTablesMessage::NewSetElement(SetElementMessage {
                attributes: vec![
                    SetElementList::Table(table.to_owned()),
                    SetElementList::Set(self.name.to_owned()),
                    SetElementList::Elements(elements.collect()),
                ],
            })
        })
    }

    /// Returns the outline that [`Set::observe`] returns if the set exists as described.
    #[must_use]
    pub fn outline(&self, family: Family) -> SetOutline {
        SetOutline {
            name: self.name.to_owned(),
            flags: flags().bits(),
            key: Some((self.key_type(family), self.key_length(family))),
            timeout: Some(self.milliseconds()),
            size: Some(self.size),
            user_data: user_data::encode(self),
        }
    }

    /// Reads the set with this name from the kernel.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel does not respond.
    pub fn observe(
        &self,
        (family, table): (Family, &str),
        socket: &mut Socket,
    ) -> Result<Option<SetOutline>, Error> {
        let request = NfTablesMessage::GetSet(SetMessage {
            attributes: vec![
                SetAttribute::Table(table.to_owned()),
                SetAttribute::Name(self.name.to_owned()),
            ],
        });
        let what = format!("read set {} of table {}", self.name, title(family, table));
        let Some(NfTablesMessage::NewSet(set)) = socket.get(&what, family, request)? else {
            return Ok(None);
        };
        Ok(Some(set.into()))
    }
}

impl From<SetMessage> for SetOutline {
    fn from(set: SetMessage) -> Self {
        let mut outline = Self::default();
        let (mut key_type, mut key_length) = (None, None);
        for attribute in set.attributes {
            match attribute {
                SetAttribute::Name(name) => outline.name = name,
                SetAttribute::Flags(flags) => outline.flags = flags.bits(),
                SetAttribute::KeyType(value) => key_type = Some(value),
                SetAttribute::KeyLen(value) => key_length = Some(value),
                SetAttribute::Timeout(value) => outline.timeout = Some(value),
                SetAttribute::Description(parts) => {
                    outline.size = parts.iter().find_map(|part| match part {
                        SetDescription::Size(size) => Some(*size),
                        _ => None,
                    });
                }
                SetAttribute::UserData(data) => outline.user_data = data,
                _ => {}
            }
        }
        outline.key = key_type.zip(key_length);
        outline
    }
}

fn flags() -> SetFlags {
    SetFlags::Timeout | SetFlags::Eval
}

/// The data that nft stores with a set in order to display it. The kernel only stores it.
///
/// The numbers are those of nftables' own format (`NFTNL_UDATA_SET_…` of libnftnl), compared with the data that nft
/// 1.0.6 sends.
mod user_data {
    use super::Set;

    /// Encodes an attribute with a type and a length of one byte each.
    fn attribute(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u8::try_from(value.len()).expect("comments and keys are short");
        [&[kind, length], value].concat()
    }

    pub fn encode(set: &Set) -> Vec<u8> {
        const KEY_BYTE_ORDER: u8 = 0;
        const COMMENT: u8 = 7;

        let mut data = attribute(KEY_BYTE_ORDER, &0_u32.to_ne_bytes());
        data.extend(attribute(COMMENT, format!("{}\0", set.comment).as_bytes()));
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(comment: &'static str) -> Set {
        Set {
            name: "opening",
            key: &[Field::Address, Field::Port],
            timeout: Duration::from_secs(5),
            size: 65536,
            comment,
            members: Vec::new(),
        }
    }

    /// The bytes that nft 1.0.6 sends, from its `--debug=mnl`.
    #[test]
    fn user_data_is_what_nft_itself_writes() {
        let bytes = b"\x00\x04\x00\x00\x00\x00\x07\x06hello\x00";
        assert_eq!(user_data::encode(&opening("hello")), bytes);
    }

    #[test]
    fn keys_have_nfts_types_and_lengths() {
        let set = opening("");
        assert_eq!(set.key_type(Family::IPv4), 0x1cd);
        assert_eq!(set.key_type(Family::IPv6), 0x20d);
        assert_eq!(set.key_length(Family::IPv4), 8);
        assert_eq!(set.key_length(Family::IPv6), 20);
    }

    #[test]
    fn members_are_aligned_and_split_into_messages_and_no_more_than_there_is_room_for() {
        let member = vec![
            Value::Address("10.0.0.1".parse().unwrap()),
            Value::Port(443),
        ];
        let mut set = Set {
            members: vec![member; 1200],
            ..opening("")
        };
        let messages: Vec<_> = set.insertions("test").collect();
        assert_eq!(messages.len(), 3);
        let text = format!("{:?}", messages[0]);
        assert!(
            text.contains("Value([10, 0, 0, 1, 1, 187, 0, 0])"),
            "{text}"
        );
        set.size = 500;
        assert_eq!(set.insertions("test").count(), 1);
    }
}
