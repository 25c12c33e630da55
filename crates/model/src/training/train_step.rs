//! The loss and its gradients, one block at a time.

use std::error::Error;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::backward::{gradients, leaf};
use super::explicit::{self, Blocks, Context, Saved, Span};
use super::flat_params::FlatParams;
use super::recompute::{ActivationShape, Recompute, plan_kept_blocks};
use crate::error::{ModelError, Result};
use crate::flux::{Flux, FluxInputs, RopeCache, RopeTable, StepTokens};
use crate::fused::{Fused, Kernels};
use crate::layers::to_device;
use crate::lora::LoraAdapter;
use crate::packing;
use crate::unope::{Grid, Layout, Offsets};

/// Settings of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    pub positions: Offsets,
    /// Guidance value for guidance-distilled networks; 1 in published training.
    pub guidance: f64,
    /// Dtype of time and guidance (see [`FluxInputs::timesteps`]); must be what sampling will use.
    pub time_kind: Kind,
    /// Which blocks keep only their inputs and are computed again in the backward pass: memory of one block
    /// instead of all, for a third more time where every block is.
    pub recompute: Recompute,
    /// Dtype of an adapter's products; that of its weights (float32) if none. Published training: bfloat16.
    pub adapter_compute: Option<Kind>,
    /// How blocks are run where an adapter trains; where all weights do, it is autograd.
    pub block_pass: BlockPass,
}

/// How a block's gradients come about. They are the same but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPass {
    /// By autograd, from a graph cut at the block's inputs.
    Autograd,
    /// By hand, with these kernels for what is no matrix product.
    Explicit(Kernels),
}

impl Default for BlockPass {
    fn default() -> Self {
        Self::Explicit(Kernels::default())
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            positions: Offsets::PUBLISHED,
            guidance: 1.0,
            time_kind: Kind::Float,
            recompute: Recompute::None,
            adapter_compute: None,
            block_pass: BlockPass::default(),
        }
    }
}

/// Samples of one shape that go through the network together.
#[derive(Debug)]
pub struct MicroBatch {
    /// Target latents `[batch, channels, height, width]`.
    pub latents: Tensor,
    /// Reference latents, each `[batch, channels, its height, its width]`.
    pub refs: Vec<Tensor>,
    /// Text tokens `[batch, text tokens, context_in_dim]`.
    pub txt: Tensor,
    /// Pooled text `[batch, vec_in_dim]`.
    pub vec: Tensor,
    /// Noise in the packed layout `[batch, target tokens, channels · 4]`.
    pub noise: Tensor,
    /// Times in [0, 1], float32 `[batch]`.
    pub times: Tensor,
    /// Weight of this micro-batch's mean loss in the step's loss. Published: 1 / accumulation steps. To
    /// weight every sample alike over groups of several shapes: samples here / samples in the step.
    pub weight: f64,
}

/// The noised target of a micro-batch, float32.
#[derive(Debug)]
pub struct NoisedTarget {
    /// x_t = (1 − t) · data + t · noise, `[batch, tokens, channels]`.
    pub x_t: Tensor,
    /// noise − data, `[batch, tokens, channels]`.
    pub velocity: Tensor,
}

impl MicroBatch {
    /// Mixes data and noise at the batch's times, on `device`.
    pub fn noised(&self, device: tch::Device) -> Result<NoisedTarget> {
        let float =
            |tensor: &Tensor| -> Result<Tensor> { Ok(to_device(tensor, device)?.f_to_kind(Kind::Float)?) };
        let data = float(&packing::pack(&self.latents)?)?;
        let noise = float(&self.noise)?;
        if noise.size() != data.size() {
            return Err(ModelError::input(
                "noise",
                format!("shape {:?} is not that of the packed latents, {:?}", noise.size(), data.size()),
            ));
        }
        let batch = data.size()[0];
        if self.times.size() != [batch] {
            return Err(ModelError::input(
                "times",
                format!("shape {:?} is not [{batch}]", self.times.size()),
            ));
        }
        let t = float(&self.times)?.f_reshape([batch, 1, 1])?;
        let x_t = t.f_neg()?.f_add_scalar(1.0)?.f_mul(&data)?.f_add(&t.f_mul(&noise)?)?;
        Ok(NoisedTarget { x_t, velocity: noise.f_sub(&data)? })
    }

