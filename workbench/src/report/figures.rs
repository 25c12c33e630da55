//! All that a report says in numbers and words, once: the terminal, `report.json` and `report.html` print this.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crescendo_core::spec::StatedField;
use serde::Serialize;

use super::cases::Shown;
use super::history::StepRecord;
use super::job::{Distribution, JobNote};
use super::machine::Machine;
use super::words::counted;
use crate::measures::Measure;
use crate::measures::judge::Scores;
use crate::measures::score::Score;

/// Fewer subjects than this tell little of others.
const FEW_SUBJECTS: usize = 10;

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub job_id: String,
    /// The spec's `metadata.name`.
    pub job_name: String,
    pub state: String,
    /// RFC 3339, as the controller says them.
    pub submitted_at: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    /// What people have noted on it, the oldest first.
    pub job_notes: Vec<JobNote>,
    /// From the first step to the end.
    pub took_seconds: Option<f64>,
    /// Preset, precision and ranks.
    pub model: String,
    /// RFC 3339.
    pub reported_at: String,
    pub report_seconds: f64,
    pub version: &'static str,
    /// What the report was made on; its pictures were drawn there.
    pub machine: Machine,
    /// How pictures were drawn; absent where none was.
    pub drawing: Option<Drawing>,
    /// The image encoder that compares; absent where nothing is scored.
    pub encoder: Option<String>,
    pub scores: Vec<ScoreFigures>,
    /// Of pictures that were not drawn: `real`, as they should be, which says what can be read at all, and `reference`, the
    /// first reference itself, which says what copying gives.
    pub ceilings: Vec<ScoreFigures>,
    pub stages: Vec<StageFigures>,
    /// What the spec says that is not as it would be without a word.
    pub stated: Vec<StatedFigures>,
    /// Path of what the job ended with, as shown to the reader.
    pub trained: Option<String>,
    /// What is not as one would want it, and why; a sentence each.
    pub notes: Vec<String>,
}

/// How pictures were drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drawing {
    pub steps: i64,
    pub true_cfg: f64,
}

/// One number with all that it takes to read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreFigures {
    /// What drew, and how many subjects there were in a picture: "stage-1, one subject".
    pub model: String,
    /// What is counted.
    pub measure: Measure,
    /// Whether training has seen the subjects: `seen` or `unseen`.
    pub subjects_are: &'static str,
    /// Share of draws that are right, 0 to 1; mean over subjects.
    pub right: f64,
    /// Of `right`, over subjects; null for a single one.
    pub standard_error: Option<f64>,
    /// What assigning at random would give, 0 to 1.
    pub chance: f64,
    /// Fewest and most subjects that a draw had to choose from.
    pub candidates: (usize, usize),
    pub subjects: usize,
    pub draws: usize,
}

/// A field of the spec that is not at its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatedFigures {
    /// E.g. `stages[1].train.steps`.
    pub field: String,
    pub value: String,
    /// Null where the spec has to say something.
    pub default: Option<String>,
}

impl StatedFigures {
    pub fn of(stated: &StatedField) -> Self {
        let StatedField { path, value, default } = stated;
        let field = path.strip_prefix("spec.").unwrap_or(path).to_owned();
        Self { field, value: value.clone(), default: default.clone() }
    }
}

/// One stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageFigures {
    pub name: String,
    /// Where its pairs are from: the spec's word.
    pub source: &'static str,
    pub references: u32,
    pub steps: u64,
    pub steps_total: u64,
    pub restarts: u32,
    pub replay_passes: u64,
    /// What it was computed in; empty where the job does not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub precision: String,
    pub pairs_accepted: u64,
    pub pairs_wanted: u64,
    /// By reason.
    pub pairs_rejected: BTreeMap<String, u64>,
    /// Of each score, over all candidates.
    pub distributions: BTreeMap<String, Distribution>,
    /// Mean over the last tenth of the steps.
    pub loss_at_the_end: Option<f64>,
    pub median_step_seconds: Option<f64>,
    /// On pairs that it never saw, by step; empty where the spec asks for none.
    pub validation: Vec<ValidationFigures>,
}

/// The loss on pairs of held-out subjects after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationFigures {
    /// 0 is before training.
    pub step: u64,
    /// Mean squared error of the velocity, at fixed times with fixed noise.
    pub loss: f64,
    pub pairs: u32,
}

impl ScoreFigures {
    /// None without draws.
    pub fn of(
        label: &str,
        subjects_in_a_picture: usize,
        shown: Shown,
        measure: Measure,
        score: &Score,
    ) -> Option<Self> {
        Some(Self {
            model: format!("{label}, {}", in_a_picture(subjects_in_a_picture)),
            measure,
            subjects_are: if shown == Shown::HeldOut { "unseen" } else { "seen" },
            right: score.right()?,
            standard_error: score.standard_error(),
            chance: score.chance()?,
            candidates: score.candidates()?,
            subjects: score.subjects(),
            draws: score.draws(),
        })
    }

