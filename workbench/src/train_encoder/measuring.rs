//! How well an encoder reads held-out subjects: the ceiling of every score that is read with it.

use anyhow::{Context, Result};
use crescendo_curator_node::filters::similarity::describe;
use crescendo_curator_node::rng::SeededRng;
use crescendo_curator_node::sources::compose::{Composer, EvalSet, Panel};
use crescendo_model::dinov2::DinoV2;
use image::RgbImage;
use serde_json::json;

use super::Reads;
use super::objectives::{placed, subjects_shown};
use crate::measures::phrases::{Segment, arrangements, counts, nearest_phrase};
use crate::measures::views::View;

/// Pictures or scenes to choose from.
const CHOICES: usize = 16;

/// Figures of `cases` held-out panels.
pub fn measure(
    reads: Reads,
    composer: &Composer,
    network: &DinoV2,
    cases: usize,
) -> Result<serde_json::Value> {
    match reads {
        Reads::Subject | Reads::Colour | Reads::Outline => subjects(reads.view(), composer, network, cases),
        Reads::Layout => layouts(composer, network, cases),
        Reads::Prompt => prompts(composer, network, cases),
    }
}

/// How often the panel with the same layout is the nearest of 16 of the same subject.
fn layouts(composer: &Composer, network: &DinoV2, cases: usize) -> Result<serde_json::Value> {
    let mut right = 0usize;
    for case in 0..cases {
        let mut panels = Vec::with_capacity(CHOICES + 1);
        for n in 0..CHOICES as u64 {
            let [one, other] = composer.held_out_layout(case, case as u64 * CHOICES as u64 + n)?;
            panels.push(one);
            if n == 0 {
                panels.push(other);
            }
        }
        let vectors = describe(network, &panels.iter().collect::<Vec<_>>())?;
        // The second panel shows the first one's layout in another scene.
        let cosine = |n: &usize| dot(&vectors[1], &vectors[*n]);
        let nearest = (0..vectors.len()).filter(|n| *n != 1).max_by(|a, b| cosine(a).total_cmp(&cosine(b)));
        right += usize::from(nearest == Some(0));
    }
    Ok(json!({
        "cases": cases, "choices": CHOICES, "chance": 1.0 / CHOICES as f64,
        "nearest_of_16": share(right, cases), "standard_error": error(right, cases),
    }))
}

/// How often scene, place and number are read as they are.
fn prompts(composer: &Composer, network: &DinoV2, cases: usize) -> Result<serde_json::Value> {
    let mut draw = SeededRng::new("held-out prompts", &[]);
    let panels: Vec<Panel> = (0..cases)
        .map(|n| composer.held_out_panel(subjects_shown(&mut draw), n as u64))
        .collect::<std::result::Result<_, _>>()?;
    let vectors = describe(network, &panels.iter().map(|panel| &panel.picture).collect::<Vec<_>>())?;
    let (mut scenes, mut places, mut placed_panels, mut numbers) = (0usize, 0usize, 0usize, 0usize);
    for (n, (panel, vector)) in panels.iter().zip(&vectors).enumerate() {
        let mut choices = vec![panel.scene.clone()];
        for other in panels.iter().cycle().skip(n + 1).take(cases) {
            if choices.len() < CHOICES && !choices.contains(&other.scene) {
                choices.push(other.scene.clone());
            }
        }
        scenes += usize::from(nearest_phrase(Segment::Scene, vector, &choices) == Some(0));
        let number = panel.placements.len();
        numbers += usize::from(nearest_phrase(Segment::Count, vector, &counts()) == Some(number));
        let of = arrangements(number);
        if of.len() > 1 {
            placed_panels += 1;
            let nearest = nearest_phrase(Segment::Place, vector, &of).and_then(|n| of.get(n).cloned());
            places += usize::from(nearest == Some(placed(panel)));
        }
    }
    Ok(json!({
        "cases": cases,
        "scene": {"choices": CHOICES, "right": share(scenes, cases), "standard_error": error(scenes, cases)},
        "place": {"cases": placed_panels, "right": share(places, placed_panels), "standard_error": error(places, placed_panels)},
        "count": {"choices": counts().len(), "right": share(numbers, cases), "standard_error": error(numbers, cases)},
    }))
}

fn share(right: usize, cases: usize) -> f64 {
    rounded(right as f64 / cases.max(1) as f64)
}

fn error(right: usize, cases: usize) -> f64 {
    let share = right as f64 / cases.max(1) as f64;
    rounded((share * (1.0 - share) / cases.max(1) as f64).sqrt())
}

/// How often the nearest of 16 subjects is the right one.
fn subjects(view: View, composer: &Composer, network: &DinoV2, cases: usize) -> Result<serde_json::Value> {
    let set = composer.eval_set(cases, 1, CHOICES, 0).context("make evaluation cases")?;
    let seen: Vec<RgbImage> = set.gallery.iter().map(|entry| view.of(&entry.panel)).collect();
    let gallery = describe(network, &seen.iter().collect::<Vec<_>>())?;
    let right_of = |pictures: Vec<&RgbImage>| -> Result<(f64, Vec<Vec<f64>>)> {
        let seen: Vec<RgbImage> = pictures.into_iter().map(|picture| view.of(picture)).collect();
        let cosines: Vec<Vec<f64>> = describe(network, &seen.iter().collect::<Vec<_>>())?
            .iter()
            .map(|picture| gallery.iter().map(|g| dot(picture, g)).collect())
            .collect();
        Ok((share_right(&set, &cosines), cosines))
    };
    let (accuracy, cosines) = right_of(set.cases.iter().map(|c| &c.truth).collect())?;
    let blurred: Vec<RgbImage> = set.cases.iter().map(|c| image::imageops::blur(&c.truth, 1.0)).collect();
    let (accuracy_blurred, _) = right_of(blurred.iter().collect())?;
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for (n, case) in set.cases.iter().enumerate() {
        for (column, cosine) in cosines[n].iter().copied().enumerate() {
            if case.subjects.contains(&column) { same.push(cosine) } else { other.push(cosine) }
        }
    }
    let error = (accuracy * (1.0 - accuracy) / cases as f64).sqrt();
    Ok(json!({
        "cases": cases, "choices": CHOICES, "chance": 1.0 / CHOICES as f64,
        "nearest_of_16": rounded(accuracy), "standard_error": rounded(error),
        "nearest_of_16_blurred": rounded(accuracy_blurred),
        "cosine_same_subject": distribution(same), "cosine_other_subject": distribution(other),
    }))
}

/// Share of cases whose nearest choice is the right one.
fn share_right(set: &EvalSet, cosines: &[Vec<f64>]) -> f64 {
    let mut right = 0usize;
    for (n, case) in set.cases.iter().enumerate() {
        let mut best = (f64::NEG_INFINITY, usize::MAX);
        for choice in &case.choices[0] {
            let cosine = cosines[n][*choice];
            if cosine > best.0 {
                best = (cosine, *choice);
            }
        }
        right += usize::from(best.1 == case.subjects[0]);
    }
    right as f64 / set.cases.len().max(1) as f64
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn distribution(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at =
        |share: f64| values.get(((values.len().max(1) - 1) as f64 * share) as usize).copied().map(rounded);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    json!({ "mean": rounded(mean), "p01": at(0.01), "p05": at(0.05), "p25": at(0.25), "p50": at(0.5), "p75": at(0.75), "p95": at(0.95), "p99": at(0.99) })
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
