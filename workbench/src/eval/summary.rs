//! From scores of pictures to scores of groups and of the benchmark, as JSON and CSV.

use std::fmt::Write as _;

use crescendo_model::score::mean;
use serde::Serialize;

use super::benchmark::Benchmark;
use super::judge::PictureScore;
use super::ledger::Scores;

/// Means over pictures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Means {
    pub dino: f64,
    pub clip_i: f64,
    pub clip_t: f64,
    /// By the subjects found; absent if they were not looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crops: Option<CropMeans>,
}

/// Means by the subjects found; a subject that was not found counts 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CropMeans {
    pub dino: f64,
    pub clip_i: f64,
    /// Share of the wanted subjects that were found.
    pub found: f64,
}

/// Consecutive rows with the same subjects.
#[derive(Clone, Debug, Serialize)]
pub struct GroupSummary {
    pub subjects: String,
    pub first_row: usize,
    pub rows: usize,
    pub pictures: usize,
    #[serde(flatten)]
    pub means: Means,
}

/// The whole benchmark: the unweighted mean over its groups.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Names networks and settings.
    pub scorer: String,
    pub pictures: usize,
    pub samples: usize,
    #[serde(flatten)]
    pub means: Means,
    pub groups: Vec<GroupSummary>,
}

fn over(values: impl Iterator<Item = f64>) -> f64 {
    mean(values).unwrap_or_default()
}

/// One picture: the mean over its subjects.
fn of_picture(score: &PictureScore) -> Means {
    let average = |values: &[f64]| over(values.iter().copied());
    Means {
        dino: average(&score.dino),
        clip_i: average(&score.clip_i),
        clip_t: score.clip_t,
        crops: score.crops.as_ref().map(|crops| CropMeans {
            dino: average(&crops.dino),
            clip_i: average(&crops.clip_i),
            found: over(crops.found.iter().map(|found| f64::from(u8::from(*found)))),
        }),
    }
}

fn average(all: &[Means]) -> Means {
    let crops: Option<Vec<&CropMeans>> = all.iter().map(|means| means.crops.as_ref()).collect();
    Means {
        dino: over(all.iter().map(|means| means.dino)),
        clip_i: over(all.iter().map(|means| means.clip_i)),
        clip_t: over(all.iter().map(|means| means.clip_t)),
        crops: crops.filter(|crops| !crops.is_empty()).map(|crops| CropMeans {
            dino: over(crops.iter().map(|means| means.dino)),
            clip_i: over(crops.iter().map(|means| means.clip_i)),
            found: over(crops.iter().map(|means| means.found)),
        }),
    }
}

impl Summary {
    /// Sums up; `scores` holds every sample of every row.
    pub fn of(benchmark: &Benchmark, scores: &Scores, samples: usize, scorer: &str) -> Self {
        let groups: Vec<GroupSummary> = benchmark
            .groups()
            .into_iter()
            .map(|(first_row, rows)| {
                let of: Vec<Means> = scores
                    .range((first_row, 0)..(first_row + rows, 0))
                    .map(|(_, score)| of_picture(score))
                    .collect();
                GroupSummary {
                    subjects: benchmark.names(&benchmark.rows[first_row]),
                    first_row,
                    rows,
                    pictures: of.len(),
                    means: average(&of),
                }
            })
            .collect();
        let means: Vec<Means> = groups.iter().map(|group| group.means.clone()).collect();
        Self { scorer: scorer.to_owned(), pictures: scores.len(), samples, means: average(&means), groups }
    }
}

/// One line a picture; a row with several subjects has their scores apart by spaces.
pub fn csv(benchmark: &Benchmark, scores: &Scores) -> String {
    let mut text = "row,sample,subjects,prompt,clip_t,clip_i,dino,found,crop_clip_i,crop_dino\n".to_owned();
    let numbers =
        |values: &[f64]| values.iter().map(|value| format!("{value:.6}")).collect::<Vec<_>>().join(" ");
    for ((row, sample), score) in scores {
        let Some(of) = benchmark.rows.get(*row) else { continue };
        let crops = score.crops.as_ref();
        let found = crops
            .map(|crops| crops.found.iter().map(|found| u8::from(*found).to_string()).collect::<Vec<_>>());
        let _ = writeln!(
            text,
            "{row},{sample},{},{},{:.6},{},{},{},{},{}",
            field(&benchmark.names(of)),
            field(&of.prompt),
            score.clip_t,
            numbers(&score.clip_i),
            numbers(&score.dino),
            found.unwrap_or_default().join(" "),
            crops.map(|crops| numbers(&crops.clip_i)).unwrap_or_default(),
            crops.map(|crops| numbers(&crops.dino)).unwrap_or_default(),
        );
    }
    text
}

/// A CSV field, quoted where it must be.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::benchmark::{Row, Subject};
    use super::*;

    fn benchmark() -> Benchmark {
        let subject = |name: &str| Subject { name: name.into(), words: name.into(), pictures: Vec::new() };
        let row = |prompt: &str, subjects: Vec<usize>| Row { prompt: prompt.into(), subjects };
        Benchmark {
            subjects: vec![subject("cat"), subject("dog")],
            rows: vec![row("a", vec![0]), row("b", vec![0]), row("c, \"d\"", vec![0, 1])],
        }
    }

    fn score(row: usize, dino: Vec<f64>, found: Vec<bool>) -> ((usize, usize), PictureScore) {
        let crops = super::super::judge::CropScores { found, clip_i: dino.clone(), dino: dino.clone() };
        let score = PictureScore {
            row,
            sample: 0,
            inputs: String::new(),
            clip_t: 0.5,
            clip_i: dino.clone(),
            dino,
            crops: Some(crops),
        };
        ((row, 0), score)
    }

    #[test]
    fn groups_weigh_the_same_whatever_their_size() {
        let scores = Scores::from([
            score(0, vec![0.2], vec![true]),
            score(1, vec![0.4], vec![true]),
            score(2, vec![0.6, 0.0], vec![true, false]),
        ]);
        let summary = Summary::of(&benchmark(), &scores, 1, "test");
        let dino: Vec<f64> = summary.groups.iter().map(|group| group.means.dino).collect();
        assert!((dino[0] - 0.3).abs() < 1e-12 && (dino[1] - 0.3).abs() < 1e-12, "{dino:?}");
        assert!((summary.means.dino - 0.3).abs() < 1e-12);
        let found = summary.means.crops.as_ref().map(|crops| crops.found);
        assert_eq!(found, Some(0.75));
        assert_eq!(summary.groups[1].subjects, "cat + dog");
    }

    #[test]
    fn crops_are_left_out_unless_every_picture_has_them() {
        let mut scores = Scores::from([score(0, vec![0.2], vec![true]), score(1, vec![0.4], vec![true])]);
        scores.values_mut().take(1).for_each(|score| score.crops = None);
        assert_eq!(Summary::of(&benchmark(), &scores, 1, "test").groups[0].means.crops, None);
    }

    #[test]
    fn prompts_are_quoted_in_csv() {
        let text = csv(&benchmark(), &Scores::from([score(2, vec![0.6, 0.1], vec![true, false])]));
        let line = text.lines().nth(1).expect("a line");
        assert_eq!(
            line,
            "2,0,cat + dog,\"c, \"\"d\"\"\",0.500000,0.600000 0.100000,0.600000 0.100000,1 0,0.600000 0.100000,0.600000 0.100000"
        );
    }
}
