//! Words that a person has written down: `.txt` files beside pictures, or a CSV.

use crate::index::{MAX_ENTRIES, is_below};
use crate::library_error::LibraryError;
use crate::problem::Problem;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Size of a `.txt` beyond which it is no caption.
const MAX_TEXT_BYTES: u64 = 64 << 10;
/// Size of a CSV beyond which it is refused.
const MAX_CSV_BYTES: u64 = 256 << 20;

/// The `.txt` files of a folder.
pub struct Captions {
    folder: PathBuf,
    texts: BTreeSet<String>,
    /// Those that were read: a subject's is asked for with each of its pictures.
    read: BTreeMap<String, Result<String, Problem>>,
}

impl Captions {
    pub fn new(folder: &Path, texts: BTreeSet<String>) -> Captions {
        Captions { folder: folder.to_owned(), texts, read: BTreeMap::new() }
    }

    /// The words for a picture and the file that has them: its own, or its folder's where that is a subject.
    pub fn of(
        &mut self,
        picture: &str,
        folder_is_subject: bool,
    ) -> Result<Option<(String, String)>, Problem> {
        let without_ending = picture.rsplit_once('.').map_or(picture, |(path, _)| path);
        let folder = picture.rsplit_once('/').map(|(folder, _)| folder).filter(|_| folder_is_subject);
        for beside in [Some(without_ending), folder].into_iter().flatten() {
            let text = format!("{beside}.txt");
            if self.texts.contains(&text) {
                return self.words(&text).map(|words| Some((words, text)));
            }
        }
        Ok(None)
    }

    fn words(&mut self, text: &str) -> Result<String, Problem> {
        let path = self.folder.join(text);
        self.read.entry(text.to_owned()).or_insert_with(|| first_line(&path, text)).clone()
    }

    /// What is wrong with those that no picture has asked for.
    pub fn into_problems(self) -> Vec<Problem> {
        let unused = self.texts.iter().filter(|text| !self.read.contains_key(*text));
        unused.map(|text| Problem::warning(text, "there is no picture of this name beside it")).collect()
    }
}

fn first_line(path: &Path, place: &str) -> Result<String, Problem> {
    let failed = |reason: String| Problem::error(place, reason);
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_TEXT_BYTES {
        return Err(failed(format!("it has {size} bytes, more than a caption has")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let line = text.trim_start_matches('\u{feff}').lines().map(str::trim).find(|line| !line.is_empty());
    line.map(str::to_owned)
        .ok_or_else(|| failed("it is empty; its first line is to say what the picture shows".into()))
}

/// One picture in a CSV.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The CSV and its line.
    pub place: String,
    pub file: String,
    pub name: String,
    pub category: String,
    pub caption: String,
}

/// A CSV that was read.
#[derive(Debug)]
pub struct Rows {
    pub rows: Vec<Row>,
    pub problems: Vec<Problem>,
}

const COLUMNS: [&str; 4] = ["file", "name", "category", "caption"];

/// Reads a CSV of the columns file, name and, if there are more, category and caption; or in the order of its first line.
pub fn read_csv(path: &Path) -> Result<Rows, LibraryError> {
    let read = |source| LibraryError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_CSV_BYTES {
        let reason = format!("it has {size} bytes, more than {MAX_CSV_BYTES}");
        return Err(LibraryError::Index { path: path.to_owned(), reason });
    }
    let bytes = std::fs::read(path).map_err(read)?;
    let place = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    parse_csv(&bytes, &place).map_err(|reason| LibraryError::Index { path: path.to_owned(), reason })
}

fn parse_csv(bytes: &[u8], place: &str) -> Result<Rows, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(delimiter(bytes))
        .from_reader(bytes);
    let mut columns: Vec<Option<usize>> = (0..COLUMNS.len()).map(Some).collect();
    let mut found = Rows { rows: Vec::new(), problems: Vec::new() };
    for (n, record) in reader.records().enumerate() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, |from| line_of(from, bytes));
        if n == 0 && record.iter().any(|cell| cell.eq_ignore_ascii_case("file")) {
            let named = |column: &str| {
                let column = column.to_owned();
                record.iter().enumerate().filter(move |(_, cell)| cell.eq_ignore_ascii_case(&column))
            };
            if let Some(column) = COLUMNS.into_iter().find(|column| named(column).count() > 1) {
                return Err(format!("its first line has `{column}` twice"));
            }
            let at = |column: &&str| named(column).next().map(|(at, _)| at);
            columns = COLUMNS.iter().map(at).collect();
            if columns[1].is_none() {
                return Err("its first line has `file` but no `name`".into());
            }
            continue;
        }
        if n > MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} lines"));
        }
        let cell = |column: usize| {
            columns[column].and_then(|at| record.get(at)).map(str::to_owned).unwrap_or_default()
        };
        let row = Row {
            place: format!("{place}:{line}"),
            file: cell(0).trim_start_matches("./").to_owned(),
            name: cell(1),
            category: cell(2),
            caption: cell(3),
        };
        if row.file.is_empty() || row.name.is_empty() {
            found
                .problems
                .push(Problem::error(row.place, "it wants a file and a name: file,name[,category,caption]"));
        } else if !is_below(&row.file) {
            let reason = format!("{:?} is not a path below the folder", row.file);
            found.problems.push(Problem::error(row.place, reason));
        } else {
            found.rows.push(row);
        }
    }
    Ok(found)
}

