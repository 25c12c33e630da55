//! Stem, double-stream block, single-stream block and head.

use tch::{Kind, Tensor};

use super::FluxInputs;
use super::layers::{MlpEmbedder, QkNorm, attend, layer_norm, modulations, time_embedding};
use super::placement::Movable;
use super::rope::RopeTable;
use crate::config::FluxConfig;
use crate::error::{ModelError, Result};
use crate::layers::{Linear, cast};
use crate::lora::{DoubleLora, LoraPair, SingleLora};
use crate::params::{Init, ParamSource};

/// Input projections and the conditioning vector.
#[derive(Debug)]
pub(crate) struct Stem {
    pub img_in: Linear,
    txt_in: Linear,
    time_in: MlpEmbedder,
    vector_in: MlpEmbedder,
    guidance_in: Option<MlpEmbedder>,
}

/// What the stem hands to the blocks.
pub(crate) struct StemOut {
    /// `[batch, target and reference tokens, hidden]`
    pub img: Tensor,
    /// `[batch, text tokens, hidden]`
    pub txt: Tensor,
    /// Conditioning vector before its SiLU, `[batch, hidden]`
    pub vec: Tensor,
}

impl Stem {
    pub fn build(config: &FluxConfig, source: &mut dyn ParamSource) -> Result<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            img_in: Linear::build(source, "img_in", config.in_channels, hidden, true, Init::Xavier)?,
            txt_in: Linear::build(source, "txt_in", config.context_in_dim, hidden, true, Init::Xavier)?,
            time_in: MlpEmbedder::build(source, "time_in", 256, hidden)?,
            vector_in: MlpEmbedder::build(source, "vector_in", config.vec_in_dim, hidden)?,
            guidance_in: config
                .guidance_embed
                .then(|| MlpEmbedder::build(source, "guidance_in", 256, hidden))
                .transpose()?,
        })
    }

    pub fn forward(&self, inputs: &FluxInputs<'_>, compute: Kind) -> Result<StemOut> {
        let mut vec = self.time_in.forward(&time_embedding(inputs.timesteps, compute)?)?;
        if let Some(guidance_in) = &self.guidance_in {
            let guidance = inputs
                .guidance
                .ok_or_else(|| ModelError::input("guidance", "is required by this network"))?;
            vec = vec.f_add(&guidance_in.forward(&time_embedding(guidance, compute)?)?)?;
        }
        vec = vec.f_add(&self.vector_in.forward(&cast(inputs.vec, compute)?)?)?;
        let mut images = vec![cast(inputs.img, compute)?];
        for reference in inputs.refs {
            images.push(cast(reference, compute)?);
        }
        Ok(StemOut {
            img: self.img_in.forward(&Tensor::f_cat(&images, 1)?)?,
            txt: self.txt_in.forward(&cast(inputs.txt, compute)?)?,
            vec,
        })
    }

    pub fn visit_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.img_in.visit_mut("img_in", visit);
        self.txt_in.visit_mut("txt_in", visit);
        self.time_in.visit_mut("time_in", visit);
        self.vector_in.visit_mut("vector_in", visit);
        if let Some(guidance_in) = &mut self.guidance_in {
            guidance_in.visit_mut("guidance_in", visit);
        }
    }
}

/// `base` plus the adapter's contribution for input `x`, if there is an adapter.
fn with_lora(base: Tensor, pair: Option<&LoraPair>, x: &Tensor) -> Result<Tensor> {
    match pair {
        Some(pair) => Ok(base.f_add(&pair.forward(x)?)?),
        None => Ok(base),
    }
}

/// The half of a double block that belongs to one stream (image or text).
#[derive(Debug)]
pub(crate) struct Stream {
    pub modulation: Linear,
    pub qkv: Linear,
    pub norm: QkNorm,
    pub proj: Linear,
    pub mlp_in: Linear,
    pub mlp_out: Linear,
}