    /// All measures of one model, those that are read together first.
    pub fn all(label: &str, subjects_in_a_picture: usize, shown: Shown, scores: &Scores) -> Vec<Self> {
        let of = |(measure, score): (&Measure, &Score)| {
            Self::of(label, subjects_in_a_picture, shown, *measure, score)
        };
        scores.iter().filter_map(of).collect()
    }

    /// "38.8", percent.
    fn cell(&self) -> String {
        format!("{:.1}", 100.0 * self.right)
    }

    /// "38.8 ± 4.4", percent.
    fn cell_with_error(&self) -> String {
        let error = self.standard_error.map_or_else(String::new, |error| format!(" ± {:.1}", 100.0 * error));
        format!("{}{error}", self.cell())
    }
}

/// "one subject", "each of three subjects".
pub fn in_a_picture(subjects: usize) -> String {
    const WORDS: [&str; 9] = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"];
    match (subjects, WORDS.get(subjects)) {
        (0 | 1, _) => "one subject".to_owned(),
        (_, Some(word)) => format!("each of {word} subjects"),
        (many, None) => format!("each of {many} subjects"),
    }
}

/// Rows of text under headings; a column without content is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub headings: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(headings: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        let filled =
            |column: &usize| rows.iter().any(|row| row.get(*column).is_some_and(|cell| !cell.is_empty()));
        let kept: Vec<usize> = (0..headings.len()).filter(filled).collect();
        Self {
            headings: kept.iter().map(|column| headings[*column]).collect(),
            rows: rows
                .iter()
                .map(|row| kept.iter().map(|column| row.get(*column).cloned().unwrap_or_default()).collect())
                .collect(),
        }
    }
}

