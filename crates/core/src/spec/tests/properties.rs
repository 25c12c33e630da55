//! What holds for every spec, and for every string of bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::spec::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?".prop_filter("reserved", |name| name != "none")
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z./_-]{1,12}", "[ -~]{1,12}", "\\PC{1,12}", Just("null".to_owned()), Just("~".to_owned())]
        .prop_filter("control", |text| !text.chars().any(char::is_control))
}

fn share(range: std::ops::Range<u32>) -> impl Strategy<Value = f64> {
    prop_oneof![
        (range.clone(), 1..1000u32).prop_map(|(a, b)| f64::from(a) / f64::from(b.max(a + 1))),
        Just(0.1),
        Just(0.3e-7)
    ]
}

fn source() -> impl Strategy<Value = DataSource> {
    let compose = (text(), proptest::option::of(text()), 1..64u32, share(1..500), 2..9u32).prop_map(
        |(subjects, photos, panel, name_share, held)| {
            let layout = ComposeLayout::Single;
            DataSource::Compose(ComposeSpec {
                subjects,
                photos,
                layout,
                panel: 16 * panel,
                name_share,
                hold_out: if held > 1 { vec!["a fox".to_owned(), "\"b: #1".to_owned()] } else { Vec::new() },
                hold_out_one_in: held,
            })
        },
    );
    let import = (text(), share(0..900), 1..64u32).prop_map(|(path, score, size)| {
        DataSource::Import(ImportSpec {
            path,
            format: [ImportFormat::Webdataset, ImportFormat::Uno1m, ImportFormat::UnoTrain]
                [size as usize % 3],
            min_score: 4.0 * score,
            score_disagreement: [
                ScoreDisagreement::Recompute,
                ScoreDisagreement::Trust,
                ScoreDisagreement::Reject,
            ][size as usize % 3],
            score_invalid: [ScoreInvalid::Reject, ScoreInvalid::Ignore][size as usize % 2],
            directions: [Directions::Forward, Directions::Both][size as usize % 2],
            orientation: [Orientation::Upright, Orientation::AsStored][size as usize % 2],
            resolution: 16 * size,
        })
    });
    // One reference or two, as `stage_spec` then has it; they name a stage that `job_spec` puts there.
    let draw = (1..900u32, share(1..900), share(1..900), 1..900u32)
        .prop_map(|(steps, guidance, cfg, batch)| DrawSpec {
            steps,
            guidance: 90.0 * guidance,
            true_cfg: 1.0 + 90.0 * cfg,
            batch,
        })
        .boxed();
    let generate = (proptest::option::of(text()), share(1..500), 1..64u32, draw.clone(), 0..3usize).prop_map(
        |(subjects, name_share, panel, draw, pick)| {
            let panels = [PanelArrangement::SideBySide, PanelArrangement::Stacked, PanelArrangement::Both];
            DataSource::Generate(GenerateSpec {
                subjects,
                hold_out: Vec::new(),
                hold_out_one_in: 12,
                name_share,
                companions: 1.0 - name_share,
                panel: 16 * panel,
                panels: panels[pick],
                shapes: if pick == 0 { PanelShapes::All } else { PanelShapes::Square },
                draw,
            })
        },
    );
    let crop = (proptest::option::of(text()), text(), share(1..500), 1..64u32)
        .prop_map(|(subjects, detector, part, panel)| CropSpec {
            from: String::new(),
            photos: subjects.clone(),
            subjects,
            hold_out: vec!["fox".to_owned()],
            hold_out_one_in: 3,
            name_share: part,
            panel: 16 * panel,
            detector: Some(detector),
            detector_min: part,
            box_share: (part, 1.0),
            box_overlap: part,
        })
        .boxed();
    let recompose =
        (crop.clone(), draw).prop_map(|(crop, draw)| DataSource::Recompose(RecomposeSpec { crop, draw }));
    let log = Just(DataSource::Log(LogSpec { from: "uno-7f3kq2/stage-1".to_owned() }));
    prop_oneof![compose, import, generate, recompose, crop.prop_map(DataSource::Crop), log]
}

fn endpoint() -> impl Strategy<Value = EndpointSpec> {
    (name(), text(), proptest::option::of(name()), 1..200u32, share(1..900), proptest::option::of(1..900u32))
        .prop_map(|(path, model, key, count, price, limit)| EndpointSpec {
            name: String::new(),
            url: format!("https://host/{path}"),
            model,
            key,
            concurrency: count,
            requests_per_minute: count * 60,
            tokens_per_minute: u64::from(count) * 10_000,
            timeout_seconds: 600.0 * price,
            tries: 1 + count % 9,
            max_tokens: 16 + count,
            input_price: price,
            output_price: 4.0 * price,
            spend_limit: limit.map(f64::from),
        })
}

