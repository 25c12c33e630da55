//! What is drawn: subjects of the job's library in new scenes, or else what the job's own pairs show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crescendo_core::object_keys;
use crescendo_core::spec::{ComposeLayout, ComposeSpec, DataSource, GenerateSpec, JobSpec, StageSpec};
use crescendo_curator_node::sources::compose::{Composer, EvalCase, EvalSet, EvalSubjects};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::{read_shard, spread};

use super::objects::Objects;
use super::words::counted;

/// Subjects to choose from in each score, where there are as many.
const CHOICES: usize = 16;
/// Seed of the evaluation cases; another than any job's, and fixed, so that reports compare.
pub const EVAL_SEED: u64 = 7_310_417;
/// Rows of pictures with at most one subject, and with several.
const ROWS: (usize, usize) = (8, 6);
/// Draws of each subject, unless it is said how many draws there are to be: more of them do not make a score's error smaller.
const DRAWS_OF_A_SUBJECT: usize = 8;
/// Shards that pictures are taken from at most.
const MOST_SHARDS: usize = 4;

/// Where the subjects of a block come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Training never saw them.
    HeldOut,
    /// Training saw them, in other scenes.
    Training,
    /// The very pairs of training; which subjects they show is not known.
    Pairs,
}

/// Cases with the same number of references.
#[derive(Debug)]
pub struct Block {
    /// References of each case.
    pub references: usize,
    pub shown: Shown,
    /// Whether what is drawn can be compared with other subjects.
    pub scored: bool,
    pub set: EvalSet,
}

impl Block {
    /// Cases that are shown as pictures.
    pub fn rows(&self) -> usize {
        rows(self.references).min(self.set.cases.len())
    }
}

fn rows(references: usize) -> usize {
    if references < 2 { ROWS.0 } else { ROWS.1 }
}

/// How many subjects are drawn for each score.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// As many, whatever there is to draw.
    pub asked: Option<usize>,
    /// At most as many where none are asked for.
    pub most: usize,
}

impl Draws {
    /// Draws where there are `subjects` to draw.
    fn of(self, subjects: usize) -> usize {
        self.asked.unwrap_or(subjects.saturating_mul(DRAWS_OF_A_SUBJECT).min(self.most))
    }
}

/// Where a job's files are.
pub struct Places<'a> {
    pub job_id: &'a str,
    pub spec: &'a JobSpec,
    /// What relative paths start from.
    pub library_root: &'a Path,
    pub objects: &'a Objects,
}

impl Places<'_> {
    /// A path of the spec on this machine.
    pub fn resolve(&self, path: &str) -> Result<PathBuf> {
        match path.strip_prefix("store:") {
            Some(key) => self.objects.bring(key),
            None => {
                let here = self.library_root.join(path);
                ensure!(
                    here.exists(),
                    "{}: there is no such file or folder; relative paths of the spec start from --library-root, here {}",
                    here.display(),
                    self.library_root.display()
                );
                Ok(here)
            }
        }
    }
}

/// Cases for what each stage was trained for, with about as many subjects as `draws` says in each block that is scored; and a
/// sentence for each thing that is not as one would want it.
pub fn gather(places: &Places, draws: Draws) -> (Vec<Block>, Vec<String>) {
    let mut notes = BTreeSet::new();
    let library = match open_library(places) {
        Ok(Some(library)) => Some(library),
        Ok(None) => {
            notes.insert(
                "no stage has a subject library, so it cannot be told how often the right subject is drawn; pictures are drawn for pairs of \
                 the job itself"
                    .to_owned(),
            );
            None
        }
        Err(error) => {
            notes.insert(format!(
                "the subject library cannot be used here, so it cannot be told how often the right subject is drawn: {error:#}"
            ));
            None
        }
    };
    let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
    for references in places.spec.stages.iter().map(|stage| stage.references as usize) {
        let subjects = references.max(1);
        if blocks.contains_key(&references) || (library.is_some() && blocks.contains_key(&subjects)) {
            continue;
        }
        let of_library =
            library.as_ref().and_then(|library| match library_block(library, subjects, draws, &mut notes) {
                Ok(block) => block,
                Err(error) => {
                    notes.insert(format!(
                        "cases with {} cannot be made: {error:#}",
                        counted(subjects, "subject")
                    ));
                    None
                }
            });
        match of_library.map_or_else(|| pairs_block(places, references), |block| Ok(Some(block))) {
            Ok(Some(block)) => drop(blocks.insert(block.references, block)),
            Ok(None) => {
                notes.insert(format!(
                    "no pairs with {} are left in the object store to draw for",
                    counted(references, "reference")
                ));
            }
            Err(error) => {
                notes.insert(format!(
                    "pairs with {} cannot be read: {error:#}",
                    counted(references, "reference")
                ));
            }
        }
    }
    (blocks.into_values().collect(), notes.into_iter().collect())
}

/// A library with the share of it that the spec keeps out.
struct Library {
    composer: Composer,
    /// Whether the spec keeps any subject out.
    holds_out: bool,
}

/// The subjects of the first stage that has a library; none if none has.
fn open_library(places: &Places) -> Result<Option<Library>> {
    let Some(mut compose) = places.spec.stages.iter().find_map(|stage| compose_settings(&stage.data.source))
    else {
        return Ok(None);
    };
    let on_this_machine = |path: &str| -> Result<String> {
        let path = places.resolve(path)?;
        Ok(path.to_str().with_context(|| format!("{}: not a plain name", path.display()))?.to_owned())
    };
    compose.subjects = on_this_machine(&compose.subjects)?;
    if let Some(photos) = &mut compose.photos {
        *photos = on_this_machine(photos)?;
    }
    let composer =
        Composer::open(&compose, 1, places.spec.seed, 0, Path::new("")).context("open the subjects")?;
    let holds_out = compose.hold_out_one_in > 0 || !compose.hold_out.is_empty();
    Ok(Some(Library { composer, holds_out }))
}

