use super::*;
use image::{Rgba, RgbaImage};

fn square(folder: &Path, file: &str, side: u32, colour: [u8; 4]) {
    let picture = RgbaImage::from_fn(64, 64, |x, y| Rgba(if x < side && y < side { colour } else { [0; 4] }));
    picture.save(folder.join(file)).expect("write a picture");
}

fn checked(folder: &Path) -> (Report, Vec<String>) {
    let report = check(folder, &mut |_, _| {}).expect("it can be opened");
    let told = report.problems.iter().map(|p| format!("{}: {p}", p.severity.word())).collect();
    (report, told)
}

#[test]
fn every_problem_is_told_at_once() {
    let root = tempfile::tempdir().expect("make a folder");
    let folder = root.path();
    square(folder, "fox.png", 40, [200, 10, 10, 255]);
    square(folder, "copy.webp", 40, [200, 10, 10, 255]);
    square(folder, "dot.png", 5, [1, 2, 3, 255]);
    square(folder, "little.png", 20, [10, 20, 30, 255]);
    square(folder, "ghost.png", 0, [0; 4]);
    std::fs::write(folder.join("torn.png"), b"\x89PNG\r\n\x1a\n").expect("write");
    let lines = [
        ("fox", "fox.png", "a red fox"),
        ("copy", "copy.webp", "A red fox"),
        ("dot", "dot.png", "a dot"),
        ("little", "little.png", "IMG_0004"),
        ("ghost", "ghost.png", "a ghost"),
        ("torn", "torn.png", "a torn one"),
        ("gone", "gone.png", "a lost one"),
    ];
    let mut index: Vec<serde_json::Value> = lines
        .iter()
        .map(|(id, file, words)| serde_json::json!({"id": id, "file": file, "words": words, "group": "Things"}))
        .collect();
    index[0]["wrods"] = "x".into();
    index.push(serde_json::json!({"id": "fox", "file": "fox.png", "words": "twice"}));
    std::fs::write(folder.join("index.json"), serde_json::to_vec(&index).expect("encode")).expect("write");

    let (report, told) = checked(folder);
    let expected = [
        "error: entry 7 (\"fox\"): id \"fox\" occurs twice",
        "error: dot.png: only 5 x 5 pixels of it are visible; it is small",
        "error: ghost.png: nothing in it is visible",
        "error: gone.png: there is no such file",
        "error: torn.png: it cannot be decoded: unexpected end of file",
        "warning: entry 0 (\"fox\"): unknown field wrods; there are id, words, file, files, name and category",
        "warning: fox.png: it is the same picture as copy.webp, of another subject, copy",
        "warning: little.png: only 20 x 20 pixels of it are visible; it is small",
        "warning: copy: copy and fox have the same words \"A red fox\"; captions cannot tell them apart",
        "warning: little: \"IMG_0004\" is not words; captions say it of the subject",
    ];
    assert_eq!(told, expected);
    assert_eq!((report.subjects, report.pictures, report.with_alpha), (7, 4, 4));
    assert_eq!(report.sides_px, Some([5, 40, 40]));
    assert_eq!(report.categories, BTreeMap::from([("Things".to_owned(), 7)]));
    assert_eq!((report.count(Severity::Error), report.count(Severity::Warning)), (5, 5));
}

#[test]
fn a_plain_folder_is_checked_by_its_own_rules() {
    let root = tempfile::tempdir().expect("make a folder");
    let round = RgbaImage::from_fn(64, 64, |x, y| {
        Rgba([9, 200, 9, if x.abs_diff(32).pow(2) + y.abs_diff(32).pow(2) < 900 { 255 } else { 0 }])
    });
    round.save(root.path().join("green_disc.png")).expect("write");
    square(root.path(), "blue_square-1.png", 64, [10, 20, 200, 255]);
    square(root.path(), "blue_square-2.png", 50, [10, 20, 200, 255]);
    let (report, told) = checked(root.path());
    assert_eq!(told, Vec::<String>::new());
    assert!(report.is_plain);
    assert_eq!(
        (report.subjects, report.with_several_pictures, report.pictures, report.with_alpha),
        (2, 1, 3, 2)
    );
}

#[test]
fn too_few_and_empty_are_errors() {
    let root = tempfile::tempdir().expect("make a folder");
    std::fs::write(root.path().join("index.json"), "[]").expect("write");
    let (report, told) = checked(root.path());
    assert_eq!((report.subjects, told.len()), (0, 1));
    assert!(told[0].starts_with("error: index.json: it has 0 entries"), "{told:?}");
    std::fs::remove_file(root.path().join("index.json")).expect("remove");
    square(root.path(), "fox.png", 40, [200, 10, 10, 255]);
    assert!(checked(root.path()).1[0].contains("there is one subject"));
    for (place, says) in [("nowhere", "No such file"), ("fox.png", "not a folder of pictures: it is a file")]
    {
        let error =
            check(&root.path().join(place), &mut |_, _| {}).expect_err("it cannot be opened").to_string();
        assert!(error.contains(says), "{error}");
    }
}
