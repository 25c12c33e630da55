//! Plain data of the resolved spec. Defaults come from the published recipe (UNO paper, section 4.1, and the released
//! code); where the two differ, the field says which one is taken.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::log_source::LogSpec;
use super::start::StartSpec;

/// A job with every default filled in. Its JSON form is what nodes receive, and what is stored.
///
/// Versions before a field was there refuse a spec that has it. So a field that is added later is left out of the JSON form where it
/// says what was so before: a spec that uses nothing new can be read by an older controller after a rollback, and by older nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// `metadata.name`: `[a-z0-9-]`, 1 to 40 characters.
    pub name: String,
    /// `metadata.tenant`: `[a-z0-9-]`, 1 to 40 characters; `default` if absent.
    pub tenant: String,
    /// `metadata.labels`: at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    pub model: ModelSpec,
    pub resources: Resources,
    /// Queue that the job waits in; its tenant's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Minutes for which its gangs hold slots at most, in all; then it saves a checkpoint and ends as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit_minutes: Option<u32>,
    /// Higher goes first; -1000 to 1000, 0 if absent.
    pub priority: i32,
    /// Seed of all randomness in the job.
    pub seed: u64,
    /// What a stage may go on with on another kind of processor. Specs that were stored before there was a choice are lenient.
    #[serde(default, skip_serializing_if = "Reproducible::is_lenient")]
    pub reproducible: Reproducible,
    /// Language models on the network that curation may ask. Specs that were stored before there were any have none.
    #[serde(default)]
    pub endpoints: Vec<EndpointSpec>,
    /// At least one.
    pub stages: Vec<StageSpec>,
    pub checkpoints: CheckpointPolicy,
    /// What is drawn of checkpoints, for people to see; nothing if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SamplesSpec>,
}

/// The network that is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSpec {
    pub preset: ModelPreset,
    /// Sizes of the network in place of the preset's. Specs that were stored before there was a choice have none.
    #[serde(default)]
    pub sizes: Option<NetworkSizes>,
    /// safetensors file with the base weights: a path, or a key below the object store's root as `store:<key>`.
    /// Absent: fresh weights drawn from the job's seed, only with `adapter: none` in the first stage.
    pub weights: Option<String>,
    /// Folder of the networks around it, laid out as the published FLUX.1; absent: the folder of `weights`. Nano has none.
    #[serde(default)]
    pub encoders: Option<String>,
    /// Arithmetic of the frozen base.
    pub precision: Precision,
}

/// Sizes that a network may have of its own. What its encoders fix (channels of a token, widths of the text) is the
/// preset's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSizes {
    pub hidden_size: u32,
    pub num_heads: u32,
    /// Channels of a head for each position axis: even, and together `hidden_size / num_heads`.
    pub axes: AxisSizes,
    /// Double-stream blocks.
    pub depth: u32,
    /// Single-stream blocks.
    pub depth_single_blocks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AxisSizes {
    pub frame: u32,
    pub row: u32,
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelPreset {
    FluxDev,
    FluxSchnell,
    Nano,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Settled once for a stage: bf16 where it is clearly faster on every node that may work on it.
    Auto,
    F32,
    Bf16,
    /// As bf16, but for the weights of the blocks' large products, which are rounded to 8 bits.
    Fp8,
}

impl Precision {
    /// Whether activations are bfloat16 wherever it computes.
    pub fn flows_in_bf16(self) -> bool {
        matches!(self, Self::Bf16 | Self::Fp8)
    }
}

/// What has to be the same from run to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reproducible {
    /// A stage goes on wherever there is room; a change of processor that shows in the last bits is told.
    #[default]
    Lenient,
    /// A stage goes on from a checkpoint only on the kind of processor, with the ranks and threads, that wrote it.
    Strict,
}

