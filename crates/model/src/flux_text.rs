//! What FLUX.1 takes of a prompt: the tokens of T5 and the pooled vector of CLIP.
//!
//! ```text
//!            ┌─ tokenizer_2 ─ 512 ids ─ text_encoder_2 (T5) ──▶ txt [batch, 512, 4096]
//!  prompts ──┤
//!            └─ tokenizer ─── 77 ids ── text_encoder (CLIP) ──▶ vec [batch, 768]
//! ```

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::clip::{ClipText, ClipTextConfig};
use crate::codec::{EncodedText, TextEncoder};
use crate::error::{ModelError, Result};
use crate::layers::cast;
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{PromptTokenizer, TokenRule};

/// Prompts that go through the encoders together: bounds the memory of a long list.
const PROMPTS_PER_PASS: usize = 8;

/// Where the parts lie. Weights are a file, an index of several, or a folder of either; the configuration is read beside
/// them where there is one. Tokenizers are a `tokenizer.json` or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FluxTextPaths {
    pub clip: PathBuf,
    pub t5: PathBuf,
    pub clip_tokenizer: PathBuf,
    pub t5_tokenizer: PathBuf,
}

impl FluxTextPaths {
    /// The parts of a folder laid out as the published FLUX.1-dev.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            clip: folder.join("text_encoder"),
            t5: folder.join("text_encoder_2"),
            clip_tokenizer: folder.join("tokenizer"),
            t5_tokenizer: folder.join("tokenizer_2"),
        }
    }
}

/// The two text encoders of FLUX.1 with their tokenizers.
#[derive(Debug)]
pub struct FluxText {
    t5: T5Encoder,
    t5_tokens: PromptTokenizer,
    clip: ClipText,
    clip_tokens: PromptTokenizer,
    kind: Kind,
    device: Device,
}

impl FluxText {
    /// Loads all parts into `kind` on `device`. Tokenizers come first: what is wrong with one of those shows at once.
    pub fn load(paths: &FluxTextPaths, kind: Kind, device: Device) -> Result<Self> {
        let Small { clip_config, t5_config, clip_tokens, t5_tokens } = Small::load(paths)?;
        Ok(Self {
            clip: ClipText::load(&clip_config, &paths.clip, kind, device)?,
            t5: T5Encoder::load(&t5_config, &paths.t5, kind, device)?,
            t5_tokens,
            clip_tokens,
            kind,
            device,
        })
    }

    /// Fails if loading would: configurations, tokenizers and headers are looked at, no tensor is read.
    pub fn check_files(paths: &FluxTextPaths) -> Result<()> {
        let Small { clip_config, t5_config, .. } = Small::load(paths)?;
        ClipText::check_files(&clip_config, &paths.clip)?;
        T5Encoder::check_files(&t5_config, &paths.t5)
    }

    /// The dtype that both encoders compute in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device that both encoders are on, and what they give.
    pub fn device(&self) -> Device {
        self.device
    }

    fn encode_few(&self, prompts: &[&str]) -> Result<(Tensor, Tensor)> {
        let txt = self.t5.forward(&self.t5_tokens.encode(prompts)?)?;
        let vec = self.clip.forward(&self.clip_tokens.encode(prompts)?)?.pooled;
        Ok((cast(&txt, Kind::Float)?, cast(&vec, Kind::Float)?))
    }
}

/// All but the weights.
struct Small {
    clip_config: ClipTextConfig,
    t5_config: T5Config,
    clip_tokens: PromptTokenizer,
    t5_tokens: PromptTokenizer,
}

impl Small {
    fn load(paths: &FluxTextPaths) -> Result<Self> {
        let clip_config = ClipTextConfig::beside(&paths.clip)?;
        let t5_config = T5Config::beside(&paths.t5)?;
        let max_length = usize::try_from(clip_config.max_position_embeddings).unwrap_or(usize::MAX);
        let clip_rule = TokenRule { max_length, ..TokenRule::clip() };
        let clip_tokens = PromptTokenizer::load(&paths.clip_tokenizer, &clip_rule)?;
        let t5_tokens = PromptTokenizer::load(&paths.t5_tokenizer, &TokenRule::t5())?;
        check_vocabulary("clip_tokenizer", &clip_tokens, clip_config.vocab_size)?;
        check_vocabulary("t5_tokenizer", &t5_tokens, t5_config.vocab_size)?;
        Ok(Self { clip_config, t5_config, clip_tokens, t5_tokens })
    }
}

/// Every id that the tokenizer gives must have a row in the encoder's table.
fn check_vocabulary(name: &str, tokenizer: &PromptTokenizer, vocab_size: i64) -> Result<()> {
    let largest = tokenizer.largest_id();
    if largest < vocab_size {
        return Ok(());
    }
    let reason = format!("its ids reach {largest}, its encoder has {vocab_size} tokens");
    Err(ModelError::input(name, reason))
}

