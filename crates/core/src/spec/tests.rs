mod properties;
mod warnings;

use std::fmt::Write as _;

use super::field::{Default, Kind};
use super::*;

/// Name, model and data: the smallest spec.
const SMALLEST: &str = "\
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno}
spec:
  model: {preset: flux-dev, weights: flux1-dev.safetensors}
  stages:
    - data: {source: import, path: uno-1m}
";

/// Sets or replaces one field, in YAML flow style; the fields of `stage` belong to the first stage.
fn spec(metadata: &str, job: &str, stage: &str) -> String {
    format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno{metadata}}}\nspec:\n  {job}\n  stages:\n    - {stage}\n"
    )
}

const MODEL: &str = "model: {preset: nano, weights: base.safetensors}";
const DATA: &str = "data: {source: compose, subjects: lib}";

fn problems(yaml: &str) -> Vec<Problem> {
    parse(yaml.as_bytes()).err().unwrap_or_default()
}

/// `path: message` of each problem.
fn messages(yaml: &str) -> Vec<String> {
    problems(yaml).into_iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect()
}

#[track_caller]
fn assert_only(yaml: &str, expected: &str) {
    assert_eq!(messages(yaml), [expected], "for the spec\n{yaml}");
}

#[test]
fn defaults_are_the_published_recipe() {
    let spec = parse(SMALLEST.as_bytes()).unwrap();
    assert_eq!((spec.name.as_str(), spec.tenant.as_str()), ("uno", "default"));
    let resources = (spec.resources.gpus, spec.resources.min_gpus, spec.resources.device);
    assert_eq!(resources, (8, 8, DeviceChoice::Auto));
    assert_eq!(spec.checkpoints, CheckpointPolicy { every: 1000, keep_last: 3 });
    let stage = &spec.stages[0];
    assert_eq!((stage.name.as_str(), stage.references, stage.positions), ("stage-1", 1, Positions::Diagonal));
    assert_eq!(stage.init_from, None);
    assert_eq!((stage.data.pairs, stage.data.min_pairs, stage.data.unit_size), (230_000, 256, 256));
    let DataSource::Import(import) = &stage.data.source else { panic!("{:?}", stage.data.source) };
    assert_eq!((import.format, import.min_score, import.resolution), (ImportFormat::Uno1m, 4.0, 512));
    let train = &stage.train;
    assert_eq!(train.adapter, AdapterSpec::Lora { rank: 512 });
    assert_eq!((train.steps, train.global_batch, train.micro_batch), (5000, 16, 1));
    assert_eq!((train.learning_rate, train.warmup_steps, train.betas), (1e-5, 100, (0.9, 0.999)));
    assert_eq!((train.eps, train.weight_decay, train.max_grad_norm), (1e-8, 0.01, 1.0));
    assert_eq!((train.text_dropout, train.guidance, train.resolution), (0.1, 1.0, 512));
    assert_eq!((train.timesteps, train.on_starvation), (TimestepSampling::Uniform, OnStarvation::Wait));
    assert_eq!((train.ema_decay, train.max_skipped_steps), (None, 10));
    // As it was stored before steps were skipped, and as it is stored where it says nothing else.
    let stored = serde_json::to_value(train).unwrap();
    assert_eq!(stored.get("maxSkippedSteps"), None);
    assert_eq!(&serde_json::from_value::<TrainSpec>(stored).unwrap(), train);
    let other = TrainSpec { max_skipped_steps: 3, ..train.clone() };
    assert_eq!(serde_json::to_value(other).unwrap().get("maxSkippedSteps"), Some(&3.into()));
}

#[test]
fn subjects_are_held_out_by_name() {
    let with = |data: &str| spec("", MODEL, &format!("{{data: {{source: compose, subjects: lib, {data}}}}}"));
    let held_out = |data: &str| {
        let spec = parse(with(data).as_bytes()).unwrap();
        spec.stages[0].data.source.library().unwrap().hold_out.to_vec()
    };
    assert_eq!(held_out("panel: 32"), [""; 0]);
    assert_eq!(held_out("holdOut: red fox"), ["red fox"]);
    assert_eq!(held_out("holdOut: [red fox, mug]"), ["red fox", "mug"]);
    assert_only(
        &with("holdOut: []"),
        "spec.stages[0].data.holdOut: expected text on one line, 1 to 1024 characters, or a list of 1 to 4096 such texts",
    );
}

#[test]
fn later_stages_follow_the_one_before() {
    let yaml = spec("", MODEL, &format!("{DATA}\n    - {DATA}\n    - {{initFrom: none, {DATA}}}"));
    let spec = parse(yaml.as_bytes()).unwrap();
    let starts: Vec<_> = spec.stages.iter().map(|stage| stage.starts_from()).collect();
    assert_eq!(starts, [None, Some("stage-1"), None]);
    assert_eq!(spec.stages[1].references, 2);
    assert_eq!(spec.stages[1].data.pairs, 15_000);
}