/// `endpoint` is the name of one that the job has, if it has any.
fn judge() -> impl Strategy<Value = JudgeFilter> {
    let endpoint = (0..5u32, 16..2000u32).prop_map(|(retries, image_side)| JudgeKind::Endpoint {
        endpoint: "e0".into(),
        retries,
        image_side,
    });
    let clip = (text(), text(), share(1..900)).prop_map(|(weights, tokenizer, low)| JudgeKind::Clip {
        weights,
        tokenizer,
        likeness: (-low, low),
        agreement: (0.0, low),
    });
    (share(1..900), prop_oneof![endpoint, clip]).prop_map(|(min, kind)| JudgeFilter { min: 4.0 * min, kind })
}

fn prompts() -> impl Strategy<Value = PromptSpec> {
    let subjects = prop_oneof![
        text().prop_map(SubjectList::File),
        proptest::collection::vec(text(), 1..4).prop_map(SubjectList::List)
    ];
    (proptest::option::of(text()), proptest::option::of(subjects), 1..8usize, 1..64u32, any::<bool>())
        .prop_map(|(taxonomy, subjects, styles, count, asks)| PromptSpec {
            taxonomy: taxonomy.filter(|_| subjects.is_none()),
            subjects,
            styles: PromptStyle::ALL
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| styles >> bit & 1 == 1)
                .map(|(_, style)| style)
                .collect(),
            subjects_per_category: count,
            scenes_per_subject: 1 + count.min(63),
            endpoint: asks.then(|| "e0".to_owned()),
        })
}

fn stage_spec(gpus: u32) -> impl Strategy<Value = StageSpec> {
    let similarity =
        (share(1..500), text()).prop_map(|(min, encoder)| SimilarityFilter { min: -min, max: min, encoder });
    let asked = (proptest::option::of(judge()), proptest::option::of(prompts()));
    let data = (source(), 1..1_000_000u64, 0..100u64, 1..600u32, proptest::option::of(similarity), asked);
    let train = (
        1..9000u64,
        1..5u32,
        share(1..900),
        0..300u64,
        share(0..900),
        proptest::option::of(share(1..900)),
        1..64u32,
    );
    (0..5usize, 1..9u32, data, train).prop_map(move |(positions, references, data, train)| {
        let (source, pairs, less, unit_size, similarity, (judge, prompts)) = data;
        let (steps, share, rate, warmup_steps, part, ema_decay, size) = train;
        let all =
            [Positions::Diagonal, Positions::Height, Positions::Width, Positions::None, Positions::Frame];
        StageSpec {
            name: String::new(),
            references: references.min(8),
            positions: all[positions],
            position_scale: f64::from(size) / 4.0,
            init_from: None,
            data: DataSpec {
                source,
                pairs,
                min_pairs: pairs.saturating_sub(less).max(1),
                // A stage has no more units than the spec may ask for.
                unit_size: unit_size.max(u32::try_from(pairs.div_ceil(1_000_000)).unwrap_or(u32::MAX)),
                prompts,
                filter: FilterSpec { similarity, judge },
            },
            train: TrainSpec {
                adapter: AdapterSpec::Lora { rank: 16 },
                steps,
                global_batch: gpus * share,
                micro_batch: share,
                learning_rate: rate,
                warmup_steps,
                learning_rate_decay: [Decay::None, Decay::Linear, Decay::Cosine][positions % 3],
                betas: (part, 0.999),
                eps: rate,
                weight_decay: part,
                max_grad_norm: 3.0 * rate,
                max_skipped_steps: positions as u32,
                text_dropout: part,
                guidance: 7.0 * part,
                timesteps: if positions == 0 {
                    TimestepSampling::Uniform
                } else {
                    TimestepSampling::LogitNormal
                },
                ema_decay,
                resolution: 16 * size,
                on_starvation: [OnStarvation::Wait, OnStarvation::Repeat, OnStarvation::Stop][positions % 3],
            },
        }
    })
}

