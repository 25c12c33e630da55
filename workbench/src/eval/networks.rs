//! The published networks behind the scores: CLIP ViT-B/32, DINO ViT-S/16, and OWLv2 to find subjects.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crescendo_model::clip::{Clip, ClipConfig};
use crescendo_model::dino::{Dino, DinoConfig};
use crescendo_model::owlv2::{self, Owlv2, Owlv2Config};
use crescendo_model::pictures::processor::ImageProcessor;
use crescendo_model::pictures::to_unit_range;
use crescendo_model::tch::{Device, Kind, Tensor, no_grad};
use crescendo_model::tokenizer::{PromptTokenizer, TokenRule};
use image::RgbImage;
use sha2::{Digest as _, Sha256};

use super::judge::{Features, Found, Scorer};

/// Value that pictures are padded with for the detector, as in its training.
const PADDING: f64 = 0.5;
/// Overlap of boxes above which the lower one shows the same object.
const SAME_OBJECT: f32 = 0.5;
/// Boxes of one picture that are looked at, best first.
const MAX_FOUND: usize = 16;

/// Where the networks lie. CLIP and OWLv2 are folders with weights, `config.json` and tokenizer files.
#[derive(Clone, Debug)]
pub struct NetworkFiles {
    pub clip: PathBuf,
    pub dino: PathBuf,
    pub owlv2: Option<PathBuf>,
    /// Score above which the detector's boxes count.
    pub threshold: f32,
}

/// CLIP with its tokenizer.
pub struct Reader {
    pub network: Clip,
    pub tokenizer: PromptTokenizer,
}

/// OWLv2 with its tokenizer.
pub struct Finder {
    pub network: Owlv2,
    pub tokenizer: PromptTokenizer,
    pub threshold: f32,
}

/// The networks on one device.
pub struct Networks {
    clip: Reader,
    dino: Dino,
    finder: Option<Finder>,
    device: Device,
    identity: String,
    clip_processor: ImageProcessor,
    dino_processor: ImageProcessor,
}

impl Networks {
    /// Loads the networks in float32.
    pub fn load(files: &NetworkFiles, device: Device) -> Result<Self> {
        let config = ClipConfig::beside(&files.clip).context("read CLIP's configuration")?;
        // All of them before any is loaded.
        Clip::check_files(&config, &files.clip).context("CLIP")?;
        Dino::check_files(&DinoConfig::dino_vits16(), &files.dino).context("DINO")?;
        if let Some(folder) = &files.owlv2 {
            Owlv2::check_files(&finder_config(folder)?, folder).context("OWLv2")?;
        }
        let length = usize::try_from(config.text_config.max_position_embeddings)?;
        let clip = Reader {
            network: Clip::load(&config, &files.clip, Kind::Float, device).context("load CLIP")?,
            tokenizer: tokenizer(&files.clip, TokenRule { max_length: length, ..TokenRule::clip() })?,
        };
        let dino =
            Dino::load(&DinoConfig::dino_vits16(), &files.dino, Kind::Float, device).context("load DINO")?;
        let mut identity = format!("CLIP {} DINO {}", digest(&files.clip)?, digest(&files.dino)?);
        let finder = match &files.owlv2 {
            Some(folder) => {
                let found = finder(folder, files.threshold, device).context("load OWLv2")?;
                identity.push_str(&format!(" OWLv2 {} above {}", digest(folder)?, files.threshold));
                Some(found)
            }
            None => None,
        };
        Self::new(clip, dino, finder, device, identity)
    }

    /// Networks of any size; `identity` names them.
    pub fn new(
        clip: Reader,
        dino: Dino,
        finder: Option<Finder>,
        device: Device,
        identity: String,
    ) -> Result<Self> {
        let side = u32::try_from(clip.network.config().vision_config.image_size)?;
        let crop = u32::try_from(dino.config().image_size)?;
        // As published: 256 for a crop of 224.
        let resize = (f64::from(crop) * 256.0 / 224.0) as u32;
        let (clip_processor, dino_processor) =
            (ImageProcessor::clip(side), ImageProcessor::dino(resize, crop));
        clip_processor.validate()?;
        dino_processor.validate()?;
        Ok(Self { clip, dino, finder, device, identity, clip_processor, dino_processor })
    }
}

fn tokenizer(folder: &Path, rule: TokenRule) -> Result<PromptTokenizer> {
    PromptTokenizer::load(folder, &rule)
        .with_context(|| format!("load the tokenizer of {}", folder.display()))
}

fn finder_config(folder: &Path) -> Result<Owlv2Config> {
    let path = folder.join("config.json");
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(Owlv2Config::base_patch16_ensemble())
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn finder(folder: &Path, threshold: f32, device: Device) -> Result<Finder> {
    ensure!((0.0..1.0).contains(&threshold), "the threshold {threshold} is not between 0 and 1");
    let config = finder_config(folder)?;
    let max_length = usize::try_from(config.text_config.max_position_embeddings)?;
    Ok(Finder {
        network: Owlv2::load(&config, folder, Kind::Float, device)?,
        // Published queries are padded with the token of id 0.
        tokenizer: tokenizer(folder, TokenRule { max_length, padding: "!".to_owned(), ..TokenRule::clip() })?,
        threshold,
    })
}

/// The start of the digest of a weight file, or of all in a folder, by name.
fn digest(path: &Path) -> Result<String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)
            .with_context(|| format!("list {}", path.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<PathBuf>>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
        loop {
            let count = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
        }
    }
    Ok(digest.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The only row of `[1, width]`.
fn row(features: &Tensor) -> Result<Vec<f32>> {
    let flat = features.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_reshape([-1])?;
    Ok(Vec::<f32>::try_from(&flat)?)
}

impl Scorer for Networks {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self, picture: &RgbImage) -> Result<Features> {
        no_grad(|| {
            let pixels = self.clip_processor.process(&[picture])?.f_to_device(self.device)?;
            let clip = row(&self.clip.network.image_features(&pixels)?)?;
            let pixels = self.dino_processor.process(&[picture])?.f_to_device(self.device)?;
            Ok(Features { clip, dino: row(&self.dino.forward(&pixels)?)? })
        })
    }

    fn read(&self, prompt: &str) -> Result<Vec<f32>> {
        let ids = self.clip.tokenizer.encode(&[prompt])?.f_to_device(self.device)?;
        row(&self.clip.network.text_features(&ids)?)
    }

    fn finds(&self) -> bool {
        self.finder.is_some()
    }

    fn find(&self, picture: &RgbImage, words: &[&str]) -> Result<Vec<Found>> {
        let Some(finder) = &self.finder else { return Ok(Vec::new()) };
        let prompts: Vec<String> = words.iter().map(|words| format!("a photo of a {words}")).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let queries = finder
            .network
            .encode_queries(&finder.tokenizer.encode(&prompts)?.f_to_device(self.device)?, None)?;
        let side = finder.network.config().vision_config.image_size;
        let pixels = to_unit_range(&[picture])?.f_squeeze_dim(0)?;
        let output = finder
            .network
            .detect(&owlv2::prepared(&pixels, side, PADDING)?.f_to_device(self.device)?, &queries)?;
        let (width, height) = picture.dimensions();
        let found = owlv2::detections(&output, 0, (width, height), finder.threshold)?;
        let kept = owlv2::suppress(found, SAME_OBJECT).into_iter();
        Ok(kept
            .filter_map(|found| {
                let (left, top, width, height) = found.bounds.pixels(width, height)?;
                Some(Found { query: found.query, score: found.score, area: [left, top, width, height] })
            })
            .take(MAX_FOUND)
            .collect())
    }
}