/// What to compose cases with: the source itself, or what the subjects of one that draws them amount to.
fn compose_settings(source: &DataSource) -> Option<ComposeSpec> {
    match source {
        DataSource::Compose(compose) => Some(compose.clone()),
        DataSource::Generate(GenerateSpec {
            subjects: Some(subjects),
            panel,
            name_share,
            hold_out,
            hold_out_one_in,
            ..
        }) => Some(ComposeSpec {
            subjects: subjects.clone(),
            photos: None,
            layout: ComposeLayout::Single,
            panel: *panel,
            name_share: *name_share,
            hold_out: hold_out.clone(),
            hold_out_one_in: *hold_out_one_in,
        }),
        DataSource::Generate(_)
        | DataSource::Import(_)
        | DataSource::Recompose(_)
        | DataSource::Crop(_)
        | DataSource::Log(_) => None,
    }
}

/// Cases of `subjects` each: held-out ones where there are enough to tell one from another, else training's.
fn library_block(
    library: &Library,
    subjects: usize,
    draws: Draws,
    notes: &mut BTreeSet<String>,
) -> Result<Option<Block>> {
    let held_out = library.composer.held_out_subjects().len();
    let training = library.composer.training_subjects().len();
    // One other than those of the case, to choose from.
    let enough = subjects + 1;
    let (shown, which, scored) = if held_out >= enough {
        (Shown::HeldOut, EvalSubjects::HeldOut, true)
    } else {
        notes.insert(if !library.holds_out {
            "no subject was held out (data.holdOut, data.holdOutOneIn), so what is drawn and scored are subjects that training has seen".to_owned()
        } else {
            format!(
                "there are only {}, fewer than the {enough} that cases with {} need, so what is drawn and scored there are subjects that training has seen",
                counted(held_out, "held-out subject"),
                counted(subjects, "subject")
            )
        });
        (Shown::Training, EvalSubjects::Training, training >= enough)
    };
    if shown == Shown::Training && training < subjects.max(2) {
        return Ok(None);
    }
    if !scored {
        notes.insert(format!(
            "the library has only {training} subjects, so with {} in a picture there is none other to tell them from: not scored",
            counted(subjects, "subject")
        ));
    }
    let rows = rows(subjects);
    let draws = draws.of(if shown == Shown::HeldOut { held_out } else { training });
    let count = if scored { (draws / subjects).max(rows) } else { rows };
    let set = library
        .composer
        .eval_set_of(which, count, subjects, CHOICES, EVAL_SEED)
        .context("make evaluation cases")?;
    Ok(Some(Block { references: subjects, shown, scored, set }))
}

/// Cases from pairs of the first stage with as many references; none if no pairs are left. What lies there need not be
/// registered: units that were done twice have the same pairs, so one of each is taken.
fn pairs_block(places: &Places, references: usize) -> Result<Option<Block>> {
    let stage = places.spec.stages.iter().find(|stage| stage.references as usize == references);
    let Some(stage) = stage else { return Ok(None) };
    let (job_id, name) = makes_pairs_of(places.job_id, stage);
    let keys = places.objects.list(&object_keys::shards(&job_id, &name))?;
    let by_unit: BTreeMap<u64, &String> =
        keys.iter().filter_map(|key| Some((object_keys::unit_of(key)?, key))).collect();
    let shards: Vec<&String> = by_unit.into_values().collect();
    let picked = spread(shards.len(), MOST_SHARDS);
    let mut cases = Vec::new();
    for (n, shard) in picked.iter().enumerate() {
        let Some(key) = shards.get(*shard) else { continue };
        let pairs =
            read_shard(places.objects.read(key)?.as_slice()).with_context(|| format!("read {key}"))?;
        let share = (rows(references) - cases.len()).div_ceil(picked.len() - n);
        let wanted: BTreeSet<usize> = spread(pairs.len(), share).into_iter().collect();
        let kept = pairs.into_iter().enumerate().filter(|(at, _)| wanted.contains(at));
        cases.extend(kept.map(|(_, pair)| case_of(pair)));
    }
    let set = EvalSet { gallery: Vec::new(), cases };
    Ok((!set.cases.is_empty()).then_some(Block { references, shown: Shown::Pairs, scored: false, set }))
}

/// The job and the stage that have made the pairs of a stage.
fn makes_pairs_of(job_id: &str, stage: &StageSpec) -> (String, String) {
    match stage.data.source.log() {
        None => (job_id.to_owned(), stage.name.clone()),
        Some(log) => match log.elsewhere() {
            Some(of) => (of.job.to_string(), of.stage.to_string()),
            None => (job_id.to_owned(), log.from.clone()),
        },
    }
}

fn case_of(pair: Pair) -> EvalCase {
    EvalCase {
        subjects: Vec::new(),
        choices: Vec::new(),
        prompt: pair.prompt,
        references: pair.references,
        truth: pair.target,
        places: Vec::new(),
        asked: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_subjects_are_not_drawn_as_often_as_many() {
        let nano = Draws { asked: None, most: 304 };
        assert_eq!([8, 38, 76, 1000].map(|subjects| nano.of(subjects)), [64, 304, 304, 304]);
        assert_eq!(Draws { asked: Some(152), ..nano }.of(8), 152);
    }
}