impl Stream {
    fn build(config: &FluxConfig, prefix: &str, source: &mut dyn ParamSource) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.mlp_hidden());
        Ok(Self {
            modulation: Linear::build(
                source,
                &format!("{prefix}_mod.lin"),
                hidden,
                6 * hidden,
                true,
                Init::Zero,
            )?,
            qkv: Linear::build(
                source,
                &format!("{prefix}_attn.qkv"),
                hidden,
                3 * hidden,
                config.qkv_bias,
                Init::Xavier,
            )?,
            norm: QkNorm::build(source, &format!("{prefix}_attn.norm"), config.head_dim())?,
            proj: Linear::build(source, &format!("{prefix}_attn.proj"), hidden, hidden, true, Init::Xavier)?,
            mlp_in: Linear::build(source, &format!("{prefix}_mlp.0"), hidden, mlp, true, Init::Xavier)?,
            mlp_out: Linear::build(source, &format!("{prefix}_mlp.2"), mlp, hidden, true, Init::Xavier)?,
        })
    }

    fn visit_mut(&mut self, prefix: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.modulation.visit_mut(&format!("{prefix}_mod.lin"), visit);
        self.qkv.visit_mut(&format!("{prefix}_attn.qkv"), visit);
        self.norm.visit_mut(&format!("{prefix}_attn.norm"), visit);
        self.proj.visit_mut(&format!("{prefix}_attn.proj"), visit);
        self.mlp_in.visit_mut(&format!("{prefix}_mlp.0"), visit);
        self.mlp_out.visit_mut(&format!("{prefix}_mlp.2"), visit);
    }

    fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            modulation: self.modulation.mapped(map)?,
            qkv: self.qkv.mapped(map)?,
            norm: self.norm.mapped(map)?,
            proj: self.proj.mapped(map)?,
            mlp_in: self.mlp_in.mapped(map)?,
            mlp_out: self.mlp_out.mapped(map)?,
        })
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_out.forward(&self.mlp_in.forward(x)?.f_gelu("tanh")?)
    }
}

/// Text and images in streams of their own that meet in attention.
#[derive(Debug)]
pub(crate) struct DoubleBlock {
    pub img: Stream,
    pub txt: Stream,
    pub heads: i64,
}

impl DoubleBlock {
    pub fn build(config: &FluxConfig, prefix: &str, source: &mut dyn ParamSource) -> Result<Self> {
        Ok(Self {
            img: Stream::build(config, &format!("{prefix}.img"), source)?,
            txt: Stream::build(config, &format!("{prefix}.txt"), source)?,
            heads: config.num_heads,
        })
    }

    /// `img` `[batch, image tokens, hidden]`, `txt` `[batch, text tokens, hidden]`, `vec_act` = SiLU of
    /// the conditioning vector `[batch, hidden]`; returns the new (`img`, `txt`).
    pub fn forward(
        &self,
        img: &Tensor,
        txt: &Tensor,
        vec_act: &Tensor,
        rope: &RopeTable,
        lora: Option<&DoubleLora>,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, img_tokens, hidden) = img.size3()?;
        let (_, txt_tokens, _) = txt.size3()?;
        let [img_attn_mod, img_mlp_mod] = modulations::<2>(&self.img.modulation, vec_act, hidden)?;
        let [txt_attn_mod, txt_mlp_mod] = modulations::<2>(&self.txt.modulation, vec_act, hidden)?;

        let img_modulated = img_attn_mod.apply(img)?;
        let txt_modulated = txt_attn_mod.apply(txt)?;
        let img_qkv =
            with_lora(self.img.qkv.forward(&img_modulated)?, lora.map(|l| &l.qkv_img), &img_modulated)?;
        let txt_qkv =
            with_lora(self.txt.qkv.forward(&txt_modulated)?, lora.map(|l| &l.qkv_txt), &txt_modulated)?;
        let qkv = Tensor::f_cat(&[txt_qkv, img_qkv], 1)?;
        // One norm over all tokens, each with its own stream's scale: [2, 1, 1, tokens, head_dim].
        let scales = Tensor::f_cat(
            &[
                self.txt.norm.scales()?.f_expand([-1, -1, -1, txt_tokens, -1], false)?,
                self.img.norm.scales()?.f_expand([-1, -1, -1, img_tokens, -1], false)?,
            ],
            3,
        )?;
        let attended = attend(&qkv, &scales, rope, self.heads)?;
        let txt_attended = attended.f_narrow(1, 0, txt_tokens)?;
        let img_attended = attended.f_narrow(1, txt_tokens, img_tokens)?;
        debug_assert_eq!(img_attended.size(), [batch, img_tokens, hidden]);

        let img_update =
            with_lora(self.img.proj.forward(&img_attended)?, lora.map(|l| &l.proj_img), &img_attended)?;
        let img = img_attn_mod.residual(img, &img_update)?;
        let img = img_mlp_mod.residual(&img, &self.img.mlp(&img_mlp_mod.apply(&img)?)?)?;
        let txt_update =
            with_lora(self.txt.proj.forward(&txt_attended)?, lora.map(|l| &l.proj_txt), &txt_attended)?;
        let txt = txt_attn_mod.residual(txt, &txt_update)?;
        let txt = txt_mlp_mod.residual(&txt, &self.txt.mlp(&txt_mlp_mod.apply(&txt)?)?)?;
        Ok((img, txt))
    }

    pub fn visit_mut(&mut self, prefix: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.img.visit_mut(&format!("{prefix}.img"), visit);
        self.txt.visit_mut(&format!("{prefix}.txt"), visit);
    }
}

