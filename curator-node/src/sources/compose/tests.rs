//! Tests of composing, with small synthetic subjects.

use super::*;
use image::{Rgba, RgbaImage};
use std::collections::BTreeSet;

/// Writes a library of `count` subjects, each a bar, disc or triangle of its own colour, on transparent ground.
pub(crate) fn write_library(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).expect("create the library's folder");
    let mut index = Vec::new();
    for n in 0..count {
        let colour = [(37 * n % 256) as u8, (91 * n % 256) as u8, (53 * n + 80) as u8 % 255, 255];
        let picture = RgbaImage::from_fn(64, 64, |x, y| {
            let (dx, dy) = (x as i32 - 32, y as i32 - 32);
            let inside = match n % 3 {
                0 => dx * dx + dy * dy < 700,
                1 => dx.abs() < 14 && dy.abs() < 28,
                _ => dy.abs() < 26 && dx.abs() * 2 < dy + 26,
            };
            if inside { Rgba(colour) } else { Rgba([0, 0, 0, 0]) }
        });
        picture.save(folder.join(format!("s{n}.png"))).expect("write a subject");
        index.push(json!({ "id": format!("thing-{n}"), "name": format!("thing {n}"), "group": "Things",
            "file": format!("s{n}.png"), "words": format!("a thing {n}") }));
    }
    std::fs::write(folder.join("index.json"), serde_json::to_vec(&index).expect("encode the index"))
        .expect("write the index");
}

fn spec(layout: ComposeLayout) -> ComposeSpec {
    ComposeSpec {
        subjects: "subjects".into(),
        photos: None,
        layout,
        panel: 32,
        name_share: 1.0,
        hold_out: Vec::new(),
        hold_out_one_in: 4,
    }
}

fn composer(layout: ComposeLayout, references: u32) -> (tempfile::TempDir, Composer) {
    let folder = tempfile::tempdir().expect("make a folder");
    write_library(&folder.path().join("subjects"), 40);
    let composer = Composer::open(&spec(layout), references, 7, 0, folder.path()).expect("open the library");
    (folder, composer)
}

#[test]
fn a_candidate_is_a_function_of_its_numbers() {
    let (_a, first) = composer(ComposeLayout::Single, 2);
    let (_b, second) = composer(ComposeLayout::Single, 2);
    for candidate in 0..20 {
        let (a, b) = (
            first.candidate(3, candidate).expect("compose"),
            second.candidate(3, candidate).expect("compose"),
        );
        assert_eq!((&a.target, &a.references, &a.prompt), (&b.target, &b.references, &b.prompt));
        let other = first.candidate(4, candidate).expect("compose");
        assert_ne!(a.target, other.target);
    }
}

#[test]
fn pictures_have_the_shape_of_their_layout() {
    let (_a, single) = composer(ComposeLayout::Single, 2);
    let pair = single.candidate(0, 0).expect("compose");
    assert_eq!(pair.target.dimensions(), (32, 32));
    assert_eq!(pair.references.iter().map(RgbImage::dimensions).collect::<Vec<_>>(), [(32, 32), (32, 32)]);
    assert_eq!(pair.reference_words.len(), 2);
    let (_b, mixed) = composer(ComposeLayout::Mixed, 0);
    for unit in 0..4 {
        let pair = mixed.candidate(unit, 0).expect("compose");
        assert_eq!(pair.target.dimensions(), (if unit % 2 == 1 { 64 } else { 32 }, 32));
        assert_eq!(pair.prompt.starts_with("two panels of "), unit % 2 == 1);
        assert!(pair.references.is_empty());
    }
}

#[test]
fn subjects_are_held_out_by_name_too() {
    let folder = tempfile::tempdir().expect("make a folder");
    write_library(&folder.path().join("subjects"), 8);
    let open = |name: &str| {
        let hold_out = vec!["thing-2".to_owned(), name.to_owned()];
        let spec = ComposeSpec { hold_out, hold_out_one_in: 0, ..spec(ComposeLayout::Single) };
        Composer::open(&spec, 1, 7, 0, folder.path())
    };
    let composer = open("thing 5").expect("both are there");
    assert_eq!(composer.held_out_subjects(), ["thing-2", "thing-5"]);
    assert_eq!(composer.training_subjects().len(), 6);
    let error = open("think 5").expect_err("nobody is called so").to_string();
    assert!(error.contains("`think 5` (did you mean `thing 5`?)"), "{error}");
}

