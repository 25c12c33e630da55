//! Where a network's weights come from: files, a map of tensors, or a seed.

use std::collections::BTreeSet;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::header::{FLOAT_DTYPES, Header, TensorHeader, is_float};
use crate::naming::Network;
use crate::randomness::NormalStream;
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// How a fresh weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    Zero,
    One,
    /// Normal, variance 2 / (fan in + fan out).
    Xavier,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// Where weights come from. A network is built by taking each of its tensors once.
pub(crate) trait ParamSource {
    /// The tensor called `name`, of exactly `shape`. A source may record a problem, return any tensor,
    /// and report all problems together at the end.
    fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor>;

    /// What the weight `name`, which was taken before, is to be multiplied by, if it is kept scaled.
    fn take_scale(&mut self, name: &str) -> Option<Tensor> {
        let _ = name;
        None
    }

    /// Whether there is a tensor called `name`, for networks whose files come in more than one form.
    fn has(&self, name: &str) -> bool {
        let _ = name;
        true
    }
}

enum Backing {
    Files(WeightFiles),
    /// Nothing is read: for finding out what would not fit.
    Header(Header),
    Map(TensorMap),
}

/// Takes tensors by name, one at a time onto the device, and keeps a list of everything that does not fit.
pub(crate) struct Loader {
    backing: Backing,
    untaken: BTreeSet<String>,
    problems: Vec<TensorProblem>,
    kind: Kind,
    device: Device,
}

impl Loader {
    pub fn from_files(files: WeightFiles, kind: Kind, device: Device) -> Self {
        let untaken = files.names().map(str::to_owned).collect();
        Self { backing: Backing::Files(files), untaken, problems: Vec::new(), kind, device }
    }

    pub fn from_map(map: TensorMap, kind: Kind, device: Device) -> Self {
        let untaken = map.keys().cloned().collect();
        Self { backing: Backing::Map(map), untaken, problems: Vec::new(), kind, device }
    }

    /// Looks at names, shapes and dtypes alone, and hands out empty tensors.
    pub fn from_header(header: Header) -> Self {
        let untaken = header.keys().cloned().collect();
        let (kind, device) = (Kind::Float, Device::Cpu);
        Self { backing: Backing::Header(header), untaken, problems: Vec::new(), kind, device }
    }

    /// Leaves out the tensors that published files carry beside the network's own.
    pub fn ignore(&mut self, of_no_use: impl Fn(&str) -> bool) {
        self.untaken.retain(|name| !of_no_use(name));
    }

    /// Fails with all problems if there were any, tensors that nothing asked for included.
    pub fn finish(self, origin: &str) -> Result<()> {
        none_of(self.into_problems(), origin)
    }

    /// All problems, tensors that nothing asked for included.
    pub fn into_problems(mut self) -> Vec<TensorProblem> {
        let unexpected = |tensor| TensorProblem { tensor, kind: ProblemKind::Unexpected };
        self.problems.extend(self.untaken.into_iter().map(unexpected));
        self.problems
    }

    /// Shape and name of the dtype of a tensor, and whether that is a float dtype that can be cast.
    fn info(&self, name: &str) -> Option<(Vec<i64>, String, bool)> {
        let described = |tensor: TensorHeader| {
            let float = is_float(&tensor.dtype);
            (tensor.shape, tensor.dtype, float)
        };
        match &self.backing {
            Backing::Files(files) => files.info(name).map(described),
            Backing::Header(header) => header.get(name).cloned().map(described),
            Backing::Map(map) => map.get(name).map(|tensor| {
                let kind = tensor.kind();
                let float = matches!(
                    kind,
                    Kind::Float
                        | Kind::Half
                        | Kind::BFloat16
                        | Kind::Double
                        | Kind::Float8e4m3fn
                        | Kind::Float8e5m2
                );
                (tensor.size(), format!("{kind:?}"), float)
            }),
        }
    }