impl Movable for DoubleBlock {
    fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { img: self.img.mapped(map)?, txt: self.txt.mapped(map)?, heads: self.heads })
    }
}

/// Text and images in one stream; attention and MLP side by side.
#[derive(Debug)]
pub(crate) struct SingleBlock {
    pub linear1: Linear,
    pub linear2: Linear,
    pub norm: QkNorm,
    pub modulation: Linear,
    pub heads: i64,
}

impl SingleBlock {
    pub fn build(config: &FluxConfig, prefix: &str, source: &mut dyn ParamSource) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.mlp_hidden());
        Ok(Self {
            linear1: Linear::build(
                source,
                &format!("{prefix}.linear1"),
                hidden,
                3 * hidden + mlp,
                true,
                Init::Xavier,
            )?,
            linear2: Linear::build(
                source,
                &format!("{prefix}.linear2"),
                hidden + mlp,
                hidden,
                true,
                Init::Xavier,
            )?,
            norm: QkNorm::build(source, &format!("{prefix}.norm"), config.head_dim())?,
            modulation: Linear::build(
                source,
                &format!("{prefix}.modulation.lin"),
                hidden,
                3 * hidden,
                true,
                Init::Zero,
            )?,
            heads: config.num_heads,
        })
    }

    /// `x` `[batch, text then image tokens, hidden]`; returns the new `x`.
    pub fn forward(
        &self,
        x: &Tensor,
        vec_act: &Tensor,
        rope: &RopeTable,
        lora: Option<&SingleLora>,
    ) -> Result<Tensor> {
        let (_, _, hidden) = x.size3()?;
        let [modulation] = modulations::<1>(&self.modulation, vec_act, hidden)?;
        let modulated = modulation.apply(x)?;
        let both = self.linear1.forward(&modulated)?;
        let mlp_width = both.size3()?.2 - 3 * hidden;
        let qkv = with_lora(both.f_narrow(-1, 0, 3 * hidden)?, lora.map(|l| &l.qkv), &modulated)?;
        let attended = attend(&qkv, &self.norm.scales()?, rope, self.heads)?;
        let mlp = both.f_narrow(-1, 3 * hidden, mlp_width)?.f_gelu("tanh")?;
        let joined = Tensor::f_cat(&[attended, mlp], -1)?;
        let update = with_lora(self.linear2.forward(&joined)?, lora.map(|l| &l.proj), &joined)?;
        modulation.residual(x, &update)
    }

    pub fn visit_mut(&mut self, prefix: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.linear1.visit_mut(&format!("{prefix}.linear1"), visit);
        self.linear2.visit_mut(&format!("{prefix}.linear2"), visit);
        self.norm.visit_mut(&format!("{prefix}.norm"), visit);
        self.modulation.visit_mut(&format!("{prefix}.modulation.lin"), visit);
    }
}

impl Movable for SingleBlock {
    fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            linear1: self.linear1.mapped(map)?,
            linear2: self.linear2.mapped(map)?,
            norm: self.norm.mapped(map)?,
            modulation: self.modulation.mapped(map)?,
            heads: self.heads,
        })
    }
}

/// The final layer: modulated LayerNorm and a projection to token channels.
#[derive(Debug)]
pub(crate) struct Head {
    modulation: Linear,
    linear: Linear,
}

impl Head {
    pub fn build(config: &FluxConfig, source: &mut dyn ParamSource) -> Result<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            linear: Linear::build(
                source,
                "final_layer.linear",
                hidden,
                config.in_channels,
                true,
                Init::Zero,
            )?,
            modulation: Linear::build(
                source,
                "final_layer.adaLN_modulation.1",
                hidden,
                2 * hidden,
                true,
                Init::Zero,
            )?,
        })
    }

    /// `x` `[batch, target tokens, hidden]` to `[batch, target tokens, in_channels]`.
    pub fn forward(&self, x: &Tensor, vec_act: &Tensor) -> Result<Tensor> {
        let (_, _, hidden) = x.size3()?;
        let parts = self.modulation.forward(vec_act)?.f_unsqueeze(1)?;
        let shift = parts.f_narrow(-1, 0, hidden)?;
        let scale_plus_one = parts.f_narrow(-1, hidden, hidden)?.f_add_scalar(1.0)?;
        self.linear.forward(&shift.f_addcmul(&scale_plus_one, &layer_norm(x)?)?)
    }

    pub fn visit_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.linear.visit_mut("final_layer.linear", visit);
        self.modulation.visit_mut("final_layer.adaLN_modulation.1", visit);
    }
}
