//! What a rank begins with: base weights, trained weights and optimizer state, from files that are verified already.

use std::path::{Path, PathBuf};

use crescendo_core::marks::Epochs;
use crescendo_core::reach::SpecPath;
use crescendo_dataset::checkpoint::{
    ADAPTER_FILE, EMA_FILE, HISTORY_FILE, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE,
};
use crescendo_model::fused::Kernels;
use crescendo_model::training::{AdamW, Ema, TrainStep};
use crescendo_model::weights::TensorFile;
use crescendo_model::{BlockSelection, Flux, LoraAdapter, ModelError};
use crescendo_node::objects::cache::CacheError;
use crescendo_node::objects::download::DownloadError;
use crescendo_node::paths::{PathError, PathResolver};
use tch::{Device, Kind};

use super::RankError;
use super::data::SampleOrder;
use super::fetch::{FetchError, Fetcher, LocalBase, LocalCheckpoint};
use super::history::History;
use super::plan::RankPlan;
use super::positions::ReplayPasses;
use super::train_state::TrainState;

/// Local files to begin with.
#[derive(Debug)]
pub struct Sources {
    base: Option<PathBuf>,
    /// The stage's own newest checkpoint.
    resume: Option<LocalCheckpoint>,
    /// Final checkpoint of the stage that this one starts from.
    init: Option<LocalCheckpoint>,
    /// Holds `base` if that is from the object store.
    _brought: Option<LocalBase>,
}

/// What trains, where it stands.
#[derive(Debug)]
pub struct Restored {
    pub train_step: TrainStep,
    pub optimizer: AdamW,
    pub ema: Option<Ema>,
    pub history: History,
    /// Steps done.
    pub step: u64,
}

/// Why a rank cannot begin.
#[derive(Debug)]
pub enum RestoreError {
    /// The checkpoint at `path` must be marked, and the one before used.
    Damaged {
        path: String,
        reason: String,
    },
    Rank(RankError),
}