#[test]
fn nano_takes_its_sizes_from_the_panel() {
    let job = format!("{MODEL}\n  resources: {{gpus: 2}}");
    let spec =
        parse(spec("", &job, "{data: {source: compose, subjects: lib, panel: 48}}").as_bytes()).unwrap();
    let train = &spec.stages[0].train;
    assert_eq!((train.resolution, train.micro_batch), (48, 8));
    assert_eq!(train.adapter, AdapterSpec::Lora { rank: 64 });
    assert_eq!(spec.resources.min_gpus, 2);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let yaml = "\
apiVersion: crescendo/v2
kind: TrainingJob
metadata: {nmae: uno}
spec:
  model: {preset: nani, weights: a.safetensors}
  stages:
    - data: {source: compose, subject: s, steps: 4}
    - data: {source: import, subjects: [s], path: x}
      train: {steps: -1, learningRate: fast, globalBatch: 7}
    - data: {source: diptych}
";
    let found = problems(yaml).iter().fold(String::new(), |mut text, problem| {
        let _ = writeln!(text, "{problem}");
        text
    });
    assert_eq!(
        found,
        "\
line 1, column 13: apiVersion: expected `crescendo/v1`, found the text `crescendo/v2`
line 3, column 11: metadata.name: missing field `name`: 1 to 40 of a-z, 0-9 and -, beginning and ending with a letter or digit
line 3, column 12: metadata.nmae: unknown field `nmae`; did you mean `name`?
line 5, column 19: spec.model.preset: expected `flux-dev`, `flux-schnell` or `nano`, found the text `nani`; did you mean `nano`?
line 7, column 13: spec.stages[0].data.subjects: missing field `subjects`: text on one line, 1 to 1024 characters
line 7, column 31: spec.stages[0].data.subject: unknown field `subject`; did you mean `subjects`?
line 7, column 43: spec.stages[0].data.steps: unknown field `steps`; `steps` belongs in `spec.stages[].data.draw`
line 8, column 7: spec.stages[1].references: UNO-1M has one reference a pair, the stage wants 2
line 8, column 30: spec.stages[1].data.subjects: goes with `source: compose` or `generate` or `recompose` or `crop`, but this is `source: import`
line 9, column 22: spec.stages[1].train.steps: -1 is out of range: a whole number from 1 to 10000000
line 9, column 40: spec.stages[1].train.learningRate: expected a number, more than 0 and at most 1, found the text `fast`
line 10, column 22: spec.stages[2].data.source: expected `compose`, `import`, `generate`, `recompose`, `crop` or `log`, found the text `diptych`
"
    );
}

#[test]
fn files_that_are_no_spec() {
    assert_eq!(messages("").len(), 1);
    assert_only("", ": expected a section of fields (`name: value` lines), found nothing");
    assert_only("[1, 2]", ": expected a section of fields (`name: value` lines), found a list of 2");
    assert_eq!(messages("{}").len(), 4, "each missing part is named");
    let utf8 = parse(b"metadata:\n  na\xffme: x").unwrap_err();
    assert_eq!((utf8[0].line, utf8[0].column, utf8[0].message.as_str()), (2, 5, "byte 14 is not UTF-8"));
    let huge = parse(&vec![b'#'; MAX_SPEC_BYTES + 1]).unwrap_err();
    assert_eq!(
        huge[0].message,
        format!("the spec has {} bytes; at most {MAX_SPEC_BYTES} are read", MAX_SPEC_BYTES + 1)
    );
}

#[test]
fn yaml_that_cannot_be_read() {
    let syntax = problems("metadata:\n  name: [a, b\nspec: {}\n");
    assert!(syntax[0].message.starts_with("YAML syntax: ") && syntax[0].line > 0, "{syntax:?}");
    let two = problems("a: 1\n---\nb: 2\n");
    assert_eq!(
        (two[0].line, two[0].message.as_str()),
        (2, "a second document begins here; a spec is one document")
    );
    for deep in ["[".repeat(200), "- ".repeat(200), "{a: ".repeat(200)] {
        assert!(messages(&deep)[0].contains("nested more than 32 deep"), "{:?}", messages(&deep));
    }
    let many = format!("a: [{}]", "1, ".repeat(MAX_NODES));
    assert_only(&many, ": more than 10000 values");
}

#[test]
fn anchors_and_tags_are_refused() {
    let yaml = SMALLEST.replace("{name: uno}", "&me {name: uno}");
    assert_only(&yaml, ": anchors (`&name`) are not supported; write the value out");
    let yaml = SMALLEST.replace("{name: uno}", "&me {name: uno, tenant: *me}");
    assert!(
        messages(&yaml).iter().any(|message| message.contains("aliases (`*name`)")),
        "{:?}",
        messages(&yaml)
    );
    let yaml = SMALLEST.replace("name: uno", "name: !!str uno");
    assert_only(&yaml, ": tags (`!name`) are not supported");
}

#[test]
fn a_field_given_twice() {
    let yaml = SMALLEST.replace("kind: TrainingJob", "kind: TrainingJob\nkind: TrainingJob");
    let found = problems(&yaml);
    assert_eq!(found[0].to_string(), "line 3, column 1: `kind` is given twice; first in line 2");
    assert_eq!(found.len(), 1);
}

