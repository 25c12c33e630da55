//! The rows of the table of fields.

use super::MAX_STEPS;
use super::field::{Default, Field, Kind, Range};

const fn field(path: &'static str, kind: Kind, default: Default, about: &'static str) -> Field {
    Field { path, kind, default, only_with: "", about }
}

const fn with(only_with: &'static str, field: Field) -> Field {
    Field { only_with, ..field }
}

const fn whole(least: i128, most: i128) -> Kind {
    Kind::Whole { least, most }
}

const fn closed(least: f64, most: f64) -> Range {
    Range { least, least_open: false, most, most_open: false }
}

const fn above(least: f64, most: f64) -> Range {
    Range { least, least_open: true, most, most_open: false }
}

const fn below(least: f64, most: f64) -> Range {
    Range { least, least_open: false, most, most_open: true }
}

const fn between(least: f64, most: f64) -> Range {
    Range { least, least_open: true, most, most_open: true }
}

const COMPOSE: &str = "source: compose";
const IMPORT: &str = "source: import";
/// A library's subjects are composed, drawn, or cut out.
const OF_SUBJECTS: &str = "source: compose|generate|recompose|crop";
const WITH_PHOTOS: &str = "source: compose|recompose|crop";
const GENERATE: &str = "source: generate";
const DRAWN: &str = "source: generate|recompose";
const CUT: &str = "source: recompose|crop";
const TAKES_PAIRS: &str = "source: recompose|crop|log";
const BY_ENDPOINT: &str = "kind: endpoint";
const BY_CLIP: &str = "kind: clip";

