//! Subjects and scenes without a language model: word lists, put together at random but always the same.

use super::Style;
use super::phrase::{MAX_SCENE_WORDS, MAX_SUBJECT_WORDS, normalised, phrase, with_article};
use super::taxonomy::{Category, CategoryKind};
use crate::rng::SeededRng;
use crescendo_dataset::stable_hash;
use std::collections::BTreeSet;

/// Draws for each subject that is wanted, before there are fewer.
const DRAWS_PER_SUBJECT: usize = 20;

const COLOURS: &[&str] = &[
    "red",
    "dark red",
    "orange",
    "yellow",
    "golden",
    "green",
    "olive green",
    "turquoise",
    "blue",
    "navy blue",
    "light blue",
    "purple",
    "pink",
    "brown",
    "beige",
    "white",
    "cream",
    "grey",
    "black",
    "silver",
];
const COATS: &[&str] = &[
    "brown",
    "black",
    "white",
    "grey",
    "golden",
    "cream",
    "sandy",
    "reddish-brown",
    "black and white",
    "dark grey",
];
const WORDS: &[&str] = &[
    "HELLO",
    "OPEN",
    "SUNDAY",
    "LUCKY",
    "NORTH",
    "HOME",
    "DREAM",
    "TEAM",
    "FRESH",
    "JUNE",
    "ALPHA",
    "RIVER",
    "SMILE",
    "PARIS",
    "TOKYO",
    "WINNER",
    "MAGIC",
    "LEMON",
    "NOVA",
    "ECHO",
    "BRAVO",
    "CLUB 24",
    "NO. 7",
    "EST. 1987",
    "ROUTE 9",
    "GOOD DAY",
    "THANK YOU",
    "TAKE CARE",
    "KEEP CALM",
    "SLOW DOWN",
];
const STUFF: &[&str] = &[
    "glass",
    "crystal",
    "ice",
    "smoke",
    "paper",
    "origami paper",
    "moss",
    "flowers",
    "autumn leaves",
    "clouds",
    "water",
    "candy",
    "chocolate",
    "gingerbread",
    "gears",
    "copper wire",
    "knitted wool",
    "stained glass",
    "marble",
    "jade",
    "driftwood",
    "seashells",
    "feathers",
    "starlight",
    "lava",
    "neon tubes",
    "mosaic tiles",
    "coral",
    "sand",
    "ribbons",
];
const MARVELS: &[&str] = &[
    "tiny wings",
    "glowing blue veins",
    "a halo of fireflies",
    "a galaxy pattern",
    "a miniature city on top",
    "crystal spikes",
    "a tail of flames",
    "floating golden rings",
    "butterfly wings",
    "three small moons around it",
    "roots growing from it",
    "a waterfall running down its side",
    "steam pipes and brass gears",
    "glowing runes",
    "a rainbow shimmer",
    "frost patterns",
    "scales like a dragon",
    "peacock feathers",
    "a door in its side",
    "a map of stars",
];
const THINGS: &[&str] = &[
    "a castle",
    "a dragon",
    "a seashell",
    "a teapot",
    "a crescent moon",
    "a whale",
    "an owl",
    "a lighthouse",
    "a mushroom",
    "a pineapple",
    "a robot",
    "a rocket",
    "a snail",
    "a lotus flower",
    "a cloud",
    "a fish",
    "a heart",
    "a star",
];

/// The words of a kind of category.
struct Words {
    /// Such as can be met; living things and food have few or none to choose.
    colours: &'static [&'static str],
    looks: &'static [&'static str],
    materials: &'static [&'static str],
    details: &'static [&'static str],
    /// Where lettering goes.
    lettering: &'static [&'static str],
    places: &'static [&'static str],
}

