//! Prompts to token ids, by the rules that the text encoders were trained with.
//!
//! Words and pieces come from a published `tokenizer.json`; what is put around them (start and end tokens, padding,
//! truncation) comes from a [`TokenRule`] alone, because published files differ in which of it they state.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::published::{not_usable, read_bounded};

/// Largest tokenizer file that is read, bytes: that of T5 has 2.4 million.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Longest prompt, bytes: over a hundred times what fits in the longest sequence of tokens.
pub const MAX_PROMPT_BYTES: usize = 1 << 20;
/// Largest number of tokens of a rule.
const MAX_LENGTH: usize = 1 << 16;

/// What is put around a prompt's own tokens. Tokens are named as the tokenizer's file spells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// Number of tokens of every prompt: longer ones are cut before their end token, shorter ones padded after it.
    pub max_length: usize,
    pub start: Option<String>,
    pub end: String,
    pub padding: String,
}

impl TokenRule {
    /// T5's: 512 tokens with `</s>` (id 1) after the text and `<pad>` (id 0) after that.
    pub fn t5() -> Self {
        Self { max_length: 512, start: None, end: "</s>".to_owned(), padding: "<pad>".to_owned() }
    }

    /// That of the CLIP text tower of FLUX.1: 77 tokens, `<|startoftext|>` (id 49406) before the text, `<|endoftext|>`
    /// (id 49407) after it and as padding.
    pub fn clip() -> Self {
        let end = "<|endoftext|>".to_owned();
        Self { max_length: 77, start: Some("<|startoftext|>".to_owned()), padding: end.clone(), end }
    }
}

/// A tokenizer with its rule. It can be used from several threads.
pub struct PromptTokenizer {
    inner: tokenizers::Tokenizer,
    max_length: usize,
    start: Option<i64>,
    end: i64,
    padding: i64,
    largest_id: i64,
}

impl std::fmt::Debug for PromptTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptTokenizer")
            .field("max_length", &self.max_length)
            .field("start", &self.start)
            .field("end", &self.end)
            .field("padding", &self.padding)
            .field("largest_id", &self.largest_id)
            .finish_non_exhaustive()
    }
}

impl PromptTokenizer {
    /// Reads a `tokenizer.json`, or a folder that holds one. A folder of CLIP's older form will do, as FLUX.1 carries it:
    /// `vocab.json` and `merges.txt`.
    pub fn load(path: &Path, rule: &TokenRule) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_bytes(&read_bounded(path, MAX_FILE_BYTES)?, path, rule);
        }
        let file = |name: &str| Some(path.join(name)).filter(|path| path.is_file());
        if let Some(whole) = file("tokenizer.json") {
            return Self::load(&whole, rule);
        }
        match (file("vocab.json"), file("merges.txt")) {
            (Some(vocab), Some(merges)) => {
                let whole = clip_tokenizer(&vocab, &merges)?;
                Self::from_bytes(whole.to_string().as_bytes(), &vocab, rule)
            }
            _ => Err(not_usable(path, "the folder has no tokenizer.json, nor vocab.json with merges.txt")),
        }
    }

    fn from_bytes(bytes: &[u8], path: &Path, rule: &TokenRule) -> Result<Self> {
        if !(2..=MAX_LENGTH).contains(&rule.max_length) {
            let reason = format!("{} is not within 2..={MAX_LENGTH}", rule.max_length);
            return Err(ModelError::Config { field: "max_length", reason });
        }
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|reason| not_usable(path, format!("it is no tokenizer: {reason}")))?;
        // The rule alone cuts and pads, whatever the file says.
        inner.with_truncation(None).map_err(|error| not_usable(path, error.to_string()))?;
        inner.with_padding(None);
        let id = |token: &str| {
            let id = inner.token_to_id(token).map(i64::from);
            id.ok_or_else(|| not_usable(path, format!("it has no token {token:?}")))
        };
        let (start, end) = (rule.start.as_deref().map(id).transpose()?, id(&rule.end)?);
        let padding = id(&rule.padding)?;
        let largest_id = inner.get_vocab(true).into_values().max().map_or(0, i64::from);
        Ok(Self { max_length: rule.max_length, start, end, padding, largest_id, inner })
    }

    /// Number of tokens of every prompt.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The largest id that can come out, which an encoder's vocabulary must reach.
    pub fn largest_id(&self) -> i64 {
        self.largest_id
    }

    /// The ids of one prompt, `max_length` of them. The empty prompt is the start and end tokens alone.
    ///
    /// A special token written out in the prompt is that token, as in the published tokenizers.
    pub fn ids(&self, prompt: &str) -> Result<Vec<i64>> {
        let bytes = prompt.len();
        if bytes > MAX_PROMPT_BYTES {
            let reason = format!("{bytes} bytes are more than {MAX_PROMPT_BYTES}");
            return Err(ModelError::input("prompt", reason));
        }
        let encoding = guarded(|| self.inner.encode_fast(prompt, false))
            .map_err(|reason| ModelError::input("prompt", reason))?;
        let around = 1 + usize::from(self.start.is_some());
        let text = encoding.get_ids().iter().take(self.max_length - around).map(|id| i64::from(*id));
        let mut ids: Vec<i64> = self.start.into_iter().chain(text).chain([self.end]).collect();
        ids.resize(self.max_length, self.padding);
        Ok(ids)
    }

    /// The ids of each prompt, int64 `[prompts, max_length]` on the CPU.
    pub fn encode(&self, prompts: &[&str]) -> Result<Tensor> {
        let shape = [prompts.len() as i64, self.max_length as i64];
        let mut ids = Vec::with_capacity(prompts.len() * self.max_length);
        for prompt in prompts {
            ids.extend(self.ids(prompt)?);
        }
        if ids.is_empty() {
            return Ok(Tensor::f_zeros(shape, (Kind::Int64, tch::Device::Cpu))?);
        }
        Ok(Tensor::f_from_slice(&ids)?.f_view(shape)?)
    }
}

