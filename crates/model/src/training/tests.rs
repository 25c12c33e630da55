//! The block-by-block step held against plain autograd, and against itself.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::flux::{LoadOptions, Offload, Storage};
use crate::fused::Kernels;
use crate::randomness::{NormalStream, SampleKey};
use crate::unope::{Grid, Layout, Offsets};
use crate::weights::TensorMap;
use crate::{BlockSelection, Flux, FluxConfig, FluxInputs, LoraAdapter, RopeTable, packing};

fn config() -> FluxConfig {
    // On tensors this small, threads only wait for each other.
    tch::set_num_threads(1);
    FluxConfig {
        in_channels: 16,
        vec_in_dim: 6,
        context_in_dim: 10,
        hidden_size: 24,
        mlp_ratio: 2.0,
        num_heads: 2,
        depth: 2,
        depth_single_blocks: 2,
        axes_dim: vec![4, 4, 4],
        theta: 10_000.0,
        qkv_bias: true,
        guidance_embed: true,
    }
}

/// A network of which no weight is zero, so that every gradient says something.
fn network(seed: u64) -> Flux {
    let mut weights = Flux::init(&config(), seed, Kind::Float, Device::Cpu).unwrap().tensors();
    for (name, tensor) in &mut weights {
        let noise = NormalStream::for_weight(seed + 1, name).tensor(&tensor.size()).unwrap();
        *tensor = &*tensor + noise * 0.1;
    }
    Flux::from_tensors(&config(), weights, "test", Kind::Float, Device::Cpu).unwrap()
}

fn adapter(blocks: &BlockSelection) -> LoraAdapter {
    let mut tensors = LoraAdapter::init(&config(), 3, blocks, 5, Kind::Float, Device::Cpu).unwrap().tensors();
    for (name, tensor) in &mut tensors {
        *tensor = NormalStream::for_weight(9, name).tensor(&tensor.size()).unwrap() * 0.2;
    }
    LoraAdapter::from_tensors(&config(), tensors, "test", Kind::Float, Device::Cpu).unwrap()
}

/// Samples at `positions`, with latents of `height` × `width` and one reference.
fn batch(positions: &[u64], height: i64, width: i64, weight: f64) -> MicroBatch {
    let draw = |stage: u32, shape: &[i64]| {
        let each: Vec<Tensor> = positions
            .iter()
            .map(|position| SampleKey { job_seed: 3, stage, position: *position }.noise(shape).unwrap())
            .collect();
        Tensor::stack(&each, 0)
    };
    let times: Vec<f32> = positions.iter().map(|p| 0.2 + 0.1 * (*p % 7) as f32).collect();
    MicroBatch {
        latents: draw(0, &[4, height, width]),
        refs: vec![draw(1, &[4, 4, 2])],
        txt: draw(2, &[3, 10]),
        vec: draw(3, &[6]),
        noise: draw(4, &[height * width / 4, 16]),
        times: Tensor::from_slice(&times),
        weight,
    }
}

