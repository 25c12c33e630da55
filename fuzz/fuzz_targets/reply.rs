//! Whatever an endpoint sends, reading it ends: the body of an answer, an error, when to come back, and what a writer of prompts
//! says. No thinking is left in an answer, and of a bill nothing absurd.
#![no_main]

use crescendo_curator_node::llm::json_object::only_object;
use crescendo_curator_node::llm::reply::{Reply, plausible, read};
use crescendo_curator_node::llm::retry::{LONGEST_ASKED, WaitHeaders, asked_wait};
use crescendo_curator_node::llm::server_error::ServerError;
use crescendo_curator_node::llm::thinking::taken_out;
use crescendo_curator_node::llm::usage::Usage;
use crescendo_curator_node::sources::prompts::llm_prompts::{parse_scenes, parse_subjects};
use libfuzzer_sys::fuzz_target;
use std::time::SystemTime;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Reply::Answer { text, usage, .. }) = read(bytes) {
        assert!(!text.trim().is_empty());
        let bill = plausible(usage, Usage { input: 1000, output: 500 }, 500, &text);
        assert!((1..=10_000).contains(&bill.input) && (1..=500).contains(&bill.output));
    }
    let text = String::from_utf8_lossy(bytes);
    assert!(ServerError::of_response(429, &text).message.chars().count() <= 200);
    let visible = taken_out(&text).text;
    assert!(visible.len() <= text.len());
    if let Ok(object) = only_object(&text, "subjects") {
        assert!(serde_json::from_str::<serde_json::Value>(object).is_ok_and(|value| value.is_object()));
    }
    if let Ok(subjects) = parse_subjects(&text) {
        let written = parse_scenes(&text, &subjects, 8).unwrap_or_default();
        assert!(written.iter().all(|subject| (2..=8).contains(&subject.scenes.len())));
    }
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    for headers in [
        WaitHeaders { retry_after: Some(first), date: Some(second), retry_after_ms: None },
        WaitHeaders { retry_after_ms: Some(first), retry_after: Some(second), date: None },
    ] {
        assert!(asked_wait(headers, SystemTime::UNIX_EPOCH).is_none_or(|wait| wait <= LONGEST_ASKED));
    }
});
