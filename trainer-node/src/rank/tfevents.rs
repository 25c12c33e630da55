//! The history of a stage as event files of TensorBoard, `jobs/<job>/<stage>/tensorboard/events.out.tfevents.<number>.crescendo`.
//! A history has every step once, whatever was done again after a failure, so the files have too; how they grow is the matter of
//! `event_files`.
//!
//! The format: records of (length, checksum of the length, an `Event` in protobuf, its checksum), all little-endian. The
//! checksums are CRC-32C, masked: a file that holds checksums of itself would otherwise be its own check.

use prost::Message as _;

use super::history::StepRecord;

/// A file's name has its number between these, of as many digits as keep names in order: readers take files by their names, and
/// do not look back. TensorBoard takes every file with `tfevents` in its name.
const NAME: (&str, &str) = ("events.out.tfevents.", ".crescendo");
/// Version of the format, the first record of every file.
const VERSION: &str = "brain.Event:2";

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

/// The file of a history's steps after one, one JSON record a line. Lines that cannot be read are left out: the history itself
/// is checked where it matters.
pub fn of_history(history: &[u8], global_batch: u32, after: u64) -> Vec<u8> {
    let text = String::from_utf8_lossy(history);
    let records = text.lines().filter_map(|line| serde_json::from_str::<StepRecord>(line).ok());
    let mut file = Vec::new();
    let mut begun = false;
    for record in records.filter(|record| record.step > after) {
        if !begun {
            let version = Event {
                wall_time: record.at_unix_secs,
                file_version: Some(VERSION.into()),
                ..Event::default()
            };
            push(&mut file, &version);
            begun = true;
        }
        push(&mut file, &event(&record, global_batch));
    }
    file
}

fn event(record: &StepRecord, global_batch: u32) -> Event {
    let value = |tag: &str, value: f64| Value { tag: tag.to_owned(), simple_value: Some(value as f32) };
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

    #[test]
    fn every_step_is_there_once() {
        let found = events(&of_history(&history(3), 8, 0));
        assert_eq!(found[0].file_version.as_deref(), Some("brain.Event:2"));
        let steps: Vec<i64> = found[1..].iter().map(|event| event.step).collect();
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
        let begun = of_history(&history(2), 8, 0);
        assert_eq!(steps(&begun), [1, 2]);
        let names = [name(1, Some(2)), "events.out.tfevents.x.crescendo".to_owned(), "notes".to_owned()];
        let next = next_file(names.iter().map(String::as_str), 5);
        assert_eq!(next, NextFile { after: 2, number: 2, lost: vec![] });
        let more = of_history(&history(5), 8, next.after);
        assert_eq!((events(&more)[0].file_version.as_deref(), steps(&more)), (Some(VERSION), vec![3, 4, 5]));
        assert_eq!(of_history(b"", 8, 0), Vec::<u8>::new());
        assert_eq!(of_history(b"{}\n\xff\n", 8, 0), Vec::<u8>::new());
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
        assert_eq!(events(&of_history(old, 1, 0))[1].wall_time, 0.0);
    }
}