/// Runs the tokenizer library on foreign data: it unwraps in places that only a malformed file reaches.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer library gave up on it".to_owned()),
    }
}

/// CLIP's tokenizer as a `tokenizer.json`: byte-level pairs within words of lower-cased text, each word's last piece
/// marked with `</w>` (transformers `convert_slow_tokenizer.py`, `CLIPConverter`).
fn clip_tokenizer(vocab: &Path, merges: &Path) -> Result<Value> {
    let words: Value = serde_json::from_slice(&read_bounded(vocab, MAX_FILE_BYTES)?)
        .map_err(|error| not_usable(vocab, error.to_string()))?;
    let text = String::from_utf8(read_bounded(merges, MAX_FILE_BYTES)?)
        .map_err(|error| not_usable(merges, error.to_string()))?;
    let mut pairs = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()) {
        match line.split_once(' ') {
            Some(pair) => pairs.push(pair),
            None => return Err(not_usable(merges, format!("{line:?} is no pair"))),
        }
    }
    let TokenRule { start, end, .. } = TokenRule::clip();
    let added: Vec<Value> = start
        .iter()
        .chain([&end])
        .filter_map(|token| Some((token, words.get(token)?)))
        .map(|(token, id)| {
            json!({
                "id": id, "content": token, "special": true, "normalized": true,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
                "behavior": "Removed",
                "invert": true,
            },
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "model": {
            "type": "BPE",
            "unk_token": end,
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "vocab": words,
            "merges": pairs,
        },
    }))
}

/// Checks ids, int64 `[batch, tokens]` with at least one of each, against a vocabulary before they index a table: an
/// index out of range on a GPU would end every later operation there. Gives the two sizes.
pub(crate) fn check_ids(ids: &Tensor, vocab_size: i64) -> Result<(i64, i64)> {
    let (batch, tokens) = match *ids.size().as_slice() {
        [batch, tokens] if batch > 0 && tokens > 0 => (batch, tokens),
        ref other => {
            return Err(ModelError::input("ids", format!("shape {other:?} is not [batch, tokens]")));
        }
    };
    let kind = ids.f_kind()?;
    if kind != Kind::Int64 {
        return Err(ModelError::input("ids", format!("dtype {kind:?} is not Int64")));
    }
    let (least, most) = (ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?);
    if least < 0 || most >= vocab_size {
        let reason =
            format!("they reach from {least} to {most}, the vocabulary from 0 to {}", vocab_size - 1);
        return Err(ModelError::input("ids", reason));
    }
    Ok((batch, tokens))
}

#[cfg(test)]
pub(crate) mod tests;
