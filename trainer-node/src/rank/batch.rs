//! Pairs off the wire as the tensors of a step. Everything that a peer sent is checked before it becomes a tensor.

use bytes::Bytes;
use crescendo_model::FluxConfig;
use crescendo_model::randomness::{SampleKey, TimeDistribution};
use crescendo_model::training::MicroBatch;
use crescendo_proto::v1::{DataType, EncodedPair, EncodedText, TensorData};
use tch::{Kind, Tensor};

use super::RankError;

/// Largest side of a latent, and most text tokens.
const MAX_SIDE: i64 = 4096;

/// What a sample's tensors must look like.
#[derive(Clone, Debug)]
pub struct SampleShape {
    pub latent_channels: i64,
    pub text_width: i64,
    pub pooled_width: i64,
    pub references: usize,
}

impl SampleShape {
    pub fn new(config: &FluxConfig, references: u32) -> Self {
        Self {
            latent_channels: config.latent_channels(),
            text_width: config.context_in_dim,
            pooled_width: config.vec_in_dim,
            references: references as usize,
        }
    }
}

/// Text features: tokens `[tokens, width]` and pooled `[width]`, float32 or as they came in bfloat16, on the CPU.
#[derive(Debug)]
pub struct Text {
    tokens: Tensor,
    pooled: Tensor,
}

impl Text {
    pub fn new(text: &EncodedText, shape: &SampleShape) -> Result<Self, String> {
        let tokens = tensor("text.tokens", text.tokens.as_ref())?;
        let pooled = tensor("text.pooled", text.pooled.as_ref())?;
        match tokens.size()[..] {
            [count, width] if width == shape.text_width && (1..=MAX_SIDE).contains(&count) => {}
            _ => {
                return Err(format!(
                    "text.tokens: shape {:?}, not [tokens, {}]",
                    tokens.size(),
                    shape.text_width
                ));
            }
        }
        if pooled.size() != [shape.pooled_width] {
            return Err(format!("text.pooled: shape {:?}, not [{}]", pooled.size(), shape.pooled_width));
        }
        Ok(Self { tokens, pooled })
    }

    fn shallow_clone(&self) -> Self {
        Self { tokens: self.tokens.shallow_clone(), pooled: self.pooled.shallow_clone() }
    }
}

/// One sample, float32 or as it came in bfloat16, on the CPU: latents `[channels, height, width]`.
#[derive(Debug)]
pub struct Sample {
    position: u64,
    target: Tensor,
    references: Vec<Tensor>,
    text: Text,
}

impl Sample {
    pub fn new(position: u64, pair: &EncodedPair, shape: &SampleShape) -> Result<Self, RankError> {
        Self::checked(position, pair, shape)
            .map_err(|reason| RankError::Permanent(format!("pair {}: {reason}", pair.index)))
    }

    fn checked(position: u64, pair: &EncodedPair, shape: &SampleShape) -> Result<Self, String> {
        let target = latent("target", pair.target.as_ref(), shape)?;
        if pair.references.len() != shape.references {
            return Err(format!(
                "{} references, the stage trains with {}",
                pair.references.len(),
                shape.references
            ));
        }
        let references = pair
            .references
            .iter()
            .enumerate()
            .map(|(index, reference)| latent(&format!("references[{index}]"), Some(reference), shape))
            .collect::<Result<_, _>>()?;
        let text = pair.text.as_ref().ok_or("text: missing")?;
        Ok(Self { position, target, references, text: Text::new(text, shape)? })
    }

