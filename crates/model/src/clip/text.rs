//! The text tower.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{ClipTextConfig, Pooling};
use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::layers::LayerNorm;
use crate::naming::Network;
use crate::params::{Init, Loader, ParamSource, SeededInit, check_files};
use crate::tokenizer::check_ids;
use crate::transformer::{TransformerLayer, attention_mask};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// What the text tower gives, in its dtype.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// All tokens after the final norm, `[batch, tokens, hidden]`.
    pub last_hidden_state: Tensor,
    /// One token of each, `[batch, hidden]`, as the configuration's [`Pooling`] chooses; not projected.
    pub pooled: Tensor,
}

/// The text tower. A token sees itself and those before it; padding is not masked.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    /// `[vocab_size, hidden]`.
    tokens: Tensor,
    /// `[max_position_embeddings, hidden]`.
    positions: Tensor,
    layers: Vec<TransformerLayer>,
    final_norm: LayerNorm,
    device: Device,
}

/// Tensors of published files that the tower does not use: indices that follow from the sizes, and whatever belongs to
/// the other tower or to the space that both share.
fn of_no_use(name: &str) -> bool {
    name == "text_model.embeddings.position_ids"
        || name == "logit_scale"
        || ["vision_model.", "visual_projection.", "text_projection."]
            .iter()
            .any(|part| name.starts_with(part))
}

impl ClipText {
    /// Loads the tower from a safetensors file, an index of several or a folder ([`WeightFiles::open`]) into `kind` on
    /// `device`, one tensor at a time. A file of both towers will do: the rest is left out.
    pub fn load(config: &ClipTextConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open_as(path, Network::Clip)?;
        let origin = files.origin();
        Self::from_loader(config, Loader::from_files(files, kind, device), &origin, device)
    }

    /// Holds the headers of the files at `path` against `config`, as [`ClipText::load`] would, and reads no tensor.
    pub fn check_files(config: &ClipTextConfig, path: &Path) -> Result<()> {
        check_files(path, Network::Clip, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &ClipTextConfig, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        loader.ignore(of_no_use);
        Self::build(&mut loader, "text_model", config, Device::Cpu)?;
        Ok(loader.into_problems())
    }

    /// Takes tensors under published names; every one that does not fit is listed. `origin` names them in errors.
    pub fn from_tensors(
        config: &ClipTextConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        Self::from_loader(config, Loader::from_map(tensors, kind, device), origin, device)
    }

    /// A fresh tower, a function of `seed`.
    pub fn init(config: &ClipTextConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(&mut SeededInit::new(seed, kind, device), "text_model", config, device)
    }

    fn from_loader(
        config: &ClipTextConfig,
        mut loader: Loader,
        origin: &str,
        device: Device,
    ) -> Result<Self> {
        loader.ignore(of_no_use);
        let tower = Self::build(&mut loader, "text_model", config, device)?;
        loader.finish(origin)?;
        Ok(tower)
    }

    /// Takes `<name>.embeddings.token_embedding.weight` and so on.
    pub(crate) fn build(
        source: &mut dyn ParamSource,
        name: &str,
        config: &ClipTextConfig,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let (hidden, sizes) = (config.hidden_size, config.sizes());
        let mut table = |part: &str, rows: i64| {
            source.take(&format!("{name}.embeddings.{part}.weight"), &[rows, hidden], Init::Normal(0.02))
        };
        Ok(Self {
            config: config.clone(),
            tokens: table("token_embedding", config.vocab_size)?,
            positions: table("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| TransformerLayer::build(source, &format!("{name}.encoder.layers.{i}"), &sizes))
                .collect::<Result<_>>()?,
            final_norm: LayerNorm::build(
                source,
                &format!("{name}.final_layer_norm"),
                hidden,
                config.layer_norm_eps,
            )?,
            device,
        })
    }

    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Runs token ids, int64 `[batch, tokens]` on any device, at most `max_position_embeddings` of them.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipTextOutput> {
        let (_, tokens) = check_ids(ids, self.config.vocab_size)?;
        let most = self.config.max_position_embeddings;
        if tokens > most {
            return Err(ModelError::input("ids", format!("{tokens} tokens are more than {most}")));
        }
        tch::no_grad(|| {
            let ids = ids.f_to_device(self.device)?;
            let positions = self.positions.f_narrow(0, 0, tokens)?;
            let mut x = Tensor::f_embedding(&self.tokens, &ids, -1, false, false)?.f_add(&positions)?;
            let mask = attention_mask(tokens, true, None, self.device)?;
            for layer in &self.layers {
                x = layer.forward(&x, Some(&mask))?;
            }
            let last_hidden_state = self.final_norm.forward(&x)?;
            let pooled = pool(&last_hidden_state, &ids, self.config.pooling())?;
            Ok(ClipTextOutput { last_hidden_state, pooled })
        })
    }
}

/// One state of each row: `[batch, tokens, hidden]` with the ids `[batch, tokens]` that it is of, to `[batch, hidden]`.
pub fn pool(states: &Tensor, ids: &Tensor, rule: Pooling) -> Result<Tensor> {
    let (batch, tokens, hidden) = states.size3()?;
    if ids.size() != [batch, tokens] {
        let reason = format!("shape {:?} is not [{batch}, {tokens}]", ids.size());
        return Err(ModelError::input("ids", reason));
    }
    // argmax gives the first place of several, and place 0 where no token is the one looked for.
    let place = match rule {
        Pooling::HighestId => ids.f_argmax(-1, false)?,
        Pooling::FirstEndOfText(id) => ids.f_eq(id)?.f_to_kind(Kind::Int64)?.f_argmax(-1, false)?,
    };
    let place = place.f_to_device(states.device())?.f_view([batch, 1, 1])?;
    Ok(states.f_gather(1, &place.f_expand([batch, 1, hidden], false)?, false)?.f_squeeze_dim(1)?)
}
