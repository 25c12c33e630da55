//! The file of categories: what subjects are drawn from.

use super::phrase::{MAX_SUBJECT_WORDS, PhraseError, normalised, phrase};
use serde::Deserialize;
use std::collections::BTreeSet;

/// The file that is built in.
pub const BUILT_IN: &str = include_str!("../../../../assets/taxonomy.yaml");
/// Largest file that is read.
pub const MAX_BYTES: usize = 1 << 20;
/// Most categories that are used.
const MAX_CATEGORIES: usize = 20_000;

/// What sort of thing a category is; the templates have words for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CategoryKind {
    Animal,
    Clothing,
    Food,
    Furniture,
    Object,
    Person,
    Plant,
    Vehicle,
}

/// One category.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    pub name: String,
    pub kind: CategoryKind,
}

/// Why a file of categories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaxonomyError {
    #[error("it is larger than {MAX_BYTES} bytes")]
    Large,
    #[error("{0}")]
    Yaml(#[from] serde_yaml::Error),
    #[error("version {found} is not 1")]
    Version { found: u32 },
    #[error("category {shown:?}: {reason}")]
    Category { shown: String, reason: PhraseError },
    #[error("it has no category")]
    Empty,
    #[error("it has more than {MAX_CATEGORIES} categories")]
    Many,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    groups: Vec<Group>,
    people: Option<People>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    kind: CategoryKind,
    categories: Vec<String>,
}

/// Finer classes of people. Each entry of each list is a category.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct People {
    #[serde(default)]
    ages: Vec<String>,
    #[serde(default)]
    professions: Vec<String>,
    #[serde(default)]
    attire: Vec<String>,
}

/// The categories of a file, in its order, each once.
pub fn parse(text: &str) -> Result<Vec<Category>, TaxonomyError> {
    if text.len() > MAX_BYTES {
        return Err(TaxonomyError::Large);
    }
    let value: serde_yaml::Value = serde_yaml::from_str(text)?;
    let full: File = if value.is_sequence() {
        // Any list will do: its entries are objects.
        let categories = serde_yaml::from_value(value)?;
        File { version: 1, groups: vec![Group { kind: CategoryKind::Object, categories }], people: None }
    } else {
        serde_yaml::from_value(value)?
    };
    if full.version != 1 {
        return Err(TaxonomyError::Version { found: full.version });
    }
    let things = full
        .groups
        .into_iter()
        .flat_map(|group| group.categories.into_iter().map(move |name| (name, group.kind)));
    let people = full.people.into_iter().flat_map(|people| {
        let dressed = people.attire.into_iter().map(|attire| format!("person in {attire}"));
        people.ages.into_iter().chain(people.professions).chain(dressed)
    });
    let mut seen = BTreeSet::new();
    let mut categories = Vec::new();
    for (name, kind) in things.chain(people.map(|name| (name, CategoryKind::Person))) {
        // A subject says more than its category, in as many words.
        let name = phrase(&name, MAX_SUBJECT_WORDS / 2)
            .map_err(|reason| TaxonomyError::Category { shown: name.chars().take(60).collect(), reason })?;
        if seen.insert(normalised(&name)) {
            categories.push(Category { name, kind });
        }
        if categories.len() > MAX_CATEGORIES {
            return Err(TaxonomyError::Many);
        }
    }
    if categories.is_empty() { Err(TaxonomyError::Empty) } else { Ok(categories) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_file_has_several_hundred_categories() {
        let categories = parse(BUILT_IN).expect("it is sound");
        assert!(categories.len() > 400, "{}", categories.len());
        let people = categories.iter().filter(|c| c.kind == CategoryKind::Person).count();
        assert!(people > 70, "{people}");
        // Nothing is there twice: what is there twice is dropped.
        let listed =
            BUILT_IN.lines().filter(|line| line.trim_start().starts_with("- ") && !line.contains(':'));
        assert_eq!(listed.count(), categories.len());
    }

    #[test]
    fn any_list_can_be_given() {
        let categories = parse("- cup\n- A cup\n- garden gnome\n").expect("it is sound");
        let names: Vec<&str> = categories.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["cup", "garden gnome"]);
        let people = parse("version: 1\npeople: {ages: [toddler], attire: [a kimono]}").expect("it is sound");
        assert_eq!(people[1], Category { name: "person in a kimono".into(), kind: CategoryKind::Person });
    }

    #[test]
    fn what_is_no_taxonomy_says_why() {
        let reason = |text: &str| parse(text).expect_err("it is not sound").to_string();
        assert_eq!(reason("version: 2\ngroups: []"), "version 2 is not 1");
        assert_eq!(reason("version: 1"), "it has no category");
        assert_eq!(
            reason("[\"a\\u202eb\"]"),
            "category \"a\\u{202e}b\": it holds control or direction characters"
        );
        assert_eq!(
            reason("[one two three four five six seven]"),
            "category \"one two three four five six seven\": it has 7 words, more than 6"
        );
        assert_eq!(reason(&"x".repeat(MAX_BYTES + 1)), "it is larger than 1048576 bytes");
        assert!(parse("version: 1\ngroups: [{kind: ghost, categories: [a]}]").is_err());
        assert!(parse("{a: b").is_err());
        // Aliases that grow without bound are refused by the reader.
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n";
        assert!(reason(bomb).contains("repetition"), "{}", reason(bomb));
    }
}
