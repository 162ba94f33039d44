// SPDX-License-Identifier: Apache-2.0

//! Reads the requirements of a program or library: its interpreter, and the libraries that it
//! names.

use anyhow::{Context as _, Result, bail};
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, read::ReadRef as _};

/// The requirements of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The dynamic loader's path; `None` for a library and for a static program.
    pub interpreter: Option<String>,
    /// The libraries in `DT_NEEDED`, by file name.
    pub libraries: Vec<String>,
}

/// Reads the requirements of a file. Returns `None` if it is not an ELF file.
///
/// # Errors
/// Returns an error if the file is damaged.
pub fn needs(data: &[u8]) -> Result<Option<Needs>> {
    if !data.starts_with(&elf::ELFMAG) {
        return Ok(None);
    }
    let header = FileHeader64::<Endianness>::parse(data).context("it has no ELF header")?;
    let endian = header.endian().context("its byte order is unknown")?;
    let mut needs = Needs::default();
    let segments = header.program_headers(endian, data)?;
    for segment in segments {
        if let Some(path) = segment.interpreter(endian, data)? {
            needs.interpreter = Some(text(path)?);
        }
    }
    for segment in segments {
        let Some(dynamic) = segment.dynamic(endian, data)? else {
            continue;
        };
        let value = |tag| {
            dynamic
                .iter()
                .find(|entry| entry.tag(endian) == tag)
                .map(|entry| entry.d_val(endian))
        };
        let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else {
            continue;
        };
        let strings = segments
            .iter()
            .find_map(|segment| segment.data_range(endian, data, address, size).ok()?)
            .context("its table of names is in no segment")?;
        for entry in dynamic {
            if entry.tag(endian) == elf::DT_NEEDED {
                let at = entry.d_val(endian);
                let name = strings
                    .read_bytes_at_until(at..size, 0)
                    .ok()
                    .context("a library's name is beyond its table")?;
                needs.libraries.push(text(name)?);
            }
        }
    }
    if needs.libraries.iter().any(|name| name.contains('/')) {
        bail!("it names a library by path: {:?}", needs.libraries);
    }
    Ok(Some(needs))
}

fn text(bytes: &[u8]) -> Result<String> {
    Ok(std::str::from_utf8(bytes)
        .context("a name in it is no UTF-8")?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_no_program() {
        assert_eq!(needs(b"#!/bin/sh\n").unwrap(), None);
        assert!(needs(b"\x7fELF and no more").is_err());
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&own).unwrap().unwrap();
        assert!(needs.interpreter.unwrap().contains("ld-"), "no loader");
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.")));
    }
}