const INDOORS: &[&str] = &[
    "on a wooden table by a window",
    "on a kitchen counter",
    "on a marble shelf",
    "on a windowsill with rain outside",
    "on a stack of old books",
    "on a plain white studio background",
    "on a grey concrete floor",
    "on a picnic blanket in a park",
    "on a mossy rock in a forest",
    "on a sandy beach near the water",
    "on a balcony above a city",
    "in a shop window at night",
    "on a workbench among tools",
    "on a velvet cushion",
    "on a snowy garden wall",
    "on a desk beside a laptop",
    "in front of a brick wall",
    "on a café table",
    "on a wooden pier by a lake",
    "on a rug in front of a fireplace",
    "on a museum pedestal",
    "in a greenhouse among plants",
    "on a train seat",
    "on the steps of an old house",
];
const OUTDOORS: &[&str] = &[
    "on a city street after rain",
    "on a country road between fields",
    "in a forest clearing",
    "on a beach at low tide",
    "on a mountain pass",
    "in a snowy village",
    "in a desert with red rocks",
    "beside a quiet lake",
    "in a narrow old town alley",
    "on a bridge over a river",
    "in a market square",
    "in a meadow full of flowers",
    "under cherry trees in bloom",
    "in a harbour with fishing boats",
    "in front of a brick warehouse",
    "in an empty parking lot",
    "in a vineyard on a hill",
    "in a park in autumn",
    "in front of a modern glass building",
    "at the foot of a waterfall",
    "in a bamboo grove",
    "on a rooftop above the city",
    "on a plain white studio background",
    "in a foggy valley",
];
const ROOMS: &[&str] = &[
    "in a bright living room",
    "in an empty loft with large windows",
    "in a cosy attic",
    "in a library with tall shelves",
    "in a hotel lobby",
    "in a farmhouse kitchen",
    "in a minimalist bedroom",
    "in a greenhouse among plants",
    "in an artist's studio",
    "in a museum hall",
    "on a terrace above the sea",
    "in a courtyard with stone tiles",
    "in a garden under a tree",
    "in a forest clearing",
    "in a warehouse",
    "on a plain white studio background",
    "in a log cabin",
    "in a children's room",
    "in a café",
    "in an antique shop",
    "on a stage with curtains",
    "in a hallway with a patterned floor",
    "beside a swimming pool",
    "in a winter garden",
];
const OUT_AND_IN: &[&str] = &[
    "on a sofa in a living room",
    "in a kitchen",
    "in a garden full of flowers",
    "in a forest clearing",
    "on a beach",
    "in deep snow",
    "on a city pavement",
    "in a field of tall grass",
    "on a wooden bridge",
    "in a park in autumn",
    "beside a quiet lake",
    "on a rocky hillside",
    "in a barn",
    "under an umbrella in the rain",
    "in a market square",
    "on a rooftop",
    "by a campfire",
    "in a library",
    "on a train platform",
    "in front of a brick wall",
    "on a plain white studio background",
    "in a meadow at the edge of a wood",
    "on a stone wall",
    "in a greenhouse",
];
const LIGHTS: &[&str] = &[
    "in soft morning light",
    "in warm evening light",
    "in bright midday sun",
    "under an overcast sky",
    "in moonlight",
    "lit by a single lamp",
    "with long shadows",
    "in golden backlight",
    "in light mist",
    "with a blurred background",
    "seen from above",
    "seen from slightly below",
    "seen from the side",
    "in a close view",
    "in a wide view",
];

