//! What a weight file is, told from the names, shapes and dtypes in its header alone.
//!
//! ```text
//!   header ─▶ network: whose names are these, and in which form? (naming, lora_names)
//!               ├─ transformer, adapter: every name and shape that a preset, or explicit sizes, would have
//!               └─ encoders: sizes from the shapes, and what the network's own loader would find wrong
//! ```

mod adapters;
mod encoders;
mod transformer;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::FluxConfig;
use crate::error::{ProblemKind, TensorProblem};
use crate::header::{FLOAT_DTYPES, is_float};
pub use crate::header::{Header, TensorHeader};
use crate::lora_names::AdapterForm;
use crate::naming::{self, Network, View};

/// What sort of network a set of names belongs to, in whichever form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// FLUX transformer.
    Transformer,
    /// A transformer in one file with the networks around it.
    WholePipeline,
    /// An adapter of the transformer.
    Lora,
    /// FLUX autoencoder.
    Autoencoder,
    T5,
    Clip,
    Owlv2,
    Dino,
    Dinov2,
}

impl Family {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Transformer => "FLUX transformer",
            Self::WholePipeline => "whole pipeline in one file",
            Self::Lora => "LoRA",
            Self::Autoencoder => "FLUX autoencoder",
            Self::T5 => "T5 encoder",
            Self::Clip => "CLIP",
            Self::Owlv2 => "OWLv2 detector",
            Self::Dino => "DINO",
            Self::Dinov2 => "DINOv2",
        }
    }

    fn of_network(network: Network) -> Self {
        match network {
            Network::Transformer => Self::Transformer,
            Network::Autoencoder => Self::Autoencoder,
            Network::T5 => Self::T5,
            Network::Clip => Self::Clip,
            Network::Owlv2 => Self::Owlv2,
            Network::Dino => Self::Dino,
            Network::Dinov2 => Self::Dinov2,
        }
    }
}

/// Tensors and elements of one dtype.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DtypeCount {
    pub tensors: u64,
    pub parameters: u64,
}

/// What a header says.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// None if the names are nobody's that is known here.
    pub family: Option<Family>,
    /// Whose names the file has and in what form its values are, where that is not as published.
    pub form: Option<String>,
    /// Whether a network can be loaded from it.
    pub fits: bool,
    /// Presets that it fits, or is nearest to.
    pub presets: Vec<&'static str>,
    /// Sizes of the transformer that it fits, or is nearest to.
    pub config: Option<FluxConfig>,
    /// What else the shapes tell, for people: rank, layers, widths.
    pub facts: BTreeMap<&'static str, String>,
    /// Why a file in good order still cannot be loaded.
    pub obstacle: Option<&'static str>,
    /// Every tensor that is missing, unexpected, misshapen or of a dtype that is no float.
    #[serde(serialize_with = "as_text")]
    pub problems: Vec<TensorProblem>,
    pub tensors: u64,
    pub parameters: u64,
    /// Size of the tensors, without the header.
    pub bytes: u64,
    pub dtypes: BTreeMap<String, DtypeCount>,
}

fn as_text<S: serde::Serializer>(problems: &[TensorProblem], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(ToString::to_string))
}

/// What one family's check found out.
#[derive(Default)]
struct Verdict {
    form: Option<String>,
    /// Why it cannot be loaded though nothing is wrong with it.
    obstacle: Option<&'static str>,
    presets: Vec<&'static str>,
    config: Option<FluxConfig>,
    facts: BTreeMap<&'static str, String>,
    problems: Vec<TensorProblem>,
}

/// What is wrong with the tensors of one network, in whichever form they are.
fn check_network(header: &Header, network: Network) -> Verdict {
    let view = View::of(header, network);
    if !view.problems.is_empty() {
        return Verdict { form: view.form, problems: view.problems, ..Verdict::default() };
    }
    let own = view.header();
    let verdict = match network {
        Network::Transformer => transformer::check(&own),
        Network::Autoencoder => encoders::check_autoencoder(&own),
        Network::T5 => encoders::check_t5(&own),
        Network::Clip => encoders::check_clip(&own),
        Network::Owlv2 => encoders::check_owlv2(&own),
        Network::Dino => encoders::check_dino(&own),
        Network::Dinov2 => encoders::check_dinov2(&own),
    };
    Verdict { form: view.form, ..verdict }
}

