//! What a plain folder of pictures amounts to: subjects, their words and their pictures, by names, captions or a CSV.
//!
//! ```text
//!  red_fox.png  red_fox-2.png  red_fox.txt    one subject, two pictures; the .txt has its words
//!  my mug/IMG_1.jpg  my mug/IMG_2.jpg         one subject, called as the folder is
//!  toys/blue bird/1.jpg                       the same, of category "toys"
//! ```

mod captions;

use crate::index::{Entry, MAX_ENTRIES, MAX_FILES};
use crate::library_error::LibraryError;
use crate::naming;
use crate::problem::Problem;
use crate::upright::{self, Bounds};
use captions::{Captions, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What the folders below a folder of pictures are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subfolders {
    /// Each is one subject, and its pictures are all that lies in it.
    #[default]
    Subjects,
    /// Each is a category, and the subjects are called as their pictures are.
    Categories,
}

/// How a plain folder is read.
#[derive(Clone, Debug, Default)]
pub struct FolderRules {
    pub subfolders: Subfolders,
    /// CSV with a line a picture; without it, the one that lies in the folder, if one does.
    pub csv: Option<PathBuf>,
}

/// The subjects of a plain folder.
#[derive(Debug)]
pub struct Found {
    /// In the order of their ids; files are below the folder.
    pub entries: Vec<Entry>,
    /// What was left out, and what is perhaps not as it is meant.
    pub problems: Vec<Problem>,
}

const PICTURES: [&str; 5] = ["png", "jpg", "jpeg", "jfif", "webp"];
/// Endings of pictures that are not read, so that it can be said of them.
const OTHER_PICTURES: [&str; 18] = [
    "arw", "avif", "bmp", "cr2", "cr3", "dng", "gif", "heic", "heif", "jp2", "jxl", "nef", "orf", "psd",
    "raf", "svg", "tif", "tiff",
];
/// Folders below the one that is read: a category's, and a subject's in it.
const MAX_DEPTH: usize = 2;

/// Reads a plain folder. Of pictures only the beginning is looked at; one that is none is left out, with the reason.
pub fn scan(folder: &Path, rules: &FolderRules) -> Result<Found, LibraryError> {
    let mut listing = Listing::default();
    listing.walk(folder, "", 0)?;
    listing.problems.sort_by(|a, b| a.place.cmp(&b.place));
    let Listing { pictures, texts, tables, mut problems, inside: _ } = listing;
    let failed = |reason: String| LibraryError::Folder { path: folder.to_owned(), reason };
    let csv = match (&rules.csv, &tables[..]) {
        (Some(file), _) => Some(file.clone()),
        (None, []) => None,
        (None, [one]) => Some(folder.join(one)),
        (None, [first, second, ..]) => {
            return Err(failed(format!(
                "it has more than one CSV, {first} and {second}; keep one, or name it with --csv"
            )));
        }
    };
    let mut groups = Groups::default();
    if let Some(csv) = csv {
        let rows = captions::read_csv(&csv)?;
        problems.extend(rows.problems.iter().cloned());
        groups.add_rows(&rows.rows, &pictures, &mut problems);
    } else {
        let mut captions = Captions::new(folder, texts);
        for path in &pictures {
            groups.add_by_name(path, rules.subfolders, &mut captions, &mut problems);
        }
        problems.extend(captions.into_problems());
    }
    let entries = groups.into_entries(folder, &mut problems);
    if entries.is_empty() {
        let first = problems.iter().find(|problem| problem.severity == crate::Severity::Error);
        return Err(failed(match first {
            Some(problem) => format!("none of its pictures can be used; the first: {problem}"),
            None => format!("it has neither an {} nor pictures (png, jpeg, webp)", crate::INDEX),
        }));
    }
    Ok(Found { entries, problems })
}

/// Every file below a folder, as paths below it, hidden ones too.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<String>, LibraryError> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, below)) = folders.pop() {
        let read = |source| LibraryError::Read { path: folder.clone(), source };
        for child in std::fs::read_dir(&folder).map_err(read)? {
            let child = child.map_err(read)?;
            let place = format!("{below}{}", child.file_name().to_string_lossy());
            if child.file_type().map_err(read)?.is_dir() {
                folders.push((child.path(), format!("{place}/")));
            } else {
                files.push(place);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Files of a folder by what they are, as paths below it.
#[derive(Default)]
struct Listing {
    pictures: BTreeSet<String>,
    texts: BTreeSet<String>,
    tables: Vec<String>,
    problems: Vec<Problem>,
    /// Device and inode of the folders that are being walked, the outermost first.
    inside: Vec<(u64, u64)>,
}

impl Listing {
    fn walk(&mut self, folder: &Path, below: &str, depth: usize) -> Result<(), LibraryError> {
        let read = |source| LibraryError::Read { path: folder.to_owned(), source };
        let facts = std::fs::metadata(folder).map_err(read)?;
        let itself = (facts.dev(), facts.ino());
        if self.inside.contains(&itself) {
            let place = below.trim_end_matches('/');
            self.problems.push(Problem::error(place, "it is a link to a folder that it lies in"));
            return Ok(());
        }
        self.inside.push(itself);
        let mut children = Vec::new();
        for child in std::fs::read_dir(folder).map_err(read)? {
            let child = child.map_err(read)?;
            let Ok(name) = child.file_name().into_string() else {
                let place = format!("{below}{}", child.file_name().to_string_lossy());
                self.problems.push(Problem::error(place, "its name is not UTF-8"));
                continue;
            };
            // Such as .DS_Store and ._copies, which some systems put beside pictures.
            if !name.starts_with('.') && name != "__MACOSX" {
                children.push((name, child.path()));
            }
            if children.len() > MAX_ENTRIES {
                let reason = format!("it has more than {MAX_ENTRIES} files");
                return Err(LibraryError::Folder { path: folder.to_owned(), reason });
            }
        }
        children.sort();
        for (name, path) in children {
            let place = format!("{below}{name}");
            // Follows links: a folder of links to pictures is as good as one of pictures.
            match std::fs::metadata(&path) {
                Ok(facts) if facts.is_dir() && depth < MAX_DEPTH => {
                    self.walk(&path, &format!("{place}/"), depth + 1)?;
                }
                Ok(facts) if facts.is_dir() => {
                    self.problems
                        .push(Problem::error(place, "it lies too deep: category, subject, pictures"));
                }
                Ok(facts) if facts.is_file() => self.file(place, depth),
                // Opening a pipe would wait for whoever writes into it.
                Ok(_) => self.problems.push(Problem::error(place, "it is no plain file")),
                Err(error) => self.problems.push(Problem::error(place, error.to_string())),
            }
        }
        self.inside.pop();
        Ok(())
    }

    fn file(&mut self, place: String, depth: usize) {
        let ending =
            place.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
        match ending.as_str() {
            ending if PICTURES.contains(&ending) => _ = self.pictures.insert(place),
            ending if OTHER_PICTURES.contains(&ending) => {
                self.problems.push(Problem::error(place, "it is not png, jpeg or webp; convert it"));
            }
            "txt" => _ = self.texts.insert(place),
            "csv" if depth == 0 => self.tables.push(place),
            _ => {}
        }
    }
}

/// A subject that is being gathered.
struct Subject {
    name: String,
    category: String,
    /// The words of a caption, and the file that has them.
    caption: Option<(String, String)>,
    files: Vec<String>,
}

/// Subjects by their id.
#[derive(Default)]
struct Groups {
    subjects: BTreeMap<String, Subject>,
}

impl Groups {
    fn add_by_name(
        &mut self,
        path: &str,
        subfolders: Subfolders,
        captions: &mut Captions,
        problems: &mut Vec<Problem>,
    ) {
        let parts: Vec<&str> = path.split('/').collect();
        let stem = stem(parts.last().copied().unwrap_or_default());
        // The folder that is a subject, if one is, and the category.
        let (folder, category) = match (&parts[..], subfolders) {
            ([folder, _], Subfolders::Subjects) => (Some(*folder), ""),
            ([category, _], Subfolders::Categories) => (None, *category),
            ([category, folder, _], _) => (Some(*folder), *category),
            _ => (None, ""),
        };
        let caption = match captions.of(path, folder.is_some()) {
            Ok(caption) => caption,
            Err(problem) => {
                problems.push(problem);
                return;
            }
        };
        let called = folder.unwrap_or(stem);
        let from_name = naming::words_of(called);
        let Some(name) = from_name.clone().or_else(|| caption.as_ref().map(|(words, _)| words.clone()))
        else {
            let reason = format!(
                "nothing in {called:?} is a word: name it after what it shows, or put the words into a .txt beside it"
            );
            problems.push(Problem::error(path, reason));
            return;
        };
        // Folders are as different as their names are, numbers included: dog and dog2 are two dogs.
        let id = naming::id_of(if folder.is_some() && from_name.is_some() { called } else { &name });
        let category = naming::words_of(category).unwrap_or_else(|| category.to_owned());
        self.add(&id, &name, &category, caption, path, problems);
    }

    fn add_rows(&mut self, rows: &[Row], pictures: &BTreeSet<String>, problems: &mut Vec<Problem>) {
        let mut named = BTreeSet::new();
        for row in rows {
            if !named.insert(row.file.as_str()) {
                problems.push(Problem::error(&row.place, format!("{} has a line already", row.file)));
                continue;
            }
            let caption = (!row.caption.is_empty()).then(|| (row.caption.clone(), row.place.clone()));
            self.add(&naming::id_of(&row.name), &row.name, &row.category, caption, &row.file, problems);
        }
        for picture in pictures.iter().filter(|picture| !named.contains(picture.as_str())) {
            problems.push(Problem::warning(picture, "left out: the CSV has no line for it"));
        }
    }

    fn add(
        &mut self,
        id: &str,
        name: &str,
        category: &str,
        caption: Option<(String, String)>,
        file: &str,
        problems: &mut Vec<Problem>,
    ) {
        if id.is_empty() {
            problems.push(Problem::error(file, format!("there is neither a letter nor a digit in {name:?}")));
            return;
        }
        let category_id = naming::id_of(category);
        let id = if category_id.is_empty() { id.to_owned() } else { format!("{category_id}-{id}") };
        let subject = self.subjects.entry(id).or_insert_with(|| Subject {
            name: name.to_owned(),
            category: category.to_owned(),
            caption: None,
            files: Vec::new(),
        });
        match (&subject.caption, &caption) {
            (None, _) => subject.caption = caption,
            (Some((kept, from)), Some((other, place))) if kept != other => {
                let reason =
                    format!("it says {other:?} of a subject that {from} calls {kept:?}, which is kept");
                problems.push(Problem::warning(place, reason));
            }
            (Some(_), _) => {}
        }
        subject.files.push(file.to_owned());
    }

    fn into_entries(self, folder: &Path, problems: &mut Vec<Problem>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.subjects.len());
        for (id, subject) in self.subjects {
            let mut files = Vec::with_capacity(subject.files.len());
            for file in subject.files {
                match upright::peek(&folder.join(&file), Bounds::Camera) {
                    Ok(()) if files.len() < MAX_FILES => files.push(file),
                    Ok(()) => {
                        let reason = format!("{id} has more than {MAX_FILES} pictures");
                        problems.push(Problem::error(file, reason));
                    }
                    Err(reason) => problems.push(Problem::error(file, reason)),
                }
            }
            if !files.is_empty() {
                let words = subject.caption.map_or_else(|| subject.name.clone(), |(words, _)| words);
                entries.push(Entry { id, name: subject.name, category: subject.category, files, words });
            }
        }
        entries
    }
}

/// A file's name without its ending.
fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests;