#[test]
fn wrong_types_say_what_was_found() {
    let stage = |train: &str| spec("", MODEL, &format!("{{train: {{{train}}}, {DATA}}}"));
    let path = "spec.stages[0].train";
    let whole = "a whole number from 1 to 10000000";
    assert_only(&stage("steps: [1]"), &format!("{path}.steps: expected {whole}, found a list of 1"));
    assert_only(&stage("steps: '5'"), &format!("{path}.steps: expected {whole}, found the text `5`"));
    assert_only(&stage("steps: 1.5"), &format!("{path}.steps: expected {whole}, found the number 1.5"));
    assert_only(&stage("steps: {}"), &format!("{path}.steps: expected {whole}, found a section of fields"));
    assert_only(
        &stage("betas: [0.9]"),
        &format!("{path}.betas: expected a list of two numbers, each from 0 and less than 1"),
    );
    assert_only(
        &stage("eps: 0"),
        &format!("{path}.eps: 0 is out of range: a number, more than 0 and at most 1"),
    );
    assert_only(
        &stage("adapter: lora"),
        &format!("{path}.adapter: expected `none`, or a section of fields, found the text `lora`"),
    );
    assert_only(
        &spec(", tenant: Big Corp", MODEL, &format!("{{{DATA}}}")),
        "metadata.tenant: `Big Corp` is not a name: 1 to 40 of a-z, 0-9 and -, beginning and ending with a letter or digit",
    );
    assert_only(
        &spec("", MODEL, "{data: {source: compose, subjects: \"a\\u0000b\"}}"),
        "spec.stages[0].data.subjects: expected text on one line, 1 to 1024 characters, found 3 characters",
    );
    assert_only(
        &SMALLEST.replace("    - data: {source: import, path: uno-1m}", "    []"),
        "spec.stages: expected a list of 1 to 16 sections, found 0",
    );
}

#[test]
fn contradictions_are_found() {
    let job = |job: &str, stage: &str| spec("", job, &format!("{{{stage}}}"));
    let more = format!("{MODEL}\n  resources: {{gpus: 2, minGpus: 4}}");
    assert_only(&job(&more, DATA), "spec.resources.minGpus: minGpus 4 is more than gpus 2");
    let of_processors = format!("{MODEL}\n  resources: {{device: cpu, deviceMemoryGb: 80}}");
    assert_only(
        &job(&of_processors, DATA),
        "spec.resources.deviceMemoryGb: deviceMemoryGb is the memory of GPUs, and device cpu asks for none",
    );
    let none = format!("{MODEL}\n  resources: {{deviceMemoryGb: 0}}");
    assert_only(
        &job(&none, DATA),
        "spec.resources.deviceMemoryGb: 0 is out of range: a whole number from 1 to 10000",
    );
    let many = format!("{MODEL}\n  resources: {{gpus: 17}}");
    assert_only(
        &job(&many, DATA),
        "spec.stages[0].train.globalBatch: globalBatch 16 has no sample for each of gpus 17",
    );
    assert_only(
        &job(MODEL, &format!("train: {{microBatch: 32}}, {DATA}")),
        "spec.stages[0].train.microBatch: microBatch 32 is more than one rank's share: globalBatch 16 / gpus 1, rounded up, is 16",
    );
    assert_only(
        &job(MODEL, "data: {source: compose, subjects: lib, pairs: 10, minPairs: 11}"),
        "spec.stages[0].data.minPairs: minPairs 11 is more than pairs 10: training would never start",
    );
    assert_only(
        &job(MODEL, "data: {source: compose, subjects: lib, layout: mixed}"),
        "spec.stages[0].data.layout: layouts `diptych` and `mixed` go with `references: 0` only: they train the base",
    );
    assert_only(
        &job(MODEL, "data: {source: compose, subjects: lib, panel: 40}, train: {resolution: 32}"),
        "spec.stages[0].data.panel: 40 is not a multiple of 16",
    );
    assert_only(
        &job(MODEL, "references: 2, data: {source: import, path: p}"),
        "spec.stages[0].references: UNO-1M has one reference a pair, the stage wants 2",
    );
    assert_only(
        &job("model: {preset: nano}", DATA),
        "spec.stages[0].train.adapter: a LoRA needs base weights: set spec.model.weights, or `adapter: none` to train a base",
    );
    let filter = "filter: {similarity: {min: 0.9, max: 0.5, encoder: e}}";
    assert_only(
        &job(MODEL, &format!("data: {{source: compose, subjects: lib, {filter}}}")),
        "spec.stages[0].data.filter.similarity.min: min 0.9 is more than max 0.5: nothing would pass",
    );
    let filter = "filter: {similarity: {min: 0.5, encoder: e}}";
    assert_only(
        &job(MODEL, &format!("references: 0, data: {{source: compose, subjects: lib, {filter}}}")),
        "spec.stages[0].data.filter.similarity: similarity compares the target with its references, and the stage has none",
    );
}

