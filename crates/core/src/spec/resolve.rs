//! Puts the fields together to a [`JobSpec`], with the defaults that depend on other fields.

use super::field::Default;
use super::fields;
use super::idle::{self, Idle};
use super::log_source::LogSpec;
use super::reader::{Path, Reader, Section};
use super::start::StartSpec;
use super::tree::Node;
use super::types::*;
use crate::ids::Tenant;

/// Reads a whole spec. Where something is wrong the reader keeps it, and a stand-in takes the value's place.
pub(super) fn job(reader: &mut Reader, root: &Node, submitter: Option<&Tenant>) -> JobSpec {
    let top = Path::default();
    let file = reader.root(root);
    reader.word(file, &top.field("apiVersion"));
    reader.word(file, &top.field("kind"));

    let path = top.field("metadata");
    let metadata = reader.section(file, &path);
    let name = reader.name(metadata, &path.field("name")).unwrap_or_default();
    let tenant = reader.name(metadata, &path.field("tenant")).unwrap_or_else(|| match submitter {
        Some(tenant) => tenant.to_string(),
        None => default_word("metadata.tenant").into(),
    });
    let labels = reader.labels(metadata, &path.field("labels"));

    let path = top.field("spec");
    let spec = reader.section(file, &path);
    let model = model(reader, spec, &path.field("model"));
    let resources = resources(reader, spec, &path.field("resources"), model.preset);
    let queue = reader.name(spec, &path.field("queue"));
    let time_limit_minutes = reader.whole(spec, &path.field("timeLimitMinutes")).map(fit);
    let priority = whole(reader, spec, &path.field("priority"), "spec.priority");
    let seed = whole(reader, spec, &path.field("seed"), "spec.seed");
    let reproducible = match reader.word(spec, &path.field("reproducible")) {
        Some("strict") => Reproducible::Strict,
        _ => Reproducible::Lenient,
    };
    let endpoints = endpoints(reader, spec, &path.field("endpoints"));
    let mut stages: Vec<StageSpec> = Vec::new();
    for (path, section) in reader.sections(spec, &path.field("stages")) {
        let stage = stage(
            reader,
            section,
            &path,
            &Around { earlier: &stages, preset: model.preset, gpus: resources.gpus },
        );
        stages.push(stage);
    }
    let checkpoints = checkpoints(reader, spec, &path.field("checkpoints"));
    let nano = model.preset == ModelPreset::Nano;
    let samples = samples(reader, spec, &path.field("samples"), checkpoints.every, nano);
    JobSpec {
        name,
        tenant,
        labels,
        model,
        resources,
        queue,
        time_limit_minutes,
        priority,
        seed,
        reproducible,
        endpoints,
        stages,
        checkpoints,
        samples,
    }
}

/// What a stage's defaults depend on.
struct Around<'a> {
    earlier: &'a [StageSpec],
    preset: ModelPreset,
    gpus: u32,
}

impl Around<'_> {
    /// Name of the stage before.
    fn before(&self) -> Option<&str> {
        self.earlier.last().map(|stage| stage.name.as_str())
    }

    /// Size that pictures have if nothing says another.
    fn size(&self) -> u32 {
        if self.preset == ModelPreset::Nano { 32 } else { 512 }
    }

    /// What the time shift is computed for: the size of the pictures.
    fn resolution(&self, source: &DataSource) -> u32 {
        let by_earlier = || {
            let from = source.log()?.earlier()?;
            Some(self.earlier.iter().find(|stage| stage.name == from)?.train.resolution)
        };
        source.resolution().or_else(by_earlier).unwrap_or(self.size())
    }
}

fn model(reader: &mut Reader, spec: Section<'_>, path: &Path) -> ModelSpec {
    let section = reader.section(spec, path);
    let preset = match reader.word(section, &path.field("preset")) {
        Some("flux-schnell") => ModelPreset::FluxSchnell,
        Some("nano") => ModelPreset::Nano,
        _ => ModelPreset::FluxDev,
    };
    let sizes = sizes(reader, section, &path.field("sizes"));
    let weights = reader.text(section, &path.field("weights"));
    let encoders = reader.text(section, &path.field("encoders"));
    let precision = match reader.word(section, &path.field("precision")) {
        Some("f32") => Precision::F32,
        Some("bf16") => Precision::Bf16,
        Some("fp8") => Precision::Fp8,
        Some("auto") => Precision::Auto,
        _ if preset == ModelPreset::Nano => Precision::Auto,
        _ => Precision::Bf16,
    };
    ModelSpec { preset, sizes, weights, encoders, precision }
}

