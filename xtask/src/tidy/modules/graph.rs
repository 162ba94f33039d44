// SPDX-License-Identifier: Apache-2.0

//! The imports between the children of each module.
//!
//! There is an arrow from one child of a module to another if a path in or below the first names an item that is
//! defined in or below the second. A name that a module only re-exports belongs to the module that defines it. The
//! children of a module share its own definitions: a child that uses `super::Error` of its parent, and a parent that
//! calls its children, cause no arrow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::Tree;
use crate::tidy::Finding;

/// The maximum depth of re-exports that are followed: a circle of them does not compile.
const DEPTH: usize = 16;

/// An import that causes an arrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The file with the import.
    pub file: String,
    /// The line of the import, from 1.
    pub line: usize,
}

/// The imports of a crate.
pub struct Graph<'a> {
    tree: &'a Tree,
    /// The arrows as pairs of source and target, with the first import that was found for each. Both are children of
    /// the same module.
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

    /// Returns the names of the children of the module with this path, or `None` if there is no such module.
    pub fn children(&self, path: &[&str]) -> Option<BTreeSet<&str>> {
        let mut module = 0;
        for name in path {
            module = *self.tree.modules[module].children.get(*name)?;
        }
        let children = self.tree.modules[module].children.keys();
        Some(children.map(String::as_str).collect())
    }

    /// Returns the file of the crate's root.
    pub fn root(&self) -> &str {
        &self.tree.modules[0].file
    }

    /// Returns the arrows between the children of a module, by their names.
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

    /// Returns a shortest circle for each group of modules that import each other.
    pub fn circles(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut named = BTreeSet::new();
        for (from, _) in self.arrows.keys() {
            let Some(circle) = self.way_back(*from) else {
                continue;
            };
            // Each circle is found once from every one of its modules.
            if circle.iter().all(|module| !named.contains(module)) {
                found.push(self.finding(&circle));
            }
            named.extend(circle);
        }
        found
    }

    /// Returns the shortest path from a module back to itself, without the module at the end.
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

/// Returns the module that defines the item which `path` names in the module `from`, or `None` if another crate defines
/// it.
fn resolve(tree: &Tree, from: usize, path: &[String], depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    let (first, rest) = path.split_first()?;
    let module = &tree.modules[from];
    match first.as_str() {
        "crate" => walk(tree, 0, rest, depth),
        "self" => walk(tree, from, rest, depth),
        "super" => {
            // `super::super` continues from the parent.
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
                // `use serde::Serialize` names another crate.
                return None;
            }
            let path: Vec<_> = import.iter().chain(rest).cloned().collect();
            resolve(tree, from, &path, depth)
        }
    }
}

/// Follows `names` downwards from the module `at`.
fn walk(tree: &Tree, at: usize, names: &[String], depth: usize) -> Option<usize> {
    let Some((name, rest)) = names.split_first() else {
        return Some(at);
    };
    let module = &tree.modules[at];
    if let Some(child) = module.children.get(name) {
        return walk(tree, *child, rest, depth);
    }
    match module.imports.get(name) {
        // A re-export from this crate is followed; a re-export from another crate belongs to the module that exports
        // it.
        Some(import) => {
            let path: Vec<_> = import.iter().chain(rest).cloned().collect();
            resolve(tree, at, &path, depth).or(Some(at))
        }
        None => Some(at),
    }
}

#[cfg(test)]
mod tests;