#[test]
fn stages_that_cannot_follow_each_other() {
    let stages = |first: &str, second: &str| {
        spec("", MODEL, &format!("{{{first}, {DATA}}}\n    - {{{second}, {DATA}}}"))
    };
    assert_only(
        &stages("name: a", "name: a, initFrom: none"),
        "spec.stages[1].name: `a` is the name of stages[0] already",
    );
    assert_only(
        &stages("name: a, initFrom: b", "name: b"),
        "spec.stages[0].initFrom: `b` is a later stage; a stage starts from an earlier one",
    );
    assert_only(
        &stages("name: a", "name: b, initFrom: b"),
        "spec.stages[1].initFrom: `b` is this stage itself; a stage starts from an earlier one",
    );
    assert_only(
        &stages("name: a", "name: b, initFrom: c"),
        "spec.stages[1].initFrom: there is no stage `c`; possible here: a, none",
    );
    assert_only(
        &stages("name: none", "initFrom: none"),
        "spec.stages[0].name: `none` cannot be a stage's name: `initFrom: none` means the base",
    );
    assert_only(
        &stages("name: a", "train: {adapter: none}"),
        "spec.stages[1].train.adapter: the whole network cannot be trained on from `a`, which trains a LoRA",
    );
    assert_only(
        &stages("name: a", "train: {adapter: {rank: 8}}"),
        "spec.stages[1].train.adapter: rank 8 cannot start from `a`, which has rank 64",
    );
    assert_only(
        &stages("name: a, train: {adapter: none}", "name: b"),
        "spec.stages[1].train.adapter: a LoRA cannot start from `a`, which trains the whole network; set initFrom: none",
    );
}

const ENDPOINT: &str = "endpoints: [{name: vlm, url: 'https://host/v1', model: m}]";

#[test]
fn a_judge_and_prompts_take_the_published_numbers() {
    let stage = "data: {source: generate, prompts: {endpoint: vlm}, filter: {judge: {endpoint: vlm}}}";
    let job = parse(spec("", &format!("{MODEL}\n  {ENDPOINT}"), stage).as_bytes()).unwrap();
    let endpoint = &job.endpoints[0];
    assert_eq!((endpoint.key.as_deref(), endpoint.spend_limit, endpoint.tries), (None, None, 5));
    let judge = job.stages[0].data.filter.judge.as_ref().unwrap();
    assert_eq!(judge.min, 4.0);
    let prompts = job.stages[0].data.prompts.as_ref().unwrap();
    assert_eq!((prompts.subjects_per_category, prompts.scenes_per_subject), (50, 8));
    assert_eq!(prompts.styles, PromptStyle::ALL);

    let stage = "data: {source: generate, prompts: {subjects: [a fox, a red cup], styles: [realistic]}, filter: {judge: {kind: clip, weights: w, tokenizer: t}}}";
    let job = parse(spec("", MODEL, stage).as_bytes()).unwrap();
    assert_eq!(job.stages[0].data.filter.judge.as_ref().unwrap().min, 3.0);
    let prompts = job.stages[0].data.prompts.as_ref().unwrap();
    assert_eq!(prompts.subjects, Some(SubjectList::List(vec!["a fox".into(), "a red cup".into()])));
    assert_eq!(prompts.styles, [PromptStyle::Realistic]);
}

#[test]
fn what_names_no_endpoint_is_refused() {
    let stage = |rest: &str| format!("data: {{source: compose, subjects: lib, {rest}}}");
    let yaml = spec("", MODEL, &stage("filter: {judge: {endpoint: vlm}}"));
    assert_only(
        &yaml,
        "spec.stages[0].data.filter.judge.endpoint: spec.endpoints has no `vlm`; there are none",
    );
    let job = format!("{MODEL}\n  {ENDPOINT}");
    let drawn = |prompts: &str| format!("data: {{source: generate, prompts: {{{prompts}}}}}");
    let yaml = spec("", &job, &drawn("endpoint: llm"));
    assert_only(&yaml, "spec.stages[0].data.prompts.endpoint: spec.endpoints has no `llm`; there are: vlm");
    let yaml = spec("", &job, &format!("references: 0, {}", "x")).replace(
        "references: 0, x",
        "{references: 0, data: {source: compose, subjects: lib, filter: {judge: {endpoint: vlm}}}}",
    );
    assert_only(
        &yaml,
        "spec.stages[0].data.filter.judge: the judge compares the target with its references, and the stage has none",
    );
    let yaml =
        spec("", &job, &stage("filter: {judge: {kind: clip, weights: w, tokenizer: t, endpoint: vlm}}"));
    assert_only(
        &yaml,
        "spec.stages[0].data.filter.judge.endpoint: goes with `kind: endpoint`, but this is `kind: clip`",
    );
    let yaml = spec("", MODEL, &drawn("taxonomy: t.yaml, subjects: s.txt"));
    assert_only(
        &yaml,
        "spec.stages[0].data.prompts.subjects: subjects are taken as they are; give them or a taxonomy, not both",
    );
    let yaml = spec("", MODEL, &drawn("styles: [realistic, realistic]"));
    assert_only(
        &yaml,
        "spec.stages[0].data.prompts.styles: expected a list of some of `creative`, `realistic` or `text-decorated`, each once",
    );
}

