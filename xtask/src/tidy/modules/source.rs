// SPDX-License-Identifier: Apache-2.0

//! The modules of a crate as its files declare them, with the paths that each uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMod, Meta, Token, TraitItem, UseTree};

/// The feature that only fuzz targets are built with.
const FUZZING: &str = "fuzzing";

/// A crate.
pub struct Tree {
    /// The modules, parents first; the first one is the crate's root.
    pub modules: Vec<Module>,
}

/// A module, in a file of its own or not.
pub struct Module {
    /// The name; empty for the root.
    pub name: String,
    /// The index of the parent in [`Tree::modules`]; for the root, its own index.
    pub parent: usize,
    /// The file; for the root, as it was passed.
    pub file: String,
    /// The child modules by name, as indices in [`Tree::modules`].
    pub children: BTreeMap<String, usize>,
    /// The names that `use` declarations bring into scope, with the path of each.
    pub imports: BTreeMap<String, Vec<String>>,
    /// Every path with more than one segment, with its line from 1.
    pub paths: Vec<(usize, Vec<String>)>,
}

/// A function that reads a file and returns `None` if it does not exist.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Tree {
    /// Parses the crate whose root is the file `root`.
    ///
    /// # Errors
    /// Returns an error if a file is missing, or is not Rust.
    pub fn parse(root: &Path, read: Read<'_>) -> Result<Self> {
        let mut tree = Self {
            modules: Vec::new(),
        };
        let directory = root.parent().unwrap_or(Path::new("")).to_owned();
        tree.add_file("", 0, (root, &directory), read)?;
        Ok(tree)
    }

    /// Adds the module in `file`, whose children have their files in `directory`.
    fn add_file(
        &mut self,
        name: &str,
        parent: usize,
        (file, directory): (&Path, &Path),
        read: Read<'_>,
    ) -> Result<usize> {
        let text = read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed =
            syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        self.add(name, parent, (file, directory), &parsed.items, read)
    }

    fn add(
        &mut self,
        name: &str,
        parent: usize,
        (file, directory): (&Path, &Path),
        items: &[Item],
        read: Read<'_>,
    ) -> Result<usize> {
        let mut names = Names::default();
        for item in items {
            names.visit_item(item);
        }
        let this = self.modules.len();
        self.modules.push(Module {
            name: name.to_owned(),
            parent,
            file: file.display().to_string(),
            children: BTreeMap::new(),
            imports: names.imports,
            paths: names.paths,
        });
        for child in names.modules {
            let name = child.ident.to_string();
            let inside = directory.join(&name);
            let index = if let Some((_, items)) = &child.content {
                self.add(&name, this, (file, &inside), items, read)?
            } else {
                let (file, directory) = file_of(child, directory, read);
                self.add_file(&name, this, (&file, &directory), read)?
            };
            self.modules[this].children.insert(name, index);
        }
        Ok(this)
    }

    /// Returns the path of a module as this crate writes it, without `crate::`; `crate` for the root.
    pub fn path(&self, module: usize) -> String {
        let segments: Vec<_> = self
            .ancestors(module)
            .into_iter()
            .skip(1)
            .map(|module| self.modules[module].name.as_str())
            .collect();
        if segments.is_empty() {
            return "crate".to_owned();
        }
        segments.join("::")
    }

    /// Returns the root, and all modules from there to this one.
    pub fn ancestors(&self, mut module: usize) -> Vec<usize> {
        let mut chain = vec![module];
        while module != 0 {
            module = self.modules[module].parent;
            chain.push(module);
        }
        chain.reverse();
        chain
    }
}

/// Returns the file of `mod child;`, and the directory of its own children.
fn file_of(child: &ItemMod, directory: &Path, read: Read<'_>) -> (PathBuf, PathBuf) {
    let name = child.ident.to_string();
    let inside = directory.join(&name);
    let folder = inside.join("mod.rs");
    if read(&folder).is_some() {
        return (folder, inside);
    }
    (directory.join(format!("{name}.rs")), inside)
}

