//! What this house holds itself to, over all of its sources. Lists may shrink; that one grows is the failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crescendo_tidy::circles::circles;
use crescendo_tidy::source::{Crate, documents, files, roots};
use crescendo_tidy::{functions, literals, uses};

/// Lines of a function, from its signature to its closing brace.
const MAX_FUNCTION_LINES: usize = 80;

/// Functions that are longer, and may not grow.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("controller/tests/secrets.rs", "a_secret_that_someone_writes_somewhere_is_kept_nowhere", 106),
    ("crates/testing/src/hostile/families.rs", "header_blocks", 101),
    ("tests/unauthenticated.rs", "strangers_are_refused_everywhere_and_change_nothing", 96),
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
    // A trait with default methods, and what they make.
    &["crates/store/src/election.rs", "crates/store/src/store.rs"],
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

/// What chooses a training size, or brings a picture to one, by a piece of code that nothing else needs; and who has it.
const TRAINING_SIZES: &[(&str, &[&str])] = &[
    ("(320, 768)", &["crates/dataset/src/pictures/bucket.rs"]),
    ("/ 16 * 16", &["crates/dataset/src/pictures/bucket.rs"]),
    // OWLv2's own square is none of the training's sizes.
    ("upsample_bilinear2d_aa", &["crates/model/src/owlv2.rs", "crates/model/src/pictures/bucket.rs"]),
];

#[test]
fn training_sizes_are_chosen_and_filled_in_one_place() {
    for (code, owners) in TRAINING_SIZES {
        let found: Vec<PathBuf> = files(&repository())
            .expect("list")
            .into_iter()
            .filter(|path| is_code(path))
            .filter(|path| {
                let text = std::fs::read_to_string(repository().join(path)).expect("read");
                text.split("#[cfg(test)]").next().is_some_and(|text| text.contains(code))
            })
            .collect();
        assert_eq!(found, owners.iter().map(PathBuf::from).collect::<Vec<_>>(), "{code}");
    }
}

/// Packages whose programs compute.
const COMPUTING: [&str; 3] = ["curator-node", "trainer-node", "workbench"];

#[test]
fn only_one_crate_asks_libtorch_for_cuda_and_every_program_loads_it() {
    let owner = Path::new("crates/device");
    let code = files(&repository()).expect("list").into_iter().filter(|path| is_code(path));
    let asks = code.filter(|path| !path.starts_with(owner)).filter(|path| {
        let text = std::fs::read_to_string(repository().join(path)).expect("read");
        let mut words = text.split(|c: char| !c.is_alphanumeric() && c != ':' && c != '_');
        words.any(|word| {
            word.contains("Cuda::") || word.contains("cuda_if_available") || word.ends_with("has_cuda")
        })
    });
    let asks: Vec<PathBuf> = asks.collect();
    assert!(asks.is_empty(), "only {} asks for CUDA: {asks:?}", owner.display());
    for package in COMPUTING {
        let main = std::fs::read_to_string(repository().join(package).join("src/main.rs")).expect("read");
        let body = main.split_once("fn main(").expect("a main").1;
        let (load, first_call) = (body.find("load_cuda()"), body.find("run"));
        assert!(load.is_some() && load < first_call, "{package}: main loads CUDA before it runs anything");
    }
}

/// Files with unsafe code. Each says why at its top.
const UNSAFE: &[&str] = &[
    "cli/src/commands/login.rs",
    "cli/src/doctor/machine.rs",
    "cli/src/up/process.rs",
    "cli/tests/cli/up.rs",
    "crates/collective/src/ffi.rs",
    "crates/collective/src/gloo.rs",
    "crates/collective/src/nccl.rs",
    "crates/collective/src/nccl_library.rs",
    "crates/device/src/cuda.rs",
    "crates/device/src/dynamic.rs",
    "crates/device/src/heap.rs",
    "crates/device/src/host_copy.rs",
    "crates/device/src/stream.rs",
    "crates/model/src/fused.rs",
    "crates/model/src/fused/cpu.rs",
    "crates/model/src/fused/cuda.rs",
    "crates/model/src/weights.rs",
    "crates/node/tests/signals.rs",
    "curator-node/src/memory.rs",
    "tests/src/process.rs",
    "tests/src/up.rs",
    "trainer-node/src/agent/interface.rs",
    "trainer-node/src/agent/process.rs",
    "trainer-node/src/rank/run.rs",
];

#[test]
fn unsafe_code_is_where_it_is_known_to_be() {
    let allows = |path: &PathBuf| {
        let text = std::fs::read_to_string(repository().join(path)).expect("read");
        // The lint denies it everywhere else.
        text.lines().any(|line| line.trim_start().starts_with("#![allow(unsafe_code, reason = "))
    };
    let found = files(&repository()).expect("list").into_iter().filter(allows);
    let found: BTreeSet<String> = found.map(|path| path.display().to_string()).collect();
    assert_eq!(found, UNSAFE.iter().map(ToString::to_string).collect());
}

/// Characters of a line of the docs.
const MAX_DOCS_LINE: usize = 120;

#[test]
fn lines_of_docs_are_readable_side_by_side() {
    let mut long = Vec::new();
    for path in documents(&repository()).expect("list") {
        let text = std::fs::read_to_string(repository().join(&path)).expect("read");
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            let begins = line.trim_start();
            in_code ^= begins.starts_with("```");
            // Tables and code are as wide as they are; what has no space cannot be broken.
            let whole = in_code || begins.starts_with(['|', '`', '[', '#']);
            let breakable = begins.trim_start_matches(['-', ' ']).contains(' ');
            if !whole && breakable && line.chars().count() > MAX_DOCS_LINE {
                long.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "longer than {MAX_DOCS_LINE} characters: {}", long.join(", "));
}

/// Modules at the top of the curator, and uses of one by another: what is beyond this is no longer read in one go.
const MOST_ROOMS: usize = 20;
const MOST_ARROWS: usize = 50;

#[test]
fn the_curators_rooms_are_few_and_use_each_other_in_one_direction() {
    let curator = Crate::read(&repository(), Path::new("curator-node/src/lib.rs")).expect("read");
    let rooms = uses::between_rooms(&curator);
    let arrows: usize = rooms.values().map(BTreeSet::len).sum();
    assert!(rooms.len() <= MOST_ROOMS && arrows <= MOST_ARROWS, "{} rooms, {arrows} arrows", rooms.len());
    let found = circles(&rooms);
    assert!(found.is_empty(), "{found:?}");
}
