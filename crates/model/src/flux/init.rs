//! Where a network's weights come from: a file, a map of tensors, or a seed.

use tch::{Device, Kind, Tensor};

use super::layers::{Init, ParamSource};
use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::randomness::NormalStream;
use crate::weights::{TensorFile, TensorMap};

enum Backing {
    File(TensorFile),
    Map(TensorMap),
}

/// Takes tensors by name and keeps a list of everything that does not fit.
pub(crate) struct Loader {
    backing: Backing,
    untaken: std::collections::BTreeSet<String>,
    problems: Vec<TensorProblem>,
    kind: Kind,
    device: Device,
}

impl Loader {
    pub fn from_file(file: TensorFile, kind: Kind, device: Device) -> Self {
        let untaken = file.names().into_iter().collect();
        Self { backing: Backing::File(file), untaken, problems: Vec::new(), kind, device }
    }

    pub fn from_map(map: TensorMap, kind: Kind, device: Device) -> Self {
        let untaken = map.keys().cloned().collect();
        Self { backing: Backing::Map(map), untaken, problems: Vec::new(), kind, device }
    }

    /// Fails with all problems if there were any, tensors that nothing asked for included.
    pub fn finish(mut self, origin: &str) -> Result<()> {
        self.problems.extend(
            self.untaken.into_iter().map(|tensor| TensorProblem { tensor, kind: ProblemKind::Unexpected }),
        );
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ModelError::Weights { origin: origin.to_owned(), problems: self.problems })
        }
    }

    /// Shape and name of the dtype of a tensor, and whether that is a float dtype that can be cast.
    fn info(&self, name: &str) -> Option<(Vec<i64>, String, bool)> {
        use safetensors::Dtype;
        match &self.backing {
            Backing::File(file) => file.info(name).map(|(shape, dtype)| {
                let float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64);
                (shape, dtype.to_string(), float)
            }),
            Backing::Map(map) => map.get(name).map(|tensor| {
                let kind = tensor.kind();
                let float = matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double);
                (tensor.size(), format!("{kind:?}"), float)
            }),
        }
    }

    /// Takes a tensor if it fits, in this loader's dtype and on its device; otherwise notes the problem.
    pub fn take_checked(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        self.untaken.remove(name);
        let problem = match self.info(name) {
            None => ProblemKind::Missing,
            Some((found, _, _)) if found != shape => ProblemKind::Shape { found, expected: shape.to_vec() },
            Some((_, found, false)) => ProblemKind::Dtype { found, expected: "F32, BF16 or F16".to_owned() },
            Some(_) => {
                let tensor = match &mut self.backing {
                    Backing::File(file) => file.tensor(name)?,
                    Backing::Map(map) => {
                        map.remove(name).ok_or_else(|| ModelError::input(name, "is missing"))?
                    }
                };
                return Ok(Some(tensor.f_to_kind(self.kind)?.f_to_device(self.device)?));
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
