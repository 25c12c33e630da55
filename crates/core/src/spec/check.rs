//! Contradictions between fields that are each fine.

use super::log_source::LogSpec;
use super::taken::unfit;
use super::types::*;

/// Fields that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    /// The field to point at.
    pub path: String,
    /// The others that take part.
    pub others: Vec<String>,
    pub message: String,
}

/// Everything in the spec that contradicts itself.
pub(super) fn contradictions(spec: &JobSpec) -> Vec<Contradiction> {
    let mut found = Found(Vec::new());
    let Resources { gpus, min_gpus, .. } = spec.resources;
    if min_gpus > gpus {
        let message = format!("minGpus {min_gpus} is more than gpus {gpus}");
        found.add("spec.resources.minGpus", &["spec.resources.gpus", "spec.model.preset"], message);
    }
    if let (Some(_), DeviceChoice::Cpu) = (spec.resources.device_memory_gb, spec.resources.device) {
        let message = "deviceMemoryGb is the memory of GPUs, and device cpu asks for none".to_owned();
        found.add("spec.resources.deviceMemoryGb", &["spec.resources.device"], message);
    }
    if let Some(sizes) = &spec.model.sizes {
        network(&mut found, sizes);
    }
    check_endpoints(&mut found, spec);
    for (index, stage) in spec.stages.iter().enumerate() {
        let at = |field: &str| format!("spec.stages[{index}].{field}");
        names(&mut found, spec, index, stage, &at);
        start(&mut found, spec, index, stage, &at);
        data(&mut found, stage, &at);
        drawn(&mut found, spec, index, stage, &at);
        taken(&mut found, spec, index, stage, &at);
        check_stage_endpoints(&mut found, spec, stage, &at);
        batch(&mut found, &spec.resources, stage, &at);
    }
    if let Some(wanted) = &spec.samples {
        samples(&mut found, spec, wanted);
    }
    found.0
}

struct Found(Vec<Contradiction>);

impl Found {
    fn add(&mut self, path: impl Into<String>, others: &[&str], message: String) {
        let others = others.iter().map(|other| (*other).to_owned()).collect();
        self.0.push(Contradiction { path: path.into(), others, message });
    }
}

fn network(found: &mut Found, sizes: &NetworkSizes) {
    let NetworkSizes { hidden_size, num_heads, axes: AxisSizes { frame, row, column }, .. } = *sizes;
    let section = "spec.model.sizes";
    let (hidden, heads, axes) =
        (format!("{section}.hiddenSize"), format!("{section}.numHeads"), format!("{section}.axes"));
    if num_heads == 0 || hidden_size % num_heads != 0 {
        found.add(
            heads,
            &[&hidden],
            format!("numHeads {num_heads} does not divide hiddenSize {hidden_size}"),
        );
        return;
    }
    for (name, size) in [("frame", frame), ("row", row), ("column", column)] {
        if size % 2 != 0 {
            found.add(format!("{axes}.{name}"), &[], format!("{size} is odd: channels turn in pairs"));
        }
    }
    let (sum, head) = (frame + row + column, hidden_size / num_heads);
    if sum != head {
        let message = format!("frame, row and column sum to {sum}; hiddenSize / numHeads is {head}");
        let parts = ["frame", "row", "column"].map(|name| format!("{axes}.{name}"));
        found.add(axes, &[&hidden, &heads, &parts[0], &parts[1], &parts[2]], message);
    }
}

fn names(found: &mut Found, spec: &JobSpec, index: usize, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    if stage.name == "none" {
        found.add(at("name"), &[], "`none` cannot be a stage's name: `initFrom: none` means the base".into());
    }
    let before = spec.stages.iter().take(index).position(|other| other.name == stage.name);
    if let Some(first) = before {
        let other = format!("spec.stages[{first}].name");
        found.add(at("name"), &[&other], format!("`{}` is the name of stages[{first}] already", stage.name));
    }
}

