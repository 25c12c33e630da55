//! What the measures say of pictures whose faults are known.

use std::fs;
use std::path::Path;

use crescendo_core::spec::{ComposeLayout, ComposeSpec};
use crescendo_curator_node::sources::compose::{Composer, EvalCase, EvalSet};
use crescendo_model::tch::Device;
use image::{Rgba, RgbaImage};
use serde_json::json;

use super::Measure;
use super::judge::{Encoders, Judge, Scores};

const CASES: usize = 64;

/// Discs, bars, triangles, rings and crosses in two of six colours.
fn write_library(folder: &Path) {
    const COLOURS: [[u8; 3]; 6] =
        [[210, 40, 40], [40, 90, 210], [40, 160, 70], [240, 200, 40], [140, 60, 170], [110, 70, 40]];
    fs::create_dir_all(folder).unwrap();
    let mut index = Vec::new();
    for n in 0..30usize {
        let (shape, outer, inner) = (n % 5, COLOURS[n % 6], COLOURS[(n / 6 + n + 1) % 6]);
        let picture = RgbaImage::from_fn(64, 64, |x, y| {
            let (dx, dy) = (x as i32 - 32, y as i32 - 32);
            let far = dx * dx + dy * dy;
            let inside = match shape {
                0 => far < 28 * 28,
                1 => dx.abs() < 12 && dy.abs() < 30,
                2 => dy.abs() < 28 && dx.abs() * 2 < dy + 28,
                3 => (12 * 12..29 * 29).contains(&far),
                _ => dx.abs() < 9 || dy.abs() < 9,
            };
            let colour = if dy > 4 { outer } else { inner };
            if inside { Rgba([colour[0], colour[1], colour[2], 255]) } else { Rgba([0; 4]) }
        });
        picture.save(folder.join(format!("s{n}.png"))).unwrap();
        index.push(
            json!({"id": format!("s{n}"), "words": format!("a thing {n}"), "file": format!("s{n}.png")}),
        );
    }
    fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

fn cases(subjects: usize) -> EvalSet {
    let folder = tempfile::tempdir().unwrap();
    write_library(&folder.path().join("subjects"));
    let spec = ComposeSpec {
        subjects: "subjects".into(),
        photos: None,
        layout: ComposeLayout::Single,
        panel: 32,
        name_share: 0.0,
        hold_out: Vec::new(),
        hold_out_one_in: 2,
    };
    let composer = Composer::open(&spec, 2, 7, 0, folder.path()).unwrap();
    composer.eval_set(CASES, subjects, 16, 5).unwrap()
}

fn right(scores: &Scores, measure: Measure) -> f64 {
    scores[&measure].right().unwrap()
}

#[test]
fn what_is_asked_scores_high_and_is_no_copy_and_a_copy_follows_no_prompt() {
    let encoders = Encoders::open(None, Device::Cpu).unwrap();
    let set = cases(1);
    let judge = Judge::new(&encoders, &set).unwrap();
    let of = |picture: fn(&EvalCase) -> &image::RgbImage| judge.score(set.cases.iter().map(picture)).unwrap();
    let asked = of(|case| &case.truth);
    let copied = of(|case| &case.references[0]);
    let chance = asked[&Measure::Copy].chance().unwrap();
    // The encoders know drawings of things; of discs and bars they tell less, and much more than chance.
    assert!(right(&asked, Measure::Subject) > 0.35, "{}", right(&asked, Measure::Subject));
    for (measure, least) in [(Measure::Scene, 0.8), (Measure::Place, 0.4), (Measure::Count, 0.6)] {
        assert!(right(&asked, measure) > least, "{measure:?} of what is asked: {}", right(&asked, measure));
    }
    assert!(right(&asked, Measure::Copy) < 3.0 * chance, "{}", right(&asked, Measure::Copy));
    assert!(right(&copied, Measure::Copy) > 0.95, "{}", right(&copied, Measure::Copy));
    let difference = (right(&copied, Measure::Subject) - right(&asked, Measure::Subject)).abs();
    assert!(difference < 0.2, "a copy shows the subject as well: {difference}");
    // The scene of a reference is never the one that is asked for, its place now and then.
    assert!(right(&copied, Measure::Prompt) < 0.1, "{}", right(&copied, Measure::Prompt));
    let difference = (right(&copied, Measure::Count) - right(&asked, Measure::Count)).abs();
    assert!(difference < 0.2, "one subject is one in a copy too: {difference}");
    for measure in [Measure::Colour, Measure::Outline] {
        let scores = &asked[&measure];
        assert!(scores.right().unwrap() > 2.0 * scores.chance().unwrap(), "{measure:?} tells nothing");
    }
}

#[test]
fn each_of_two_subjects_is_measured_where_it_should_be() {
    let encoders = Encoders::open(None, Device::Cpu).unwrap();
    let set = cases(2);
    let judge = Judge::new(&encoders, &set).unwrap();
    let asked = judge.score(set.cases.iter().map(|case| &case.truth)).unwrap();
    assert_eq!(asked[&Measure::Subject].draws(), 2 * CASES);
    assert_eq!(asked[&Measure::Copy].draws(), 2 * CASES);
    assert_eq!(asked[&Measure::Place].candidates(), Some((2, 2)));
    for (measure, least) in [(Measure::Subject, 0.25), (Measure::Count, 0.6), (Measure::Place, 0.8)] {
        assert!(right(&asked, measure) > least, "{measure:?}: {}", right(&asked, measure));
    }
    // One large subject in the place of two.
    let copied = judge.score(set.cases.iter().map(|case| &case.references[0])).unwrap();
    assert!(right(&copied, Measure::Count) < 0.2, "{}", right(&copied, Measure::Count));
    // Turned about its middle, each subject is where the other should be.
    let turned: Vec<_> = set.cases.iter().map(|case| image::imageops::rotate180(&case.truth)).collect();
    let turned = judge.score(&turned).unwrap();
    assert!(right(&turned, Measure::Subject) < 0.5 * right(&asked, Measure::Subject));
}