impl Figures {
    /// What the report is about, by name.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("job", format!("{}, {}", self.job_id, or(&self.state, "state unknown")))];
        facts.push(("spec", self.job_name.clone()));
        facts.push(("model", self.model.clone()));
        let times = [
            ("submitted", &self.submitted_at),
            ("started", &self.started_at),
            ("finished", &self.finished_at),
        ];
        for (name, at) in times {
            facts.extend(at.as_deref().map(|at| (name, date(at))));
        }
        // Whole seconds that have passed, as `crescendo get` shows them.
        facts.extend(self.took_seconds.map(|seconds| ("took", span(seconds.floor()))));
        let noted = |JobNote { at, by, text }: &JobNote| match at {
            Some(at) => format!("{} {by}: {text}", date(at)),
            None => format!("{by}: {text}"),
        };
        facts.extend(self.job_notes.iter().map(|note| ("noted", noted(note))));
        facts.extend(self.trained.clone().map(|path| ("result", path)));
        facts.push(("reported", format!("{}, in {}", date(&self.reported_at), span(self.report_seconds))));
        facts.push(("machine", self.machine.words()));
        facts.extend(self.drawing.map(|Drawing { steps, true_cfg }| {
            let guided = if true_cfg == 1.0 {
                String::new()
            } else {
                format!(", classifier-free guidance {true_cfg}")
            };
            ("drawn in", format!("{}{guided}", counted(steps.unsigned_abs() as usize, "step")))
        }));
        facts.extend(self.encoder.clone().map(|name| ("compared by", name)));
        facts
    }

    /// Of each model the measures that are read together, percent; then what was not drawn, and chance.
    pub fn score_table(&self) -> Table {
        self.table_of(&Measure::WHOLE, ScoreFigures::cell_with_error)
    }

    /// Of each model the parts of them, percent; so many that their errors, about those of the whole, find no room.
    pub fn part_table(&self) -> Table {
        self.table_of(&Measure::PARTS, ScoreFigures::cell)
    }

    fn table_of(&self, measures: &[Measure], cell: fn(&ScoreFigures) -> String) -> Table {
        let headings = [""].into_iter().chain(measures.iter().map(|measure| measure.word()));
        let rows = self.models().into_iter().map(|model| {
            let cells = measures.iter().map(|measure| self.find(model, *measure));
            let cells = cells.map(|score| score.map_or_else(String::new, cell));
            std::iter::once(model.to_owned()).chain(cells).collect::<Vec<_>>()
        });
        let filled = |row: &Vec<String>| row.iter().skip(1).any(|cell| !cell.is_empty());
        let mut rows: Vec<Vec<String>> = rows.filter(filled).collect();
        rows.extend(self.chances(measures));
        Table::new(&headings.collect::<Vec<_>>(), rows)
    }

    /// What guessing would give, a row for each number of subjects in a picture.
    fn chances(&self, measures: &[Measure]) -> Vec<Vec<String>> {
        let mut rows = BTreeMap::<&str, Vec<String>>::new();
        for score in self.all_scores() {
            let Some((_, subjects)) = score.model.split_once(", ") else { continue };
            let Some(column) = measures.iter().position(|measure| *measure == score.measure) else {
                continue;
            };
            let row = rows.entry(subjects).or_insert_with(|| vec![String::new(); measures.len()]);
            row[column] = format!("{:.1}", 100.0 * score.chance);
        }
        let named = |(subjects, cells): (&str, Vec<String>)| {
            std::iter::once(format!("chance, {subjects}")).chain(cells).collect()
        };
        // "one subject" before "each of two subjects".
        rows.into_iter().rev().map(named).collect()
    }

    /// Every model once, in order.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = Vec::new();
        for score in self.all_scores() {
            if !models.contains(&score.model.as_str()) {
                models.push(&score.model);
            }
        }
        models
    }

    /// One measure of one model.
    pub fn find(&self, model: &str, measure: Measure) -> Option<&ScoreFigures> {
        self.all_scores().find(|score| score.model == model && score.measure == measure)
    }

    pub fn all_scores(&self) -> impl Iterator<Item = &ScoreFigures> {
        self.scores.iter().chain(&self.ceilings)
    }

    /// One row a field of the spec that is not at its default.
    pub fn stated_table(&self) -> Table {
        let cells = |one: &StatedFigures| {
            vec![one.field.clone(), one.value.clone(), one.default.clone().unwrap_or_default()]
        };
        Table::new(&["field", "is", "else"], self.stated.iter().map(cells).collect())
    }

    /// One row a stage.
    pub fn stage_table(&self) -> Table {
        let headings = [
            "stage",
            "source",
            "refs",
            "steps",
            "restarts",
            "replay passes",
            "precision",
            "pairs",
            "rejected",
            "loss",
            "val.",
            "s/step",
        ];
        let some = |count: u64| if count == 0 { String::new() } else { count.to_string() };
        let row = |stage: &StageFigures| {
            let rejected: u64 = stage.pairs_rejected.values().sum();
            let steps = if stage.steps == stage.steps_total || stage.steps_total == 0 {
                stage.steps.to_string()
            } else {
                format!("{} of {}", stage.steps, stage.steps_total)
            };
            vec![
                stage.name.clone(),
                stage.source.to_owned(),
                some(u64::from(stage.references)),
                steps,
                some(u64::from(stage.restarts)),
                some(stage.replay_passes),
                stage.precision.clone(),
                some(stage.pairs_accepted),
                some(rejected),
                stage.loss_at_the_end.map_or_else(String::new, |loss| format!("{loss:.4}")),
                stage.validation.last().map_or_else(String::new, |last| format!("{:.3}", last.loss)),
                stage.median_step_seconds.map_or_else(String::new, |seconds| format!("{seconds:.2}")),
            ]
        };
        Table::new(&headings, self.stages.iter().map(row).collect())
    }

    /// What cannot be seen from the numbers, and how the numbers are to be read.
    pub fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let fewest = self.scores.iter().map(|score| score.subjects).min();
        if let Some(fewest) = fewest.filter(|fewest| *fewest < FEW_SUBJECTS) {
            notes.push(format!(
                "the errors rest on as few as {}, so they are rough themselves",
                counted(fewest, "subject")
            ));
        }
        notes
    }
}

/// Loss at the end and median time of a step.
pub fn ending(history: &[StepRecord]) -> (Option<f64>, Option<f64>) {
    let last = history.len().div_ceil(10);
    let losses: Vec<f64> =
        history.iter().rev().take(last).map(|step| step.loss).filter(|l| l.is_finite()).collect();
    let loss = (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64);
    let mut seconds: Vec<f64> = history.iter().map(|step| step.seconds).filter(|s| s.is_finite()).collect();
    seconds.sort_by(f64::total_cmp);
    (loss, seconds.get(seconds.len() / 2).copied())
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// "2026-11-28 07:44 UTC", or the text itself where it is no RFC 3339.
fn date(at: &str) -> String {
    let Ok(time) = humantime::parse_rfc3339(at) else { return at.to_owned() };
    let text = humantime::format_rfc3339_seconds(time).to_string();
    format!("{} UTC", text.replace('T', " ").get(..16).unwrap_or(&text))
}

/// "8m 12s".
pub fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.round()).unwrap_or_default();
    humantime::format_duration(whole).to_string()
}

