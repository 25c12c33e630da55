//! The command on small benchmarks, with a scorer that sees colours and with tiny random networks.

use std::cell::Cell;

use crescendo_model::Activation;
use crescendo_model::clip::{Clip, ClipConfig, ClipTextConfig, ClipVisionConfig};
use crescendo_model::dino::{Dino, DinoConfig};
use crescendo_model::owlv2::{Owlv2, Owlv2Config, Owlv2TextConfig, Owlv2VisionConfig};
use crescendo_model::tch::Kind;
use crescendo_model::tokenizer::{PromptTokenizer, TokenRule};
use image::{Rgb, RgbImage};

use super::*;

const RED: Rgb<u8> = Rgb([255, 0, 0]);
const GREEN: Rgb<u8> = Rgb([0, 255, 0]);

/// Features are the mean colour; what is found are the halves of a picture that are of the colour asked for.
#[derive(Default)]
struct Colors {
    described: Cell<usize>,
    finds: bool,
}

impl Scorer for Colors {
    fn identity(&self) -> &str {
        "colours <of> pictures"
    }

    fn describe(&self, picture: &RgbImage) -> Result<Features> {
        self.described.set(self.described.get() + 1);
        let count = picture.pixels().len() as f32;
        let mean = |channel: usize| picture.pixels().map(|p| f32::from(p.0[channel])).sum::<f32>() / count;
        let color = vec![mean(0), mean(1), mean(2)];
        Ok(Features { clip: color.clone(), dino: color })
    }

    fn read(&self, prompt: &str) -> Result<Vec<f32>> {
        let asked = |word: &str| f32::from(u8::from(prompt.contains(word)));
        Ok(vec![asked("red"), asked("green"), asked("blue")])
    }

    fn finds(&self) -> bool {
        self.finds
    }

    fn find(&self, picture: &RgbImage, words: &[&str]) -> Result<Vec<Found>> {
        let half = picture.width() / 2;
        let mut found = Vec::new();
        for left in [0, half] {
            let color = *picture.get_pixel(left, 0);
            let of = |word: &&str| (*word == "red" && color == RED) || (*word == "green" && color == GREEN);
            if let Some(query) = words.iter().position(of) {
                found.push(Found { query, score: 0.9, area: [left, 0, half, picture.height()] });
            }
        }
        Ok(found)
    }
}

/// A picture whose halves have these colours.
fn halves(left: Rgb<u8>, right: Rgb<u8>) -> RgbImage {
    RgbImage::from_fn(8, 8, |x, _| if x < 4 { left } else { right })
}

/// Subjects `red` and `green`, three rows, two drawings of each: the first of the last row lacks the green subject.
fn work(folder: &Path, shard: Shard) -> Result<Work> {
    for (subject, color) in [("red", RED), ("green", GREEN)] {
        let place = folder.join("subjects").join(subject);
        std::fs::create_dir_all(&place)?;
        halves(color, color).save(place.join("00.png"))?;
    }
    let rows = r#"[{"prompt": "a red & green", "image_paths": ["subjects/red/00.png"]},
        {"prompt": "a red", "image_paths": ["subjects/red/00.png"]},
        {"prompt": "red with green", "image_paths": ["subjects/red/00.png", "subjects/green/00.png"]}]"#;
    std::fs::write(folder.join("rows.json"), rows)?;
    let drawings = folder.join("drawn");
    std::fs::create_dir_all(&drawings)?;
    for row in 0..3 {
        for sample in 0..2 {
            let right = if row < 2 || sample == 0 { RED } else { GREEN };
            halves(RED, right).save(drawing(&drawings, row, sample))?;
        }
    }
    let benchmark = Benchmark::read(&folder.join("rows.json"), None)?;
    Ok(Work { benchmark, drawings, samples: 2, out: folder.join("out"), shard })
}

