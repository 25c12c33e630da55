//! Where the paths of a spec lead on this machine, and whether its job may go there.
//!
//! One function for all that a spec names: curators and ranks open no file that has not gone through
//! [`PathResolver::resolve`]. It looks at the file system: links are followed, and so are those inside a folder that is
//! named. Whoever may change the folders of a library while they are read can still lead out of them between the look
//! and the reading.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crescendo_core::reach::{Bounds, Reach, SpecPath};

/// Links inside one named folder that are followed at most.
const MAX_LINKS: usize = 100_000;
/// Entries of one named folder that are looked at at most, in all folders below it.
const MAX_ENTRIES: usize = 20_000_000;

/// A path that leads nowhere on this machine, or where its job may not go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path {path} is below the object store's root, which is not a folder of this machine")]
    NotHere { path: String },
    /// What the spec names is not for its tenant.
    #[error("{reason}")]
    OutOfReach { reason: String },
    #[error("path {path}: {} is a link that leads to {}, outside of {}", link.display(), to.display(), root.display())]
    LinkOut { path: String, link: PathBuf, to: PathBuf, root: PathBuf },
    #[error("path {path}: {reason}")]
    Unreadable { path: String, reason: String },
}

/// Where the paths of a spec lead.
#[derive(Clone, Debug)]
pub struct PathResolver {
    /// What relative paths are below.
    pub library: PathBuf,
    /// The object store's root, if it is a folder of this machine, or else the folder with copies from it.
    pub store: Option<PathBuf>,
    pub reach: Reach,
}

impl PathResolver {
    /// For an object store at `url`.
    pub fn new(library: &Path, url: &str, reach: Reach) -> PathResolver {
        let store = url.strip_prefix("file://").map(PathBuf::from);
        PathResolver { library: library.to_owned(), store, reach }
    }

    /// The same, with the object store's root at `folder`.
    pub fn with_store_at(self, folder: &Path) -> PathResolver {
        PathResolver { store: Some(folder.to_owned()), ..self }
    }

    /// A path of a spec: below the library's root, `store:` and a key, or absolute. What is not there is no error:
    /// whoever opens it says so. Blocks, as long as it takes to list a folder.
    pub fn resolve(&self, path: &str) -> Result<PathBuf, PathError> {
        let out_of_reach = |reason| PathError::OutOfReach { reason };
        let (root, found) = match self.reach.check_path(path).map_err(out_of_reach)? {
            SpecPath::Library(below) => (self.library.clone(), self.library.join(below)),
            SpecPath::Absolute(whole) => (PathBuf::from("/"), PathBuf::from(whole)),
            SpecPath::Store(key) => {
                let not_here = || PathError::NotHere { path: path.to_owned() };
                let store = self.store.as_ref().ok_or_else(not_here)?;
                (store.clone(), store.join(key))
            }
        };
        match &self.reach {
            Reach::Everything => Ok(found),
            Reach::Bounded(bounds) => {
                let roots = allowed_roots(self, bounds, path, &root);
                Look { path, root: &root, roots, links: 0, entries: 0, seen: BTreeSet::new() }
                    .check(&found)?;
                Ok(found)
            }
        }
    }
}

/// The folders that a path may lead into, links followed: of the library all of it, of the object store and of the rest
/// of the machine what the job may read.
fn allowed_roots(paths: &PathResolver, bounds: &Bounds, path: &str, root: &Path) -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = match SpecPath::of(path) {
        SpecPath::Library(_) => vec![root.to_owned()],
        SpecPath::Store(_) => bounds.store_prefixes.iter().map(|prefix| root.join(prefix)).collect(),
        SpecPath::Absolute(path) => {
            bounds.roots.iter().map(PathBuf::from).filter(|root| Path::new(path).starts_with(root)).collect()
        }
    };
    // What the operator allows by name may be led to from the library, too.
    let named = bounds.roots.iter().map(PathBuf::from).filter(|_| paths.library == root);
    folders.into_iter().chain(named).filter_map(|folder| folder.canonicalize().ok()).collect()
}

/// Follows the links of one path.
struct Look<'a> {
    path: &'a str,
    root: &'a Path,
    roots: Vec<PathBuf>,
    links: usize,
    entries: usize,
    /// Folders that were gone through, links followed.
    seen: BTreeSet<PathBuf>,
}