/// A file of several networks: the transformer decides, since it is what such files are brought for.
fn check_whole(header: &Header, networks: &[Network]) -> Verdict {
    let mut verdict = check_network(header, Network::Transformer);
    let holds: Vec<&str> = networks.iter().map(|network| Family::of_network(*network).describe()).collect();
    verdict.facts.insert("holds", holds.join(", "));
    verdict
}

/// Tells what a header belongs to, and everything that is wrong with it.
pub fn inspect(header: &Header) -> Inspection {
    let adapter = AdapterForm::of(header);
    let whole = naming::held_together(header);
    let (family, verdict) = match (adapter, whole.as_slice(), naming::network_of(header)) {
        (Some(form), _, _) => (Some(Family::Lora), adapters::check(header, form)),
        (None, [Network::Transformer, _, ..], _) => {
            (Some(Family::WholePipeline), check_whole(header, &whole))
        }
        (None, _, Some(network)) => (Some(Family::of_network(network)), check_network(header, network)),
        (None, _, None) => (None, Verdict::default()),
    };
    let obstacle = verdict.obstacle;
    let mut dtypes: BTreeMap<String, DtypeCount> = BTreeMap::new();
    let (mut parameters, mut bytes) = (0u64, 0u64);
    for tensor in header.values() {
        let elements = elements(&tensor.shape);
        let count = dtypes.entry(tensor.dtype.clone()).or_default();
        count.tensors += 1;
        count.parameters = count.parameters.saturating_add(elements);
        parameters = parameters.saturating_add(elements);
        bytes = bytes.saturating_add(elements.saturating_mul(tensor.bits as u64).div_ceil(8));
    }
    Inspection {
        family,
        form: verdict.form,
        fits: family.is_some() && obstacle.is_none() && verdict.problems.is_empty(),
        presets: verdict.presets,
        config: verdict.config,
        facts: verdict.facts,
        obstacle,
        problems: verdict.problems,
        tensors: header.len() as u64,
        parameters,
        bytes,
        dtypes,
    }
}

fn elements(shape: &[i64]) -> u64 {
    shape.iter().fold(1u64, |product, side| product.saturating_mul(u64::try_from(*side).unwrap_or(0)))
}

/// Everything in which a header differs from a layout, by name.
fn compare(header: &Header, layout: &[(String, Vec<i64>)]) -> Vec<TensorProblem> {
    let mut problems = Vec::new();
    let mut note = |tensor: &str, kind| problems.push(TensorProblem { tensor: tensor.to_owned(), kind });
    let wanted: BTreeMap<&str, &Vec<i64>> =
        layout.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    for (name, expected) in &wanted {
        match header.get(*name) {
            None => note(name, ProblemKind::Missing),
            Some(tensor) if tensor.shape != **expected => {
                let (found, expected) = (tensor.shape.clone(), expected.to_vec());
                note(name, ProblemKind::Shape { found, expected });
            }
            Some(_) => {}
        }
    }
    for (name, tensor) in header {
        if !wanted.contains_key(name.as_str()) {
            note(name, ProblemKind::Unexpected);
        } else if !is_float(&tensor.dtype) {
            let (found, expected) = (tensor.dtype.clone(), FLOAT_DTYPES.to_owned());
            note(name, ProblemKind::Dtype { found, expected });
        }
    }
    problems
}

/// The value that most of `values` have.
fn most_common<T: Ord + Clone>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// One more than the largest number that follows `prefix` in a name.
fn blocks_of<'a>(names: impl Iterator<Item = &'a String>, prefix: &str) -> i64 {
    let index = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
    names.filter_map(index).max().map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests;
