//! Drawing the cases with the base and with what each stage trained.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crescendo_core::reach::Reach;
use crescendo_core::spec::JobSpec;
use crescendo_curator_node::paths::PathResolver;
use crescendo_curator_node::pipeline::encoder_files;
use crescendo_curator_node::sources::compose::EvalCase;
use crescendo_model::codec::{EncodedText, LatentCodec, TextEncoder};
use crescendo_model::drawing::{FreeGuidance, GenerationRequest, PipelineConfig};
use crescendo_model::flux::{LoadOptions, Storage};
use crescendo_model::randomness::SampleKey;
use crescendo_model::tch::{Device, Kind, Tensor, no_grad};
use crescendo_model::unope::Offsets;
use crescendo_model::{Flux, FluxConfig, LoraAdapter, ModelError, Preset};
use image::RgbImage;

use super::cases::{Block, EVAL_SEED, Places};
use super::figures::{Drawing, span};
use super::job::{Left, Trained};
use super::words::counted;

/// Between two lines about how far it is.
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// Prompts that are encoded together.
const PROMPTS_TOGETHER: usize = 16;
/// Encoders of FLUX as they are published, below the folder of its weights.
const ENCODERS: [&str; 5] = ["ae.safetensors", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"];

/// A model whose pictures are shown: the base, or what a stage ended with.
pub struct Contender {
    pub label: String,
    /// References that it was trained with; none for the base.
    pub references: Option<usize>,
    positions: Offsets,
    /// What a stage trained; none for the base.
    trained: Option<Trained>,
}

impl Contender {
    /// Whether it draws with the job's base weights.
    pub fn needs_base(&self) -> bool {
        !matches!(self.trained, Some(Trained::Network(_)))
    }

    /// Whether what it draws of a block tells what it was trained for.
    pub fn is_scored_on(&self, block: &Block) -> bool {
        block.scored && self.references.is_none_or(|references| references.max(1) == block.references)
    }

    /// Pictures that it draws of a block: of all cases where they are scored, else of those that are shown.
    pub fn pictures_of(&self, block: &Block) -> usize {
        if self.is_scored_on(block) { block.set.cases.len() } else { block.rows() }
    }
}

/// The base, if it is wanted and the job began with one, and every stage that left something.
pub fn contenders(spec: &JobSpec, left: &[Left], with_base: bool) -> Vec<Contender> {
    let first = spec.stages.first().map(Offsets::from);
    let base = first.filter(|_| with_base && spec.model.weights.is_some());
    let base = base.map(|positions| Contender {
        label: "base".to_owned(),
        references: None,
        positions,
        trained: None,
    });
    let stages = spec.stages.iter().zip(left).filter_map(|(stage, left)| {
        Some(Contender {
            label: stage.name.clone(),
            references: Some(stage.references as usize),
            positions: stage.into(),
            trained: Some(left.trained.clone()?),
        })
    });
    base.into_iter().chain(stages).collect()
}

/// How to draw.
#[derive(Clone, Copy)]
pub struct Settings {
    pub drawing: Drawing,
    pub kind: Kind,
    pub storage: Storage,
    pub device: Device,
}

/// The networks around the transformer, with all prompts encoded: the text encoders have left again.
pub struct Drawer {
    preset: Preset,
    config: FluxConfig,
    codec: Box<dyn LatentCodec>,
    prompts: Prompts,
    settings: Settings,
}

impl Drawer {
    /// Loads the encoders of the job's model and encodes the prompts of all cases.
    pub fn open(places: &Places, blocks: &[Block], settings: Settings) -> Result<Self> {
        let model = &places.spec.model;
        let preset = Preset::from(model.preset);
        if preset != Preset::Nano {
            bring_encoders(places)?;
        }
        let roots = PathResolver {
            library: places.library_root.to_owned(),
            store: Some(places.objects.root().to_owned()),
            // Who draws a report reads with the rights of a person at this machine.
            reach: Reach::Everything,
        };
        let files = encoder_files(model, &roots)?;
        files.check().context("the encoders")?;
        let text = files.text(settings.kind, settings.device).context("load the text encoders")?;
        let cases = blocks.iter().flat_map(|block| &block.set.cases);
        let prompts =
            Prompts::encoded(text.as_ref(), cases.map(|case| case.prompt.as_str()), settings.device)
                .context("encode the prompts")?;
        drop(text);
        let codec = files.codec(settings.device).context("load the autoencoder")?;
        Ok(Self { preset, config: FluxConfig::from(model), codec, prompts, settings })
    }

    /// The transformer with the job's base weights.
    pub fn base(&self, places: &Places) -> Result<Flux> {
        let weights = places.spec.model.weights.as_deref().context("the spec has no model.weights")?;
        self.network(&places.resolve(weights)?).context("load the base")
    }

    fn network(&self, path: &Path) -> Result<Flux> {
        let Settings { kind, storage, device, .. } = self.settings;
        let options = LoadOptions { storage, ..LoadOptions::resident(kind, device) };
        Ok(Flux::load_with(&self.config, path, &options)?)
    }

    /// Pictures of each block: of all its cases where the contender is scored on it, else of those that are shown. `base`
    /// is what adapters are laid over.
    pub fn draw(
        &self,
        contender: &Contender,
        base: Option<&Flux>,
        blocks: &[Block],
        progress: &mut Progress,
    ) -> Result<Vec<Vec<RgbImage>>> {
        let Settings { kind, device, .. } = self.settings;
        let own;
        let (flux, adapter) = match &contender.trained {
            Some(Trained::Network(path)) => {
                own =
                    self.network(path).with_context(|| format!("load the network of {}", contender.label))?;
                (&own, None)
            }
            Some(Trained::Adapter(path)) => {
                // Float32 as trained; what it adds is rounded as the network computes.
                let of = if self.preset == Preset::Nano { Kind::Float } else { kind };
                let adapter = LoraAdapter::load(&self.config, path, of, device)
                    .with_context(|| format!("load the LoRA of {}", contender.label))?;
                (base.context("there is no base to draw with")?, Some(adapter))
            }
            None => (base.context("there is no base to draw with")?, None),
        };
        let empty = self.prompts.encode(&[""])?;
        let Drawing { steps, true_cfg } = self.settings.drawing;
        let config = PipelineConfig {
            positions: contender.positions,
            free_guidance: (true_cfg > 1.0).then_some(FreeGuidance { scale: true_cfg, empty: &empty }),
            ..PipelineConfig::for_preset(self.preset, flux, self.codec.as_ref(), steps)
        };
        let mut drawn = Vec::with_capacity(blocks.len());
        for block in blocks {
            let count = contender.pictures_of(block);
            eprintln!(
                "drawing {count} pictures with {} ({})",
                contender.label,
                counted(block.references, "reference")
            );
            let cases = &block.set.cases[..count];
            drawn.push(self.draw_cases(&config, adapter.as_ref(), contender, cases, progress)?);
        }
        Ok(drawn)
    }

    /// Cases of one shape go through the network together.
    fn draw_cases(
        &self,
        config: &PipelineConfig,
        adapter: Option<&LoraAdapter>,
        contender: &Contender,
        cases: &[EvalCase],
        progress: &mut Progress,
    ) -> Result<Vec<RgbImage>> {
        type Shape = Vec<(u32, u32)>;
        let mut of_shape: BTreeMap<Shape, Vec<usize>> = BTreeMap::new();
        let takes_references = contender.references.is_some_and(|references| references > 0);
        let given = |case: &'_ EvalCase| if takes_references { case.references.len() } else { 0 };
        for (n, case) in cases.iter().enumerate() {
            let references = case.references.iter().take(given(case));
            let shape = std::iter::once(&case.truth).chain(references).map(RgbImage::dimensions);
            of_shape.entry(shape.collect()).or_default().push(n);
        }
        let together = if self.preset == Preset::Nano { 38 } else { 2 };
        let mut drawn: Vec<Option<RgbImage>> = vec![None; cases.len()];
        for (shape, numbers) in of_shape {
            let requests: Vec<GenerationRequest> = numbers
                .iter()
                .map(|&n| GenerationRequest {
                    prompt: &cases[n].prompt,
                    references: &cases[n].references[..given(&cases[n])],
                    noise: SampleKey::for_seed(EVAL_SEED + n as u64),
                })
                .collect();
            for (requests, numbers) in requests.chunks(together).zip(numbers.chunks(together)) {
                let pictures = config
                    .draw_requests(&self.prompts, adapter, shape[0], together, requests)
                    .with_context(|| format!("draw with {}", contender.label))?;
                for (&n, picture) in numbers.iter().zip(pictures) {
                    drawn[n] = Some(picture);
                }
                progress.drew(requests.len());
            }
        }
        drawn.into_iter().collect::<Option<Vec<_>>>().context("a picture was not drawn")
    }
}

/// Tells people how far all drawings are.
pub struct Progress {
    total: usize,
    done: usize,
    began: Instant,
    told: Option<Instant>,
}

impl Progress {
    /// Says how many pictures there will be.
    pub fn begin(total: usize) -> Self {
        if total > 0 {
            eprintln!("drawing {} in all", counted(total, "picture"));
        }
        Self { total, done: 0, began: Instant::now(), told: None }
    }

    /// The first estimate comes as soon as there is one.
    fn drew(&mut self, count: usize) {
        self.done += count;
        if self.done < self.total && self.told.is_none_or(|told| told.elapsed() >= BETWEEN_LINES) {
            self.told = Some(Instant::now());
            eprintln!("  {}", left(self.done, self.total, self.began.elapsed()));
        }
    }
}

/// `38 of 152, about 40s left`.
fn left(done: usize, total: usize, took: Duration) -> String {
    #[allow(clippy::cast_precision_loss)] // an estimate
    let seconds = took.as_secs_f64() / done.max(1) as f64 * total.saturating_sub(done) as f64;
    format!("{done} of {total}, about {} left", span(seconds))
}

/// Copies the encoders out of a bucket, where the spec names one.
fn bring_encoders(places: &Places) -> Result<()> {
    let model = &places.spec.model;
    let key = |path: &Option<String>| Some(path.as_deref()?.strip_prefix("store:")?.to_owned());
    let folder = match (&model.encoders, key(&model.weights)) {
        (Some(_), _) => key(&model.encoders),
        (None, weights) => {
            weights.map(|key| key.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.into()))
        }
    };
    for name in folder.iter().flat_map(|_| ENCODERS) {
        let folder = folder.as_deref().unwrap_or_default();
        places.objects.bring(&format!("{folder}/{name}"))?;
    }
    Ok(())
}