impl Reproducible {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    fn is_lenient(&self) -> bool {
        *self == Self::Lenient
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// Ranks of the gang, one per GPU (or per CPU slot on nodes without GPUs).
    pub gpus: u32,
    /// The gang may shrink to this many; equal to `gpus` if absent.
    pub min_gpus: u32,
    /// Kind of device that it is trained on.
    #[serde(default, skip_serializing_if = "DeviceChoice::is_auto")]
    pub device: DeviceChoice,
    /// Memory that the GPU of each rank has at least, 10⁹ bytes; what a rank is estimated to need if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_gb: Option<u32>,
    /// Labels that every node has that is given ranks of it; at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// Which nodes are near each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
}

/// Nodes with one value of a label are near each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    pub label: String,
    pub mode: TopologyMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopologyMode {
    /// A gang is on such nodes where it fits.
    Prefer,
    /// A gang is on such nodes only.
    Require,
}

/// Which devices a job is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// As its network wants it: one of FLUX's size on GPUs, where a trainer that has any is known.
    #[default]
    Auto,
    Cuda,
    Cpu,
}

impl Resources {
    /// Kind of device that it asks for: who asks for so much memory of a GPU wants a GPU.
    pub fn asked_device(&self) -> DeviceChoice {
        match self.device {
            DeviceChoice::Auto if self.device_memory_gb.is_some() => DeviceChoice::Cuda,
            device => device,
        }
    }
}

impl DeviceChoice {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageSpec {
    /// Unique in the job: `[a-z0-9-]`, 1 to 40 characters.
    pub name: String,
    /// Reference images per sample, 0 to 8. 0 trains plain text-to-image.
    pub references: u32,
    pub positions: Positions,
    /// Offset of the references, times the published one; above 0, at most 16.
    #[serde(default = "published_scale", skip_serializing_if = "is_published_scale")]
    pub position_scale: f64,
    /// What this stage starts from; nothing but the base if absent.
    pub init_from: Option<StartSpec>,
    pub data: DataSpec,
    pub train: TrainSpec,
}

fn published_scale() -> f64 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_published_scale(scale: &f64) -> bool {
    *scale == published_scale()
}

/// Where reference tokens sit in the rotary position space (UNO paper, section 3.3 and table 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Both axes start past everything before: UnoPE, the published choice.
    Diagonal,
    /// Only rows are offset.
    Height,
    /// Only columns are offset.
    Width,
    /// No offset: references lie on the target.
    None,
    /// No spatial offset; reference n has index n on the frame axis.
    Frame,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")] // `flatten` rules out `deny_unknown_fields`
pub struct DataSpec {
    #[serde(flatten)]
    pub source: DataSource,
    /// Accepted pairs after which curation stops.
    pub pairs: u64,
    /// Committed pairs at which training starts, at most `pairs`.
    pub min_pairs: u64,
    /// Candidates per curation unit.
    pub unit_size: u32,
    /// What drawn pictures are to show; absent in stages that draw none.
    #[serde(default)]
    pub prompts: Option<PromptSpec>,
    pub filter: FilterSpec,
}

/// Optimizer steps of a stage at most.
pub const MAX_STEPS: u64 = 10_000_000;

impl DataSpec {
    /// Pairs that training starts with.
    pub fn pairs_to_start(&self) -> u64 {
        self.min_pairs.min(self.pairs)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum DataSource {
    Compose(ComposeSpec),
    Import(ImportSpec),
    Generate(GenerateSpec),
    Recompose(RecomposeSpec),
    /// As `Recompose`, with the cut itself for a reference.
    Crop(CropSpec),
    /// Made by another stage.
    Log(LogSpec),
}

impl DataSource {
    /// Whether curators draw its pairs with the model, and not only encode them.
    pub fn draws(&self) -> bool {
        match self {
            DataSource::Generate(_) | DataSource::Recompose(_) | DataSource::Crop(_) => true,
            DataSource::Compose(_) | DataSource::Import(_) | DataSource::Log(_) => false,
        }
    }

    /// The word that a spec has for it.
    pub fn word(&self) -> &'static str {
        match self {
            DataSource::Compose(_) => "compose",
            DataSource::Import(_) => "import",
            DataSource::Generate(_) => "generate",
            DataSource::Recompose(_) => "recompose",
            DataSource::Crop(_) => "crop",
            DataSource::Log(_) => "log",
        }
    }

    /// Size that pictures of this source have at most, pixels; `None` where another stage has made them.
    pub fn resolution(&self) -> Option<u32> {
        match self {
            DataSource::Compose(ComposeSpec { panel, .. })
            | DataSource::Generate(GenerateSpec { panel, .. })
            | DataSource::Recompose(RecomposeSpec { crop: CropSpec { panel, .. }, .. })
            | DataSource::Crop(CropSpec { panel, .. }) => Some(*panel),
            DataSource::Import(import) => Some(import.resolution),
            DataSource::Log(_) => None,
        }
    }

    /// The subject library that this source takes from, if it does.
    pub fn library(&self) -> Option<SubjectLibrary<'_>> {
        let (subjects, name_share, hold_out, hold_out_one_in) = match self {
            DataSource::Compose(ComposeSpec { subjects, name_share, hold_out, hold_out_one_in, .. }) => {
                (subjects, name_share, hold_out, hold_out_one_in)
            }
            DataSource::Generate(GenerateSpec {
                subjects, name_share, hold_out, hold_out_one_in, ..
            })
            | DataSource::Recompose(RecomposeSpec {
                crop: CropSpec { subjects, name_share, hold_out, hold_out_one_in, .. },
                ..
            })
            | DataSource::Crop(CropSpec { subjects, name_share, hold_out, hold_out_one_in, .. }) => {
                (subjects.as_ref()?, name_share, hold_out, hold_out_one_in)
            }
            DataSource::Import(_) | DataSource::Log(_) => return None,
        };
        Some(SubjectLibrary {
            subjects,
            name_share: *name_share,
            hold_out,
            hold_out_one_in: *hold_out_one_in,
        })
    }