/// The paths that a module's items use.
#[derive(Default)]
struct Names<'ast> {
    modules: Vec<&'ast ItemMod>,
    imports: BTreeMap<String, Vec<String>>,
    paths: Vec<(usize, Vec<String>)>,
}

impl Names<'_> {
    /// Adds the paths of a `use` declaration, each with the prefix `before`.
    fn import(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, before);
                }
            }
            UseTree::Glob(glob) => {
                let line = line(glob.star_token.spans[0]);
                self.paths.push((line, before.to_vec()));
            }
            UseTree::Name(name) => {
                self.bring(line(name.ident.span()), &with(&name.ident), None);
            }
            UseTree::Rename(rename) => {
                let name = rename.rename.to_string();
                self.bring(line(rename.ident.span()), &with(&rename.ident), Some(name));
            }
        }
    }

    fn bring(&mut self, line: usize, path: &[String], name: Option<String>) {
        let path = match path {
            // `use a::{self}` is equal to `use a`.
            [before @ .., last] if last == "self" && !before.is_empty() => before,
            path => path,
        };
        self.paths.push((line, path.to_vec()));
        if let Some(name) = name.or_else(|| path.last().cloned()) {
            self.imports.insert(name, path.to_vec());
        }
    }

    /// Adds the paths among the tokens of a macro's arguments.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        let mut is_field = false;
        let mut end = |path: &mut Vec<String>, line| {
            if path.len() > 1 {
                self.paths.push((line, path.clone()));
            }
            path.clear();
        };
        let mut groups = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        end(&mut path, line);
                        line = self::line(ident.span());
                    }
                    // `.name` and the rest of `::name` do not start a path here.
                    if !(is_field || colons == 2 && path.is_empty()) {
                        path.push(ident.to_string());
                    }
                    (colons, is_field) = (0, false);
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    end(&mut path, line);
                    colons = 0;
                    is_field = matches!(&other, TokenTree::Punct(punct) if punct.as_char() == '.');
                    if let TokenTree::Group(group) = other {
                        groups.push(group.stream());
                    }
                }
            }
        }
        end(&mut path, line);
        for group in groups {
            self.tokens(group);
        }
    }
}

impl<'ast> Visit<'ast> for Names<'ast> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let is_for_tests = matches!(item, TraitItem::Fn(item) if is_for_tests(&item.attrs));
        if !is_for_tests {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.modules.push(item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.import(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let segments = path.segments.iter();
            let segments = segments.map(|segment| segment.ident.to_string());
            let line = line(path.segments[0].ident.span());
            self.paths.push((line, segments.collect()));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }
}

/// Returns the line of a token in its file, from 1.
fn line(of: Span) -> usize {
    of.start().line
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Returns true for items that are compiled only into tests and fuzz targets.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    let mut conditions = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("cfg"));
    conditions.any(|attribute| {
        let condition = attribute.parse_args::<Meta>();
        condition.is_ok_and(|condition| needs_tests(&condition))
    })
}

/// Returns true for a condition that no regular build fulfils.
fn needs_tests(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::NameValue(pair) => {
            let value = match &pair.value {
                syn::Expr::Lit(literal) => match &literal.lit {
                    syn::Lit::Str(text) => text.value(),
                    _ => return false,
                },
                _ => return false,
            };
            pair.path.is_ident("feature") && value == FUZZING
        }
        Meta::List(list) => {
            let parse = Punctuated::<Meta, Token![,]>::parse_terminated;
            let Ok(conditions) = list.parse_args_with(parse) else {
                return false;
            };
            if list.path.is_ident("any") {
                conditions.iter().all(needs_tests)
            } else {
                list.path.is_ident("all") && conditions.iter().any(needs_tests)
            }
        }
    }
}