impl Look<'_> {
    /// Whether the file or folder at `found`, and every link below it, stays within the roots.
    fn check(&mut self, found: &Path) -> Result<(), PathError> {
        let Some(real) = self.real(found)? else { return Ok(()) };
        if real.extension().is_some_and(|extension| extension == "json") {
            // It may be an index, which names files beside it.
            self.check_links_in(real.parent().unwrap_or(&real))?;
        }
        let mut folders = vec![real];
        while let Some(folder) = folders.pop() {
            if !folder.is_dir() || !self.seen.insert(folder.clone()) {
                continue;
            }
            folders.extend(self.check_links_in(&folder)?);
        }
        Ok(())
    }

    /// Follows the links in one folder; the folders in it, and those that its links lead to.
    fn check_links_in(&mut self, folder: &Path) -> Result<Vec<PathBuf>, PathError> {
        let mut folders = Vec::new();
        let entries = std::fs::read_dir(folder).map_err(|error| self.unreadable(folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.unreadable(folder, &error))?;
            let kind = entry.file_type().map_err(|error| self.unreadable(folder, &error))?;
            self.entries += 1;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_symlink() {
                self.links += 1;
                folders.extend(self.real(&entry.path())?);
            }
            if self.links > MAX_LINKS || self.entries > MAX_ENTRIES {
                return Err(self.unreadable(folder, &"has too many files or links below it"));
            }
        }
        Ok(folders)
    }

    /// Where `found` really lies, if it is there; an error if that is outside.
    fn real(&self, found: &Path) -> Result<Option<PathBuf>, PathError> {
        // Of what is not there, the part that is: nothing can be made outside, and no name be told from no folder.
        let real = found.ancestors().find_map(|part| Some((part == found, part.canonicalize().ok()?)));
        let Some((is_there, real)) = real else { return Ok(None) };
        if !is_there && self.roots.iter().any(|root| root.starts_with(&real)) {
            return Ok(None);
        }
        if self.roots.iter().any(|root| real.starts_with(root)) {
            return Ok(is_there.then_some(real));
        }
        if self.roots.is_empty() {
            // Their root is not there: neither is what is below.
            return Ok(None);
        }
        Err(PathError::LinkOut {
            path: self.path.to_owned(),
            link: found.to_owned(),
            to: real,
            root: self.root.to_owned(),
        })
    }

    fn unreadable(&self, folder: &Path, reason: &dyn std::fmt::Display) -> PathError {
        PathError::Unreadable {
            path: self.path.to_owned(),
            reason: format!("{}: {reason}", folder.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_operators_paths_lead_everywhere() {
        let paths = PathResolver::new(Path::new("/library"), "file:///objects", Reach::Everything);
        let resolve = |path| paths.resolve(path).map_err(|e| e.to_string());
        assert_eq!(resolve("a/b"), Ok(PathBuf::from("/library/a/b")));
        assert_eq!(resolve("../a"), Ok(PathBuf::from("/library/../a")));
        assert_eq!(resolve("/a/b"), Ok(PathBuf::from("/a/b")));
        assert_eq!(resolve("store:sets/x"), Ok(PathBuf::from("/objects/sets/x")));
        let remote = PathResolver::new(Path::new("/library"), "s3://bucket", Reach::Everything);
        assert!(remote.resolve("store:sets/x").is_err());
    }

    /// A library, an object store with two tenants' files, and a folder outside.
    fn machine() -> (tempfile::TempDir, PathResolver) {
        let folder = tempfile::tempdir().expect("make a folder");
        let at = |path: &str| folder.path().join(path);
        for path in
            ["library/good", "objects/tenants/a/x", "objects/jobs/b-1/pairs", "outside/x", "allowed/x"]
        {
            std::fs::create_dir_all(at(path)).expect("make a folder");
            std::fs::write(at(path).join("file"), path).expect("write");
        }
        let bounds = Bounds {
            store_prefixes: vec!["tenants/a".to_owned()],
            roots: vec![at("allowed").display().to_string()],
            ..Bounds::default()
        };
        let url = format!("file://{}", at("objects").display());
        let paths = PathResolver::new(&at("library"), &url, Reach::Bounded(bounds));
        (folder, paths)
    }

    #[test]
    fn a_bounded_path_stays_below_its_root() {
        let (folder, paths) = machine();
        let allowed = folder.path().join("allowed/x").display().to_string();
        for good in ["good", "good/file", "absent", "store:tenants/a/x", "store:tenants/a/absent", &allowed] {
            let found = paths.resolve(good).expect(good);
            assert!(good.ends_with("absent") || found.exists(), "{}", found.display());
        }
        let outside = folder.path().join("outside/x").display().to_string();
        for bad in
            ["../outside", "good/../../outside", "store:jobs/b-1", "store:tenants/a/../../jobs/b-1", &outside]
        {
            let refused = paths.resolve(bad).expect_err(bad);
            assert!(matches!(refused, PathError::OutOfReach { .. }), "{refused}");
        }
    }

    #[test]
    fn a_link_out_is_refused_wherever_it_is() {
        let (folder, paths) = machine();
        let at = |path: &str| folder.path().join(path);
        let refused = |path: &str| {
            let refused = paths.resolve(path).expect_err(path);
            assert!(matches!(refused, PathError::LinkOut { .. }), "{path}: {refused}");
            refused.to_string()
        };
        symlink(at("outside"), at("library/out")).expect("link");
        refused("out");
        refused("out/x/file");
        refused("out/absent");
        // Within the folder, and behind one more link inside the library.
        std::fs::create_dir(at("library/set")).expect("make a folder");
        symlink(at("outside/x/file"), at("library/set/1.png")).expect("link");
        let told = refused("set");
        assert!(told.contains("set/1.png is a link that leads to"), "{told}");
        std::fs::create_dir(at("library/second")).expect("make a folder");
        symlink("../set", at("library/second/set")).expect("link");
        refused("second");
        // Beside an index, which names what is beside it.
        std::fs::write(at("library/set/w.index.json"), "{}").expect("write");
        refused("set/w.index.json");
        // A neighbour's files, by a link in one's own folder of the store.
        symlink(at("objects/jobs/b-1"), at("objects/tenants/a/x/theirs")).expect("link");
        refused("store:tenants/a/x");
        refused("store:tenants/a/x/theirs/pairs");
        // Links that stay inside, and to where the operator allows, are as good as any folder.
        symlink("good", at("library/alias")).expect("link");
        symlink(at("allowed/x"), at("library/bulk")).expect("link");
        symlink("good", at("library/good/itself")).expect("link");
        for good in ["alias", "bulk", "good"] {
            paths.resolve(good).expect(good);
        }
    }
}
