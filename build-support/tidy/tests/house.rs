//! What this house holds itself to, over all of its sources. Lists may shrink; that one grows is the failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crescendo_tidy::circles::circles;
use crescendo_tidy::source::{Crate, files, roots};
use crescendo_tidy::{functions, literals, uses};

/// Lines of a function, from its signature to its closing brace.
const MAX_FUNCTION_LINES: usize = 80;

/// Functions that are longer, and may not grow.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("controller/src/engine/handle.rs", "handle", 90),
    ("controller/src/engine/handle.rs", "handle_unit", 103),
    ("controller/tests/secrets.rs", "a_secret_that_someone_writes_somewhere_is_kept_nowhere", 106),
    ("crates/core/src/explain/progress.rs", "running", 84),
    ("crates/core/src/explain/capacity.rs", "waiting", 81),
    ("crates/core/src/spec/emit.rs", "write_data", 95),
    ("crates/core/src/spec/tests/properties.rs", "job_spec", 89),
    ("crates/core/tests/promises/world.rs", "perform", 82),
    ("crates/model/src/training/train_step.rs", "micro", 164),
    ("crates/node/src/objects/s3.rs", "from_environment", 84),
    ("crates/node/src/testing/hostile/families.rs", "header_blocks", 101),
    ("curator-node/src/main.rs", "run", 125),
    ("curator-node/src/sources/prompts/templates.rs", "words", 232),
    ("tests/unauthenticated.rs", "strangers_are_refused_everywhere_and_change_nothing", 96),
    ("trainer-node/src/agent/run.rs", "run", 103),
    ("trainer-node/src/rank/data.rs", "serve", 92),
    ("trainer-node/src/rank/run.rs", "rank", 90),
    ("trainer-node/src/rank/run.rs", "work", 97),
    ("workbench/src/parity/train_step.rs", "run_rank", 101),
    ("workbench/src/report.rs", "run", 97),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The code itself: neither tests in files of their own, nor examples, benches, fuzz targets and this.
fn is_code(path: &Path) -> bool {
    let folders: Vec<String> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let named = |name: &str| folders.iter().any(|folder| folder == name);
    named("src") && !named("tests") && !named("testing") && !named("tidy") && !path.ends_with("tests.rs")
}

#[test]
fn functions_are_short() {
    let known: BTreeMap<(String, String), usize> = LONG_FUNCTIONS
        .iter()
        .map(|(path, name, lines)| ((path.to_string(), name.to_string()), *lines))
        .collect();
    let mut found = BTreeMap::new();
    for path in files(&repository()).expect("list") {
        let text = std::fs::read_to_string(repository().join(&path)).expect("read");
        for function in functions::long(&path, &text, MAX_FUNCTION_LINES).expect("parse") {
            found.insert((path.display().to_string(), function.name), function.lines);
        }
    }
    for ((path, name), lines) in &found {
        let most = known.get(&(path.clone(), name.clone())).copied().unwrap_or(MAX_FUNCTION_LINES);
        assert!(*lines <= most, "{path}: {name} has {lines} lines, more than {most}");
    }
    for ((path, name), lines) in &known {
        let now = found.get(&(path.clone(), name.clone()));
        assert!(now == Some(lines), "{path}: {name} has become shorter ({now:?}): say so in LONG_FUNCTIONS");
    }
}

/// Files that use each other, so that none can be read without the others. What a file uses of the modules that it lies in, and
/// these of it, is not counted.
const CIRCLES: &[&[&str]] = &[
    &["cli/src/args.rs", "cli/src/commands/library.rs", "cli/src/commands/token.rs"],
    &["cli/src/commands/submit.rs", "cli/src/commands/validate.rs"],
    // A trait with default methods, and what they make.
    &["crates/store/src/election.rs", "crates/store/src/store.rs"],
    &[
        "curator-node/src/endpoint.rs",
        "curator-node/src/generate.rs",
        "curator-node/src/prompts.rs",
        "curator-node/src/prompts/written.rs",
        "curator-node/src/recompose.rs",
        "curator-node/src/source.rs",
        "curator-node/src/studio.rs",
    ],
    &["workbench/src/report/cases.rs", "workbench/src/report/figures.rs"],
];

