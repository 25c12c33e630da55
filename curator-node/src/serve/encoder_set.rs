//! The one set of encoders of a process, on the encoding thread: it serves pairs, and the curation thread draws with it.
//!
//! ```text
//!   serving ── pairs ──────────────────────┐
//!                                          ├─▶ encoding thread: text encoders, autoencoder
//!   curation thread ── prompts, latents ───┘     (drawing waits for its answer, so that at most one of its jobs waits here)
//! ```
//!
//! Only tensors on the host cross between the threads, so that neither has to know the other's order of work on a device.

use crate::metrics::Metrics;
use crate::pipeline::{EncodersOfDrawing, SharedEncoders};
use crate::serve::encode::{EncoderSource, Encoders, Kept};
use crate::serve::encoding_cache::EncodingCache;
use crate::worker::{Dropped, Worker};
use crescendo_model::codec::{EncodedText, LatentCodec, TextEncoder};
use crescendo_model::tch::{self, Device, Tensor};
use crescendo_model::{ModelError, Result};

/// Encoders that are loaded; owned by the encoding thread.
#[derive(Default)]
pub struct EncoderSet {
    loaded: Vec<Loaded>,
    cache: Option<(EncodingCache, Metrics)>,
}

impl std::fmt::Debug for EncoderSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sources: Vec<_> = self.loaded.iter().map(|one| &one.sources).collect();
        f.debug_struct("EncoderSet").field("loaded", &sources).finish_non_exhaustive()
    }
}

struct Loaded {
    /// Where they lie; equal files of several jobs are loaded once.
    sources: Vec<EncoderSource>,
    /// None where they take no room.
    identity: Option<String>,
    encoders: Encoders,
}

/// Sources that are known to name the same files.
const MAX_SOURCES: usize = 16;

impl EncoderSet {
    /// One that keeps what it encodes in `cache`.
    pub fn keeping(cache: EncodingCache, metrics: Metrics) -> EncoderSet {
        metrics.encodings_bytes.set(cache.size_bytes() as i64);
        EncoderSet { loaded: Vec::new(), cache: Some((cache, metrics)) }
    }

    /// The encoders of a model. Those of FLUX fill a device: there is one set of them, and it goes before another is loaded.
    pub fn of(&mut self, source: &EncoderSource) -> Result<&Encoders> {
        let place = match self.loaded.iter().position(|one| one.sources.contains(source)) {
            Some(place) => place,
            None => self.load(source)?,
        };
        Ok(&self.loaded[place].encoders)
    }

    fn load(&mut self, source: &EncoderSource) -> Result<usize> {
        let identity = source.identity()?;
        if identity.is_some() {
            if let Some(place) = self.loaded.iter().position(|one| one.identity == identity) {
                let sources = &mut self.loaded[place].sources;
                sources.truncate(MAX_SOURCES - 1);
                sources.push(source.clone());
                return Ok(place);
            }
            self.loaded.retain(|one| one.identity.is_none());
        }
        let kept = self.cache.as_ref().zip(identity.as_ref()).map(|((cache, metrics), identity)| Kept {
            cache: cache.clone(),
            identity: identity.clone(),
            metrics: metrics.clone(),
        });
        let encoders = Encoders::open(source, kept)?;
        self.loaded.push(Loaded { sources: vec![source.clone()], identity, encoders });
        Ok(self.loaded.len() - 1)
    }
}

/// The encoders of one model on the encoding thread, for a pipeline that draws on another.
#[derive(Clone, Debug)]
pub struct EncodersElsewhere {
    worker: Worker<EncoderSet>,
    source: EncoderSource,
}

impl EncodersElsewhere {
    pub fn new(worker: Worker<EncoderSet>, source: EncoderSource) -> EncodersElsewhere {
        EncodersElsewhere { worker, source }
    }

    /// Does `work` with the encoders and waits for it; not for async threads.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Encoders) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let source = self.source.clone();
        let done = self.worker.run_blocking("encoding", move |set| tch::no_grad(|| work(set.of(&source)?)));
        done.map_err(|dropped: Dropped| ModelError::Torch(dropped.to_string()))?
    }
}

