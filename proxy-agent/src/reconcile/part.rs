// SPDX-License-Identifier: Apache-2.0

//! The parts of the node, by the names that reports, logs and metrics have for them. Each module takes its
//! name from here, so that what lists all parts cannot miss one.

/// Declares each part and the list of them.
macro_rules! parts {
    ($($(#[$doc:meta])+ $part:ident = $name:literal;)+) => {
        $($(#[$doc])+ pub const $part: &str = $name;)+

        /// All parts.
        pub const ALL: &[&str] = &[$($part),+];
    };
}

parts! {
    /// The VIPs and the link that carries them.
    LINK = "link";
    /// Which backend is used.
    BACKEND = "backend";
    /// The programs, maps and routes of backend `ebpf`.
    EBPF = "ebpf";
    /// The tables of backend `nftables`.
    NFTABLES = "nftables";
    /// The rules and sets of backend `iptables`.
    IPTABLES = "iptables";
    /// The proxy's own connections.
    UPSTREAM = "upstream";
    /// Stale entries of conntrack.
    CONNTRACK = "conntrack";
    /// Which links bring packets from outside.
    GUARD = "guard";
    /// What is known of an agent that does not run, and its files.
    STATE = "state";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::ALL;

    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// A name of a part that does not come from here would be missing in the list.
    #[test]
    fn no_module_has_a_part_of_its_own() {
        let mut files = Vec::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut files,
        );
        let mut count = 0;
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().map(str::trim);
            // Spelled in two pieces, since this file is read too.
            let declared = concat!("const ", "PART");
            for line in lines.filter(|line| line.contains(declared)) {
                let (_, value) = line.split_once('=').unwrap();
                let is_from_here = value.trim().starts_with("part::");
                assert!(is_from_here, "{}: {line}", file.display());
                count += 1;
            }
        }
        assert_eq!(count, ALL.len(), "each part has one module");
        assert_eq!(ALL.iter().collect::<BTreeSet<_>>().len(), ALL.len());
    }
}