impl From<FetchError> for RestoreError {
    fn from(error: FetchError) -> Self {
        let reason = chain(&error);
        match error {
            FetchError::Damaged { path, damage } => Self::Damaged { path, reason: damage.to_string() },
            FetchError::Cache(CacheError::Download(DownloadError::Missing { .. }))
            | FetchError::Index { .. } => Self::Rank(RankError::Permanent(reason)),
            FetchError::Cache(
                CacheError::Download(
                    DownloadError::Store { .. } | DownloadError::Late { .. } | DownloadError::Local { .. },
                )
                | CacheError::Different { .. }
                | CacheError::Full { .. }
                | CacheError::Locked { .. }
                | CacheError::Local { .. },
            )
            | FetchError::Local { .. } => Self::Rank(RankError::Retryable(reason)),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn permanent(error: impl std::error::Error) -> RestoreError {
    RestoreError::Rank(RankError::Permanent(chain(&error)))
}

/// Brings all files to this machine. Paths of the spec are relative to `library_root`.
pub async fn gather(
    plan: &RankPlan,
    fetcher: &Fetcher<'_>,
    library_root: &Path,
) -> Result<Sources, RestoreError> {
    let fetch = async |checkpoint: &Option<_>| match checkpoint {
        Some(checkpoint) => fetcher.checkpoint(checkpoint).await.map(Some),
        None => Ok(None),
    };
    let resume = fetch(&plan.resume_from).await?;
    // Weights of the stage before are in the stage's own checkpoint too, unless they are the frozen base.
    let init = fetch(&plan.init_from).await?;
    let (base, brought) = match plan.spec.model.weights.as_deref() {
        None => (None, None),
        Some(path) => match SpecPath::of(path) {
            SpecPath::Library(_) | SpecPath::Absolute(_) => {
                (Some(local_base(plan, path, library_root).await?), None)
            }
            SpecPath::Store(key) => {
                plan.reach.check_path(path).map_err(|reason| not_allowed(&reason))?;
                if plan.object_store_url.starts_with("file://") {
                    // A folder may hold links, which a bucket cannot.
                    local_base(plan, path, library_root).await?;
                }
                let brought = fetcher.base(key).await?;
                (Some(brought.path.clone()), Some(brought))
            }
        },
    };
    Ok(Sources { base, resume, init, _brought: brought })
}

/// Base weights on this machine: a file that the job may read.
async fn local_base(plan: &RankPlan, path: &str, library_root: &Path) -> Result<PathBuf, RestoreError> {
    let paths = PathResolver::new(library_root, &plan.object_store_url, plan.reach.clone());
    let named = path.to_owned();
    let found = tokio::task::spawn_blocking(move || paths.resolve(&named)).await;
    let found = found.map_err(|error| RestoreError::Rank(RankError::Retryable(chain(&error))))?;
    found.map_err(|error| match error {
        PathError::Unreadable { .. } => RestoreError::Rank(RankError::Retryable(error.to_string())),
        PathError::NotHere { .. } | PathError::OutOfReach { .. } | PathError::LinkOut { .. } => {
            not_allowed(&error.to_string())
        }
    })
}

fn not_allowed(reason: &str) -> RestoreError {
    RestoreError::Rank(RankError::Permanent(format!("spec.model.weights: {reason}")))
}

/// The order of the pairs that the stage's newest checkpoint has: its replay passes, and what is left out of its epochs.
pub fn order(plan: &RankPlan, sources: &Sources) -> Result<SampleOrder, RestoreError> {
    let begins = SampleOrder { first_step: plan.first_step(), ..SampleOrder::default() };
    let Some(resume) = &sources.resume else { return Ok(begins) };
    let state = read_state(plan, resume)?;
    let replay_passes =
        ReplayPasses::checked(state.replay_passes).map_err(|error| resume.damaged(STATE_FILE, error))?;
    let epochs = Epochs::checked(state.left_out).map_err(|error| resume.damaged(STATE_FILE, error))?;
    Ok(SampleOrder { replay_passes, epochs, ..begins })
}

/// Builds what trains. Belongs on the training thread.
pub fn build(plan: &RankPlan, sources: &Sources) -> Result<Restored, RestoreError> {
    let mut train_step = match plan.adapter_rank() {
        Some(rank) => adapter_train_step(plan, sources, rank)?,
        None => full_learner(plan, sources)?,
    };
    let mut optimizer = AdamW::new(plan.optimizer(), train_step.params()).map_err(permanent)?;
    optimizer.set_kernels(plan.kernels);
    let mut ema = match plan.stage.train.ema_decay {
        Some(decay) => Some(Ema::new(decay, train_step.params()).map_err(permanent)?),
        None => None,
    };
    let (mut history, mut step) = (History::default(), 0);
    if let Some(resume) = &sources.resume {
        let state = read_state(plan, resume)?;
        let moments = open(resume, OPTIMIZER_FILE)?;
        optimizer
            .import(train_step.params(), &moments, state.optimizer_steps, OPTIMIZER_FILE)
            .map_err(|error| resume.damaged(OPTIMIZER_FILE, error))?;
        if let Some(ema) = &mut ema {
            ema.import(train_step.params(), &open(resume, EMA_FILE)?, EMA_FILE)
                .map_err(|error| resume.damaged(EMA_FILE, error))?;
        }
        history = History::parse(&read(resume, HISTORY_FILE)?, state.step)
            .map_err(|error| resume.damaged(HISTORY_FILE, error))?;
        step = state.step;
    } else if plan.takes_optimizer() {
        take_optimizer(plan, sources, &train_step, &mut optimizer, ema.as_mut())?;
    }
    if plan.device != Device::Cpu {
        // All that stays on the device is there by now.
        let memory = crescendo_device::cuda::memory().map_err(|error| {
            RestoreError::Rank(RankError::Permanent(format!("memory of the GPU: {error}")))
        })?;
        train_step.set_recompute(plan.recompute(memory.free_bytes));
    }
    Ok(Restored { train_step, optimizer, ema, history, step })
}

/// Goes on with the optimizer of the checkpoint that the stage starts from, and with its moving average if it has one. What it does
/// not have, or has for other parameters, is no damage: the spec asks for what is not there.
fn take_optimizer(
    plan: &RankPlan,
    sources: &Sources,
    train_step: &TrainStep,
    optimizer: &mut AdamW,
    ema: Option<&mut Ema>,
) -> Result<(), RestoreError> {
    let field = format!("spec.stages[{}].initFrom.optimizer", plan.stage_index);
    let refused = |reason: String| RestoreError::Rank(RankError::Permanent(format!("{field}: {reason}")));
    let Some(init) = &sources.init else {
        return Err(refused("there is no checkpoint to take an optimizer from".to_owned()));
    };
    if let Some(absent) = [STATE_FILE, OPTIMIZER_FILE].into_iter().find(|name| init.file(name).is_none()) {
        return Err(refused(format!("checkpoint {} has no {absent}", init.path)));
    }
    let other = |name: &str, error: ModelError| {
        let reason = chain(&error);
        refused(format!("{name} of checkpoint {} does not fit what this stage trains: {reason}", init.path))
    };
    let state = parse_state(init)?;
    let moments = open(init, OPTIMIZER_FILE)?;
    optimizer
        .import(train_step.params(), &moments, state.optimizer_steps, OPTIMIZER_FILE)
        .map_err(|error| other(OPTIMIZER_FILE, error))?;
    if let Some(ema) = ema
        && init.file(EMA_FILE).is_some()
    {
        ema.import(train_step.params(), &open(init, EMA_FILE)?, EMA_FILE)
            .map_err(|error| other(EMA_FILE, error))?;
    }
    tracing::info!(
        checkpoint = init.path,
        optimizer_steps = state.optimizer_steps,
        "goes on with the optimizer of what the stage starts from"
    );
    Ok(())
}

fn adapter_train_step(plan: &RankPlan, sources: &Sources, rank: i64) -> Result<TrainStep, RestoreError> {
    let config = plan.config();
    // A stage after one that trained all weights has that one's as its base.
    let trained_base = sources.init.as_ref().and_then(|init| init.file(MODEL_FILE));
    let Some(base) = trained_base.or_else(|| sources.base.clone()) else {
        return Err(RestoreError::Rank(RankError::Permanent(
            "spec.model.weights: needed to train an adapter".into(),
        )));
    };
    let flux = Flux::load_with(&config, &base, &plan.base_options()).map_err(permanent)?;
    let trained =
        sources.resume.as_ref().or(sources.init.as_ref().filter(|init| init.file(ADAPTER_FILE).is_some()));
    let adapter = match trained {
        Some(checkpoint) => {
            let path = required(checkpoint, ADAPTER_FILE)?;
            LoraAdapter::load(&config, &path, Kind::Float, plan.device)
                .map_err(|error| checkpoint.damaged(ADAPTER_FILE, error))?
        }
        None => LoraAdapter::init(
            &config,
            rank,
            &BlockSelection::all(&config),
            plan.spec.seed,
            Kind::Float,
            plan.device,
        )
        .map_err(permanent)?,
    };
    if adapter.rank() != rank {
        return Err(RestoreError::Rank(RankError::Permanent(format!(
            "spec.stages[{}].train.adapter.rank: {rank}, but the weights to start from have rank {}",
            plan.stage_index,
            adapter.rank()
        ))));
    }
    if plan.kernels == Kernels::Fused
        && let Some(reason) = crescendo_model::fused::unavailable(plan.device)
    {
        tracing::warn!(
            reason,
            "blocks run by libtorch's operations, which takes longer: their kernels are not to be had"
        );
    }
    TrainStep::for_adapter(flux, adapter, plan.options()).map_err(permanent)
}

fn full_learner(plan: &RankPlan, sources: &Sources) -> Result<TrainStep, RestoreError> {
    let config = plan.config();
    // Masters and their gradients are float32 whatever the activations are.
    let mut flux = match sources.resume.as_ref().or(sources.init.as_ref()) {
        Some(checkpoint) => {
            let path = required(checkpoint, MODEL_FILE)?;
            Flux::load(&config, &path, Kind::Float, plan.device)
                .map_err(|error| checkpoint.damaged(MODEL_FILE, error))?
        }
        None => match &sources.base {
            Some(path) => Flux::load(&config, path, Kind::Float, plan.device).map_err(permanent)?,
            // Drawn on the CPU: the same weights whatever the device.
            None => {
                let drawn =
                    Flux::init(&config, plan.spec.seed, Kind::Float, Device::Cpu).map_err(permanent)?;
                moved(drawn, plan)?
            }
        },
    };
    flux.set_compute_kind(plan.base_kind());
    TrainStep::for_all_weights(flux, plan.options()).map_err(permanent)
}

fn moved(mut flux: Flux, plan: &RankPlan) -> Result<Flux, RestoreError> {
    if plan.device == Device::Cpu {
        return Ok(flux);
    }
    let tensors = flux.tensors();
    Flux::from_tensors(&plan.config(), tensors, "fresh weights", Kind::Float, plan.device).map_err(permanent)
}

fn required(checkpoint: &LocalCheckpoint, name: &str) -> Result<PathBuf, FetchError> {
    checkpoint.file(name).ok_or_else(|| checkpoint.damaged(name, "not among the registered files"))
}

fn read(checkpoint: &LocalCheckpoint, name: &str) -> Result<Vec<u8>, FetchError> {
    let path = required(checkpoint, name)?;
    std::fs::read(&path).map_err(|source| FetchError::Local { path, source })
}

fn open(checkpoint: &LocalCheckpoint, name: &str) -> Result<crescendo_model::weights::TensorMap, FetchError> {
    let path = required(checkpoint, name)?;
    TensorFile::open(&path).and_then(|file| file.all()).map_err(|error| checkpoint.damaged(name, error))
}

fn parse_state(checkpoint: &LocalCheckpoint) -> Result<TrainState, FetchError> {
    serde_json::from_slice(&read(checkpoint, STATE_FILE)?)
        .map_err(|error| checkpoint.damaged(STATE_FILE, error))
}

fn read_state(plan: &RankPlan, checkpoint: &LocalCheckpoint) -> Result<TrainState, FetchError> {
    let state = parse_state(checkpoint)?;
    let expected = (plan.stage.name.as_str(), plan.spec.seed, checkpoint.step);
    let found = (state.stage.as_str(), state.seed, state.step);
    if found != expected {
        return Err(checkpoint
            .damaged(STATE_FILE, format!("stage, seed and step are {found:?}, the job's are {expected:?}")));
    }
    Ok(state)
}
