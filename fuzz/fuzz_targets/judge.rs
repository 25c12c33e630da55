//! Whatever a judge answers, what is taken of it are 1 to 20 parts with scores from 0 to 4.
#![no_main]

use crescendo_curator_node::filters::judge::scores::parse_scores;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &str| {
    let Ok(scores) = parse_scores(answer) else { return };
    assert!((1..=20).contains(&scores.parts().len()));
    assert!(scores.parts().iter().all(|part| part.score <= 4 && !part.part.trim().is_empty()));
    assert!((0.0..=4.0).contains(&scores.mean()));
});
