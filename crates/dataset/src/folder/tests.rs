use super::*;
use crate::Severity;
use image::{Rgba, RgbaImage};

/// A folder with these files; what ends like a picture is one.
fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("make a folder");
    for (file, text) in files {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("make a folder");
        if text.is_empty() {
            RgbaImage::from_pixel(16, 16, Rgba([9, 9, 9, 255])).save(&path).expect("write a picture");
        } else {
            std::fs::write(&path, text).expect("write a file");
        }
    }
    folder
}

/// Id, words and number of pictures of each subject.
fn subjects(found: &Found) -> Vec<(&str, &str, usize)> {
    found.entries.iter().map(|entry| (entry.id.as_str(), entry.words.as_str(), entry.files.len())).collect()
}

fn problems(found: &Found) -> Vec<String> {
    found.problems.iter().map(ToString::to_string).collect()
}

fn scanned(files: &[(&str, &str)], rules: &FolderRules) -> Found {
    scan(folder_with(files).path(), rules).expect("it has pictures")
}

#[test]
fn names_are_words_and_numbers_are_views() {
    let found = scanned(
        &[
            ("red_fox.png", ""),
            ("red_fox-2.png", ""),
            ("blue bird.JPG", "x"),
            ("mug1.png", ""),
            (".hidden.png", "x"),
        ],
        &FolderRules::default(),
    );
    assert_eq!(subjects(&found), [("mug", "mug", 1), ("red-fox", "red fox", 2)]);
    assert_eq!(found.entries[1].files, ["red_fox-2.png", "red_fox.png"]);
    assert_eq!(problems(&found), ["blue bird.JPG: it is not a png, jpeg or webp picture"]);
}

#[test]
fn captions_beside_pictures_are_what_is_said() {
    let found = scanned(
        &[
            ("IMG_1.png", ""),
            ("IMG_1.txt", "\u{feff}\n  a chipped mug \nmore"),
            ("IMG_2.png", ""),
            ("IMG_2.txt", "a chipped mug"),
            ("fox.png", ""),
            ("fox.txt", "a red fox"),
            ("IMG_3.png", ""),
            ("IMG_4.png", ""),
            ("IMG_4.txt", " \n"),
            ("lost.txt", "a lost one"),
        ],
        &FolderRules::default(),
    );
    assert_eq!(subjects(&found), [("a-chipped-mug", "a chipped mug", 2), ("fox", "a red fox", 1)]);
    let problems = problems(&found);
    assert!(problems[0].starts_with("IMG_3.png: nothing in \"IMG_3\" is a word"), "{problems:?}");
    assert!(problems[1].starts_with("IMG_4.txt: it is empty"), "{problems:?}");
    assert!(problems[2].starts_with("lost.txt: there is no picture"), "{problems:?}");
    assert_eq!(problems.len(), 3);
}

#[test]
fn a_subfolder_is_a_subject_and_may_lie_in_a_category() {
    let files = [
        ("my mug/IMG_1.png", ""),
        ("my mug/IMG_2.png", ""),
        ("dog/1.png", ""),
        ("dog2/1.png", ""),
        ("001/1.png", ""),
        ("001.txt", "a lamp"),
        ("toys/blue bird/a.png", ""),
        ("a/b/c/d.png", ""),
        ("old.heic", "x"),
    ];
    let found = scanned(&files, &FolderRules::default());
    assert_eq!(
        subjects(&found),
        [
            ("a-lamp", "a lamp", 1),
            ("dog", "dog", 1),
            ("dog2", "dog", 1),
            ("my-mug", "my mug", 2),
            ("toys-blue-bird", "blue bird", 1)
        ]
    );
    assert_eq!(found.entries[4].category, "toys");
    assert_eq!(
        problems(&found),
        [
            "a/b/c: it lies too deep: category, subject, pictures",
            "old.heic: it is not png, jpeg or webp; convert it"
        ]
    );

    let rules = FolderRules { subfolders: Subfolders::Categories, csv: None };
    let found = scanned(&[("animals/fox.png", ""), ("animals/fox-2.png", ""), ("toys/fox.png", "")], &rules);
    assert_eq!(subjects(&found), [("animals-fox", "fox", 2), ("toys-fox", "fox", 1)]);
}

#[test]
fn a_csv_says_what_each_picture_is() {
    let found = scanned(
        &[
            ("1.png", ""),
            ("2.png", ""),
            ("x/3.png", ""),
            ("left.png", ""),
            (
                "list.csv",
                "file,name,category,caption\n1.png,red fox,animals,a red fox\n2.png,red fox,animals,\nx/3.png,mug\n1.png,mug\nno.png,no\n",
            ),
        ],
        &FolderRules::default(),
    );
    assert_eq!(subjects(&found), [("animals-red-fox", "a red fox", 2), ("mug", "mug", 1)]);
    let problems = problems(&found);
    assert_eq!(problems[0], "list.csv:5: 1.png has a line already");
    assert_eq!(problems[1], "left.png: left out: the CSV has no line for it");
    assert!(problems[2].starts_with("no.png: No such file"), "{problems:?}");
}

#[test]
fn two_captions_of_one_subject_are_told() {
    let found = scanned(
        &[("fox-1.png", ""), ("fox-1.txt", "a red fox"), ("fox-2.png", ""), ("fox-2.txt", "a grey fox")],
        &FolderRules::default(),
    );
    assert_eq!(subjects(&found), [("fox", "a red fox", 2)]);
    assert_eq!(found.problems[0].severity, Severity::Warning);
    assert!(found.problems[0].reason.contains("\"a grey fox\""), "{:?}", found.problems);
}

#[test]
fn a_folder_without_pictures_says_what_is_wrong() {
    let failed = |files: &[(&str, &str)]| {
        scan(folder_with(files).path(), &FolderRules::default()).expect_err("nothing to use").to_string()
    };
    assert!(failed(&[]).contains("neither an index.json nor pictures"), "{}", failed(&[]));
    assert!(failed(&[("readme.md", "x")]).contains("neither an index.json nor pictures"));
    assert!(failed(&[("IMG_1.png", "")]).contains("the first: IMG_1.png: nothing in"));
    assert!(failed(&[("fox.png", "no picture")]).contains("fox.png: it is not a png"));
    assert!(
        failed(&[("a.csv", "x"), ("b.csv", "x"), ("fox.png", "")])
            .contains("more than one CSV, a.csv and b.csv")
    );
    let missing = scan(Path::new("/nowhere"), &FolderRules::default()).expect_err("there is none");
    assert!(missing.to_string().starts_with("cannot read /nowhere: No such file"), "{missing}");
}

#[test]
fn what_is_no_file_and_what_leads_back_are_problems() {
    let folder = folder_with(&[("fox.png", "")]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("pipe.png")).expect("bind");
    std::os::unix::fs::symlink(".", folder.path().join("loop")).expect("link");
    let found = scan(folder.path(), &FolderRules::default()).expect("it has a picture");
    assert_eq!(subjects(&found), [("fox", "fox", 1)]);
    let told = problems(&found).join("; ");
    assert!(told.contains("loop") && told.contains("a link to a folder that it lies in"), "{told}");
    assert!(told.contains("pipe.png") && told.contains("no plain file"), "{told}");
}