    /// Trains with the empty prompt instead.
    pub fn drop_text(&mut self, empty: &Text) {
        self.text = empty.shallow_clone();
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    fn shapes(&self) -> Vec<Vec<i64>> {
        let latents = std::iter::once(&self.target).chain(&self.references);
        latents.chain(std::iter::once(&self.text.tokens)).map(Tensor::size).collect()
    }
}

fn latent(name: &str, data: Option<&TensorData>, shape: &SampleShape) -> Result<Tensor, String> {
    let tensor = tensor(name, data)?;
    let side = |n: i64| n > 0 && n % 2 == 0 && n <= MAX_SIDE;
    match tensor.size()[..] {
        [channels, height, width] if channels == shape.latent_channels && side(height) && side(width) => {
            Ok(tensor)
        }
        _ => Err(format!(
            "{name}: shape {:?}, not [{}, even height, even width]",
            tensor.size(),
            shape.latent_channels
        )),
    }
}

/// On the CPU: in bfloat16 what came in it, since float32 would add nothing but bytes; float32 from any other dtype.
fn tensor(name: &str, data: Option<&TensorData>) -> Result<Tensor, String> {
    let data = data.ok_or_else(|| format!("{name}: missing"))?;
    let (kind, width) = match data.dtype() {
        DataType::F32 => (Kind::Float, 4u64),
        DataType::Bf16 => (Kind::BFloat16, 2),
        DataType::U8 => (Kind::Uint8, 1),
        DataType::Unspecified => return Err(format!("{name}: no dtype")),
    };
    let elements = data.shape.iter().try_fold(1u64, |n, dim| n.checked_mul(u64::from(*dim)));
    let expected = elements.and_then(|n| n.checked_mul(width));
    if data.shape.len() > 4 || expected != Some(data.data.len() as u64) {
        return Err(format!("{name}: {} bytes do not fill shape {:?}", data.data.len(), data.shape));
    }
    let shape: Vec<i64> = data.shape.iter().map(|dim| i64::from(*dim)).collect();
    let kept = if kind == Kind::BFloat16 { kind } else { Kind::Float };
    let made = Tensor::f_from_data_size(&data.data, &shape, kind).and_then(|tensor| tensor.f_to_kind(kept));
    let made = match data.dtype() {
        DataType::U8 if !data.scale.is_finite() || !data.offset.is_finite() => {
            return Err(format!("{name}: scale {} and offset {} are not numbers", data.scale, data.offset));
        }
        DataType::U8 => made.and_then(|mut bytes| {
            bytes.f_mul_scalar_(f64::from(data.scale))?.f_add_scalar_(f64::from(data.offset))
        }),
        DataType::F32 | DataType::Bf16 | DataType::Unspecified => made,
    };
    made.map_err(|error| format!("{name}: {error}"))
}

/// The wire form of a CPU tensor, float32.
pub fn to_wire(values: &[f32], shape: &[u32]) -> TensorData {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorData {
        dtype: DataType::F32.into(),
        shape: shape.to_vec(),
        data: Bytes::from(data),
        ..TensorData::default()
    }
}

/// How the randomness of a sample is addressed and used.
#[derive(Clone, Debug)]
pub struct Draws {
    pub job_seed: u64,
    pub stage_index: u32,
    pub times: TimeDistribution,
    pub text_dropout: f64,
}

impl Draws {
    fn key(&self, position: u64) -> SampleKey {
        SampleKey { job_seed: self.job_seed, stage: self.stage_index, position }
    }