    pub fn samples(&self) -> i64 {
        self.latents.size().first().copied().unwrap_or(0)
    }

    /// The same with every tensor on `device`.
    pub fn to_device(&self, device: tch::Device) -> Result<Self> {
        self.mapped(&|tensor| to_device(tensor, device))
    }

    /// The same in memory that GPU `device` reads by itself, so that bringing it there makes nobody wait.
    pub fn pinned(&self, device: tch::Device) -> Result<Self> {
        self.mapped(&|tensor| Ok(tensor.f_pin_memory(device)?))
    }

    fn mapped(&self, bring: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            latents: bring(&self.latents)?,
            refs: self.refs.iter().map(bring).collect::<Result<_>>()?,
            txt: bring(&self.txt)?,
            vec: bring(&self.vec)?,
            noise: bring(&self.noise)?,
            times: bring(&self.times)?,
            weight: self.weight,
        })
    }

    pub(crate) fn layout(&self, positions: Offsets) -> Result<Layout> {
        let text_tokens = match self.txt.size().as_slice() {
            [_, tokens, _] => *tokens,
            other => {
                return Err(ModelError::input(
                    "txt",
                    format!("shape {other:?} is not [batch, tokens, width]"),
                ));
            }
        };
        Ok(Layout {
            text_tokens,
            target: Grid::of_latent(&self.latents)?,
            references: self.refs.iter().map(Grid::of_latent).collect::<Result<_>>()?,
            offsets: positions,
        })
    }
}

/// What a micro-batch gave, detached; reading the numbers waits for the device.
#[derive(Debug)]
pub struct MicroOutcome {
    /// Mean of (prediction − velocity)² before weighting, 0-dimensional float32.
    pub loss: Tensor,
    /// The network's output, `[batch, tokens, channels]` float32.
    pub prediction: Tensor,
}

/// Called with a bucket's index and its flat gradients as soon as they are final on this rank; the
/// buckets come in reverse order, each once per step. The callee may change the gradients in place until
/// the step reads them.
pub type OnBucket<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<(), Box<dyn Error + Send + Sync>>;

/// A network with what trains in it.
#[derive(Debug)]
pub struct TrainStep {
    flux: Flux,
    adapter: Option<LoraAdapter>,
    params: FlatParams,
    options: TrainOptions,
    ropes: RopeCache,
    /// Bucket of each block: double blocks, then single blocks.
    block_buckets: Vec<Option<usize>>,
    times_passes: bool,
    passes: PassTimes,
}

/// Time in the passes of a step's micro-batches, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassTimes {
    /// Up to the loss.
    pub forward: Duration,
    pub backward: Duration,
}

/// A block's inputs, as leaves if autograd runs it, and what its backward pass needs besides.
struct Record {
    inputs: Vec<Tensor>,
    kept: Kept,
}

/// What a block keeps from its forward to its backward pass.
enum Kept {
    /// It is run again.
    Nothing,
    /// Its outputs with their graph.
    Graph(Vec<Tensor>),
    Saved(Saved),
}

/// A micro-batch on the device.
struct Prepared {
    noised: NoisedTarget,
    rope: RopeTable,
    refs: Vec<Tensor>,
    txt: Tensor,
    vec: Tensor,
    timesteps: Tensor,
    guidance: Tensor,
}

impl Prepared {
    fn inputs(&self) -> FluxInputs<'_> {
        FluxInputs {
            img: &self.noised.x_t,
            refs: &self.refs,
            txt: &self.txt,
            vec: &self.vec,
            timesteps: &self.timesteps,
            guidance: Some(&self.guidance),
            rope: &self.rope,
        }
    }
}

/// What the stem gave: image and text tokens, and the vector that modulates all blocks, activated.
struct Stem {
    img: Tensor,
    txt: Tensor,
    vec: Tensor,
}

/// What went through the blocks.
struct Flow {
    records: Vec<Record>,
    /// Output of the last block: text tokens, then those of the target, then of references; or the target's alone.
    joined: Tensor,
    /// Which of all tokens are the target's; those before are of the text.
    target: Span,
    image_tokens: i64,
}

impl Flow {
    fn has_target_alone(&self) -> bool {
        self.joined.size().get(1) == Some(&self.target.tokens)
    }
}

/// The head's input as a leaf, and what came of it.
struct Head {
    input: Tensor,
    weighted_loss: Tensor,
    outcome: MicroOutcome,
}