/// Every field, parents before children, in the order in which a spec is written.
pub const FIELDS: &[Field] = &[
    field("apiVersion", Kind::Word(&["crescendo/v1"]), Default::Required, "Version of this format."),
    field("kind", Kind::Word(&["TrainingJob"]), Default::Required, "What the file describes."),
    field("metadata", Kind::Section, Default::Required, "Who the job is."),
    field(
        "metadata.name",
        Kind::Name,
        Default::Required,
        "Name of the job; the id that the controller makes begins with it.",
    ),
    field(
        "metadata.tenant",
        Kind::Name,
        Default::Word("default"),
        "Whom the job belongs to; one who submits for a single tenant gets that one by default.",
    ),
    field(
        "metadata.labels",
        Kind::Labels { most: 32 },
        Default::Absent,
        "For people and scripts to find it by: `crescendo jobs --label team=vision`.",
    ),
    field("spec", Kind::Section, Default::Required, "What the job does."),
    field("spec.model", Kind::Section, Default::Required, "The network that is trained."),
    field(
        "spec.model.preset",
        Kind::Word(&["flux-dev", "flux-schnell", "nano"]),
        Default::Required,
        "Sizes of the network. `nano` trains on two CPU cores and has the same shape.",
    ),
    field(
        "spec.model.sizes",
        Kind::Section,
        Default::From("the preset's"),
        "Sizes of the network in place of the preset's, whose encoders it keeps.",
    ),
    field(
        "spec.model.sizes.hiddenSize",
        whole(4, 65_536),
        Default::Required,
        "Width of a token inside the network (3072 in FLUX.1).",
    ),
    field(
        "spec.model.sizes.numHeads",
        whole(1, 1024),
        Default::Required,
        "Attention heads (24 in FLUX.1); divides `hiddenSize`.",
    ),
    field(
        "spec.model.sizes.axes",
        Kind::Section,
        Default::Required,
        "Channels of a head for each position axis: even, and together `hiddenSize` / `numHeads`.",
    ),
    field("spec.model.sizes.axes.frame", whole(2, 4096), Default::Required, "16 in FLUX.1."),
    field("spec.model.sizes.axes.row", whole(2, 4096), Default::Required, "56 in FLUX.1."),
    field("spec.model.sizes.axes.column", whole(2, 4096), Default::Required, "56 in FLUX.1."),
    field(
        "spec.model.sizes.depth",
        whole(0, 1024),
        Default::Required,
        "Double-stream blocks (19 in FLUX.1).",
    ),
    field(
        "spec.model.sizes.depthSingleBlocks",
        whole(0, 1024),
        Default::Required,
        "Single-stream blocks (38 in FLUX.1).",
    ),
    field(
        "spec.model.weights",
        Kind::Text,
        Default::Absent,
        "safetensors file with the base weights: a path, or `store:KEY` below the object store's root. Without it the weights are drawn from `seed`, which only makes sense with `adapter: none`.",
    ),
    field(
        "spec.model.encoders",
        Kind::Text,
        Default::From("the folder of `weights`"),
        "Folder of the autoencoder, the text encoders and the tokenizers, laid out as the published FLUX.1 (`ae.safetensors`, `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2`); curators encode with them. `nano` needs none.",
    ),
    field(
        "spec.model.precision",
        Kind::Word(&["auto", "f32", "bf16", "fp8"]),
        Default::From("bf16, as published; `auto` for `nano`"),
        "Arithmetic of the frozen base. `auto` is settled once for a stage, when the first node is set to work on it and a trainer is known: bf16 if every trainer, and where pairs are drawn every curator, runs it at least 1.2 times as fast as f32 (each measures it when it starts; GPUs do), else f32. `fp8` is bf16 with the weights of the blocks' attention and MLP rounded to 8 bits (e4m3), each multiplied by one scale: half their memory, and products in 8 bits where the GPU has them (from compute capability 8.9 on), with activations rounded too. It is an approximation: see docs/benchmarks.md for its error.",
    ),
    field("spec.resources", Kind::Section, Default::From("all defaults"), "What the job needs."),
    field(
        "spec.resources.gpus",
        whole(1, 1024),
        Default::From("8; 1 for `nano`"),
        "Ranks that train together, one per GPU, or per slot of a node without GPUs. 8 is the published hardware.",
    ),
    field(
        "spec.resources.minGpus",
        whole(1, 1024),
        Default::From("`gpus`"),
        "The job may run on this many when there are no more.",
    ),
    field(
        "spec.resources.device",
        Kind::Word(&["auto", "cuda", "cpu"]),
        Default::Word("auto"),
        "Kind of device that it is trained on. `auto`: where a trainer with GPUs has ever connected, a FLUX-sized network only on those; otherwise GPUs first, then the slots of nodes without any.",
    ),
    field(
        "spec.resources.deviceMemoryGb",
        whole(1, 10_000),
        Default::From("what a rank is estimated to need"),
        "Memory that the GPU of each rank has at least, GB (10⁹ bytes, as its maker counts). Smaller ones are not given to it, nor processors; a node that does not say how much it has is. By default the estimate that `crescendo validate` shows, which is a little low. An estimate of less than 4 GB keeps no GPU away.",
    ),
    field(
        "spec.resources.nodeLabels",
        Kind::Labels { most: 16 },
        Default::Absent,
        "Only trainer nodes with all these labels (`--labels`) are given ranks of it.",
    ),
    field(
        "spec.resources.topology",
        Kind::Topology,
        Default::Absent,
        "Label of trainer nodes that says which of them are near each other, such as a rack. `prefer` puts a gang on nodes with one value of it where it fits, `require` nowhere else.",
    ),
    field(
        "spec.queue",
        Kind::Name,
        Default::From("the queue of its tenant, if there are queues"),
        "Queue that it waits in; `crescendo queues` shows them.",
    ),
    field(
        "spec.timeLimitMinutes",
        whole(1, 5_270_400),
        Default::Absent,
        "Minutes for which its gangs may hold slots, over all its stages and attempts; waiting does not count. Then it saves a checkpoint, gives its slots back and has failed; `crescendo retry` gives it as many minutes again. Others see when it ends at the latest.",
    ),
    field("spec.priority", whole(-1000, 1000), Default::Whole(0), "Higher goes first."),
    field(
        "spec.seed",
        whole(0, u64::MAX as i128),
        Default::Whole(3407),
        "Seed of all randomness in the job. 3407 is the seed of the published sampling code.",
    ),
    field(
        "spec.reproducible",
        Kind::Word(&["lenient", "strict"]),
        Default::Word("lenient"),
        "What a stage may go on from its checkpoint with: `lenient` takes any nodes, and says so where another kind of processor or number of ranks or threads changes the last bits of its numbers; `strict` waits for the kind that wrote the checkpoint, also that of the stage before.",
    ),
    field(
        "spec.endpoints",
        Kind::Sections { most: 16 },
        Default::Absent,
        "Language models behind an OpenAI-compatible interface that curation may ask, as a judge or for prompts. Limits are those of the job, over all its curators, except `concurrency`.",
    ),
    field(
        "spec.endpoints[].name",
        Kind::Name,
        Default::Required,
        "What the rest of the spec calls it; unique in the job.",
    ),
    field(
        "spec.endpoints[].url",
        Kind::Text,
        Default::Required,
        "Base of its addresses, such as `https://host/v1`; requests go to `chat/completions` below it.",
    ),
    field(
        "spec.endpoints[].model",
        Kind::Text,
        Default::Required,
        "Name of the model, as the endpoint knows it.",
    ),
    field(
        "spec.endpoints[].key",
        Kind::Name,
        Default::Absent,
        "Name of a key that the curators' operator has set up for this very address; never the key itself.",
    ),
    field(
        "spec.endpoints[].concurrency",
        whole(1, 256),
        Default::Whole(8),
        "Requests of one curator under way at once.",
    ),
    field(
        "spec.endpoints[].requestsPerMinute",
        whole(1, 1_000_000),
        Default::Whole(600),
        "Requests that the job's curators send in a minute; each keeps to an equal part.",
    ),
    field(
        "spec.endpoints[].tokensPerMinute",
        whole(1000, 10_000_000_000),
        Default::Whole(1_000_000),
        "Tokens, asked and answered, in a minute, in equal parts too.",
    ),
    field(
        "spec.endpoints[].timeoutSeconds",
        Kind::Number(above(0.0, 600.0)),
        Default::Number(60.0),
        "Time for one try, from connecting to the last byte.",
    ),
    field(
        "spec.endpoints[].tries",
        whole(1, 10),
        Default::Whole(5),
        "Tries of one request that fails in a way that may pass.",
    ),
    field(
        "spec.endpoints[].maxTokens",
        whole(16, 32_768),
        Default::Whole(2048),
        "Tokens that one answer may have.",
    ),
    field(
        "spec.endpoints[].inputPrice",
        Kind::Number(closed(0.0, 1_000_000.0)),
        Default::Number(0.0),
        "Price of a million tokens asked.",
    ),
    field(
        "spec.endpoints[].outputPrice",
        Kind::Number(closed(0.0, 1_000_000.0)),
        Default::Number(0.0),
        "Price of a million tokens answered.",
    ),
    field(
        "spec.endpoints[].spendLimit",
        Kind::Number(above(0.0, 1_000_000_000.0)),
        Default::Absent,
        "Money that the job may spend here, over all its curators, in the money of the prices; then the job fails and says so.",
    ),
    field(
        "spec.stages",
        Kind::Sections { most: 16 },
        Default::Required,
        "What is trained, one after the other.",
    ),
    field(
        "spec.stages[].name",
        Kind::Name,
        Default::From("`stage-1`, `stage-2`, …"),
        "Unique in the job; not `none`.",
    ),
    field(
        "spec.stages[].references",
        whole(0, 8),
        Default::From("1 in the first stage, 2 in later ones"),
        "Reference pictures per sample (paper, section 3.2). 0 trains plain text-to-image.",
    ),
    field(
        "spec.stages[].positions",
        Kind::Word(&["diagonal", "height", "width", "none", "frame"]),
        Default::Word("diagonal"),
        "Where reference tokens sit in the rotary position space (paper, section 3.3 and table 5): past everything before on both axes, on one, not at all, or on the frame axis.",
    ),
    field(
        "spec.stages[].positionScale",
        Kind::Number(above(0.0, 16.0)),
        Default::Number(1.0),
        "How far references are offset, times the published offset: with 0.5 the first one begins in the middle of the target, with 2 it leaves a gap. Without meaning for `positions: none`. The published code and ComfyUI know no other than 1.",
    ),
    field(
        "spec.stages[].initFrom",
        Kind::Start,
        Default::From("the stage before; `none` in the first"),
        "Stage whose final checkpoint this one starts from; `none` starts from the base. `JOB/STAGE` is the final checkpoint of a stage of another job of the tenant, `JOB/STAGE/STEP` one of its registered checkpoints, so that one stage I serves many stages II. A name alone takes the weights, and nothing else. The job waits for what that job has yet to train.",
    ),
    field(
        "spec.stages[].initFrom.checkpoint",
        Kind::Checkpoint,
        Default::Required,
        "The checkpoint, as `initFrom` names it by itself.",
    ),
    field(
        "spec.stages[].initFrom.optimizer",
        Kind::Word(&["true", "false"]),
        Default::Word("false"),
        "Whether AdamW's moments and its count of steps are taken over too, and the moving average if both stages have `emaDecay`. The stage's own steps, the order of its pairs and its learning rate begin anew either way.",
    ),
    field("spec.stages[].data", Kind::Section, Default::Required, "Where the stage's pairs come from."),
    field(
        "spec.stages[].data.source",
        Kind::Word(&["compose", "import", "generate", "recompose", "crop", "log"]),
        Default::Required,
        "`compose` places subject cut-outs in scenes; `import` reads pairs that exist; `generate` draws pictures of two panels with the job's base and splits them; `recompose` cuts a second subject out of a target and has an earlier stage draw it elsewhere; `crop` takes the cut itself; `log` makes no pairs, and takes those that another stage has made, in the order of its pair log.",
    ),
    with(
        OF_SUBJECTS,
        field(
            "spec.stages[].data.subjects",
            Kind::Text,
            Default::From("required with `source: compose`, else none"),
            "Subject library on the curators, a folder that `crescendo library make` has made or a plain one of pictures ([own-pictures.md](own-pictures.md)); or `store:PREFIX`. `generate` draws what its words name; `recompose` and `crop` compose their targets from it, instead of taking them from the pair log of `from`.",
        ),
    ),
    with(
        WITH_PHOTOS,
        field(
            "spec.stages[].data.photos",
            Kind::Text,
            Default::Absent,
            "Library of photographs, or plain folder of them, that serve as scenes besides the procedural ones.",
        ),
    ),
    with(
        COMPOSE,
        field(
            "spec.stages[].data.layout",
            Kind::Word(&["single", "diptych", "mixed"]),
            Default::Word("single"),
            "What a target shows: one scene; the same subject in two panels side by side; or half of each. The last two only with `references: 0`.",
        ),
    ),
    with(
        OF_SUBJECTS,
        field(
            "spec.stages[].data.panel",
            whole(16, 2048),
            Default::From("512; 32 for `nano`"),
            "Height and width of one panel, pixels; a multiple of 16. The longer side of panels that are not square.",
        ),
    ),
    with(
        OF_SUBJECTS,
        field(
            "spec.stages[].data.nameShare",
            Kind::Number(closed(0.0, 1.0)),
            Default::Number(1.0),
            "Share of the captions that name their subjects; the others say \"the subject\", so that only the reference, or the other panel, tells what it looks like. `generate` always draws by name; this is about its pairs' prompts.",
        ),
    ),
    with(
        OF_SUBJECTS,
        field(
            "spec.stages[].data.holdOut",
            Kind::TextOrTexts { most: 4096 },
            Default::Absent,
            "Subjects that are kept out of training, for evaluation: ids or names of the library. `crescendo validate` lists who is held out, if the library is on its machine.",
        ),
    ),
    with(
        OF_SUBJECTS,
        field(
            "spec.stages[].data.holdOutOneIn",
            whole(0, 1_000_000),
            Default::Whole(0),
            "About one in this many subjects is kept out as well, chosen by a hash of its id; 0 keeps out none.",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.path",
            Kind::Text,
            Default::Required,
            "Folder on the curators, or `store:PREFIX`.",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.format",
            Kind::Word(&["uno1m", "uno-train", "webdataset"]),
            Default::Word("uno1m"),
            "`uno1m`: the layout of UNO-1M, one reference a pair; `uno-train`: records as UNO's own training reads them (`prompt`, `image_paths`, `image_tgt_path`); `webdataset`: tars with `KEY.target.png`, `KEY.ref0.png` and `KEY.json`, whoever packed them.",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.minScore",
            Kind::Number(closed(0.0, 4.0)),
            Default::Number(4.0),
            "UNO-1M: least mean score of a pair's parts (paper, section 3.2: only 4 is kept).",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.scoreDisagreement",
            Kind::Word(&["recompute", "trust", "reject"]),
            Default::Word("recompute"),
            "UNO-1M: the score of a record whose published total is not the mean of its parts, as about 4 in 10 are: the mean (paper, section 3.2), the total (the published filter script), or none (`score_disagrees`).",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.scoreInvalid",
            Kind::Word(&["reject", "ignore"]),
            Default::Word("reject"),
            "UNO-1M: a record with a score outside 0 to 4 is rejected (`score_invalid`), or that score counts as absent.",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.directions",
            Kind::Word(&["forward", "both"]),
            Default::Word("forward"),
            "UNO-1M: `forward` takes the first picture as reference and the second as target (released code); `both` also the reverse, with the first picture's caption: two candidates a record.",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.orientation",
            Kind::Word(&["upright", "as-stored"]),
            Default::Word("upright"),
            "A photograph whose EXIF data say how the camera was held is turned upright, or taken as its pixels lie (the published code).",
        ),
    ),
    with(
        IMPORT,
        field(
            "spec.stages[].data.resolution",
            whole(16, 4096),
            Default::From("512; 32 for `nano`"),
            "Pictures go to the nearest aspect bucket at this size, pixels; a multiple of 16.",
        ),
    ),
    with(
        GENERATE,
        field(
            "spec.stages[].data.panels",
            Kind::Word(&["side-by-side", "stacked", "both"]),
            Default::From("`both`; `side-by-side` for `nano`"),
            "How the two panels of a drawn picture lie (paper, appendix: both).",
        ),
    ),
    with(
        GENERATE,
        field(
            "spec.stages[].data.shapes",
            Kind::Word(&["all", "square"]),
            Default::From("`all`; `square` for `nano`"),
            "Shapes of a panel: 1:1, 4:3 and 3:4 by turns (paper, section 3.2), or 1:1 alone.",
        ),
    ),
    with(
        GENERATE,
        field(
            "spec.stages[].data.companions",
            Kind::Number(closed(0.0, 1.0)),
            Default::From("1; 0 for `nano`"),
            "Share of the pictures whose second panel shows another subject too, which a later stage can cut out (paper, appendix: all).",
        ),
    ),
    with(
        TAKES_PAIRS,
        field(
            "spec.stages[].data.from",
            Kind::From,
            Default::From("the stage before"),
            "Earlier stage whose accepted pairs are taken, and whose final checkpoint redraws. With `source: log` its pairs are trained on as they are, while they are made or afterwards; `JOB/STAGE` is a stage of another job of the tenant. Both stages have the same number of `references`, and the other one has a source of its own.",
        ),
    ),
    with(
        CUT,
        field(
            "spec.stages[].data.detector",
            Kind::Text,
            Default::From("required without `subjects`, else none"),
            "safetensors file of the detector that finds second subjects, OWLv2 naming; its configuration is in the file or beside it.",
        ),
    ),
    with(
        CUT,
        field(
            "spec.stages[].data.detectorMin",
            Kind::Number(closed(0.0, 1.0)),
            Default::Number(0.2),
            "Least score of what the detector finds. The paper names neither detector nor threshold.",
        ),
    ),
    with(
        CUT,
        field(
            "spec.stages[].data.boxShare",
            Kind::Pair(closed(0.0, 1.0)),
            Default::Pair(0.02, 0.5),
            "Share of the target's area that a second subject takes at least, and at most; ours.",
        ),
    ),
    with(
        CUT,
        field(
            "spec.stages[].data.boxOverlap",
            Kind::Number(closed(0.0, 1.0)),
            Default::Number(0.3),
            "Share of the smaller of two boxes that may lie in the other; ours.",
        ),
    ),
    with(
        DRAWN,
        field(
            "spec.stages[].data.draw",
            Kind::Section,
            Default::From("all defaults"),
            "How the model draws.",
        ),
    ),
    with(
        DRAWN,
        field(
            "spec.stages[].data.draw.steps",
            whole(1, 1000),
            Default::Whole(25),
            "Steps from noise to picture (released code).",
        ),
    ),
    with(
        DRAWN,
        field(
            "spec.stages[].data.draw.guidance",
            Kind::Number(closed(0.0, 100.0)),
            Default::Number(4.0),
            "Guidance, for networks that take one (released code).",
        ),
    ),
    with(
        DRAWN,
        field(
            "spec.stages[].data.draw.trueCfg",
            Kind::Number(closed(1.0, 100.0)),
            Default::Number(1.0),
            "Classifier-free guidance away from the empty prompt, for networks that are not guidance-distilled (`nano`); 1 is none, more takes twice as long; ours.",
        ),
    ),
    with(
        DRAWN,
        field(
            "spec.stages[].data.draw.batch",
            whole(1, 1024),
            Default::From("4; 32 for `nano`"),
            "Pictures that are drawn together.",
        ),
    ),
    field(
        "spec.stages[].data.pairs",
        whole(1, 1_000_000_000),
        Default::From(
            "`steps` × `globalBatch`, from 80000 on 230000; at most 15000 with two references or more; at least `minPairs`",
        ),
        "Accepted pairs after which curation stops; with `source: log` those that are taken at most, from the beginning. By default as many as the steps take, each once; for the published number of samples, 5000 × 16, the published pairs (paper, section 4.1).",
    ),
    field(
        "spec.stages[].data.minPairs",
        whole(1, 1_000_000_000),
        Default::From("16 × `globalBatch`, at most `pairs`"),
        "Pairs at which training starts.",
    ),
    field(
        "spec.stages[].data.unitSize",
        whole(1, 65_536),
        Default::From("256, or 32 for what FLUX draws; at most `pairs`"),
        "Candidates in one unit of curation work, which is made and can be read as a whole. A stage has at most 1,000,000 units.",
    ),
    with(
        GENERATE,
        field(
            "spec.stages[].data.prompts",
            Kind::Section,
            Default::Absent,
            "What drawn pictures are to show (paper, section 3.2).",
        ),
    ),
    field(
        "spec.stages[].data.prompts.taxonomy",
        Kind::Text,
        Default::From("the one that is built in"),
        "YAML file of categories on the curators, or `store:KEY`.",
    ),
    field(
        "spec.stages[].data.prompts.subjects",
        Kind::TextOrTexts { most: 4096 },
        Default::Absent,
        "Subjects to be taken as they are, instead of a taxonomy: a text file with one a line, or a list.",
    ),
    field(
        "spec.stages[].data.prompts.styles",
        Kind::Words(&["creative", "realistic", "text-decorated"]),
        Default::From("all three"),
        "How subjects are imagined (paper, appendix).",
    ),
    field(
        "spec.stages[].data.prompts.subjectsPerCategory",
        whole(1, 1000),
        Default::Whole(50),
        "Subjects of each category in each style (paper, appendix).",
    ),
    field(
        "spec.stages[].data.prompts.scenesPerSubject",
        whole(2, 64),
        Default::Whole(8),
        "Scenes of each subject (paper, appendix); a pair shows two of them.",
    ),
    field(
        "spec.stages[].data.prompts.endpoint",
        Kind::Name,
        Default::Absent,
        "Endpoint of the job that writes subjects and scenes; without it built-in templates do.",
    ),
    field("spec.stages[].data.filter", Kind::Section, Default::From("no filter"), "What a pair must pass."),
    field(
        "spec.stages[].data.filter.similarity",
        Kind::Section,
        Default::Absent,
        "Cosine similarity of an image encoder between the target and each reference.",
    ),
    field(
        "spec.stages[].data.filter.similarity.min",
        Kind::Number(closed(-1.0, 1.0)),
        Default::Required,
        "Less is another subject. The paper does not give its threshold.",
    ),
    field(
        "spec.stages[].data.filter.similarity.max",
        Kind::Number(closed(-1.0, 1.0)),
        Default::Number(1.0),
        "More is a mere copy.",
    ),
    field(
        "spec.stages[].data.filter.similarity.encoder",
        Kind::Text,
        Default::Required,
        "safetensors file of the image encoder, DINOv2 naming.",
    ),
    field(
        "spec.stages[].data.filter.judge",
        Kind::Section,
        Default::Absent,
        "A model that scores, part by part, how well the subject was kept.",
    ),
    field(
        "spec.stages[].data.filter.judge.kind",
        Kind::Word(&["endpoint", "clip"]),
        Default::Word("endpoint"),
        "`endpoint`: a vision-language model, asked in three turns (paper, section 3.2); `clip`: cosines of CLIP features, the weaker judge for clusters without an endpoint.",
    ),
    field(
        "spec.stages[].data.filter.judge.min",
        Kind::Number(closed(0.0, 4.0)),
        Default::From("4; 3 for `kind: clip`"),
        "Least score of a pair, the mean of its parts (paper, section 3.2: only 4 is kept; `clip` is ours).",
    ),
    with(
        BY_ENDPOINT,
        field(
            "spec.stages[].data.filter.judge.endpoint",
            Kind::Name,
            Default::Required,
            "Endpoint of the job that judges; its model has to see pictures.",
        ),
    ),
    with(
        BY_ENDPOINT,
        field(
            "spec.stages[].data.filter.judge.retries",
            whole(0, 5),
            Default::Whole(2),
            "How often a reply that cannot be read is asked for again before the pair counts as `judge_unparseable`.",
        ),
    ),
    with(
        BY_ENDPOINT,
        field(
            "spec.stages[].data.filter.judge.imageSide",
            whole(16, 2048),
            Default::Whole(768),
            "Pictures are sent with at most this many pixels on their longer side.",
        ),
    ),
    with(
        BY_CLIP,
        field(
            "spec.stages[].data.filter.judge.weights",
            Kind::Text,
            Default::Required,
            "safetensors file of both towers, Hugging Face naming, with its `config.json` beside it.",
        ),
    ),
    with(
        BY_CLIP,
        field(
            "spec.stages[].data.filter.judge.tokenizer",
            Kind::Text,
            Default::Required,
            "`tokenizer.json` of the text tower.",
        ),
    ),
    with(
        BY_CLIP,
        field(
            "spec.stages[].data.filter.judge.likeness",
            Kind::Pair(closed(-1.0, 1.0)),
            Default::Pair(0.6, 0.9),
            "Cosines of reference and target that score 0 and 4, with a line between; ours, for ViT-B/32.",
        ),
    ),
    with(
        BY_CLIP,
        field(
            "spec.stages[].data.filter.judge.agreement",
            Kind::Pair(closed(-1.0, 1.0)),
            Default::Pair(0.18, 0.3),
            "Cosines of target and prompt that score 0 and 4, with a line between; ours, for ViT-B/32.",
        ),
    ),
    field("spec.stages[].train", Kind::Section, Default::From("all defaults"), "How the stage is trained."),
    field(
        "spec.stages[].train.adapter",
        Kind::WordOrSection("none"),
        Default::From("a LoRA of the default rank"),
        "What is trained: a LoRA on every attention projection (paper, section 4.1), or with `none` the whole network.",
    ),
    field(
        "spec.stages[].train.adapter.rank",
        whole(1, 3072),
        Default::From("512; 64 for `nano`"),
        "Rank of the LoRA (paper, section 4.1).",
    ),
    field(
        "spec.stages[].train.steps",
        whole(1, MAX_STEPS as i128),
        Default::Whole(5000),
        "Optimizer steps (paper, section 4.1).",
    ),
    field(
        "spec.stages[].train.globalBatch",
        whole(1, 65_536),
        Default::Whole(16),
        "Samples per optimizer step over all ranks (paper, section 4.1), at least one a rank. Where ranks cannot have the same share, the first have one more.",
    ),
    field(
        "spec.stages[].train.microBatch",
        whole(1, 65_536),
        Default::From("1; `globalBatch` / `gpus`, rounded up, for `nano`"),
        "Samples per forward pass of a rank (1 in the released code); the rest of its share is accumulated.",
    ),
    field(
        "spec.stages[].train.learningRate",
        Kind::Number(above(0.0, 1.0)),
        Default::Number(1e-5),
        "Peak learning rate (paper, section 4.1; the released code has 8e-5).",
    ),
    field(
        "spec.stages[].train.warmupSteps",
        whole(0, 10_000_000),
        Default::From("100, at most a tenth of `steps`"),
        "Optimizer steps over which the learning rate rises from 0 (released code: 100).",
    ),
    field(
        "spec.stages[].train.learningRateDecay",
        Kind::Word(&["none", "linear", "cosine"]),
        Default::Word("none"),
        "What the learning rate does after the warm-up: stays (released code), or falls to 0 at the stage's end along a line or half a cosine wave.",
    ),
    field(
        "spec.stages[].train.betas",
        Kind::Pair(below(0.0, 1.0)),
        Default::Pair(0.9, 0.999),
        "AdamW's decay of the first and second moment (released code).",
    ),
    field(
        "spec.stages[].train.eps",
        Kind::Number(above(0.0, 1.0)),
        Default::Number(1e-8),
        "AdamW's epsilon (released code).",
    ),
    field(
        "spec.stages[].train.weightDecay",
        Kind::Number(closed(0.0, 1.0)),
        Default::Number(0.01),
        "AdamW's decoupled weight decay (released code).",
    ),
    field(
        "spec.stages[].train.maxGradNorm",
        Kind::Number(above(0.0, 1e6)),
        Default::Number(1.0),
        "L2 norm to which gradients are clipped (released code).",
    ),
    field(
        "spec.stages[].train.maxSkippedSteps",
        whole(0, 1_000_000),
        Default::Whole(10),
        "A step whose loss or gradient norm is not finite updates nothing, and counts as a step. More than so many in a row fail the job.",
    ),
    field(
        "spec.stages[].train.textDropout",
        Kind::Number(closed(0.0, 1.0)),
        Default::Number(0.1),
        "Chance that a sample's prompt is replaced by the empty one (released code).",
    ),
    field(
        "spec.stages[].train.guidance",
        Kind::Number(closed(0.0, 100.0)),
        Default::Number(1.0),
        "Guidance embedding in training, where the model has one (released code).",
    ),
    field(
        "spec.stages[].train.timesteps",
        Kind::Word(&["uniform", "logit-normal"]),
        Default::Word("uniform"),
        "How timesteps are drawn: uniform over the shifted table of 1000 (released code), or the sigmoid of a standard normal, for training a base.",
    ),
    field(
        "spec.stages[].train.emaDecay",
        Kind::Number(between(0.0, 1.0)),
        Default::Absent,
        "Decay per step of a moving average of the trained weights, kept beside them. The released code has 0.99, switched off.",
    ),
    field(
        "spec.stages[].train.resolution",
        whole(16, 4096),
        Default::From(
            "`panel` or `resolution` of the data; with `source: log` that of the stage in `from`, and of one of another job 512, or 32 for `nano`",
        ),
        "Target resolution that the time shift is computed for, pixels (512 in the released code); a multiple of 16.",
    ),
    field(
        "spec.stages[].train.onStarvation",
        Kind::Word(&["wait", "repeat", "stop"]),
        Default::Word("wait"),
        "When the next pair is not there and curation goes on: wait for it, go once more round the pairs that were read so far, or fail the job. With `repeat` the order depends on how fast pairs are made.",
    ),
    field(
        "spec.checkpoints",
        Kind::Section,
        Default::From("all defaults"),
        "When checkpoints are taken and kept.",
    ),
    field(
        "spec.checkpoints.every",
        whole(1, 10_000_000),
        Default::Whole(1000),
        "Optimizer steps between checkpoints (released code). The end of a stage is always one.",
    ),
    field(
        "spec.checkpoints.keepLast",
        whole(1, 1000),
        Default::Whole(3),
        "Checkpoints kept per stage besides the final one.",
    ),
    field(
        "spec.samples",
        Kind::Section,
        Default::Absent,
        "Pictures that curators draw with checkpoints while a stage is trained, and the loss on pairs of subjects that training never sees. Ranks take no part in it. They are on the page, and `crescendo samples` fetches them: see [samples.md](samples.md).",
    ),
    field(
        "spec.samples.every",
        whole(1, 10_000_000),
        Default::From("`checkpoints.every`"),
        "Optimizer steps between them, a multiple of `checkpoints.every`; the end of a stage always has them. Where curators draw more slowly than ranks train, older checkpoints are passed over.",
    ),
    field("spec.samples.prompts", Kind::Sections { most: 16 }, Default::Absent, "What is drawn."),
    field("spec.samples.prompts[].prompt", Kind::Text, Default::Required, "What the picture is to show."),
    field(
        "spec.samples.prompts[].references",
        Kind::TextOrTexts { most: 8 },
        Default::Absent,
        "Pictures of its subjects: paths below the curators' library root, or `store:KEY`. Stages with fewer references than these draw the others.",
    ),
    field(
        "spec.samples.heldOut",
        whole(0, 16),
        Default::Whole(0),
        "Subjects that a stage's library keeps out of training (`holdOut`, `holdOutOneIn`), each drawn in a scene of its own.",
    ),
    field(
        "spec.samples.pictures",
        whole(1, 4),
        Default::Whole(1),
        "Pictures of each prompt and subject, each from noise of its own.",
    ),
    field(
        "spec.samples.seed",
        whole(0, u64::MAX as i128),
        Default::Whole(3407),
        "Seed of that noise, and of what is chosen of the library. It is not the job's, so that jobs with other seeds are compared like with like.",
    ),
    field(
        "spec.samples.resolution",
        whole(16, 2048),
        Default::From("`train.resolution` of the stage"),
        "Sides of the pictures, pixels; a multiple of 16.",
    ),
    field("spec.samples.draw", Kind::Section, Default::From("all defaults"), "How the model draws."),
    field(
        "spec.samples.draw.steps",
        whole(1, 1000),
        Default::Whole(25),
        "Steps from noise to picture (released code).",
    ),
    field(
        "spec.samples.draw.guidance",
        Kind::Number(closed(0.0, 100.0)),
        Default::Number(4.0),
        "Guidance, for networks that take one (released code).",
    ),
    field(
        "spec.samples.draw.trueCfg",
        Kind::Number(closed(1.0, 100.0)),
        Default::Number(1.0),
        "Classifier-free guidance away from the empty prompt, for networks that are not guidance-distilled (`nano`); 1 is none, more takes twice as long; ours.",
    ),
    field(
        "spec.samples.draw.batch",
        whole(1, 64),
        Default::From("1; 16 for `nano`"),
        "Pictures that are drawn together.",
    ),
    field(
        "spec.samples.weights",
        Kind::Word(&["trained", "ema"]),
        Default::Word("trained"),
        "Which of a checkpoint's weights draw: those that are trained, or their moving average (`emaDecay`).",
    ),
    field(
        "spec.samples.validationPairs",
        whole(0, 256),
        Default::Whole(0),
        "Pairs of held-out subjects on which the loss is worked out, each at five fixed times with fixed noise, so that it can be compared from step to step and from job to job. 0 is none.",
    ),
];
