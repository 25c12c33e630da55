//! What curators drew with a stage's checkpoints while it trained, by step, and the loss on pairs that it never saw.

use std::collections::BTreeMap;

use crescendo_core::object_keys;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::read_shard;
use image::RgbImage;

use super::figures::ValidationFigures;
use super::job::{Job, SamplingJson};
use super::objects::Objects;
use super::pictures::{PictureBlock, PictureRow};

/// Steps that are shown, the first and the last among them.
const MOST_STEPS: usize = 6;
/// Subjects that are shown.
const MOST_SUBJECTS: usize = 12;

/// Of a stage, in the order of its steps.
pub fn validation(job: &Job, stage: &str) -> Vec<ValidationFigures> {
    let of = |sampling: &SamplingJson| {
        let loss = sampling.validation.as_ref()?;
        Some(ValidationFigures { step: sampling.step, loss: loss.mean, pairs: loss.pairs })
    };
    let mut all: Vec<ValidationFigures> = of_stage(job, stage).filter_map(of).collect();
    all.sort_by_key(|one| one.step);
    all
}

fn of_stage<'a>(job: &'a Job, stage: &'a str) -> impl Iterator<Item = &'a SamplingJson> {
    job.samplings.iter().filter(move |sampling| sampling.stage == stage)
}

/// At most `most` of `total` numbers, evenly spread, the first and the last among them.
fn with_ends(total: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = total.min(most);
    (0..count).map(move |n| if count < 2 { n } else { n * (total - 1) / (count - 1) })
}

/// The pictures of a stage.
pub struct Samples {
    stage: String,
    steps: Vec<u64>,
    subjects: Vec<Subject>,
}

/// One prompt, with the first picture that was drawn of it at each step that has one.
struct Subject {
    prompt: String,
    references: Vec<RgbImage>,
    drawn: BTreeMap<u64, RgbImage>,
}

impl Samples {
    /// Those of all stages that have some.
    pub fn of_job(job: &Job, objects: &Objects, missing: &mut Vec<String>) -> Vec<Self> {
        job.stages.iter().filter_map(|stage| Self::of_stage(job, objects, &stage.name, missing)).collect()
    }

    /// Those of a stage; none of a job without, and a sentence for each step whose pictures cannot be read.
    pub fn of_stage(job: &Job, objects: &Objects, stage: &str, missing: &mut Vec<String>) -> Option<Self> {
        let mut with_pictures: Vec<(u64, &str)> = of_stage(job, stage)
            .filter_map(|sampling| Some((sampling.step, sampling.file.as_ref()?.name.as_str())))
            .collect();
        with_pictures.sort_unstable();
        let mut samples = Self { stage: stage.to_owned(), steps: Vec::new(), subjects: Vec::new() };
        for at in with_ends(with_pictures.len(), MOST_STEPS) {
            let Some((step, name)) = with_pictures.get(at) else { continue };
            let key = object_keys::samples_file(&job.job_id, stage, name);
            let read = objects.read(&key).and_then(|bytes| Ok(read_shard(bytes.as_slice())?));
            match read {
                Ok(pairs) => {
                    samples.steps.push(*step);
                    pairs.into_iter().for_each(|pair| samples.add(*step, pair));
                }
                Err(error) => {
                    missing.push(format!("samples of step {step} of {stage} cannot be read: {error:#}"))
                }
            }
        }
        samples.subjects.truncate(MOST_SUBJECTS);
        (!samples.subjects.is_empty()).then_some(samples)
    }

    fn add(&mut self, step: u64, pair: Pair) {
        let Pair { target, references, prompt, .. } = pair;
        let known =
            self.subjects.iter_mut().find(|known| known.prompt == prompt && known.references == references);
        match known {
            Some(known) => drop(known.drawn.entry(step).or_insert(target)),
            None => {
                self.subjects.push(Subject { prompt, references, drawn: BTreeMap::from([(step, target)]) })
            }
        }
    }

