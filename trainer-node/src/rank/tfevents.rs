//! The history of a stage as event files of TensorBoard, `jobs/<job>/<stage>/tensorboard/events.out.tfevents.<number>.crescendo`.
//! A history has every step once, whatever was done again after a failure, so the files have too; how they grow is the matter of
//! `event_files`.

use std::collections::BTreeMap;

use crescendo_node::tfevents::{Event, Metadata, Plugin, Value, begin, push};
use prost::Message as _;

use super::history::StepRecord;
use super::hyper_parameters::HyperParameter;

/// A file's name has its number between these, of as many digits as keep names in order: readers take files by their names, and
/// do not look back. TensorBoard takes every file with `tfevents` in its name.
const NAME: (&str, &str) = ("events.out.tfevents.", ".crescendo");
/// Where the plugin for hyper-parameters looks. What it finds of all runs becomes its columns: a summary of the experiment would hide
/// those that it does not name, and every job is a run of its own.
const HYPER_PARAMETERS: &str = "hparams";
const STARTED: &str = "_hparams_/session_start_info";
const ENDED: &str = "_hparams_/session_end_info";
const ENDED_WELL: i32 = 1;

/// What a curve is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Samples of one step.
    pub global_batch: u32,
    pub hyper_parameters: BTreeMap<String, HyperParameter>,
}

/// Part of the plugin's `plugin_data.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct OfSession {
    #[prost(message, optional, tag = "3")]
    start: Option<SessionStart>,
    #[prost(message, optional, tag = "4")]
    end: Option<SessionEnd>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    hyper_parameters: BTreeMap<String, AnyValue>,
    #[prost(double, tag = "5")]
    start_unix_secs: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionEnd {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(double, tag = "2")]
    end_unix_secs: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(double, optional, tag = "2")]
    number: Option<f64>,
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
    #[prost(bool, optional, tag = "4")]
    truth: Option<bool>,
}

/// Name of a stage's file of this number, which is larger than that of all before it; with the last step in it, where a file has
/// one that stays its last.
pub fn name(number: u64, last_step: Option<u64>) -> String {
    let step = last_step.map(|step| format!("-{step}")).unwrap_or_default();
    format!("{}{number:010}{step}{}", NAME.0, NAME.1)
}

/// The number and the last step of a file of this name. Without a step the number was the step, once.
pub fn of_name(name: &str) -> Option<(u64, u64)> {
    let middle = name.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?;
    let (number, step) = middle.split_once('-').unwrap_or((middle, middle));
    Some((number.parse().ok()?, step.parse().ok()?))
}

/// What is to become of a stage's files, one a checkpoint, when one more is registered.
#[derive(Debug, PartialEq, Eq)]
pub struct NextFile {
    /// The steps after this one go into it.
    pub after: u64,
    pub number: u64,
    /// Files of steps which a damaged checkpoint has lost.
    pub lost: Vec<String>,
}

/// The next file beside those of these names, when the checkpoint of `step` is registered.
pub fn next_file<'n>(names: impl Iterator<Item = &'n str>, step: u64) -> NextFile {
    let mut next = NextFile { after: 0, number: 1, lost: Vec::new() };
    for (name, (number, last)) in names.filter_map(|name| Some((name, of_name(name)?))) {
        next.number = next.number.max(number.saturating_add(1));
        if last < step {
            next.after = next.after.max(last);
        } else {
            next.lost.push(name.to_owned());
        }
    }
    next
}

/// The file of a history's steps after one, one JSON record a line. The first of a run begins with what it is trained with, and
/// the last, of a stage that is done, says so at its end. Lines that cannot be read are left out: the history itself is checked
/// where it matters.
pub fn of_history(history: &[u8], run: &Run, after: u64, is_last: bool) -> Vec<u8> {
    let text = String::from_utf8_lossy(history);
    let records = text.lines().filter_map(|line| serde_json::from_str::<StepRecord>(line).ok());
    let mut file = Vec::new();
    let mut last: Option<StepRecord> = None;
    for record in records.filter(|record| record.step > after) {
        if last.is_none() {
            let wall_time = record.at_unix_secs;
            begin(&mut file, wall_time);
            if after == 0 {
                push(&mut file, &started(run, wall_time));
            }
        }
        push(&mut file, &event(&record, run.global_batch));
        last = Some(record);
    }
    if let Some(last) = last.filter(|_| is_last) {
        push(&mut file, &ended(&last));
    }
    file
}

