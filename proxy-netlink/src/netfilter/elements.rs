// SPDX-License-Identifier: Apache-2.0

//! The elements of sets and maps of nf_tables, regardless of the program that created them.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage, VerdictAttribute,
};

use super::{Error, Family, Socket, title};

/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// An element of a set or a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key, or `None` for the catch-all element, which stands for all other keys.
    pub key: Option<Vec<u8>>,
    /// The value in a map. It is `None` in a set, and for a value that is a verdict.
    pub value: Option<Vec<u8>>,
    /// The verdict in a verdict map.
    pub verdict: Option<Vec<VerdictAttribute>>,
    /// In a set of intervals: true if an interval ends before this key, false if one begins with it.
    pub ends_interval: bool,
}

impl From<Vec<SetElementAttribute>> for Element {
    fn from(attributes: Vec<SetElementAttribute>) -> Self {
        let mut element = Self::default();
        for attribute in attributes {
            match attribute {
                SetElementAttribute::Key(DataAttribute::Value(bytes)) => element.key = Some(bytes),
                SetElementAttribute::Data(DataAttribute::Value(bytes)) => {
                    element.value = Some(bytes);
                }
                SetElementAttribute::Data(DataAttribute::Verdict(verdict)) => {
                    element.verdict = Some(verdict);
                }
                SetElementAttribute::Flags(flags) => {
                    element.ends_interval = flags.bits() & INTERVAL_END != 0;
                }
                _ => {}
            }
        }
        element
    }
}

/// Returns the elements in a message.
pub fn elements_in(message: SetElementMessage) -> impl Iterator<Item = Element> {
    let lists = message.attributes.into_iter().filter_map(|attribute| {
        let SetElementList::Elements(elements) = attribute else {
            return None;
        };
        Some(elements)
    });
    lists.flatten().filter_map(|element| match element {
        ListAttribute::Element(attributes) => Some(attributes.into()),
        _ => None,
    })
}

/// Reads the elements of a set or map and passes each of them to `each`. Returns `None` if there is no such set. A dump
/// that was interrupted by concurrent changes is repeated with a new `T`.
///
/// # Errors
///
/// Returns an error if the kernel's response is incomplete.
pub fn fold_elements<T: Default>(
    socket: &mut Socket,
    (family, table): (Family, &str),
    set: &str,
    mut each: impl FnMut(&mut T, Element),
) -> Result<Option<T>, Error> {
    let request = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
        ],
    });
    let what = format!(
        "list the elements of set {set} of table {}",
        title(family, table)
    );
    let read = socket.fold(&what, family, &request, |state, message| {
        if let NfTablesMessage::NewSetElement(message) = message {
            for element in elements_in(message) {
                each(state, element);
            }
        }
    });
    match read {
        Ok(state) => Ok(Some(state)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