/// RFC 3339, in whole seconds.
pub fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::measures::score::Assigned;

    pub fn figures() -> Figures {
        let draws = |right: &[bool]| -> Vec<Assigned> {
            right.iter().map(|&right| Assigned { right, candidates: 5 }).collect()
        };
        let score = Score { per_subject: vec![draws(&[true, true]), draws(&[true, false]), draws(&[false])] };
        let of = |measure| ScoreFigures::of("stage-1", 1, Shown::Training, measure, &score).unwrap();
        Figures {
            job_id: "cups-1".into(),
            job_name: "cups".into(),
            state: "succeeded".into(),
            submitted_at: Some("2026-01-01T00:00:00.000Z".into()),
            started_at: None,
            job_notes: vec![JobNote {
                at: Some("2026-01-02T09:00:00.000Z".into()),
                by: "ada".into(),
                text: "handles come out thin".into(),
            }],
            finished_at: Some("2026-01-01T00:08:12.400Z".into()),
            took_seconds: Some(492.6),
            model: "nano, f32, 2 ranks".into(),
            reported_at: "2026-01-02T10:00:00Z".into(),
            report_seconds: 61.0,
            version: "0.1.0",
            machine: Machine { processor: "EPYC".into(), cores: 2, gpu: None, precision: "f32" },
            drawing: Some(Drawing { steps: 10, true_cfg: 2.0 }),
            encoder: Some("dinov2-nano, as shipped".into()),
            scores: vec![of(Measure::Subject), of(Measure::Scene)],
            ceilings: vec![],
            stages: vec![StageFigures {
                name: "stage-1".into(),
                source: "compose",
                references: 1,
                steps: 30,
                steps_total: 30,
                restarts: 0,
                replay_passes: 0,
                precision: "f32".into(),
                pairs_accepted: 640,
                pairs_wanted: 640,
                pairs_rejected: BTreeMap::from([("similarity_low".to_owned(), 12)]),
                distributions: BTreeMap::from([(
                    "similarity".to_owned(),
                    Distribution { least: -1.0, most: 1.0, counts: vec![1, 11] },
                )]),
                loss_at_the_end: Some(0.5),
                median_step_seconds: Some(0.25),
                validation: vec![
                    ValidationFigures { step: 0, loss: 0.75, pairs: 8 },
                    ValidationFigures { step: 30, loss: 0.625, pairs: 8 },
                ],
            }],
            stated: vec![StatedFigures {
                field: "stages[0].train.steps".into(),
                value: "500".into(),
                default: Some("1000".into()),
            }],
            trained: Some("report/dit_lora.safetensors".into()),
            notes: vec!["no subject was held out".into()],
        }
    }

    #[test]
    fn a_model_has_a_row_and_chance_has_one() {
        let table = figures().score_table();
        assert_eq!(table.headings, ["", "subject"]);
        // Shares 1, 1/2 and 0 of three subjects: error sqrt(1/4 / 3).
        assert_eq!(table.rows, [["stage-1, one subject", "50.0 ± 28.9"], ["chance, one subject", "20.0"]]);
        assert_eq!(figures().part_table().headings, ["", "scene"]);
    }

    #[test]
    fn columns_without_content_are_left_out() {
        let stages = figures().stage_table();
        assert!(
            !stages.headings.contains(&"restarts") && !stages.headings.contains(&"replay passes"),
            "{stages:?}"
        );
        assert!(stages.headings.contains(&"rejected"), "{stages:?}");
        assert_eq!(stages.rows[0].len(), stages.headings.len());
    }

    #[test]
    fn times_and_spans_are_readable() {
        let facts = figures().facts();
        let of = |name| facts.iter().find(|(fact, _)| *fact == name).map(|(_, value)| value.as_str());
        assert_eq!(of("submitted"), Some("2026-01-01 00:00 UTC"));
        assert_eq!(of("started"), None);
        assert_eq!(of("noted"), Some("2026-01-02 09:00 UTC ada: handles come out thin"));
        assert_eq!(of("took"), Some("8m 12s"));
        assert_eq!(of("machine"), Some("EPYC, 2 cores, f32"));
        assert_eq!(date("soon"), "soon");
    }

    #[test]
    fn the_end_of_training_is_its_last_tenth() {
        let step = |step: u64, loss: f64, seconds: f64| StepRecord {
            step,
            loss,
            grad_norm: 1.0,
            learning_rate: 1e-3,
            seconds,
        };
        let history: Vec<StepRecord> = (1..=20).map(|n| step(n, n as f64, 1.0 / n as f64)).collect();
        let (loss, seconds) = ending(&history);
        assert_eq!(loss, Some(19.5));
        assert!((seconds.unwrap() - 0.1).abs() < 0.02);
        assert_eq!(ending(&[]), (None, None));
        assert_eq!(ending(&[step(1, f64::NAN, 1.0)]).0, None);
    }

    #[test]
    fn few_subjects_are_said() {
        assert!(figures().all_notes()[1].contains("as few as 3 subjects"));
    }
}
