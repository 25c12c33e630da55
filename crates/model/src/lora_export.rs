//! The adapter under the names of other loaders.
//!
//! | format | read by | keys of block 0 |
//! |---|---|---|
//! | published | UNO, ComfyUI (if the last double and single block are there), diffusers (converts it) | `double_blocks.0.processor.qkv_lora1.down.weight` |
//! | comfyui | ComfyUI's and kohya's loaders | `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight` |
//! | diffusers | diffusers and PEFT | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight` |
//!
//! All three hold the same update, W + up · down. ComfyUI's loader scales by alpha / rank, so each of its pairs carries alpha =
//! rank; it knows a single block's first matrix as a whole, so the rows of `up` that belong to the MLP are zero. diffusers
//! has queries, keys and values apart: `up` is cut in three, and `down` is written three times.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::lora_sites::Site;
use crate::naming::filled;
use crate::weights::TensorMap;

/// Who shall read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraFormat {
    Published,
    Comfyui,
    Diffusers,
}

impl LoraFormat {
    pub const ALL: [Self; 3] = [Self::Published, Self::Comfyui, Self::Diffusers];

    pub fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Comfyui => "comfyui",
            Self::Diffusers => "diffusers",
        }
    }
}

impl fmt::Display for LoraFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LoraFormat {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| ModelError::Config {
            field: "format",
            reason: format!("{name:?} is not one of {}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}

/// One update of one block: `down` `[rank, in]`, `up` `[out, rank]`.
struct Pair {
    down: Tensor,
    up: Tensor,
}

/// The site, block and half (true: `down`) of a published key.
fn parse_published(name: &str) -> Option<(Site, u32, bool)> {
    let mut parts = name.split('.');
    let (sort, index) = (parts.next()?, parts.next()?.parse().ok()?);
    let (processor, pair) = (parts.next()?, parts.next()?);
    let down = match (parts.next()?, parts.next()?, parts.next()) {
        ("down", "weight", None) => true,
        ("up", "weight", None) => false,
        _ => return None,
    };
    let site = Site::ALL.into_iter().find(|site| site.published() == (sort, pair))?;
    (processor == "processor").then_some((site, index, down))
}

/// Pairs of a published adapter by block and site, every problem listed.
fn pairs(tensors: &TensorMap, origin: &str) -> Result<BTreeMap<(Site, u32), Pair>> {
    let mut problems = Vec::new();
    let mut note = |tensor: String, kind| problems.push(TensorProblem { tensor, kind });
    let mut pairs = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some((site, index, down)) = parse_published(name) else {
            note(name.clone(), ProblemKind::Unexpected);
            continue;
        };
        let other = if down {
            name.replace(".down.weight", ".up.weight")
        } else {
            name.replace(".up.weight", ".down.weight")
        };
        match tensors.get(&other) {
            None => note(other, ProblemKind::Missing),
            Some(up) if down => match (tensor.size().as_slice(), up.size().as_slice()) {
                ([rank, _], [_, columns]) if rank == columns && *rank > 0 => {
                    let pair = Pair { down: tensor.shallow_clone(), up: up.shallow_clone() };
                    pairs.insert((site, index), pair);
                }
                ([rank, _], [rows, _]) => {
                    let (found, expected) = (up.size(), vec![*rows, *rank]);
                    note(other, ProblemKind::Shape { found, expected });
                }
                (found, _) => {
                    note(name.clone(), ProblemKind::Shape { found: found.to_vec(), expected: vec![0, 0] });
                }
            },
            Some(_) => {}
        }
    }
    match problems.is_empty() {
        true if pairs.is_empty() => {
            Err(ModelError::input("adapter", format!("{origin} holds no tensor of an adapter")))
        }
        true => Ok(pairs),
        false => Err(ModelError::Weights { origin: origin.to_owned(), problems }),
    }
}

/// Rewrites a published adapter for another loader. The rank is each pair's own.
///
/// `weight` scales the adapter's effect, once (`up` alone is multiplied; in float32, before the one rounding to `kind`).
/// `origin` is what an error calls the tensors' source. The result's tensors are on the CPU, contiguous, in `kind`.
pub fn convert(
    tensors: &TensorMap,
    origin: &str,
    format: LoraFormat,
    kind: Kind,
    weight: f64,
) -> Result<TensorMap> {
    if !weight.is_finite() {
        return Err(ModelError::Config { field: "weight", reason: format!("{weight} is not a number") });
    }
    let pairs = pairs(tensors, origin)?;
    let host = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_detach()?.f_to_device(Device::Cpu)?) };
    let mut out = TensorMap::new();
    for ((site, index), pair) in &pairs {
        let down = host(&pair.down)?.f_to_kind(kind)?.f_contiguous()?;
        let up = host(&pair.up)?.f_to_kind(Kind::Float)?.f_mul_scalar(weight)?;
        let up = up.f_to_kind(kind)?.f_contiguous()?;
        match format {
            LoraFormat::Published => {
                let (sort, name) = site.published();
                let key = format!("{sort}.{index}.processor.{name}");
                out.insert(format!("{key}.down.weight"), down);
                out.insert(format!("{key}.up.weight"), up);
            }
            LoraFormat::Comfyui => {
                let key =
                    format!("lora_unet_{}", filled(site.base(), &[i64::from(*index)]).replace('.', "_"));
                let alpha = Tensor::f_from_slice(&[down.size()[0] as f32])?.f_reshape(&[0i64; 0][..])?;
                let up = match site {
                    Site::SingleQkv => widened(&up, mlp_rows(&pairs, *index, &down)?)?,
                    _ => up,
                };
                out.insert(format!("{key}.alpha"), alpha);
                out.insert(format!("{key}.lora_down.weight"), down);
                out.insert(format!("{key}.lora_up.weight"), up);
            }
            LoraFormat::Diffusers => {
                let names = site.diffusers();
                let parts = names.len() as i64;
                let rows = up.size()[0];
                if rows % parts != 0 {
                    let reason = format!("{rows} rows of `up` do not divide into {parts} matrices");
                    return Err(ModelError::input(filled(names[0], &[i64::from(*index)]), reason));
                }
                for (part, name) in names.iter().enumerate() {
                    let key = format!("transformer.{}", filled(name, &[i64::from(*index)]));
                    let rows = rows / parts;
                    let part = up.f_narrow(0, part as i64 * rows, rows)?.f_contiguous()?;
                    // Shared storage: each is written out on its own.
                    out.insert(format!("{key}.lora_A.weight"), down.shallow_clone());
                    out.insert(format!("{key}.lora_B.weight"), part);
                }
            }
        }
    }
    Ok(out)
}

/// Rows of a single block's first matrix that belong to its MLP: what the block's other pair takes in beside attention, four
/// times the width where there is no other pair.
fn mlp_rows(pairs: &BTreeMap<(Site, u32), Pair>, index: u32, down: &Tensor) -> Result<i64> {
    let (_, hidden) = down.size2()?;
    match pairs.get(&(Site::SingleProj, index)) {
        Some(proj) => {
            let (_, input) = proj.down.size2()?;
            if input < hidden {
                let reason = format!("takes {input} channels in, fewer than the network's {hidden}");
                return Err(ModelError::input(format!("single_blocks.{index}.processor.proj_lora"), reason));
            }
            Ok(input - hidden)
        }
        None => Ok(4 * hidden),
    }
}

/// `up` with `rows` more rows, of zeros.
fn widened(up: &Tensor, rows: i64) -> Result<Tensor> {
    let (_, rank) = up.size2()?;
    let zeros = Tensor::f_zeros([rows, rank], (up.f_kind()?, up.device()))?;
    Ok(Tensor::f_cat(&[up, &zeros], 0)?)
}

#[cfg(test)]
mod tests;
