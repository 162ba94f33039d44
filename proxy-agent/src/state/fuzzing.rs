// SPDX-License-Identifier: Apache-2.0

//! Arbitrary content of the state file, as of an older, a newer or a broken version.

use std::path::Path;

use super::{State, remembered_in};
use crate::time::{rfc3339, rough};

/// The file's content.
///
/// Reading and writing round-trips; the clean-up's lenient reader agrees with the strict one; every value can be
/// displayed.
pub fn state(data: &[u8]) {
    let remembered = remembered_in(data);
    let Ok(state) = serde_json::from_slice::<State>(data) else {
        return;
    };
    let settings = &state.settings;
    assert_eq!(remembered.vips, settings.vips);
    assert_eq!(remembered.interface.as_deref(), Some(&*settings.interface));
    assert_eq!(remembered.bpffs.as_ref(), Some(&settings.bpffs));
    let written = serde_json::to_vec(&state).expect("what was read can be written");
    let again: State = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, state);
    let dry_run = state.as_dry_run(Path::new("/run/proxy-agent"));
    assert!(dry_run.dry_run && !dry_run.cleanup && !dry_run.daemon);
    assert_eq!(
        settings.endpoints().count(),
        settings.vips.len() * settings.ports.len()
    );
    assert!(rfc3339(state.started).ends_with('Z'));
    assert!(!rough(settings.sync_interval).is_empty());
    assert!(!state.backend.to_string().is_empty() || state.backend.backend.is_empty());
}
