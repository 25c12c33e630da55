//! Which files of a crate use which.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};
use syn::{Item, ItemUse, UseTree, Visibility};

use crate::source::{Crate, is_for_tests};

/// How many re-exports of re-exports are followed.
const MAX_STEPS: usize = 8;

/// For each file, by its place, those that it uses. Not among them are itself and the files of the modules that it lies in; and what
/// a file passes on (`pub use`) it does not use: whoever takes a name from there uses the file that has it.
pub fn between_files(of: &Crate) -> BTreeMap<usize, BTreeSet<usize>> {
    let mut found: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (module, at) in &of.modules {
        let Some(items) = of.items(module) else { continue };
        let mut paths = Paths { found: Vec::new() };
        for item in items {
            if !matches!(item, Item::Mod(_)) {
                paths.visit_item(item);
            }
        }
        for path in paths.found {
            let target = absolute(of, module, &path).and_then(|path| defined_in(of, &path, 0));
            let around = |target: &usize| {
                (0..=module.len()).any(|depth| of.modules.get(&module[..depth]) == Some(target))
            };
            if let Some(target) = target.filter(|target| !around(target)) {
                found.entry(*at).or_default().insert(target);
            }
        }
    }
    found
}

/// Rooms are the modules of a crate's top level; for each, those that it uses.
pub fn between_rooms(of: &Crate) -> BTreeMap<String, BTreeSet<String>> {
    let rooms: BTreeMap<usize, String> =
        of.modules.iter().filter_map(|(module, at)| Some((*at, module.first()?.clone()))).collect();
    let mut found: BTreeMap<String, BTreeSet<String>> =
        rooms.values().map(|room| (room.clone(), BTreeSet::new())).collect();
    for (from, to) in between_files(of) {
        let Some(from) = rooms.get(&from) else { continue };
        let to = to.iter().filter_map(|to| rooms.get(to)).filter(|to| *to != from);
        found.entry(from.clone()).or_default().extend(to.cloned());
    }
    found
}

/// The paths that items name, each as its segments.
struct Paths {
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            self.found.extend(leaves(&item.tree).into_iter().map(|(path, _)| path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.found.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// Each name that a `use` brings, with the path that it stands for; `*` for all.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    fn walk(tree: &UseTree, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => walk(&path.tree, &with(path.ident.to_string()), found),
            UseTree::Name(name) if name.ident == "self" => {
                found.push((before.to_vec(), before.last().cloned().unwrap_or_default()));
            }
            UseTree::Name(name) => found.push((with(name.ident.to_string()), name.ident.to_string())),
            UseTree::Rename(name) => found.push((with(name.ident.to_string()), name.rename.to_string())),
            UseTree::Glob(_) => found.push((with("*".into()), "*".into())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, before, found)),
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// A path as it is from the crate's root; none of another crate.
fn absolute(of: &Crate, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        first => {
            let child = [module, &[first.to_owned()]].concat();
            if !of.modules.contains_key(&child) {
                return None;
            }
        }
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The file that defines what a path from the crate's root stands for.
fn defined_in(of: &Crate, path: &[String], step: usize) -> Option<usize> {
    let depth = (0..=path.len()).rev().find(|depth| of.modules.contains_key(&path[..*depth]))?;
    let (module, rest) = path.split_at(depth);
    let at = of.modules.get(module).copied();
    let Some(name) = rest.first().filter(|_| step < MAX_STEPS) else { return at };
    let passed_on = of.items(module).into_iter().flatten().find_map(|item| {
        let Item::Use(item) = item else { return None };
        let (path, _) = leaves(&item.tree).into_iter().find(|(_, brings)| brings == name)?;
        let mut path = absolute(of, module, &path)?;
        path.extend(rest[1..].iter().cloned());
        defined_in(of, &path, step + 1)
    });
    passed_on.or(at)
}
