// SPDX-License-Identifier: Apache-2.0

//! The names of the loaded BPF programs, by which ours are told from others. The kernel lists them to
//! processes with `SYS_ADMIN` only; a program whose name could not be read is not taken for another one.

use std::collections::BTreeMap;

use aya::programs::{ProgramError, ProgramInfo, loaded_programs};

/// The names that could be read, and what went wrong.
#[derive(Debug)]
pub struct Names {
    /// By id; none for a program that has no name.
    names: BTreeMap<u32, Option<String>>,
    /// The first error.
    error: Option<ProgramError>,
}

/// The name of a program is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unnamed {
    /// The list could not be read, or not to its end.
    #[error("cannot read the name of BPF program {id}")]
    Unread {
        /// Its id.
        id: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was loaded after the list was read.
    #[error("BPF program {id} is not in the list of programs: it is new")]
    New {
        /// Its id.
        id: u32,
    },
}

impl Names {
    /// Asks the kernel.
    pub fn read() -> Self {
        Self::from_list(loaded_programs().map(|program| {
            let program = program?;
            Ok((program.id(), name_of(&program)))
        }))
    }

    /// From the list as it is read; it ends with an error if the next program cannot be found.
    pub fn from_list(
        list: impl Iterator<Item = Result<(u32, Option<String>), ProgramError>>,
    ) -> Self {
        let mut read = Self {
            names: BTreeMap::new(),
            error: None,
        };
        for program in list {
            match program {
                Ok((id, name)) => {
                    read.names.insert(id, name);
                }
                // One that was unloaded meanwhile is an error too: it is attached nowhere.
                Err(error) => {
                    read.error.get_or_insert(error);
                }
            }
        }
        read
    }

    /// The name of a program, or its id where it has none that is known.
    pub fn of(&self, id: u32) -> String {
        let name = self.names.get(&id).cloned().flatten();
        name.unwrap_or_else(|| format!("program {id}"))
    }

    /// Makes sure that the names of these programs were read.
    ///
    /// # Errors
    ///
    /// If one was not.
    pub fn check(&self, ids: &[u32]) -> Result<(), Unnamed> {
        let Some(id) = ids.iter().copied().find(|id| !self.names.contains_key(id)) else {
            return Ok(());
        };
        Err(match &self.error {
            Some(error) => Unnamed::Unread {
                id,
                source: std::io::Error::other(error.to_string()),
            },
            None => Unnamed::New { id },
        })
    }
}

fn name_of(program: &ProgramInfo) -> Option<String> {
    let name = program.name_as_str().filter(|name| !name.is_empty());
    name.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> ProgramError {
        ProgramError::IOError(std::io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn a_list_that_ends_early_names_nobody_else() {
        let named = |id, name: &str| Ok((id, Some(name.to_owned())));
        let read = |list: Vec<_>| Names::from_list(list.into_iter());
        let whole = read(vec![named(3, "vip_connect4"), Ok((4, None))]);
        assert_eq!(
            (&*whole.of(3), &*whole.of(4)),
            ("vip_connect4", "program 4")
        );
        assert!(whole.check(&[3, 4]).is_ok());
        assert!(matches!(whole.check(&[5]), Err(Unnamed::New { id: 5 })));
        // Nothing at all, as without SYS_ADMIN, and an end in the middle.
        for list in [
            vec![Err(failure())],
            vec![named(3, "other"), Err(failure())],
        ] {
            let cut = read(list);
            assert!(matches!(cut.check(&[3, 4]), Err(Unnamed::Unread { .. })));
        }
        // An error about a program that is not attached does not matter.
        let other = read(vec![Err(failure()), named(3, "vip_connect4")]);
        assert!(other.check(&[3]).is_ok());
    }
}
