//! [`JobSpec`] to YAML. Every field that means something is written out, so that the result stands by itself whatever later defaults are.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::idle::{self, Idle};
use super::log_source::LogSpec;
use super::start::StartSpec;
use super::types::*;

/// The resolved spec as YAML: `parse(to_yaml(spec).as_bytes())` gives `spec` again.
pub fn to_yaml(spec: &JobSpec) -> String {
    let JobSpec {
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
    } = spec;
    let mut out = Writer::default();
    out.line(0, "apiVersion", "crescendo/v1");
    out.line(0, "kind", "TrainingJob");
    out.open(0, "metadata");
    out.line(1, "name", text(name));
    out.line(1, "tenant", text(tenant));
    write_labels(&mut out, 1, "labels", labels);
    out.open(0, "spec");
    out.open(1, "model");
    out.line(2, "preset", word(&model.preset));
    if let Some(NetworkSizes { hidden_size, num_heads, axes, depth, depth_single_blocks }) = model.sizes {
        out.open(2, "sizes");
        out.line(3, "hiddenSize", hidden_size);
        out.line(3, "numHeads", num_heads);
        out.open(3, "axes");
        out.line(4, "frame", axes.frame);
        out.line(4, "row", axes.row);
        out.line(4, "column", axes.column);
        out.line(3, "depth", depth);
        out.line(3, "depthSingleBlocks", depth_single_blocks);
    }
    if let Some(weights) = &model.weights {
        out.line(2, "weights", text(weights));
    }
    if let Some(encoders) = &model.encoders {
        out.line(2, "encoders", text(encoders));
    }
    out.line(2, "precision", word(&model.precision));
    out.open(1, "resources");
    out.line(2, "gpus", resources.gpus);
    out.line(2, "minGpus", resources.min_gpus);
    out.line(2, "device", word(&resources.device));
    if let Some(gb) = resources.device_memory_gb {
        out.line(2, "deviceMemoryGb", gb);
    }
    write_labels(&mut out, 2, "nodeLabels", &resources.node_labels);
    if let Some(Topology { label, mode }) = &resources.topology {
        out.open(2, "topology");
        out.line(3, &text(label), word(mode));
    }
    if let Some(queue) = queue {
        out.line(1, "queue", text(queue));
    }
    if let Some(minutes) = time_limit_minutes {
        out.line(1, "timeLimitMinutes", minutes);
    }
    out.line(1, "priority", priority);
    out.line(1, "seed", seed);
    out.line(1, "reproducible", word(reproducible));
    write_endpoints(&mut out, endpoints);
    out.open(1, "stages");
    for stage in stages {
        write_stage(&mut out, stage);
    }
    out.open(1, "checkpoints");
    out.line(2, "every", checkpoints.every);
    out.line(2, "keepLast", checkpoints.keep_last);
    if let Some(samples) = samples {
        write_samples(&mut out, samples);
    }
    out.text
}

fn write_labels(out: &mut Writer, depth: usize, name: &str, labels: &BTreeMap<String, String>) {
    if labels.is_empty() {
        return;
    }
    out.open(depth, name);
    for (label, value) in labels {
        out.line(depth + 1, &text(label), quoted(value));
    }
}

fn write_stage(out: &mut Writer, stage: &StageSpec) {
    let StageSpec { name, references, positions, position_scale, init_from, data, train } = stage;
    out.item(2, "name", text(name));
    out.line(3, "references", references);
    out.line(3, "positions", word(positions));
    // Said only where it says something: earlier versions do not know it.
    if *position_scale != 1.0 {
        out.line(3, "positionScale", number(*position_scale));
    }
    match init_from {
        None => out.line(3, "initFrom", "none"),
        Some(StartSpec { checkpoint, optimizer: false }) => out.line(3, "initFrom", text(checkpoint)),
        Some(StartSpec { checkpoint, optimizer: true }) => {
            out.open(3, "initFrom");
            out.line(4, "checkpoint", text(checkpoint));
            out.line(4, "optimizer", true);
        }
    }
    write_data(out, data);
    write_train(out, train);
}

