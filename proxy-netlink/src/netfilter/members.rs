// SPDX-License-Identifier: Apache-2.0

//! The members of a set of ours: lists them, and deletes single ones.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};

use super::elements::fold_elements;
use super::table::Table;
use super::{Error, Socket};

/// Members per transaction, each of which takes the kernel a grace period.
const MEMBERS_PER_TRANSACTION: usize = 500;

impl Table {
    /// The keys of the members of a set, as the kernel has them; none if there is no such set.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer completely.
    pub fn members(&self, set: &str, socket: &mut Socket) -> Result<Vec<Vec<u8>>, Error> {
        let table = (self.family, self.name.as_str());
        let keys = fold_elements(socket, table, set, |keys: &mut Vec<_>, element| {
            keys.extend(element.key);
        })?;
        Ok(keys.unwrap_or_default())
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
            // A transaction fails as a whole: one of them is gone already.
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