#[test]
fn addresses_that_are_none_or_hold_a_password_are_refused() {
    for (url, reason) in [
        ("ftp://host", "must begin with https:// or http://"),
        ("https://", "names no host"),
        ("https:///v1", "names no host"),
        ("https://host/v1?x=1", "must be a plain address without `?`, `#`, `\\` and spaces"),
    ] {
        let job = format!("{MODEL}\n  endpoints: [{{name: vlm, url: '{url}', model: m}}]");
        assert_only(&spec("", &job, DATA), &format!("spec.endpoints[0].url: {reason}"));
    }
    let job = format!(
        "{MODEL}\n  endpoints: [{{name: a, url: 'http://h', model: m}}, {{name: a, url: 'http://h', model: m, spendLimit: 3}}]"
    );
    assert_eq!(
        messages(&spec("", &job, DATA)),
        [
            "spec.endpoints[1].name: `a` is the name of endpoints[0] already",
            "spec.endpoints[1].spendLimit: without prices nothing is spent: set inputPrice and outputPrice",
        ]
    );
}

#[test]
fn the_list_of_problems_is_bounded() {
    let yaml = format!("{SMALLEST}{}", (0..500).fold(String::new(), |text, n| text + &format!("x{n}: 1\n")));
    let found = problems(&yaml);
    assert_eq!(found.len(), MAX_PROBLEMS + 1);
    assert_eq!(found.last().unwrap().message, "and 400 more problems");
}

#[test]
fn the_table_is_sound() {
    for (index, field) in FIELDS.iter().enumerate() {
        let parent = fields::parent(field.path);
        assert!(
            parent.is_empty() || FIELDS[..index].iter().any(|other| other.path == parent),
            "{}",
            field.path
        );
        assert!(
            FIELDS[..index].iter().all(|other| other.path != field.path),
            "{} is there twice",
            field.path
        );
        match (field.kind, field.default) {
            (Kind::Whole { least, most }, Default::Whole(value)) => {
                assert!((least..=most).contains(&value))
            }
            (Kind::Number(range), Default::Number(value)) => {
                assert!(range.holds(value), "{}", field.path)
            }
            (Kind::Pair(range), Default::Pair(a, b)) => assert!(range.holds(a) && range.holds(b)),
            (Kind::Word(words), Default::Word(word)) => {
                assert!(words.contains(&word), "{}", field.path)
            }
            (Kind::Name, Default::Word(_)) => {}
            (_, Default::Required | Default::Absent | Default::From(_)) => {}
            (kind, default) => panic!("{}: {kind} cannot be {default}", field.path),
        }
    }
}

#[test]
fn every_field_of_the_table_is_read() {
    // Each field in turn gets a value that fits no field at all: whoever reads it complains of it by its path.
    for field in FIELDS {
        let path = field.path.replace("[]", "[0]");
        let yaml = with_nonsense(field);
        assert!(
            problems(&yaml).iter().any(|problem| problem.path.starts_with(&path)),
            "{path} is not read from\n{yaml}"
        );
    }
}

/// A spec whose field `field` is a list of nothing in a list.
fn with_nonsense(field: &Field) -> String {
    let mut root = serde_json::json!({
        "apiVersion": "crescendo/v1", "kind": "TrainingJob", "metadata": {"name": "uno"},
        "spec": {"model": {"preset": "nano"}, "endpoints": [{}], "samples": {"prompts": [{}]}, "stages": [{"data": {"source": "compose"}}]},
    });
    if let Some(kind) = field.only_with.strip_prefix("kind: ") {
        root["spec"]["stages"][0]["data"]["filter"] = serde_json::json!({"judge": {"kind": kind}});
    }
    if let Some(source) = field.only_with.strip_prefix("source: ") {
        root["spec"]["stages"][0]["data"]["source"] = source.split('|').next().unwrap_or_default().into();
    }
    let pointer = format!("/{}", field.path.replace("[]", ".0").replace('.', "/"));
    let mut at = &mut root;
    for part in pointer.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    *at = serde_json::json!([[]]);
    root.to_string()
}

#[test]
fn the_reference_follows_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/job-spec.md");
    let (begin, end) = ("<!-- fields -->\n", "<!-- end of fields -->");
    let text = std::fs::read_to_string(&path).expect("docs/job-spec.md is there");
    let (before, rest) = text.split_once(begin).expect("the reference has its begin mark");
    let (written, after) = rest.split_once(end).expect("the reference has its end mark");
    let expected = format!("\n{}", markdown_table());
    if written != expected && std::env::var_os("CRESCENDO_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}"))
            .expect("docs/job-spec.md can be written");
        return;
    }
    assert_eq!(written, expected, "run this test once with CRESCENDO_BLESS=1 to write the table anew");
}