    /// What cuts second subjects out of targets, if this source does.
    pub fn crop(&self) -> Option<&CropSpec> {
        match self {
            DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => Some(crop),
            DataSource::Compose(_) | DataSource::Import(_) | DataSource::Generate(_) | DataSource::Log(_) => {
                None
            }
        }
    }

    /// The earlier stage whose final checkpoint draws for this source.
    pub fn drawn_by(&self) -> Option<&str> {
        match self {
            DataSource::Recompose(recompose) => Some(&recompose.crop.from),
            DataSource::Compose(_)
            | DataSource::Import(_)
            | DataSource::Generate(_)
            | DataSource::Crop(_)
            | DataSource::Log(_) => None,
        }
    }

    /// The earlier stage of whose pair log this source makes its own pairs.
    pub fn reads_log_of(&self) -> Option<&str> {
        self.crop().filter(|crop| crop.subjects.is_none()).map(|crop| crop.from.as_str())
    }
}

/// What a source takes its subjects from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubjectLibrary<'a> {
    /// Folder on the curators, or `store:<prefix>`.
    pub subjects: &'a str,
    /// Share of the captions that name their subjects.
    pub name_share: f64,
    /// Subjects that are kept out of training, by id or name.
    pub hold_out: &'a [String],
    /// Every n-th subject is kept out as well; 0 keeps out none.
    pub hold_out_one_in: u32,
}

impl SubjectLibrary<'_> {
    /// Whether any subject is kept out of training.
    pub fn holds_out(&self) -> bool {
        self.hold_out_one_in > 0 || !self.hold_out.is_empty()
    }
}

/// Specs that were stored before there was the field.
fn no_true_cfg() -> f64 {
    1.0
}

/// How the job's own model draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrawSpec {
    /// Steps from noise to picture.
    pub steps: u32,
    /// Guidance, for networks that take one.
    pub guidance: f64,
    /// Classifier-free guidance, for networks that are not guidance-distilled; 1 is none.
    #[serde(default = "no_true_cfg")]
    pub true_cfg: f64,
    /// Pictures that are drawn together.
    pub batch: u32,
}