/// What the stage starts from: `initFrom`, the adapter, the base weights.
fn start(found: &mut Found, spec: &JobSpec, index: usize, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    if let AdapterSpec::Lora { .. } = stage.train.adapter
        && spec.model.weights.is_none()
    {
        let message =
            "a LoRA needs base weights: set spec.model.weights, or `adapter: none` to train a base".into();
        found.add(at("train.adapter"), &["spec.model.weights"], message);
    }
    let Some(start) = &stage.init_from else { return };
    // What that job trains is seen where it is known.
    if start.elsewhere().is_some() {
        return;
    }
    let from = &start.checkpoint;
    let Some(source) = spec.stages.iter().position(|other| other.name == *from) else {
        let known = spec.stages.iter().take(index).map(|other| other.name.as_str()).collect::<Vec<_>>();
        let known = if known.is_empty() { "none".into() } else { format!("{}, none", known.join(", ")) };
        found.add(
            at("initFrom"),
            &["spec.stages", &at("initFrom.checkpoint")],
            format!("there is no stage `{from}`; possible here: {known}"),
        );
        return;
    };
    if source >= index {
        let which = if source == index { "this stage itself" } else { "a later stage" };
        found.add(at("initFrom"), &[], format!("`{from}` is {which}; a stage starts from an earlier one"));
        return;
    }
    let other = format!("spec.stages[{source}].train.adapter");
    let earlier = spec.stages.get(source).map(|stage| &stage.train.adapter);
    match (earlier, &stage.train.adapter) {
        (Some(AdapterSpec::Lora { .. }), AdapterSpec::None) => {
            let message =
                format!("the whole network cannot be trained on from `{from}`, which trains a LoRA");
            found.add(at("train.adapter"), &[&other], message);
        }
        (Some(AdapterSpec::None), AdapterSpec::Lora { .. }) => {
            let message = format!(
                "a LoRA cannot start from `{from}`, which trains the whole network; set initFrom: none"
            );
            found.add(at("train.adapter"), &[&other], message);
        }
        (Some(AdapterSpec::Lora { rank: theirs }), AdapterSpec::Lora { rank: ours }) if theirs != ours => {
            let message = format!("rank {ours} cannot start from `{from}`, which has rank {theirs}");
            found.add(at("train.adapter"), &[&other], message);
        }
        (
            Some(AdapterSpec::Lora { .. } | AdapterSpec::None) | None,
            AdapterSpec::Lora { .. } | AdapterSpec::None,
        ) => {}
    }
}

/// Units of one stage at most. While it is worked on each has a record, which the controller reads when it begins to lead.
const MAX_UNITS: u64 = 1_000_000;

fn data(found: &mut Found, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    let data = &stage.data;
    let units = data.pairs.div_ceil(u64::from(data.unit_size).max(1));
    if units > MAX_UNITS && data.source.log().is_none() {
        let message = format!(
            "{} pairs in units of {} are {units} units, and a stage has at most {MAX_UNITS}: set unitSize to {} or more, or pairs to {} or less",
            data.pairs,
            data.unit_size,
            data.pairs.div_ceil(MAX_UNITS),
            MAX_UNITS.saturating_mul(data.unit_size.into())
        );
        found.add(at("data.unitSize"), &[&at("data.pairs")], message);
    }
    let references = at("references");
    match &data.source {
        DataSource::Compose(compose) => {
            if stage.references > 0 && compose.layout != ComposeLayout::Single {
                let message =
                    "layouts `diptych` and `mixed` go with `references: 0` only: they train the base".into();
                found.add(at("data.layout"), &[&references], message);
            }
            if compose.hold_out_one_in == 1 {
                let message = "1 would keep every subject out of training; 0 keeps out none".into();
                found.add(at("data.holdOutOneIn"), &[], message);
            }
            sixteenth(found, at("data.panel"), compose.panel);
        }
        DataSource::Import(import) => {
            if import.format == ImportFormat::Uno1m && stage.references > 1 {
                let message =
                    format!("UNO-1M has one reference a pair, the stage wants {}", stage.references);
                found.add(references.clone(), &[&at("data.format"), &at("data.source")], message);
            }
            sixteenth(found, at("data.resolution"), import.resolution);
        }
        DataSource::Generate(_) | DataSource::Recompose(_) | DataSource::Crop(_) | DataSource::Log(_) => {}
    }
    sixteenth(found, at("train.resolution"), stage.train.resolution);
    if data.min_pairs > data.pairs {
        let message = format!(
            "minPairs {} is more than pairs {}: training would never start",
            data.min_pairs, data.pairs
        );
        found.add(at("data.minPairs"), &[&at("data.pairs")], message);
    }
    if let Some(similarity) = &data.filter.similarity {
        if similarity.min > similarity.max {
            let message =
                format!("min {} is more than max {}: nothing would pass", similarity.min, similarity.max);
            found.add(at("data.filter.similarity.min"), &[&at("data.filter.similarity.max")], message);
        }
        if stage.references == 0 {
            let message = "similarity compares the target with its references, and the stage has none".into();
            found.add(at("data.filter.similarity"), &[&references], message);
        }
    }
}

