//! Adapters under the names of other trainers and loaders, read as the published ones.
//!
//! | written by | keys of block 0 |
//! |---|---|
//! | UNO, XLabs | `double_blocks.0.processor.qkv_lora1.down.weight`: the published names, read as they are |
//! | kohya, ComfyUI, OneTrainer | `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, `lora_transformer_…`, with `.alpha` |
//! | diffusers, PEFT | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, `base_model.model.…` |
//! | trainers over the published transformer | `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` |
//!
//! All hold W + scale · up · down, with scale = alpha / rank where the file, its strings or the `adapter_config.json` beside it
//! tell alpha, otherwise 1. An adapter here has one pair for queries, keys and values, and one rank: where each has a `down` of
//! its own the three become one of three times the rank, whose `up` is zero off its diagonal blocks, and lower ranks are
//! filled up with zeros. The update is the same. What an adapter here does not cover (MLPs, modulations, text encoders) is
//! refused by name, never left out.

mod alpha;
mod join;

use std::collections::{BTreeMap, BTreeSet};

use alpha::Alphas;
use tch::Kind;

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::header::{Header, TensorHeader};
use crate::lora_sites::Site;
use crate::naming::matched;
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// Whose names an adapter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterForm {
    Published,
    /// kohya's and ComfyUI's.
    Kohya,
    /// Those of diffusers and PEFT.
    Peft,
}

impl AdapterForm {
    /// The form that most names have; None if they are no adapter's.
    pub fn of(header: &Header) -> Option<Self> {
        let forms = [Self::Published, Self::Kohya, Self::Peft];
        let known = |form: Self| header.keys().filter(|name| form.knows(name)).count();
        let (count, form) =
            forms.into_iter().map(|form| (known(form), form)).rev().max_by_key(|(count, _)| *count)?;
        (count * 2 > header.len()).then_some(form)
    }

    /// Whether a tensor's name is of this form.
    pub fn knows(self, name: &str) -> bool {
        match self {
            Self::Published => name.contains(".processor.") && name.contains("_lora"),
            Self::Kohya => {
                ["lora_unet_", "lora_transformer_", "lora_te"].iter().any(|with| name.starts_with(with))
            }
            Self::Peft => END_OF_HALF.iter().any(|(end, _)| name.ends_with(end)) && !Self::Kohya.knows(name),
        }
    }

    /// What an error calls it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Published => "published names",
            Self::Kohya => "names of kohya and ComfyUI",
            Self::Peft => "names of diffusers and PEFT",
        }
    }
}

/// What a tensor is to its update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Down,
    Up,
    Alpha,
}

const END_OF_HALF: [(&str, Half); 9] = [
    (".lora_A.weight", Half::Down),
    (".lora_B.weight", Half::Up),
    (".lora_A.default.weight", Half::Down),
    (".lora_B.default.weight", Half::Up),
    (".lora_down.weight", Half::Down),
    (".lora_up.weight", Half::Up),
    (".lora.down.weight", Half::Down),
    (".lora.up.weight", Half::Up),
    (".alpha", Half::Alpha),
];

/// What stands before a module, in any order and one behind the other: trainers wrap networks.
const PREFIXES: [&str; 6] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
];

/// Which rows of a site an update is for: all, or those of one of the three that diffusers has apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rows {
    All,
    Third(usize),
}

/// Names, in the file, of the tensors of one update.
#[derive(Clone, Debug, Default)]
struct Update {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
    /// Its module as the file calls it.
    module: String,
}

/// The updates of one site of one block.
type Updates = BTreeMap<Rows, Update>;

/// What a header says: every update by site and block, and everything that is wrong.
#[derive(Debug)]
pub(crate) struct Plan {
    updates: BTreeMap<(Site, i64), Updates>,
    pub problems: Vec<TensorProblem>,
}

/// Site, block and rows of a module, without its prefix.
fn site_of(module: &str) -> Option<(Site, i64, Rows)> {
    let is = |template: &str| -> Option<i64> {
        let dotted = matched(template, module);
        let numbers = dotted.or_else(|| matched(&template.replace('.', "_"), module))?;
        numbers.first().copied()
    };
    for site in Site::ALL {
        if let Some(block) = is(site.base()) {
            return Some((site, block, Rows::All));
        }
        let names = site.diffusers();
        for (part, template) in names.iter().enumerate() {
            if let Some(block) = is(template) {
                return Some((site, block, if names.len() == 1 { Rows::All } else { Rows::Third(part) }));
            }
        }
    }
    None
}

impl Plan {
    pub fn of(header: &Header) -> Self {
        let mut plan = Self { updates: BTreeMap::new(), problems: Vec::new() };
        for name in header.keys() {
            let half = END_OF_HALF.iter().find_map(|(end, half)| Some((name.strip_suffix(end)?, *half)));
            let place = half.and_then(|(module, half)| {
                let mut bare = module;
                while let Some(rest) = PREFIXES.iter().find_map(|prefix| bare.strip_prefix(prefix)) {
                    bare = rest;
                }
                let (site, block, rows) = site_of(bare)?;
                Some((site, block, rows, half, module))
            });
            let Some((site, block, rows, half, module)) = place else {
                plan.note(name, ProblemKind::Unexpected);
                continue;
            };
            let update = plan.updates.entry((site, block)).or_default().entry(rows).or_default();
            update.module = module.to_owned();
            let slot = match half {
                Half::Down => &mut update.down,
                Half::Up => &mut update.up,
                Half::Alpha => &mut update.alpha,
            };
            if slot.replace(name.clone()).is_some() {
                plan.note(name, ProblemKind::Unexpected);
            }
        }
        plan.check(header);
        if plan.problems.is_empty() {
            plan.check_widths(header);
        }
        plan
    }