#[test]
fn training_never_shows_a_held_out_subject() {
    let (_a, composer) = composer(ComposeLayout::Single, 2);
    let training: BTreeSet<String> = composer.training_subjects().into_iter().map(String::from).collect();
    let held_out: BTreeSet<String> = composer.held_out_subjects().into_iter().map(String::from).collect();
    assert!(training.is_disjoint(&held_out) && !held_out.is_empty());
    assert_eq!(training.len() + held_out.len(), 40);
    assert!(training.len() > 2 * held_out.len(), "one in four is held out, not {} of 40", held_out.len());
    assert!(held_out.iter().all(|id| is_held_out(id, 4)));
    let mut seen = BTreeSet::new();
    for candidate in 0..400 {
        let pair = composer.candidate(0, candidate).expect("compose");
        let ids = pair.provenance["subjects"].as_array().expect("subjects are listed").clone();
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
        seen.extend(ids.iter().map(|id| id.as_str().expect("an id").to_owned()));
    }
    assert_eq!(seen, training);
}

#[test]
fn evaluation_shows_only_held_out_subjects_with_the_right_one_among_the_choices() {
    let (_a, composer) = composer(ComposeLayout::Single, 2);
    let held_out: Vec<&str> = composer.held_out_subjects();
    let set = composer.eval_set(20, 2, 5, 1).expect("make cases");
    assert_eq!(set.gallery.iter().map(|g| g.id.as_str()).collect::<Vec<_>>(), held_out);
    for case in &set.cases {
        assert_eq!(
            (case.subjects.len(), case.references.len(), case.choices.len(), case.places.len()),
            (2, 2, 2, 2)
        );
        for (n, choices) in case.choices.iter().enumerate() {
            assert_eq!(choices.iter().collect::<BTreeSet<_>>().len(), 5);
            assert!(choices.contains(&case.subjects[n]) && !choices.contains(&case.subjects[1 - n]));
            assert!(case.prompt.contains(&set.gallery[case.subjects[n]].words));
        }
    }
    let again = composer.eval_set(20, 2, 5, 1).expect("make cases");
    assert_eq!(again.cases[19].truth, set.cases[19].truth);
    assert_eq!(again.cases[19].choices, set.cases[19].choices);
}

#[test]
fn the_caption_names_subject_scene_and_place() {
    let (_a, composer) = composer(ComposeLayout::Single, 1);
    for candidate in 0..50 {
        let pair = composer.candidate(0, candidate).expect("compose");
        let scene = pair.provenance["scene"]["words"].as_str().expect("words");
        assert!(
            pair.prompt.starts_with(&format!("{} on {scene}, ", pair.reference_words[0])),
            "{}",
            pair.prompt
        );
        let reference_scene = pair.provenance["reference_scenes"][0]["words"].as_str().expect("words");
        assert_ne!(scene, reference_scene);
    }
}

#[test]
fn captions_without_names_leave_everything_else_as_it_is() {
    let (folder, named) = composer(ComposeLayout::Single, 2);
    let open = |name_share| {
        let spec = ComposeSpec { name_share, ..spec(ComposeLayout::Single) };
        Composer::open(&spec, 2, 7, 0, folder.path()).expect("open the library")
    };
    let (nameless, mixed) = (open(0.0), open(0.25));
    let mut named_of_mixed = 0;
    for candidate in 0..200 {
        let [a, b, c] =
            [&named, &nameless, &mixed].map(|from| from.candidate(0, candidate).expect("compose"));
        assert!(a.target == b.target && a.references == b.references && a.target == c.target);
        assert!(
            b.prompt.starts_with("the first subject ") && b.prompt.contains(" and the second subject "),
            "{}",
            b.prompt
        );
        assert!(c.prompt == a.prompt || c.prompt == b.prompt);
        named_of_mixed += u32::from(c.prompt == a.prompt);
    }
    assert!((30..70).contains(&named_of_mixed), "{named_of_mixed}");
}

#[test]
fn a_broken_subject_is_rejected_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("make a folder");
    let subjects = folder.path().join("subjects");
    write_library(&subjects, 8);
    std::fs::write(subjects.join("s1.png"), b"not a picture").expect("spoil a picture");
    std::fs::remove_file(subjects.join("s2.png")).expect("remove a picture");
    RgbaImage::new(4, 4).save(subjects.join("s3.png")).expect("write an empty picture");
    let spec = ComposeSpec { hold_out_one_in: 0, ..spec(ComposeLayout::Single) };
    let composer = Composer::open(&spec, 1, 7, 0, folder.path()).expect("open the library");
    let results: Vec<_> = (0..100).map(|candidate| composer.candidate(0, candidate)).collect();
    let count = |reason| results.iter().filter(|r| r.as_ref().err() == Some(&reason)).count();
    let (unreadable, missing) = (count(Rejection::UnreadableImage), count(Rejection::MissingFile));
    let good = results.iter().filter(|r| r.is_ok()).count();
    assert!(unreadable > 5 && missing > 2 && good > 40, "{unreadable} {missing} {good}");
    assert_eq!(unreadable + missing + good, 100);
}

