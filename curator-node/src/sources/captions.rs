//! What the drawing model is told, and what is true of the second panel.

use crate::sources::panel_split::Arrangement;
use crescendo_core::spec::ModelPreset;

/// What prompts without names call the subject.
pub(crate) const NAMELESS: &str = "the subject";
/// What one drawing is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which subject it is, for provenance.
    pub id: String,
    /// How the drawing's caption calls it.
    pub subject: String,
    /// Whether the pair's prompt calls it so too; otherwise only the reference tells what it looks like.
    pub named: bool,
    /// What the first panel shows, and the second: for nano the scene alone, else a line that names the subject.
    pub scenes: [String; 2],
    /// What the second panel shows beside it.
    pub companion: Option<String>,
}

/// Where a subject may be, for models that know the world.
pub(crate) const SETTINGS: &[&str] = &[
    "on a weathered wooden table by a window",
    "on a beach at low tide, wet sand all around",
    "in tall grass on a windy hill",
    "on a marble kitchen counter in morning light",
    "in the snow at the edge of a pine forest",
    "on a stone step in front of an old door",
    "in a busy market street after rain",
    "on a rug in front of a fireplace",
    "in a greenhouse full of ferns",
    "on a rooftop at dusk with city lights behind",
    "on the deck of a small sailing boat",
    "in a library between high shelves",
    "on a mossy rock beside a stream",
    "on a workbench among wood shavings",
    "in a field of sunflowers under a clear sky",
    "on a park bench in autumn",
    "on a train seat with hills passing outside",
    "in a desert with long shadows",
    "on a plain white studio ground under soft light",
    "on a plain grey studio ground under one hard light",
    "in a neon-lit alley at night",
    "on a balcony with potted herbs",
    "in a shallow pool of clear water",
    "on a picnic blanket under a cherry tree",
];

/// The texts of one candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Captions {
    /// Of both panels, for the drawing model.
    pub drawing: String,
    /// Of the second panel, the pair's prompt.
    pub target: String,
}

pub(super) fn captions(preset: ModelPreset, wanted: &Wanted, arrangement: Arrangement) -> Captions {
    let Wanted { subject, named, scenes: [first, second], companion, .. } = wanted;
    match preset {
        // Word for word what its base was trained on: see the layouts of `compose`.
        ModelPreset::Nano => Captions {
            drawing: format!("two panels of {subject}, left on {first}, right on {second}"),
            target: format!("{} on {second}", if *named { subject } else { NAMELESS }),
        },
        ModelPreset::FluxDev | ModelPreset::FluxSchnell => {
            let beside = match companion {
                Some(companion) => format!(", together with {companion}"),
                None => String::new(),
            };
            let second = second.trim_end_matches('.');
            let target = if *named { second.to_owned() } else { nameless(second, subject) };
            let (lie, one, other) = match arrangement {
                Arrangement::SideBySide => ("side by side", "left", "right"),
                Arrangement::Stacked => ("one above the other", "upper", "lower"),
            };
            Captions {
                drawing: format!(
                    "One image divided into two separate panels {lie} by a sharp straight border, both showing exactly \
                     the same {bare}. In the {one} panel: {first}. In the {other} panel, the same {bare} from another \
                     side: {second}{beside}.",
                    first = first.trim_end_matches('.'),
                    bare = without_article(subject),
                ),
                target: format!("{target}{beside}"),
            }
        }
    }
}

fn without_article(subject: &str) -> &str {
    ARTICLES.iter().find_map(|article| subject.strip_prefix(article)).unwrap_or(subject)
}

/// `scene` without the name of its subject, wherever that stands as words of its own, under whatever article.
fn nameless(scene: &str, subject: &str) -> String {
    let bare = without_article(subject);
    let (mut text, mut rest) = (String::new(), scene);
    while let Some(at) = rest.find(bare).filter(|_| !bare.is_empty()) {
        text.push_str(&rest[..at]);
        rest = &rest[at + bare.len()..];
        if text.ends_with(char::is_alphanumeric) || rest.starts_with(char::is_alphanumeric) {
            text.push_str(bare);
        } else {
            text.truncate(without_last_article(&text).len());
            text.push_str(NAMELESS);
        }
    }
    text + rest
}

const ARTICLES: [&str; 3] = ["a ", "an ", "the "];

/// `text` without the article that it ends with, if it does.
fn without_last_article(text: &str) -> &str {
    ARTICLES
        .iter()
        .filter_map(|article| text.strip_suffix(article))
        .find(|before| !before.ends_with(char::is_alphanumeric))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_out_where_it_is_a_name() {
        for (subject, scene, expected) in [
            ("a red car", "a red car on a carpet", "the subject on a carpet"),
            (
                "a car",
                "carpets, the car, a scar and my car",
                "carpets, the subject, a scar and my the subject",
            ),
            ("an owl", "in fog an owl; an owl's eyes", "in fog the subject; the subject's eyes"),
            ("a cat", "pizza cat", "pizza the subject"),
            ("a cat", "an empty room", "an empty room"),
            ("a car", "carcar", "carcar"),
            ("a ", "a room", "a room"),
        ] {
            assert_eq!(nameless(scene, subject), expected);
        }
    }

    #[test]
    fn captions_name_everything_that_is_wanted() {
        let wanted = Wanted {
            id: "teapot".into(),
            subject: "a red teapot".into(),
            named: true,
            scenes: ["a red teapot on a beach".into(), "a red teapot in the snow.".into()],
            companion: Some("an old clock".into()),
        };
        let texts = captions(ModelPreset::FluxDev, &wanted, Arrangement::Stacked);
        for part in [
            "two separate panels one above the other",
            "same red teapot",
            "upper panel: a red teapot on a beach",
        ] {
            assert!(texts.drawing.contains(part), "{part:?} is not in {:?}", texts.drawing);
        }
        assert_eq!(texts.target, "a red teapot in the snow, together with an old clock");
        let nameless =
            captions(ModelPreset::FluxDev, &Wanted { named: false, ..wanted.clone() }, Arrangement::Stacked);
        assert_eq!(nameless.drawing, texts.drawing);
        assert_eq!(nameless.target, "the subject in the snow, together with an old clock");
        let nano =
            Wanted { scenes: ["plain red".into(), "grey with teal dots".into()], companion: None, ..wanted };
        let texts = captions(ModelPreset::Nano, &nano, Arrangement::SideBySide);
        assert_eq!(
            texts.drawing,
            "two panels of a red teapot, left on plain red, right on grey with teal dots"
        );
        assert_eq!(texts.target, "a red teapot on grey with teal dots");
    }
}