/// Sources that draw, and those that take from an earlier stage.
fn drawn(found: &mut Found, spec: &JobSpec, index: usize, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    let source = &stage.data.source;
    if let DataSource::Generate(generate) = source {
        sixteenth(found, at("data.panel"), generate.panel);
        if generate.subjects.is_none() && stage.data.prompts.is_none() {
            let message =
                "nothing says what is drawn: set `prompts`, or `subjects` to a subject library".into();
            found.add(at("data.prompts"), &[&at("data.subjects")], message);
        }
        if generate.subjects.is_some() && stage.data.prompts.is_some() {
            let message =
                "what is drawn comes from `prompts` or from the library in `subjects`, not from both".into();
            found.add(at("data.prompts"), &[&at("data.subjects")], message);
        }
        if stage.references != 1 {
            let message =
                format!("a picture of two panels has one reference, the stage wants {}", stage.references);
            found.add(at("references"), &[&at("data.source")], message);
        }
    }
    if matches!(source, DataSource::Generate(_) | DataSource::Recompose(_)) && spec.model.weights.is_none() {
        let message = "the job's own model draws: set spec.model.weights".into();
        found.add(at("data.source"), &["spec.model.weights"], message);
    }
    if matches!(source, DataSource::Crop(_)) && stage.data.filter.similarity.is_some() {
        let message =
            "with `source: crop` there is nothing to compare: the cut itself is the reference".into();
        found.add(at("data.filter.similarity"), &[&at("data.source")], message);
    }
    let Some(crop) = source.crop() else { return };
    sixteenth(found, at("data.panel"), crop.panel);
    let earlier: Vec<&str> = spec.stages.iter().take(index).map(|stage| stage.name.as_str()).collect();
    if earlier.is_empty() {
        let message = "the first stage has no earlier one whose pairs and checkpoint it could take".into();
        found.add(at("data.from"), &[], message);
    } else if !earlier.contains(&crop.from.as_str()) {
        let message =
            format!("there is no earlier stage `{}`; possible here: {}", crop.from, earlier.join(", "));
        found.add(at("data.from"), &["spec.stages"], message);
    }
    if stage.references < 2 {
        let message = format!(
            "a target's subjects are the one of its pair and those that are cut out: at least 2, the stage wants {}",
            stage.references
        );
        found.add(at("references"), &[&at("data.source")], message);
    }
    if crop.detector.is_none() && crop.subjects.is_none() {
        let message =
            "second subjects are found by a detector: set it, or `subjects` to compose targets".into();
        found.add(at("data.detector"), &[], message);
    }
    let (least, most) = crop.box_share;
    if least > most {
        let message = format!("least {least} is more than most {most}: every box would be rejected");
        found.add(at("data.boxShare"), &[], message);
    }
}