/// Prompts that were encoded before the transformer came: T5 alone takes 10 GB.
struct Prompts {
    /// Tokens and pooled vector of each, one row, on the CPU.
    rows: BTreeMap<String, (Tensor, Tensor)>,
    device: Device,
}

impl Prompts {
    /// Encodes `prompts`, and the empty one.
    fn encoded<'a>(
        encoder: &dyn TextEncoder,
        prompts: impl Iterator<Item = &'a str>,
        device: Device,
    ) -> Result<Self> {
        let mut wanted: Vec<&str> = prompts.chain([""]).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut rows = BTreeMap::new();
        for few in wanted.chunks(PROMPTS_TOGETHER) {
            let text = no_grad(|| encoder.encode(few))?;
            for (n, prompt) in few.iter().enumerate() {
                let row = |of: &Tensor| of.f_narrow(0, n as i64, 1)?.f_to_device(Device::Cpu);
                rows.insert((*prompt).to_owned(), (row(&text.txt)?, row(&text.vec)?));
            }
        }
        Ok(Self { rows, device })
    }
}

impl TextEncoder for Prompts {
    fn encode(&self, prompts: &[&str]) -> crescendo_model::Result<EncodedText> {
        let (mut txt, mut vec) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let (tokens, pooled) = self.rows.get(*prompt).ok_or_else(|| ModelError::Input {
                name: "prompts".to_owned(),
                reason: format!("{prompt:?} was not encoded"),
            })?;
            txt.push(tokens);
            vec.push(pooled);
        }
        Ok(EncodedText {
            txt: Tensor::f_cat(&txt, 0)?.f_to_device(self.device)?,
            vec: Tensor::f_cat(&vec, 0)?.f_to_device(self.device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_model::nano::WordVectorText;

    #[test]
    fn what_is_left_is_as_slow_as_what_is_done() {
        assert_eq!(left(38, 152, Duration::from_secs(10)), "38 of 152, about 30s left");
        assert_eq!(left(0, 4, Duration::from_secs(9)), "0 of 4, about 36s left");
    }

    #[test]
    fn prompts_are_given_back_as_they_were_encoded() {
        let prompts = Prompts::encoded(&WordVectorText, ["a cup", "a dog", "a cup"].into_iter(), Device::Cpu);
        let prompts = prompts.unwrap();
        let (kept, direct) = (
            prompts.encode(&["a dog", "", "a cup"]).unwrap(),
            WordVectorText.encode(&["a dog", "", "a cup"]).unwrap(),
        );
        assert_eq!((kept.txt, kept.vec), (direct.txt, direct.vec));
        let error = prompts.encode(&["a cat"]).unwrap_err().to_string();
        assert!(error.contains("a cat"), "{error}");
    }
}