fn sizes(reader: &mut Reader, model: Section<'_>, path: &Path) -> Option<NetworkSizes> {
    let section = reader.section(model, path);
    let axes_path = path.field("axes");
    let axes = reader.section(section, &axes_path);
    let mut size = |section, path: Path| whole_or(reader, section, &path, 1);
    let sizes = NetworkSizes {
        hidden_size: size(section, path.field("hiddenSize")),
        num_heads: size(section, path.field("numHeads")),
        axes: AxisSizes {
            frame: size(axes, axes_path.field("frame")),
            row: size(axes, axes_path.field("row")),
            column: size(axes, axes_path.field("column")),
        },
        depth: size(section, path.field("depth")),
        depth_single_blocks: size(section, path.field("depthSingleBlocks")),
    };
    reader.is_section_present(section).then_some(sizes)
}

fn resources(reader: &mut Reader, spec: Section<'_>, path: &Path, preset: ModelPreset) -> Resources {
    let section = reader.section(spec, path);
    let gpus =
        whole_or(reader, section, &path.field("gpus"), if preset == ModelPreset::Nano { 1 } else { 8 });
    let min_gpus = whole_or(reader, section, &path.field("minGpus"), gpus);
    let device = match reader.word(section, &path.field("device")) {
        Some("cuda") => DeviceChoice::Cuda,
        Some("cpu") => DeviceChoice::Cpu,
        _ => DeviceChoice::Auto,
    };
    let device_memory_gb = reader.whole(section, &path.field("deviceMemoryGb")).map(fit);
    let node_labels = reader.labels(section, &path.field("nodeLabels"));
    let topology = reader.topology(section, &path.field("topology"));
    Resources { gpus, min_gpus, device, device_memory_gb, node_labels, topology }
}

fn checkpoints(reader: &mut Reader, spec: Section<'_>, path: &Path) -> CheckpointPolicy {
    let section = reader.section(spec, path);
    CheckpointPolicy {
        every: whole(reader, section, &path.field("every"), "spec.checkpoints.every"),
        keep_last: whole(reader, section, &path.field("keepLast"), "spec.checkpoints.keepLast"),
    }
}

fn stage(reader: &mut Reader, section: Section<'_>, path: &Path, around: &Around<'_>) -> StageSpec {
    let name = reader
        .name(section, &path.field("name"))
        .unwrap_or_else(|| format!("stage-{}", around.earlier.len() + 1));
    let references =
        whole_or(reader, section, &path.field("references"), if around.earlier.is_empty() { 1 } else { 2 });
    let positions = match reader.word(section, &path.field("positions")) {
        Some("height") => Positions::Height,
        Some("width") => Positions::Width,
        Some("none") => Positions::None,
        Some("frame") => Positions::Frame,
        _ => Positions::Diagonal,
    };
    let position_scale = number(reader, section, &path.field("positionScale"), "spec.stages[].positionScale");
    let init_from = start(reader, section, &path.field("initFrom"), around.before());
    // The data's defaults look at the steps and the batch, and the training's at the size of the pictures.
    let train_path = path.field("train");
    let train_section = reader.section(section, &train_path);
    let asked = Asked {
        references,
        steps: whole(reader, train_section, &train_path.field("steps"), "spec.stages[].train.steps"),
        global_batch: whole(
            reader,
            train_section,
            &train_path.field("globalBatch"),
            "spec.stages[].train.globalBatch",
        ),
    };
    let data = data(reader, section, &path.field("data"), asked, around);
    let train = train(reader, train_section, &train_path, asked, around.resolution(&data.source), around);
    StageSpec { name, references, positions, position_scale, init_from, data, train }
}

