use super::*;
use crate::Library;
use crate::upright::tests::jpeg_held;
use image::{Rgb, RgbImage, Rgba, RgbaImage};

/// A disc with soft edges on transparent ground.
fn cut_out(side: u32, red: u8) -> RgbaImage {
    RgbaImage::from_fn(side, side, |x, y| {
        let (dx, dy) = (x as f32 - side as f32 / 2.0, y as f32 - side as f32 / 2.0);
        let alpha = (side as f32 / 3.0 - dx.hypot(dy)).clamp(0.0, 1.0);
        Rgba([red, (x % 256) as u8, (y % 256) as u8, (alpha * 255.0) as u8])
    })
}

/// A folder `pictures` with two cut-outs, a photograph that lies on its side, and a broken file.
fn pictures() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("make a folder");
    let folder = root.path().join("pictures");
    std::fs::create_dir(&folder).expect("make a folder");
    cut_out(1800, 200).save(folder.join("red_disc.png")).expect("write");
    cut_out(90, 90).save(folder.join("dark_disc.webp")).expect("write");
    let lying = RgbImage::from_fn(64, 40, |x, _| Rgb(if x < 32 { [220, 20, 20] } else { [20, 20, 220] }));
    std::fs::write(folder.join("flag.jpg"), jpeg_held(&lying, 6)).expect("write");
    std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\nnothing").expect("write");
    root
}

fn made(root: &Path, options: &MakeOptions) -> Result<Made, MakeError> {
    make(&root.join("pictures"), &root.join("library"), options, &mut |_, _| {})
}

/// Every file of a folder with its bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = folder::files_below(folder).expect("read");
    files.into_iter().map(|file| (file.clone(), std::fs::read(folder.join(file)).expect("read"))).collect()
}

#[test]
fn a_library_is_upright_small_trimmed_and_the_same_every_time() {
    let root = pictures();
    let mut calls = Vec::new();
    let library = root.path().join("library");
    let first = make(&root.path().join("pictures"), &library, &MakeOptions::default(), &mut |done, of| {
        calls.push((done, of));
    })
    .expect("make");
    assert_eq!(calls, [(1, 3), (2, 3), (3, 3)]);
    assert_eq!(first.problems.len(), 1);
    assert_eq!(
        (first.problems[0].severity, first.problems[0].place.as_str()),
        (Severity::Error, "broken.png")
    );
    let before = files(&library);
    let names: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dark-disc.png", "flag.png", "index.json", "made.json", "red-disc.png"]);
    let size = |file: &str| image::open(library.join(file)).expect("decode").into_rgba8();
    assert_eq!(size("red-disc.png").dimensions(), (1024, 1024));
    let flag = size("flag.png");
    assert_eq!(flag.dimensions(), (40, 64));
    assert!(flag.get_pixel(20, 8).0[0] > 150 && flag.get_pixel(20, 56).0[2] > 150);
    assert_eq!(size("dark-disc.png").get_pixel(0, 0).0[3], 0, "transparency is kept");

    // Again in its place, and elsewhere: the same bytes, and nothing left beside it.
    made(root.path(), &MakeOptions::default()).expect("make again");
    assert_eq!(files(&library), before);
    let mut beside: Vec<String> = std::fs::read_dir(root.path())
        .expect("list")
        .map(|e| e.expect("list").file_name().into_string().expect("text"))
        .collect();
    beside.sort();
    assert_eq!(beside, ["library", "pictures"]);
    let library = Library::open_subjects(&library, 64).expect("open");
    assert_eq!(library.entries(), first.entries);
}

#[test]
fn a_plain_folder_has_the_rasters_of_the_library_made_of_it() {
    let root = pictures();
    made(root.path(), &MakeOptions::default()).expect("make");
    let plain = Library::open_subjects(&root.path().join("pictures"), 200).expect("open");
    let library = Library::open_subjects(&root.path().join("library"), 200).expect("open");
    let told = |entries: &[Entry]| -> Vec<(String, String)> {
        entries.iter().map(|entry| (entry.id.clone(), entry.words.clone())).collect()
    };
    assert_eq!(told(plain.entries()), told(library.entries()));
    assert_eq!(plain.entries().len(), 3);
    for entry in 0..3 {
        assert_eq!(plain.raster(entry, 0).expect("decode"), library.raster(entry, 0).expect("decode"));
    }
    assert!(plain.problems()[0].place == "broken.png" && library.problems().is_empty());
}

#[test]
fn several_pictures_of_one_subject_and_small_ones_as_they_are() {
    let root = pictures();
    let folder = root.path().join("pictures");
    cut_out(40, 1).save(folder.join("red_disc-2.png")).expect("write");
    let opaque = jpeg_held(&RgbImage::from_pixel(50, 40, Rgb([1, 2, 3])), 1);
    std::fs::write(folder.join("wall.jpeg"), &opaque).expect("write");
    let found = made(root.path(), &MakeOptions { size_px: 100, ..MakeOptions::default() }).expect("make");
    let disc = found.entries.iter().find(|entry| entry.id == "red-disc").expect("it is there");
    assert_eq!(disc.files, ["red-disc/1.png", "red-disc/2.png"]);
    assert_eq!(
        std::fs::read(root.path().join("library/wall.jpg")).expect("read"),
        opaque,
        "nothing to change"
    );
    let text = std::fs::read_to_string(root.path().join("library/index.json")).expect("read");
    assert!(text.contains("\"files\"") && text.contains("\"file\": \"wall.jpg\""), "{text}");
}