/// Pairs that an earlier stage has made. Those of another job are seen where it is known.
fn taken(found: &mut Found, spec: &JobSpec, index: usize, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    let Some(from) = stage.data.source.log().and_then(LogSpec::earlier) else { return };
    let earlier = || spec.stages.iter().take(index);
    let Some((other, place)) = earlier().zip(0..).find(|(other, _)| other.name == from) else {
        let message = match index {
            0 => "the first stage has no earlier one whose pairs it could take: name `JOB/STAGE` of another job"
                .to_owned(),
            _ => {
                let names: Vec<&str> = earlier().map(|other| other.name.as_str()).collect();
                format!(
                    "there is no earlier stage `{from}`; possible here: {}, or `JOB/STAGE` of another job",
                    names.join(", ")
                )
            }
        };
        found.add(at("data.from"), &["spec.stages"], message);
        return;
    };
    if let Some(message) = unfit(stage, other, from) {
        let theirs = |field: &str| format!("spec.stages[{place}].{field}");
        found.add(
            at("data.from"),
            &[&at("references"), &theirs("references"), &theirs("data.from")],
            message,
        );
    }
}

/// Times that one stage is drawn from at most.
const MAX_SAMPLINGS: u64 = 10_000;

/// What is drawn of checkpoints.
fn samples(found: &mut Found, spec: &JobSpec, samples: &SamplesSpec) {
    let at = |field: &str| format!("spec.samples.{field}");
    let SamplesSpec { every, prompts, held_out, resolution, weights, validation_pairs, .. } = samples;
    let checkpoints_every = spec.checkpoints.every;
    if checkpoints_every == 0 || !every.is_multiple_of(checkpoints_every) {
        let message = format!(
            "{every} is not a multiple of checkpoints.every, {checkpoints_every}: pictures are drawn with checkpoints"
        );
        found.add(at("every"), &["spec.checkpoints.every"], message);
    }
    let steps = spec.stages.iter().map(|stage| stage.train.steps).max().unwrap_or(0);
    if steps / every.max(&1) > MAX_SAMPLINGS {
        let message = format!(
            "{steps} steps would be drawn from {} times, and a stage is {MAX_SAMPLINGS} times at most: set it to {} or more",
            steps / every,
            steps.div_ceil(MAX_SAMPLINGS)
        );
        found.add(at("every"), &["spec.checkpoints.every"], message);
    }
    if let Some(pixels) = resolution {
        sixteenth(found, at("resolution"), *pixels);
    }
    let most = spec.stages.iter().map(|stage| stage.references as usize).max().unwrap_or(0);
    for (index, prompt) in prompts.iter().enumerate().filter(|(_, prompt)| prompt.references.len() > most) {
        let message = format!("{} references, and no stage has more than {most}", prompt.references.len());
        found.add(at(&format!("prompts[{index}].references")), &["spec.stages"], message);
    }
    let holds_out =
        |stage: &StageSpec| stage.data.source.library().is_some_and(|library| library.holds_out());
    for (field, count) in [("heldOut", held_out), ("validationPairs", validation_pairs)] {
        if *count > 0 && !spec.stages.iter().any(holds_out) {
            let message = "no stage has a library of subjects of which any is held out: set holdOut or holdOutOneIn beside its `subjects`";
            found.add(at(field), &["spec.stages"], message.to_owned());
        }
    }
    if prompts.is_empty() && (*held_out, *validation_pairs) == (0, 0) {
        let message = "nothing says what is drawn: set prompts, heldOut or validationPairs".to_owned();
        found.add("spec.samples", &[], message);
    }
    for (index, stage) in spec.stages.iter().enumerate() {
        if *weights == SampledWeights::Ema && stage.train.ema_decay.is_none() {
            let field = format!("spec.stages[{index}].train.emaDecay");
            let message = format!("stage {} keeps no moving average: set its emaDecay", stage.name);
            found.add(at("weights"), &[&field], message);
        }
    }
}

fn sixteenth(found: &mut Found, path: String, pixels: u32) {
    if !pixels.is_multiple_of(16) {
        found.add(path, &[], format!("{pixels} is not a multiple of 16"));
    }
}