#[test]
fn every_example_is_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("there are examples") {
        let path = entry.expect("the folder can be read").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let yaml = std::fs::read(&path).expect("the example can be read");
            parse(&yaml).unwrap_or_else(|problems| panic!("{}: {problems:#?}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} examples");
}

#[test]
fn sizes_of_a_network_have_to_fit_together() {
    let model = |sizes: &str| {
        spec("", &format!("model: {{preset: nano, weights: base.safetensors, sizes: {{{sizes}}}}}"), DATA)
    };
    let fits =
        "hiddenSize: 96, numHeads: 4, axes: {frame: 4, row: 10, column: 10}, depth: 1, depthSingleBlocks: 3";
    assert!(parse(model(fits).as_bytes()).is_ok());
    let cases = [
        ("numHeads: 4", "numHeads: 5", "spec.model.sizes.numHeads: numHeads 5 does not divide hiddenSize 96"),
        (
            "column: 10",
            "column: 8",
            "spec.model.sizes.axes: frame, row and column sum to 22; hiddenSize / numHeads is 24",
        ),
        (
            "row: 10, column: 10",
            "row: 9, column: 11",
            "spec.model.sizes.axes.row: 9 is odd: channels turn in pairs",
        ),
        ("depth: 1, ", "", "spec.model.sizes.depth: missing field `depth`: a whole number from 0 to 1024"),
        ("row: 10, ", "", "spec.model.sizes.axes.row: missing field `row`: a whole number from 2 to 4096"),
    ];
    for (from, to, expected) in cases {
        let found = messages(&model(&fits.replace(from, to)));
        assert_eq!(found.first().map(String::as_str), Some(expected), "{found:?}");
    }
}

#[test]
fn drawn_sources_take_their_defaults_from_the_preset() {
    let stages = "{data: {source: generate, subjects: lib}}
    - {references: 2, data: {source: recompose, detector: owl.safetensors}}
    - {references: 2, data: {source: crop, from: stage-1, subjects: lib}}";
    let nano = parse(spec("", MODEL, stages).as_bytes()).unwrap();
    let DataSource::Generate(generate) = &nano.stages[0].data.source else { panic!("{nano:?}") };
    assert_eq!(
        (generate.panel, generate.panels, generate.shapes),
        (32, PanelArrangement::SideBySide, PanelShapes::Square)
    );
    assert_eq!(generate.draw, DrawSpec { steps: 25, guidance: 4.0, true_cfg: 1.0, batch: 32 });
    assert_eq!(nano.stages[0].data.unit_size, 256);
    let recompose = &nano.stages[1].data.source;
    assert_eq!((recompose.drawn_by(), recompose.reads_log_of()), (Some("stage-1"), Some("stage-1")));
    let crop = &nano.stages[2].data.source;
    assert_eq!((crop.drawn_by(), crop.reads_log_of()), (None, None));
    assert_eq!(crop.crop().map(|crop| crop.box_share), Some((0.02, 0.5)));
    let flux = "model: {preset: flux-dev, weights: a/flux1-dev.safetensors}";
    let flux = parse(spec("", flux, "{data: {source: generate, subjects: lib}}").as_bytes()).unwrap();
    let DataSource::Generate(generate) = &flux.stages[0].data.source else { panic!("{flux:?}") };
    assert_eq!(
        (generate.panel, generate.panels, generate.shapes),
        (512, PanelArrangement::Both, PanelShapes::All)
    );
    assert_eq!((generate.draw.batch, flux.stages[0].data.unit_size), (4, 32));
}

#[test]
fn drawn_sources_that_cannot_work_are_refused() {
    let stage = |stages: &str| spec("", MODEL, stages);
    assert_only(
        &stage("{data: {source: generate, subjects: lib}, references: 2}"),
        "spec.stages[0].references: a picture of two panels has one reference, the stage wants 2",
    );
    assert_only(
        &stage("{data: {source: generate}}"),
        "spec.stages[0].data.prompts: nothing says what is drawn: set `prompts`, or `subjects` to a subject library",
    );
    assert_only(
        &stage("{data: {source: generate, subjects: lib, prompts: {taxonomy: t.yaml}}}"),
        "spec.stages[0].data.prompts: what is drawn comes from `prompts` or from the library in `subjects`, not from both",
    );
    assert_only(
        &stage("{data: {source: compose, subjects: lib, prompts: {taxonomy: t.yaml}}}"),
        "spec.stages[0].data.prompts: goes with `source: generate`, but this is `source: compose`",
    );
    assert_only(
        &stage("{data: {source: generate, prompts: {taxonomy: t.yaml}, holdOutOneIn: 4}}"),
        "spec.stages[0].data.holdOutOneIn: has no effect without `subjects`, the library that it speaks of",
    );
    assert_only(
        &stage("{references: 2, data: {source: recompose, detector: d}}"),
        "spec.stages[0].data.from: the first stage has no earlier one whose pairs and checkpoint it could take",
    );
    let first = "{data: {source: compose, subjects: lib}}";
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop, from: stage-7, detector: d}}}}")),
        "spec.stages[1].data.from: there is no earlier stage `stage-7`; possible here: stage-1",
    );
    assert_only(
        &stage(&format!("{first}\n    - {{references: 1, data: {{source: crop, detector: d}}}}")),
        "spec.stages[1].references: a target's subjects are the one of its pair and those that are cut out: at least 2, the stage wants 1",
    );
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop}}}}")),
        "spec.stages[1].data.detector: second subjects are found by a detector: set it, or `subjects` to compose targets",
    );
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop, detector: d, boxShare: [0.5, 0.2]}}}}")),
        "spec.stages[1].data.boxShare: least 0.5 is more than most 0.2: every box would be rejected",
    );
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop, detector: d, photos: p}}}}")),
        "spec.stages[1].data.photos: has no effect without `subjects`: targets come from the pair log of `from`",
    );
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop, subjects: lib, detectorMin: 0.2}}}}")),
        "spec.stages[1].data.detectorMin: has no effect with `subjects`: where they are in a composed target is known",
    );
    let compared = "filter: {similarity: {min: 0.1, encoder: e}}";
    assert_only(
        &stage(&format!("{first}\n    - {{data: {{source: crop, subjects: lib, {compared}}}}}")),
        "spec.stages[1].data.filter.similarity: with `source: crop` there is nothing to compare: the cut itself is the reference",
    );
    assert_only(
        &stage("{data: {source: import, format: webdataset, path: p, unitSize: 64}}"),
        "spec.stages[0].data.unitSize: has no effect with `format: webdataset`: every pair of a tar is taken as it is, and a unit is a tar",
    );
    assert_only(
        &stage("{data: {source: compose, subjects: lib, draw: {steps: 2}}}"),
        "spec.stages[0].data.draw: goes with `source: generate` or `recompose`, but this is `source: compose`",
    );
}

