//! `crescendo library`, and a spec that uses what it has made.

use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder as _, Rgb, RgbImage, Rgba, RgbaImage};

use crate::{crescendo, run};

/// Twenty cut-outs as a person might have them: shapes of different colours on transparent ground.
fn draw_cut_outs(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let colours = [
        ("red", [210, 30, 30]),
        ("green", [30, 160, 60]),
        ("blue", [30, 60, 210]),
        ("golden", [220, 180, 40]),
    ];
    for (colour, [r, g, b]) in colours {
        for shape in ["disc", "square", "ring", "cross", "diamond"] {
            let picture = RgbaImage::from_fn(96, 96, |x, y| {
                let (dx, dy) = (x as f32 - 47.5, y as f32 - 47.5);
                let inside = match shape {
                    "disc" => dx.hypot(dy) < 40.0,
                    "square" => dx.abs().max(dy.abs()) < 34.0,
                    "ring" => (24.0..40.0).contains(&dx.hypot(dy)),
                    "cross" => dx.abs().min(dy.abs()) < 12.0 && dx.abs().max(dy.abs()) < 40.0,
                    _ => dx.abs() + dy.abs() < 42.0,
                };
                Rgba([r, g, b, if inside { 255 } else { 0 }])
            });
            picture.save(folder.join(format!("{colour}_{shape}.png"))).unwrap();
        }
    }
}

fn jpeg_on_its_side() -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0]);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.encode_image(&RgbImage::from_pixel(80, 40, Rgb([90, 90, 90]))).unwrap();
    bytes
}

#[tokio::test]
async fn from_pictures_to_a_valid_spec() {
    let home = tempfile::tempdir().unwrap();
    draw_cut_outs(&home.path().join("my-pictures"));
    let crescendo = |args: &[&str]| {
        let mut command = crescendo(home.path());
        command.current_dir(home.path()).args(args);
        command
    };
    let (code, out, err) =
        run(&mut crescendo(&["library", "make", "my-pictures", "--out", "my-library"])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "my-library: 20 subjects, 20 pictures\n", ""));

    let (code, out, err) = run(&mut crescendo(&["library", "check", "my-library"])).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let expected = "\
place        my-library (library)
subjects     20
pictures     20: 16 with transparency, 4 without
longer side  68 to 82 pixels, median 80
problems     0 errors, 0 warnings
";
    assert_eq!(out, expected);
    let (code, out, _) = run(&mut crescendo(&["library", "check", "my-pictures", "-o", "json"])).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["kind"], &report["subjects"]), (0, &"folder".into(), &20.into()));
    assert_eq!(report["longerSidePixels"], serde_json::json!({"min": 68, "median": 80, "max": 82}));

    let spec =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/own-pictures.yaml"));
    let spec = spec.unwrap();
    assert!(spec.contains("subjects: my-library"), "the example is about the library that the page makes");
    std::fs::write(home.path().join("job.yaml"), &spec).unwrap();
    let (code, out, err) = run(&mut crescendo(&["validate", "job.yaml"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("subjects: my-library"), "{out}");
}

#[tokio::test]
async fn bad_files_are_named_and_the_rest_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let pictures = home.path().join("pictures");
    draw_cut_outs(&pictures);
    std::fs::write(pictures.join("torn.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    std::fs::write(pictures.join("holiday.heic"), b"x").unwrap();
    std::fs::write(pictures.join("notes.md"), b"not a picture, and not taken for one").unwrap();
    std::fs::write(pictures.join("IMG_0001.jpg"), jpeg_on_its_side()).unwrap();
    std::fs::write(pictures.join("lamp.jpg"), jpeg_on_its_side()).unwrap();
    RgbaImage::new(50, 50).save(pictures.join("ghost.png")).unwrap();
    let library = home.path().join("library");
    let mut command = crescendo(home.path());
    let (code, out, err) =
        run(command.args(["library", "make"]).arg(&pictures).arg("--out").arg(&library)).await;
    assert_eq!(code, 1);
    assert!(out.ends_with("library: 21 subjects, 21 pictures\n"), "{out}");
    for line in [
        "error: ghost.png: nothing in it is visible",
        "error: holiday.heic: it is not png, jpeg or webp; convert it",
        "error: IMG_0001.jpg: nothing in \"IMG_0001\" is a word: name it after what it shows, or put the words into a .txt beside it",
        "error: torn.png: ",
        "error: left out 4 files, as said above; the library has the others",
    ] {
        assert!(err.contains(line), "{line}\n{err}");
    }
    assert_eq!(err.lines().count(), 5, "{err}");
    assert_eq!(image::image_dimensions(library.join("lamp.png")).unwrap(), (40, 80), "it stands upright");

    std::fs::write(library.join("index.json"), "[]").unwrap();
    let mut command = crescendo(home.path());
    let (code, _, err) =
        run(command.args(["library", "make"]).arg(&pictures).arg("--out").arg(&library)).await;
    assert!(
        code == 1 && err.contains("its index.json has been changed by hand; --force replaces it"),
        "{err}"
    );
    let mut command = crescendo(home.path());
    let (code, _, err) = run(command.args(["library", "check"]).arg(&library)).await;
    assert!(code == 1 && err.starts_with("error: index.json: it has 0 entries"), "{err}");
    let mut command = crescendo(home.path());
    let (code, _, err) = run(command.args(["library", "check", "nowhere"])).await;
    assert_eq!(
        (code, err.as_str()),
        (1, "error: cannot read nowhere: No such file or directory (os error 2)\n")
    );
}
