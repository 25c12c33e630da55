//! The detector from one file, asked in words.

use std::path::Path;

use image::RgbImage;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::{Detection, Owlv2, Owlv2Config, detections, prepared, suppress};
use crate::error::{ModelError, Result};
use crate::pictures::to_unit_range;
use crate::published::{config_beside, not_usable, read_config};
use crate::tokenizer::{PromptTokenizer, TokenRule};
use crate::weight_files::WeightFiles;

/// String of a weight file with the configuration, for files that have no `config.json` beside them.
const CONFIG_KEY: &str = "owlv2_config";
/// String of a weight file that says how words become ids, for files that have no tokenizer beside them.
const WORDS_KEY: &str = "owlv2_words";
/// The only such way: [`hashed_ids`].
const HASHED: &str = "hashed";
/// What a picture is padded with, as in newer published processors.
const PADDING: f64 = 0.0;
/// Boxes that overlap by more than this are of one object.
const SAME_OBJECT: f32 = 0.5;
/// Most phrases that are looked for at once.
const MAX_PHRASES: usize = 64;

/// An OWLv2 network with what it takes to ask it in words.
#[derive(Debug)]
pub struct Owlv2Detector {
    network: Owlv2,
    words: Words,
    device: Device,
}

#[derive(Debug)]
enum Words {
    Tokenizer(Box<PromptTokenizer>),
    Hashed,
}

impl Owlv2Detector {
    /// Loads a file, an index or a folder. The configuration is in the file (string `owlv2_config`) or in a `config.json`
    /// beside it; so is the tokenizer, as `tokenizer.json` or `vocab.json` with `merges.txt`, unless the file's string
    /// `owlv2_words` is `hashed`.
    pub fn load(path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open(path)?;
        let config: Owlv2Config = match files.string(CONFIG_KEY) {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| not_usable(path, format!("{CONFIG_KEY}: {error}")))?,
            None => {
                let beside = config_beside(path);
                let beside = beside.ok_or_else(|| not_usable(path, "there is no config.json beside it"))?;
                read_config(&beside, None)?
            }
        };
        config.validate()?;
        let words = match files.string(WORDS_KEY).as_deref() {
            Some(HASHED) => Words::Hashed,
            Some(other) => return Err(not_usable(path, format!("{WORDS_KEY}: {other:?} is not known"))),
            None => {
                let folder = if path.is_dir() { Some(path) } else { path.parent() };
                let length =
                    usize::try_from(config.text_config.max_position_embeddings).unwrap_or(usize::MAX);
                // Published queries are padded with id 0, which is "!".
                let rule = TokenRule { max_length: length, padding: "!".to_owned(), ..TokenRule::clip() };
                let tokenizer = PromptTokenizer::load(folder.unwrap_or(Path::new(".")), &rule)?;
                if tokenizer.largest_id() >= config.text_config.vocab_size {
                    return Err(not_usable(path, "the tokenizer has more tokens than the network"));
                }
                Words::Tokenizer(Box::new(tokenizer))
            }
        };
        drop(files);
        Ok(Self { network: Owlv2::load(&config, path, kind, device)?, words, device })
    }

    /// What a picture shows of each phrase: scores above `threshold`, one detection for each object, best first.
    /// [`Detection::query`] is the number of the phrase.
    pub fn find(&self, picture: &RgbImage, phrases: &[&str], threshold: f32) -> Result<Vec<Detection>> {
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        if phrases.len() > MAX_PHRASES {
            return Err(ModelError::input(
                "phrases",
                format!("{} are more than {MAX_PHRASES}", phrases.len()),
            ));
        }
        let (ids, attended) = self.ids(phrases)?;
        let queries = self
            .network
            .encode_queries(&ids.f_to_device(self.device)?, Some(&attended.f_to_device(self.device)?))?;
        let side = self.network.config().vision_config.image_size;
        let pixels = to_unit_range(&[picture])?.f_to_device(self.device)?.f_squeeze_dim(0)?;
        let output = self.network.detect(&prepared(&pixels, side, PADDING)?, &queries)?;
        Ok(suppress(detections(&output, 0, picture.dimensions(), threshold)?, SAME_OBJECT))
    }

    /// Ids `[phrases, tokens]` and where they are more than padding, of the same shape.
    fn ids(&self, phrases: &[&str]) -> Result<(Tensor, Tensor)> {
        let sizes = &self.network.config().text_config;
        let rows: Vec<Vec<i64>> = match &self.words {
            Words::Tokenizer(tokenizer) => {
                phrases.iter().map(|phrase| tokenizer.ids(phrase)).collect::<Result<_>>()?
            }
            Words::Hashed => {
                let length = usize::try_from(sizes.max_position_embeddings).unwrap_or(0);
                phrases.iter().map(|phrase| hashed_ids(phrase, sizes.vocab_size, length)).collect()
            }
        };
        let width = rows.first().map_or(0, Vec::len) as i64;
        let shape = [rows.len() as i64, width];
        // The end token is the largest id of a row, and what follows it is padding.
        let attended: Vec<i64> = rows
            .iter()
            .flat_map(|row| {
                let end = (0..row.len()).max_by_key(|n| (row[*n], std::cmp::Reverse(*n))).unwrap_or(0);
                (0..row.len()).map(move |n| i64::from(n <= end))
            })
            .collect();
        let flat: Vec<i64> = rows.into_iter().flatten().collect();
        Ok((Tensor::f_from_slice(&flat)?.f_view(shape)?, Tensor::f_from_slice(&attended)?.f_view(shape)?))
    }
}