/// The loss as one graph, without cuts.
fn plain_loss(flux: &Flux, adapter: Option<&LoraAdapter>, micro: &MicroBatch) -> Tensor {
    let noised = micro.noised(Device::Cpu).unwrap();
    let layout = Layout {
        text_tokens: 3,
        target: Grid::of_latent(&micro.latents).unwrap(),
        references: micro.refs.iter().map(|r| Grid::of_latent(r).unwrap()).collect(),
        offsets: Offsets::PUBLISHED,
    };
    let rope = RopeTable::from_layout(&layout, flux.config(), Device::Cpu).unwrap();
    let refs: Vec<Tensor> = micro.refs.iter().map(|r| packing::pack(r).unwrap()).collect();
    let guidance = Tensor::ones_like(&micro.times);
    let inputs = FluxInputs {
        img: &noised.x_t,
        refs: &refs,
        txt: &micro.txt,
        vec: &micro.vec,
        timesteps: &micro.times,
        guidance: Some(&guidance),
        rope: &rope,
    };
    let out = flux.stem.forward(&inputs, Kind::Float).unwrap();
    let vec_act = out.vec.silu();
    let (mut img, mut txt) = (out.img, out.txt);
    for (i, block) in flux.double_blocks.iter().enumerate() {
        let lora = adapter.and_then(|a| a.double(i));
        (img, txt) = block.forward(&img, &txt, &vec_act, &rope, lora).unwrap();
    }
    let mut x = Tensor::cat(&[txt, img], 1);
    for (i, block) in flux.single_blocks.iter().enumerate() {
        x = block.forward(&x, &vec_act, &rope, adapter.and_then(|a| a.single(i))).unwrap();
    }
    let prediction = flux.head.forward(&x.narrow(1, 3, noised.x_t.size()[1]), &vec_act).unwrap();
    prediction.mse_loss(&noised.velocity, tch::Reduction::Mean) * micro.weight
}

fn assert_close(ours: &TensorMap, plain: &[(String, Tensor)]) {
    assert_eq!(ours.len(), plain.len());
    for (name, expected) in plain {
        let scale = expected.abs().max().double_value(&[]);
        let error = (&ours[name] - expected).abs().max().double_value(&[]);
        assert!(scale > 0.0, "{name} has no gradient: the test says nothing about it");
        assert!(error <= 2e-5 * scale + 1e-8, "{name}: {error:e} of {scale:e}");
    }
}

/// Gradients of the plain loss over `micros` for every tensor that `visit` shows.
fn plain_gradients(
    flux: &mut Flux,
    adapter: &mut Option<LoraAdapter>,
    micros: &[MicroBatch],
) -> Vec<(String, Tensor)> {
    let mut names = Vec::new();
    let mut leaves = Vec::new();
    let mut visit = |name: String, tensor: &mut Tensor| {
        *tensor = tensor.detach().set_requires_grad(true);
        names.push(name);
        leaves.push(tensor.shallow_clone());
    };
    match adapter {
        Some(adapter) => adapter.visit_mut(&mut visit),
        None => flux.visit_mut(&mut visit),
    }
    let losses: Vec<Tensor> = micros.iter().map(|m| plain_loss(flux, adapter.as_ref(), m)).collect();
    let grads = Tensor::run_backward(&losses, &leaves, false, false);
    names.into_iter().zip(grads).collect()
}

#[test]
fn cut_backward_gives_the_gradients_of_one_graph() {
    let micros = || [batch(&[1, 2], 4, 6, 0.75), batch(&[3], 6, 2, 0.25)];
    for recompute in [Recompute::None, Recompute::All] {
        let options = TrainOptions { recompute, ..TrainOptions::default() };
        let all = BlockSelection::all(&config());

        let mut train_step = TrainStep::for_adapter(network(1), adapter(&all), options.clone()).unwrap();
        train_step.gradients(&micros(), None).unwrap();
        let plain = plain_gradients(&mut network(1), &mut Some(adapter(&all)), &micros());
        assert_close(&train_step.params().grads().unwrap(), &plain);

        let mut train_step = TrainStep::for_all_weights(network(1), options).unwrap();
        train_step.gradients(&micros(), None).unwrap();
        let plain = plain_gradients(&mut network(1), &mut None, &micros());
        assert_close(&train_step.params().grads().unwrap(), &plain);
    }
}