/// What all of a backward pass has in common.
struct Backward<'a, 'b> {
    vec_act: Tensor,
    rope: RopeTable,
    target: Span,
    /// The sum so far of the modulation vector's gradients; none if nothing trains that makes it.
    vec_grad: Option<Tensor>,
    accumulate: bool,
    on_bucket: &'a mut Option<OnBucket<'b>>,
}

impl TrainStep {
    /// Trains `adapter` (in float32) over a frozen `flux` of any float dtype.
    pub fn for_adapter(mut flux: Flux, mut adapter: LoraAdapter, options: TrainOptions) -> Result<Self> {
        adapter.check_blocks(flux.double_blocks.len(), flux.single_blocks.len())?;
        let mut params = FlatParams::adopt(flux.device(), &mut |visit| adapter.visit_mut(visit))?;
        if let Some(compute) = options.adapter_compute {
            adapter.set_compute_kind(compute);
            if compute != Kind::Float {
                adapter.set_shadow(&params.add_shadow(compute)?)?;
            }
        }
        let of_one_dtype = options.adapter_compute.unwrap_or(Kind::Float) == flux.compute_kind();
        if matches!(options.block_pass, BlockPass::Explicit(_)) && of_one_dtype && !flux.weights_are_copied()
        {
            params.set_copies(explicit::join(&mut flux, &mut adapter)?);
        }
        Self::new(flux, Some(adapter), params, options)
    }

    /// Trains every weight of `flux` (in float32); activations flow in its compute dtype.
    pub fn for_all_weights(mut flux: Flux, options: TrainOptions) -> Result<Self> {
        if flux.is_frozen() {
            return Err(ModelError::input("base", "is stored for use alone: in 8-bit floats or on the host"));
        }
        let device = flux.device();
        let params = FlatParams::adopt(device, &mut |visit| flux.visit_mut(visit))?;
        Self::new(flux, None, params, options)
    }

    fn new(
        flux: Flux,
        adapter: Option<LoraAdapter>,
        params: FlatParams,
        options: TrainOptions,
    ) -> Result<Self> {
        if params.buckets().is_empty() {
            return Err(ModelError::input("adapter", "covers no block: there is nothing to train"));
        }
        let double = (0..flux.double_blocks.len()).map(|i| format!("double_blocks.{i}"));
        let single = (0..flux.single_blocks.len()).map(|i| format!("single_blocks.{i}"));
        let block_buckets = double.chain(single).map(|name| params.position(&name)).collect();
        Ok(Self {
            flux,
            adapter,
            params,
            options,
            ropes: RopeCache::default(),
            block_buckets,
            times_passes: false,
            passes: PassTimes::default(),
        })
    }

    /// Times the passes from now on. That waits for the device twice a micro-batch, once all of a pass is queued there.
    pub fn time_passes(&mut self) {
        self.times_passes = true;
    }

    /// Time in the passes since the last call; zero unless [`TrainStep::time_passes`] was called.
    pub fn take_pass_times(&mut self) -> PassTimes {
        std::mem::take(&mut self.passes)
    }

    /// Waits until the device has done what is queued for it, if passes are timed. Reductions that run beside are not
    /// waited for: they have a queue of their own.
    pub fn wait_for_device(&self) -> Result<()> {
        let device = self.flux.device();
        if self.times_passes && device != tch::Device::Cpu {
            Tensor::f_zeros([1], (Kind::Float, device))?.f_double_value(&[0])?;
        }
        Ok(())
    }