/// What a stage starts from: the stage before, if it says nothing.
fn start(reader: &mut Reader, stage: Section<'_>, path: &Path, before: Option<&str>) -> Option<StartSpec> {
    match reader.start_or_section(stage, path) {
        Some(Ok(name)) if name == "none" => None,
        Some(Ok(name)) => Some(StartSpec::weights_of(name)),
        Some(Err(section)) => {
            let checkpoint = reader.checkpoint(section, &path.field("checkpoint"));
            let optimizer = reader.word(section, &path.field("optimizer")) == Some("true");
            Some(StartSpec { checkpoint: checkpoint.unwrap_or_default(), optimizer })
        }
        None => before.map(StartSpec::weights_of),
    }
}

/// What the defaults of a stage's data and training follow from.
#[derive(Clone, Copy)]
struct Asked {
    references: u32,
    steps: u64,
    global_batch: u32,
}

impl Asked {
    /// As many pairs as the steps can use, and never more than were published; from the published number of samples on,
    /// those.
    fn pairs(self) -> u64 {
        const PUBLISHED_SAMPLES: u64 = 5000 * 16;
        let published = if self.references >= 2 { 15_000 } else { 230_000 };
        let samples = self.steps.saturating_mul(u64::from(self.global_batch));
        if samples >= PUBLISHED_SAMPLES { published } else { samples.clamp(1, published) }
    }

    /// The released code's, where the stage is long enough for it.
    fn warmup_steps(self) -> u64 {
        (self.steps / 10).min(100)
    }
}

fn data(reader: &mut Reader, stage: Section<'_>, path: &Path, asked: Asked, around: &Around<'_>) -> DataSpec {
    let section = reader.section(stage, path);
    let data_path = path;
    let nano = around.preset == ModelPreset::Nano;
    let size = around.size();
    let source = match reader.word(section, &path.field("source")) {
        Some("import") => {
            reader.check_variant(section, path, "source: import");
            DataSource::Import(import(reader, section, path, size))
        }
        Some("generate") => {
            reader.check_variant(section, path, "source: generate");
            DataSource::Generate(generate(reader, section, path, nano))
        }
        Some("recompose") => {
            reader.check_variant(section, path, "source: recompose");
            DataSource::Recompose(RecomposeSpec {
                crop: crop(reader, section, path, size, around),
                draw: draw(reader, section, path, nano),
            })
        }
        Some("crop") => {
            reader.check_variant(section, path, "source: crop");
            DataSource::Crop(crop(reader, section, path, size, around))
        }
        Some("log") => {
            reader.check_variant(section, path, "source: log");
            let from = reader.stage_of_any_job(section, &path.field("from"));
            let from = from.or_else(|| around.before().map(str::to_owned)).unwrap_or_default();
            DataSource::Log(LogSpec { from })
        }
        Some(_) => {
            reader.check_variant(section, path, "source: compose");
            DataSource::Compose(compose(reader, section, path, size))
        }
        // Reading on as one of the two would blame fields of the other.
        None => DataSource::Compose(ComposeSpec {
            subjects: String::new(),
            photos: None,
            layout: ComposeLayout::Single,
            panel: size,
            name_share: 1.0,
            hold_out: Vec::new(),
            hold_out_one_in: 0,
        }),
    };
    let min_pairs: Option<u64> = reader.whole(section, &path.field("minPairs")).map(fit);
    let pairs =
        whole_or(reader, section, &path.field("pairs"), asked.pairs().max(min_pairs.unwrap_or_default()));
    let min_pairs = min_pairs.unwrap_or_else(|| pairs.min(16 * u64::from(asked.global_batch)));
    let drawn = matches!(source, DataSource::Generate(_) | DataSource::Recompose(_));
    let unit_size = u64::min(if drawn && !nano { 32 } else { 256 }, pairs);
    let unit_size = whole_or(reader, section, &path.field("unitSize"), fit(unit_size.into()));
    let prompts = prompts(reader, section, &path.field("prompts"));
    let filter_path = path.field("filter");
    let filter = reader.section(section, &filter_path);
    let path = filter_path.field("similarity");
    let similarity = reader.section(filter, &path);
    let similarity = reader.is_section_present(similarity).then(|| SimilarityFilter {
        min: reader.number(similarity, &path.field("min")).unwrap_or(-1.0),
        max: number(reader, similarity, &path.field("max"), "spec.stages[].data.filter.similarity.max"),
        encoder: reader.text(similarity, &path.field("encoder")).unwrap_or_default(),
    });
    let judge = judge(reader, filter, &filter_path.field("judge"));
    let data =
        DataSpec { source, pairs, min_pairs, unit_size, prompts, filter: FilterSpec { similarity, judge } };
    for Idle { name, why } in idle::of_data(&data) {
        reader.refuse(section, &data_path.field(name), why);
    }
    data
}