/// Gives fields that mean nothing here what they have if nobody gives them.
fn settle(data: &mut DataSpec) {
    match &mut data.source {
        DataSource::Import(import) => {
            let ImportSpec { format, min_score, score_disagreement, score_invalid, directions, .. } = import;
            if *format == ImportFormat::Webdataset {
                data.unit_size = u32::try_from(data.pairs.min(256)).expect("at most 256");
            }
            if *format != ImportFormat::Uno1m {
                *min_score = 4.0;
                *score_disagreement = ScoreDisagreement::Recompute;
                *score_invalid = ScoreInvalid::Reject;
                *directions = Directions::Forward;
            }
        }
        DataSource::Generate(generate) if generate.subjects.is_none() => generate.hold_out_one_in = 0,
        DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => match crop.subjects {
            None => {
                (crop.photos, crop.hold_out_one_in, crop.name_share) = (None, 0, 1.0);
                crop.hold_out.clear();
            }
            Some(_) => (crop.detector, crop.detector_min) = (None, 0.2),
        },
        DataSource::Log(_) => {
            data.unit_size = u32::try_from(data.pairs.min(256)).expect("at most 256");
            data.filter = FilterSpec { similarity: None, judge: None };
        }
        DataSource::Generate(_) | DataSource::Compose(_) => {}
    }
    if matches!(data.source, DataSource::Crop(_)) {
        data.filter.similarity = None;
    }
}

fn plain_import() -> DataSource {
    DataSource::Import(ImportSpec {
        path: "p".to_owned(),
        format: ImportFormat::Webdataset,
        min_score: 4.0,
        score_disagreement: ScoreDisagreement::Recompute,
        score_invalid: ScoreInvalid::Reject,
        directions: Directions::Forward,
        orientation: Orientation::Upright,
        resolution: 32,
    })
}

const DEVICES: [DeviceChoice; 3] = [DeviceChoice::Auto, DeviceChoice::Cuda, DeviceChoice::Cpu];

fn resources(gpus: u32, pick: usize) -> Resources {
    let modes = [TopologyMode::Prefer, TopologyMode::Require];
    let topology =
        modes.get(pick).map(|mode| Topology { label: "topology.example.com/rack".into(), mode: *mode });
    let (device, node_labels) = (DEVICES[pick], labels(pick));
    Resources {
        gpus,
        min_gpus: 1,
        device,
        device_memory_gb: (pick == 1).then_some(gpus),
        node_labels,
        topology,
    }
}

/// So many labels; what looks like another type in YAML stays text.
fn labels(count: usize) -> BTreeMap<String, String> {
    let all = [("team", "vision"), ("v1.0", "007"), ("null", "true")];
    all.into_iter().take(count).map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
}

fn sizes(heads: u32) -> NetworkSizes {
    NetworkSizes {
        hidden_size: 256 * heads,
        num_heads: 4 * heads,
        axes: AxisSizes { frame: 16, row: 24, column: 24 },
        depth: heads,
        depth_single_blocks: 0,
    }
}

fn samples(every: u64, times: usize, references: u32) -> SamplesSpec {
    let prompt = |prompt: &str, references: u32| SamplePrompt {
        prompt: prompt.to_owned(),
        references: (0..references).map(|n| format!("pictures/{n}.png")).collect(),
    };
    SamplesSpec {
        every: every * 1000 * times as u64,
        prompts: vec![prompt("a cup: \"blue\"", references), prompt("- none", 0)],
        held_out: 0,
        pictures: times as u32,
        seed: u64::MAX,
        resolution: (times == 2).then_some(64),
        draw: DrawSpec { steps: 4, guidance: 0.1, true_cfg: 2.5, batch: 3 },
        weights: SampledWeights::Trained,
        validation_pairs: 0,
    }
}

/// Gives a stage what its source asks for; `before` is the one before it.
fn fit(stage: &mut StageSpec, before: Option<&StageSpec>) {
    match &mut stage.data.source {
        DataSource::Generate(generate) => {
            stage.references = 1;
            let from_library = stage.data.prompts.is_none();
            generate.subjects = from_library.then(|| "lib".to_owned());
        }
        DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => {
            stage.references = stage.references.max(2);
            match before {
                Some(before) => crop.from = before.name.clone(),
                // The first stage has none to take from.
                None => stage.data.source = plain_import(),
            }
        }
        DataSource::Import(import) if import.format == ImportFormat::Uno1m => stage.references = 1,
        DataSource::Compose(_) | DataSource::Import(_) | DataSource::Log(_) => {}
    }
    if !matches!(stage.data.source, DataSource::Generate(_)) {
        stage.data.prompts = None;
    }
    settle(&mut stage.data);
}