fn started(run: &Run, start_unix_secs: f64) -> Event {
    let any = |value: &HyperParameter| match value {
        HyperParameter::Number(number) => AnyValue { number: Some(*number), ..AnyValue::default() },
        HyperParameter::Truth(truth) => AnyValue { truth: Some(*truth), ..AnyValue::default() },
        HyperParameter::Text(text) => AnyValue { text: Some(text.clone()), ..AnyValue::default() },
    };
    let named = run.hyper_parameters.iter();
    let hyper_parameters = named.map(|(name, value)| (name.clone(), any(value))).collect();
    let start = Some(SessionStart { hyper_parameters, start_unix_secs });
    of_session(STARTED, start_unix_secs, 0, &OfSession { start, end: None })
}

fn ended(last: &StepRecord) -> Event {
    let end = Some(SessionEnd { status: ENDED_WELL, end_unix_secs: last.at_unix_secs });
    of_session(ENDED, last.at_unix_secs, last.step, &OfSession { start: None, end })
}

fn of_session(tag: &str, wall_time: f64, step: u64, content: &OfSession) -> Event {
    let plugin = Some(Plugin { name: HYPER_PARAMETERS.to_owned(), content: content.encode_to_vec() });
    let value = Value { tag: tag.to_owned(), metadata: Some(Metadata { plugin }), ..Value::default() };
    Event::of_step(wall_time, step, vec![value])
}