fn write_source(out: &mut Writer, source: &DataSource) {
    match source {
        DataSource::Compose(ComposeSpec {
            subjects,
            photos,
            layout,
            panel,
            name_share,
            hold_out,
            hold_out_one_in,
        }) => {
            out.line(4, "source", "compose");
            out.field("subjects", text(subjects));
            if let Some(photos) = photos {
                out.field("photos", text(photos));
            }
            out.field("layout", word(layout));
            out.field("panel", panel);
            out.field("nameShare", number(*name_share));
            write_hold_out(out, hold_out, *hold_out_one_in);
        }
        DataSource::Import(ImportSpec {
            path,
            format,
            min_score,
            score_disagreement,
            score_invalid,
            directions,
            orientation,
            resolution,
        }) => {
            out.line(4, "source", "import");
            out.field("path", text(path));
            out.field("format", word(format));
            out.field("minScore", number(*min_score));
            out.field("scoreDisagreement", word(score_disagreement));
            out.field("scoreInvalid", word(score_invalid));
            out.field("directions", word(directions));
            out.field("orientation", word(orientation));
            out.field("resolution", resolution);
        }
        DataSource::Generate(GenerateSpec {
            subjects,
            hold_out,
            hold_out_one_in,
            name_share,
            companions,
            panel,
            panels,
            shapes,
            draw,
        }) => {
            out.line(4, "source", "generate");
            if let Some(subjects) = subjects {
                out.field("subjects", text(subjects));
            }
            out.field("panel", panel);
            out.field("nameShare", number(*name_share));
            write_hold_out(out, hold_out, *hold_out_one_in);
            out.field("companions", number(*companions));
            out.field("panels", word(panels));
            out.field("shapes", word(shapes));
            write_draw(out, 4, draw);
        }
        DataSource::Recompose(RecomposeSpec { crop, draw }) => {
            out.line(4, "source", "recompose");
            write_crop(out, crop);
            write_draw(out, 4, draw);
        }
        DataSource::Crop(crop) => {
            out.line(4, "source", "crop");
            write_crop(out, crop);
        }
        DataSource::Log(LogSpec { from }) => {
            out.line(4, "source", "log");
            out.field("from", text(from));
        }
    }
}

fn write_data(out: &mut Writer, data: &DataSpec) {
    let DataSpec { source, pairs, min_pairs, unit_size, prompts, filter } = data;
    let FilterSpec { similarity, judge } = filter;
    out.open(3, "data");
    out.idle = idle::of_data(data);
    write_source(out, source);
    out.field("pairs", pairs);
    out.field("minPairs", min_pairs);
    out.field("unitSize", unit_size);
    if let Some(prompts) = prompts {
        write_prompts(out, prompts);
    }
    if similarity.is_some() || judge.is_some() {
        out.open(4, "filter");
    }
    if let Some(SimilarityFilter { min, max, encoder }) = similarity {
        out.open(5, "similarity");
        out.line(6, "min", number(*min));
        out.line(6, "max", number(*max));
        out.line(6, "encoder", text(encoder));
    }
    if let Some(judge) = judge {
        write_judge(out, judge);
    }
}

fn write_crop(out: &mut Writer, crop: &CropSpec) {
    let CropSpec {
        from,
        subjects,
        photos,
        hold_out,
        hold_out_one_in,
        name_share,
        panel,
        detector,
        detector_min,
        box_share,
        box_overlap,
    } = crop;
    out.field("from", text(from));
    for (name, value) in [("subjects", subjects), ("photos", photos), ("detector", detector)] {
        if let Some(value) = value {
            out.field(name, text(value));
        }
    }
    out.field("panel", panel);
    out.field("nameShare", number(*name_share));
    write_hold_out(out, hold_out, *hold_out_one_in);
    out.field("detectorMin", number(*detector_min));
    out.field("boxShare", format!("[{}, {}]", number(box_share.0), number(box_share.1)));
    out.field("boxOverlap", number(*box_overlap));
}

