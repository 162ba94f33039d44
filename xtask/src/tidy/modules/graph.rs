// SPDX-License-Identifier: Apache-2.0

//! Which module imports which, between the children of each module.
//!
//! An arrow goes from one child of a module to another if anything in or below the first names
//! something that is defined in or below the second. A name that a module only re-exports counts for
//! where it is defined. What a module defines itself, its children share: a child that takes
//! `super::Error` from its parent, and a parent that calls its children, make no arrow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::Tree;
use crate::tidy::Finding;

/// Re-exports of re-exports are followed this far: a circle of them does not compile.
const DEPTH: usize = 16;

/// One import for an arrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The file that imports.
    pub file: String,
    /// The line of the import, from 1.
    pub line: usize,
}

/// The imports of a crate.
pub struct Graph<'a> {
    tree: &'a Tree,
    /// From and to; the first import found is kept for each. Both are children of the same module.
    arrows: BTreeMap<(usize, usize), Import>,
}

impl<'a> Graph<'a> {
    /// Resolves every path of `tree`.
    pub fn new(tree: &'a Tree) -> Self {
        let mut arrows = BTreeMap::new();
        for (from, module) in tree.modules.iter().enumerate() {
            for (line, path) in &module.paths {
                let Some(to) = resolve(tree, from, path, DEPTH) else {
                    continue;
                };
                let apart = tree.ancestors(from).into_iter().zip(tree.ancestors(to));
                let Some(arrow) = apart.into_iter().find(|(from, to)| from != to) else {
                    continue;
                };
                arrows.entry(arrow).or_insert_with(|| Import {
                    file: module.file.clone(),
                    line: *line,
                });
            }
        }
        Self { tree, arrows }
    }

    /// The names of the children of a module, which is given by its path; none if there is no such module.
    pub fn children(&self, path: &[&str]) -> Option<BTreeSet<&str>> {
        let mut module = 0;
        for name in path {
            module = *self.tree.modules[module].children.get(*name)?;
        }
        let children = self.tree.modules[module].children.keys();
        Some(children.map(String::as_str).collect())
    }

    /// The file of the crate's root.
    pub fn root(&self) -> &str {
        &self.tree.modules[0].file
    }

    /// The arrows between the children of a module, by their names.
    pub fn arrows(&self, path: &[&str]) -> Vec<(&str, &str, &Import)> {
        let name = |module: usize| self.tree.modules[module].name.as_str();
        let path = if path.is_empty() {
            "crate".to_owned()
        } else {
            path.join("::")
        };
        let between = self
            .arrows
            .iter()
            .filter(|((from, _), _)| self.tree.path(self.tree.modules[*from].parent) == path);
        between
            .map(|((from, to), import)| (name(*from), name(*to), import))
            .collect()
    }

    /// A shortest circle for each group of modules that import each other.
    pub fn circles(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut named = BTreeSet::new();
        for (from, _) in self.arrows.keys() {
            let Some(circle) = self.way_back(*from) else {
                continue;
            };
            // Each is found from every one of its modules.
            if circle.iter().all(|module| !named.contains(module)) {
                found.push(self.finding(&circle));
            }
            named.extend(circle);
        }
        found
    }

    /// The shortest way from a module back to itself, without it at the end.
    fn way_back(&self, start: usize) -> Option<Vec<usize>> {
        let mut before = BTreeMap::new();
        let mut waiting = VecDeque::from([start]);
        while let Some(at) = waiting.pop_front() {
            let next = self.arrows.range((at, 0)..(at + 1, 0));
            for (_, to) in next.map(|(arrow, _)| arrow) {
                if *to == start {
                    let mut way = vec![at];
                    let mut at = at;
                    while at != start {
                        at = before[&at];
                        way.push(at);
                    }
                    way.reverse();
                    return Some(way);
                }
                if !before.contains_key(to) {
                    before.insert(*to, at);
                    waiting.push_back(*to);
                }
            }
        }
        None
    }

    fn finding(&self, circle: &[usize]) -> Finding {
        let next = circle.iter().cycle().skip(1);
        let arrows: Vec<_> = circle.iter().copied().zip(next.copied()).collect();
        let import = |arrow: &(usize, usize)| &self.arrows[arrow];
        let first = import(&arrows[0]);
        let steps = arrows.iter().map(|arrow| {
            let Import { file, line } = import(arrow);
            let file = file.rsplit('/').next().unwrap_or(file);
            format!("{} ({file}:{line})", self.tree.path(arrow.0))
        });
        let steps: Vec<_> = steps.collect();
        let what = format!(
            "modules import each other in a circle: {} → {}",
            steps.join(" → "),
            self.tree.path(circle[0])
        );
        Finding::line(&first.file, first.line, what)
    }
}

/// The module in which that is defined what `path` names in the module `from`; none for what is
/// defined in another crate.
fn resolve(tree: &Tree, from: usize, path: &[String], depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    let (first, rest) = path.split_first()?;
    let module = &tree.modules[from];
    match first.as_str() {
        "crate" => walk(tree, 0, rest, depth),
        "self" => walk(tree, from, rest, depth),
        "super" => {
            // `super::super` goes on from the parent.
            let mut at = module.parent;
            let ups = rest.iter().take_while(|name| *name == "super").count();
            for _ in 0..ups {
                at = tree.modules[at].parent;
            }
            walk(tree, at, &rest[ups..], depth)
        }
        name => {
            if let Some(child) = module.children.get(name) {
                return walk(tree, *child, rest, depth);
            }
            let import = module.imports.get(name)?;
            if import == path || import.first() == Some(first) {
                // `use serde::Serialize`: another crate.
                return None;
            }
            let path: Vec<_> = import.iter().chain(rest).cloned().collect();
            resolve(tree, from, &path, depth)
        }
    }
}

/// Goes down from the module `at` along `names`.
fn walk(tree: &Tree, at: usize, names: &[String], depth: usize) -> Option<usize> {
    let Some((name, rest)) = names.split_first() else {
        return Some(at);
    };
    let module = &tree.modules[at];
    if let Some(child) = module.children.get(name) {
        return walk(tree, *child, rest, depth);
    }
    match module.imports.get(name) {
        // A re-export of this crate's; of another crate's it belongs to who exports it.
        Some(import) => {
            let path: Vec<_> = import.iter().chain(rest).cloned().collect();
            resolve(tree, at, &path, depth).or(Some(at))
        }
        None => Some(at),
    }
}

#[cfg(test)]
mod tests;