    /// Changes which blocks are computed again, once it is known what memory is left.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.options.recompute = recompute;
    }

    pub fn flux(&self) -> &Flux {
        &self.flux
    }

    /// The adapter under training, if it is not the base itself that trains.
    pub fn adapter(&self) -> Option<&LoraAdapter> {
        self.adapter.as_ref()
    }

    pub fn params(&self) -> &FlatParams {
        &self.params
    }

    pub fn params_mut(&mut self) -> &mut FlatParams {
        &mut self.params
    }

    /// Computes the step's loss, Σ weight · mean loss, and leaves its gradients in the buckets. With no
    /// micro-batch the gradients are zero (a rank without samples still takes part in the reduction).
    pub fn gradients(
        &mut self,
        micros: &[MicroBatch],
        mut on_bucket: Option<OnBucket<'_>>,
    ) -> Result<Vec<MicroOutcome>> {
        if micros.is_empty() {
            for index in (0..self.params.buckets().len()).rev() {
                self.finish_bucket(index, &[], false, &mut on_bucket)?;
            }
        }
        let last = micros.len().saturating_sub(1);
        let mut outcomes = Vec::with_capacity(micros.len());
        for (index, micro) in micros.iter().enumerate() {
            let mut nobody: Option<OnBucket<'_>> = None;
            let listener = if index == last { &mut on_bucket } else { &mut nobody };
            outcomes.push(tch::with_grad(|| self.forward_backward(micro, index > 0, listener))?);
        }
        Ok(outcomes)
    }

    fn finish_bucket(
        &mut self,
        index: usize,
        grads: &[Tensor],
        accumulate: bool,
        on_bucket: &mut Option<OnBucket<'_>>,
    ) -> Result<()> {
        let Some(bucket) = self.params.bucket_mut(index) else {
            return Ok(());
        };
        if grads.is_empty() && !accumulate {
            drop(tch::no_grad(|| bucket.grads().shallow_clone().f_zero_())?);
        }
        bucket.take_grads(grads, accumulate)?;
        if let Some(on_bucket) = on_bucket {
            on_bucket(index, bucket.grads()).map_err(ModelError::Caller)?;
        }
        Ok(())
    }

    /// The kernels of the explicit pass; none if autograd runs the blocks.
    fn explicit(&self) -> Option<Fused> {
        match self.options.block_pass {
            BlockPass::Explicit(kernels) if self.adapter.is_some() => {
                Some(Fused::choose(kernels, self.flux.device(), self.flux.compute_kind()))
            }
            _ => None,
        }
    }

    fn explicit_blocks(&self) -> Blocks<'_> {
        Blocks { flux: &self.flux, adapter: self.adapter.as_ref() }
    }

    /// Outputs of a block, detached, and what is kept of it, if anything is to be.
    fn forward_block(
        &self,
        index: usize,
        inputs: &[Tensor],
        vec_act: &Tensor,
        rope: &RopeTable,
        target: Span,
        keep: bool,
    ) -> Result<(Vec<Tensor>, Kept)> {
        if let Some(fused) = self.explicit() {
            let context = Context { fused, rope, vec_act, target };
            let (outputs, saved) = tch::no_grad(|| self.explicit_blocks().forward(index, inputs, &context))?;
            return Ok((outputs, if keep { Kept::Saved(saved) } else { Kept::Nothing }));
        }
        let run = || self.run_block(index, inputs, vec_act, rope);
        let outputs = if keep { run()? } else { tch::no_grad(run)? };
        let detached = outputs.iter().map(Tensor::f_detach).collect::<Result<_, _>>()?;
        Ok((detached, if keep { Kept::Graph(outputs) } else { Kept::Nothing }))
    }

    fn run_block(
        &self,
        index: usize,
        inputs: &[Tensor],
        vec_act: &Tensor,
        rope: &RopeTable,
    ) -> Result<Vec<Tensor>> {
        let doubles = self.flux.double_blocks.len();
        let adapter = self.adapter.as_ref();
        match inputs {
            [img, txt] => {
                let block =
                    self.flux.double(index)?.ok_or_else(|| ModelError::input("block", "does not exist"))?;
                let (img, txt) =
                    block.forward(img, txt, vec_act, rope, adapter.and_then(|a| a.double(index)))?;
                Ok(vec![img, txt])
            }
            [x] => {
                let single = index - doubles;
                let block =
                    self.flux.single(single)?.ok_or_else(|| ModelError::input("block", "does not exist"))?;
                Ok(vec![block.forward(x, vec_act, rope, adapter.and_then(|a| a.single(single)))?])
            }
            _ => Err(ModelError::input("block", "takes one or two inputs")),
        }
    }

    /// Which blocks keep their activations in a micro-batch of these sizes.
    pub(super) fn kept_blocks(&self, batch: i64, text: i64, target: i64, references: i64) -> Vec<bool> {
        let size = |value: i64| u64::try_from(value).unwrap_or(0);
        let compute = self.flux.compute_kind();
        let adapter = self.adapter.as_ref();
        let shape = ActivationShape {
            tokens: StepTokens {
                batch: size(batch),
                text: size(text),
                target: size(target),
                references: size(references),
            },
            compute,
            adapter: adapter.map(|a| (a.rank(), self.options.adapter_compute.unwrap_or(Kind::Float))),
            weights_are_copied: self.flux.weights_are_copied(),
            keeps_probabilities: self.flux.device() == tch::Device::Cpu,
        };
        plan_kept_blocks(self.flux.config(), &shape, self.options.recompute)
    }

    /// Whether every weight trains, and not an adapter.
    fn trains_all(&self) -> bool {
        self.adapter.is_none()
    }

    /// The first block that trains: nothing before it needs a graph.
    fn first_trained(&self) -> usize {
        if self.trains_all() {
            return 0;
        }
        self.block_buckets.iter().position(Option::is_some).unwrap_or(self.block_buckets.len())
    }

    /// Forward and backward of one micro-batch: stem, blocks and head, then back the same way.
    fn forward_backward(
        &mut self,
        micro: &MicroBatch,
        accumulate: bool,
        on_bucket: &mut Option<OnBucket<'_>>,
    ) -> Result<MicroOutcome> {
        let began = Instant::now();
        let batch = self.prepare(micro)?;
        let stem = self.stem(&batch)?;
        let vec_act = leaf(&stem.vec, self.trains_all())?;
        let flow = self.blocks(&batch, &stem, &vec_act)?;
        let head = self.head(&batch, &flow, &vec_act, micro.weight)?;
        self.wait_for_device()?;
        let half_time = Instant::now();
        self.passes.forward += half_time - began;

        let Head { input, weighted_loss, outcome } = head;
        let (head_grad, vec_grad) =
            self.head_backward(&input, weighted_loss, &vec_act, accumulate, on_bucket)?;
        let target = flow.target;
        let mut backward = Backward { vec_act, rope: batch.rope, target, vec_grad, accumulate, on_bucket };
        let stem_grads = self.blocks_backward(flow, &head_grad, &mut backward)?;
        self.stem_backward(&stem, &stem_grads, backward)?;
        self.wait_for_device()?;
        self.passes.backward += half_time.elapsed();
        Ok(outcome)
    }

    /// Noises the target and brings all to the device.
    fn prepare(&mut self, micro: &MicroBatch) -> Result<Prepared> {
        let device = self.flux.device();
        let noised = micro.noised(device)?;
        let rope = self.ropes.get(&micro.layout(self.options.positions)?, self.flux.config(), device)?;
        let refs = micro.refs.iter().map(|reference| to_device(&packing::pack(reference)?, device));
        let refs = refs.collect::<Result<Vec<_>>>()?;
        let batch = noised.x_t.size()[0];
        let timesteps = to_device(&micro.times, device)?.f_to_kind(self.options.time_kind)?;
        let guidance = Tensor::f_full([batch], self.options.guidance, (self.options.time_kind, device))?;
        let (txt, vec) = (to_device(&micro.txt, device)?, to_device(&micro.vec, device)?);
        Ok(Prepared { noised, rope, refs, txt, vec, timesteps, guidance })
    }

    /// With a graph only if it trains.
    fn stem(&self, batch: &Prepared) -> Result<Stem> {
        let inputs = batch.inputs();
        self.flux.check(&inputs)?;
        let run = || -> Result<Stem> {
            let out = self.flux.stem.forward(&inputs, self.flux.compute_kind())?;
            Ok(Stem { img: out.img, txt: out.txt, vec: out.vec.f_silu()? })
        };
        if self.trains_all() { run() } else { tch::no_grad(run) }
    }

    /// Runs all blocks. Each graph is cut at the block's inputs.
    fn blocks(&self, batch: &Prepared, stem: &Stem, vec_act: &Tensor) -> Result<Flow> {
        let (full, first) = (self.trains_all(), self.first_trained());
        let (doubles, blocks) = (self.flux.double_blocks.len(), self.block_buckets.len());
        let text_tokens = batch.txt.size()[1];
        let image_tokens = stem.img.size()[1];
        let target_tokens = batch.noised.x_t.size()[1];
        let target = Span { first: text_tokens, tokens: target_tokens };
        let kept = self.kept_blocks(
            batch.noised.x_t.size()[0],
            text_tokens,
            target_tokens,
            image_tokens - target_tokens,
        );
        let mut records: Vec<Record> = Vec::with_capacity(blocks);
        let mut flow = vec![stem.img.f_detach()?, stem.txt.f_detach()?];
        for index in 0..=blocks {
            if index == doubles {
                // From here on text and images are one stream: text first.
                flow.reverse();
                flow = vec![Tensor::f_cat(&flow, 1)?];
            }
            if index == blocks {
                break;
            }
            let track = (full || index > first) && self.explicit().is_none();
            let inputs = flow.iter().map(|tensor| leaf(tensor, track)).collect::<Result<Vec<_>>>()?;
            let keep = (full || index >= first) && kept.get(index).is_some_and(|keep| *keep);
            let (outputs, kept) = self.forward_block(index, &inputs, vec_act, &batch.rope, target, keep)?;
            flow = outputs;
            records.push(Record { inputs, kept });
        }
        let joined = flow.pop().ok_or_else(|| ModelError::input("blocks", "gave no output"))?;
        Ok(Flow { records, joined, target, image_tokens })
    }

    /// Head and loss.
    fn head(&self, batch: &Prepared, flow: &Flow, vec_act: &Tensor, weight: f64) -> Result<Head> {
        let tracks = self.trains_all() || self.first_trained() < self.block_buckets.len();
        let target = if flow.has_target_alone() {
            flow.joined.shallow_clone()
        } else {
            flow.joined.f_narrow(1, flow.target.first, flow.target.tokens)?
        };
        let input = leaf(&target, tracks)?;
        let prediction = self.flux.head.forward(&input, vec_act)?.f_to_kind(Kind::Float)?;
        let loss = prediction.f_mse_loss(&batch.noised.velocity, tch::Reduction::Mean)?;
        let outcome = MicroOutcome { loss: loss.f_detach()?, prediction: prediction.f_detach()? };
        Ok(Head { input, weighted_loss: loss.f_mul_scalar(weight)?, outcome })
    }

    /// The gradient of the head's input, and of the modulation vector if all weights train.
    fn head_backward(
        &mut self,
        input: &Tensor,
        weighted_loss: Tensor,
        vec_act: &Tensor,
        accumulate: bool,
        on_bucket: &mut Option<OnBucket<'_>>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let full = self.trains_all();
        let bucket = self.params.position("final_layer");
        let params = self.leaves(bucket);
        let mut wrt: Vec<&Tensor> = vec![input];
        if full {
            wrt.push(vec_act);
        }
        wrt.extend(&params);
        let mut grads = Tensor::f_run_backward(&[weighted_loss], &wrt, false, false)?.into_iter();
        let head_grad = next(&mut grads)?;
        let vec_grad = if full { Some(next(&mut grads)?) } else { None };
        if let Some(bucket) = bucket {
            self.finish_bucket(bucket, &grads.collect::<Vec<_>>(), accumulate, on_bucket)?;
        }
        Ok((head_grad, vec_grad))
    }

    /// Back through the blocks, as far as something trains; the gradients of what the stem gave, if it went so far.
    fn blocks_backward(
        &mut self,
        flow: Flow,
        head_grad: &Tensor,
        backward: &mut Backward<'_, '_>,
    ) -> Result<Vec<Tensor>> {
        let alone = flow.has_target_alone();
        let Flow { mut records, joined, target, image_tokens } = flow;
        let (full, first, doubles) = (self.trains_all(), self.first_trained(), self.flux.double_blocks.len());
        let mut flow_grads = vec![if alone {
            head_grad.shallow_clone()
        } else {
            // The head reads target tokens only: the others' gradient is zero.
            let padded = joined.f_zeros_like()?;
            padded.f_narrow(1, target.first, target.tokens)?.f_copy_(head_grad)?;
            padded
        }];
        drop(joined);
        for index in (0..=records.len()).rev() {
            if index == doubles {
                let joined =
                    flow_grads.pop().ok_or_else(|| ModelError::input("blocks", "gave no gradient"))?;
                flow_grads = vec![
                    joined.f_narrow(1, target.first, image_tokens)?,
                    joined.f_narrow(1, 0, target.first)?,
                ];
            }
            let Some(block) = index.checked_sub(1).filter(|block| full || *block >= first) else { break };
            let Some(record) = records.pop() else { break };
            self.block_backward(block, record, full || block > first, &mut flow_grads, backward)?;
        }
        Ok(flow_grads)
    }

    /// One block: `flow_grads` are those of its outputs before, and of its inputs after if `track`.
    fn block_backward(
        &mut self,
        index: usize,
        record: Record,
        track: bool,
        flow_grads: &mut Vec<Tensor>,
        backward: &mut Backward<'_, '_>,
    ) -> Result<()> {
        let Record { inputs, kept } = record;
        if let Some(fused) = self.explicit() {
            let saved = match kept {
                Kept::Saved(saved) => Some(saved),
                Kept::Nothing | Kept::Graph(_) => None,
            };
            return self.explicit_backward(index, fused, &inputs, saved, track, flow_grads, backward);
        }
        let outputs = match kept {
            Kept::Graph(outputs) => outputs,
            Kept::Nothing | Kept::Saved(_) => {
                self.run_block(index, &inputs, &backward.vec_act, &backward.rope)?
            }
        };
        let bucket = self.block_buckets.get(index).copied().flatten();
        let params = self.leaves(bucket);
        let mut wrt: Vec<&Tensor> = Vec::new();
        if track {
            wrt.extend(&inputs);
        }
        if backward.vec_grad.is_some() {
            wrt.push(&backward.vec_act);
        }
        wrt.extend(&params);
        let pairs: Vec<_> = outputs.iter().zip(&*flow_grads).collect();
        let mut grads = gradients(&pairs, &wrt)?.into_iter();
        drop(pairs);
        drop(outputs);
        if track {
            *flow_grads = inputs.iter().map(|_| next(&mut grads)).collect::<Result<_>>()?;
        }
        if let Some(sum) = &mut backward.vec_grad {
            let grad = next(&mut grads)?;
            drop(tch::no_grad(|| sum.f_add_(&grad))?);
        }
        if let Some(bucket) = bucket {
            let grads = grads.collect::<Vec<_>>();
            self.finish_bucket(bucket, &grads, backward.accumulate, backward.on_bucket)?;
        }
        Ok(())
    }

    /// As [`TrainStep::block_backward`], by hand; a block of which nothing was `saved` is run again.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record, and what a backward pass has")]
    fn explicit_backward(
        &mut self,
        index: usize,
        fused: Fused,
        inputs: &[Tensor],
        saved: Option<Saved>,
        track: bool,
        flow_grads: &mut Vec<Tensor>,
        backward: &mut Backward<'_, '_>,
    ) -> Result<()> {
        let grads = tch::no_grad(|| {
            let Backward { rope, vec_act, target, .. } = &*backward;
            let context = Context { fused, rope, vec_act, target: *target };
            let blocks = self.explicit_blocks();
            let saved = match saved {
                Some(saved) => saved,
                None => blocks.forward(index, inputs, &context)?.1,
            };
            let (flow, grads) = blocks.backward(index, inputs, saved, flow_grads, &context, track)?;
            *flow_grads = flow;
            Ok::<_, ModelError>(grads)
        })?;
        match self.block_buckets.get(index).copied().flatten() {
            Some(bucket) => self.finish_bucket(bucket, &grads, backward.accumulate, backward.on_bucket),
            None => Ok(()),
        }
    }

    /// Only where all weights train.
    fn stem_backward(&mut self, stem: &Stem, grads: &[Tensor], backward: Backward<'_, '_>) -> Result<()> {
        let (Some(vec_grad), Some(bucket)) = (backward.vec_grad, self.params.position("stem")) else {
            return Ok(());
        };
        let [img_grad, txt_grad] = grads else {
            return Err(ModelError::input("blocks", "gave no gradient"));
        };
        let params = self.leaves(Some(bucket));
        let wrt: Vec<&Tensor> = params.iter().collect();
        let pairs = [(&stem.img, img_grad), (&stem.txt, txt_grad), (&stem.vec, &vec_grad)];
        let grads = gradients(&pairs, &wrt)?;
        self.finish_bucket(bucket, &grads, backward.accumulate, backward.on_bucket)
    }

    fn leaves(&self, bucket: Option<usize>) -> Vec<Tensor> {
        bucket
            .and_then(|index| self.params.buckets().get(index))
            .map(|bucket| bucket.leaves().map(Tensor::shallow_clone).collect())
            .unwrap_or_default()
    }
}

fn next(grads: &mut impl Iterator<Item = Tensor>) -> Result<Tensor> {
    match grads.next() {
        Some(grad) if grad.defined() => Ok(grad),
        _ => Err(ModelError::input("gradients", "autograd gave none for an activation")),
    }
}
