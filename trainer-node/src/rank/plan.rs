//! What a rank has to do, checked: the assignment and the stage of the spec that it is about.

use crescendo_core::marks::MarkList;
use crescendo_core::reach::Reach;
use crescendo_core::spec::{AdapterSpec, JobSpec, ModelPreset, StageSpec, TimestepSampling};
use crescendo_core::trace::TraceParent;
use crescendo_model::config::{FluxConfig, Preset};
use crescendo_model::flux::LoadOptions;
use crescendo_model::fused::Kernels;
use crescendo_model::of_spec::{base_options, compute_kind};
use crescendo_model::randomness::TimeDistribution;
use crescendo_model::training::{AdamWConfig, BlockPass, Recompute, TrainOptions};
use crescendo_proto::convert;
use crescendo_proto::v1::{AttemptRef, Checkpoint, PairMarks, RankAssignment, RankPlacement};
use tch::{Device, Kind};

use super::RankError;
use super::positions::GangShape;

/// Tenths of a device's free memory that activations may have: kernels, the collective's buffers and the allocator's rounding
/// need the rest.
const TENTHS_FOR_ACTIVATIONS: u64 = 7;

/// See the module.
#[derive(Clone, Debug)]
pub struct RankPlan {
    pub attempt: AttemptRef,
    pub stage_index: u32,
    pub spec: JobSpec,
    pub stage: StageSpec,
    pub gang: GangShape,
    /// The first rank on another node than rank 0, or on the same if there is no other: what rank 0 cannot save any more, it does.
    pub deputy: Option<u32>,
    pub device: Device,
    pub kernels: Kernels,
    pub rendezvous_address: String,
    pub resume_from: Option<Checkpoint>,
    pub init_from: Option<Checkpoint>,
    pub curator_addresses: Vec<String>,
    /// Of the log that the stage reads.
    pub marks: MarkList,
    pub object_store_url: String,
    /// What the spec may name.
    pub reach: Reach,
    /// What the job was submitted from.
    pub trace: Option<TraceParent>,
    /// The spec as it came; kept with each checkpoint.
    pub resolved_spec_json: Vec<u8>,
}

/// The marks of a log as they were told.
pub fn mark_list(told: Option<PairMarks>) -> MarkList {
    let PairMarks { indices, bad } = told.unwrap_or_default();
    MarkList(indices.into_iter().zip(bad).collect())
}

impl RankPlan {
    /// Checks an assignment. What is wrong with it will be wrong at every try.
    pub fn new(assignment: RankAssignment, cuda: bool, kernels: Kernels) -> Result<Self, RankError> {
        let missing = |what: &str| RankError::Permanent(format!("assignment has no {what}"));
        let start = assignment.start.ok_or_else(|| missing("start"))?;
        let attempt = start.attempt.ok_or_else(|| missing("attempt"))?;
        let spec: JobSpec = serde_json::from_slice(&start.resolved_spec_json)
            .map_err(|error| RankError::Permanent(format!("resolved spec: {error}")))?;
        let stage = usize::try_from(start.stage_index)
            .ok()
            .and_then(|index| spec.stages.get(index))
            .filter(|stage| stage.name == attempt.stage)
            .cloned()
            .ok_or_else(|| {
                RankError::Permanent(format!(
                    "resolved spec: stage {} is not {}",
                    start.stage_index, attempt.stage
                ))
            })?;
        let reach = convert::reach(start.reach).map_err(RankError::permanent)?;
        let ranks = u32::try_from(start.ranks.len()).unwrap_or(0);
        let gang =
            GangShape::new(assignment.rank, ranks, stage.train.global_batch).map_err(RankError::permanent)?;
        let device = if cuda { Device::Cuda(assignment.device_index as usize) } else { Device::Cpu };
        Ok(Self {
            attempt,
            stage_index: start.stage_index,
            gang,
            deputy: deputy(&start.ranks),
            device,
            kernels,
            rendezvous_address: start.rendezvous_address,
            resume_from: start.resume_from,
            init_from: start.init_from,
            curator_addresses: start.curator_addresses,
            marks: mark_list(start.pair_marks),
            object_store_url: start.object_store_url,
            reach,
            trace: start.trace_parent.parse().ok(),
            resolved_spec_json: start.resolved_spec_json,
            stage,
            spec,
        })
    }

