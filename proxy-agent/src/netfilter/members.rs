// SPDX-License-Identifier: Apache-2.0

//! Members of a set of ours: listed, and deleted one by one. Which of them should be there is not decided
//! here.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};

use super::table::Table;
use super::{Error, Socket};

/// Members per transaction, each of which takes the kernel a grace period.
const MEMBERS_PER_TRANSACTION: usize = 500;

impl Table {
    /// The keys of the members of a set, as they stand in the kernel; none if there is no such set.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer completely.
    pub fn members(&self, set: &str, socket: &mut Socket) -> Result<Vec<Vec<u8>>, Error> {
        let request = NfTablesMessage::GetSetElement(self.elements(set, Vec::new()));
        let what = format!("read the members of set {set} of table {}", self.title());
        let messages = match socket.dump(&what, self.family, &request) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            messages => messages?,
        };
        let mut keys = Vec::new();
        for message in messages {
            let NfTablesMessage::NewSetElement(elements) = message else {
                continue;
            };
            for attribute in elements.attributes {
                if let SetElementList::Elements(elements) = attribute {
                    keys.extend(elements.into_iter().filter_map(key));
                }
            }
        }
        Ok(keys)
    }

    /// Deletes members of a set by their keys. One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn delete_members(
        &self,
        set: &str,
        keys: &[Vec<u8>],
        socket: &mut Socket,
    ) -> Result<(), Error> {
        let what = format!("delete members of set {set} of table {}", self.title());
        let mut delete = |keys: &[Vec<u8>]| {
            let message = NfTablesMessage::DeleteSetElement(self.elements(set, keys.to_vec()));
            match socket.transact(&what, vec![(0, self.family, message)]) {
                Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
                result => result.map(|()| true),
            }
        };
        for keys in keys.chunks(MEMBERS_PER_TRANSACTION) {
            // All or none: one of them is gone already.
            if !delete(keys)? {
                for key in keys {
                    delete(std::slice::from_ref(key))?;
                }
            }
        }
        Ok(())
    }

    fn elements(&self, set: &str, keys: Vec<Vec<u8>>) -> SetElementMessage {
        let mut attributes = vec![
            SetElementList::Table(self.name.clone()),
            SetElementList::Set(set.to_owned()),
        ];
        if !keys.is_empty() {
            let element = |key| {
                ListAttribute::Element(vec![SetElementAttribute::Key(DataAttribute::Value(key))])
            };
            attributes.push(SetElementList::Elements(
                keys.into_iter().map(element).collect(),
            ));
        }
        SetElementMessage { attributes }
    }
}

/// The key of a member.
fn key(element: ListAttribute<SetElementAttribute>) -> Option<Vec<u8>> {
    let ListAttribute::Element(attributes) = element else {
        return None;
    };
    attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => Some(key),
            _ => None,
        })
}