fn event(record: &StepRecord, global_batch: u32) -> Event {
    let value = |tag: &str, value: f64| Value::scalar(tag, value);
    let mut values = vec![
        value("train/loss", record.loss),
        value("train/learning_rate", record.learning_rate),
        value("train/gradient_norm", record.grad_norm),
    ];
    if record.seconds > 0.0 {
        values.push(value("train/samples_per_second", f64::from(global_batch) / record.seconds));
    }
    Event::of_step(record.at_unix_secs, record.step, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::history::History;
    use crescendo_node::tfevents::VERSION;
    use crescendo_testing::event_files::events;

    fn history(steps: u64) -> Vec<u8> {
        let mut history = History::default();
        for step in 1..=steps {
            history.push(&StepRecord {
                step,
                loss: 1.0 / step as f64,
                grad_norm: 0.25,
                learning_rate: 1e-5,
                seconds: 0.5,
                at_unix_secs: 1_700_000_000.0 + step as f64,
                skipped: false,
            });
        }
        history.to_bytes()
    }

    fn run(global_batch: u32) -> Run {
        Run { global_batch, ..Run::default() }
    }

    #[test]
    fn a_run_begins_with_what_it_is_trained_with_and_says_when_it_is_done() {
        let hyper_parameters = BTreeMap::from([
            ("train.steps".to_owned(), HyperParameter::Number(3.0)),
            ("data.source".to_owned(), HyperParameter::Text("compose".into())),
            ("train.ema".to_owned(), HyperParameter::Truth(true)),
        ]);
        let run = Run { global_batch: 8, hyper_parameters };
        let whole = of_history(&history(3), &run, 0, true);
        let begun = of_history(&history(2), &run, 0, false);
        assert!(whole.starts_with(&begun), "what is there stays as it is");
        let found = events(&whole);
        let of_plugin = |event: &Event| {
            let [value] = event.summary.as_ref()?.value.as_slice() else { return None };
            let plugin = value.metadata.as_ref()?.plugin.as_ref()?;
            Some((value.tag.clone(), plugin.name.clone(), OfSession::decode(plugin.content.as_slice()).ok()?))
        };
        let said: Vec<_> = found.iter().filter_map(of_plugin).collect();
        let [(started, one, start), (ended, two, end)] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!([started, one], ["_hparams_/session_start_info", "hparams"]);
        assert_eq!([ended, two], ["_hparams_/session_end_info", "hparams"]);
        let start = start.start.as_ref().expect("a start");
        assert_eq!(start.start_unix_secs, 1_700_000_001.0);
        assert_eq!(start.hyper_parameters["train.steps"].number, Some(3.0));
        assert_eq!(start.hyper_parameters["data.source"].text.as_deref(), Some("compose"));
        assert_eq!(start.hyper_parameters["train.ema"].truth, Some(true));
        assert_eq!(end.end, Some(SessionEnd { status: 1, end_unix_secs: 1_700_000_003.0 }));
        let more = events(&of_history(&history(3), &run, 2, true));
        assert_eq!(more.iter().filter_map(of_plugin).count(), 1, "a later file has the end alone");
    }

    #[test]
    fn every_step_is_there_once() {
        let found = events(&of_history(&history(3), &run(8), 0, false));
        assert_eq!(found[0].file_version.as_deref(), Some("brain.Event:2"));
        let steps: Vec<i64> = found[2..].iter().map(|event| event.step).collect();
        assert_eq!(steps, [1, 2, 3]);
        let last = found.last().expect("there");
        assert_eq!(last.wall_time, 1_700_000_003.0);
        let values: Vec<(&str, f32)> = last
            .summary
            .as_ref()
            .expect("values")
            .value
            .iter()
            .map(|value| (value.tag.as_str(), value.simple_value.expect("a number")))
            .collect();
        assert_eq!(
            values,
            [
                ("train/loss", 1.0 / 3.0),
                ("train/learning_rate", 1e-5),
                ("train/gradient_norm", 0.25),
                ("train/samples_per_second", 16.0),
            ]
        );
    }

    #[test]
    fn a_longer_history_adds_a_file_of_the_steps_since() {
        let steps = |file: &[u8]| events(file)[1..].iter().map(|event| event.step).collect::<Vec<_>>();
        let begun = of_history(&history(2), &run(8), 0, false);
        assert_eq!(steps(&begun), [0, 1, 2], "what it is trained with comes first");
        let names = [name(1, Some(2)), "events.out.tfevents.x.crescendo".to_owned(), "notes".to_owned()];
        let next = next_file(names.iter().map(String::as_str), 5);
        assert_eq!(next, NextFile { after: 2, number: 2, lost: vec![] });
        let more = of_history(&history(5), &run(8), next.after, false);
        assert_eq!((events(&more)[0].file_version.as_deref(), steps(&more)), (Some(VERSION), vec![3, 4, 5]));
        assert_eq!(of_history(b"", &run(8), 0, true), Vec::<u8>::new());
        assert_eq!(of_history(b"{}\n\xff\n", &run(8), 0, true), Vec::<u8>::new());
        assert_eq!(next_file(std::iter::empty(), 7), NextFile { after: 0, number: 1, lost: vec![] });
    }

    #[test]
    fn lost_steps_go_and_what_takes_their_place_has_a_later_name() {
        // Names of steps alone are of versions before.
        let names = ["events.out.tfevents.0000000010.crescendo", &name(11, Some(20)), &name(12, Some(30))];
        for step in [20, 15] {
            let next = next_file(names.into_iter(), step);
            let lost = names[1..].iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(next, NextFile { after: 10, number: 13, lost });
            assert!(name(next.number, Some(step)).as_str() > names[2]);
        }
        assert!(name(9, Some(90)) < name(10, Some(5)) && name(99_999, None) < name(100_000, None));
    }

    #[test]
    fn old_histories_have_no_times() {
        let old = br#"{"step":1,"loss":0.5,"grad_norm":1.0,"learning_rate":0.001,"seconds":0.1}"#;
        assert_eq!(events(&of_history(old, &run(1), 0, false))[2].wall_time, 0.0);
    }
}
