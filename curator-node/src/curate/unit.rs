//! One unit of curation as far as networks of this machine make it: candidates in, what the filters here left out. Runs on
//! the curation thread.

use crate::candidates::Rejected;
use crate::counts::Counts;
use crate::curate::drawn::{DrawnUnit, count};
use crate::curate::unit_error::UnitError;
use crate::filters::judge::clip::ClipJudge;
use crate::filters::judge::{JudgeError, open_local};
use crate::filters::similarity::SimilarityFilter;
use crate::paths::PathResolver;
use crate::pipeline::ModelContext;
use crate::sources::prompts::PromptSource;
use crate::sources::recompose::ParentPairs;
use crate::sources::{Source, SourceError};
use crescendo_core::spec::JobSpec;
use crescendo_dataset::pair::Pair;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pairs that go through the filters at once.
const FILTERED_AT_ONCE: usize = 32;

/// A stage's source and the filters that compute here, opened.
#[derive(Debug)]
pub struct StageCurator {
    source: Source,
    filter: Option<SimilarityFilter>,
    judge: Option<ClipJudge>,
    unit_size: u32,
    counts: Counts,
}

impl StageCurator {
    /// Opens what stage `index` of `job` names, on the CPU.
    pub fn open(job: &JobSpec, index: u32, paths: &PathResolver) -> Result<StageCurator, UnitError> {
        StageCurator::open_with(job, index, paths, PromptSource::default(), &ModelContext::default())
    }

    /// Opens what stage `index` of `job` names.
    pub fn open_with(
        job: &JobSpec,
        index: u32,
        paths: &PathResolver,
        prompts: PromptSource<'_>,
        models: &ModelContext,
    ) -> Result<StageCurator, UnitError> {
        let stage = job.stages.get(index as usize).ok_or(UnitError::NoStage { index })?;
        let mut filter = match &stage.data.filter.similarity {
            None => None,
            Some(spec) => {
                crate::filters::similarity::check_limits(spec)?;
                Some(SimilarityFilter::open(
                    spec,
                    &paths.resolve(&spec.encoder).map_err(SourceError::from)?,
                    models.device,
                )?)
            }
        };
        let judge = match &stage.data.filter.judge {
            None => None,
            Some(spec) => open_local(spec, paths, models.device)?,
        };
        let source = Source::open(job, stage, index, paths, prompts, models, &mut filter)?;
        let (unit_size, counts) = (stage.data.unit_size.max(1), models.counts.clone());
        Ok(StageCurator { source, filter, judge, unit_size, counts })
    }

    /// Draws unit `unit` and sends it through the filters of this machine, out of `taken`, the pairs of an earlier stage at
    /// its place. The same unit gives the same pairs. `abandoned` ends it early.
    pub fn draw(
        &mut self,
        unit: u64,
        taken: ParentPairs,
        abandoned: &AtomicBool,
    ) -> Result<DrawnUnit, UnitError> {
        let counts = self.counts.clone();
        counts.begin();
        let candidates = self.source.unit(unit, self.unit_size, taken, abandoned, &counts)?;
        counts.drawn_in_all(candidates.candidates.len());
        let mut drawn = DrawnUnit {
            candidates: candidates.candidates.len() as u64,
            exhausted: candidates.exhausted,
            cosines: candidates.cosines,
            ..DrawnUnit::default()
        };
        for turned_down in self.source.take_rejected().into_iter().chain(candidates.turned_down) {
            count(&mut drawn.scores, turned_down.pair.as_deref());
            drawn.sample.offer(turned_down);
        }
        let mut waiting: Vec<Pair> = Vec::new();
        let mut left = candidates.candidates.len();
        for candidate in candidates.candidates {
            left -= 1;
            match candidate {
                Ok(pair) => waiting.push(pair),
                Err(reason) => *drawn.rejected.entry(reason).or_default() += 1,
            }
            if waiting.len() == FILTERED_AT_ONCE || left == 0 {
                if abandoned.load(Ordering::Relaxed) {
                    return Err(UnitError::Abandoned);
                }
                for outcome in self.pass(std::mem::take(&mut waiting), &mut drawn)? {
                    match outcome {
                        Ok(pair) => drawn.passed.push(pair),
                        Err(turned_down) => drawn.reject(turned_down),
                    }
                }
            }
        }
        if abandoned.load(Ordering::Relaxed) {
            return Err(UnitError::Abandoned);
        }
        Ok(drawn)
    }