fn compose(reader: &mut Reader, section: Section<'_>, path: &Path, size: u32) -> ComposeSpec {
    ComposeSpec {
        subjects: reader.required_text(section, &path.field("subjects")).unwrap_or_default(),
        photos: reader.text(section, &path.field("photos")),
        layout: match reader.word(section, &path.field("layout")) {
            Some("diptych") => ComposeLayout::Diptych,
            Some("mixed") => ComposeLayout::Mixed,
            _ => ComposeLayout::Single,
        },
        panel: whole_or(reader, section, &path.field("panel"), size),
        name_share: number(reader, section, &path.field("nameShare"), "spec.stages[].data.nameShare"),
        hold_out: hold_out(reader, section, path),
        hold_out_one_in: whole(
            reader,
            section,
            &path.field("holdOutOneIn"),
            "spec.stages[].data.holdOutOneIn",
        ),
    }
}

/// Subjects that are kept out by name.
fn hold_out(reader: &mut Reader, data: Section<'_>, path: &Path) -> Vec<String> {
    match reader.text_or_texts(data, &path.field("holdOut")) {
        None => Vec::new(),
        Some(Ok(one)) => vec![one],
        Some(Err(several)) => several,
    }
}

fn generate(reader: &mut Reader, section: Section<'_>, path: &Path, nano: bool) -> GenerateSpec {
    let row = |name: &str| format!("spec.stages[].data.{name}");
    GenerateSpec {
        subjects: reader.text(section, &path.field("subjects")),
        hold_out: hold_out(reader, section, path),
        hold_out_one_in: whole(reader, section, &path.field("holdOutOneIn"), &row("holdOutOneIn")),
        name_share: number(reader, section, &path.field("nameShare"), &row("nameShare")),
        companions: reader.number(section, &path.field("companions")).unwrap_or(if nano { 0.0 } else { 1.0 }),
        panel: whole_or(reader, section, &path.field("panel"), if nano { 32 } else { 512 }),
        panels: match reader.word(section, &path.field("panels")) {
            Some("stacked") => PanelArrangement::Stacked,
            Some("side-by-side") => PanelArrangement::SideBySide,
            None if nano => PanelArrangement::SideBySide,
            Some(_) | None => PanelArrangement::Both,
        },
        shapes: match reader.word(section, &path.field("shapes")) {
            Some("square") => PanelShapes::Square,
            None if nano => PanelShapes::Square,
            Some(_) | None => PanelShapes::All,
        },
        draw: draw(reader, section, path, nano),
    }
}

fn draw(reader: &mut Reader, data: Section<'_>, data_path: &Path, nano: bool) -> DrawSpec {
    let path = data_path.field("draw");
    draw_of(reader, data, &path, "spec.stages[].data.draw", if nano { 32 } else { 4 })
}

fn draw_of(reader: &mut Reader, parent: Section<'_>, path: &Path, row: &str, batch: u32) -> DrawSpec {
    let section = reader.section(parent, path);
    let row = |name: &str| format!("{row}.{name}");
    DrawSpec {
        steps: whole(reader, section, &path.field("steps"), &row("steps")),
        guidance: number(reader, section, &path.field("guidance"), &row("guidance")),
        true_cfg: number(reader, section, &path.field("trueCfg"), &row("trueCfg")),
        batch: whole_or(reader, section, &path.field("batch"), batch),
    }
}