    /// Subjects that were drawn at every step that is shown, by row; their references, then the steps.
    pub fn block(&self) -> Option<PictureBlock<'_>> {
        let references = self.subjects.iter().map(|subject| subject.references.len()).max().unwrap_or(0);
        let whole = |subject: &&Subject| {
            subject.references.len() == references
                && self.steps.iter().all(|step| subject.drawn.contains_key(step))
        };
        let rows: Vec<PictureRow<'_>> = self
            .subjects
            .iter()
            .filter(whole)
            .map(|subject| PictureRow {
                prompt: &subject.prompt,
                pictures: subject.references.iter().chain(subject.drawn.values()).collect(),
            })
            .collect();
        let mut headings: Vec<String> = match references {
            0 => Vec::new(),
            1 => vec!["reference".to_owned()],
            many => (1..=many).map(|n| format!("reference {n}")).collect(),
        };
        headings.extend(self.steps.iter().map(|step| match step {
            0 => "before training".to_owned(),
            step => format!("step {step}"),
        }));
        let title = format!("{} while it trained", self.stage);
        (!rows.is_empty()).then_some(PictureBlock { title, unscored: None, headings, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::ShardWriter;
    use serde_json::json;

    fn job(steps: &[u64]) -> Job {
        let samplings: Vec<_> = steps
            .iter()
            .map(|step| {
                json!({"stage": "s", "step": step, "file": {"name": format!("step-{step}.tar")},
                    "validation": {"mean": 0.5 / (*step + 1) as f64, "pairs": 4}})
            })
            .chain([
                json!({"stage": "s", "step": 99}),
                json!({"stage": "other", "step": 1, "validation": {"mean": 9.0, "pairs": 1}}),
            ])
            .collect();
        let job =
            json!({"jobId": "j", "name": "j", "resolvedSpecYaml": "", "stages": [], "samplings": samplings});
        serde_json::from_value(job).unwrap()
    }

    fn pair(prompt: &str, shade: u8) -> Pair {
        Pair {
            target: RgbImage::from_pixel(4, 4, image::Rgb([shade; 3])),
            references: vec![RgbImage::new(4, 4)],
            prompt: prompt.into(),
            reference_words: vec!["cup".into()],
            scores: BTreeMap::new(),
            provenance: json!({}),
        }
    }

    #[test]
    fn of_many_steps_the_ends_are_there() {
        let shown = |total| with_ends(total, 6).collect::<Vec<_>>();
        assert_eq!(shown(20), [0, 3, 7, 11, 15, 19]);
        assert_eq!((shown(3), shown(1), shown(0)), (vec![0, 1, 2], vec![0], vec![]));
    }

    #[test]
    fn a_subject_is_a_row_and_a_step_a_column() {
        let folder = tempfile::tempdir().unwrap();
        let steps: Vec<u64> = (0..20).map(|n| n * 10).collect();
        for step in &steps[..19] {
            let mut shard = ShardWriter::default();
            for (prompt, shade) in [("a cup", *step as u8), ("a cup", 255), ("a dog", 7)] {
                shard.push(&pair(prompt, shade)).unwrap();
            }
            let path = folder.path().join(object_keys::samples_file("j", "s", &format!("step-{step}.tar")));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, shard.finish().unwrap().bytes).unwrap();
        }
        let objects = Objects::open(folder.path().to_str().unwrap()).unwrap();
        let job = job(&steps);
        let mut missing = Vec::new();
        let samples = Samples::of_stage(&job, &objects, "s", &mut missing).unwrap();
        let block = samples.block().unwrap();
        // The last one is not there.
        assert!(missing.len() == 1 && missing[0].contains("step 190 of s"), "{missing:?}");
        assert_eq!(block.headings[..2], ["reference", "before training"]);
        assert_eq!(block.headings.len(), 1 + MOST_STEPS - 1);
        assert_eq!(block.rows.iter().map(|row| row.prompt).collect::<Vec<_>>(), ["a cup", "a dog"]);
        // The first picture of a step.
        assert_eq!(block.rows[0].pictures[1].get_pixel(0, 0).0, [0; 3]);
        assert_eq!(block.rows[0].pictures.len(), block.headings.len());
        let losses = validation(&job, "s");
        assert_eq!(
            (losses.len(), losses[0], losses[1].loss),
            (20, ValidationFigures { step: 0, loss: 0.5, pairs: 4 }, 0.5 / 11.0)
        );
        assert!(Samples::of_stage(&job, &objects, "none", &mut missing).is_none());
    }
}