fn job_spec() -> impl Strategy<Value = JobSpec> {
    (1..9u32)
        .prop_flat_map(|gpus| {
            let stages = proptest::collection::vec((stage_spec(gpus), any::<bool>()), 1..4);
            let endpoints = proptest::collection::vec(endpoint(), 1..3);
            (
                (name(), name(), (text(), proptest::option::of(text()))),
                -1000..=1000i32,
                any::<u64>(),
                stages,
                Just(gpus),
                1..5000u64,
                endpoints,
            )
        })
        .prop_map(
            |((name, tenant, (weights, encoders)), priority, seed, stages, gpus, every, mut endpoints)| {
                for (index, endpoint) in endpoints.iter_mut().enumerate() {
                    endpoint.name = format!("e{index}");
                }
                let mut named: Vec<StageSpec> = Vec::new();
                for (index, (mut stage, from_base)) in stages.into_iter().enumerate() {
                    fit(&mut stage, named.last());
                    stage.name = format!("s{index}-{name}").chars().take(10).collect::<String>() + "x";
                    stage.init_from = named
                        .first()
                        .filter(|_| !from_base)
                        .map(|first| StartSpec { checkpoint: first.name.clone(), optimizer: index % 2 == 0 });
                    named.push(stage);
                }
                let presets = [ModelPreset::FluxDev, ModelPreset::FluxSchnell, ModelPreset::Nano];
                let precisions = [Precision::Auto, Precision::Fp8, Precision::Bf16];
                let pick = usize::try_from(seed % 3).expect("less than 3");
                let most = named.iter().map(|stage| stage.references).max().unwrap_or_default();
                let samples = (pick > 0).then(|| samples(every, pick, most.min(2)));
                JobSpec {
                    name,
                    tenant,
                    model: ModelSpec {
                        preset: presets[pick],
                        sizes: (pick == 1).then(|| sizes(gpus)),
                        weights: Some(weights),
                        encoders,
                        precision: precisions[pick],
                    },
                    resources: resources(gpus, pick),
                    labels: labels(pick),
                    time_limit_minutes: (pick == 1).then_some(gpus),
                    queue: (priority % 2 == 0).then(|| "research".to_owned()),
                    priority,
                    seed,
                    reproducible: if pick == 2 { Reproducible::Strict } else { Reproducible::Lenient },
                    endpoints,
                    stages: named,
                    checkpoints: CheckpointPolicy { every, keep_last: 1 },
                    samples,
                }
            },
        )
}

proptest! {
    #[test]
    fn default_pairs_are_what_the_steps_take(
        references in 0..9u32,
        steps in 1..20_000u64,
        global_batch in 1..128u32,
    ) {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: x}}\nspec:\n  model: {{preset: nano, weights: w}}\n  stages:\n    \
             - references: {references}\n      data: {{source: compose, subjects: lib, nameShare: 0, holdOutOneIn: 5}}\n      \
             train: {{steps: {steps}, globalBatch: {global_batch}}}\n"
        );
        let parsed = read(yaml.as_bytes(), None).expect("the spec is right");
        let StageSpec { data, train, .. } = &parsed.spec.stages[0];
        let (samples, published) = (steps * u64::from(global_batch), if references >= 2 { 15_000 } else { 230_000 });
        let epochs = samples.div_ceil(data.pairs);
        if data.pairs < published {
            // Each position of the log is trained exactly once.
            prop_assert_eq!((data.pairs, epochs), (samples, 1));
        } else {
            prop_assert_eq!(data.pairs, published);
            prop_assert!(samples >= 80_000.min(published));
        }
        prop_assert!(data.min_pairs <= data.pairs && u64::from(data.unit_size) <= data.pairs);
        prop_assert!(data.min_pairs >= u64::from(global_batch) && train.warmup_steps <= steps / 10);
        let about = |name: &str| parsed.warnings.iter().any(|warning| warning.path.ends_with(name));
        prop_assert!(!["pairs", "minPairs", "unitSize", "warmupSteps"].into_iter().any(about), "{:?}", parsed.warnings);
    }

    #[test]
    fn what_is_written_reads_back(spec in job_spec()) {
        let yaml = to_yaml(&spec);
        let back = parse(yaml.as_bytes());
        prop_assert_eq!(back.as_ref(), Ok(&spec), "{}", yaml);
        // And so does the form that nodes receive.
        let json = serde_json::to_vec(&spec).unwrap();
        prop_assert_eq!(serde_json::from_slice::<JobSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_yaml_like_text_is_read_without_a_panic(text in "[-:?,\\[\\]{}#&*!|>'\"%@` \n\ta-c0-9é.]{0,120}") {
        let _ = parse(text.as_bytes());
    }

    #[test]
    fn a_mutated_spec_is_read_without_a_panic(
        spec in job_spec(),
        cuts in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut yaml = to_yaml(&spec).into_bytes();
        for (at, byte, what) in cuts {
            if yaml.is_empty() {
                break;
            }
            let at = at.index(yaml.len());
            match what {
                0 => yaml[at] = byte,
                1 => yaml.insert(at, byte),
                2 => { yaml.remove(at); }
                _ => yaml.truncate(at.max(1)),
            }
        }
        if let Err(problems) = parse(&yaml) {
            prop_assert!(!problems.is_empty());
        }
    }
}
