//! One layer between the names that weight files have and the ones that networks here are built from.
//!
//! ```text
//!  header of a file ─▶ prefixes: which tensors are this network's ─▶ scales of one-byte weights ─▶ rules: names and shapes
//!                                                                                                      │
//!                                      loaders, trainers, inspect ◀── recipe for each published name ◀─┘
//! ```
//!
//! | network | published names here | read as well |
//! |---|---|---|
//! | transformer | black-forest-labs/flux | diffusers; both under ComfyUI's prefixes, alone or in a whole checkpoint |
//! | autoencoder | black-forest-labs/flux | diffusers, old spelling of its attention included; ComfyUI's prefixes |
//! | CLIP | Hugging Face, `text_model.`, `vision_model.` | one tower without that prefix (transformers 5); ComfyUI's prefixes |
//! | T5 | Hugging Face | ComfyUI's prefixes |
//! | DINO | torch.hub | Hugging Face's `ViTModel`; a head beside either |
//! | DINOv2 | Hugging Face | torch.hub; a head beside either |
//! | OWLv2 | Hugging Face | – |
//!
//! Every network's weights may be one-byte floats with a scale beside each, in either spelling. Adapters have their own
//! layer, [`crate::lora_names`], since theirs depends on the values.

mod rules;
mod scales;
mod tables;

use std::collections::BTreeMap;

pub(crate) use rules::{filled, matched};

use crate::error::{ProblemKind, TensorProblem};
use crate::header::{Header, TensorHeader};

/// A network whose weights are read under published names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Transformer,
    Autoencoder,
    T5,
    Clip,
    Owlv2,
    Dino,
    Dinov2,
}

impl Network {
    /// The most telling first: names that several networks have count for the first.
    pub const ALL: [Self; 7] =
        [Self::Transformer, Self::Owlv2, Self::Clip, Self::Autoencoder, Self::T5, Self::Dinov2, Self::Dino];
}

/// The rows of one tensor of a file that go into a published one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the file.
    pub tensor: String,
    /// What its values are to be multiplied with: a tensor of one element, or of one for each row.
    pub scale: Option<String>,
    /// Which of how many equal parts of its rows.
    pub part: (i64, i64),
}

/// How a published tensor is made: its pieces, one below the other, in this shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub pieces: Vec<Piece>,
    pub shape: Vec<i64>,
    /// As the first piece has it, before any scale.
    pub dtype: String,
    pub bits: usize,
}

/// A file's tensors under the published names of one network.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whose names the file has, for people, where they are not the published ones.
    pub form: Option<String>,
    /// By published name. A tensor that no rule knows keeps its own.
    pub recipes: BTreeMap<String, Recipe>,
    /// What is wrong with the file's own tensors: pieces or scales that are missing or do not fit each other.
    pub problems: Vec<TensorProblem>,
}

impl View {
    /// The file under the names that it has.
    pub fn plain(header: &Header) -> Self {
        let recipe = |(name, tensor): (&String, &TensorHeader)| {
            let piece = Piece { tensor: name.clone(), scale: None, part: (0, 1) };
            let TensorHeader { shape, dtype, bits } = tensor.clone();
            (name.clone(), Recipe { pieces: vec![piece], shape, dtype, bits })
        };
        Self { recipes: header.iter().map(recipe).collect(), ..Self::default() }
    }

    /// The file under the published names of `network`. Tensors of other networks, of heads and of training are left out
    /// where it can be told that they are.
    pub fn of(header: &Header, network: Network) -> Self {
        let mut forms = Vec::new();
        let (prefix, mut tensors) = own_tensors(header, network);
        if let Some(prefix) = prefix.filter(|prefix| !tables::is_published_prefix(network, prefix)) {
            forms.push(format!("under {prefix}*"));
        }
        let mut problems = Vec::new();
        if scales::take_off(header, &mut tensors, &mut problems) {
            forms.push("one-byte weights with scales".to_owned());
        }
        tables::leave_out(network, &mut tensors);
        let (name, rules) = tables::rules_for(network, tensors.keys().map(String::as_str));
        forms.splice(0..0, name.map(str::to_owned));
        let recipes = rules::apply(header, tensors, rules, &mut problems);
        Self { form: (!forms.is_empty()).then(|| forms.join(", ")), recipes, problems }
    }

    /// Shapes and dtypes under the published names.
    pub fn header(&self) -> Header {
        let described = |(name, recipe): (&String, &Recipe)| {
            let Recipe { shape, dtype, bits, .. } = recipe.clone();
            (name.clone(), TensorHeader { shape, dtype, bits })
        };
        self.recipes.iter().map(described).collect()
    }
}

/// The network that most names are of, if that is more than half of them, whichever their form and prefix.
pub fn network_of(header: &Header) -> Option<Network> {
    let known = |network: Network| {
        let prefixes = tables::prefixes(network);
        let bare = |name: &str| {
            prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name).to_owned()
        };
        header.keys().filter(|name| tables::knows(network, &bare(name))).count()
    };
    // Of equals the first.
    let counts = Network::ALL.into_iter().rev().map(|network| (known(network), network));
    let (count, network) = counts.max_by_key(|(count, _)| *count)?;
    if count * 2 <= header.len() {
        return None;
    }
    // DINO and DINOv2 share most names; the scales of the branches are DINOv2's alone.
    let scales = || header.keys().any(|name| name.contains(".layer_scale") || name.ends_with(".ls1.gamma"));
    Some(match network {
        Network::Dino | Network::Dinov2 if scales() => Network::Dinov2,
        Network::Dino | Network::Dinov2 => Network::Dino,
        network => network,
    })
}

/// The networks that lie in one file, each under a prefix of its own; the transformer first.
pub fn held_together(header: &Header) -> Vec<Network> {
    let holds = |network: &Network| {
        let of_pipelines = |prefix: &&&str| tables::OF_PIPELINES.contains(*prefix);
        tables::prefixes(*network).iter().filter(of_pipelines).any(|prefix| {
            let own = header.keys().filter_map(|name| name.strip_prefix(prefix));
            tables::is_of(*network, own)
        })
    };
    Network::ALL.into_iter().filter(holds).collect()
}

/// Tensors of a file by what they are called once a prefix is off, each with its scale once that is known.
type Tensors = BTreeMap<String, Piece>;

/// The tensors that are `network`'s: those under the first prefix of its list that any has, or all.
fn own_tensors(header: &Header, network: Network) -> (Option<&'static str>, Tensors) {
    let whole = |tensor: &String| Piece { tensor: tensor.clone(), scale: None, part: (0, 1) };
    let under = |prefix: &str| -> Tensors {
        let own = |name: &String| Some((name.strip_prefix(prefix)?.to_owned(), whole(name)));
        header.keys().filter_map(own).collect()
    };
    for prefix in tables::prefixes(network) {
        let tensors = under(prefix);
        if tables::is_of(network, tensors.keys().map(String::as_str)) {
            return (Some(prefix), tensors);
        }
    }
    (None, header.keys().map(|name| (name.clone(), whole(name))).collect())
}

fn note(problems: &mut Vec<TensorProblem>, tensor: impl Into<String>, kind: ProblemKind) {
    problems.push(TensorProblem { tensor: tensor.into(), kind });
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod tests;
