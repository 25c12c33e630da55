//! What is allowed and hardly meant: it is said with its line, and fails nothing.

use std::collections::BTreeSet;

use super::places::Places;
use super::types::*;
use super::warning::Warning;

/// Pairs are made for nothing if there are this many times as many as the steps take.
const FAR_MORE: u64 = 4;
/// A stage of fewer steps is soon repeated, so the default of `checkpoints.every` says nothing about it.
const WORTH_SAVING_STEPS: u64 = 100;

/// Everything about a spec without problems that is hardly meant, in the order of the file.
pub(super) fn of(spec: &JobSpec, places: &Places) -> Vec<Warning> {
    let mut found = Found { places, warnings: Vec::new() };
    endpoints(&mut found, spec);
    for (index, stage) in spec.stages.iter().enumerate() {
        let at = At(index);
        pairs(&mut found, stage, at);
        units(&mut found, stage, at);
        naming(&mut found, stage, at);
        holding_out(&mut found, spec, index, stage, at);
        training(&mut found, stage, at);
    }
    checkpoints(&mut found, spec);
    found.warnings.sort();
    found.warnings
}

struct Found<'a> {
    places: &'a Places,
    warnings: Vec<Warning>,
}

impl Found<'_> {
    fn add(&mut self, path: &str, message: String) {
        self.warnings.push(self.places.warning(path, message));
    }
}

/// Paths of a stage's fields.
#[derive(Clone, Copy)]
struct At(usize);

impl At {
    fn data(self, field: &str) -> String {
        format!("spec.stages[{}].data.{field}", self.0)
    }

    fn train(self, field: &str) -> String {
        format!("spec.stages[{}].train.{field}", self.0)
    }
}

fn endpoints(found: &mut Found<'_>, spec: &JobSpec) {
    let mut asked = BTreeSet::new();
    for data in spec.stages.iter().map(|stage| &stage.data) {
        if let Some(JudgeFilter { kind: JudgeKind::Endpoint { endpoint, .. }, .. }) = &data.filter.judge {
            asked.insert(endpoint);
        }
        asked.extend(data.prompts.iter().filter_map(|prompts| prompts.endpoint.as_ref()));
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        if !asked.contains(&endpoint.name) {
            let message = format!("no stage asks the endpoint `{}`", endpoint.name);
            found.add(&format!("spec.endpoints[{index}].name"), message);
        }
    }
}

/// As many pairs as the steps can use.
fn pairs(found: &mut Found<'_>, stage: &StageSpec, at: At) {
    let StageSpec { data, train, .. } = stage;
    let (batch, samples) = (u64::from(train.global_batch), train.samples());
    let takes = format!("{} steps of {batch} take {samples} pairs", train.steps);
    if data.pairs > samples.saturating_mul(FAR_MORE) && data.source.log().is_none() {
        let message = format!("{takes}; the other {} are made for nothing", data.pairs - samples);
        found.add(&at.data("pairs"), message);
    } else if data.min_pairs > samples {
        let message = format!("training waits for {} pairs, and its {takes}", data.min_pairs);
        found.add(&at.data("minPairs"), message);
    }
    if data.pairs < batch {
        let message =
            format!("fewer pairs than globalBatch {batch}: every step trains some of them more than once");
        found.add(&at.data("pairs"), message);
    }
}

fn units(found: &mut Found<'_>, stage: &StageSpec, at: At) {
    let StageSpec { data, .. } = stage;
    let unit = u64::from(data.unit_size);
    if unit > data.pairs.saturating_mul(FAR_MORE) {
        let message = format!(
            "a unit is made whole before a pair of it can be read: {unit} candidates, for {} pairs",
            data.pairs
        );
        found.add(&at.data("unitSize"), message);
    }
}

/// A reference that the prompt makes superfluous.
fn naming(found: &mut Found<'_>, stage: &StageSpec, at: At) {
    let Some(library) = stage.data.source.library() else { return };
    if stage.references > 0 && library.name_share >= 1.0 {
        let message = "every prompt names its subject, so a network that knows the subjects by name need not look at \
                       the reference, and may learn to ignore it; with less than 1, or 0, some prompts say only \"the subject\"";
        found.add(&at.data("nameShare"), message.to_owned());
    }
}

/// Subjects for a report.
fn holding_out(found: &mut Found<'_>, spec: &JobSpec, index: usize, stage: &StageSpec, at: At) {
    let Some(library) = stage.data.source.library() else { return };
    if stage.references == 0 {
        return;
    }
    let earlier = spec.stages.iter().take(index).find_map(|earlier| {
        let theirs = earlier.data.source.library()?;
        (theirs.subjects == library.subjects && earlier.references > 0).then_some((earlier, theirs))
    });
    let message = match earlier {
        Some((earlier, theirs)) if held_out(&theirs) != held_out(&library) => format!(
            "stage `{}` holds out others of the same library: only subjects that no stage has trained on tell how well it does on \
             new ones",
            earlier.name
        ),
        // It was said there.
        Some(_) => return,
        None if library.hold_out_one_in == 0 && library.hold_out.is_empty() => {
            "no subject is held out, so a report can only show subjects that were trained on; with 5, about every fifth is kept for \
             it"
                .to_owned()
        }
        None => return,
    };
    let by_name = at.data("holdOut");
    let path = if found.places.is_given(&by_name) { by_name } else { at.data("holdOutOneIn") };
    found.add(&path, message);
}

fn held_out<'a>(library: &SubjectLibrary<'a>) -> (BTreeSet<&'a String>, u32) {
    (library.hold_out.iter().collect(), library.hold_out_one_in)
}

fn training(found: &mut Found<'_>, stage: &StageSpec, at: At) {
    let TrainSpec { steps, warmup_steps, ema_decay, text_dropout, .. } = stage.train;
    let path = at.train("warmupSteps");
    if warmup_steps > steps {
        let share = 100 * u128::from(steps) / u128::from(warmup_steps);
        let message = format!(
            "the warm-up of {warmup_steps} steps is longer than the stage of {steps}: the learning rate only gets to {share}% of its peak"
        );
        found.add(&path, message);
    } else if warmup_steps > steps / 2 {
        found.add(&path, format!("the warm-up takes {warmup_steps} of the stage's {steps} steps"));
    }
    // Steps that the average looks back on.
    if let Some(decay) = ema_decay.filter(|decay| 1.0 / (1.0 - decay) > steps as f64) {
        let message = format!(
            "the average looks back on {:.0} steps and the stage has {steps}: much of it stays what the stage began with",
            1.0 / (1.0 - decay)
        );
        found.add(&at.train("emaDecay"), message);
    }
    if text_dropout >= 1.0 {
        found.add(&at.train("textDropout"), "every prompt is dropped: the network sees no text".to_owned());
    }
}

fn checkpoints(found: &mut Found<'_>, spec: &JobSpec) {
    let path = "spec.checkpoints.every";
    let every = spec.checkpoints.every;
    let worth = if found.places.is_given(path) { 2 } else { WORTH_SAVING_STEPS };
    let unsaved: Vec<&StageSpec> =
        spec.stages.iter().filter(|stage| stage.train.steps < every && stage.train.steps >= worth).collect();
    let Some(longest) = unsaved.iter().max_by_key(|stage| stage.train.steps) else { return };
    let message = format!(
        "a checkpoint every {every} steps, and stage `{}` has {}: nothing is saved before its end, and what interrupts it \
         costs all of it",
        longest.name, longest.train.steps
    );
    found.add(path, message);
}
