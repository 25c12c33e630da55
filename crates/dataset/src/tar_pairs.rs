//! Pairs of a WebDataset tar that somebody else packed: written by another library, by `tar` over a folder, or by hand.
//!
//! A member's key is its folder and its base name up to the first dot, as WebDataset has it. Members of one key are a pair, in
//! any order and wherever they lie in the tar: `KEY.json`, `KEY.target.EXT`, `KEY.ref0.EXT` …, where `EXT` is png, jpg, jpeg,
//! webp or gif and case does not matter. What is wrong with one pair costs that pair.

use crate::pair::{Facts, Pair};
use crate::pictures::Picture;
use crate::shard::{MAX_ENTRY_BYTES, MAX_REFERENCES, ShardError};
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::Orientation;
use image::RgbImage;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;

/// Bytes of members that are held until the tar is read to its end.
const MAX_HELD_BYTES: u64 = 8 << 30;
/// What a member takes beside its content: its block in the tar.
const MEMBER_BYTES: u64 = 512;

/// What a tar holds.
#[derive(Debug)]
pub struct TarPairs {
    /// In the order in which their keys first appear.
    pub pairs: Vec<Result<Pair, Rejection>>,
    pub foreign: Foreign,
}

/// Members that are no part of a pair, and were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    pub members: u64,
    /// Name of the first of them.
    pub first: String,
}

impl Foreign {
    fn count(&mut self, name: &str) {
        if self.members == 0 {
            name.clone_into(&mut self.first);
        }
        self.members += 1;
    }
}

/// Reads and decodes a tar's pairs. An error is about the tar itself: it is damaged, or larger than can be held.
pub fn read(tar: impl Read, orientation: Orientation) -> Result<TarPairs, ShardError> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut foreign = Foreign::default();
    let mut held_bytes = 0u64;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(ShardError::Tar)? {
        let mut entry = entry.map_err(ShardError::Tar)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        let member = Member::named(&name).filter(|_| kind.is_file());
        let Some(Member { key, role }) = member else {
            foreign.count(&name);
            continue;
        };
        let size = entry.size();
        let content = if size > MAX_ENTRY_BYTES { None } else { Some(content_of(&name, size, &mut entry)?) };
        held_bytes += MEMBER_BYTES + content.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if held_bytes > MAX_HELD_BYTES {
            return Err(ShardError::Large { most: MAX_HELD_BYTES });
        }
        let place = *places.entry(key).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(place) {
            group.take(name, role, content);
        }
    }
    let mut pairs = Vec::with_capacity(groups.len());
    for group in groups {
        match group.is_foreign() {
            Some(name) => foreign.count(name),
            None => pairs.push(group.pair(orientation)),
        }
    }
    Ok(TarPairs { pairs, foreign })
}

fn content_of(name: &str, size: u64, entry: &mut impl Read) -> Result<Vec<u8>, ShardError> {
    let mut content = Vec::with_capacity(size.min(1 << 20) as usize);
    entry.read_to_end(&mut content).map_err(ShardError::Tar)?;
    if content.len() as u64 != size {
        return Err(ShardError::Entry { entry: name.to_owned(), reason: "it is cut short".to_owned() });
    }
    Ok(content)
}

/// What a member is to its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Facts,
    Target,
    Reference(usize),
}

struct Member {
    key: String,
    role: Role,
}

impl Member {
    /// None for what is no part of a pair: by its suffix, because it is hidden, or because its path leads elsewhere.
    fn named(name: &str) -> Option<Member> {
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let (base, folders) = parts.split_last()?;
        if folders.contains(&"..") {
            return None;
        }
        // A hidden file has no key: its name begins with the first dot.
        let (stem, suffix) = base.split_once('.').filter(|(stem, _)| !stem.is_empty())?;
        let suffix = suffix.to_ascii_lowercase();
        let role = match suffix.split_once('.') {
            None if suffix == "json" => Role::Facts,
            Some((field, "png" | "jpg" | "jpeg" | "webp" | "gif")) => match field.strip_prefix("ref") {
                None if field == "target" => Role::Target,
                Some(digit) if digit.len() == 1 => {
                    Role::Reference(digit.parse().ok().filter(|n| *n < MAX_REFERENCES)?)
                }
                None | Some(_) => return None,
            },
            None | Some(_) => return None,
        };
        Some(Member { key: format!("{}/{stem}", folders.join("/")), role })
    }
}

/// The members of one key.
#[derive(Debug, Default)]
struct Group {
    first: String,
    /// Nothing where the member is larger than is read.
    facts: Option<Option<Vec<u8>>>,
    target: Option<Option<Vec<u8>>>,
    references: BTreeMap<usize, Option<Vec<u8>>>,
    /// One of them is there twice: which is meant cannot be told.
    repeats: bool,
}