/// The line of a record that begins at or after `from`: the reader counts empty lines before a record to it.
fn line_of(from: &csv::Position, bytes: &[u8]) -> u64 {
    let rest = usize::try_from(from.byte()).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let empty = rest.iter().take_while(|byte| b"\r\n".contains(byte)).filter(|byte| **byte == b'\n').count();
    from.line() + empty as u64
}

/// What separates columns: a comma, or the semicolon or tab of a first line that has no comma, as spreadsheets write where
/// commas are decimal points.
fn delimiter(bytes: &[u8]) -> u8 {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    b",;\t".iter().copied().find(|separator| first.contains(separator)).unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_is_read_with_and_without_headings() {
        let plain = "a.png,red fox,animals,\"a red fox, young\"\nb.png,mug\n\nx/c.png,  blue bird ,,\n";
        let found = parse_csv(plain.as_bytes(), "c.csv").expect("read");
        assert_eq!(found.problems, []);
        let [fox, mug, bird] = &found.rows[..] else { panic!("three rows: {found:?}") };
        assert_eq!((fox.file.as_str(), fox.caption.as_str()), ("a.png", "a red fox, young"));
        assert_eq!((mug.name.as_str(), mug.category.as_str(), mug.place.as_str()), ("mug", "", "c.csv:2"));
        assert_eq!((bird.name.as_str(), bird.file.as_str()), ("blue bird", "x/c.png"));
        assert_eq!(bird.place, "c.csv:4", "empty lines count");
        let headed = "\u{feff}Caption,FILE,name\na red fox,a.png,red fox\n";
        let found = parse_csv(headed.as_bytes(), "c.csv").expect("read");
        assert_eq!((found.rows[0].caption.as_str(), found.rows[0].category.as_str()), ("a red fox", ""));
        for other in ["file;name\na.png;a, b\n", "file\tname\na.png\ta, b\n"] {
            let found = parse_csv(other.as_bytes(), "c.csv").expect("read");
            assert_eq!((found.rows[0].file.as_str(), found.rows[0].name.as_str()), ("a.png", "a, b"));
        }
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_goes_on() {
        let found = parse_csv(b"a.png\n../b.png,b\nc.png,c\n", "c.csv").expect("read");
        let reasons: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert!(reasons[0].starts_with("c.csv:1: it wants a file and a name"), "{reasons:?}");
        assert!(reasons[1].starts_with("c.csv:2: \"../b.png\" is not a path below"), "{reasons:?}");
        assert_eq!((reasons.len(), found.rows.len()), (2, 1));
        assert!(parse_csv(b"file,title\na.png,a\n", "c.csv").is_err());
        let twice = parse_csv(b"file,name,Name\na.png,a,b\n", "c.csv").expect_err("which name?");
        assert_eq!(twice, "its first line has `name` twice");
        assert!(parse_csv(b"a.png,\xff\xfe\n", "c.csv").is_err());
    }
}
