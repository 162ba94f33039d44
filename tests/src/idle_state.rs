// SPDX-License-Identifier: Apache-2.0

//! Everything that an idle agent has on a node, as text: the tests compare it to see that, after many changes, no
//! object is missing and none exists twice.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::bpf_objects::{BpfObjects, files_below};
use crate::node::Node;
use crate::{cmd, snapshot};

/// The maximum time until the kernel has freed released objects, with a margin for a loaded machine.
const SETTLE: Duration = Duration::from_secs(20);

/// The objects of an idle agent on a node.
#[derive(Debug)]
pub struct IdleState {
    objects: BpfObjects,
    first: String,
}

impl IdleState {
    /// Records the present state. The caller must call it just after an agent has become ready for the first time.
    ///
    /// # Errors
    /// Returns an error if a tool fails.
    pub fn remember(node: &Node) -> Result<Self> {
        let mut objects = BpfObjects::default();
        // The kernel first frees the objects of the probes that the agent ran at its start.
        let mut last = String::new();
        let first = cmd::wait_until(SETTLE, "the first start to settle", || {
            let now = everything(node, &mut objects)?;
            let same = now == last;
            last.clone_from(&now);
            std::thread::sleep(Duration::from_millis(100));
            Ok(same.then_some(now))
        })?;
        Ok(Self { objects, first })
    }

    /// Records which maps are pinned, see [`BpfObjects::note`].
    ///
    /// # Errors
    /// Returns the same errors as [`BpfObjects::note`].
    pub fn note(&mut self, node: &Node) -> Result<()> {
        self.objects.note(node)
    }

    /// Waits until exactly the recorded objects exist.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn is_as_at_first(&mut self, node: &Node) -> Result<()> {
        let mut difference = String::new();
        let settled = cmd::wait_until(SETTLE, "everything to be as at first", || {
            let now = everything(node, &mut self.objects)?;
            match snapshot::difference(&self.first, &now) {
                None => return Ok(Some(())),
                Some(lines) => difference = lines,
            }
            std::thread::sleep(Duration::from_millis(100));
            Ok(None)
        });
        match settled {
            Err(error) if !difference.is_empty() => bail!("{error}:\n{difference}"),
            result => result,
        }
    }
}

fn everything(node: &Node, objects: &mut BpfObjects) -> Result<String> {
    let mut text = snapshot::lasting(&node.netns)?;
    for directory in [node.agent_bpffs(), node.run_dir()] {
        for file in files_below(&directory) {
            let file = file
                .strip_prefix(node.dir())
                .context("a file of the node")?;
            writeln!(text, "{}", file.display())?;
        }
    }
    write!(text, "{}", objects.take(node)?)?;
    Ok(text)
}