impl TextEncoder for FluxText {
    /// Tokens `[batch, 512, d_model of T5]` and vectors `[batch, hidden_size of CLIP]`, both float32 on the encoders'
    /// device.
    fn encode(&self, prompts: &[&str]) -> Result<EncodedText> {
        let (mut txt, mut vec) = (Vec::new(), Vec::new());
        for few in prompts.chunks(PROMPTS_PER_PASS) {
            let (tokens, pooled) = self.encode_few(few)?;
            txt.push(tokens);
            vec.push(pooled);
        }
        if txt.is_empty() {
            let options = (Kind::Float, self.device);
            let tokens = [0, self.t5_tokens.max_length() as i64, self.t5.config().d_model];
            return Ok(EncodedText {
                txt: Tensor::f_zeros(tokens, options)?,
                vec: Tensor::f_zeros([0, self.clip.config().hidden_size], options)?,
            });
        }
        Ok(EncodedText { txt: Tensor::f_cat(&txt, 0)?, vec: Tensor::f_cat(&vec, 0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeededInit;
    use crate::params::testing::Recorder;
    use crate::t5::FeedForward;
    use crate::tokenizer::tests::{t5_json, write_clip_files};
    use crate::weights::save;

    /// A folder laid out as the published one, with small random networks.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let paths = FluxTextPaths::in_folder(folder.path());
        for path in [&paths.clip, &paths.t5, &paths.clip_tokenizer, &paths.t5_tokenizer] {
            std::fs::create_dir(path).unwrap();
        }
        let clip = ClipTextConfig {
            vocab_size: 100,
            hidden_size: 12,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 10,
            ..ClipTextConfig::large()
        };
        let t5 = T5Config {
            vocab_size: 8,
            d_model: 10,
            d_kv: 4,
            d_ff: 12,
            num_layers: 1,
            num_heads: 2,
            feed_forward_proj: FeedForward::GatedGelu,
            ..T5Config::xxl()
        };
        let seeded = |seed| Recorder::new(SeededInit::new(seed, Kind::Float, Device::Cpu));
        let mut source = seeded(1);
        ClipText::build(&mut source, "text_model", &clip, Device::Cpu).unwrap();
        save(&paths.clip.join("model.safetensors"), &source.tensors, &Default::default()).unwrap();
        std::fs::write(paths.clip.join("config.json"), serde_json::to_string(&clip).unwrap()).unwrap();
        let mut source = seeded(2);
        T5Encoder::build(&t5, &mut source, Kind::Float, Device::Cpu).unwrap();
        save(&paths.t5.join("model.safetensors"), &source.tensors, &Default::default()).unwrap();
        std::fs::write(paths.t5.join("config.json"), serde_json::to_string(&t5).unwrap()).unwrap();
        write_clip_files(&paths.clip_tokenizer);
        std::fs::write(paths.t5_tokenizer.join("tokenizer.json"), t5_json().to_string()).unwrap();
        folder
    }

    #[test]
    fn a_folder_of_parts_encodes_prompts_of_any_number_and_length() {
        let folder = folder();
        let paths = FluxTextPaths::in_folder(folder.path());
        FluxText::check_files(&paths).unwrap();
        let encoder = FluxText::load(&paths, Kind::Float, Device::Cpu).unwrap();
        let long = "a red apple cat ".repeat(2500);
        let mut prompts = vec!["a red apple", "", "a red pear", long.as_str()];
        prompts.resize(PROMPTS_PER_PASS + 2, "a cat");
        let all = encoder.encode(&prompts).unwrap();
        let batch = prompts.len() as i64;
        assert_eq!((all.txt.size(), all.vec.size()), (vec![batch, 512, 10], vec![batch, 12]));
        let alone = encoder.encode(&["a cat"]).unwrap();
        let last = |tensor: &Tensor| tensor.narrow(0, batch - 1, 1);
        assert!((last(&all.txt) - &alone.txt).abs().max().double_value(&[]) < 1e-4);
        assert!((last(&all.vec) - &alone.vec).abs().max().double_value(&[]) < 1e-4);
        let half = FluxText::load(&paths, Kind::BFloat16, Device::Cpu).unwrap().encode(&["a cat"]).unwrap();
        for (half, float) in [(&half.txt, &alone.txt), (&half.vec, &alone.vec)] {
            assert_eq!(half.kind(), Kind::Float);
            let off = (half - float).norm().double_value(&[]) / float.norm().double_value(&[]);
            assert!(off > 0.0 && off < 0.05, "{off}");
        }
        let row = |i: i64| (all.txt.select(0, i), all.vec.select(0, i));
        assert_ne!(row(0).0, row(2).0);
        assert_ne!(row(0).1, row(1).1);
        let none = encoder.encode(&[]).unwrap();
        assert_eq!((none.txt.size(), none.vec.size()), (vec![0, 512, 10], vec![0, 12]));
    }

    #[test]
    fn a_tokenizer_beyond_its_encoder_is_refused_before_weights_are_read() {
        let folder = folder();
        let paths = FluxTextPaths::in_folder(folder.path());
        let mut json = t5_json();
        json["model"]["vocab"]["plum"] = 8.into();
        std::fs::write(paths.t5_tokenizer.join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::remove_file(paths.t5.join("model.safetensors")).unwrap();
        let check = FluxText::check_files(&paths).unwrap_err().to_string();
        let error = FluxText::load(&paths, Kind::Float, Device::Cpu).unwrap_err().to_string();
        assert_eq!(check, error);
        assert!(error.contains("t5_tokenizer") && error.contains("reach 8"), "{error}");
    }
}