fn batch(found: &mut Found, resources: &Resources, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    let gpus = resources.gpus;
    let (global, micro) = (stage.train.global_batch, stage.train.micro_batch);
    let path = at("train.globalBatch");
    if gpus == 0 {
        return;
    }
    if global < gpus {
        let message = format!("globalBatch {global} has no sample for each of gpus {gpus}");
        found.add(path, &["spec.resources.gpus", "spec.model.preset"], message);
    } else if micro > global.div_ceil(gpus) {
        let message = format!(
            "microBatch {micro} is more than one rank's share: globalBatch {global} / gpus {gpus}, rounded up, is {}",
            global.div_ceil(gpus)
        );
        found.add(at("train.microBatch"), &[&path, "spec.resources.gpus", "spec.model.preset"], message);
    }
}

/// The job's endpoints themselves.
fn check_endpoints(found: &mut Found, spec: &JobSpec) {
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = |field: &str| format!("spec.endpoints[{index}].{field}");
        let before = spec.endpoints.iter().take(index).position(|other| other.name == endpoint.name);
        if let Some(first) = before {
            let message = format!("`{}` is the name of endpoints[{first}] already", endpoint.name);
            found.add(at("name"), &[&format!("spec.endpoints[{first}].name")], message);
        }
        if let Err(reason) = check_url(&endpoint.url) {
            found.add(at("url"), &[], reason.to_owned());
        }
        if endpoint.spend_limit.is_some() && endpoint.input_price == 0.0 && endpoint.output_price == 0.0 {
            let message = "without prices nothing is spent: set inputPrice and outputPrice".into();
            found.add(at("spendLimit"), &[&at("inputPrice"), &at("outputPrice")], message);
        }
    }
}

/// Whether requests can go below this address. Names and passwords in it would end up in logs.
fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .ok_or("must begin with https:// or http://")?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        Err("names no host")
    } else if host.contains('@') {
        Err("must not hold a name or a password; set `key`")
    } else if url.contains(['?', '#', '\\']) || url.contains(char::is_whitespace) {
        Err("must be a plain address without `?`, `#`, `\\` and spaces")
    } else {
        Ok(())
    }
}

/// What stage refers to.
fn check_stage_endpoints(found: &mut Found, spec: &JobSpec, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    if let Some(prompts) = &stage.data.prompts {
        if prompts.taxonomy.is_some() && prompts.subjects.is_some() {
            let message = "subjects are taken as they are; give them or a taxonomy, not both".into();
            found.add(at("data.prompts.subjects"), &[&at("data.prompts.taxonomy")], message);
        }
        if let Some(name) = &prompts.endpoint {
            known(found, spec, name, at("data.prompts.endpoint"));
        }
    }
    let Some(JudgeFilter { min: _, kind }) = &stage.data.filter.judge else { return };
    if stage.references == 0 {
        let message = "the judge compares the target with its references, and the stage has none".into();
        found.add(at("data.filter.judge"), &[&at("references")], message);
    }
    match kind {
        JudgeKind::Endpoint { endpoint, .. } => {
            known(found, spec, endpoint, at("data.filter.judge.endpoint"));
        }
        JudgeKind::Clip { likeness, agreement, .. } => {
            for (name, (low, high)) in [("likeness", likeness), ("agreement", agreement)] {
                if low >= high {
                    let message = format!("{low} scores 0 and {high} scores 4: the first has to be less");
                    found.add(at(&format!("data.filter.judge.{name}")), &[], message);
                }
            }
        }
    }
}

fn known(found: &mut Found, spec: &JobSpec, name: &str, path: String) {
    if spec.endpoints.iter().any(|endpoint| endpoint.name == name) {
        return;
    }
    let names = spec.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "there are none".to_owned() } else { format!("there are: {names}") };
    found.add(path, &["spec.endpoints"], format!("spec.endpoints has no `{name}`; {names}"));
}