#[test]
fn the_learning_rate_rises_then_follows_its_decay() {
    let mut train = parse(SMALLEST.as_bytes()).unwrap().stages.remove(0).train;
    (train.learning_rate, train.warmup_steps, train.steps) = (8.0, 4, 11);
    let rates = |train: &TrainSpec| (1..=11).map(|step| train.learning_rate_at(step)).collect::<Vec<_>>();
    assert_eq!(rates(&train), [2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]);
    train.learning_rate_decay = Decay::Linear;
    assert_eq!(rates(&train), [2.0, 4.0, 6.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
    train.learning_rate_decay = Decay::Cosine;
    let cosine = rates(&train);
    assert_eq!((cosine[3], cosine[7]), (8.0, 4.0));
    assert!(cosine[3..].is_sorted_by(|a, b| a > b) && cosine[10] > 0.0, "{cosine:?}");
    (train.warmup_steps, train.steps) = (0, 1);
    assert_eq!(train.learning_rate_at(1), 4.0);
    train.warmup_steps = 20;
    assert_eq!(train.learning_rate_at(1), 0.4);
}

#[test]
fn a_stage_has_no_more_units_than_a_controller_can_hold() {
    let spec = |pairs: &str| {
        format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: a}}\nspec:\n  model: {{preset: nano, weights: b}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: {pairs}, unitSize: 1}}\n"
        )
    };
    assert!(parse(spec("1000000").as_bytes()).is_ok());
    let problems = parse(spec("1000000000").as_bytes()).expect_err("a record a pair");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].path, "spec.stages[0].data.unitSize");
    let message = "1000000000 pairs in units of 1 are 1000000000 units, and a stage has at most 1000000: set unitSize to 1000 or more, or pairs to 1000000 or less";
    assert_eq!(problems[0].message, message);
    assert!(parse(spec("1000001").as_bytes()).is_err());
    let enough = spec("1000000000").replace("unitSize: 1}", "unitSize: 1000}");
    assert!(parse(enough.as_bytes()).is_ok(), "as the message says");
}

#[test]
fn a_start_takes_the_optimizer_along_if_it_says_so() {
    let with = |start: &str| spec("", MODEL, &format!("{DATA}\n    - {{initFrom: {start}, {DATA}}}"));
    let start = |text: &str| parse(with(text).as_bytes()).unwrap().stages[1].init_from.clone().unwrap();
    let taken = |checkpoint: &str, optimizer| StartSpec { checkpoint: checkpoint.to_owned(), optimizer };
    assert_eq!(start("stage-1"), taken("stage-1", false));
    assert_eq!(start("{checkpoint: stage-1}"), taken("stage-1", false));
    assert_eq!(start("{checkpoint: a-1/s/20, optimizer: true}"), taken("a-1/s/20", true));
    for (text, message) in [
        (
            "{optimizer: true}",
            "spec.stages[1].initFrom.checkpoint: missing field `checkpoint`: a stage's name, or `JOB/STAGE` or `JOB/STAGE/STEP` of another job",
        ),
        (
            "{checkpoint: none}",
            "spec.stages[1].initFrom.checkpoint: `none` is not a stage's name, or `JOB/STAGE` or `JOB/STAGE/STEP` of another job",
        ),
        (
            "{checkpoint: stage-1, optimizer: 1}",
            "spec.stages[1].initFrom.optimizer: expected `true` or `false`, found the number 1",
        ),
        (
            "{checkpoint: stage-9, optimizer: true}",
            "spec.stages[1].initFrom: there is no stage `stage-9`; possible here: stage-1, none",
        ),
    ] {
        assert_only(&with(text), message);
    }
}