/// What is drawn of checkpoints, if anything is.
fn samples(
    reader: &mut Reader,
    spec: Section<'_>,
    path: &Path,
    checkpoints_every: u64,
    nano: bool,
) -> Option<SamplesSpec> {
    let section = reader.section(spec, path);
    if !reader.is_section_present(section) {
        return None;
    }
    let prompts = reader.sections(section, &path.field("prompts"));
    let prompts = prompts.into_iter().map(|(path, section)| SamplePrompt {
        prompt: reader.text(section, &path.field("prompt")).unwrap_or_default(),
        references: match reader.text_or_texts(section, &path.field("references")) {
            Some(Ok(one)) => vec![one],
            Some(Err(list)) => list,
            None => Vec::new(),
        },
    });
    let prompts = prompts.collect();
    Some(SamplesSpec {
        every: whole_or(reader, section, &path.field("every"), checkpoints_every),
        prompts,
        held_out: whole(reader, section, &path.field("heldOut"), "spec.samples.heldOut"),
        pictures: whole(reader, section, &path.field("pictures"), "spec.samples.pictures"),
        seed: whole(reader, section, &path.field("seed"), "spec.samples.seed"),
        resolution: reader.whole(section, &path.field("resolution")).map(fit),
        draw: draw_of(reader, section, &path.field("draw"), "spec.samples.draw", if nano { 16 } else { 1 }),
        weights: match reader.word(section, &path.field("weights")) {
            Some("ema") => SampledWeights::Ema,
            _ => SampledWeights::Trained,
        },
        validation_pairs: whole(
            reader,
            section,
            &path.field("validationPairs"),
            "spec.samples.validationPairs",
        ),
    })
}

fn crop(reader: &mut Reader, section: Section<'_>, path: &Path, size: u32, around: &Around<'_>) -> CropSpec {
    let row = |name: &str| format!("spec.stages[].data.{name}");
    CropSpec {
        from: reader
            .name(section, &path.field("from"))
            .unwrap_or_else(|| around.before().unwrap_or_default().to_owned()),
        subjects: reader.text(section, &path.field("subjects")),
        photos: reader.text(section, &path.field("photos")),
        hold_out: hold_out(reader, section, path),
        hold_out_one_in: whole(reader, section, &path.field("holdOutOneIn"), &row("holdOutOneIn")),
        name_share: number(reader, section, &path.field("nameShare"), &row("nameShare")),
        panel: whole_or(reader, section, &path.field("panel"), size),
        detector: reader.text(section, &path.field("detector")),
        detector_min: number(reader, section, &path.field("detectorMin"), &row("detectorMin")),
        box_share: pair(reader, section, &path.field("boxShare"), &row("boxShare")),
        box_overlap: number(reader, section, &path.field("boxOverlap"), &row("boxOverlap")),
    }
}

fn import(reader: &mut Reader, section: Section<'_>, path: &Path, size: u32) -> ImportSpec {
    ImportSpec {
        path: reader.text(section, &path.field("path")).unwrap_or_default(),
        format: match reader.word(section, &path.field("format")) {
            Some("webdataset") => ImportFormat::Webdataset,
            Some("uno-train") => ImportFormat::UnoTrain,
            _ => ImportFormat::Uno1m,
        },
        min_score: number(reader, section, &path.field("minScore"), "spec.stages[].data.minScore"),
        score_disagreement: match reader.word(section, &path.field("scoreDisagreement")) {
            Some("trust") => ScoreDisagreement::Trust,
            Some("reject") => ScoreDisagreement::Reject,
            _ => ScoreDisagreement::Recompute,
        },
        score_invalid: match reader.word(section, &path.field("scoreInvalid")) {
            Some("ignore") => ScoreInvalid::Ignore,
            _ => ScoreInvalid::Reject,
        },
        directions: match reader.word(section, &path.field("directions")) {
            Some("both") => Directions::Both,
            _ => Directions::Forward,
        },
        orientation: match reader.word(section, &path.field("orientation")) {
            Some("as-stored") => Orientation::AsStored,
            _ => Orientation::Upright,
        },
        resolution: whole_or(reader, section, &path.field("resolution"), size),
    }
}