/// `source: generate`: pictures of two panels, drawn by the job's base and split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerateSpec {
    /// Folder of a subject library whose words say what is drawn; absent: the stage's prompts do.
    pub subjects: Option<String>,
    /// Subjects of the library that are kept out, by id or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hold_out: Vec<String>,
    /// Every n-th subject of the library is kept out; 0 keeps out none.
    pub hold_out_one_in: u32,
    /// Share of the captions that name their subject.
    pub name_share: f64,
    /// Share of the pictures whose second panel shows another subject too.
    pub companions: f64,
    /// Longer side of one panel, pixels; a multiple of 16.
    pub panel: u32,
    pub panels: PanelArrangement,
    pub shapes: PanelShapes,
    pub draw: DrawSpec,
}

/// How the two panels of a drawn picture lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PanelArrangement {
    SideBySide,
    Stacked,
    /// Half of each, by unit.
    Both,
}

/// Shapes of a drawn panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PanelShapes {
    /// 1:1, 4:3 and 3:4, by unit.
    All,
    Square,
}

/// `source: crop`: second subjects are found in targets and cut out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CropSpec {
    /// Earlier stage whose accepted pairs are taken, and whose final checkpoint redraws.
    pub from: String,
    /// Folder of a subject library: targets are composed, instead of taken from the log, and it is known where subjects are.
    pub subjects: Option<String>,
    /// Folder of photographs, with `subjects`.
    pub photos: Option<String>,
    /// As in [`ComposeSpec`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hold_out: Vec<String>,
    pub hold_out_one_in: u32,
    pub name_share: f64,
    /// Height and width of a target with `subjects`, and longer side of a reference, pixels; a multiple of 16.
    pub panel: u32,
    /// safetensors file of the detector, OWLv2 naming; not needed with `subjects`.
    pub detector: Option<String>,
    /// Least score of what is found, 0 to 1.
    pub detector_min: f64,
    /// Share of the target's area that a second subject takes at least, and at most.
    pub box_share: (f64, f64),
    /// Share of the smaller of two boxes that may lie in the other.
    pub box_overlap: f64,
}

/// `source: recompose`: the cut is drawn once more by an earlier stage's model, elsewhere and otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecomposeSpec {
    #[serde(flatten)]
    pub crop: CropSpec,
    pub draw: DrawSpec,
}

/// `source: compose`: subject cut-outs placed in scenes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComposeSpec {
    /// Subject library on the curators, or a plain folder of pictures; or `store:<prefix>`.
    pub subjects: String,
    /// Folder of photographs used as scenes besides the procedural ones; none if absent.
    pub photos: Option<String>,
    /// What one target picture is.
    pub layout: ComposeLayout,
    /// Height and width of one panel, pixels; a multiple of 16.
    pub panel: u32,
    /// Share of the captions that name their subjects; the others say "the subject", so that only the reference tells
    /// what it looks like. Specs that were stored before there was a choice name all.
    #[serde(default = "all_named")]
    pub name_share: f64,
    /// Subjects that are kept out of training for evaluation, by id or name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hold_out: Vec<String>,
    /// Every n-th subject (by stable hash) is kept out as well; 0 keeps out none.
    pub hold_out_one_in: u32,
}

fn all_named() -> f64 {
    1.0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComposeLayout {
    /// One scene with `references` subjects (one if `references` is 0).
    Single,
    /// Two panels side by side with the same subject in two scenes; only without references.
    Diptych,
    /// Half `single`, half `diptych`, by unit; only without references.
    Mixed,
}

/// `source: import`: pairs that exist already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportSpec {
    /// Folder on the curators, or `store:<prefix>`.
    pub path: String,
    pub format: ImportFormat,
    /// UNO-1M: keep records whose recomputed score (mean of the parts) is at least this, 0 to 4.
    pub min_score: f64,
    /// UNO-1M: what to do where the published total is not the mean of its parts. Specs that were stored before there was a
    /// choice recompute it.
    #[serde(default)]
    pub score_disagreement: ScoreDisagreement,
    /// UNO-1M: what to do with a score outside 0 to 4.
    #[serde(default)]
    pub score_invalid: ScoreInvalid,
    /// UNO-1M: which of the two pictures may be the target.
    #[serde(default)]
    pub directions: Directions,
    /// How photographs lie. Specs that were stored before there was a choice take them as stored.
    #[serde(default = "Orientation::before", skip_serializing_if = "Orientation::is_as_before")]
    pub orientation: Orientation,
    /// Target resolution in pixels: pictures go to the nearest aspect bucket at this size.
    pub resolution: u32,
}

