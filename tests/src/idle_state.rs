// SPDX-License-Identifier: Apache-2.0

//! Everything that an agent has on a node while nothing happens, as text: to see that nothing is
//! missing and nothing is there twice after much has happened.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::bpf_objects::{BpfObjects, files_below};
use crate::node::Node;
use crate::{cmd, snapshot};

/// How long the kernel may take to free released objects, on a loaded machine.
const SETTLE: Duration = Duration::from_secs(20);

/// The objects of an agent on a node while nothing happens.
#[derive(Debug)]
pub struct IdleState {
    objects: BpfObjects,
    first: String,
}

impl IdleState {
    /// Records the present state. To be called when an agent has just become ready for the first
    /// time.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn remember(node: &Node) -> Result<Self> {
        let mut objects = BpfObjects::default();
        // The kernel first frees the objects of the probes at start.
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

    /// Remembers which maps are pinned, see [`BpfObjects::note`].
    ///
    /// # Errors
    /// As it.
    pub fn note(&mut self, node: &Node) -> Result<()> {
        self.objects.note(node)
    }

    /// The same is there, nothing more and nothing less.
    ///
    /// # Errors
    /// When it does not become so.
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