impl SharedEncoders for EncodersElsewhere {
    fn open(&self) -> Result<EncodersOfDrawing> {
        let (channels, downscale) =
            self.with(|encoders| Ok((encoders.codec().latent_channels(), encoders.codec().downscale())))?;
        let codec = CodecElsewhere { encoders: self.clone(), channels, downscale };
        Ok(EncodersOfDrawing { codec: Box::new(codec), text: Box::new(self.clone()) })
    }
}

fn to_host(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_to_device(Device::Cpu)?)
}

impl TextEncoder for EncodersElsewhere {
    fn encode(&self, prompts: &[&str]) -> Result<EncodedText> {
        let prompts: Vec<String> = prompts.iter().map(|prompt| (*prompt).to_owned()).collect();
        self.with(move |encoders| {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let EncodedText { txt, vec } = encoders.text().encode(&prompts)?;
            Ok(EncodedText { txt: to_host(&txt)?, vec: to_host(&vec)? })
        })
    }
}

/// What turns pictures into latents and back, on the encoding thread.
struct CodecElsewhere {
    encoders: EncodersElsewhere,
    channels: i64,
    downscale: i64,
}

impl LatentCodec for CodecElsewhere {
    fn latent_channels(&self) -> i64 {
        self.channels
    }

    fn downscale(&self) -> i64 {
        self.downscale
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = to_host(pixels)?;
        self.encoders.with(move |encoders| to_host(&encoders.codec().encode(&pixels)?))
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = to_host(latents)?;
        self.encoders.with(move |encoders| to_host(&encoders.codec().decode(&latents)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PathResolver;
    use crescendo_core::spec::{ModelPreset, ModelSpec, Precision};
    use crescendo_model::encoder_files::EncoderFiles;
    use crescendo_model::tch::Kind;

    #[test]
    fn what_is_encoded_elsewhere_is_the_same() {
        let model = ModelSpec {
            preset: ModelPreset::Nano,
            sizes: None,
            weights: Some("w".into()),
            encoders: None,
            precision: Precision::Auto,
        };
        let paths =
            PathResolver::new("/lib".as_ref(), "s3://bucket", crescendo_core::reach::Reach::Everything);
        let source = EncoderSource::of(&model, &paths, Device::Cpu).expect("nano");
        let worker = Worker::start("encoding", 4, EncoderSet::default).expect("start a thread");
        let elsewhere = EncodersElsewhere::new(worker, source).open().expect("open");
        let here = (
            EncoderFiles::Nano.codec(Device::Cpu).expect("nano"),
            EncoderFiles::Nano.text(Kind::Float, Device::Cpu).expect("nano"),
        );
        let pixels =
            Tensor::linspace(-1.0, 1.0, 2 * 3 * 8 * 4, (Kind::Float, Device::Cpu)).view([2, 3, 8, 4]);
        let latents = here.0.encode(&pixels).expect("encode");
        assert_eq!(elsewhere.codec.encode(&pixels).expect("encode"), latents);
        assert_eq!(
            elsewhere.codec.decode(&latents).expect("decode"),
            here.0.decode(&latents).expect("decode")
        );
        let (far, near) =
            (elsewhere.text.encode(&["a red cup", "x"]), here.1.encode(&["a red cup", "x"]).expect("encode"));
        let far = far.expect("encode");
        assert_eq!((far.txt, far.vec), (near.txt, near.vec));
        assert_eq!(
            (elsewhere.codec.latent_channels(), elsewhere.codec.downscale()),
            (here.0.latent_channels(), here.0.downscale())
        );
        // What is wrong with a picture is told as it is.
        let odd = Tensor::zeros([1, 3, 7, 5], (Kind::Float, Device::Cpu));
        let errors =
            [elsewhere.codec.encode(&odd), here.0.encode(&odd)].map(|e| e.expect_err("odd").to_string());
        assert_eq!(errors[0], errors[1]);
    }
}