    pub fn drops_text(&self, position: u64) -> bool {
        self.key(position).drops_text(self.text_dropout)
    }
}

/// Cuts a rank's samples of one step into micro-batches of at most `micro_batch` neighbours; samples of another shape
/// than their neighbours go apart. Every sample weighs the same, 1 / `global_batch`: the sum over all ranks is the mean, and
/// nothing has to go over the gradients once more.
pub fn micro_batches(
    samples: &[Sample],
    micro_batch: usize,
    global_batch: u32,
    draws: &Draws,
) -> Result<Vec<MicroBatch>, RankError> {
    let mut micros = Vec::new();
    for neighbours in samples.chunks(micro_batch.max(1)) {
        let mut groups: Vec<(Vec<Vec<i64>>, Vec<&Sample>)> = Vec::new();
        for sample in neighbours {
            let shapes = sample.shapes();
            match groups.iter_mut().find(|(known, _)| *known == shapes) {
                Some((_, group)) => group.push(sample),
                None => groups.push((shapes, vec![sample])),
            }
        }
        for (_, group) in groups {
            let weight = group.len() as f64 / f64::from(global_batch.max(1));
            micros.push(group_batch(&group, weight, draws).map_err(RankError::retryable)?);
        }
    }
    Ok(micros)
}

fn group_batch(group: &[&Sample], weight: f64, draws: &Draws) -> crescendo_model::Result<MicroBatch> {
    let stack =
        |tensors: Vec<&Tensor>| -> crescendo_model::Result<Tensor> { Ok(Tensor::f_stack(&tensors, 0)?) };
    let (mut noises, mut times) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
    for sample in group {
        let key = draws.key(sample.position);
        let (channels, height, width) = sample.target.size3()?;
        // [tokens, channels · 4]: the packed layout, 2 × 2 latent pixels a token.
        noises.push(key.noise(&[height / 2 * (width / 2), channels * 4])?);
        times.push(key.time(&draws.times));
    }
    let references = group.first().map_or(0, |sample| sample.references.len());
    Ok(MicroBatch {
        latents: stack(group.iter().map(|sample| &sample.target).collect())?,
        refs: (0..references)
            .map(|index| stack(group.iter().filter_map(|sample| sample.references.get(index)).collect()))
            .collect::<Result<_, _>>()?,
        txt: stack(group.iter().map(|sample| &sample.text.tokens).collect())?,
        vec: stack(group.iter().map(|sample| &sample.text.pooled).collect())?,
        noise: stack(noises.iter().collect())?,
        times: Tensor::f_from_slice(&times)?,
        weight,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: SampleShape =
        SampleShape { latent_channels: 2, text_width: 3, pooled_width: 4, references: 1 };

    fn pair(index: u64, side: u32) -> EncodedPair {
        let latent = to_wire(&vec![0.5; (2 * side * side) as usize], &[2, side, side]);
        EncodedPair {
            index,
            target: Some(latent.clone()),
            references: vec![latent],
            text: Some(EncodedText {
                tokens: Some(to_wire(&[0.0; 6], &[2, 3])),
                pooled: Some(to_wire(&[0.0; 4], &[4])),
            }),
            prompt: String::new(),
        }
    }

    fn draws() -> Draws {
        Draws {
            job_seed: 1,
            stage_index: 0,
            times: TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 },
            text_dropout: 0.5,
        }
    }

    #[test]
    fn wrong_tensors_are_named() {
        type Change = fn(&mut EncodedPair);
        let cases: [(Change, &str); 8] = [
            (
                |p| {
                    let bytes = p.references[0].data.to_vec();
                    p.references[0] = TensorData {
                        dtype: DataType::U8.into(),
                        shape: vec![2, 2, bytes.len() as u32 / 4],
                        data: bytes.into(),
                        scale: f32::NAN,
                        offset: 0.0,
                    };
                },
                "pair 7: references[0]: scale NaN and offset 0 are not numbers",
            ),
            (|p| p.target = None, "pair 7: target: missing"),
            (
                |p| p.target = Some(to_wire(&[0.0; 18], &[2, 3, 3])),
                "pair 7: target: shape [2, 3, 3], not [2, even height, even width]",
            ),
            (|p| p.references.clear(), "pair 7: 0 references, the stage trains with 1"),
            (
                |p| p.references[0].shape = vec![u32::MAX; 4],
                "pair 7: references[0]: 32 bytes do not fill shape",
            ),
            (|p| p.references[0].dtype = 9, "pair 7: references[0]: no dtype"),
            (|p| p.text = None, "pair 7: text: missing"),
            (
                |p| p.text.as_mut().unwrap().pooled = Some(to_wire(&[0.0; 3], &[3])),
                "pair 7: text.pooled: shape [3], not [4]",
            ),
        ];
        for (change, expected) in cases {
            let mut bad = pair(7, 2);
            change(&mut bad);
            let error = Sample::new(7, &bad, &SHAPE).unwrap_err();
            assert!(
                matches!(&error, RankError::Permanent(reason) if reason.starts_with(expected)),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_become_the_numbers_that_they_stand_for() {
        let (scale, offset) = (1.0 / 127.5f32, -1.0f32);
        let sent = TensorData {
            dtype: DataType::U8.into(),
            shape: vec![16, 16],
            data: (0..=255u8).collect::<Vec<u8>>().into(),
            scale,
            offset,
        };
        let found: Vec<f32> = Vec::try_from(tensor("t", Some(&sent)).unwrap().reshape([-1])).unwrap();
        let expected: Vec<f32> = (0..=255u8).map(|byte| f32::from(byte) * scale + offset).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn bfloat16_stays_what_it_is() {
        let sent = TensorData {
            dtype: DataType::Bf16.into(),
            shape: vec![2],
            // 1 and −2.5: the upper halves of float32.
            data: [0x3f80u16, 0xc020].iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>().into(),
            ..TensorData::default()
        };
        let found = tensor("t", Some(&sent)).unwrap();
        assert_eq!(found.kind(), Kind::BFloat16);
        assert_eq!(Vec::<f32>::try_from(found.to_kind(Kind::Float)).unwrap(), [1.0, -2.5]);
    }

    #[test]
    fn shapes_go_apart_and_samples_weigh_the_same() {
        let samples: Vec<Sample> = [2, 2, 4, 2, 4, 4]
            .iter()
            .zip(0..)
            .map(|(side, position)| Sample::new(position, &pair(position, *side), &SHAPE).unwrap())
            .collect();
        let micros = micro_batches(&samples, 4, 12, &draws()).unwrap();
        let sizes: Vec<Vec<i64>> = micros.iter().map(|micro| micro.latents.size()).collect();
        assert_eq!(sizes, [vec![3, 2, 2, 2], vec![1, 2, 4, 4], vec![2, 2, 4, 4]]);
        assert_eq!(
            micros.iter().map(|micro| micro.noise.size()).collect::<Vec<_>>(),
            [[3, 1, 8], [1, 4, 8], [2, 4, 8]]
        );
        // Of a global batch of 12, half.
        assert_eq!(
            micros.iter().map(|micro| micro.weight).collect::<Vec<_>>(),
            [0.25, 1.0 / 12.0, 2.0 / 12.0]
        );
    }

    #[test]
    fn a_samples_noise_depends_on_its_position_alone() {
        let sample = |position| Sample::new(position, &pair(0, 4), &SHAPE).unwrap();
        let noise =
            |samples: &[Sample]| micro_batches(samples, 8, 8, &draws()).unwrap()[0].noise.shallow_clone();
        let together = noise(&[sample(3), sample(9)]);
        assert_eq!(together.get(1), noise(&[sample(9)]).get(0));
        assert_ne!(together.get(0), together.get(1));
    }
}