#[test]
fn files_use_each_other_in_one_direction() {
    let mut found = BTreeSet::new();
    for root in roots(&files(&repository()).expect("list")) {
        let of = Crate::read(&repository(), &root).expect("read");
        for circle in circles(&uses::between_files(&of)) {
            found
                .insert(circle.iter().map(|at| of.files[*at].path.display().to_string()).collect::<Vec<_>>());
        }
    }
    let known: BTreeSet<Vec<String>> =
        CIRCLES.iter().map(|circle| circle.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(found, known);
}

/// A text that only its owner spells.
struct Contract {
    what: &'static str,
    owner: &'static str,
    spelled: fn(&str) -> bool,
}

const CONTRACTS: &[Contract] = &[
    Contract {
        what: "a key of the object store",
        owner: "crates/core/src/object_keys.rs",
        spelled: |text| {
            let folders = ["/pairs", "/rejected", "/checkpoints", "/spent"];
            text.starts_with("jobs/{")
                && (text.matches('/').count() > 1 || folders.iter().any(|folder| text.contains(folder)))
                || text.starts_with("endpoint/replies")
                || text.starts_with("prompts/{")
                || text.starts_with("probes/")
        },
    },
    Contract {
        what: "a reason of rejection",
        owner: "crates/core/src/rejection.rs",
        spelled: |text| crescendo_core::rejection::Rejection::named(text).is_some(),
    },
    Contract {
        what: "the name of a checkpoint's file",
        owner: "crates/dataset/src/checkpoint.rs",
        spelled: |text| {
            [
                "dit_lora.safetensors",
                "optimizer.safetensors",
                "ema.safetensors",
                "history.jsonl",
                "state.json",
            ]
            .contains(&text)
        },
    },
];

#[test]
fn what_several_agree_on_has_one_owner() {
    let mut elsewhere = Vec::new();
    let mut owners = BTreeSet::new();
    for path in files(&repository()).expect("list").into_iter().filter(|path| is_code(path)) {
        let text = std::fs::read_to_string(repository().join(&path)).expect("read");
        let syntax = syn::parse_file(&text).expect("parse");
        for (line, literal) in literals::of(&syntax) {
            for contract in CONTRACTS.iter().filter(|contract| (contract.spelled)(&literal)) {
                if path == Path::new(contract.owner) {
                    owners.insert(contract.owner);
                } else {
                    elsewhere.push(format!("{}:{line}: {:?} is {}", path.display(), literal, contract.what));
                }
            }
        }
    }
    assert!(elsewhere.is_empty(), "{}", elsewhere.join("\n"));
    assert_eq!(owners.len(), CONTRACTS.len(), "each owner spells its own");
}

/// Packages whose programs compute.
const COMPUTING: [&str; 3] = ["curator-node", "trainer-node", "workbench"];

#[test]
fn only_one_crate_asks_libtorch_for_cuda_and_every_program_loads_it() {
    let owner = Path::new("crates/device");
    let code = files(&repository()).expect("list").into_iter().filter(|path| is_code(path));
    let asks = code.filter(|path| !path.starts_with(owner)).filter(|path| {
        let text = std::fs::read_to_string(repository().join(path)).expect("read");
        text.split(|c: char| !c.is_alphanumeric() && c != ':')
            .any(|word| word.contains("Cuda::") && !word.ends_with("Device::Cuda"))
    });
    assert_eq!(asks.collect::<Vec<_>>(), [PathBuf::new(); 0], "only {} asks for CUDA", owner.display());
    for package in COMPUTING {
        let main = std::fs::read_to_string(repository().join(package).join("src/main.rs")).expect("read");
        let body = main.split_once("fn main(").expect("a main").1;
        let (load, first_call) = (body.find("load_cuda()"), body.find("run").or(body.find("runtime")));
        assert!(load.is_some() && load < first_call, "{package}: main loads CUDA before it runs anything");
    }
}
