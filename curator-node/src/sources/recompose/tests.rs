//! Targets composed here, and pairs of a log with a detector whose weights mean nothing.

use super::*;
use crate::curate::unit::StageCurator;
use crate::curate::unit::tests::{drawing_job, paths};
use crate::pipeline::{Trained, TrainedFile};
use crate::sources::prompts::PromptSource;
use crescendo_core::spec::{DrawSpec, RecomposeSpec};
use crescendo_model::tch::{Device, Kind};
use crescendo_model::{BlockSelection, FluxConfig, LoraAdapter};
use std::sync::Arc;

fn crop_spec() -> CropSpec {
    CropSpec {
        from: "stage-1".into(),
        subjects: Some("subjects".into()),
        photos: None,
        hold_out: Vec::new(),
        hold_out_one_in: 4,
        name_share: 0.0,
        panel: 32,
        detector: None,
        detector_min: 0.2,
        box_share: (0.02, 0.5),
        box_overlap: 0.3,
    }
}

/// A job of two stages, the second with this source.
fn job(folder: &Path, source: DataSource, references: u32) -> JobSpec {
    let mut job = drawing_job(folder);
    let mut second = job.stages[0].clone();
    second.name = "stage-2".into();
    second.references = references;
    second.data.source = source;
    job.stages.push(second);
    job
}

/// An adapter as an earlier stage might have saved it.
fn trained() -> Trained {
    // On a busy machine several threads would wait for each other longer than they compute.
    crescendo_model::tch::set_num_threads(1);
    let config = FluxConfig::nano();
    let mut adapter =
        LoraAdapter::init(&config, 4, &BlockSelection::all(&config), 1, Kind::Float, Device::Cpu)
            .expect("an adapter");
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join("dit_lora.safetensors");
    crescendo_model::weights::save(&path, &adapter.tensors(), &Default::default()).expect("save");
    Trained::Adapter(Arc::new(TrainedFile::new(path, folder)))
}

fn open(
    folder: &Path,
    source: DataSource,
    references: u32,
    models: &ModelContext,
) -> Result<Recomposer, SourceError> {
    let job = job(folder, source, references);
    Recomposer::open(&job, &job.stages[1], 1, None, &paths(folder), models)
}

fn recompose() -> DataSource {
    DataSource::Recompose(RecomposeSpec {
        crop: crop_spec(),
        draw: DrawSpec { steps: 2, guidance: 4.0, true_cfg: 1.0, batch: 8 },
    })
}

fn unit(recomposer: &Recomposer, unit: u64) -> Vec<Result<Pair, Rejection>> {
    recomposer
        .unit(unit, 12, ParentPairs::default(), &AtomicBool::new(false))
        .expect("make a unit")
        .candidates
}

#[test]
fn a_cut_shows_the_second_subject_and_a_redrawn_one_is_another_picture() {
    let folder = tempfile::tempdir().expect("make a folder");
    let cropped =
        open(folder.path(), DataSource::Crop(crop_spec()), 2, &ModelContext::default()).expect("open");
    let models = ModelContext { trained: Some(trained()), ..ModelContext::default() };
    let redrawn = open(folder.path(), recompose(), 2, &models).expect("open");
    let (crops, drawn) = (unit(&cropped, 3), unit(&redrawn, 3));
    assert!(
        crops.iter().flatten().count() >= 4,
        "{:?}",
        crops.iter().map(|one| one.as_ref().err()).collect::<Vec<_>>()
    );
    for (crop, drawn) in crops.iter().zip(&drawn) {
        let (Ok(crop), Ok(drawn)) = (crop, drawn) else {
            assert_eq!(crop.as_ref().err(), drawn.as_ref().err());
            continue;
        };
        assert_eq!((&crop.target, &crop.references[0]), (&drawn.target, &drawn.references[0]));
        assert_eq!((crop.references.len(), crop.reference_words.len()), (2, 2));
        assert_ne!(crop.references[1], drawn.references[1]);
        assert_eq!(drawn.references[1].dimensions(), (32, 32));
        let prompt = drawn.provenance["redrawn_as"][0].as_str().unwrap_or_default();
        assert!(prompt.starts_with("the subject on "), "{prompt:?}");
    }
    let targets = |made: Vec<Result<Pair, Rejection>>| {
        made.into_iter().flatten().map(|p| p.references).collect::<Vec<_>>()
    };
    assert_eq!(targets(unit(&redrawn, 3)), targets(drawn));
}

#[test]
fn a_third_subject_is_cut_out_as_well() {
    let folder = tempfile::tempdir().expect("make a folder");
    let spec = CropSpec { box_overlap: 1.0, ..crop_spec() };
    let cropped = open(folder.path(), DataSource::Crop(spec), 3, &ModelContext::default()).expect("open");
    let made = unit(&cropped, 0);
    assert!(made.iter().flatten().count() >= 1);
    assert!(made.iter().flatten().all(|pair| pair.references.len() == 3 && pair.reference_words.len() == 3));
}

/// What the filter turns down is there to be seen, and counts in the distribution of what it measured.
#[test]
fn redrawn_references_that_are_turned_down_are_kept_with_their_similarity() {
    let folder = tempfile::tempdir().expect("make a folder");
    let root = folder.path();
    let mut job = job(root, recompose(), 2);
    let filter = json!({ "similarity": { "min": 0.999_999, "max": 1.0, "encoder": "encoder.safetensors" } });
    job.stages[1].data.filter = serde_json::from_value(filter).expect("a filter");
    let models = ModelContext { trained: Some(trained()), ..ModelContext::default() };
    let mut curator =
        StageCurator::open_with(&job, 1, &paths(root), PromptSource::default(), &models).expect("open");
    let made = curator.unit(3, &AtomicBool::new(false)).expect("make a unit");
    let low = made.rejected.get(&Rejection::SimilarityLow).copied().unwrap_or_default();
    assert!(low >= 3, "{:?}", made.rejected);
    let sample = made.rejected_sample.expect("pictures of rejected candidates");
    let kept = crescendo_dataset::shard::read_shard(sample.bytes.as_slice()).expect("read the sample");
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|pair| pair.references.len() == 2 && pair.scores["similarity"] < 1.0));
    let (scale, counts) = made.scores.scores().next().expect("a distribution");
    assert_eq!((scale.name, counts.iter().sum::<u64>()), ("similarity", low + made.shard.pairs));
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("make a folder");
    let error =
        open(folder.path(), recompose(), 2, &ModelContext::default()).expect_err("nothing is trained");
    assert!(error.to_string().contains("stage-1"), "{error}");
    let bare = CropSpec { subjects: None, ..crop_spec() };
    let error = open(folder.path(), DataSource::Crop(bare.clone()), 2, &ModelContext::default());
    assert!(error.expect_err("no detector").to_string().contains("detector"));
    let absent = CropSpec { detector: Some("owl.safetensors".into()), ..bare };
    let error = open(folder.path(), DataSource::Crop(absent), 2, &ModelContext::default());
    assert!(error.expect_err("no such file").to_string().contains("owl.safetensors"));
}