#[test]
fn gradients_do_not_depend_on_what_is_computed_again() {
    let all = BlockSelection::all(&config());
    let micros = || [batch(&[1, 2], 4, 6, 0.75), batch(&[3], 6, 2, 0.25)];
    let mut plans = std::collections::BTreeSet::new();
    let bytes = |train_step: &mut TrainStep, recompute| {
        train_step.set_recompute(recompute);
        train_step.gradients(&micros(), None).unwrap();
        crate::weights::to_bytes(&train_step.params().grads().unwrap(), &Default::default()).unwrap()
    };
    for full in [false, true] {
        let mut train_step = if full {
            TrainStep::for_all_weights(network(1), TrainOptions::default()).unwrap()
        } else {
            TrainStep::for_adapter(network(1), adapter(&all), TrainOptions::default()).unwrap()
        };
        let expected = bytes(&mut train_step, Recompute::None);
        assert!(bytes(&mut train_step, Recompute::All) == expected, "all");
        for kilobytes in (0..400).step_by(10) {
            let recompute = Recompute::Budget { bytes: kilobytes * 1000 };
            train_step.set_recompute(recompute);
            let plan = train_step.kept_blocks(2, 3, 6, 2);
            // One run for each plan is enough.
            if plans.insert((full, plan)) {
                assert!(bytes(&mut train_step, recompute) == expected, "{kilobytes} kB");
            }
        }
    }
    assert!(plans.len() >= 8, "{plans:?}");
}

#[test]
fn frozen_bases_in_8_bits_or_on_the_host_train_an_adapter() {
    let all = BlockSelection::all(&config());
    let grads = |storage, blocks, recompute| {
        let options = LoadOptions { compute: Kind::Float, device: Device::Cpu, storage, blocks };
        let base = Flux::from_tensors_with(&config(), network(1).tensors(), "test", &options).unwrap();
        let options = TrainOptions { recompute, ..TrainOptions::default() };
        let mut train_step = TrainStep::for_adapter(base, adapter(&all), options).unwrap();
        train_step.gradients(&[batch(&[1, 2], 4, 4, 1.0)], None).unwrap();
        train_step.params().grads().unwrap()
    };
    for storage in [Storage::Compute, Storage::Float8] {
        // Weights that are brought for each use are not joined with the adapter's.
        let resident = grads(storage, Offload::Device, Recompute::None);
        assert_near(&grads(storage, Offload::Host, Recompute::All), &resident, 1e-5);
    }
    let options = LoadOptions { blocks: Offload::Host, ..LoadOptions::resident(Kind::Float, Device::Cpu) };
    let base = Flux::from_tensors_with(&config(), network(1).tensors(), "test", &options).unwrap();
    assert!(TrainStep::for_all_weights(base, TrainOptions::default()).is_err());
}

/// Within so much of the norm of each.
fn assert_near(found: &TensorMap, expected: &TensorMap, most: f64) {
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        let error = (&found[name] - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!(error <= most, "{name}: {error}");
    }
}

#[test]
fn weights_joined_with_the_adapters_follow_it() {
    let all = BlockSelection::all(&config());
    for kind in [Kind::Float, Kind::BFloat16] {
        let steps = |block_pass| {
            let base =
                Flux::from_tensors(&config(), network(1).tensors(), "test", kind, Device::Cpu).unwrap();
            let options = TrainOptions { adapter_compute: Some(kind), block_pass, ..TrainOptions::default() };
            let mut train_step = TrainStep::for_adapter(base, adapter(&all), options).unwrap();
            let mut adamw = AdamW::new(AdamWConfig::default(), train_step.params()).unwrap();
            // The second step's gradients are those of weights that the first has moved.
            for _ in 0..2 {
                train_step.gradients(&[batch(&[1, 2], 4, 6, 1.0)], None).unwrap();
                adamw.step(train_step.params_mut(), Update::at(1e-2)).unwrap();
            }
            train_step.gradients(&[batch(&[1, 2], 4, 6, 1.0)], None).unwrap();
            train_step.params().grads().unwrap()
        };
        let by_hand = steps(BlockPass::Explicit(Kernels::Fused));
        let most = if kind == Kind::Float { 1e-3 } else { 0.1 };
        assert_near(&by_hand, &steps(BlockPass::Autograd), most);
        let loaded = steps(BlockPass::Explicit(Kernels::Eager));
        assert_near(&by_hand, &loaded, most);
    }
}