const ALL: Shard = Shard { index: 0, count: 1 };

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn a_missing_subject_shows_in_crops_and_hardly_in_whole_pictures() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let summary = work(folder.path(), ALL)?
        .run(&Colors { finds: true, ..Colors::default() })?
        .summary
        .context("no results")?;
    assert_eq!(summary.groups.len(), 2);
    let (single, double) = (&summary.groups[0].means, &summary.groups[1].means);
    assert!(close(single.dino, 1.0) && close(single.clip_t, (0.5f64.sqrt() + 1.0) / 2.0), "{single:?}");
    // Whole: (1 + 0) / 2 without the green one, half a right angle to both with it.
    assert!(close(double.dino, (0.5 + 0.5f64.sqrt()) / 2.0), "{double:?}");
    let crops = double.crops.as_ref().context("no crops")?;
    assert!(close(crops.dino, 0.75) && close(crops.found, 0.75), "{crops:?}");
    assert!(close(summary.means.dino, (single.dino + double.dino) / 2.0));
    Ok(())
}

#[test]
fn only_what_has_changed_is_scored_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let work = work(folder.path(), ALL)?;
    let outcome = work.run(&Colors::default())?;
    assert_eq!((outcome.scored, outcome.reused, outcome.left), (6, 0, 0));
    let first = std::fs::read(work.out.join("results.json"))?;

    let colors = Colors::default();
    let outcome = work.run(&colors)?;
    assert_eq!((outcome.scored, outcome.reused), (0, 6));
    assert_eq!(colors.described.get(), 2, "only the real pictures");
    assert_eq!(std::fs::read(work.out.join("results.json"))?, first);

    halves(GREEN, GREEN).save(drawing(&work.drawings, 1, 1))?;
    let outcome = work.run(&Colors::default())?;
    assert_eq!((outcome.scored, outcome.reused), (1, 5));
    let dino = outcome.summary.context("no results")?.groups[0].means.dino;
    assert!(close(dino, 0.75), "{dino}");

    halves(GREEN, RED).save(folder.path().join("subjects/green/01.png"))?;
    let benchmark = Benchmark::read(&folder.path().join("rows.json"), None)?;
    let outcome = Work { benchmark, ..work }.run(&Colors::default())?;
    assert_eq!(outcome.scored, 2, "the rows of the subject with another picture");
    Ok(())
}

#[test]
fn shards_together_give_what_one_process_gives() -> Result<()> {
    let (alone, shared) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let colors = Colors { finds: true, ..Colors::default() };
    let alone = work(alone.path(), ALL)?;
    alone.run(&colors)?;
    let first = work(shared.path(), Shard { index: 0, count: 2 })?.run(&colors)?;
    assert_eq!((first.scored, first.left, first.summary.is_some()), (3, 3, false));
    let second = work(shared.path(), Shard { index: 1, count: 2 })?;
    assert!(!second.out.join("results.json").exists());
    assert_eq!(second.run(&colors)?.left, 0);
    for name in ["results.json", "pictures.csv", "results.html"] {
        assert_eq!(std::fs::read(alone.out.join(name))?, std::fs::read(second.out.join(name))?, "{name}");
    }
    Ok(())
}

#[test]
fn missing_drawings_are_listed_and_nothing_is_scored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let work = work(folder.path(), ALL)?;
    std::fs::remove_file(drawing(&work.drawings, 0, 1))?;
    std::fs::remove_file(drawing(&work.drawings, 2, 0))?;
    let colors = Colors::default();
    let error = format!("{:#}", work.run(&colors).err().context("it ran")?);
    assert!(error.contains("2 of 6") && error.contains("0_1.png 2_0.png"), "{error}");
    assert_eq!(colors.described.get(), 0);
    Ok(())
}

