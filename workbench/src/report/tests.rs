//! Reports over made-up finished jobs of the nano preset.

use std::fs;
use std::path::{Path, PathBuf};

use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::ShardWriter;
use crescendo_model::lora::BlockSelection;
use crescendo_model::tch::{Device, Kind};
use crescendo_model::{FluxConfig, LoraAdapter};
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::{ReportArgs, run};

const CHECKPOINT: &str = "jobs/cups-1/stage-1/checkpoints/step-00000002-g1";

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/nano/base.safetensors")
}

/// A finished job of one stage, in a folder of its own.
struct Made {
    folder: tempfile::TempDir,
    job: Value,
}

impl Made {
    /// `stage` has the lines of the stage's spec below its name.
    fn new(weights: &str, stage: &str) -> Self {
        let spec = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: cups}}\nspec:\n  \
             model: {{preset: nano, precision: f32, weights: '{weights}'}}\n  resources: {{gpus: 1}}\n  \
             stages:\n    - name: stage-1\n      {stage}\n"
        );
        let job = json!({
            "jobId": "cups-1", "name": "cups", "state": "succeeded", "resolvedSpecYaml": spec,
            "submittedAt": "2026-01-01T00:00:00.000Z", "startedAt": "2026-01-01T00:01:00.000Z",
            "finishedAt": "2026-01-01T00:09:12.000Z",
            "stages": [{
                "name": "stage-1", "step": 2, "stepsTotal": 2, "restarts": 0, "pairsCommitted": 60, "pairsTarget": 60,
                "pairsRejected": {"similarity_low": 4}, "finalCheckpoint": CHECKPOINT,
            }],
        });
        let made = Self { folder: tempfile::tempdir().unwrap(), job };
        fs::create_dir_all(made.checkpoint()).unwrap();
        let step = |n: u64| {
            format!(
                "{{\"step\":{n},\"loss\":0.5,\"grad_norm\":1.0,\"learning_rate\":0.001,\"seconds\":0.2}}\n"
            )
        };
        fs::write(made.checkpoint().join("history.jsonl"), step(1) + &step(2)).unwrap();
        made
    }

    /// With a LoRA as it is before training.
    fn with_lora(self) -> Self {
        let config = FluxConfig::nano();
        let mut lora =
            LoraAdapter::init(&config, 2, &BlockSelection::all(&config), 1, Kind::Float, Device::Cpu)
                .unwrap();
        lora.save(&self.checkpoint().join("dit_lora.safetensors")).unwrap();
        self
    }

    fn with_library(self, count: u32) -> Self {
        let folder = self.folder.path().join("subjects");
        fs::create_dir_all(&folder).unwrap();
        let mut index = Vec::new();
        for n in 0..count {
            let colour = Rgba([(37 * n % 256) as u8, (91 * n % 256) as u8, (53 * n % 256) as u8, 255]);
            let picture = RgbaImage::from_fn(40, 40, |x, y| {
                let inside = if n % 2 == 0 { x > 8 && x < 30 } else { (x + y) % 40 < 22 };
                if inside && y > 4 && y < 36 { colour } else { Rgba([0; 4]) }
            });
            picture.save(folder.join(format!("{n}.png"))).unwrap();
            let words = format!("a thing {n}");
            index.push(json!({"id": format!("thing-{n}"), "file": format!("{n}.png"), "words": words}));
        }
        fs::write(folder.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        self
    }

    /// With a shard of pairs, written by two leases.
    fn with_pairs(self, references: usize) -> Self {
        let folder = self.folder.path().join("objects/jobs/cups-1/stage-1/pairs");
        fs::create_dir_all(&folder).unwrap();
        let mut writer = ShardWriter::default();
        for n in 0..12u8 {
            let picture = |shade: u8| RgbImage::from_pixel(32, 32, Rgb([shade, n * 20, 90]));
            writer
                .push(&Pair {
                    target: picture(10),
                    references: (0..references).map(|r| picture(100 + r as u8)).collect(),
                    prompt: format!("the subject on plain red, {n}"),
                    reference_words: vec!["a thing".into(); references],
                    scores: Default::default(),
                    provenance: Value::Null,
                })
                .unwrap();
        }
        let shard = writer.finish().unwrap();
        for lease in ["l1", "l2"] {
            fs::write(folder.join(format!("unit-000000-{lease}.tar")), &shard.bytes).unwrap();
        }
        self
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("objects").join(CHECKPOINT)
    }

    /// Its report: JSON and page.
    fn report(&self) -> (Value, String) {
        let path = |name: &str| self.folder.path().join(name);
        fs::write(path("job.json"), serde_json::to_vec(&self.job).unwrap()).unwrap();
        run(&ReportArgs {
            job: path("job.json"),
            object_store: path("objects").display().to_string(),
            library_root: self.folder.path().to_owned(),
            out: path("report"),
            draw_steps: Some(1),
            draws: Some(10),
            true_cfg: None,
            without_base: false,
            threads: 1,
        })
        .unwrap();
        let json = serde_json::from_slice(&fs::read(path("report/report.json")).unwrap()).unwrap();
        (json, fs::read_to_string(path("report/report.html")).unwrap())
    }

    fn has(&self, name: &str) -> bool {
        self.folder.path().join("report").join(name).is_file()
    }
}

