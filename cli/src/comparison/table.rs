//! A comparison as tables and as JSON.

use serde_json::{Value, json};

use super::{Comparison, Difference, JobFigures, StageFigures};
use crate::show::table::Table;
use crate::show::words;

/// What a job does not have.
const ABSENT: &str = "-";
/// What nobody knows.
const UNKNOWN: &str = "?";
/// Differs in all jobs of a group, and is told by their ids.
const NAME: &str = "metadata.name";

type Figure = (&'static str, fn(&StageFigures) -> String);

const STAGE_FIGURES: [Figure; 7] = [
    ("steps", steps),
    ("loss", |stage| figure(stage.loss)),
    ("mean loss", |stage| figure(stage.mean_loss)),
    ("grad norm", |stage| figure(stage.grad_norm)),
    ("samples/s", |stage| figure(stage.samples_per_sec)),
    ("pairs", |stage| stage.pairs.to_string()),
    ("restarts", |stage| stage.restarts.to_string()),
];

fn steps(stage: &StageFigures) -> String {
    format!("{}/{}", stage.steps, stage.steps_total)
}

/// Four digits are enough to compare by.
fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.into(), four_digits)
}

fn four_digits(value: f64) -> String {
    let scientific = format!("{value:.3e}");
    let exponent = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok());
    let text = match exponent {
        Some(exponent @ -4..=3) => format!("{value:.*}", usize::try_from(3 - exponent).unwrap_or(0)),
        Some(_) | None => scientific,
    };
    let (digits, exponent) =
        text.split_once('e').map_or((text.as_str(), None), |(digits, e)| (digits, Some(e)));
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    exponent.map_or_else(|| digits.to_owned(), |exponent| format!("{digits}e{exponent}"))
}

/// A value of a spec; text without its quotes.
fn value(value: Option<&Value>) -> String {
    match value {
        None => ABSENT.into(),
        Some(Value::String(text)) => text.clone(),
        // Small ones with an exponent, as people write learning rates.
        Some(Value::Number(number)) if number.is_f64() => {
            format!("{:?}", number.as_f64().unwrap_or_default())
        }
        Some(other) => other.to_string(),
    }
}

/// A column a job: the figures, then the differences.
pub fn columns(comparison: &Comparison) -> Table {
    let jobs = &comparison.jobs;
    let headings = std::iter::once(String::new()).chain(jobs.iter().map(|job| job.job_id.clone()));
    let mut table = Table::of(headings);
    let mut row = |name: &str, cell: &dyn Fn(&JobFigures) -> String| {
        table.cells(std::iter::once(name.to_owned()).chain(jobs.iter().map(cell)));
    };
    row("state", &|job| words::job_state(job.state).into());
    row("duration, s", &|job| figure(job.duration_seconds));
    row("restarts", &|job| job.restarts().to_string());
    for at in 0..jobs.iter().map(|job| job.stages.len()).max().unwrap_or(0) {
        let name = jobs.iter().find_map(|job| job.stages.get(at)).map_or("", |stage| &stage.name);
        for (what, cell) in STAGE_FIGURES {
            row(&format!("{name} {what}"), &|job| job.stages.get(at).map_or_else(|| ABSENT.into(), cell));
        }
    }
    for difference in &comparison.differences {
        let cells = difference.values.iter().map(|one| value(one.as_ref()));
        table.cells(std::iter::once(difference.path.clone()).chain(cells));
    }
    table
}

/// A row a job: its fields that differ, then state, step and loss of the stage that is under way, or else of the last.
pub fn rows(comparison: &Comparison) -> Table {
    let differences: Vec<&Difference> =
        comparison.differences.iter().filter(|difference| difference.path != NAME).collect();
    let paths = differences.iter().map(|difference| difference.path.clone());
    let last = ["STATE", "STAGE", "STEP", "LOSS", "MEAN LOSS"].map(str::to_owned);
    let mut table = Table::of(std::iter::once("JOB".to_owned()).chain(paths).chain(last));
    for (at, job) in comparison.jobs.iter().enumerate() {
        let fields =
            differences.iter().map(|difference| value(difference.values.get(at).and_then(Option::as_ref)));
        let stage = job.stages.get(job.current);
        let of = |cell: fn(&StageFigures) -> String| stage.map_or_else(|| ABSENT.into(), cell);
        let figures = [
            words::job_state(job.state).to_owned(),
            of(|stage| stage.name.clone()),
            of(steps),
            of(|stage| figure(stage.loss)),
            of(|stage| figure(stage.mean_loss)),
        ];
        table.cells(std::iter::once(job.job_id.clone()).chain(fields).chain(figures));
    }
    table
}

/// `unread` are the lines about figures that nobody could read. A job that lacks a field is not among its values.
pub fn as_json(comparison: &Comparison, unread: &[String]) -> Value {
    let stage = |stage: &StageFigures| {
        json!({
            "name": stage.name,
            "steps": stage.steps,
            "stepsTotal": stage.steps_total,
            "loss": stage.loss,
            "meanLoss": stage.mean_loss,
            "gradNorm": stage.grad_norm,
            "samplesPerSec": stage.samples_per_sec,
            "pairs": stage.pairs,
            "restarts": stage.restarts,
        })
    };
    let job = |job: &JobFigures| {
        json!({
            "jobId": job.job_id,
            "name": job.name,
            "state": words::job_state(job.state),
            "durationSeconds": job.duration_seconds,
            "restarts": job.restarts(),
            "stages": job.stages.iter().map(stage).collect::<Vec<_>>(),
        })
    };
    let difference = |difference: &Difference| {
        let values = comparison.jobs.iter().zip(&difference.values);
        let values: serde_json::Map<String, Value> =
            values.filter_map(|(job, value)| Some((job.job_id.clone(), value.clone()?))).collect();
        json!({"path": difference.path, "values": values})
    };
    json!({
        "jobs": comparison.jobs.iter().map(job).collect::<Vec<_>>(),
        "differences": comparison.differences.iter().map(difference).collect::<Vec<_>>(),
        "unread": unread,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits() {
        for (value, text) in [
            (0.25, "0.25"),
            (3.0, "3"),
            (60.0, "60"),
            (1234.56, "1235"),
            (123_456.0, "1.235e5"),
            (0.000_123_456, "0.0001235"),
            (0.000_012_345_6, "1.235e-5"),
            (0.999_96, "1"),
            (-0.5, "-0.5"),
        ] {
            assert_eq!(four_digits(value), text);
        }
    }
}