    /// Takes a tensor if it fits, in this loader's dtype and on its device; otherwise notes the problem.
    fn take_checked(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        self.untaken.remove(name);
        let problem = match self.info(name) {
            None => ProblemKind::Missing,
            Some((found, _, _)) if found != shape => ProblemKind::Shape { found, expected: shape.to_vec() },
            Some((_, found, false)) => ProblemKind::Dtype { found, expected: FLOAT_DTYPES.to_owned() },
            Some(_) => {
                let tensor = match &mut self.backing {
                    Backing::Header(_) => return Ok(None),
                    Backing::Files(files) => files.tensor(name)?,
                    Backing::Map(map) => {
                        map.remove(name).ok_or_else(|| ModelError::input(name, "is missing"))?
                    }
                };
                let tensor = tensor.f_detach()?.f_to_device(self.device)?.f_to_kind(self.kind)?;
                // The sum of finite weights is finite, and costs no copy of the tensor.
                if tensor.f_sum(Kind::Float)?.f_isfinite()?.f_int64_value(&[])? == 1 {
                    return Ok(Some(tensor));
                }
                ProblemKind::NotFinite
            }
        };
        self.problems.push(TensorProblem { tensor: name.to_owned(), kind: problem });
        Ok(None)
    }
}

impl ParamSource for Loader {
    fn take(&mut self, name: &str, shape: &[i64], _init: Init) -> Result<Tensor> {
        Ok(self.take_checked(name, shape)?.unwrap_or_default())
    }

    fn has(&self, name: &str) -> bool {
        match &self.backing {
            Backing::Files(files) => files.info(name).is_some(),
            Backing::Header(header) => header.contains_key(name),
            Backing::Map(map) => map.contains_key(name),
        }
    }
}

/// Fails with all of `problems`, if there are any.
pub(crate) fn none_of(problems: Vec<TensorProblem>, origin: &str) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Weights { origin: origin.to_owned(), problems })
}

/// Holds the headers of a network's files against what it would take, and reads no tensor. `problems` tells what does not
/// fit in a header under published names.
pub(crate) fn check_files(
    path: &Path,
    network: Network,
    problems: impl FnOnce(Header) -> Result<Vec<TensorProblem>>,
) -> Result<()> {
    let files = WeightFiles::open_as(path, network)?;
    none_of(problems(files.header())?, &files.origin())
}

/// Draws each weight from (seed, name), so that its value does not depend on the order of creation.
pub(crate) struct SeededInit {
    seed: u64,
    kind: Kind,
    device: Device,
}

impl SeededInit {
    pub fn new(seed: u64, kind: Kind, device: Device) -> Self {
        Self { seed, kind, device }
    }
}

impl ParamSource for SeededInit {
    fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let options = (self.kind, self.device);
        let std = match init {
            Init::Zero => return Ok(Tensor::f_zeros(shape, options)?),
            Init::One => return Ok(Tensor::f_ones(shape, options)?),
            Init::Normal(std) => std,
            Init::Xavier => (2.0 / shape.iter().sum::<i64>() as f64).sqrt(),
        };
        let values = NormalStream::for_weight(self.seed, name).tensor(shape)?;
        Ok(values.f_mul_scalar(std)?.f_to_kind(self.kind)?.f_to_device(self.device)?)
    }
}

/// Notes the name and shape of all that a network would take, and holds nothing.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    pub shapes: Vec<(String, Vec<i64>)>,
}

#[cfg(test)]
impl Outline {
    /// Number of weights.
    pub fn parameters(&self) -> i64 {
        self.shapes.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
    }

    /// Shapes by name; a name that was taken twice fails the test.
    pub fn by_name(&self) -> std::collections::BTreeMap<&str, &[i64]> {
        let named: std::collections::BTreeMap<&str, &[i64]> =
            self.shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        assert_eq!(named.len(), self.shapes.len(), "a tensor is taken twice");
        named
    }
}