fn train(
    reader: &mut Reader,
    section: Section<'_>,
    path: &Path,
    asked: Asked,
    resolution: u32,
    around: &Around<'_>,
) -> TrainSpec {
    let nano = around.preset == ModelPreset::Nano;
    let Asked { steps, global_batch, .. } = asked;
    let micro_batch = if nano { global_batch.div_ceil(around.gpus.max(1)).max(1) } else { 1 };
    let row = |name: &str| format!("spec.stages[].train.{name}");
    TrainSpec {
        adapter: adapter(reader, section, &path.field("adapter"), if nano { 64 } else { 512 }),
        steps,
        global_batch,
        micro_batch: whole_or(reader, section, &path.field("microBatch"), micro_batch),
        learning_rate: number(reader, section, &path.field("learningRate"), &row("learningRate")),
        warmup_steps: whole_or(reader, section, &path.field("warmupSteps"), asked.warmup_steps()),
        learning_rate_decay: match reader.word(section, &path.field("learningRateDecay")) {
            Some("linear") => Decay::Linear,
            Some("cosine") => Decay::Cosine,
            _ => Decay::None,
        },
        betas: pair(reader, section, &path.field("betas"), &row("betas")),
        eps: number(reader, section, &path.field("eps"), &row("eps")),
        weight_decay: number(reader, section, &path.field("weightDecay"), &row("weightDecay")),
        max_grad_norm: number(reader, section, &path.field("maxGradNorm"), &row("maxGradNorm")),
        max_skipped_steps: whole(reader, section, &path.field("maxSkippedSteps"), &row("maxSkippedSteps")),
        text_dropout: number(reader, section, &path.field("textDropout"), &row("textDropout")),
        guidance: number(reader, section, &path.field("guidance"), &row("guidance")),
        timesteps: match reader.word(section, &path.field("timesteps")) {
            Some("logit-normal") => TimestepSampling::LogitNormal,
            _ => TimestepSampling::Uniform,
        },
        ema_decay: reader.number(section, &path.field("emaDecay")),
        resolution: whole_or(reader, section, &path.field("resolution"), resolution),
        on_starvation: match reader.word(section, &path.field("onStarvation")) {
            Some("repeat") => OnStarvation::Repeat,
            Some("stop") => OnStarvation::Stop,
            _ => OnStarvation::Wait,
        },
    }
}

fn adapter(reader: &mut Reader, train: Section<'_>, path: &Path, default_rank: u32) -> AdapterSpec {
    match reader.word_or_section(train, path) {
        Err(()) => AdapterSpec::None,
        Ok(None) => AdapterSpec::Lora { rank: default_rank },
        Ok(Some(section)) => {
            AdapterSpec::Lora { rank: whole_or(reader, section, &path.field("rank"), default_rank) }
        }
    }
}

fn default_of(row: &str) -> Default {
    fields::find(row).expect("every field that is read has a row in the table").default
}

fn default_word(row: &str) -> &'static str {
    match default_of(row) {
        Default::Word(word) => word,
        other => unreachable!("the table has a word as default of {row}, not {other}"),
    }
}

/// A whole number whose default stands in the table. The range of the row is within `T`.
fn whole<T: TryFrom<i128>>(reader: &mut Reader, section: Section<'_>, path: &Path, row: &str) -> T {
    let value = reader.whole(section, path).unwrap_or_else(|| match default_of(row) {
        Default::Whole(value) => value,
        other => unreachable!("the table has a whole number as default of {row}, not {other}"),
    });
    fit(value)
}

/// A whole number whose default follows from other fields.
fn whole_or<T: TryFrom<i128>>(reader: &mut Reader, section: Section<'_>, path: &Path, default: T) -> T {
    reader.whole(section, path).map_or(default, fit)
}

fn fit<T: TryFrom<i128>>(value: i128) -> T {
    T::try_from(value).ok().expect("the range of a field in the table is within the field's type")
}

fn pair(reader: &mut Reader, section: Section<'_>, path: &Path, row: &str) -> (f64, f64) {
    reader.pair(section, path).unwrap_or_else(|| match default_of(row) {
        Default::Pair(first, second) => (first, second),
        other => unreachable!("the table has a pair as default of {row}, not {other}"),
    })
}

fn number(reader: &mut Reader, section: Section<'_>, path: &Path, row: &str) -> f64 {
    reader.number(section, path).unwrap_or_else(|| match default_of(row) {
        Default::Number(value) => value,
        other => unreachable!("the table has a number as default of {row}, not {other}"),
    })
}

