//! Tests of importing, with a small copy of the published layout that has everything wrong that was seen in it.

use super::*;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{
    Directions, ImportFormat, ImportSpec, Orientation, ScoreDisagreement, ScoreInvalid,
};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::ShardWriter;
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

fn spec(directions: Directions) -> ImportSpec {
    ImportSpec {
        path: String::new(),
        format: ImportFormat::Uno1m,
        min_score: 4.0,
        score_disagreement: ScoreDisagreement::Recompute,
        score_invalid: ScoreInvalid::Reject,
        directions,
        orientation: Orientation::Upright,
        resolution: 64,
    }
}

fn open(folder: &tempfile::TempDir) -> Uno1m {
    Uno1m::open(folder.path(), &spec(Directions::Forward), 1).expect("open")
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
    "bad_path",
    "unreadable_image",
    "malformed_record",
    "too_small",
    "thing 10 on a table",
];

#[test]
fn bad_records_are_counted_and_the_good_ones_kept() {
    let folder = data_set();
    let mut source = open(&folder);
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
    let mut source = open(&folder);
    for unit in [3, 1, 0, 2, 5, 4, 3] {
        let (names, exhausted) = outcomes(&mut source, unit, 2);
        let expected: Vec<&str> = EXPECTED.iter().skip(unit as usize * 2).take(2).copied().collect();
        assert_eq!(names, expected, "unit {unit}");
        assert_eq!(exhausted, unit == 5, "unit {unit}");
    }
    // A unit past the end, and one that ends with the last record.
    assert_eq!(outcomes(&mut source, 9, 2), (vec![], true));
    let mut source = open(&folder);
    assert!(outcomes(&mut source, 0, 11).1);
}

#[test]
fn a_torn_label_file_is_an_error_that_names_it() {
    let folder = data_set();
    let path = folder.path().join("labels/split2.json");
    let text = std::fs::read(&path).expect("read");
    std::fs::write(&path, &text[..text.len() / 2]).expect("tear");
    let mut source = open(&folder);
    let error = source.unit(0, 100, &AtomicBool::new(false)).expect_err("it is torn").to_string();
    assert!(error.contains("split2.json") && error.contains("cut short"), "{error}");
    // The file after it is there: its two records follow those before the damage and the damage itself.
    let index =
        LabelIndex::build(&source.labels(), &AtomicBool::new(false)).expect("read").expect("not stopped");
    let after = index.records() - 2;
    assert_eq!(outcomes(&mut source, after, 1).0, ["too_small"]);
    assert_eq!(outcomes(&mut source, after + 1, 1), (vec!["thing 10 on a table".to_owned()], true));
    assert!(matches!(
        Uno1m::open(&folder.path().join("images"), &spec(Directions::Forward), 1),
        Err(ImportError::Nothing { .. })
    ));
}

#[test]
fn both_directions_are_two_candidates_of_a_record() {
    let folder = data_set();
    let mut source = Uno1m::open(folder.path(), &spec(Directions::Both), 1).expect("open");
    let (all, exhausted) = outcomes(&mut source, 0, 100);
    assert!(exhausted && all.len() == 22);
    assert_eq!(all[..2], ["thing 0 on a table", "a thing"]);
    // Units of odd size cut records in two and lose nothing.
    let mut pieces = Vec::new();
    for unit in 0..8 {
        pieces.extend(outcomes(&mut source, unit, 3).0);
    }
    assert_eq!(pieces, all);
    let imported = source.unit(0, 2, &AtomicBool::new(false)).expect("read");
    let [forward, back] = [0, 1].map(|n| imported.candidates[n].as_ref().expect("a good record"));
    assert_eq!((&forward.target, &forward.references[0]), (&back.references[0], &back.target));
    assert_eq!(back.provenance["reversed"], true);
}

/// Labels that lie: the same record twice, paths that climb out by name and by link, captions that steer a terminal.
#[test]
fn hostile_labels_cost_themselves_alone() {
    let folder = data_set();
    let outside = tempfile::tempdir().expect("make a folder");
    picture(outside.path(), "secret.png", 64, 64);
    let images = folder.path().join("images");
    std::os::unix::fs::symlink(outside.path().join("images"), images.join("way-out")).expect("link");
    let perfect = json!({ "shape": 4.0 });
    let of = |n: u32, change: &dyn Fn(&mut Value)| {
        let mut record = record(n, perfect.clone(), json!(4.0));
        change(&mut record);
        record
    };
    let records = [
        of(0, &|_| {}),
        of(0, &|r| r["caption"]["img_path2"] = json!("another caption, the same pictures")),
        of(1, &|r| r["img_path1"] = json!("way-out/secret.png")),
        of(2, &|r| r["img_path2"] = json!("/etc/passwd")),
        of(3, &|r| r["img_path1"] = json!("split1/../../images/split1/thing_3_1.png")),
        of(4, &|r| r["caption"]["img_path2"] = json!("red \u{1b}[2J cup")),
        of(5, &|r| r["caption"]["img_path2"] = json!("evil\u{202e}gnp.exe")),
        of(6, &|r| r["caption"]["img_path2"] = json!(" \n ")),
        of(3, &|r| r["caption"]["img_path2"] = json!("كوب أحمر على\nطاولة")),
        of(8, &|r| r["img_path1"] = json!("split1")),
        of(9, &|r| r["vlm_filter_cot"]["score_part"]["shape"] = json!("4")),
        of(10, &|r| r["caption"] = json!([1, 2])),
        of(10, &|r| r["img_path2"] = json!("x\u{0}y")),
    ];
    std::fs::remove_dir_all(folder.path().join("labels")).expect("remove the labels");
    std::fs::write(folder.path().join("split1.json"), json!(records).to_string()).expect("write labels");
    let (names, exhausted) = outcomes(&mut open(&folder), 0, 100);
    assert!(exhausted);
    assert_eq!(
        names,
        [
            "thing 0 on a table",
            "duplicate_record",
            "bad_path",
            "bad_path",
            "bad_path",
            "bad_caption",
            "bad_caption",
            "bad_caption",
            "كوب أحمر على طاولة",
            "unreadable_image",
            "malformed_record",
            "malformed_record",
            "bad_path",
        ]
    );
}