    fn note(&mut self, tensor: &str, kind: ProblemKind) {
        self.problems.push(TensorProblem { tensor: tensor.to_owned(), kind });
    }

    /// Each update has both halves, of one rank.
    fn check(&mut self, header: &Header) {
        let mut problems = Vec::new();
        let mut note = |tensor: String, kind| problems.push(TensorProblem { tensor, kind });
        for update in self.updates.values().flat_map(BTreeMap::values) {
            let (Some(down), Some(up)) = (&update.down, &update.up) else {
                let half = if update.down.is_none() { "down" } else { "up" };
                note(format!("{}: its {half} half", update.module), ProblemKind::Missing);
                continue;
            };
            let shape = |name: &str| header.get(name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
            match (shape(down).as_slice(), shape(up).as_slice()) {
                ([rank, _], [_, columns]) if rank == columns && *rank > 0 => {}
                ([rank, _], [rows, _]) => {
                    note(up.clone(), ProblemKind::Shape { found: shape(up), expected: vec![*rows, *rank] });
                }
                (found, _) => {
                    note(down.clone(), ProblemKind::Shape { found: found.to_vec(), expected: vec![0, 0] })
                }
            }
        }
        self.problems.extend(problems);
    }

    /// All updates are of one network: what a file lets grow is bounded by what it holds.
    fn check_widths(&mut self, header: &Header) {
        let widths = self.widths(header);
        let mut problems = Vec::new();
        let shape = |name: &Option<String>| {
            name.as_ref().and_then(|name| Some((name.clone(), header.get(name)?.shape.clone())))
        };
        for ((site, _), updates) in &self.updates {
            let (input, output) = widths.of(*site);
            for (rows, update) in updates {
                let (Some((down, found)), Some((up, own))) = (shape(&update.down), shape(&update.up)) else {
                    continue;
                };
                let rank = found.first().copied().unwrap_or(0);
                let mut note = |tensor: String, found: Vec<i64>, expected: [i64; 2]| {
                    let kind = ProblemKind::Shape { found, expected: expected.to_vec() };
                    problems.push(TensorProblem { tensor, kind });
                };
                if found.get(1) != Some(&input) {
                    note(down, found.clone(), [rank, input]);
                }
                let height = own.first().copied().unwrap_or(0);
                let fits = match rows {
                    Rows::Third(_) => height.checked_mul(3) == Some(output),
                    Rows::All => height == output || (*site == Site::SingleQkv && height > output),
                };
                if !fits {
                    let expected = if matches!(rows, Rows::Third(_)) { output / 3 } else { output };
                    note(up, own, [expected, rank]);
                }
            }
        }
        self.problems.extend(problems);
    }

    /// Names and shapes that the adapter has once it is read, if `down` is the same for queries, keys and values, as in files
    /// that were converted. Of use without problems alone.
    pub fn published(&self, header: &Header) -> Header {
        let shape = |name: &Option<String>| -> Vec<i64> {
            name.as_ref()
                .and_then(|name| header.get(name))
                .map(|tensor| tensor.shape.clone())
                .unwrap_or_default()
        };
        let updates = || self.updates.values().flat_map(BTreeMap::values);
        let rank = updates().filter_map(|update| shape(&update.down).first().copied()).max().unwrap_or(0);
        let mut found = Header::new();
        let mut insert = |name: String, shape: [i64; 2]| {
            let tensor = TensorHeader { shape: shape.to_vec(), dtype: "F32".to_owned(), bits: 32 };
            found.insert(name, tensor);
        };
        let widths = self.widths(header);
        for (site, block) in self.covered() {
            let (input, mut output) = widths.of(site);
            if let Some(updates) = self.updates.get(&(site, block))
                && let Some((rows, update)) = updates.iter().next()
            {
                let own = shape(&update.up).first().copied().unwrap_or(0);
                output = match rows {
                    Rows::Third(_) => own.saturating_mul(3),
                    // The rows of the MLP are looked at once the values are read.
                    Rows::All if site == Site::SingleQkv && own > output => output,
                    Rows::All => own,
                };
            }
            let own = self.updates.get(&(site, block)).and_then(|updates| updates.values().next());
            let input = own.and_then(|update| shape(&update.down).get(1).copied()).unwrap_or(input);
            let module = site.published_module(block);
            insert(format!("{module}.down.weight"), [rank, input]);
            insert(format!("{module}.up.weight"), [output, rank]);
        }
        found
    }

    /// Every site of each block that has any update.
    fn covered(&self) -> Vec<(Site, i64)> {
        let blocks: BTreeSet<(bool, i64)> =
            self.updates.keys().map(|(site, block)| (site.is_single(), *block)).collect();
        let sites = |(single, block): (bool, i64)| {
            Site::ALL
                .into_iter()
                .filter(move |site| site.is_single() == single)
                .map(move |site| (site, block))
        };
        blocks.into_iter().flat_map(sites).collect()
    }

    /// Widths of the network that the adapter is for, as far as its shapes tell.
    fn widths(&self, header: &Header) -> Widths {
        let side = |name: &Option<String>, axis: usize| {
            name.as_ref().and_then(|name| header.get(name)?.shape.get(axis).copied())
        };
        // What most tensors have: one that is damaged does not decide.
        let most = |sides: &[i64]| {
            let count = |side: &i64| sides.iter().filter(|other| *other == side).count();
            sides.iter().max_by_key(|side| (count(side), **side)).copied()
        };
        let (mut hidden, mut inputs) = (Vec::new(), Vec::new());
        for ((site, _), updates) in &self.updates {
            for update in updates.values() {
                if *site == Site::SingleProj {
                    inputs.extend(side(&update.down, 1));
                    hidden.extend(side(&update.up, 0));
                } else {
                    hidden.extend(side(&update.down, 1));
                }
            }
        }
        let hidden = most(&hidden).unwrap_or(0);
        Widths { hidden, mlp: most(&inputs).map(|input| input.saturating_sub(hidden)) }
    }
}

/// Width of a token, and that inside the MLPs of single blocks where it is known.
#[derive(Clone, Copy, Debug)]
struct Widths {
    hidden: i64,
    mlp: Option<i64>,
}

impl Widths {
    /// Inputs and outputs of a site.
    fn of(self, site: Site) -> (i64, i64) {
        let Self { hidden, mlp } = self;
        match site {
            Site::DoubleImageQkv | Site::DoubleTextQkv | Site::SingleQkv => {
                (hidden, hidden.saturating_mul(3))
            }
            Site::DoubleImageProj | Site::DoubleTextProj => (hidden, hidden),
            Site::SingleProj => (hidden.saturating_add(mlp.unwrap_or(hidden.saturating_mul(4))), hidden),
        }
    }
}

/// Most values that an adapter has once it is read, for each that its file holds. Filling up ranks makes a few times as many.
const MOST_GROWTH: u64 = 64;

fn elements(header: &Header) -> u64 {
    let of = |shape: &[i64]| shape.iter().fold(1u64, |all, side| all.saturating_mul(side.unsigned_abs()));
    header.values().fold(0u64, |all, tensor| all.saturating_add(of(&tensor.shape)))
}

/// What an error calls an adapter's files: the path, and whose names they have.
pub(crate) fn origin(files: &WeightFiles) -> String {
    let path = files.path().display();
    match AdapterForm::of(&files.header()) {
        None | Some(AdapterForm::Published) => path.to_string(),
        Some(form) => format!("{path} ({})", form.describe()),
    }
}

/// Every tensor of an adapter under published names, on the CPU: as they are where the file has those, otherwise float32.
pub fn published_tensors(files: &WeightFiles) -> Result<TensorMap> {
    let header = files.header();
    let form = AdapterForm::of(&header);
    if matches!(form, None | Some(AdapterForm::Published)) {
        return files.names().map(|name| Ok((name.to_owned(), files.tensor(name)?))).collect();
    }
    let plan = Plan::of(&header);
    if !plan.problems.is_empty() {
        return Err(ModelError::Weights { origin: origin(files), problems: plan.problems });
    }
    let (held, filled) = (elements(&header), elements(&plan.published(&header)));
    if filled > held.saturating_mul(MOST_GROWTH) {
        let reason = format!("{held} values would become {filled}: its ranks are too far apart");
        return Err(ModelError::input(origin(files), reason));
    }
    let alphas = Alphas::of(files)?;
    let widths = plan.widths(&header);
    let mut pairs = BTreeMap::new();
    for ((site, block), updates) in &plan.updates {
        let read = |update: &Update| join::Part::read(files, update, &alphas);
        let parts = updates.iter().map(|(rows, update)| Ok((*rows, read(update)?)));
        let parts = parts.collect::<Result<BTreeMap<Rows, join::Part>>>()?;
        let pair = join::joined(*site, parts, widths).map_err(|reason| {
            ModelError::input(site.published_module(*block), format!("{}: {reason}", origin(files)))
        })?;
        pairs.insert((*site, *block), pair);
    }
    let rank = pairs.values().filter_map(|pair| pair.down.size().first().copied()).max().unwrap_or(0);
    let mut tensors = TensorMap::new();
    for (site, block) in plan.covered() {
        let pair = match pairs.remove(&(site, block)) {
            Some(pair) => pair.of_rank(rank)?,
            None => join::Part::zero(rank, widths.of(site))?,
        };
        let module = site.published_module(block);
        tensors.insert(format!("{module}.down.weight"), pair.down.f_to_kind(Kind::Float)?);
        tensors.insert(format!("{module}.up.weight"), pair.up.f_to_kind(Kind::Float)?);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