    /// Sends pairs through the filters, the cheap one first; what comes of each, in their order.
    fn pass(
        &self,
        pairs: Vec<Pair>,
        drawn: &mut DrawnUnit,
    ) -> Result<Vec<Result<Pair, Rejected>>, UnitError> {
        let outcomes: Vec<Result<Pair, Rejected>> = match &self.filter {
            None => pairs.into_iter().map(Ok).collect(),
            Some(filter) => {
                let of_pairs = pairs.len();
                let alike = filter.judge(pairs)?;
                self.counts.filtered(of_pairs);
                drawn.cosines.extend(alike.iter().flat_map(|judged| &judged.cosines));
                alike.into_iter().map(|judged| judged.outcome).collect()
            }
        };
        let Some(judge) = &self.judge else { return Ok(outcomes) };
        let mut passed = Vec::with_capacity(outcomes.len());
        let rejected: Vec<Option<Rejected>> =
            outcomes.into_iter().map(|outcome| outcome.map(|pair| passed.push(pair)).err()).collect();
        let judged = judge.judge(passed).map_err(JudgeError::from)?;
        self.counts.judged(judged.len());
        let mut judged = judged.into_iter();
        let outcomes = rejected.into_iter().filter_map(|rejected| match rejected {
            Some(rejected) => Some(Err(rejected)),
            None => judged.next().map(|judged| {
                drawn.judged.extend(judged.score);
                judged.outcome
            }),
        });
        Ok(outcomes.collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::curate::drawn::UnitResult;
    use crate::sources::compose::tests::write_library;
    use crescendo_core::reach::Reach;
    use crescendo_core::rejection::Rejection;
    use crescendo_dataset::shard::read_shard;
    use crescendo_model::dinov2::{DinoV2, DinoV2Config};
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::path::Path;

    impl StageCurator {
        /// A unit that no endpoint judges, from candidates to a shard.
        pub(crate) fn unit(&mut self, unit: u64, abandoned: &AtomicBool) -> Result<UnitResult, UnitError> {
            let drawn = self.draw(unit, ParentPairs::default(), abandoned)?;
            Ok(drawn.finish(&self.counts)?)
        }
    }

    /// A resolved spec with one composed stage, its library and its encoder below `root`.
    pub(crate) fn job(root: &Path, references: u32, similarity: Option<(f64, f64)>) -> JobSpec {
        write_library(&root.join("subjects"), 30);
        let encoder = DinoV2::fresh(DinoV2Config::nano(), 3).expect("fresh weights");
        let strings = encoder.file_strings(&BTreeMap::new());
        crescendo_model::weights::save(&root.join("encoder.safetensors"), encoder.weights(), &strings)
            .expect("save");
        let similarity =
            similarity.map(|(min, max)| json!({ "min": min, "max": max, "encoder": "encoder.safetensors" }));
        serde_json::from_value(json!({
            "name": "test", "tenant": "default", "priority": 0, "seed": 11,
            "model": { "preset": "nano", "weights": null, "precision": "f32" },
            "resources": { "gpus": 1, "minGpus": 1 },
            "checkpoints": { "every": 10, "keepLast": 1 },
            "stages": [{
                "name": "stage-1", "references": references, "positions": "diagonal", "initFrom": null,
                "data": {
                    "source": "compose", "subjects": "subjects", "photos": null, "layout": "single", "panel": 32,
                    "holdOutOneIn": 4, "pairs": 40, "minPairs": 8, "unitSize": 16, "filter": { "similarity": similarity },
                },
                "train": {
                    "adapter": { "kind": "lora", "rank": 4 }, "steps": 4, "globalBatch": 4, "microBatch": 2,
                    "learningRate": 1e-3, "warmupSteps": 1, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01,
                    "maxGradNorm": 1.0, "textDropout": 0.1, "guidance": 1.0, "timesteps": "uniform", "emaDecay": null,
                    "resolution": 32, "onStarvation": "wait",
                },
            }],
        }))
        .expect("a resolved spec")
    }

    /// A job with one stage that draws, its library and a base whose weights mean nothing below `root`.
    pub(crate) fn drawing_job(root: &Path) -> JobSpec {
        use crescendo_model::tch::{Device, Kind};
        use crescendo_model::{Flux, FluxConfig};
        let mut job = job(root, 1, None);
        let mut flux = Flux::init(&FluxConfig::nano(), 5, Kind::Float, Device::Cpu).expect("fresh weights");
        // Fresh weights draw noise alone, which does not depend on the prompt; that is enough here.
        crescendo_model::weights::save(&root.join("base.safetensors"), &flux.tensors(), &BTreeMap::new())
            .expect("save");
        job.model.weights = Some("base.safetensors".into());
        job.stages[0].data.source = serde_json::from_value(json!({
            "source": "generate", "subjects": "subjects", "holdOutOneIn": 4, "nameShare": 0.5, "companions": 0.0,
            "panel": 32, "panels": "side-by-side", "shapes": "square",
            "draw": { "steps": 1, "guidance": 4.0, "batch": 4 },
        }))
        .expect("a source");
        job
    }

    pub(crate) fn paths(root: &Path) -> PathResolver {
        PathResolver::new(root, "", Reach::Everything)
    }

    #[test]
    fn what_is_made_is_counted() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = job(folder.path(), 1, Some((-1.0, 1.0)));
        let means = ModelContext::default();
        let mut curator =
            StageCurator::open_with(&job, 0, &paths(folder.path()), PromptSource::default(), &means)
                .expect("open");
        for unit in 0..2 {
            curator.unit(unit, &AtomicBool::new(false)).expect("make a unit");
            let counted = means.counts.get();
            assert_eq!((counted.drawn, counted.filtered, counted.judged, counted.accepted), (16, 16, 0, 16));
        }
    }

    #[test]
    fn a_unit_made_twice_is_the_same_bytes() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = job(folder.path(), 1, Some((-1.0, 1.0)));
        let make = |unit| {
            let mut curator = StageCurator::open(&job, 0, &paths(folder.path())).expect("open");
            curator.unit(unit, &AtomicBool::new(false)).expect("make a unit")
        };
        let (first, again, other) = (make(3), make(3), make(4));
        assert_eq!(first.shard, again.shard);
        assert_ne!(first.shard.sha256, other.shard.sha256);
        assert_eq!((first.shard.pairs, first.cosines.len(), first.exhausted), (16, 16, false));
        assert_eq!(first.rejected_sample, None);
        let pairs = read_shard(first.shard.bytes.as_slice()).expect("read");
        assert!(pairs.iter().all(|p| p.references.len() == 1 && p.scores.contains_key("similarity")));
    }