#[test]
fn an_adapter_may_compute_in_bfloat16_under_float32_weights() {
    let all = BlockSelection::all(&config());
    let grads = |adapter_compute| {
        let options = TrainOptions { adapter_compute, ..TrainOptions::default() };
        let mut train_step = TrainStep::for_adapter(network(1), adapter(&all), options).unwrap();
        train_step.gradients(&[batch(&[1, 2], 4, 4, 1.0)], None).unwrap();
        train_step.params().grads().unwrap()
    };
    let (rounded, exact) = (grads(Some(Kind::BFloat16)), grads(None));
    for (name, expected) in &exact {
        assert_eq!(rounded[name].kind(), Kind::Float);
        let error = (&rounded[name] - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
        assert!((1e-5..0.05).contains(&error), "{name}: {error}");
    }
}

#[test]
fn an_adapter_on_some_blocks_gets_the_gradients_of_one_graph() {
    let some = BlockSelection { double: BTreeSet::from([1]), single: BTreeSet::from([1]) };
    let mut train_step = TrainStep::for_adapter(network(1), adapter(&some), TrainOptions::default()).unwrap();
    let mut order = Vec::new();
    let outcomes = train_step
        .gradients(
            &[batch(&[1, 2], 4, 6, 1.0)],
            Some(&mut |bucket, _| {
                order.push(bucket);
                Ok(())
            }),
        )
        .unwrap();
    assert_eq!(order, [1, 0]);
    assert_eq!(train_step.params().buckets()[0].name(), "double_blocks.1");
    let plain = plain_gradients(&mut network(1), &mut Some(adapter(&some)), &[batch(&[1, 2], 4, 6, 1.0)]);
    assert_close(&train_step.params().grads().unwrap(), &plain);
    let expected = plain_loss(train_step.flux(), train_step.adapter(), &batch(&[1, 2], 4, 6, 1.0));
    assert!((outcomes[0].loss.double_value(&[]) - expected.double_value(&[])).abs() < 1e-5);
}

#[test]
fn groups_of_several_shapes_weigh_every_sample_alike() {
    let all = BlockSelection::all(&config());
    let grads = |micros: &[MicroBatch]| {
        let mut train_step =
            TrainStep::for_adapter(network(1), adapter(&all), TrainOptions::default()).unwrap();
        train_step.gradients(micros, None).unwrap();
        train_step.params().grads().unwrap()
    };
    let together = grads(&[batch(&[1, 2, 3], 4, 4, 1.0)]);
    let apart = grads(&[batch(&[1, 2], 4, 4, 2.0 / 3.0), batch(&[3], 4, 4, 1.0 / 3.0)]);
    for (name, tensor) in &together {
        let scale = tensor.abs().max().double_value(&[]);
        assert!((tensor - &apart[name]).abs().max().double_value(&[]) <= 1e-4 * scale, "{name}");
    }
}

#[test]
fn buckets_are_announced_once_in_reverse_after_the_last_micro_batch() {
    let mut train_step = TrainStep::for_all_weights(network(1), TrainOptions::default()).unwrap();
    let names: Vec<String> = train_step.params().buckets().iter().map(|b| b.name().to_owned()).collect();
    assert_eq!(
        names,
        ["stem", "double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1", "final_layer"]
    );
    for micros in [vec![batch(&[1], 4, 4, 0.5), batch(&[2], 4, 4, 0.5)], Vec::new()] {
        let mut announced = Vec::new();
        train_step
            .gradients(
                &micros,
                Some(&mut |bucket, grads| {
                    announced.push((bucket, grads.abs().max().double_value(&[]) > 0.0));
                    Ok(())
                }),
            )
            .unwrap();
        let expected: Vec<_> = (0..6).rev().map(|bucket| (bucket, !micros.is_empty())).collect();
        assert_eq!(announced, expected);
    }
    let failure =
        train_step.gradients(&[batch(&[1], 4, 4, 1.0)], Some(&mut |_, _| Err("link is down".into())));
    assert!(failure.unwrap_err().to_string().contains("link is down"));
}

/// Steps `from..=to` of a short run.
fn train(train_step: &mut TrainStep, adamw: &mut AdamW, ema: &mut Ema, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        train_step.gradients(&[batch(&[2 * step, 2 * step + 1], 4, 4, 1.0)], None).unwrap();
        let norm = train_step.params().grad_norm().unwrap();
        let update = Update {
            rate: 1e-2 * (step as f64 / 3.0).min(1.0),
            clip: Some(Clip { norm: &norm, max_norm: 1.0 }),
            ema: Some(ema),
        };
        adamw.step(train_step.params_mut(), update).unwrap();
    }
}

