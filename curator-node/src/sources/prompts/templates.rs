//! Subjects and scenes without a language model: word lists, put together at random but always the same.

use super::Style;
use super::phrase::{MAX_SCENE_WORDS, MAX_SUBJECT_WORDS, normalised, phrase, with_article};
use super::taxonomy::{Category, CategoryKind};
use crate::rng::SeededRng;
use crescendo_dataset::stable_hash;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Draws for each subject that is wanted, before there are fewer.
const DRAWS_PER_SUBJECT: usize = 20;

/// The lists of words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    version: u32,
    colours: Vec<String>,
    texts: Vec<String>,
    stuff: Vec<String>,
    marvels: Vec<String>,
    shapes: Vec<String>,
    lights: Vec<String>,
    kinds: BTreeMap<CategoryKind, Words>,
}

/// The words of a kind of category.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    /// Such as can be met; living things and food have few or none to choose.
    colours: Vec<String>,
    looks: Vec<String>,
    materials: Vec<String>,
    details: Vec<String>,
    /// Where lettering goes.
    lettering: Vec<String>,
    places: Vec<String>,
}

/// What is built in; the tests hold it to have every kind.
static LISTS: LazyLock<Lists> = LazyLock::new(|| {
    let text = include_str!("../../../../assets/prompt_words.yaml");
    let lists: Lists = serde_yaml::from_str(text).expect("the words that are built in are sound");
    assert_eq!(lists.version, 1, "the words that are built in are of this version");
    lists
});

/// Up to `count` different subjects of a category in a style, a function of the arguments.
pub fn subjects(category: &Category, style: Style, count: usize, seed: u64) -> Vec<String> {
    let mut draw = SeededRng::new("template subjects", &[seed, stable_hash(&category.name), style as u64]);
    let words = &LISTS.kinds[&category.kind];
    let mut seen = BTreeSet::new();
    let mut subjects = Vec::with_capacity(count);
    for _ in 0..count * DRAWS_PER_SUBJECT {
        if subjects.len() == count {
            break;
        }
        let drawn = subject(category, style, words, &mut draw);
        // A long category leaves less room: what has too many words is drawn again.
        if let Ok(subject) = phrase(&drawn, MAX_SUBJECT_WORDS)
            && seen.insert(normalised(&subject))
        {
            subjects.push(subject);
        }
    }
    subjects
}

/// What makes a subject of style `creative` so.
const CREATIVE: [&str; 4] = ["made", "shaped", "marvel", "glowing"];

fn one<'a>(list: &'a [String], draw: &mut SeededRng) -> &'a str {
    draw.pick(list).map_or("", String::as_str)
}

fn subject(category: &Category, style: Style, words: &Words, draw: &mut SeededRng) -> String {
    let name = category.name.as_str();
    let colour = one(&words.colours, draw);
    match style {
        Style::Realistic => {
            format!(
                "{} {colour} {} {name} {}",
                one(&words.looks, draw),
                one(&words.materials, draw),
                one(&words.details, draw)
            )
        }
        Style::TextDecorated => {
            format!("{colour} {name} with \"{}\" {}", one(&LISTS.texts, draw), one(&words.lettering, draw))
        }
        Style::Creative => match draw.pick(&CREATIVE).copied() {
            Some("made") => format!("{} {name} made of {}", one(&words.looks, draw), one(&LISTS.stuff, draw)),
            Some("shaped")
                if category.kind != CategoryKind::Person && category.kind != CategoryKind::Animal =>
            {
                format!("{colour} {name} shaped like {}", one(&LISTS.shapes, draw))
            }
            Some("glowing") => {
                format!("glowing {} {name} with {}", one(&LISTS.colours, draw), one(&LISTS.marvels, draw))
            }
            _ => format!("{} {colour} {name} with {}", one(&words.looks, draw), one(&LISTS.marvels, draw)),
        },
    }
}

/// Up to `count` different scenes of a subject, each with the subject in it; a function of the arguments.
pub fn scenes(subject: &str, kind: CategoryKind, count: usize, seed: u64) -> Vec<String> {
    let mut draw = SeededRng::new("template scenes", &[seed, stable_hash(subject)]);
    let mut places: Vec<&str> = LISTS.kinds[&kind].places.iter().map(String::as_str).collect();
    draw.shuffle(&mut places);
    let lights = &LISTS.lights;
    let first_light = draw.below(lights.len());
    let subject = with_article(subject);
    // All places once, then once more in another light: no two scenes are the same.
    (0..lights.len())
        .flat_map(|round| places.iter().enumerate().map(move |(n, place)| (*place, first_light + n + round)))
        .filter_map(|(place, light)| lights.get(light % lights.len()).map(|light| (place, light)))
        .filter_map(|(place, light)| phrase(&format!("{subject} {place}, {light}"), MAX_SCENE_WORDS).ok())
        .take(count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::taxonomy;
    use super::*;

    #[test]
    fn every_category_has_its_subjects_in_every_style() {
        for category in taxonomy::parse(taxonomy::BUILT_IN).expect("it is sound") {
            for style in Style::ALL {
                let subjects = subjects(&category, style, 50, 7);
                assert_eq!(subjects.len(), 50, "{category:?} {style:?}");
                let different: BTreeSet<String> = subjects.iter().map(|s| normalised(s)).collect();
                assert_eq!(different.len(), 50);
                assert!(subjects.iter().all(|s| s.contains(&category.name)));
            }
        }
    }

    #[test]
    fn subjects_and_scenes_are_functions_of_the_seed() {
        let category = Category { name: "mug".into(), kind: CategoryKind::Object };
        let make = |seed| subjects(&category, Style::Realistic, 20, seed);
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert_eq!(
            scenes("red mug", CategoryKind::Object, 8, 1),
            scenes("red mug", CategoryKind::Object, 8, 1)
        );
        assert_ne!(
            scenes("red mug", CategoryKind::Object, 8, 1),
            scenes("red mug", CategoryKind::Object, 8, 2)
        );
    }

    #[test]
    fn scenes_are_different_and_hold_the_subject() {
        for kind in
            [CategoryKind::Person, CategoryKind::Furniture, CategoryKind::Animal, CategoryKind::Object]
        {
            let scenes = scenes("odd \"HELLO\" thing", kind, 64, 3);
            assert_eq!(scenes.iter().collect::<BTreeSet<_>>().len(), 64);
            assert!(scenes.iter().all(|scene| scene.starts_with("an odd \"HELLO\" thing ")));
        }
    }
}
