//! What tells a file or a folder from another at the same path, without reading all of it: a base has 24 GB.

use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Places of a file that are read, evenly spread from its first byte to its last.
const PLACES: u64 = 32;
/// Bytes that are read at a place.
const PLACE_BYTES: u64 = 16 << 10;
/// Entries of a folder that are looked at; the rest changes nothing.
const MAX_ENTRIES: usize = 50_000;
/// Files of a folder that are looked into: networks, and what says what they or a library are. Of others, pictures above
/// all, name and size have to do.
const READ: [&str; 4] = ["safetensors", "json", "jsonl", "yaml"];

/// 64 hexadecimal digits: a function of size and content, at places spread over the file, and for a folder of the names
/// and sizes of all files below it too. Trained networks differ in every tensor, so that they differ there as well.
///
/// An error where the path leads to nothing that can be read.
pub fn of_path(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    if path.is_dir() {
        for file in files_below(path)? {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            let read = file.extension().and_then(|suffix| suffix.to_str()).is_some_and(|s| READ.contains(&s));
            add(&mut hash, &file, read)?;
        }
    } else {
        add(&mut hash, path, true)?;
    }
    Ok(crescendo_dataset::digest::hex(&hash.finalize()))
}

fn add(hash: &mut Sha256, path: &Path, read: bool) -> io::Result<()> {
    let size = std::fs::metadata(path)?.len();
    hash.update(size.to_le_bytes());
    if !read {
        return Ok(());
    }
    let mut file = File::open(path)?;
    let last = size.saturating_sub(PLACE_BYTES);
    let mut buffer = Vec::new();
    for place in 0..PLACES {
        let start =
            u64::try_from(u128::from(last) * u128::from(place) / u128::from(PLACES - 1)).unwrap_or(last);
        file.seek(SeekFrom::Start(start))?;
        buffer.clear();
        file.by_ref().take(PLACE_BYTES).read_to_end(&mut buffer)?;
        hash.update(&buffer);
        if last == 0 {
            break;
        }
    }
    Ok(())
}

/// Plain files below a folder, in the order of their paths. Links to folders are not followed.
fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.path().is_file() {
                files.push(entry.path());
            }
            if files.len() + open.len() >= MAX_ENTRIES {
                open.clear();
                break;
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_names_tell_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("make a folder");
        let root = folder.path();
        let write = |name: &str, content: &[u8]| std::fs::write(root.join(name), content).expect("write");
        let large = vec![7u8; 4 << 20];
        write("w.safetensors", &large);
        let first = of_path(&root.join("w.safetensors")).expect("read");
        write("w.safetensors", &large);
        assert_eq!(of_path(&root.join("w.safetensors")).expect("read"), first);
        for place in [0, large.len() - 1] {
            let mut other = large.clone();
            other[place] = 8;
            write("w.safetensors", &other);
            assert_ne!(of_path(&root.join("w.safetensors")).expect("read"), first, "byte {place}");
        }
        write("w.safetensors", &large[1..]);
        assert_ne!(of_path(&root.join("w.safetensors")).expect("read"), first);

        std::fs::create_dir(root.join("below")).expect("make a folder");
        write("below/a.png", b"1234");
        let whole = of_path(root).expect("read");
        write("below/a.png", b"123");
        assert_ne!(of_path(root).expect("read"), whole);
        std::fs::rename(root.join("below/a.png"), root.join("below/b.png")).expect("rename");
        assert_ne!(of_path(root).expect("read"), whole);
        assert!(of_path(&root.join("absent")).is_err());
    }
}
