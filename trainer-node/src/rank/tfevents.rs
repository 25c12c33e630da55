//! The history of a stage as event files of TensorBoard, `jobs/<job>/<stage>/tensorboard/events.out.tfevents.<number>.crescendo`.
//! A history has every step once, whatever was done again after a failure, so the files have too; how they grow is the matter of
//! `event_files`.
//!
//! The format: records of (length, checksum of the length, an `Event` in protobuf, its checksum), all little-endian. The
//! checksums are CRC-32C, masked: a file that holds checksums of itself would otherwise be its own check.

use std::collections::BTreeMap;

use prost::Message as _;

use super::history::StepRecord;
use super::hyper_parameters::HyperParameter;

/// A file's name has its number between these, of as many digits as keep names in order: readers take files by their names, and
/// do not look back. TensorBoard takes every file with `tfevents` in its name.
const NAME: (&str, &str) = ("events.out.tfevents.", ".crescendo");
/// Version of the format, the first record of every file.
const VERSION: &str = "brain.Event:2";
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

/// Part of TensorFlow's `event.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since the Unix epoch.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
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
            push(&mut file, &Event { wall_time, file_version: Some(VERSION.into()), ..Event::default() });
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
    let summary = Some(Summary { value: vec![value] });
    Event { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), file_version: None, summary }
}

fn event(record: &StepRecord, global_batch: u32) -> Event {
    let value = |tag: &str, value: f64| Value {
        tag: tag.to_owned(),
        simple_value: Some(value as f32),
        metadata: None,
    };
    let mut values = vec![
        value("train/loss", record.loss),
        value("train/learning_rate", record.learning_rate),
        value("train/gradient_norm", record.grad_norm),
    ];
    if record.seconds > 0.0 {
        values.push(value("train/samples_per_second", f64::from(global_batch) / record.seconds));
    }
    Event {
        wall_time: record.at_unix_secs,
        step: i64::try_from(record.step).unwrap_or(i64::MAX),
        file_version: None,
        summary: Some(Summary { value: values }),
    }
}

fn push(file: &mut Vec<u8>, event: &Event) {
    let content = event.encode_to_vec();
    let length = (content.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
    file.extend_from_slice(&content);
    file.extend_from_slice(&masked(crc32c(&content)).to_le_bytes());
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected) a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::history::History;

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

    /// Reads the framing with a checksum of its own, bit by bit from the polynomial in normal order.
    fn events(mut file: &[u8]) -> Vec<Event> {
        fn check(bytes: &[u8]) -> u32 {
            let mut crc = u32::MAX;
            for byte in bytes {
                crc ^= u32::from(byte.reverse_bits()) << 24;
                for _ in 0..8 {
                    crc = if crc >> 31 == 1 { (crc << 1) ^ 0x1edc_6f41 } else { crc << 1 };
                }
            }
            let crc = (!crc).reverse_bits();
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        }
        let mut found = Vec::new();
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        while !file.is_empty() {
            let (head, rest) = file.split_at(12);
            assert_eq!(word(&head[8..]), check(&head[..8]));
            let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) as usize;
            let (content, rest) = rest.split_at(length);
            let (sum, rest) = rest.split_at(4);
            assert_eq!(word(sum), check(content));
            found.push(Event::decode(content).expect("an event"));
            file = rest;
        }
        found
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
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