fn write_hold_out(out: &mut Writer, hold_out: &[String], one_in: u32) {
    if !hold_out.is_empty() {
        out.field("holdOut", words(hold_out.iter().map(|name| text(name))));
    }
    out.field("holdOutOneIn", one_in);
}

fn words(words: impl Iterator<Item = String>) -> String {
    format!("[{}]", words.collect::<Vec<_>>().join(", "))
}

fn write_draw(out: &mut Writer, depth: usize, draw: &DrawSpec) {
    let DrawSpec { steps, guidance, true_cfg, batch } = draw;
    out.open(depth, "draw");
    out.line(depth + 1, "steps", steps);
    out.line(depth + 1, "guidance", number(*guidance));
    out.line(depth + 1, "trueCfg", number(*true_cfg));
    out.line(depth + 1, "batch", batch);
}

fn write_samples(out: &mut Writer, samples: &SamplesSpec) {
    let SamplesSpec { every, prompts, held_out, pictures, seed, resolution, draw, weights, validation_pairs } =
        samples;
    out.open(1, "samples");
    out.line(2, "every", every);
    if !prompts.is_empty() {
        out.open(2, "prompts");
    }
    for SamplePrompt { prompt, references } in prompts {
        out.item(3, "prompt", text(prompt));
        if !references.is_empty() {
            out.line(4, "references", words(references.iter().map(|path| text(path))));
        }
    }
    out.line(2, "heldOut", held_out);
    out.line(2, "pictures", pictures);
    out.line(2, "seed", seed);
    if let Some(resolution) = resolution {
        out.line(2, "resolution", resolution);
    }
    write_draw(out, 2, draw);
    out.line(2, "weights", word(weights));
    out.line(2, "validationPairs", validation_pairs);
}

fn write_train(out: &mut Writer, train: &TrainSpec) {
    let TrainSpec {
        adapter,
        steps,
        global_batch,
        micro_batch,
        learning_rate,
        warmup_steps,
        learning_rate_decay,
        betas,
        eps,
        weight_decay,
        max_grad_norm,
        max_skipped_steps,
        text_dropout,
        guidance,
        timesteps,
        ema_decay,
        resolution,
        on_starvation,
    } = train;
    out.open(3, "train");
    match adapter {
        AdapterSpec::Lora { rank } => {
            out.open(4, "adapter");
            out.line(5, "rank", rank);
        }
        AdapterSpec::None => out.line(4, "adapter", "none"),
    }
    out.line(4, "steps", steps);
    out.line(4, "globalBatch", global_batch);
    out.line(4, "microBatch", micro_batch);
    out.line(4, "learningRate", number(*learning_rate));
    out.line(4, "warmupSteps", warmup_steps);
    out.line(4, "learningRateDecay", word(learning_rate_decay));
    out.line(4, "betas", format!("[{}, {}]", number(betas.0), number(betas.1)));
    out.line(4, "eps", number(*eps));
    out.line(4, "weightDecay", number(*weight_decay));
    out.line(4, "maxGradNorm", number(*max_grad_norm));
    out.line(4, "maxSkippedSteps", max_skipped_steps);
    out.line(4, "textDropout", number(*text_dropout));
    out.line(4, "guidance", number(*guidance));
    out.line(4, "timesteps", word(timesteps));
    if let Some(decay) = ema_decay {
        out.line(4, "emaDecay", number(*decay));
    }
    out.line(4, "resolution", resolution);
    out.line(4, "onStarvation", word(on_starvation));
}

#[derive(Default)]
struct Writer {
    text: String,
    /// Fields of the `data` that is being written which would be refused.
    idle: Vec<Idle>,
}

impl Writer {
    fn line(&mut self, depth: usize, name: &str, value: impl Display) {
        let _ = writeln!(self.text, "{:indent$}{name}: {value}", "", indent = 2 * depth);
    }

    /// A field of `data`, unless it is idle.
    fn field(&mut self, name: &str, value: impl Display) {
        if self.idle.iter().all(|idle| idle.name != name) {
            self.line(4, name, value);
        }
    }

