//! Pairs as ranks take them: latents and text features, made on the encoding thread.

use crate::images;
use crate::metrics::Metrics;
use crate::paths::{PathError, PathResolver, fingerprint};
use crate::pipeline::encoder_files;
use crate::serve::encoding_cache::{self, EncodingCache};
use crescendo_core::spec::ModelSpec;
use crescendo_dataset::pair::Pair;
use crescendo_model::codec::{BYTE_OFFSET, BYTE_SCALE, LatentBytes, LatentCodec, TextEncoder};
use crescendo_model::encoder_files::EncoderFiles;
use crescendo_model::flux_text::FluxTextPaths;
use crescendo_model::of_spec::compute_kind;
use crescendo_model::tch::{self, Device, Kind, Tensor};
use crescendo_model::{ModelError, Result};
use crescendo_proto::v1::{DataType, EncodedPair, EncodedText, TensorData};
use image::RgbImage;

/// Which encoders a model has, where they lie, and how they compute.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSource {
    files: EncoderFiles,
    kind: Kind,
    device: Device,
}

impl EncoderSource {
    /// What tells these networks from others, wherever they lie: equal ones encode alike. None where encoding costs
    /// nothing. Reads a little of each file.
    pub fn identity(&self) -> Result<Option<String>> {
        let EncoderFiles::Flux { autoencoder, text } = &self.files else { return Ok(None) };
        let FluxTextPaths { clip, t5, clip_tokenizer, t5_tokenizer } = text;
        let mut identity =
            format!("{} {} {:?}", env!("CARGO_PKG_VERSION"), crescendo_device::kind(self.device), self.kind);
        for path in [autoencoder, clip, t5, clip_tokenizer, t5_tokenizer] {
            let failed = |e: std::io::Error| ModelError::File { path: path.clone(), reason: e.to_string() };
            identity.push(' ');
            identity.push_str(&fingerprint::of_path(path).map_err(failed)?);
        }
        Ok(Some(identity))
    }

    /// Those of a job's model. Nano's are so small that they stay on the CPU.
    pub fn of(
        model: &ModelSpec,
        paths: &PathResolver,
        device: Device,
    ) -> std::result::Result<EncoderSource, PathError> {
        let files = encoder_files(model, paths)?;
        let device = if files == EncoderFiles::Nano { Device::Cpu } else { device };
        Ok(EncoderSource { files, kind: compute_kind(model.precision, device), device })
    }
}

/// The encoders of a model.
pub struct Encoders {
    latents: Box<dyn LatentCodec>,
    text: Box<dyn TextEncoder>,
    device: Device,
    kept: Option<Kept>,
}

/// Where encodings are kept, and whose they are.
#[derive(Clone, Debug)]
pub struct Kept {
    pub cache: EncodingCache,
    /// [`EncoderSource::identity`].
    pub identity: String,
    pub metrics: Metrics,
}

impl Encoders {
    /// Loads them. What they make is looked for and kept where `kept` says.
    pub fn open(source: &EncoderSource, kept: Option<Kept>) -> Result<Encoders> {
        let EncoderSource { files, kind, device } = source;
        Ok(Encoders {
            text: files.text(*kind, *device)?,
            latents: files.codec(*device)?,
            device: *device,
            kept,
        })
    }

    /// What turns pictures into latents and back.
    pub fn codec(&self) -> &dyn LatentCodec {
        self.latents.as_ref()
    }

    /// What encodes prompts.
    pub fn text(&self) -> &dyn TextEncoder {
        self.text.as_ref()
    }

    /// What was kept of this, or else what `encode` makes of it, which is kept.
    fn kept_or<M: prost::Message + Default>(
        &self,
        what: &str,
        parts: &[&[u8]],
        encode: impl FnOnce() -> Result<M>,
    ) -> Result<M> {
        let Some(Kept { cache, identity, metrics }) = &self.kept else { return encode() };
        let key = encoding_cache::key(identity, what, parts);
        if let Some(found) = cache.find(&key).and_then(|bytes| M::decode(bytes.as_slice()).ok()) {
            metrics.encodings.with_label_values(&["cache"]).inc();
            return Ok(found);
        }
        let encoded = encode()?;
        metrics.encodings.with_label_values(&["encoder"]).inc();
        cache.keep(&key, &encoded.encode_to_vec());
        metrics.encodings_bytes.set(cache.size_bytes() as i64);
        Ok(encoded)
    }

