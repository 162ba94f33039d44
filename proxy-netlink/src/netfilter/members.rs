// SPDX-License-Identifier: Apache-2.0

//! Lists the members of one of this project's sets, and deletes single ones.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};

use super::elements::fold_elements;
use super::table::Table;
use super::{Error, Socket};

/// The maximum number of members per transaction. Each transaction costs the kernel a grace period.
const MEMBERS_PER_TRANSACTION: usize = 500;

impl Table {
    /// Returns the keys of the members of a set in the kernel's format, or an empty list if there is no such set.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel's response is incomplete.
    pub fn members(&self, set: &str, socket: &mut Socket) -> Result<Vec<Vec<u8>>, Error> {
        let table = (self.family, self.name.as_str());
        let keys = fold_elements(socket, table, set, |keys: &mut Vec<_>, element| {
            keys.extend(element.key);
        })?;
        Ok(keys.unwrap_or_default())
    }

    /// Deletes members of a set by their keys. A member that no longer exists is not an error.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error.
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
            // A transaction fails as a whole if one of the members no longer exists, so each is then deleted
            // individually.
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
