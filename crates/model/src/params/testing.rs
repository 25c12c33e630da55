//! Sources of weights for tests of networks.

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
