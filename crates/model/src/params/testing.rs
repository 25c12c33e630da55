//! Sources of weights for tests of networks.

use std::collections::BTreeMap;

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

/// Counts what a network takes, so that full sizes are held to published numbers without their memory.
#[derive(Default)]
pub(crate) struct ShapeCount {
    pub tensors: usize,
    pub parameters: i64,
}

impl ParamSource for ShapeCount {
    fn take(&mut self, _name: &str, shape: &[i64], _init: Init) -> Result<Tensor> {
        self.tensors += 1;
        self.parameters += shape.iter().product::<i64>();
        Ok(Tensor::default())
    }
}

/// Notes the shape of every tensor that a network asks for, and hands out empty ones.
#[derive(Debug, Default)]
pub(crate) struct ShapeList(pub BTreeMap<String, Vec<i64>>);

impl ShapeList {
    /// Number of weights.
    pub fn parameters(&self) -> i64 {
        self.0.values().map(|shape| shape.iter().product::<i64>()).sum()
    }
}

impl ParamSource for ShapeList {
    fn take(&mut self, name: &str, shape: &[i64], _init: Init) -> Result<Tensor> {
        let before = self.0.insert(name.to_owned(), shape.to_vec());
        assert!(before.is_none(), "{name} is taken twice");
        Ok(Tensor::new())
    }
}