fn compose(references: u32, hold_out: u32) -> String {
    format!(
        "references: {references}\n      data: {{source: compose, subjects: subjects, holdOutOneIn: {hold_out}, panel: 32, pairs: 60, \
         unitSize: 20}}\n      train: {{adapter: {{rank: 2}}, steps: 2, globalBatch: 1}}"
    )
}

fn notes(json: &Value) -> String {
    let notes = json["notes"].as_array().unwrap();
    notes.iter().map(|note| note.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

fn models(json: &Value, which: &str) -> Vec<String> {
    of_subjects(json, which).iter().map(|row| row["model"].as_str().unwrap().to_owned()).collect()
}

/// The scores of the measure `subject`.
fn of_subjects(json: &Value, which: &str) -> Vec<Value> {
    json[which].as_array().unwrap().iter().filter(|row| row["measure"] == "subject").cloned().collect()
}

#[test]
fn five_subjects_none_held_out_are_scored_as_what_they_are() {
    let made = Made::new(base().to_str().unwrap(), &compose(1, 0)).with_lora().with_library(5);
    let (json, page) = made.report();
    assert_eq!(models(&json, "scores"), ["base, one subject", "stage-1, one subject"]);
    assert_eq!(models(&json, "ceilings"), ["real, one subject", "reference, one subject"]);
    let measured = |measure: &str| {
        let rows = json["scores"].as_array().unwrap().iter();
        rows.filter(|row| row["model"] == "stage-1, one subject" && row["measure"] == measure).count()
    };
    for measure in ["subject", "prompt", "copy", "colour", "outline", "scene", "place", "count"] {
        assert_eq!(measured(measure), 1, "{measure}");
    }
    for row in of_subjects(&json, "scores").iter().chain(&of_subjects(&json, "ceilings")) {
        assert_eq!((&row["chance"], &row["candidates"]), (&json!(0.2), &json!([5, 5])), "{row}");
        assert_eq!((&row["subjects"], &row["draws"]), (&json!(5), &json!(10)), "{row}");
        assert_eq!(row["subjects_are"], "seen");
    }
    let said = notes(&json);
    assert!(said.contains("no subject was held out") && said.contains("shipped one compares"), "{said}");
    for says in [
        "no subject was held out",
        "<td>chance, one subject</td><td>20.0</td>",
        "that training has seen",
        "8m 12s",
        "2026-01-01 00:01 UTC",
    ] {
        assert!(page.contains(says), "no {says} in {page}");
    }
    assert!(made.has("grid.png") && made.has("dit_lora.safetensors"));
}

#[test]
fn held_out_subjects_are_used_where_there_are_enough() {
    let made = Made::new(base().to_str().unwrap(), &compose(1, 3)).with_lora().with_library(30);
    let (json, page) = made.report();
    for row in of_subjects(&json, "scores") {
        assert_eq!(row["subjects_are"], "unseen");
        let (subjects, candidates) =
            (row["subjects"].as_u64().unwrap(), row["candidates"][1].as_u64().unwrap());
        assert!(subjects > 2 && subjects < 20, "{row}");
        assert!(
            candidates <= 16 && (row["chance"].as_f64().unwrap() - 1.0 / candidates as f64).abs() < 1e-12,
            "{row}"
        );
    }
    assert!(page.contains("that training never saw") && !notes(&json).contains("held out,"), "{page}");
}

#[test]
fn three_references_are_drawn_and_scored_each() {
    let made = Made::new(base().to_str().unwrap(), &compose(3, 0)).with_lora().with_library(6);
    let (json, page) = made.report();
    let all = ["base, each of three subjects", "stage-1, each of three subjects"];
    assert_eq!(models(&json, "scores"), all);
    // The two others in the picture are no choice.
    assert_eq!(json["scores"][0]["candidates"], json!([4, 4]));
    for says in
        ["reference 1", "reference 2", "reference 3", "target", "Cases of 3 subjects that training has seen"]
    {
        assert!(page.contains(&format!("{says}<")) || page.contains(says), "no {says} in {page}");
    }
    assert!(!page.contains("reference 4"));
}

#[test]
fn imported_pairs_are_shown_and_not_scored() {
    let stage = "references: 2\n      data: {source: import, format: webdataset, path: shards, pairs: 60}\n      \
                 train: {adapter: {rank: 2}, steps: 2, globalBatch: 1}";
    let mut made = Made::new(base().to_str().unwrap(), stage).with_lora().with_pairs(2);
    let auto = made.job["resolvedSpecYaml"].as_str().unwrap().replace("precision: f32", "precision: auto");
    made.job["resolvedSpecYaml"] = json!(auto);
    made.job["stages"][0]["precision"] = json!("bf16");
    let (json, page) = made.report();
    assert_eq!(json["model"], "nano, bf16, 1 rank");
    assert_eq!((models(&json, "scores").len(), models(&json, "ceilings").len()), (0, 0));
    assert!(notes(&json).contains("no stage has a subject library"), "{}", notes(&json));
    for says in [
        "Pairs that training has seen",
        "Not scored: which subjects these pairs show is not known",
        "the subject on plain red, 0",
        "reference 2<",
        "<td>similarity_low</td><td>4</td>",
        "loss",
    ] {
        assert!(page.contains(says), "no {says} in {page}");
    }
    assert!(!page.contains("is it a copy"), "{page}");
    // Six rows, each with its prompt once: two leases of one unit are one unit.
    assert_eq!(page.matches("<div class=\"case\">").count(), 6);
    assert!(made.has("grid.png"));
}

#[test]
fn all_weights_of_a_stage_without_references_are_drawn_with() {
    let stage = compose(0, 0).replace("{rank: 2}", "none");
    let made = Made::new(base().to_str().unwrap(), &stage).with_library(4);
    fs::copy(base(), made.checkpoint().join("model.safetensors")).unwrap();
    let (json, page) = made.report();
    let scores = of_subjects(&json, "scores");
    let (base, stage) = (&scores[0], &scores[1]);
    // The same network, drawn with from the same noise.
    assert_eq!((&base["right"], &stage["model"]), (&stage["right"], &json!("stage-1, one subject")));
    assert!(made.has("model.safetensors") && page.contains("target<"));
}

#[test]
fn what_is_missing_is_said_and_the_rest_is_reported() {
    let mut made = Made::new("absent.safetensors", &compose(1, 0)).with_lora();
    let (json, page) = made.report();
    let said = notes(&json);
    for says in [
        "subject library cannot be used",
        "subjects: there is no such file or folder",
        "--library-root",
        "no pairs with 1 reference",
    ] {
        assert!(said.contains(says), "no {says} in {said}");
    }
    assert!(page.contains("<td>similarity_low</td><td>4</td>") && page.contains("gradient norm"), "{page}");
    assert!(!made.has("grid.png"));
    made = made.with_library(4);
    let said = notes(&made.report().0);
    assert!(said.contains("nothing is drawn with the base") && said.contains("absent.safetensors"), "{said}");
    // The targets and references are still there to see.
    assert!(made.has("grid.png"));
    made.job["stages"][0]["finalCheckpoint"] = json!("");
    let said = notes(&made.report().0);
    assert!(said.contains("stage-1 has no final checkpoint (it stood at step 2 of 2)"), "{said}");
}