impl Group {
    fn take(&mut self, name: String, role: Role, content: Option<Vec<u8>>) {
        if self.first.is_empty() {
            self.first = name;
        }
        let before = match role {
            Role::Facts => self.facts.replace(content).is_some(),
            Role::Target => self.target.replace(content).is_some(),
            Role::Reference(number) => self.references.insert(number, content).is_some(),
        };
        self.repeats |= before;
    }

    /// The name of a lone JSON file that says nothing of a pair, such as a data set's card.
    fn is_foreign(&self) -> Option<&str> {
        let alone = self.target.is_none() && self.references.is_empty();
        (alone && self.facts().is_err()).then_some(self.first.as_str())
    }

    fn facts(&self) -> Result<Facts, Rejection> {
        let text = self.facts.as_ref().ok_or(Rejection::MissingFile)?;
        let text = text.as_ref().ok_or(Rejection::MalformedRecord)?;
        serde_json::from_slice(text).map_err(|_| Rejection::MalformedRecord)
    }

    fn pair(self, orientation: Orientation) -> Result<Pair, Rejection> {
        if self.repeats {
            return Err(Rejection::MalformedRecord);
        }
        let Facts { prompt, reference_words, scores, provenance } = self.facts()?;
        let decoded = |bytes: Option<Vec<u8>>| -> Result<RgbImage, Rejection> {
            let bytes = bytes.ok_or(Rejection::UnreadableImage)?;
            let picture = Picture::decode_as("picture", &bytes, orientation);
            picture.map(Picture::into_rgb).map_err(|_| Rejection::UnreadableImage)
        };
        let target = self.target.ok_or(Rejection::MissingFile)?;
        if !self.references.keys().copied().eq(0..self.references.len()) {
            return Err(Rejection::MissingFile);
        }
        Ok(Pair {
            target: decoded(target)?,
            references: self.references.into_values().map(decoded).collect::<Result<_, _>>()?,
            prompt,
            reference_words,
            scores,
            provenance,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::read_shard;
    use image::codecs::png::PngEncoder;
    use std::io::Cursor;

    fn png(side: u32, shade: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture = RgbImage::from_pixel(side, side, image::Rgb([shade, 90, 30]));
        picture.write_with_encoder(PngEncoder::new(&mut bytes)).expect("encode");
        bytes
    }

    /// The members of six pairs, as this system's own shards have them.
    fn members() -> Vec<(String, Vec<u8>)> {
        let of = |n: u8| {
            let facts = format!("{{\"prompt\": \"cup {n} on a table\"}}").into_bytes();
            [("target.png", png(32, n * 20)), ("ref0.png", png(32, n)), ("json", facts)]
                .map(|(field, content)| (format!("{n:06}.{field}"), content))
        };
        (0..6).flat_map(of).collect()
    }

    fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            // Set by hand: `append_data` takes `./` away.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_slice()).expect("append");
        }
        builder.into_inner().expect("close")
    }

    fn renamed(change: impl Fn(&str) -> String) -> Vec<(String, Vec<u8>)> {
        members().into_iter().map(|(name, content)| (change(&name), content)).collect()
    }

    fn read_all(members: &[(String, Vec<u8>)]) -> TarPairs {
        read(tar(members).as_slice(), Orientation::Upright).expect("a tar")
    }

    /// Prompts, or reasons.
    fn outcomes(found: &TarPairs) -> Vec<String> {
        let told = |pair: &Result<Pair, Rejection>| match pair {
            Ok(pair) => pair.prompt.clone(),
            Err(reason) => reason.name().to_owned(),
        };
        found.pairs.iter().map(told).collect()
    }

    fn all() -> Vec<String> {
        (0..6).map(|n| format!("cup {n} on a table")).collect()
    }

    #[test]
    fn pairs_are_found_however_they_are_packed() {
        let mut sorted = members();
        sorted.sort();
        // All of one kind after another, as a writer does that goes through columns.
        let mut columns = members();
        columns.sort_by_key(|(name, _)| name[7..].to_owned());
        let folder =
            std::iter::once(("./".to_owned(), Vec::new())).chain(renamed(|name| format!("./{name}")));
        for (way, members) in [
            ("as we write them", members()),
            ("json first", sorted),
            ("by column", columns),
            ("a folder", folder.collect()),
            ("a folder with dots", renamed(|name| format!("set-v1.0/{name}"))),
            ("upper case", renamed(|name| name.replace("png", "PNG").replace("json", "JSON"))),
        ] {
            let found = read_all(&members);
            assert_eq!(outcomes(&found), all(), "{way}");
            assert_eq!(found.foreign, Foreign::default(), "{way}");
            let target = &found.pairs[3].as_ref().expect("a pair").target;
            assert_eq!(target.get_pixel(0, 0).0, [60, 90, 30], "{way}");
        }
    }

    #[test]
    fn the_same_key_in_two_folders_is_two_pairs() {
        let mut both = renamed(|name| format!("a/{name}"));
        both.extend(renamed(|name| format!("b/{name}")));
        assert_eq!(outcomes(&read_all(&both)), [all(), all()].concat());
    }

    #[test]
    fn what_is_wrong_with_one_pair_costs_that_pair() {
        type Change = fn(&str, &mut Vec<u8>) -> bool;
        let cases: [(Change, Rejection); 6] = [
            (
                |name, content| {
                    if name == "000003.ref0.png" {
                        content.truncate(60)
                    }
                    true
                },
                Rejection::UnreadableImage,
            ),
            (
                |name, content| {
                    if name == "000003.json" {
                        content.truncate(9)
                    }
                    true
                },
                Rejection::MalformedRecord,
            ),
            (
                |name, content| {
                    if name == "000003.json" {
                        *content = b"{}".to_vec()
                    }
                    true
                },
                Rejection::MalformedRecord,
            ),
            (|name, _| name != "000003.target.png", Rejection::MissingFile),
            (|name, _| name != "000003.json", Rejection::MissingFile),
            (
                |name, content| {
                    if name == "000003.target.png" {
                        *content = Vec::new()
                    }
                    true
                },
                Rejection::UnreadableImage,
            ),
        ];
        for (change, reason) in cases {
            let mut changed = members();
            changed.retain_mut(|(name, content)| change(name, content));
            let mut expected = all();
            reason.name().clone_into(&mut expected[3]);
            assert_eq!(outcomes(&read_all(&changed)), expected);
        }
        let mut twice = members();
        twice.push(("000003.ref0.jpg".to_owned(), png(32, 1)));
        assert_eq!(outcomes(&read_all(&twice))[3], "malformed_record");
        let gap = renamed(|name| name.replace("000003.ref0", "000003.ref1"));
        assert_eq!(outcomes(&read_all(&gap))[3], "missing_file");
    }

    #[test]
    fn foreign_members_are_counted_and_left_out() {
        let mut more = members();
        for (name, content) in [
            ("README.md", &b"a card"[..]),
            ("._000000.json", b"of a Mac"),
            ("000000.cls", b"7"),
            ("dataset_info.json", b"{\"features\": 3}"),
            ("../000000.ref1.png", b"elsewhere"),
            ("000000.ref9.png", b"too many"),
            ("nosuffix", b""),
        ] {
            more.push((name.to_owned(), content.to_owned()));
        }
        let found = read_all(&more);
        assert_eq!(outcomes(&found), all());
        assert_eq!(found.foreign, Foreign { members: 7, first: "README.md".to_owned() });
    }

    #[test]
    fn a_tar_that_breaks_off_is_an_error() {
        let whole = tar(&members());
        for cut in (1..whole.len() - 1024).step_by(97) {
            let read = read(&whole[..cut], Orientation::Upright);
            // At the border between two members a cut cannot be told from an end: the last pair lacks something.
            let pairs = read.map(|found| found.pairs.iter().filter(|pair| pair.is_ok()).count());
            assert!(!matches!(pairs, Ok(6)), "cut at {cut}");
        }
    }

    #[test]
    fn photographs_are_turned_unless_they_are_wanted_as_stored() {
        let lying =
            RgbImage::from_fn(48, 32, |x, _| image::Rgb(if x < 24 { [220, 20, 20] } else { [20, 20, 220] }));
        let photo = crate::upright::tests::jpeg_held(&lying, 6);
        let mut held = renamed(|name| name.replace("000003.ref0.png", "000003.ref0.JPG"));
        held.iter_mut()
            .filter(|(name, _)| name.ends_with("JPG"))
            .for_each(|(_, content)| *content = photo.clone());
        let packed = tar(&held);
        for (orientation, size) in [(Orientation::Upright, (32, 48)), (Orientation::AsStored, (48, 32))] {
            let found = read(packed.as_slice(), orientation).expect("a tar");
            assert_eq!(found.pairs[3].as_ref().expect("a pair").references[0].dimensions(), size);
        }
    }

    #[test]
    fn what_this_system_writes_reads_the_same() {
        let own = tar(&members());
        let strict = read_shard(own.as_slice()).expect("own");
        let found = read(Cursor::new(own), Orientation::AsStored).expect("a tar");
        for (a, b) in strict.iter().zip(&found.pairs) {
            let b = b.as_ref().expect("a pair");
            assert_eq!((a.facts(), &a.target, &a.references), (b.facts(), &b.target, &b.references));
        }
        assert_eq!(strict.len(), found.pairs.len());
    }
}