#[test]
fn a_bad_index_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("make a folder");
    let subjects = folder.path().join("subjects");
    std::fs::create_dir_all(&subjects).expect("make the folder");
    for (text, says) in [
        ("[]", "0 entries"),
        ("{", "index.json"),
        (r#"[{"id":"a","file":"../../etc/passwd","words":"a"}]"#, "not a path below"),
        (r#"[{"id":"a","file":"a","words":"a"},{"id":"a","file":"a","words":"a"}]"#, "occurs twice"),
    ] {
        std::fs::write(subjects.join("index.json"), text).expect("write the index");
        let error = Composer::open(&spec(ComposeLayout::Single), 1, 7, 0, folder.path())
            .expect_err("the index is bad");
        assert!(error.to_string().contains(says), "{error}");
    }
    std::fs::remove_file(subjects.join("index.json")).expect("remove the index");
    let error =
        Composer::open(&spec(ComposeLayout::Single), 1, 7, 0, folder.path()).expect_err("there is no index");
    assert!(error.to_string().contains("index.json"), "{error}");
}

/// Subjects as a person might have them, without an index: cut-outs, and one subject with two pictures.
fn write_pictures(folder: &Path) {
    std::fs::create_dir_all(folder).expect("create the folder");
    for n in 0..12u32 {
        let picture = RgbaImage::from_fn(80 + 10 * n, 90, |x, y| {
            let inside = x.abs_diff(40 + 5 * n) + y.abs_diff(45) < 40;
            Rgba([(n * 20) as u8, 200 - (n * 9) as u8, (n * 50) as u8, if inside { 255 } else { 0 }])
        });
        let name = [
            "fox", "bird", "mug", "lamp", "chair", "kite", "boat", "shoe", "book", "leaf", "drum-1", "drum-2",
        ];
        picture.save(folder.join(format!("little_{}.png", name[n as usize]))).expect("write a picture");
    }
}

#[test]
fn a_plain_folder_gives_the_pairs_of_the_library_made_of_it() {
    use crescendo_dataset::make::{MakeOptions, make};
    let root = tempfile::tempdir().expect("make a folder");
    write_pictures(&root.path().join("plain"));
    let (plain, library) = (root.path().join("plain"), root.path().join("library"));
    let made = make(&plain, &library, &MakeOptions::default(), &mut |_, _| {}).expect("make the library");
    assert_eq!((made.entries.len(), made.problems.len()), (11, 0));
    let open = |subjects: &str| {
        let spec = ComposeSpec { subjects: subjects.into(), ..spec(ComposeLayout::Single) };
        Composer::open(&spec, 2, 7, 0, root.path()).expect("open it")
    };
    let (plain, library) = (open("plain"), open("library"));
    for candidate in 0..30 {
        let [a, b] = [&plain, &library].map(|from| from.candidate(0, candidate).expect("compose"));
        assert_eq!((&a.target, &a.references, &a.prompt), (&b.target, &b.references, &b.prompt));
        assert!(a.prompt.starts_with("little "), "{}", a.prompt);
    }
}

#[test]
fn a_pair_may_show_two_pictures_of_its_subject() {
    let root = tempfile::tempdir().expect("make a folder");
    let folder = root.path().join("subjects");
    // Red and blue, so that it shows which one it is.
    for (name, colour) in
        [("cube-1", [200, 0, 0, 255]), ("cube-2", [0, 0, 200, 255]), ("ball", [0, 200, 0, 255])]
    {
        std::fs::create_dir_all(&folder).expect("create the folder");
        RgbaImage::from_pixel(64, 64, Rgba(colour)).save(folder.join(format!("{name}.png"))).expect("write");
    }
    let spec = ComposeSpec { hold_out_one_in: 0, ..spec(ComposeLayout::Single) };
    let composer = Composer::open(&spec, 1, 7, 0, root.path()).expect("open it");
    let shows = |picture: &RgbImage, colour: [u8; 3]| picture.pixels().any(|pixel| pixel.0 == colour);
    let mut seen = BTreeSet::new();
    for candidate in 0..60 {
        let pair = composer.candidate(0, candidate).expect("compose");
        if pair.reference_words == ["cube"] {
            seen.insert([&pair.target, &pair.references[0]].map(|picture| shows(picture, [200, 0, 0])));
        }
    }
    assert_eq!(seen.len(), 4, "target and reference choose on their own: {seen:?}");
}