fn words(kind: CategoryKind) -> Words {
    match kind {
        CategoryKind::Animal => Words {
            colours: COATS,
            looks: &[
                "small", "fluffy", "sleek", "spotted", "striped", "young", "old", "sturdy", "slender",
                "round", "curious",
            ],
            materials: &[""],
            details: &[
                "with a blue collar",
                "with a red bandana",
                "with bright eyes",
                "with a white patch",
                "with a bent ear",
                "with dark markings",
                "with a green scarf",
                "with long whiskers",
                "with a tiny hat",
                "with a yellow ribbon",
                "",
            ],
            lettering: &[
                "on its collar tag",
                "on its bandana",
                "on its little jacket",
                "on a sign around its neck",
            ],
            places: OUT_AND_IN,
        },
        CategoryKind::Clothing => Words {
            colours: COLOURS,
            looks: &[
                "plain",
                "worn",
                "elegant",
                "oversized",
                "vintage",
                "quilted",
                "patterned",
                "handmade",
                "sporty",
            ],
            materials: &["cotton", "wool", "leather", "denim", "silk", "linen", "velvet", "canvas"],
            details: &[
                "with white stitching",
                "with polka dots",
                "with a floral print",
                "with gold buttons",
                "with thin stripes",
                "with a small patch",
                "with lace trim",
                "with a checked pattern",
                "",
            ],
            lettering: &[
                "embroidered on it",
                "printed across it",
                "stitched on its label",
                "in bold letters",
            ],
            places: INDOORS,
        },
        CategoryKind::Food => Words {
            colours: &[""],
            looks: &[
                "fresh",
                "ripe",
                "large",
                "small",
                "glossy",
                "rustic",
                "home-made",
                "neatly cut",
                "steaming",
            ],
            materials: &[""],
            details: &[
                "with a sprig of mint",
                "with sesame seeds",
                "with powdered sugar",
                "on a ceramic plate",
                "in a paper wrapper",
                "with drops of water",
                "with a small flag",
                "on a wooden board",
                "with honey",
                "",
            ],
            lettering: &["written on its wrapper", "on a paper flag", "written in icing", "on a small label"],
            places: INDOORS,
        },
        CategoryKind::Furniture => Words {
            colours: COLOURS,
            looks: &["antique", "modern", "rustic", "low", "tall", "ornate", "worn", "slim", "round-edged"],
            materials: &[
                "oak",
                "walnut",
                "bamboo",
                "wrought-iron",
                "leather",
                "velvet",
                "rattan",
                "painted wood",
            ],
            details: &[
                "with brass fittings",
                "with carved legs",
                "with a floral pattern",
                "with a striped cushion",
                "with glass inlays",
                "with thin metal legs",
                "with peeling paint",
                "",
            ],
            lettering: &[
                "carved into it",
                "painted on its front",
                "on a brass plate",
                "stencilled on its side",
            ],
            places: ROOMS,
        },
        CategoryKind::Object => Words {
            colours: COLOURS,
            looks: &[
                "small", "large", "vintage", "modern", "worn", "polished", "handmade", "ornate", "simple",
                "sturdy",
            ],
            materials: &[
                "wooden", "ceramic", "metal", "brass", "glass", "plastic", "leather", "enamel", "stone",
            ],
            details: &[
                "with a floral pattern",
                "with white dots",
                "with thin gold lines",
                "with a dented edge",
                "with blue stripes",
                "with a carved handle",
                "with a leather strap",
                "with a checked pattern",
                "with a cracked surface",
                "",
            ],
            lettering: &[
                "painted on it",
                "engraved on it",
                "on its label",
                "printed in bold letters",
                "in gold letters",
            ],
            places: INDOORS,
        },
        CategoryKind::Person => Words {
            colours: &[""],
            looks: &["smiling", "thoughtful", "tall", "cheerful", "serious", "freckled", "friendly", "calm"],
            materials: &[""],
            details: &[
                "with curly red hair",
                "with short black hair",
                "with grey hair",
                "with a long braid",
                "with round glasses",
                "with a blue scarf",
                "with a yellow cap",
                "with a leather satchel",
                "with a green badge",
                "with a silver necklace",
                "with striped sleeves",
                "with white gloves",
            ],
            lettering: &["on the shirt", "on a name badge", "on the cap", "on a banner in both hands"],
            places: OUTDOORS,
        },
        CategoryKind::Plant => Words {
            colours: &[""],
            looks: &["tall", "small", "blooming", "lush", "young", "old", "slender", "wild", "drooping"],
            materials: &[""],
            details: &[
                "in a clay pot",
                "in a blue glazed pot",
                "with dew on it",
                "with broad leaves",
                "with a wooden stake",
                "with a red ribbon",
                "in a woven basket",
                "in a glass jar",
                "",
            ],
            lettering: &[
                "on its pot",
                "on a wooden tag",
                "on a ribbon around it",
                "on a small sign before it",
            ],
            places: OUT_AND_IN,
        },
        CategoryKind::Vehicle => Words {
            colours: COLOURS,
            looks: &[
                "old",
                "shiny",
                "rusty",
                "compact",
                "vintage",
                "modern",
                "muddy",
                "restored",
                "streamlined",
            ],
            materials: &["", "wooden", "steel", "chrome-trimmed"],
            details: &[
                "with white stripes",
                "with round headlights",
                "with a roof rack",
                "with a dented side",
                "with a flag",
                "with leather seats",
                "with large wheels",
                "with a checked pattern",
                "",
            ],
            lettering: &[
                "painted on its side",
                "on its number plate",
                "in bold letters on it",
                "on a banner along it",
            ],
            places: OUTDOORS,
        },
    }
}