    /// Whether this rank may save what the gang has trained.
    pub fn may_save(&self) -> bool {
        self.gang.rank == 0 || self.deputy == Some(self.gang.rank)
    }

    pub fn config(&self) -> FluxConfig {
        FluxConfig::from(&self.spec.model)
    }

    /// Dtype of the frozen base, or of the activations when everything trains.
    pub fn base_kind(&self) -> Kind {
        compute_kind(self.spec.model.precision, self.device)
    }

    /// How the frozen base is kept.
    pub fn base_options(&self) -> LoadOptions {
        base_options(self.spec.model.precision, self.device)
    }

    /// Rank of the adapter; none if all weights train.
    pub fn adapter_rank(&self) -> Option<i64> {
        match self.stage.train.adapter {
            AdapterSpec::Lora { rank } => Some(i64::from(rank)),
            AdapterSpec::None => None,
        }
    }

    pub fn options(&self) -> TrainOptions {
        TrainOptions {
            positions: (&self.stage).into(),
            guidance: self.stage.train.guidance,
            time_kind: Preset::from(self.spec.model.preset).time_kind(self.base_kind()),
            recompute: self.recompute(0),
            // Published training keeps the adapter in float32 and computes it in the base's dtype.
            adapter_compute: (self.spec.model.preset != ModelPreset::Nano).then(|| self.base_kind()),
            block_pass: BlockPass::Explicit(self.kernels),
        }
    }

    /// Which activations are computed again when `free_bytes` of the device are left for a step: a full-size network's do
    /// not all fit beside it.
    pub fn recompute(&self, free_bytes: u64) -> Recompute {
        match self.spec.model.preset {
            ModelPreset::Nano => Recompute::None,
            _ => Recompute::Budget { bytes: free_bytes / 10 * TENTHS_FOR_ACTIVATIONS },
        }
    }

    pub fn optimizer(&self) -> AdamWConfig {
        let train = &self.stage.train;
        AdamWConfig {
            beta1: train.betas.0,
            beta2: train.betas.1,
            eps: train.eps,
            weight_decay: train.weight_decay,
        }
    }

    /// How training times are drawn. The nano preset has a token every 4 × 4 pixels, and its own sampler counts those;
    /// the others use the published rule.
    pub fn times(&self) -> Result<TimeDistribution, RankError> {
        let resolution = i64::from(self.stage.train.resolution);
        match (self.stage.train.timesteps, self.spec.model.preset) {
            (TimestepSampling::LogitNormal, _) => Ok(TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 }),
            (TimestepSampling::Uniform, ModelPreset::Nano) => {
                TimeDistribution::for_tokens((resolution / 4).pow(2)).map_err(RankError::permanent)
            }
            (TimestepSampling::Uniform, ModelPreset::FluxDev | ModelPreset::FluxSchnell) => {
                TimeDistribution::published(resolution).map_err(RankError::permanent)
            }
        }
    }

    /// Whether the stage goes on with the optimizer of the checkpoint that it starts from.
    pub fn takes_optimizer(&self) -> bool {
        self.stage.init_from.as_ref().is_some_and(|start| start.optimizer)
    }

    /// Step (from 0) to begin with.
    pub fn first_step(&self) -> u64 {
        self.resume_from.as_ref().map_or(0, |checkpoint| checkpoint.step)
    }
}

fn deputy(ranks: &[RankPlacement]) -> Option<u32> {
    let first = ranks.iter().find(|rank| rank.rank == 0)?;
    let others = || ranks.iter().filter(|rank| rank.rank != first.rank);
    let elsewhere = others().filter(|rank| rank.node_id != first.node_id).map(|rank| rank.rank).min();
    elsewhere.or_else(|| others().map(|rank| rank.rank).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deputy_is_on_another_node_than_rank_0_if_there_is_one() {
        let placed = |rank, node: &str| RankPlacement { rank, node_id: node.into(), device_index: 0 };
        let gang = [placed(3, "c"), placed(2, "b"), placed(1, "a"), placed(0, "a")];
        assert_eq!(deputy(&gang), Some(2));
        assert_eq!(deputy(&gang[2..]), Some(1));
        assert_eq!(deputy(&gang[3..]), None);
    }
}