/// Ids of a phrase for a network without a tokenizer: a start (`vocab − 2`), for each word, lower-cased, one of the ids 1
/// to `vocab − 3` by its SHA-256, an end (`vocab − 1`), zeros up to `length`. Words beyond `length − 2` are left out.
pub fn hashed_ids(phrase: &str, vocab: i64, length: usize) -> Vec<i64> {
    let words = phrase.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let range = (vocab - 3).max(1);
    let id = |word: &str| {
        let digest = Sha256::digest(word.to_lowercase().as_bytes());
        let number = digest.iter().take(7).fold(0i64, |number, byte| (number << 8) | i64::from(*byte));
        1 + number % range
    };
    let mut ids = vec![vocab - 2];
    ids.extend(words.take(length.saturating_sub(2)).map(id));
    ids.push(vocab - 1);
    ids.resize(length.max(2), 0);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeededInit;
    use crate::params::testing::Recorder;
    use std::collections::BTreeMap;

    #[test]
    fn words_have_ids_of_their_own_whatever_their_case() {
        let ids = hashed_ids("A red, CUP", 1000, 6);
        assert_eq!((ids.len(), ids[0], ids[4], ids[5]), (6, 998, 999, 0));
        assert_eq!(hashed_ids("a RED cup", 1000, 6), ids);
        assert_ne!(hashed_ids("a red dog", 1000, 6)[3], ids[3]);
        assert!(ids[1..4].iter().all(|id| (1..998).contains(id)));
        assert_eq!(
            hashed_ids("one two three four", 1000, 4),
            [ids[0], hashed_ids("one", 1000, 3)[1], hashed_ids("two", 1000, 3)[1], 999]
        );
    }

    #[test]
    fn one_file_is_enough_and_says_what_is_missing() {
        let config: Owlv2Config = serde_json::from_value(serde_json::json!({
            "text_config": {
                "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 8,
            },
            "vision_config": {
                "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "image_size": 20, "patch_size": 5,
            },
            "projection_dim": 16,
        }))
        .expect("a configuration");
        let mut recorder = Recorder::new(SeededInit::new(3, Kind::Float, Device::Cpu));
        Owlv2::build(&config, Device::Cpu, &mut recorder).expect("build");
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("owl.safetensors");
        let save = |strings: &[(&str, &str)]| {
            let strings: BTreeMap<String, String> =
                strings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            crate::weights::save(&path, &recorder.tensors, &strings).expect("save");
        };
        let load = || Owlv2Detector::load(&path, Kind::Float, Device::Cpu);
        let written = serde_json::to_string(&config).expect("encode");
        save(&[(CONFIG_KEY, &written), (WORDS_KEY, HASHED)]);
        let detector = load().expect("load");
        let picture = RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 90]));
        let found = detector.find(&picture, &["a cup", "the dog"], 0.0).expect("find");
        assert!(!found.is_empty() && found.iter().all(|one| one.query < 2 && one.score > 0.0));
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        assert!(detector.find(&picture, &[], 0.0).expect("nothing asked").is_empty());
        save(&[(WORDS_KEY, HASHED)]);
        assert!(load().expect_err("no config").to_string().contains("config.json"));
        save(&[(CONFIG_KEY, &written), (WORDS_KEY, "spoken")]);
        assert!(load().expect_err("no such words").to_string().contains("spoken"));
    }
}