#[test]
fn pairs_are_taken_of_an_earlier_stage_with_a_source_of_its_own() {
    let with = |stages: &str| spec("", MODEL, &format!("{DATA}\n    - {stages}"));
    let good = parse(with("{references: 1, data: {source: log}}").as_bytes()).unwrap();
    assert_eq!(good.stages[1].data.source.log().unwrap().from, "stage-1");
    assert_eq!(good.stages[1].train.resolution, good.stages[0].train.resolution);
    let at = "spec.stages[1].data.from";
    let chain = "{references: 1, data: {source: log}}\n    - {references: 1, data: {source: log}}";
    for (stages, message) in [
        ("{data: {source: log}}", format!("{at}: the pairs of `stage-1` are of `references: 1`, and this stage has 2")),
        (
            "{references: 1, data: {source: log, from: stage-3}}",
            format!("{at}: there is no earlier stage `stage-3`; possible here: stage-1, or `JOB/STAGE` of another job"),
        ),
        (
            "{references: 1, data: {source: log, from: a/b/c}}",
            format!("{at}: `a/b/c` is not a stage's name; with `source: log` also `JOB/STAGE` of another job"),
        ),
        (
            "{references: 1, data: {source: log, unitSize: 3}}",
            "spec.stages[1].data.unitSize: has no effect with `source: log`: pairs are taken as they were made".to_owned(),
        ),
        (
            chain,
            "spec.stages[2].data.from: `stage-2` makes no pairs, and takes those of `stage-1`: name that one".to_owned(),
        ),
    ] {
        assert_only(&with(stages), &message);
    }
    assert_only(
        &spec("", MODEL, "{data: {source: log}}"),
        "spec.stages[0].data.from: the first stage has no earlier one whose pairs it could take: name `JOB/STAGE` of another job",
    );
}

#[test]
fn samples_that_could_not_be_drawn_are_refused() {
    let of = |samples: &str, stage: &str| {
        format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno}}\nspec:\n  model: {{preset: nano, weights: w}}\n  \
             checkpoints: {{every: 50}}\n  samples: {{{samples}}}\n  stages: [{{data: {{source: compose, subjects: lib{stage}}}, train: {{steps: 600000}}}}]\n"
        )
    };
    let refused =
        |samples: &str| problems(&of(samples, "")).into_iter().map(|p| p.to_string()).collect::<Vec<_>>();
    let cases = [
        ("{}", "", "spec.samples: nothing says what is drawn: set prompts, heldOut or validationPairs"),
        (
            "every: 75, ",
            "prompts: [{prompt: a cup}]",
            "spec.samples.every: 75 is not a multiple of checkpoints.every, 50: pictures are drawn with checkpoints",
        ),
        (
            "every: 50, ",
            "prompts: [{prompt: a cup}]",
            "spec.samples.every: 600000 steps would be drawn from 12000 times, and a stage is 10000 times at most: set it to 60 or more",
        ),
        (
            "every: 100, ",
            "heldOut: 2",
            "spec.samples.heldOut: no stage has a library of subjects of which any is held out: set holdOut or holdOutOneIn beside its `subjects`",
        ),
        ("every: 100, ", "validationPairs: 2", "spec.samples.validationPairs: no stage has a library"),
        (
            "every: 100, ",
            "prompts: [{prompt: a cup, references: [a, b]}]",
            "spec.samples.prompts[0].references: 2 references, and no stage has more than 1",
        ),
        (
            "every: 100, ",
            "prompts: [{prompt: a cup}], weights: ema",
            "spec.samples.weights: stage stage-1 keeps no moving average: set its emaDecay",
        ),
        (
            "every: 100, ",
            "prompts: [{prompt: a cup}], resolution: 40",
            "spec.samples.resolution: 40 is not a multiple of 16",
        ),
    ];
    for (every, rest, expected) in cases {
        let samples = format!("{every}{rest}").replace("{}", "every: 100");
        let found = refused(&samples);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{samples}: {found:#?}");
    }
    let spec = parse(
        of("heldOut: 2, every: 100, prompts: [{prompt: a cup, references: a.png}]", ", holdOutOneIn: 4")
            .as_bytes(),
    );
    let samples = spec.expect("the spec is right").samples.expect("it has some");
    assert_eq!(samples.prompts, [SamplePrompt { prompt: "a cup".into(), references: vec!["a.png".into()] }]);
    assert_eq!((samples.every, samples.draw.batch, samples.seed), (100, 16, 3407));
}
