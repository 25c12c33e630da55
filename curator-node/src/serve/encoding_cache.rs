//! Encodings on this machine's disk by what was encoded and by which networks, so that a second pass over pairs encodes
//! nothing again. Bounded in bytes; losing one costs the time to encode it again.
//!
//! Passes go through all pairs in turn. Of more pairs than there is room for, the ones used longest ago would be the very
//! ones that come next, so that nothing would ever be found: what makes room is picked blindly instead, and a share of
//! each pass is found.

use crescendo_dataset::digest::{of_parts, sha256_hex};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// The folder of all encodings. Its clones share it.
#[derive(Clone, Debug)]
pub struct EncodingCache {
    root: Arc<PathBuf>,
    capacity_bytes: u64,
    files: Arc<Mutex<Files>>,
}

#[derive(Debug, Default)]
struct Files {
    /// Sizes by key.
    sizes: BTreeMap<String, u64>,
    used_bytes: u64,
}

impl Files {
    fn put(&mut self, key: String, size_bytes: u64) {
        self.used_bytes += size_bytes;
        self.used_bytes -= self.sizes.insert(key, size_bytes).unwrap_or_default();
    }

    fn take(&mut self, key: &str) {
        self.used_bytes -= self.sizes.remove(key).unwrap_or_default();
    }

    /// One to go: the one that follows a new key. Keys are digests, so that any is as likely.
    fn victim(&self, new: &str) -> Option<String> {
        let behind = self.sizes.range(new.to_owned()..).next();
        behind.or_else(|| self.sizes.iter().next()).map(|(key, _)| key.clone())
    }
}

/// The key of what `encoder`, as its files say, makes of `parts`. `what` tells prompts from pictures.
pub fn key(encoder: &str, what: &str, parts: &[&[u8]]) -> String {
    of_parts([encoder.as_bytes(), what.as_bytes()].iter().chain(parts))
}

impl EncodingCache {
    /// Opens the folder, with what an earlier process left in it.
    pub fn open(root: &Path, capacity_bytes: u64) -> io::Result<EncodingCache> {
        std::fs::create_dir_all(root)?;
        let mut files = Files::default();
        for folder in std::fs::read_dir(root)? {
            let folder = folder?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&folder)? {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                if name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    files.put(name, file.metadata()?.len());
                } else {
                    // The half of one that was being written.
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
        let cache = EncodingCache {
            root: Arc::new(root.to_owned()),
            capacity_bytes,
            files: Arc::new(Mutex::new(files)),
        };
        cache.make_room("", 0);
        Ok(cache)
    }

    /// Bytes that are kept.
    pub fn size_bytes(&self) -> u64 {
        self.files().used_bytes
    }

    /// What is kept under `key`, if it is whole. Blocks.
    pub fn find(&self, key: &str) -> Option<Vec<u8>> {
        if !self.files().sizes.contains_key(key) {
            return None;
        }
        let path = self.path(key);
        let mut content = std::fs::read(&path).unwrap_or_default();
        let digest = content.get(..DIGITS).map(<[u8]>::to_vec).unwrap_or_default();
        content.drain(..DIGITS.min(content.len()));
        if sha256_hex(&content).as_bytes() == digest {
            return Some(content);
        }
        tracing::warn!(path = %path.display(), "a kept encoding is damaged");
        self.files().take(key);
        let _ = std::fs::remove_file(path);
        None
    }

    /// Keeps `content`, if it is not larger than all there may be. A disk that takes nothing costs no pair. Blocks.
    pub fn keep(&self, key: &str, content: &[u8]) {
        let size_bytes = (content.len() + DIGITS) as u64;
        if size_bytes > self.capacity_bytes {
            return;
        }
        self.make_room(key, size_bytes);
        match self.write(key, content) {
            Ok(()) => self.files().put(key.to_owned(), size_bytes),
            Err(error) => tracing::warn!(%error, "an encoding is not kept"),
        }
    }

    /// It is whole or it is not there; not synced, since a damaged one is seen.
    fn write(&self, key: &str, content: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        let folder = crescendo_dataset::whole_file::folder_of(&path);
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(sha256_hex(content).as_bytes())?;
        file.write_all(content)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }

    fn make_room(&self, new: &str, for_bytes: u64) {
        let mut files = self.files();
        while files.used_bytes.saturating_add(for_bytes) > self.capacity_bytes {
            let Some(victim) = files.victim(new) else { break };
            files.take(&victim);
            let _ = std::fs::remove_file(self.path(&victim));
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key.get(..2).unwrap_or_default()).join(key)
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<String> {
        (0..count).map(|n| key("encoder", "text", &[&n.to_le_bytes()])).collect()
    }

    #[test]
    fn encodings_outlive_the_process_and_damage_is_seen() {
        let folder = tempfile::tempdir().expect("make a folder");
        let cache = EncodingCache::open(folder.path(), 1 << 20).expect("open");
        let names = keys(3);
        assert_eq!(cache.find(&names[0]), None);
        cache.keep(&names[0], b"first");
        cache.keep(&names[1], b"");
        let again = EncodingCache::open(folder.path(), 1 << 20).expect("open again");
        assert_eq!(again.size_bytes(), cache.size_bytes());
        assert_eq!(again.find(&names[0]).as_deref(), Some(&b"first"[..]));
        assert_eq!(again.find(&names[1]).as_deref(), Some(&b""[..]));
        for damaged in [&b"short"[..], &[b'0'; 70]] {
            again.keep(&names[2], b"third");
            std::fs::write(again.path(&names[2]), damaged).expect("spoil it");
            assert_eq!(again.find(&names[2]), None);
            assert!(!again.path(&names[2]).exists());
        }
        assert_eq!(again.size_bytes(), cache.size_bytes());
    }

    #[test]
    fn all_parts_make_the_key() {
        let one = key("encoder", "text", &[b"a", b"b"]);
        for other in [
            key("other", "text", &[b"a", b"b"]),
            key("encoder", "latent", &[b"a", b"b"]),
            key("encoder", "text", &[b"ab", b""]),
            key("encoder", "text", &[b"a"]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn of_too_many_a_part_is_found_in_each_pass_and_the_bound_holds() {
        let folder = tempfile::tempdir().expect("make a folder");
        let content = [7u8; 100];
        let room = 50 * (content.len() + DIGITS) as u64;
        let cache = EncodingCache::open(folder.path(), room).expect("open");
        let mut found = 0;
        for _ in 0..3 {
            for name in keys(100) {
                match cache.find(&name) {
                    Some(kept) => {
                        assert_eq!(kept, content);
                        found += 1;
                    }
                    None => cache.keep(&name, &content),
                }
                assert!(cache.size_bytes() <= room);
            }
        }
        assert!(found > 20, "{found} of 200");
        cache.keep(&keys(1)[0], &vec![0; room as usize]);
        assert!(cache.size_bytes() <= room);
    }
}