/// Which score a record has when its published total is not the mean of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreDisagreement {
    /// The mean of the parts, as the paper defines it.
    #[default]
    Recompute,
    /// The published total, as the published filter script takes it.
    Trust,
    /// None: it is rejected.
    Reject,
}

/// What becomes of a record with a score outside 0 to 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreInvalid {
    /// It is rejected.
    #[default]
    Reject,
    /// Such a part, or such a total, counts as absent.
    Ignore,
}

/// Which pairs a record gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// The first picture is the reference, the second the target (released code).
    #[default]
    Forward,
    /// That, and the reverse with the first picture's caption.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// `labels/splitN.json` or one total label file, with `images/`.
    Uno1m,
    /// The records that UNO's own training reads: `prompt`, `image_paths`, `image_tgt_path`.
    UnoTrain,
    /// WebDataset tars, whoever packed them.
    Webdataset,
}

/// Which way up a picture is taken that says beside its pixels (EXIF) how the camera was held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// Turned, so that up is up.
    #[default]
    Upright,
    /// As its pixels lie in the file: the published code.
    AsStored,
}

impl Orientation {
    /// What there was before there was a choice.
    fn before() -> Orientation {
        Orientation::AsStored
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    fn is_as_before(&self) -> bool {
        *self == Self::before()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilterSpec {
    /// Cosine similarity of the image encoder between target and each reference; absent: no such filter.
    pub similarity: Option<SimilarityFilter>,
    /// A model that scores how well the subject was kept; absent: no such filter.
    #[serde(default)]
    pub judge: Option<JudgeFilter>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SimilarityFilter {
    /// Less is another subject, -1 to 1.
    pub min: f64,
    /// More is a mere copy, -1 to 1.
    pub max: f64,
    /// safetensors file of the image encoder (DINOv2 naming).
    pub encoder: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainSpec {
    pub adapter: AdapterSpec,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples per optimizer step over all ranks; a multiple of the number of ranks.
    pub global_batch: u32,
    /// Samples per forward pass on one rank; the rest is gradient accumulation.
    pub micro_batch: u32,
    /// Default 1e-5 (paper, section 4.1; the released code has 8e-5).
    pub learning_rate: f64,
    /// Optimizer steps of linear warm-up; default 100 (released code, where it has no effect).
    pub warmup_steps: u64,
    /// What the learning rate does after the warm-up. Specs that were stored before there was a choice keep it.
    #[serde(default)]
    pub learning_rate_decay: Decay,
    /// AdamW; defaults 0.9, 0.999, 1e-8, 0.01 (released code).
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
    /// L2 norm to which gradients are clipped; default 1.
    pub max_grad_norm: f64,
    /// Steps in a row that may be skipped because their loss or gradient norm is not finite; default 10. Specs that were
    /// stored before steps were skipped get it too.
    #[serde(default = "default_max_skipped_steps", skip_serializing_if = "is_default_max_skipped_steps")]
    pub max_skipped_steps: u32,
    /// Chance that a sample's prompt is replaced by the empty one; default 0.1 (released code).
    pub text_dropout: f64,
    /// Guidance embedding in training, where the model has one; default 1 (released code).
    pub guidance: f64,
    pub timesteps: TimestepSampling,
    /// Decay of the exponential moving average, every step; absent: none is kept.
    pub ema_decay: Option<f64>,
    /// Target resolution that the time shift is computed for, pixels; default 512, the panel size for nano.
    pub resolution: u32,
    pub on_starvation: OnStarvation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AdapterSpec {
    /// LoRA on every attention projection, as published.
    Lora {
        /// Default 512 (paper, section 4.1).
        rank: u32,
    },
    /// Train all parameters of the network.
    None,
}

fn default_max_skipped_steps() -> u32 {
    10
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_default_max_skipped_steps(steps: &u32) -> bool {
    *steps == default_max_skipped_steps()
}

impl TrainSpec {
    /// Positions of the pair log that the stage trains: each step takes the next `global_batch` of them, and once the log
    /// is sealed it is read again, in another order, after its end.
    pub fn samples(&self) -> u64 {
        self.steps.saturating_mul(u64::from(self.global_batch))
    }

    /// Learning rate of step `step` (from 1 to `steps`): it rises linearly over the warm-up, then follows the decay, which
    /// would reach 0 one step after the last.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let peak = self.learning_rate;
        if step < self.warmup_steps {
            return peak * step as f64 / self.warmup_steps as f64;
        }
        let span = (self.steps + 1).saturating_sub(self.warmup_steps).max(1);
        let done = (step - self.warmup_steps) as f64 / span as f64;
        match self.learning_rate_decay {
            Decay::None => peak,
            Decay::Linear => peak * (1.0 - done),
            Decay::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

/// What the learning rate does between the warm-up and the stage's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Stays at its peak (released code).
    #[default]
    None,
    /// Falls to 0 along a line.
    Linear,
    /// Falls to 0 along half a cosine wave.
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimestepSampling {
    /// Uniform over the 1000-entry shifted table (released code).
    Uniform,
    /// Sigmoid of a standard normal, unshifted: for training a base.
    LogitNormal,
}

/// What a rank does when the next pair is not there and curation still goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStarvation {
    /// Wait, and say so. Keeps runs reproducible.
    Wait,
    /// Go once round the pairs that were read so far, in another order, then look again.
    Repeat,
    /// Fail the job.
    Stop,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Optimizer steps between checkpoints.
    pub every: u64,
    /// Checkpoints kept per stage besides the final one, at least 1.
    pub keep_last: u32,
}

/// Pictures that curators draw with checkpoints while a stage is trained, and the loss on pairs that it never sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SamplesSpec {
    /// Optimizer steps between them; a multiple of `checkpoints.every`. The end of a stage always has them.
    pub every: u64,
    pub prompts: Vec<SamplePrompt>,
    /// Subjects that a stage's library keeps out of training, each drawn in a scene of its own.
    pub held_out: u32,
    /// Pictures of each prompt and subject, each from noise of its own.
    pub pictures: u32,
    /// Seed of that noise, and of what is chosen of the library: jobs with one seed are compared like with like.
    pub seed: u64,
    /// Longer side, pixels; that of the stage's own pictures if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    pub draw: DrawSpec,
    pub weights: SampledWeights,
    /// Pairs of held-out subjects on which the loss is worked out; 0 is none.
    pub validation_pairs: u32,
}

/// Something to draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SamplePrompt {
    pub prompt: String,
    /// Pictures: paths, or keys below the object store's root as `store:<key>`. Drawn by stages with at least as many.
    pub references: Vec<String>,
}

/// Which of a checkpoint's weights draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampledWeights {
    /// Those that are trained.
    Trained,
    /// Their moving average.
    Ema,
}

impl SamplesSpec {
    /// Whether a checkpoint of this step is drawn from.
    pub fn are_due(&self, step: u64, is_final: bool) -> bool {
        is_final || step.is_multiple_of(self.every.max(1))
    }

    /// The prompts that a stage with so many references draws.
    pub fn prompts_of(&self, stage: &StageSpec) -> impl Iterator<Item = &SamplePrompt> {
        let most = stage.references as usize;
        self.prompts.iter().filter(move |prompt| prompt.references.len() <= most)
    }

    /// Held-out subjects that a stage draws, and pairs of them that it is validated on.
    pub fn held_out_of(&self, stage: &StageSpec) -> (u32, u32) {
        let holds_out = stage.data.source.library().is_some_and(|library| library.holds_out());
        if holds_out { (self.held_out, self.validation_pairs) } else { (0, 0) }
    }

    /// Whether anything is drawn of a stage, or validated.
    pub fn has_any_of(&self, stage: &StageSpec) -> bool {
        self.held_out_of(stage) != (0, 0) || self.prompts_of(stage).next().is_some()
    }
}

/// A language model behind an OpenAI-compatible interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSpec {
    /// What the rest of the spec calls it: `[a-z0-9-]`, 1 to 40 characters, unique in the job.
    pub name: String,
    /// Base of its addresses, such as `https://host/v1`; requests go to `chat/completions` below it.
    pub url: String,
    /// Name of the model, as the endpoint knows it.
    pub model: String,
    /// Name of the key that the curators' operator has set up for this address; absent: none is sent.
    pub key: Option<String>,
    /// Requests under way at once, of one curator.
    pub concurrency: u32,
    /// Of one curator.
    pub requests_per_minute: u32,
    /// Tokens, asked and answered, of one curator.
    pub tokens_per_minute: u64,
    /// Time for one try, from connecting to the last byte, seconds.
    pub timeout_seconds: f64,
    /// Tries of one request.
    pub tries: u32,
    /// Tokens that one answer may have.
    pub max_tokens: u32,
    /// Price of a million tokens asked, in the money of `spend_limit`.
    pub input_price: f64,
    /// Price of a million tokens answered.
    pub output_price: f64,
    /// Money that the job may spend here, over all curators; absent: no limit.
    pub spend_limit: Option<f64>,
}

/// The filter that scores pairs part by part (UNO paper, section 3.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")] // `flatten` rules out `deny_unknown_fields`
pub struct JudgeFilter {
    /// Least score of a pair that is kept, 0 to 4.
    pub min: f64,
    #[serde(flatten)]
    pub kind: JudgeKind,
}

/// Who judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum JudgeKind {
    /// A vision-language model, asked in three turns.
    Endpoint {
        /// Name of one of the job's endpoints.
        endpoint: String,
        /// How often a reply that cannot be read is asked for again.
        retries: u32,
        /// Pictures are sent with at most this many pixels on their longer side.
        image_side: u32,
    },
    /// Cosines of CLIP features, mapped to 0 to 4: the weaker judge, for clusters without an endpoint.
    Clip {
        /// Weights in the published naming, a `config.json` beside them.
        weights: String,
        /// `tokenizer.json` of the text tower.
        tokenizer: String,
        /// Cosines of reference and target that score 0 and 4.
        likeness: (f64, f64),
        /// Cosines of target and prompt that score 0 and 4.
        agreement: (f64, f64),
    },
}

/// What drawn pictures are to show (UNO paper, section 3.2 and appendix).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptSpec {
    /// File of categories; absent: the one that is built in. Not looked at where `subjects` is given.
    pub taxonomy: Option<String>,
    /// Subjects to be taken as they are.
    pub subjects: Option<SubjectList>,
    /// At least one, each once.
    pub styles: Vec<PromptStyle>,
    /// Subjects of each category in each style.
    pub subjects_per_category: u32,
    /// Scenes of each subject, at least 2.
    pub scenes_per_subject: u32,
    /// Name of the endpoint that writes subjects and scenes; absent: built-in templates do.
    pub endpoint: Option<String>,
}

/// Phrases that each name one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SubjectList {
    /// A text file with one a line.
    File(String),
    List(Vec<String>),
}

/// How subjects are imagined (UNO paper, appendix).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// May be imaginary.
    Creative,
    /// Could be met in the world.
    Realistic,
    /// Carries visible lettering.
    TextDecorated,
}

impl PromptStyle {
    /// All of them, in their order.
    pub const ALL: [PromptStyle; 3] =
        [PromptStyle::Creative, PromptStyle::Realistic, PromptStyle::TextDecorated];

    /// The word that a spec has for it.
    pub fn word(self) -> &'static str {
        match self {
            PromptStyle::Creative => "creative",
            PromptStyle::Realistic => "realistic",
            PromptStyle::TextDecorated => "text-decorated",
        }
    }
}
