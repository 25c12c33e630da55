//! How weights are stored and where they lie.
//!
//! ```text
//!   resident:  device  [stem][block 0][block 1] … [head]
//!   on host:   device  [stem]     [i] [i+1]        [head]     two blocks at a time
//!              host       [0] [1]  …  (pinned beside a GPU)
//! ```
//!
//! A frozen network can be stored in 8-bit floats (e4m3, cast without scales, biases and norm scales included, as the
//! published fp8 option does): half the memory of bfloat16. Each layer casts up for its own product. Or its large products'
//! weights alone, scaled to the dtype's range, which some devices multiply as they are ([`crate::float8`]).

use std::collections::BTreeMap;
use std::ops::Deref;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::float8;
use crate::layers::to_device;
use crate::params::{Init, ParamSource};

/// In what dtype weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// The dtype of the arithmetic.
    #[default]
    Compute,
    /// 8-bit floats (e4m3), one byte a weight; for weights that do not train.
    Float8,
    /// The weights of the blocks' attention and MLP in 8-bit floats, each tensor scaled to their range; all others as
    /// [`Storage::Compute`]. For weights that do not train.
    ScaledFloat8,
}

/// The layers whose weights [`Storage::ScaledFloat8`] makes small: nearly all of a block's arithmetic. Modulation stays, since
/// what it scales is every channel of the stream.
const SCALED: [&str; 6] = ["attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2"];

/// Where the blocks' weights lie between their uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    #[default]
    Device,
    /// In host memory; each block is brought to the device just before it runs.
    Host,
}

/// How a network is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Dtype that activations flow in.
    pub compute: Kind,
    /// Where the network computes.
    pub device: Device,
    pub storage: Storage,
    pub blocks: Offload,
}

impl LoadOptions {
    /// Everything on `device` in `compute`.
    pub fn resident(compute: Kind, device: Device) -> Self {
        Self { compute, device, storage: Storage::Compute, blocks: Offload::Device }
    }

    /// The dtype that a source should hand out: an 8-bit cast starts from the exact value.
    pub(crate) fn kind_read(&self) -> Kind {
        match self.storage {
            Storage::Compute => self.compute,
            Storage::Float8 | Storage::ScaledFloat8 => Kind::Float,
        }
    }

    /// Where a source should hand out tensors: a network that does not fit the device is not read through it.
    pub(crate) fn device_read(&self) -> Device {
        match self.blocks {
            Offload::Device => self.device,
            Offload::Host => Device::Cpu,
        }
    }
}

/// Values from here on round to no e4m3 number: 448 is the largest, and the next step would be 480.
const FLOAT8_LIMIT: f64 = 464.0;

/// Hands on what a source gives, in the dtype and the place that the options ask for.
pub(crate) struct Placing<'a> {
    source: &'a mut dyn ParamSource,
    options: LoadOptions,
    scales: BTreeMap<String, Tensor>,
    problems: Vec<TensorProblem>,
}

impl<'a> Placing<'a> {
    pub fn new(source: &'a mut dyn ParamSource, options: &LoadOptions) -> Self {
        Self { source, options: *options, scales: BTreeMap::new(), problems: Vec::new() }
    }

    /// Fails with every tensor that the storage cannot hold.
    pub fn finish(self, origin: &str) -> Result<()> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ModelError::Weights { origin: origin.to_owned(), problems: self.problems })
        }
    }
}