fn fresh() -> (TrainStep, AdamW, Ema) {
    let all = BlockSelection::all(&config());
    let train_step = TrainStep::for_adapter(network(1), adapter(&all), TrainOptions::default()).unwrap();
    let adamw = AdamW::new(AdamWConfig::default(), train_step.params()).unwrap();
    let ema = Ema::new(0.9, train_step.params()).unwrap();
    (train_step, adamw, ema)
}

#[test]
fn a_run_resumed_through_files_is_bit_identical() {
    let (mut train_step, mut adamw, mut ema) = fresh();
    train(&mut train_step, &mut adamw, &mut ema, 1..=3);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let keep = |name: &str, tensors: TensorMap| {
        crate::weights::save(&file(name), &tensors, &crate::weights::published_strings()).unwrap();
    };
    keep("lora", train_step.params().values().unwrap());
    keep("moments", adamw.export(train_step.params()).unwrap());
    keep("ema", ema.export(train_step.params()).unwrap());
    train(&mut train_step, &mut adamw, &mut ema, 4..=6);

    let (mut resumed, mut adamw_resumed, mut ema_resumed) = fresh();
    let load = |name: &str| crate::weights::TensorFile::open(&file(name)).unwrap().all().unwrap();
    resumed.params_mut().load_values(&load("lora"), "lora").unwrap();
    adamw_resumed.import(resumed.params(), &load("moments"), 3, "moments").unwrap();
    ema_resumed.import(resumed.params(), &load("ema"), "ema").unwrap();
    train(&mut resumed, &mut adamw_resumed, &mut ema_resumed, 4..=6);

    let bytes = |tensors: TensorMap| crate::weights::to_bytes(&tensors, &Default::default()).unwrap();
    assert_eq!(bytes(train_step.params().values().unwrap()), bytes(resumed.params().values().unwrap()));
    assert_eq!(
        bytes(ema.export(train_step.params()).unwrap()),
        bytes(ema_resumed.export(resumed.params()).unwrap())
    );
    assert_eq!(adamw.steps(), adamw_resumed.steps());
}

