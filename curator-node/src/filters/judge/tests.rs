use super::*;
use std::path::Path;

#[test]
fn a_judge_that_cannot_be_opened_says_why() {
    let paths = PathResolver::new(Path::new("/nowhere"), "s3://elsewhere");
    let open = |kind| {
        Judge::open(&JudgeFilter { min: 4.0, kind }, &[], &paths, None).expect_err("it cannot").to_string()
    };
    let endpoint = JudgeKind::Endpoint { endpoint: "vlm".into(), retries: 2, image_side: 768 };
    assert_eq!(open(endpoint), "the spec has no endpoint `vlm`");
    let clip = JudgeKind::Clip {
        weights: "clip.safetensors".into(),
        tokenizer: "tokenizer.json".into(),
        likeness: (0.6, 0.9),
        agreement: (0.18, 0.3),
    };
    assert!(open(clip).contains("clip.safetensors"));
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
