//! `crescendo pairs` on an object store that is a folder.

use std::path::Path;

use crescendo_proto::v1::{JobState, Shard, WatchPairLogResponse};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::fake::{Fake, job};
use crate::{crescendo, run};

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A shard of `count` pairs below `objects`.
fn shard(objects: &Path, key: &str, count: u64, provenance: &Value) -> Shard {
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..count {
        let facts = json!({
            "prompt": format!("thing {n} of {key}"), "reference_words": ["a thing"],
            "scores": { "similarity": 0.25 }, "provenance": provenance,
        });
        let entries = [("target.png", png()), ("ref0.png", png()), ("json", facts.to_string().into_bytes())];
        for (suffix, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{n:06}.{suffix}"), content.as_slice()).unwrap();
        }
    }
    let bytes = tar.into_inner().unwrap();
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = objects.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &bytes).unwrap();
    Shard { path: key.into(), pairs: count, size_bytes: bytes.len() as u64, sha256, ..Shard::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_listed_drawn_and_verified() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    let key = |unit: u64| format!("jobs/uno-1/stage-1/pairs/unit-{unit:06}-l1.tar");
    let made = json!({ "unit": 0 });
    let first = shard(objects.path(), &key(0), 40, &made);
    let second = Shard { unit: 1, first_index: 40, ..shard(objects.path(), &key(1), 40, &made) };
    let rejected = json!({ "rejected": "similarity_low" });
    shard(objects.path(), "jobs/uno-1/stage-1/rejected/unit-000000.tar", 2, &rejected);
    shard(objects.path(), "jobs/uno-1/stage-1/rejected/unit-000001.tar", 2, &rejected);
    std::fs::write(objects.path().join("jobs/uno-1/stage-1/rejected/unit-000002.tar"), b"torn").unwrap();
    {
        let mut part = fake.part();
        part.jobs = vec![job("uno-1", JobState::Running, 1, 4)];
        // The log is told in two parts and is cut within its last shard.
        part.pair_log = vec![
            WatchPairLogResponse { shards: vec![first], committed: 40, sealed: false },
            WatchPairLogResponse { shards: vec![second], committed: 64, sealed: false },
        ];
    }
    let server = fake.serve().await;
    let pairs = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["pairs", "uno-1", "--controller", &server.address.to_string(), "--object-store"]);
        command.arg(objects.path()).args(more);
        command
    };

    let (code, out, err) = run(&mut pairs(&["--limit", "4"])).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 9, "{out}");
    assert!(lines[1].contains("accepted") && lines[8].contains("similarity_low"), "{out}");
    assert!(err.contains("unit-000002.tar is passed over"), "{err}");

    let (code, out, _) = run(&mut pairs(&["--accepted", "--limit", "1000", "-o", "json"])).await;
    assert_eq!(code, 0);
    let listed: Vec<Value> = serde_json::from_str(&out).unwrap();
    let indices: Vec<u64> = listed.iter().map(|pair| pair["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, (0..64).collect::<Vec<_>>());

    let sheet = home.path().join("sheet.html");
    let (code, _, err) = run(pairs(&["--sheet"]).arg(&sheet)).await;
    assert_eq!(code, 0, "{err}");
    let page = std::fs::read_to_string(&sheet).unwrap();
    assert!(page.contains("Rejected, similarity_low: 4 of 4") && page.contains("data:image/png"), "{page}");

    // A shard that is not what was registered is not shown.
    std::fs::write(objects.path().join(key(0)), b"spoilt").unwrap();
    let (code, _, err) = run(&mut pairs(&["--accepted"])).await;
    assert!(code == 1 && err.contains("unit-000000-l1.tar") && err.contains("SHA-256"), "{err}");
    let (code, _, err) = run(&mut pairs(&["--stage", "stage-9"])).await;
    assert!(code == 2 && err.contains("no stage stage-9"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_marked_and_marks_taken_back_and_listed() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let pairs = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["pairs", "uno-1", "--controller", &server.address.to_string()]).args(more);
        command
    };
    let (code, out, err) = run(&mut pairs(&["--mark", "12,40", "--reason", "blurred"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("2 marked; version 2"), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with("12") && lines[1].ends_with("blurred"), "{out}");
    let (code, _, err) = run(&mut pairs(&["--unmark", "12"])).await;
    assert_eq!(code, 0, "{err}");
    let (code, out, _) = run(&mut pairs(&["--marks", "-o", "json"])).await;
    assert_eq!(code, 0);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed["version"], 3);
    assert_eq!(listed["marks"][0]["index"], 40);
    assert_eq!(listed["marks"].as_array().map(Vec::len), Some(1));
    for wrong in [&["--mark", "1", "--unmark", "2"][..], &["--reason", "why"], &["--mark", "x"]] {
        let (code, _, err) = run(&mut pairs(wrong)).await;
        assert_eq!(code, 2, "{wrong:?}: {err}");
    }
}
