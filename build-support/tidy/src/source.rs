//! The sources of a crate, by module.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syn::{Attribute, Item};

/// One `.rs` file.
pub struct SourceFile {
    /// Relative to the repository.
    pub path: PathBuf,
    pub text: String,
    pub syntax: syn::File,
}

/// The files that one root (`lib.rs`, `main.rs`, a test) is compiled from.
pub struct Crate {
    pub files: Vec<SourceFile>,
    /// Module path, without `crate`, to the file that has it, by its place in `files`. Modules within a file are among them.
    pub modules: BTreeMap<Vec<String>, usize>,
}

/// Whether an item is only there for tests.
pub fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.is_ident("test")
            || path.segments.last().is_some_and(|last| last.ident == "test")
            || path.is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| {
                    let condition = list.tokens.to_string();
                    condition == "test"
                        || condition.starts_with("any (test")
                        || condition.starts_with("any(test")
                })
    })
}

impl Crate {
    /// Reads the crate of `root`, a path relative to `repository`. Modules that are only for tests are left out.
    pub fn read(repository: &Path, root: &Path) -> Result<Crate> {
        let mut found = Crate { files: Vec::new(), modules: BTreeMap::new() };
        let folder = root.parent().context("a root has a folder")?.to_owned();
        found.add(repository, root, &folder, Vec::new())?;
        Ok(found)
    }

    fn add(&mut self, repository: &Path, path: &Path, folder: &Path, module: Vec<String>) -> Result<()> {
        let text = std::fs::read_to_string(repository.join(path))
            .with_context(|| format!("read {}", path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
        let at = self.files.len();
        let items = syntax.items.clone();
        self.files.push(SourceFile { path: path.to_owned(), text, syntax });
        self.descend(repository, &items, folder, module, at)
    }

    fn descend(
        &mut self,
        repository: &Path,
        items: &[Item],
        folder: &Path,
        module: Vec<String>,
        at: usize,
    ) -> Result<()> {
        self.modules.insert(module.clone(), at);
        for item in items {
            let Item::Mod(declared) = item else { continue };
            if is_for_tests(&declared.attrs) {
                continue;
            }
            let name = declared.ident.to_string();
            let below = [module.as_slice(), std::slice::from_ref(&name)].concat();
            let own_folder = folder.join(&name);
            match &declared.content {
                Some((_, inner)) => self.descend(repository, inner, &own_folder, below, at)?,
                None => {
                    let candidates = [folder.join(format!("{name}.rs")), own_folder.join("mod.rs")];
                    let Some(path) = candidates.iter().find(|path| repository.join(path).is_file()) else {
                        bail!("{}: there is no file of module {name}", folder.display());
                    };
                    self.add(repository, path, &own_folder, below)?;
                }
            }
        }
        Ok(())
    }

    /// The items of a module.
    pub fn items(&self, module: &[String]) -> Option<&[Item]> {
        let at = *self.modules.get(module)?;
        // Down from the file's own module.
        let depth = (0..=module.len()).find(|depth| self.modules.get(&module[..*depth]) == Some(&at))?;
        let mut items = self.files[at].syntax.items.as_slice();
        for name in &module[depth..] {
            items = items.iter().find_map(|item| match item {
                Item::Mod(inner) if inner.ident == name => {
                    inner.content.as_ref().map(|(_, items)| items.as_slice())
                }
                _ => None,
            })?;
        }
        Some(items)
    }
}

/// All `.rs` files of the repository, relative to it, in order.
pub fn files(repository: &Path) -> Result<Vec<PathBuf>> {
    ending_in(repository, "rs")
}

/// All `.md` files that people write, in order; what is generated is left out.
pub fn documents(repository: &Path) -> Result<Vec<PathBuf>> {
    let mut found = ending_in(repository, "md")?;
    found.retain(|path| path != Path::new("docs/cli.md"));
    Ok(found)
}

fn ending_in(repository: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let listing = std::fs::read_dir(repository.join(&folder))
            .with_context(|| format!("list {}", folder.display()))?;
        for entry in listing {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links lead to what is built and fetched.
            let is_made = matches!(&*name, "target" | "node_modules");
            if entry.file_type()?.is_dir() && !name.starts_with('.') && !is_made {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == ending) && entry.file_type()?.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The roots of all libraries and programs among `files`.
pub fn roots(files: &[PathBuf]) -> Vec<PathBuf> {
    files
        .iter()
        .filter(|path| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"))
        .cloned()
        .collect()
}
