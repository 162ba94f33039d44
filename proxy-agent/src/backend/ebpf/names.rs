// SPDX-License-Identifier: Apache-2.0

//! Names of the loaded BPF programs, which identify the agent's programs. The kernel lists programs only for processes with
//! `SYS_ADMIN`; a program whose name could not be read is never assumed to be foreign.

use std::collections::BTreeMap;

use aya::programs::{ProgramError, ProgramInfo, loaded_programs};

/// The names that could be read, and the first error.
#[derive(Debug)]
pub struct Names {
    /// By id; none for a program without a name.
    names: BTreeMap<u32, Option<String>>,
    /// The first error.
    error: Option<ProgramError>,
}

/// The name of a program is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Unnamed {
    /// The list could not be read completely.
    #[error("cannot read the name of BPF program {id}")]
    Unread {
        /// Its id.
        id: u32,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The program was loaded after the list was read.
    #[error("BPF program {id} is not in the list of programs: it is new")]
    New {
        /// Its id.
        id: u32,
    },
}

impl Names {
    /// Reads the list from the kernel.
    pub fn read() -> Self {
        Self::from_list(loaded_programs().map(|program| {
            let program = program?;
            Ok((program.id(), name_of(&program)))
        }))
    }

    /// Builds the names from a list of programs; its last item may be an error.
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
                // A program that was unloaded in the meantime is an error too, but it is not attached anywhere.
                Err(error) => {
                    read.error.get_or_insert(error);
                }
            }
        }
        read
    }

    /// The name of a program, or its id if the name is unknown.
    pub fn of(&self, id: u32) -> String {
        let name = self.names.get(&id).cloned().flatten();
        name.unwrap_or_else(|| format!("program {id}"))
    }

    /// Checks that the names of these programs were read.
    ///
    /// # Errors
    ///
    /// The first program whose name was not read.
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
    fn a_list_that_ends_early_is_not_complete() {
        let named = |id, name: &str| Ok((id, Some(name.to_owned())));
        let read = |list: Vec<_>| Names::from_list(list.into_iter());
        let whole = read(vec![named(3, "vip_connect4"), Ok((4, None))]);
        assert_eq!(
            (&*whole.of(3), &*whole.of(4)),
            ("vip_connect4", "program 4")
        );
        assert!(whole.check(&[3, 4]).is_ok());
        assert!(matches!(whole.check(&[5]), Err(Unnamed::New { id: 5 })));
        // An empty list, as without SYS_ADMIN, and one that ends early.
        for list in [
            vec![Err(failure())],
            vec![named(3, "other"), Err(failure())],
        ] {
            let cut = read(list);
            assert!(matches!(cut.check(&[3, 4]), Err(Unnamed::Unread { .. })));
        }
        // An error about a program that is not attached is irrelevant.
        let other = read(vec![Err(failure()), named(3, "vip_connect4")]);
        assert!(other.check(&[3]).is_ok());
    }
}