    /// The empty prompt, for text dropout.
    pub fn empty_text(&self) -> Result<EncodedText> {
        self.prompt("")
    }

    /// Encodes a pair with its index in the log.
    pub fn encode(&self, index: u64, pair: &Pair, form: Form) -> Result<EncodedPair> {
        Ok(EncodedPair {
            index,
            target: Some(self.latent(&pair.target, form)?),
            references: pair.references.iter().map(|r| self.latent(r, form)).collect::<Result<_>>()?,
            text: Some(self.prompt(&pair.prompt)?),
            prompt: pair.prompt.clone(),
        })
    }

    /// A prompt alone: what it is encoded to does not depend on others.
    fn prompt(&self, prompt: &str) -> Result<EncodedText> {
        self.kept_or("text", &[prompt.as_bytes()], || {
            let _guard = tch::no_grad_guard();
            let encoded = self.text.encode(&[prompt])?;
            Ok(EncodedText {
                tokens: Some(tensor_data(&encoded.txt.f_get(0)?)?),
                pooled: Some(tensor_data(&encoded.vec.f_get(0)?)?),
            })
        })
    }

    /// `[channels, height, width]` of a picture, whose bytes become `[-1, 1]`.
    fn latent(&self, image: &RgbImage, form: Form) -> Result<TensorData> {
        if let Some(latent) = self.latents.encode_picture(image) {
            return Ok(byte_data(latent, form));
        }
        let size = [image.width().to_le_bytes(), image.height().to_le_bytes()].concat();
        self.kept_or("latent", &[&size, image.as_raw()], || {
            let _guard = tch::no_grad_guard();
            let values: Vec<f32> = images::planar(image, BYTE_SCALE, BYTE_OFFSET).collect();
            let pixels = Tensor::f_from_slice(&values)?.f_view([
                1,
                3,
                i64::from(image.height()),
                i64::from(image.width()),
            ])?;
            tensor_data(&self.latents.encode(&pixels.f_to_device(self.device)?)?.f_squeeze_dim(0)?)
        })
    }
}

/// In what form latents may go to a rank that are bytes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As float32.
    Floats,
    /// As bytes with their scale: a quarter of the size, and the same numbers.
    Bytes,
}

impl Form {
    /// What a rank takes that says this of itself.
    pub fn of(takes_bytes: bool) -> Form {
        if takes_bytes { Form::Bytes } else { Form::Floats }
    }
}

fn byte_data(latent: LatentBytes, form: Form) -> TensorData {
    let LatentBytes { shape, bytes } = latent;
    let shape = shape.to_vec();
    match form {
        Form::Bytes => TensorData {
            dtype: DataType::U8 as i32,
            shape,
            data: bytes.into(),
            scale: BYTE_SCALE,
            offset: BYTE_OFFSET,
        },
        Form::Floats => {
            let value = |byte: &u8| (f32::from(*byte) * BYTE_SCALE + BYTE_OFFSET).to_le_bytes();
            let data: Vec<u8> = bytes.iter().flat_map(value).collect();
            TensorData { dtype: DataType::F32 as i32, shape, data: data.into(), ..TensorData::default() }
        }
    }
}

/// A copy for the wire: what was computed in bfloat16 goes as that, everything else in float32.
fn tensor_data(tensor: &Tensor) -> Result<TensorData> {
    let (kind, dtype) = match tensor.f_kind()? {
        Kind::BFloat16 => (Kind::BFloat16, DataType::Bf16),
        _ => (Kind::Float, DataType::F32),
    };
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
    let (count, width) = (tensor.numel(), kind.elt_size_in_bytes());
    let mut bytes = vec![0u8; count * width];
    tensor.f_copy_data_u8(&mut bytes, count)?;
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    let shape = tensor.size().iter().map(|side| *side as u32).collect();
    Ok(TensorData { dtype: dtype.into(), shape, data: bytes.into(), ..TensorData::default() })
}