#[test]
fn a_state_that_does_not_fit_is_listed_and_changes_nothing() {
    let (mut train_step, mut adamw, _) = fresh();
    let before = train_step.params().values().unwrap();
    let mut wrong = train_step.params().values().unwrap();
    let (first, _) = wrong.pop_first().unwrap();
    wrong.insert("double_blocks.9.extra".to_owned(), Tensor::from(1.0f32));
    for tensor in wrong.values_mut() {
        drop(tensor.fill_(7.0));
    }
    let text = train_step.params_mut().load_values(&wrong, "state.safetensors").unwrap_err().to_string();
    for part in ["state.safetensors", first.as_str(), "is missing", "double_blocks.9.extra is unexpected"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(train_step.params().values().unwrap(), before);
    let mut moments = adamw.export(train_step.params()).unwrap();
    moments.pop_last();
    assert!(adamw.import(train_step.params(), &moments, 4, "moments").is_err());
    assert_eq!(adamw.steps(), 0);
}

#[test]
fn one_batch_is_learned_by_heart() {
    let mut train_step = TrainStep::for_all_weights(
        Flux::init(&config(), 2, Kind::Float, Device::Cpu).unwrap(),
        TrainOptions::default(),
    )
    .unwrap();
    let mut adamw = AdamW::new(AdamWConfig::default(), train_step.params()).unwrap();
    let mut losses = Vec::new();
    for _ in 0..150 {
        let outcome = train_step.gradients(&[batch(&[1, 2], 4, 4, 1.0)], None).unwrap().remove(0);
        losses.push(outcome.loss.double_value(&[]));
        let norm = train_step.params().grad_norm().unwrap();
        let clip = Some(Clip { norm: &norm, max_norm: 1.0 });
        adamw.step(train_step.params_mut(), Update { clip, ..Update::at(3e-3) }).unwrap();
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.2 * first, "{first} to {last}");
}

#[test]
fn bfloat16_bases_train_a_float32_adapter() {
    let all = BlockSelection::all(&config());
    let weights = network(1).tensors();
    let base = Flux::from_tensors(&config(), weights, "test", Kind::BFloat16, Device::Cpu).unwrap();
    let options = TrainOptions { time_kind: Kind::BFloat16, ..TrainOptions::default() };
    let mut train_step = TrainStep::for_adapter(base, adapter(&all), options).unwrap();
    train_step.gradients(&[batch(&[1, 2], 4, 4, 1.0)], None).unwrap();
    let mut float = TrainStep::for_adapter(network(1), adapter(&all), TrainOptions::default()).unwrap();
    float.gradients(&[batch(&[1, 2], 4, 4, 1.0)], None).unwrap();
    let (ours, exact) = (train_step.params().grads().unwrap(), float.params().grads().unwrap());
    let dot = |a: &TensorMap, b: &TensorMap| {
        a.iter().map(|(n, t)| (t * &b[n]).sum(Kind::Double).double_value(&[])).sum::<f64>()
    };
    let cosine = dot(&ours, &exact) / (dot(&ours, &ours) * dot(&exact, &exact)).sqrt();
    assert!(cosine > 0.95, "{cosine}");
    assert!(ours.values().all(|grad| grad.kind() == Kind::Float));
}

#[test]
fn misshapen_batches_are_errors_that_name_the_input() {
    let all = BlockSelection::all(&config());
    let mut train_step = TrainStep::for_adapter(network(1), adapter(&all), TrainOptions::default()).unwrap();
    let good = || batch(&[1, 2], 4, 4, 1.0);
    let cases = [
        ("noise", MicroBatch { noise: Tensor::zeros([2, 3, 16], (Kind::Float, Device::Cpu)), ..good() }),
        ("times", MicroBatch { times: Tensor::from_slice(&[0.5f32]), ..good() }),
        ("latent", MicroBatch { latents: Tensor::zeros([2, 4, 3, 4], (Kind::Float, Device::Cpu)), ..good() }),
        ("txt", MicroBatch { txt: Tensor::zeros([2, 3, 9], (Kind::Float, Device::Cpu)), ..good() }),
        ("vec", MicroBatch { vec: Tensor::zeros([1, 6], (Kind::Float, Device::Cpu)), ..good() }),
        (
            "ref0",
            MicroBatch { refs: vec![Tensor::zeros([1, 4, 4, 2], (Kind::Float, Device::Cpu))], ..good() },
        ),
    ];
    for (expected, micro) in cases {
        let text = train_step.gradients(&[micro], None).unwrap_err().to_string();
        assert!(text.contains(expected), "{expected}: {text}");
    }
    train_step.gradients(&[good()], None).unwrap();
    let none = BlockSelection { double: BTreeSet::new(), single: BTreeSet::new() };
    let empty = LoraAdapter::init(&config(), 3, &none, 0, Kind::Float, Device::Cpu).unwrap();
    assert!(TrainStep::for_adapter(network(1), empty, TrainOptions::default()).is_err());
}