#[test]
fn a_drawing_that_is_no_picture_is_an_error_and_the_rest_is_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let work = work(folder.path(), ALL)?;
    std::fs::write(drawing(&work.drawings, 1, 0), b"\x89PNG")?;
    let error = format!("{:#}", work.run(&Colors::default()).err().context("it ran")?);
    assert!(error.contains("1_0.png"), "{error}");
    halves(RED, RED).save(drawing(&work.drawings, 1, 0))?;
    assert_eq!(work.run(&Colors::default())?.reused, 2);
    Ok(())
}

#[test]
fn the_page_needs_nothing_from_elsewhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let work = work(folder.path(), ALL)?;
    work.run(&Colors { finds: true, ..Colors::default() })?;
    let page = std::fs::read_to_string(work.out.join("results.html"))?;
    assert!(
        !page.contains("http://")
            && !page.contains("https://")
            && !page.contains("<script")
            && !page.contains("<of>"),
        "{page}"
    );
    // Six drawings, and a real picture for each subject of each group.
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), 9);
    assert!(page.contains("a red &amp; green") && page.matches("class=\"lost\"").count() == 1);
    let csv = std::fs::read_to_string(work.out.join("pictures.csv"))?;
    assert_eq!(csv.lines().count(), 7);
    Ok(())
}

fn words(folder: &Path, max_length: usize, padding: &str) -> Result<PromptTokenizer> {
    let vocab = serde_json::json!({
        "!": 0, "a": 1, "r": 2, "e": 3, "d": 4, "a</w>": 5, "d</w>": 6, "re": 7, "red</w>": 8,
        "<|startoftext|>": 9, "<|endoftext|>": 10,
    });
    std::fs::write(folder.join("vocab.json"), vocab.to_string())?;
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\nr e\nre d</w>\n")?;
    Ok(PromptTokenizer::load(
        folder,
        &TokenRule { max_length, padding: padding.to_owned(), ..TokenRule::clip() },
    )?)
}

#[test]
fn tiny_networks_score_the_same_every_time() -> Result<()> {
    let text = ClipTextConfig {
        vocab_size: 11,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 8,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        eos_token_id: 10,
    };
    let vision = ClipVisionConfig {
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 16,
        patch_size: 8,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
    };
    let owl = Owlv2Config {
        text_config: Owlv2TextConfig {
            vocab_size: 11,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 8,
            ..Owlv2TextConfig::default()
        },
        vision_config: Owlv2VisionConfig {
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            image_size: 32,
            patch_size: 8,
            ..Owlv2VisionConfig::default()
        },
        projection_dim: 16,
    };
    let config = ClipConfig { text_config: text, vision_config: vision, projection_dim: 12 };
    let dino = DinoConfig { image_size: 32, patch_size: 8, ..DinoConfig::nano() };
    let folder = tempfile::tempdir()?;
    let (kind, device) = (Kind::Float, Device::Cpu);
    let networks = || -> Result<Networks> {
        let finder = Finder {
            network: Owlv2::init(&owl, 3, kind, device)?,
            tokenizer: words(folder.path(), 8, "!")?,
            threshold: 0.1,
        };
        let reader = Reader {
            network: Clip::init(&config, 1, kind, device)?,
            tokenizer: words(folder.path(), 8, "<|endoftext|>")?,
        };
        Networks::new(reader, Dino::init(&dino, 2, kind, device)?, Some(finder), device, "tiny".to_owned())
    };
    let mut means = Vec::new();
    for name in ["once", "again"] {
        let summary =
            work(&folder.path().join(name), ALL)?.run(&networks()?)?.summary.context("no results")?;
        assert!(summary.means.dino.abs() <= 1.0 && summary.means.crops.is_some(), "{summary:?}");
        means.push(summary.means);
    }
    assert_eq!(means[0], means[1]);
    let picture = halves(RED, GREEN);
    for found in networks()?.find(&picture, &["red"])? {
        let [left, top, width, height] = found.area;
        assert!(width > 0 && height > 0 && left + width <= 8 && top + height <= 8, "{found:?}");
    }
    Ok(())
}