    #[test]
    fn what_the_filter_rejects_is_counted_and_not_written() {
        let folder = tempfile::tempdir().expect("make a folder");
        let paths = paths(folder.path());
        let make = |limits| {
            let job = job(folder.path(), 1, Some(limits));
            let mut curator = StageCurator::open(&job, 0, &paths).expect("open");
            curator.unit(0, &AtomicBool::new(false)).expect("make a unit")
        };
        let mut cosines = make((-1.0, 1.0)).cosines;
        cosines.sort_by(f64::total_cmp);
        let (low, high) = (cosines[4], cosines[12]);
        let unit = make((low + 1e-9, high - 1e-9));
        assert_eq!(unit.rejected[&Rejection::SimilarityLow], 5);
        assert_eq!(unit.rejected[&Rejection::SimilarityHigh], 4);
        assert_eq!(unit.shard.pairs, 7);
        let (scale, counts) = unit.scores.scores().next().expect("one score");
        assert_eq!((scale.name, counts.iter().sum::<u64>()), ("similarity", 16));
        // Two of each reason are kept to be looked at.
        let sample = unit.rejected_sample.expect("some were rejected");
        let kept = read_shard(sample.bytes.as_slice()).expect("read");
        let reasons: Vec<&str> =
            kept.iter().filter_map(|pair| pair.provenance["rejected"].as_str()).collect();
        assert_eq!(reasons, ["similarity_high", "similarity_high", "similarity_low", "similarity_low"]);
    }

    #[test]
    fn an_abandoned_unit_has_no_result() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = job(folder.path(), 1, None);
        let mut curator = StageCurator::open(&job, 0, &paths(folder.path())).expect("open");
        assert!(matches!(curator.unit(0, &AtomicBool::new(true)), Err(UnitError::Abandoned)));
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = job(folder.path(), 1, Some((0.0, 1.0)));
        std::fs::write(folder.path().join("encoder.safetensors"), b"short").expect("spoil the encoder");
        let error = StageCurator::open(&job, 0, &paths(folder.path())).expect_err("it is spoilt").to_string();
        assert!(error.contains("encoder.safetensors"), "{error}");
        let error =
            StageCurator::open(&job, 7, &paths(folder.path())).expect_err("no such stage").to_string();
        assert!(error.contains("no stage 7"), "{error}");
    }
}