/// Bytes of all tensors in a pair.
pub fn size_bytes(pair: &EncodedPair) -> u64 {
    let text = pair.text.iter().flat_map(|text| text.tokens.iter().chain(&text.pooled));
    let tensors = pair.target.iter().chain(&pair.references).chain(text);
    tensors.map(|tensor| tensor.data.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_core::spec::{ModelPreset, Precision};

    fn model(preset: ModelPreset, weights: &str, encoders: Option<&str>) -> ModelSpec {
        let encoders = encoders.map(str::to_owned);
        let weights = Some(weights.to_owned());
        ModelSpec { preset, sizes: None, weights, encoders, precision: Precision::Auto }
    }

    fn nano() -> Encoders {
        let paths =
            PathResolver::new("/lib".as_ref(), "s3://bucket", crescendo_core::reach::Reach::Everything);
        let source =
            EncoderSource::of(&model(ModelPreset::Nano, "base.safetensors", None), &paths, Device::Cpu);
        Encoders::open(&source.expect("nano"), None).expect("nano has encoders")
    }
    use image::Rgb;

    #[test]
    fn what_was_computed_in_bfloat16_travels_as_that() {
        let values = Tensor::from_slice(&[1.0f32, -2.5, 3.140625]);
        let (wide, narrow) = (tensor_data(&values), tensor_data(&values.to_kind(Kind::BFloat16)));
        let (wide, narrow) = (wide.expect("floats"), narrow.expect("bfloat16"));
        assert_eq!((wide.dtype(), wide.data.len()), (DataType::F32, 12));
        assert_eq!((narrow.dtype(), narrow.data.len()), (DataType::Bf16, 6));
        // The upper half of a float.
        let upper: Vec<u8> = wide.data.chunks_exact(4).flat_map(|float| float[2..].to_vec()).collect();
        assert_eq!(narrow.data, upper);
    }

    fn floats(data: &TensorData) -> Vec<f32> {
        data.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn a_pair_is_encoded_as_its_codecs_say() {
        let pair = Pair {
            target: RgbImage::from_fn(8, 4, |x, y| Rgb([(x * 10) as u8, (y * 10) as u8, 255])),
            references: vec![RgbImage::new(4, 4), RgbImage::new(8, 8)],
            prompt: "a red apple".into(),
            reference_words: vec![],
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        };
        let encoders = nano();
        let encoded = [5, 6].map(|index| encoders.encode(index, &pair, Form::Floats).expect("encode"));
        assert_eq!((encoded[0].index, encoded[1].index), (5, 6));
        let target = encoded[0].target.as_ref().expect("a target");
        assert_eq!(target.shape, [12, 2, 4]);
        let values = floats(target);
        // Channel 0 is red of the top left pixel of each 2x2; channel 1 the one right of it.
        assert!((values[0] + 1.0).abs() < 1e-6 && (values[8] - (10.0 / 127.5 - 1.0)).abs() < 1e-6);
        assert!(values[64..].iter().all(|v| (v - 1.0).abs() < 1e-6), "blue is full everywhere");
        assert_eq!(
            encoded[0].references.iter().map(|r| r.shape.clone()).collect::<Vec<_>>(),
            [[12, 2, 2], [12, 4, 4]]
        );
        let text = encoded[1].text.as_ref().expect("a text");
        assert_eq!(text.tokens.as_ref().expect("tokens").shape, [24, 64]);
        assert_eq!(text.pooled.as_ref().expect("pooled").shape, [64]);
        assert_eq!(size_bytes(&encoded[0]), 4 * (12 * 8 + 12 * 4 + 12 * 16 + 24 * 64 + 64));
        // As bytes, the same numbers.
        let short = encoders.encode(5, &pair, Form::Bytes).expect("encode");
        let latents = |pair: &EncodedPair| -> Vec<TensorData> {
            pair.target.iter().chain(&pair.references).cloned().collect()
        };
        for (long, short) in latents(&encoded[0]).iter().zip(latents(&short)) {
            let TensorData { dtype, shape, data, scale, offset } = short;
            assert_eq!((dtype, &shape), (DataType::U8 as i32, &long.shape));
            let values: Vec<f32> = data.iter().map(|byte| f32::from(*byte) * scale + offset).collect();
            assert_eq!(values, floats(long));
        }
        let empty = encoders.empty_text().expect("encode");
        assert!(floats(empty.tokens.as_ref().expect("tokens")).iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_picture_that_does_not_fit_is_an_error() {
        let pair = Pair {
            target: RgbImage::new(7, 5),
            references: vec![],
            prompt: String::new(),
            reference_words: vec![],
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        };
        assert!(nano().encode(0, &pair, Form::Bytes).is_err());
    }

    #[test]
    fn encoders_lie_beside_the_weights_or_where_the_spec_says() {
        let paths =
            PathResolver::new("/lib".as_ref(), "s3://bucket", crescendo_core::reach::Reach::Everything);
        let error = |encoders: Option<&str>| {
            let model = model(ModelPreset::FluxDev, "flux/flux1-dev.safetensors", encoders);
            let source = EncoderSource::of(&model, &paths, Device::Cpu).expect("paths are plain");
            Encoders::open(&source, None).err().expect("there are no such files").to_string()
        };
        assert!(error(None).contains("/lib/flux/"), "{}", error(None));
        assert!(error(Some("other")).contains("/lib/other/"), "{}", error(Some("other")));
    }

    /// Encoders that count what they are asked for.
    #[derive(Clone, Default)]
    struct Counting(std::rc::Rc<std::cell::Cell<[u32; 2]>>);

    impl Counting {
        fn count(&self, which: usize) {
            let mut counts = self.0.get();
            counts[which] += 1;
            self.0.set(counts);
        }
    }

    impl LatentCodec for Counting {
        fn latent_channels(&self) -> i64 {
            3
        }

        fn downscale(&self) -> i64 {
            1
        }

        fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
            self.count(0);
            Ok(pixels.f_mul_scalar(0.5)?)
        }

        fn decode(&self, latents: &Tensor) -> Result<Tensor> {
            Ok(latents.f_mul_scalar(2.0)?)
        }
    }

    impl TextEncoder for Counting {
        fn encode(&self, prompts: &[&str]) -> Result<crescendo_model::codec::EncodedText> {
            self.count(1);
            let lengths: Vec<f32> = prompts.iter().map(|prompt| prompt.len() as f32).collect();
            let vec = Tensor::f_from_slice(&lengths)?.f_view([-1, 1])?;
            Ok(crescendo_model::codec::EncodedText { txt: vec.f_unsqueeze(1)?, vec })
        }
    }

    /// A pass over pairs after the first encodes nothing, in another process too; other networks encode all of it.
    #[test]
    fn a_second_pass_encodes_nothing_again() {
        let folder = tempfile::tempdir().expect("make a folder");
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).expect("register");
        let counting = Counting::default();
        let open = |identity: &str| Encoders {
            latents: Box::new(counting.clone()),
            text: Box::new(counting.clone()),
            device: Device::Cpu,
            kept: Some(Kept {
                cache: EncodingCache::open(folder.path(), 1 << 20).expect("open"),
                identity: identity.to_owned(),
                metrics: metrics.clone(),
            }),
        };
        let picture = |shade: u8| RgbImage::from_pixel(4, 2, Rgb([shade, 0, 0]));
        let pairs: Vec<Pair> = (0..5u8)
            .map(|n| Pair {
                target: picture(n),
                // One reference for all of them.
                references: vec![picture(200)],
                prompt: format!("thing {n}"),
                reference_words: vec![],
                scores: Default::default(),
                provenance: serde_json::Value::Null,
            })
            .collect();
        let pass = |encoders: &Encoders| -> Vec<EncodedPair> {
            let numbered = pairs.iter().zip(0..);
            numbered.map(|(pair, n)| encoders.encode(n, pair, Form::Floats).expect("encode")).collect()
        };
        let first = pass(&open("one"));
        assert_eq!(counting.0.get(), [6, 5]);
        assert_eq!(pass(&open("one")), first);
        assert_eq!(counting.0.get(), [6, 5], "of the second pass everything was found");
        let counted = |from| metrics.encodings.with_label_values(&[from]).get();
        assert_eq!((counted("encoder"), counted("cache")), (11, 19));
        assert_eq!(pass(&open("other")), first);
        assert_eq!(counting.0.get(), [12, 10]);
    }
}