impl ParamSource for Placing<'_> {
    fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let mut tensor = self.source.take(name, shape, init)?;
        if !tensor.defined() {
            // The source has noted why.
            return Ok(tensor);
        }
        let of_a_block = name.starts_with("double_blocks.") || name.starts_with("single_blocks.");
        match self.options.storage {
            Storage::Compute => {}
            Storage::Float8 => {
                let largest = tensor.f_abs()?.f_max()?.f_double_value(&[])?;
                if largest >= FLOAT8_LIMIT {
                    let kind = ProblemKind::TooLarge { dtype: "F8_E4M3".to_owned() };
                    self.problems.push(TensorProblem { tensor: name.to_owned(), kind });
                }
                tensor = tensor.f_to_kind(Kind::Float8e4m3fn)?;
            }
            Storage::ScaledFloat8 => {
                let layer = name.strip_suffix(".weight").filter(|_| of_a_block);
                if layer.is_some_and(|layer| SCALED.iter().any(|scaled| layer.ends_with(scaled))) {
                    let (small, scale) = float8::quantize(&tensor)?;
                    tensor = small;
                    self.scales.insert(name.to_owned(), scale.f_to_device(self.options.device)?);
                } else {
                    tensor = tensor.f_to_kind(self.options.compute)?;
                }
            }
        }
        match (self.options.blocks, self.options.device) {
            (Offload::Host, device @ Device::Cuda(_)) if of_a_block => Ok(tensor.f_pin_memory(device)?),
            (Offload::Host, _) if of_a_block => Ok(tensor),
            (_, device) => Ok(tensor.f_to_device(device)?),
        }
    }

    fn take_scale(&mut self, name: &str) -> Option<Tensor> {
        self.scales.remove(name)
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }
}

/// A block whose tensors can be had elsewhere.
pub(crate) trait Movable: Sized {
    /// The same block over what `map` makes of its tensors.
    fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self>;
}

/// A block where it computes: the network's own, or a copy that was brought there.
#[derive(Debug)]
pub(crate) enum Staged<'a, B> {
    Resident(&'a B),
    Brought(Box<B>),
}

impl<B> Deref for Staged<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        match self {
            Self::Resident(block) => block,
            Self::Brought(block) => block,
        }
    }
}

/// `block` ready to run: brought to `device`, or as it lies if there is none. The copy is queued; nothing waits for it.
pub(crate) fn stage<B: Movable>(block: &B, device: Option<Device>) -> Result<Staged<'_, B>> {
    match device {
        None => Ok(Staged::Resident(block)),
        Some(device) => {
            let brought = block.mapped(&|tensor| to_device(tensor, device))?;
            Ok(Staged::Brought(Box::new(brought)))
        }
    }
}