#[test]
fn a_few_with_too_low_a_score_are_kept_to_be_looked_at() {
    let folder = data_set();
    let mut source = open(&folder);
    outcomes(&mut source, 0, 100);
    let shown = source.take_rejected();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].reason, Rejection::ScoreLow);
    assert_eq!(shown[0].pair.as_ref().expect("it has pictures").scores["score"], 3.5);
    assert!(source.take_rejected().is_empty());
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
    let source = Webdataset::open(folder.path(), 2, 4, Orientation::Upright).expect("open");
    let first = source.unit(0).expect("read");
    assert_eq!(first.candidates[0].as_ref().err(), Some(&Rejection::MissingFile));
    assert_eq!(first.candidates[1].as_ref().expect("two references").prompt, "a.tar 1");
    assert!(!first.exhausted && source.unit(1).expect("read").exhausted);
    std::fs::write(folder.path().join("b.tar"), b"cut").expect("spoil");
    let error = source.unit(1).expect_err("it is spoilt").to_string();
    assert!(error.contains("b.tar"), "{error}");
}

/// What the published filter script makes of UNO-1M, beside the pictures.
fn train_records() -> Vec<Value> {
    (0..4)
        .map(|n| {
            json!({
                "prompt": format!("thing {n} on a table"),
                "image_tgt_path": format!("images/split1/thing_{n}_2.png"),
                "image_paths": [format!("images/split1/thing_{n}_1.png"), "images/split1/thing_10_1.png"],
                "left_unread": true,
            })
        })
        .collect()
}

#[test]
fn records_of_uno_s_own_training_are_read() {
    let folder = data_set();
    std::fs::remove_dir_all(folder.path().join("labels")).expect("remove the labels");
    let mut records = train_records();
    records[1].as_object_mut().expect("fields").remove("image_tgt_path");
    records[2]["image_paths"] = json!("images/split1/thing_2_1.png");
    records[3] = records[0].clone();
    let file = folder.path().join("train.json");
    std::fs::write(&file, json!(records).to_string()).expect("write labels");
    let spec = ImportSpec { format: ImportFormat::UnoTrain, ..spec(Directions::Forward) };
    // The file itself, or the folder that has no other.
    for path in [file.as_path(), folder.path()] {
        let mut source = Uno1m::open(path, &spec, 1).expect("open");
        let (names, exhausted) = outcomes(&mut source, 0, 100);
        let expected = ["thing 0 on a table", "malformed_record", "thing 2 on a table", "duplicate_record"];
        assert_eq!((names.as_slice(), exhausted), (&expected.map(str::to_owned)[..], true));
    }
    let mut source = Uno1m::open(&file, &spec, 2).expect("open");
    let imported = source.unit(0, 100, &AtomicBool::new(false)).expect("read");
    let pair = imported.candidates[0].as_ref().expect("two references");
    assert_eq!((pair.references.len(), pair.target.dimensions()), (2, (64, 64)));
    assert_eq!(imported.candidates[2].as_ref().err(), Some(&Rejection::MissingFile), "it has one alone");
    // With several files it cannot be told which is meant.
    std::fs::write(folder.path().join("test.json"), "[]").expect("write");
    assert!(matches!(Uno1m::open(folder.path(), &spec, 1), Err(ImportError::Nothing { .. })));
}

#[test]
fn the_published_layout_may_hold_records_for_training() {
    let folder = data_set();
    std::fs::remove_dir_all(folder.path().join("labels")).expect("remove the labels");
    let mut records = train_records();
    records[1] = record(4, json!({}), json!(4.0));
    records.truncate(2);
    std::fs::write(folder.path().join("split1.json"), json!(records).to_string()).expect("write labels");
    let expected = ["thing 0 on a table", "bad_caption", "thing 4 on a table", "a thing"].map(str::to_owned);
    let mut both = Uno1m::open(folder.path(), &spec(Directions::Both), 1).expect("open");
    assert_eq!(outcomes(&mut both, 0, 100).0, expected);
    assert_eq!(outcomes(&mut open(&folder), 0, 100).0, ["thing 0 on a table", "thing 4 on a table"]);
}

#[test]
fn sides_that_are_no_tokens_cost_their_pair() {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut writer = ShardWriter::default();
    for width in [32, 33] {
        let pair = Pair {
            target: RgbImage::new(32, 32),
            references: vec![RgbImage::new(width, 32)],
            prompt: format!("{width} pixels"),
            reference_words: vec![],
            scores: Default::default(),
            provenance: Value::Null,
        };
        writer.push(&pair).expect("write a pair");
    }
    std::fs::write(folder.path().join("x.TAR"), writer.finish().expect("close").bytes).expect("write a tar");
    let source = Webdataset::open(folder.path(), 1, 4, Orientation::Upright).expect("open");
    let unit = source.unit(0).expect("read");
    assert_eq!(unit.candidates[0].as_ref().expect("it fits").prompt, "32 pixels");
    assert_eq!(unit.candidates[1].as_ref().err(), Some(&Rejection::BadSize));
}