/// The endpoints of a job; none if there is no such list.
fn endpoints(reader: &mut Reader, spec: Section<'_>, path: &Path) -> Vec<EndpointSpec> {
    let row = |name: &str| format!("spec.endpoints[].{name}");
    let sections = reader.sections(spec, path);
    sections
        .into_iter()
        .map(|(path, section)| EndpointSpec {
            name: reader.name(section, &path.field("name")).unwrap_or_default(),
            url: reader.text(section, &path.field("url")).unwrap_or_default(),
            model: reader.text(section, &path.field("model")).unwrap_or_default(),
            key: reader.name(section, &path.field("key")),
            concurrency: whole(reader, section, &path.field("concurrency"), &row("concurrency")),
            requests_per_minute: whole(
                reader,
                section,
                &path.field("requestsPerMinute"),
                &row("requestsPerMinute"),
            ),
            tokens_per_minute: whole(
                reader,
                section,
                &path.field("tokensPerMinute"),
                &row("tokensPerMinute"),
            ),
            timeout_seconds: number(reader, section, &path.field("timeoutSeconds"), &row("timeoutSeconds")),
            tries: whole(reader, section, &path.field("tries"), &row("tries")),
            max_tokens: whole(reader, section, &path.field("maxTokens"), &row("maxTokens")),
            input_price: number(reader, section, &path.field("inputPrice"), &row("inputPrice")),
            output_price: number(reader, section, &path.field("outputPrice"), &row("outputPrice")),
            spend_limit: reader.number(section, &path.field("spendLimit")),
        })
        .collect()
}

/// The judge of a stage, if it has one.
fn judge(reader: &mut Reader, filter: Section<'_>, path: &Path) -> Option<JudgeFilter> {
    let section = reader.section(filter, path);
    if !reader.is_section_present(section) {
        return None;
    }
    let row = |name: &str| format!("spec.stages[].data.filter.judge.{name}");
    let (kind, least) = match reader.word(section, &path.field("kind")) {
        Some("clip") => {
            reader.check_variant(section, path, "kind: clip");
            let kind = JudgeKind::Clip {
                weights: reader.text(section, &path.field("weights")).unwrap_or_default(),
                tokenizer: reader.text(section, &path.field("tokenizer")).unwrap_or_default(),
                likeness: pair(reader, section, &path.field("likeness"), &row("likeness")),
                agreement: pair(reader, section, &path.field("agreement"), &row("agreement")),
            };
            (kind, 3.0)
        }
        _ => {
            reader.check_variant(section, path, "kind: endpoint");
            let kind = JudgeKind::Endpoint {
                endpoint: reader.name(section, &path.field("endpoint")).unwrap_or_default(),
                retries: whole(reader, section, &path.field("retries"), &row("retries")),
                image_side: whole(reader, section, &path.field("imageSide"), &row("imageSide")),
            };
            (kind, 4.0)
        }
    };
    let min = reader.number(section, &path.field("min")).unwrap_or(least);
    Some(JudgeFilter { min, kind })
}

/// What is drawn, if anything is.
fn prompts(reader: &mut Reader, data: Section<'_>, path: &Path) -> Option<PromptSpec> {
    let section = reader.section(data, path);
    if !reader.is_section_present(section) {
        return None;
    }
    let row = |name: &str| format!("spec.stages[].data.prompts.{name}");
    let subjects = reader.text_or_texts(section, &path.field("subjects"));
    let styles = reader.words(section, &path.field("styles"));
    let styles = PromptStyle::ALL
        .into_iter()
        .filter(|style| styles.as_ref().is_none_or(|given| given.contains(&style.word())))
        .collect();
    Some(PromptSpec {
        taxonomy: reader.text(section, &path.field("taxonomy")),
        subjects: subjects.map(|given| match given {
            Ok(file) => SubjectList::File(file),
            Err(list) => SubjectList::List(list),
        }),
        styles,
        subjects_per_category: whole(
            reader,
            section,
            &path.field("subjectsPerCategory"),
            &row("subjectsPerCategory"),
        ),
        scenes_per_subject: whole(reader, section, &path.field("scenesPerSubject"), &row("scenesPerSubject")),
        endpoint: reader.name(section, &path.field("endpoint")),
    })
}