/// Up to `count` different subjects of a category in a style, a function of the arguments.
pub fn subjects(category: &Category, style: Style, count: usize, seed: u64) -> Vec<String> {
    let mut draw = SeededRng::new("template subjects", &[seed, stable_hash(&category.name), style as u64]);
    let words = words(category.kind);
    let mut seen = BTreeSet::new();
    let mut subjects = Vec::with_capacity(count);
    for _ in 0..count * DRAWS_PER_SUBJECT {
        if subjects.len() == count {
            break;
        }
        let drawn = subject(category, style, &words, &mut draw);
        // A long category leaves less room: what has too many words is drawn again.
        if let Ok(subject) = phrase(&drawn, MAX_SUBJECT_WORDS)
            && seen.insert(normalised(&subject))
        {
            subjects.push(subject);
        }
    }
    subjects
}

fn subject(category: &Category, style: Style, words: &Words, draw: &mut SeededRng) -> String {
    let mut one = |list: &[&'static str]| draw.pick(list).copied().unwrap_or_default();
    let name = category.name.as_str();
    let colour = one(words.colours);
    match style {
        Style::Realistic => {
            format!("{} {colour} {} {name} {}", one(words.looks), one(words.materials), one(words.details))
        }
        Style::TextDecorated => {
            format!("{colour} {name} with \"{}\" {}", one(WORDS), one(words.lettering))
        }
        Style::Creative => match one(&["made", "shaped", "marvel", "glowing"]) {
            "made" => format!("{} {name} made of {}", one(words.looks), one(STUFF)),
            "shaped" if category.kind != CategoryKind::Person && category.kind != CategoryKind::Animal => {
                format!("{colour} {name} shaped like {}", one(THINGS))
            }
            "glowing" => format!("glowing {} {name} with {}", one(COLOURS), one(MARVELS)),
            _ => format!("{} {colour} {name} with {}", one(words.looks), one(MARVELS)),
        },
    }
}

/// Up to `count` different scenes of a subject, each with the subject in it; a function of the arguments.
pub fn scenes(subject: &str, kind: CategoryKind, count: usize, seed: u64) -> Vec<String> {
    let mut draw = SeededRng::new("template scenes", &[seed, stable_hash(subject)]);
    let mut places = words(kind).places.to_vec();
    draw.shuffle(&mut places);
    let first_light = draw.below(LIGHTS.len());
    let subject = with_article(subject);
    // All places once, then once more in another light: no two scenes are the same.
    (0..LIGHTS.len())
        .flat_map(|round| places.iter().enumerate().map(move |(n, place)| (*place, first_light + n + round)))
        .filter_map(|(place, light)| LIGHTS.get(light % LIGHTS.len()).map(|light| (place, light)))
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
