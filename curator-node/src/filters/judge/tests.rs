use super::*;
use std::path::Path;

#[test]
fn a_judge_that_cannot_be_opened_says_why() {
    let paths =
        PathResolver::new(Path::new("/nowhere"), "s3://elsewhere", crescendo_core::reach::Reach::Everything);
    let filter = |kind| JudgeFilter { min: 4.0, kind };
    let endpoint = JudgeKind::Endpoint { endpoint: "vlm".into(), retries: 2, image_side: 768 };
    let error = open_remote(&filter(endpoint.clone()), &[], None).expect_err("it cannot").to_string();
    assert_eq!(error, "the spec has no endpoint `vlm`");
    assert!(open_local(&filter(endpoint), &paths, Device::Cpu).expect("nothing to open").is_none());
    let clip = JudgeKind::Clip {
        weights: "clip.safetensors".into(),
        tokenizer: "tokenizer.json".into(),
        likeness: (0.6, 0.9),
        agreement: (0.18, 0.3),
    };
    assert!(open_remote(&filter(clip.clone()), &[], None).expect("nothing to open").is_none());
    let error = open_local(&filter(clip), &paths, Device::Cpu).expect_err("no such file").to_string();
    assert!(error.contains("clip.safetensors"), "{error}");
}

#[test]
fn notes_go_where_provenance_has_room() {
    let mut pair = Pair {
        target: image::RgbImage::new(1, 1),
        references: Vec::new(),
        prompt: String::new(),
        reference_words: Vec::new(),
        scores: Default::default(),
        provenance: serde_json::json!({ "unit": 3 }),
    };
    note(&mut pair, 11.0 / 3.0, serde_json::json!({ "kind": "test" }));
    assert_eq!(pair.scores["judge"], 3.666667);
    assert_eq!(pair.provenance, serde_json::json!({ "unit": 3, "judge": { "kind": "test" } }));
    pair.provenance = Value::Null;
    note(&mut pair, 1.0, Value::Null);
    assert_eq!(pair.provenance, Value::Null);
}
