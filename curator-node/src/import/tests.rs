//! Tests of importing, with a small copy of the published layout that has everything wrong that was seen in it.

use super::*;
use crate::shard::ShardWriter;
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn picture(folder: &Path, name: &str, width: u32, height: u32) {
    let path = folder.join("images").join(name);
    std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("make the folder");
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, name.len() as u8]));
    picture.save(path).expect("write a picture");
}

fn record(n: u32, parts: Value, total: Value) -> Value {
    json!({
        "img_path1": format!("split1/thing_{n}_1.png"),
        "img_path2": format!("split1/thing_{n}_2.png"),
        "caption": { "img_path1": "a thing", "img_path2": format!("thing {n} on a table"), "judgment": "same", "subject": ["thing"] },
        "vlm_filter_cot": { "score_part": parts, "score_final": total },
    })
}

/// Two label files: 9 records, then 2.
fn data_set() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("make a folder");
    for n in 0..11 {
        picture(folder.path(), &format!("split1/thing_{n}_1.png"), 80, 64);
        picture(folder.path(), &format!("split1/thing_{n}_2.png"), 64, 64);
    }
    let labels = folder.path().join("labels");
    std::fs::create_dir_all(&labels).expect("make the folder");
    let perfect = json!({ "shape": 4.0, "colour": 4.0 });
    let mut first: Vec<Value> = vec![
        record(0, perfect.clone(), json!(4.0)),
        // The published total says 4; the parts do not.
        record(1, json!({ "shape": 4.0, "colour": 3.0 }), json!(4.0)),
        // Both kinds of dirt that a scan of the data set found.
        record(2, json!({}), json!(131_184.67)),
        record(3, json!({ "shape": 8.5 }), json!(4.0)),
        record(4, json!({}), json!(4.0)),
        record(5, perfect.clone(), json!(0.5)),
        record(6, perfect.clone(), json!(4.0)),
        record(7, perfect.clone(), json!(4.0)),
        json!({ "img_path1": 7 }),
    ];
    first[6]["img_path1"] = json!("../../../etc/passwd");
    std::fs::remove_file(folder.path().join("images/split1/thing_5_1.png")).expect("remove a picture");
    std::fs::write(folder.path().join("images/split1/thing_7_2.png"), b"not a picture")
        .expect("spoil a picture");
    picture(folder.path(), "split1/thing_9_2.png", 5, 5);
    let second = vec![record(9, perfect.clone(), json!(4.0)), record(10, perfect, json!(4.0))];
    std::fs::write(labels.join("split2.json"), json!(first).to_string()).expect("write labels");
    // By number, not by name: 10 comes after 2.
    std::fs::write(labels.join("split10.json"), format!("{:#}", json!(second))).expect("write labels");
    folder
}

fn outcomes(source: &mut Uno1m, unit: u64, unit_size: u32) -> (Vec<String>, bool) {
    let imported = source.unit(unit, unit_size, &AtomicBool::new(false)).expect("the labels are readable");
    let names = imported.candidates.iter().map(|c| match c {
        Ok(pair) => pair.prompt.clone(),
        Err(reason) => reason.name().to_owned(),
    });
    (names.collect(), imported.exhausted)
}

const EXPECTED: [&str; 11] = [
    "thing 0 on a table",
    "score_low",
    "score_invalid",
    "score_invalid",
    "thing 4 on a table",
    "missing_file",
    "missing_file",
    "unreadable_image",
    "score_invalid",
    "too_small",
    "thing 10 on a table",
];

#[test]
fn bad_records_are_counted_and_the_good_ones_kept() {
    let folder = data_set();
    let mut source = Uno1m::open(folder.path(), 4.0, 64).expect("open");
    let (names, exhausted) = outcomes(&mut source, 0, 100);
    assert_eq!(names, EXPECTED);
    assert!(exhausted);
    let imported = source.unit(0, 1, &AtomicBool::new(false)).expect("read");
    let pair = imported.candidates[0].as_ref().expect("the first record is good");
    assert_eq!(pair.target.dimensions(), (64, 64));
    // 64 / 80 = 0.8 is nearest to 448 x 576, which at 64 pixels is 48 x 64 (height x width).
    assert_eq!(pair.references[0].dimensions(), (64, 48));
    assert_eq!(pair.scores["score"], 4.0);
}

#[test]
fn units_are_ranges_in_any_order_and_across_files() {
    let folder = data_set();
    let mut source = Uno1m::open(folder.path(), 4.0, 64).expect("open");
    for unit in [3, 1, 0, 2, 5, 4, 3] {
        let (names, exhausted) = outcomes(&mut source, unit, 2);
        let expected: Vec<&str> = EXPECTED.iter().skip(unit as usize * 2).take(2).copied().collect();
        assert_eq!(names, expected, "unit {unit}");
        assert_eq!(exhausted, unit == 5, "unit {unit}");
    }
    // A unit past the end, and one that ends with the last record.
    assert_eq!(outcomes(&mut source, 9, 2), (vec![], true));
    let mut source = Uno1m::open(folder.path(), 4.0, 64).expect("open");
    assert!(outcomes(&mut source, 0, 11).1);
}

#[test]
fn a_torn_label_file_is_an_error_that_names_it() {
    let folder = data_set();
    let path = folder.path().join("labels/split2.json");
    let text = std::fs::read(&path).expect("read");
    std::fs::write(&path, &text[..text.len() / 2]).expect("tear");
    let mut source = Uno1m::open(folder.path(), 4.0, 64).expect("open");
    let error = source.unit(0, 100, &AtomicBool::new(false)).expect_err("it is torn").to_string();
    assert!(error.contains("split2.json") && error.contains("cut short"), "{error}");
    assert!(matches!(Uno1m::open(&folder.path().join("images"), 4.0, 64), Err(ImportError::Nothing { .. })));
}

#[test]
fn shards_are_imported_tar_by_tar() {
    let folder = tempfile::tempdir().expect("make a folder");
    for (tar, count) in [("b.tar", 1), ("a.tar", 2)] {
        let mut writer = ShardWriter::default();
        for n in 0..count {
            let pair = Pair {
                target: RgbImage::new(8, 8),
                references: vec![RgbImage::new(8, 8); 1 + n],
                prompt: format!("{tar} {n}"),
                reference_words: vec![],
                scores: Default::default(),
                provenance: Value::Null,
            };
            writer.push(&pair).expect("write a pair");
        }
        std::fs::write(folder.path().join(tar), writer.finish().expect("close").bytes).expect("write a tar");
    }
    let source = Webdataset::open(folder.path(), 2).expect("open");
    let first = source.unit(0).expect("read");
    assert_eq!(first.candidates[0].as_ref().err(), Some(&Rejection::MissingFile));
    assert_eq!(first.candidates[1].as_ref().expect("two references").prompt, "a.tar 1");
    assert!(!first.exhausted && source.unit(1).expect("read").exhausted);
    std::fs::write(folder.path().join("b.tar"), b"cut").expect("spoil");
    let error = source.unit(1).expect_err("it is spoilt").to_string();
    assert!(error.contains("b.tar"), "{error}");
}