/// Runs over `blocks` in order; the next one's copy is queued before the present one runs, so at most two are on the device.
pub(crate) fn run_ahead<B: Movable>(
    blocks: &[B],
    device: Option<Device>,
    mut run: impl FnMut(usize, &B) -> Result<()>,
) -> Result<()> {
    let mut next = blocks.first().map(|block| stage(block, device)).transpose()?;
    for index in 0..blocks.len() {
        let Some(block) = next.take() else { break };
        next = blocks.get(index + 1).map(|block| stage(block, device)).transpose()?;
        run(index, &block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::flux::{Flux, FluxInputs, RopeTable};
    use crate::randomness::NormalStream;
    use crate::unope::{Grid, Layout, Offsets};
    use crate::weights::TensorMap;
    use crate::{BlockSelection, FluxConfig, LoraAdapter};

    fn config() -> FluxConfig {
        tch::set_num_threads(1);
        FluxConfig {
            hidden_size: 64,
            num_heads: 2,
            depth: 2,
            depth_single_blocks: 3,
            guidance_embed: true,
            ..FluxConfig::nano()
        }
    }

    /// Weights of which none is zero.
    fn weights() -> TensorMap {
        let mut weights = Flux::init(&config(), 1, Kind::Float, Device::Cpu).unwrap().tensors();
        for (name, tensor) in &mut weights {
            let noise = NormalStream::for_weight(2, name).tensor(&tensor.size()).unwrap();
            *tensor = &*tensor + noise * 0.02;
        }
        weights
    }

    fn options(compute: Kind, storage: Storage, blocks: Offload) -> LoadOptions {
        LoadOptions { compute, device: Device::Cpu, storage, blocks }
    }

    fn run(flux: &Flux) -> Tensor {
        let draw = |name: &str, shape: &[i64]| NormalStream::for_weight(3, name).tensor(shape).unwrap();
        let layout = Layout {
            text_tokens: 3,
            target: Grid { rows: 2, columns: 3 },
            references: vec![Grid { rows: 1, columns: 2 }],
            offsets: Offsets::PUBLISHED,
        };
        let rope = RopeTable::from_layout(&layout, flux.config(), Device::Cpu).unwrap();
        let time = Tensor::from_slice(&[0.4f32, 0.9]);
        let inputs = FluxInputs {
            img: &draw("img", &[2, 6, 48]),
            refs: &[draw("ref", &[2, 2, 48])],
            txt: &draw("txt", &[2, 3, 64]),
            vec: &draw("vec", &[2, 64]),
            timesteps: &time,
            guidance: Some(&time),
            rope: &rope,
        };
        let adapter =
            LoraAdapter::init(&config(), 4, &BlockSelection::all(&config()), 1, Kind::Float, Device::Cpu);
        flux.forward(&inputs, Some(&adapter.unwrap())).unwrap().to_kind(Kind::Float)
    }

    fn load(options: &LoadOptions) -> Flux {
        Flux::from_tensors_with(&config(), weights(), "test", options).unwrap()
    }

    #[test]
    fn blocks_on_the_host_give_the_same_numbers() {
        for storage in [Storage::Compute, Storage::Float8] {
            let resident = load(&options(Kind::Float, storage, Offload::Device));
            let hosted = load(&options(Kind::Float, storage, Offload::Host));
            assert!(matches!(hosted.double(0).unwrap(), Some(Staged::Brought(_))));
            assert!(matches!(resident.single(0).unwrap(), Some(Staged::Resident(_))));
            assert_eq!(run(&hosted), run(&resident));
        }
    }

    #[test]
    fn float8_weights_take_a_byte_and_stay_close() {
        let exact = run(&load(&LoadOptions::resident(Kind::Float, Device::Cpu)));
        for compute in [Kind::Float, Kind::BFloat16] {
            let mut small = load(&options(compute, Storage::Float8, Offload::Device));
            assert!(small.tensors().values().all(|tensor| tensor.kind() == Kind::Float8e4m3fn));
            assert_eq!(small.compute_kind(), compute);
            let error = (run(&small) - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
            // e4m3 has 3 bits of mantissa: each weight is off by up to 6 %, and errors average out over a row.
            assert!((1e-4..0.2).contains(&error), "{error}");
        }
    }

    #[test]
    fn float8_files_are_read_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fp8.safetensors");
        let mut small = load(&options(Kind::Float, Storage::Float8, Offload::Device));
        crate::weights::save(&path, &small.tensors(), &Default::default()).unwrap();
        let again = Flux::load_with(&config(), &path, &options(Kind::Float, Storage::Float8, Offload::Host));
        assert_eq!(run(&again.unwrap()), run(&small));
        let widened = Flux::load(&config(), &path, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(run(&widened), run(&small));
    }

    #[test]
    fn a_weight_that_float8_cannot_hold_is_named() {
        let mut tensors = weights();
        tensors.insert("img_in.bias".to_owned(), Tensor::full([64], 464.0, (Kind::Float, Device::Cpu)));
        tensors.insert("txt_in.bias".to_owned(), Tensor::full([64], -463.0, (Kind::Float, Device::Cpu)));
        let options = options(Kind::Float, Storage::Float8, Offload::Device);
        let error = Flux::from_tensors_with(&config(), tensors, "test", &options).unwrap_err().to_string();
        assert!(error.contains("img_in.bias has values too large for F8_E4M3"), "{error}");
        assert!(!error.contains("txt_in"), "{error}");
    }

    #[test]
    fn at_most_two_blocks_are_brought_at_a_time() {
        /// Counts how many of it are alive.
        struct Counted(Rc<RefCell<(usize, usize)>>);
        impl Movable for Counted {
            fn mapped(&self, _: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
                let mut counts = self.0.borrow_mut();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                Ok(Self(self.0.clone()))
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                let mut counts = self.0.borrow_mut();
                counts.0 = counts.0.saturating_sub(1);
            }
        }
        let counts = Rc::new(RefCell::new((0, 0)));
        let blocks: Vec<_> = (0..5).map(|_| Counted(counts.clone())).collect();
        let mut order = Vec::new();
        run_ahead(&blocks, Some(Device::Cpu), |index, _| {
            order.push(index);
            Ok(())
        })
        .unwrap();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert_eq!(*counts.borrow(), (0, 2));
    }
}