#[test]
fn an_even_background_is_taken_away_if_asked_for() {
    let root = tempfile::tempdir().expect("make a folder");
    let folder = root.path().join("pictures");
    std::fs::create_dir(&folder).expect("make a folder");
    for (name, ground) in [("mug", 250), ("wall", 0)] {
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            let inside = x.abs_diff(32) < 12 && y.abs_diff(32) < 16;
            Rgb(if inside {
                [180, 40, 40]
            } else if ground == 0 {
                [(x * 4) as u8, 128, 0]
            } else {
                [ground; 3]
            })
        });
        picture.save(folder.join(format!("{name}.png"))).expect("write");
    }
    let options = MakeOptions { background: Background::Remove, ..MakeOptions::default() };
    let found = made(root.path(), &options).expect("make");
    let reasons: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    assert!(
        reasons.len() == 1 && reasons[0].starts_with("wall.png: its background stays: only"),
        "{reasons:?}"
    );
    assert_eq!(
        image::open(root.path().join("library/mug.png")).expect("decode").into_rgba8().dimensions(),
        (23, 31)
    );
}

#[test]
fn only_what_was_made_here_and_left_alone_is_replaced() {
    let root = pictures();
    let library = root.path().join("library");
    let refused = |options: &MakeOptions| made(root.path(), options).expect_err("it is occupied").to_string();
    let force = MakeOptions { force: true, ..MakeOptions::default() };
    std::fs::create_dir(&library).expect("make a folder");
    std::fs::write(library.join("thesis.odt"), "years of work").expect("write");
    for options in [&MakeOptions::default(), &force] {
        assert!(refused(options).contains("it is not empty, and no library"), "{}", refused(options));
    }
    std::fs::write(library.join(INDEX), r#"[{"id":"a","file":"a.png","words":"an a"}]"#).expect("write");
    assert!(
        refused(&MakeOptions::default()).contains("has not made; --force"),
        "{}",
        refused(&MakeOptions::default())
    );
    made(root.path(), &force).expect("it is a library, and to be replaced");
    made(root.path(), &MakeOptions::default()).expect("it was made here");
    std::fs::write(library.join("mine.txt"), "mine").expect("write");
    assert!(refused(&MakeOptions::default()).contains("files of its own, such as mine.txt"));
    std::fs::remove_file(library.join("mine.txt")).expect("remove");
    let text = std::fs::read_to_string(library.join(INDEX)).expect("read").replace("red disc", "a red disc");
    std::fs::write(library.join(INDEX), &text).expect("write");
    assert!(refused(&MakeOptions::default()).contains("changed by hand"));
    assert_eq!(
        std::fs::read_to_string(library.join(INDEX)).expect("read"),
        text,
        "a refusal changes nothing"
    );
}

#[test]
fn a_library_is_not_made_in_its_pictures_or_around_them() {
    let root = pictures();
    let folder = root.path().join("pictures");
    let refused = |out: &Path| {
        make(&folder, out, &MakeOptions { force: true, ..MakeOptions::default() }, &mut |_, _| {})
            .expect_err("it overlaps")
            .to_string()
    };
    assert!(refused(&folder).contains("it lies in the folder that the pictures are in"));
    assert!(refused(&folder.join("library/new")).contains("it lies in the folder that the pictures are in"));
    assert!(refused(root.path()).contains("the pictures lie in it"));
}

#[test]
fn nothing_usable_makes_nothing() {
    let root = pictures();
    for file in ["red_disc.png", "dark_disc.webp", "flag.jpg"] {
        std::fs::remove_file(root.path().join("pictures").join(file)).expect("remove");
    }
    RgbaImage::new(20, 20).save(root.path().join("pictures/ghost.png")).expect("write");
    let error = made(root.path(), &MakeOptions::default()).expect_err("nothing is left").to_string();
    assert!(error.contains("ghost.png: nothing in it is visible") || error.contains("broken.png"), "{error}");
    assert!(!root.path().join("library").exists());
}

#[test]
fn what_an_interrupted_run_left_goes_and_what_it_was_replacing_comes_back() {
    let root = pictures();
    let at = |name: &str| root.path().join(name);
    made(root.path(), &MakeOptions::default()).expect("made");
    std::fs::rename(at("library"), at(".library.old-7")).expect("rename");
    std::fs::create_dir(at(".library.making-0")).expect("make a folder");
    std::fs::create_dir(at(".library.old-photos")).expect("make a folder");
    // Where somebody is at work nothing is touched.
    std::fs::create_dir(at(".library.making-1")).expect("make a folder");
    let at_work = locked(&at(".library.making-1")).expect("nobody is");
    sweep(&at("library"));
    assert!(at("library").join(crate::INDEX).is_file() && !at(".library.old-7").exists());
    assert!(!at(".library.making-0").exists() && at(".library.making-1").exists());
    // Another that makes the same library keeps out of the way; what ended leaves nothing.
    let options = MakeOptions { force: true, ..MakeOptions::default() };
    made(root.path(), &options).expect("made again");
    assert!(at(".library.making-1").exists());
    drop(at_work);
    made(root.path(), &options).expect("made again");
    let mut left: Vec<String> = std::fs::read_dir(root.path())
        .expect("list")
        .map(|entry| entry.expect("list").file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, [".library.old-photos", "library", "pictures"], "and what is somebody's own stays");
}