    fn open(&mut self, depth: usize, name: &str) {
        let _ = writeln!(self.text, "{:indent$}{name}:", "", indent = 2 * depth);
    }

    /// The first field of a list's item; the others follow one level deeper.
    fn item(&mut self, depth: usize, name: &str, value: impl Display) {
        let _ = writeln!(self.text, "{:indent$}- {name}: {value}", "", indent = 2 * depth);
    }
}

/// The shortest text that reads back as the same number.
fn number(value: f64) -> String {
    format!("{value:?}")
}

/// The word of a unit variant, as the wire has it.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a variant without data is a word, not {other:?}"),
    }
}

/// Plain where it can be read as nothing else, else in double quotes.
/// Text that looks like a number or a word of YAML stays text.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn text(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    let begins_safely = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_'));
    let reserved = matches!(text, "null" | "Null" | "NULL" | "...");
    if begins_safely && !reserved && text.chars().all(safe) {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

fn write_endpoints(out: &mut Writer, endpoints: &[EndpointSpec]) {
    if endpoints.is_empty() {
        return;
    }
    out.open(1, "endpoints");
    for endpoint in endpoints {
        let EndpointSpec {
            name,
            url,
            model,
            key,
            concurrency,
            requests_per_minute,
            tokens_per_minute,
            timeout_seconds,
            tries,
            max_tokens,
            input_price,
            output_price,
            spend_limit,
        } = endpoint;
        out.item(2, "name", text(name));
        out.line(3, "url", text(url));
        out.line(3, "model", text(model));
        if let Some(key) = key {
            out.line(3, "key", text(key));
        }
        out.line(3, "concurrency", concurrency);
        out.line(3, "requestsPerMinute", requests_per_minute);
        out.line(3, "tokensPerMinute", tokens_per_minute);
        out.line(3, "timeoutSeconds", number(*timeout_seconds));
        out.line(3, "tries", tries);
        out.line(3, "maxTokens", max_tokens);
        out.line(3, "inputPrice", number(*input_price));
        out.line(3, "outputPrice", number(*output_price));
        if let Some(limit) = spend_limit {
            out.line(3, "spendLimit", number(*limit));
        }
    }
}

fn write_prompts(out: &mut Writer, prompts: &PromptSpec) {
    let PromptSpec { taxonomy, subjects, styles, subjects_per_category, scenes_per_subject, endpoint } =
        prompts;
    out.open(4, "prompts");
    if let Some(taxonomy) = taxonomy {
        out.line(5, "taxonomy", text(taxonomy));
    }
    match subjects {
        None => {}
        Some(SubjectList::File(file)) => out.line(5, "subjects", text(file)),
        Some(SubjectList::List(list)) => out.line(5, "subjects", words(list.iter().map(|word| text(word)))),
    }
    out.line(5, "styles", words(styles.iter().map(|style| style.word().to_owned())));
    out.line(5, "subjectsPerCategory", subjects_per_category);
    out.line(5, "scenesPerSubject", scenes_per_subject);
    if let Some(endpoint) = endpoint {
        out.line(5, "endpoint", text(endpoint));
    }
}

fn write_judge(out: &mut Writer, judge: &JudgeFilter) {
    let JudgeFilter { min, kind } = judge;
    out.open(5, "judge");
    match kind {
        JudgeKind::Endpoint { endpoint, retries, image_side } => {
            out.line(6, "kind", "endpoint");
            out.line(6, "min", number(*min));
            out.line(6, "endpoint", text(endpoint));
            out.line(6, "retries", retries);
            out.line(6, "imageSide", image_side);
        }
        JudgeKind::Clip { weights, tokenizer, likeness, agreement } => {
            out.line(6, "kind", "clip");
            out.line(6, "min", number(*min));
            out.line(6, "weights", text(weights));
            out.line(6, "tokenizer", text(tokenizer));
            out.line(6, "likeness", limits(*likeness));
            out.line(6, "agreement", limits(*agreement));
        }
    }
}

fn limits((low, high): (f64, f64)) -> String {
    format!("[{}, {}]", number(low), number(high))
}