impl ParamSource for Outline {
    fn take(&mut self, name: &str, shape: &[i64], _init: Init) -> Result<Tensor> {
        self.shapes.push((name.to_owned(), shape.to_vec()));
        Ok(Tensor::new())
    }
}

/// Length of the noise that [`Noise`] repeats: prime, so that no two rows of a matrix are alike.
const NOISE_LEN: i64 = 1_048_573;

/// Weights that look like trained ones to a clock: noise of the right size everywhere, made where it is used, at the speed
/// of a copy. Of no use as a start of training: nothing is zero, and weights repeat each other.
pub(crate) struct Noise {
    noise: Tensor,
    kind: Kind,
}

impl Noise {
    pub fn new(seed: u64, kind: Kind, device: Device) -> Result<Self> {
        let noise = NormalStream::for_weight(seed, "noise").tensor(&[NOISE_LEN])?;
        Ok(Self { noise: noise.f_to_device(device)?.f_to_kind(kind)?, kind })
    }
}

impl ParamSource for Noise {
    fn take(&mut self, _name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let std = match init {
            Init::One => return Ok(Tensor::f_ones(shape, (self.kind, self.noise.device()))?),
            Init::Zero => 0.01,
            Init::Normal(std) => std,
            Init::Xavier => (2.0 / shape.iter().sum::<i64>() as f64).sqrt(),
        };
        let numel: i64 = shape.iter().product();
        let repeats = numel.div_euclid(NOISE_LEN) + 1;
        let scaled = self.noise.f_mul_scalar(std)?;
        // Expanding costs nothing; the reshape makes the one copy.
        let long = scaled.f_unsqueeze(0)?.f_expand([repeats, NOISE_LEN], false)?.f_reshape([-1])?;
        Ok(long.f_narrow(0, 0, numel)?.f_view(shape)?)
    }
}

/// Sources of weights for tests of networks.
#[cfg(test)]
pub(crate) mod testing {
    use tch::Tensor;

    use super::{Init, ParamSource};
    use crate::error::Result;
    use crate::weights::TensorMap;

    /// Hands on what another source gives, and keeps it by name.
    pub(crate) struct Recorder<S> {
        inner: S,
        pub tensors: TensorMap,
    }

    impl<S> Recorder<S> {
        pub fn new(inner: S) -> Self {
            Self { inner, tensors: TensorMap::new() }
        }
    }

    impl<S: ParamSource> ParamSource for Recorder<S> {
        fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
            let tensor = self.inner.take(name, shape, init)?;
            self.tensors.insert(name.to_owned(), tensor.shallow_clone());
            Ok(tensor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_listed_by_name() {
        let map = TensorMap::from([
            ("good".to_owned(), Tensor::from_slice(&[1.0f32])),
            ("nan".to_owned(), Tensor::from_slice(&[1.0f32, f32::NAN])),
            ("long".to_owned(), Tensor::from_slice(&[1.0f32, 2.0])),
            ("whole".to_owned(), Tensor::from_slice(&[1i64])),
            ("extra".to_owned(), Tensor::from_slice(&[1.0f32])),
            ("position_ids".to_owned(), Tensor::from_slice(&[1i64])),
        ]);
        let mut loader = Loader::from_map(map, Kind::BFloat16, Device::Cpu);
        loader.ignore(|name| name == "position_ids");
        assert_eq!(loader.take("good", &[1], Init::Zero).unwrap().kind(), Kind::BFloat16);
        for (name, shape) in [("nan", 2), ("long", 1), ("whole", 1), ("absent", 1)] {
            drop(loader.take(name, &[shape], Init::Zero).unwrap());
        }
        let error = loader.finish("here").unwrap_err().to_string();
        for part in [
            "here does not fit",
            "nan has values that are not finite",
            "long has shape [2], expected [1]",
            "whole has dtype Int64",
            "absent is missing",
            "extra is unexpected",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("good") && !error.contains("position_ids"), "{error}");
    }
}
