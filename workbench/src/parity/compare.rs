//! Comparing what was computed with what is stored.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use crescendo_model::tch::{Device, Kind, Tensor};
use serde::Serialize;

use super::fixture::Fixture;

/// One tensor held against one tolerance.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub tensor: String,
    /// `max_abs`, `rel_l2`, `rel_l2_yardstick`, `rel_l2_change`, `present` or `equal`.
    pub measure: &'static str,
    pub error: f64,
    pub tolerance: f64,
    pub passed: bool,
    /// Why it failed where a number does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Comparison {
    fn new(tensor: &str, measure: &'static str, error: f64, tolerance: f64) -> Self {
        // A NaN error fails: the comparison is false.
        let passed = error <= tolerance;
        Self { tensor: tensor.to_owned(), measure, error, tolerance, passed, note: None }
    }

    fn failed(tensor: &str, measure: &'static str, note: String) -> Self {
        Self {
            tensor: tensor.to_owned(),
            measure,
            error: f64::INFINITY,
            tolerance: 0.0,
            passed: false,
            note: Some(note),
        }
    }

    /// How much of the tolerance was used; above 1 is a miss.
    pub fn used(&self) -> f64 {
        match (self.error, self.tolerance) {
            (error, _) if error.is_nan() => f64::INFINITY,
            (0.0, _) => 0.0,
            (error, tolerance) => error / tolerance,
        }
    }
}

/// Collects comparisons of one fixture.
pub struct Checks<'a> {
    fixture: &'a Fixture,
    done: BTreeSet<String>,
    comparisons: Vec<Comparison>,
}

impl<'a> Checks<'a> {
    pub fn new(fixture: &'a Fixture) -> Self {
        Self { fixture, done: BTreeSet::new(), comparisons: Vec::new() }
    }

    /// Holds `actual` against the stored tensor `name` by every tolerance that the sidecar gives it. A
    /// name that the fixture does not expect is left alone: not every fixture stores every value.
    pub fn compare(&mut self, name: &str, actual: &Tensor) -> anyhow::Result<()> {
        if !self.fixture.has(name) {
            return Ok(());
        }
        let tolerance = self.fixture.tolerance(name)?;
        if !tolerance.is_set() {
            return Ok(());
        }
        self.done.insert(name.to_owned());
        let stored = self.fixture.tensor(name)?;
        if actual.size() != stored.size() {
            let note = format!("shape {:?}, expected {:?}", actual.size(), stored.size());
            self.comparisons.push(Comparison::failed(name, "shape", note));
            return Ok(());
        }
        let actual = double(actual)?;
        let stored = double(&stored)?;
        if let Some(limit) = tolerance.max_abs.map(|limit| limit * self.allowance()) {
            self.comparisons.push(Comparison::new(name, "max_abs", max_abs(&actual, &stored)?, limit));
        }
        if let Some(limit) = tolerance.rel_l2_vs_this {
            self.comparisons.push(Comparison::new(name, "rel_l2", rel_l2(&actual, &stored, &stored)?, limit));
        }
        if let Some(limit) = tolerance.rel_l2_vs_yardstick {
            let yardstick =
                tolerance.yardstick.as_deref().with_context(|| format!("{name} names no yardstick"))?;
            let yardstick = double(&self.fixture.tensor(yardstick)?)?;
            self.comparisons.push(Comparison::new(
                name,
                "rel_l2_yardstick",
                rel_l2(&actual, &yardstick, &yardstick)?,
                limit,
            ));
        }
        if let Some(limit) = tolerance.rel_l2_of_change {
            let key = name
                .split_once(".lora.")
                .map(|(_, key)| key)
                .with_context(|| format!("{name} is no adapter tensor"))?;
            let change = stored.f_sub(&double(&self.fixture.tensor(&format!("lora.{key}"))?)?)?;
            self.comparisons.push(Comparison::new(
                name,
                "rel_l2_change",
                rel_l2(&actual, &stored, &change)?,
                limit,
            ));
        }
        Ok(())
    }

    /// What the bounds are multiplied with. They were measured on CPUs; a GPU adds up in another order, for which the
    /// fixtures' README gives five times as much to start from.
    fn allowance(&self) -> f64 {
        if self.fixture.device == Device::Cpu { 1.0 } else { 5.0 }
    }

    /// Holds two tensors to be equal, for results that the fixture implies without storing them.
    pub fn equal(&mut self, name: &str, actual: &Tensor, expected: &Tensor) -> anyhow::Result<()> {
        if actual.size() != expected.size() {
            let note = format!("shape {:?}, expected {:?}", actual.size(), expected.size());
            self.comparisons.push(Comparison::failed(name, "equal", note));
        } else {
            let error = max_abs(&double(actual)?, &double(expected)?)?;
            self.comparisons.push(Comparison::new(name, "equal", error, 0.0));
        }
        Ok(())
    }

    /// Holds an approximation to what it stands for: the error as a share of the latter's norm.
    pub fn near(&mut self, name: &str, actual: &Tensor, exact: &Tensor, limit: f64) -> anyhow::Result<()> {
        let exact = double(exact)?;
        let error = rel_l2(&double(actual)?, &exact, &exact)?;
        self.comparisons.push(Comparison::new(name, "rel_l2", error, limit));
        Ok(())
    }

    /// Records a condition that must hold.
    pub fn require(&mut self, name: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        self.comparisons.push(if holds {
            Comparison::new(name, "equal", 0.0, 0.0)
        } else {
            Comparison::failed(name, "equal", otherwise())
        });
    }

    /// All comparisons; every expected tensor with a tolerance that nobody produced is a failure.
    pub fn finish(mut self) -> anyhow::Result<Vec<Comparison>> {
        for name in self.fixture.expected() {
            if self.done.contains(&name) || !self.fixture.tolerance(&name)?.is_set() {
                continue;
            }
            let note = if self.fixture.has(&name) { "not produced" } else { "missing from the fixture" };
            self.comparisons.push(Comparison::failed(&name, "present", note.to_owned()));
        }
        Ok(self.comparisons)
    }
}

fn double(tensor: &Tensor) -> anyhow::Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
}

/// Largest absolute difference; infinite values that agree differ by nothing.
fn max_abs(a: &Tensor, b: &Tensor) -> anyhow::Result<f64> {
    if a.numel() == 0 {
        return Ok(0.0);
    }
    let same = a.f_eq_tensor(b)?;
    let difference = a.f_sub(b)?.f_abs()?.f_masked_fill(&same, 0.0)?;
    Ok(difference.f_max()?.f_double_value(&[])?)
}

/// ‖a − b‖ / ‖scale‖; 0 where a equals b.
fn rel_l2(a: &Tensor, b: &Tensor, scale: &Tensor) -> anyhow::Result<f64> {
    let difference = a.f_sub(b)?.f_norm()?.f_double_value(&[])?;
    if difference == 0.0 {
        return Ok(0.0);
    }
    Ok(difference / scale.f_norm()?.f_double_value(&[])?)
}

/// Comparisons of one sort, for the table: adapter tensors count as one.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    pub case: String,
    /// Number of comparisons.
    pub checks: usize,
    /// The comparison that used most of its tolerance.
    pub worst: Comparison,
    pub passed: bool,
}

/// Groups comparisons into cases, in order of name.
pub fn cases(comparisons: &[Comparison]) -> Vec<Case> {
    let mut groups: BTreeMap<(String, &'static str), Vec<&Comparison>> = BTreeMap::new();
    for comparison in comparisons {
        groups.entry((group_name(&comparison.tensor), comparison.measure)).or_default().push(comparison);
    }
    groups
        .into_iter()
        .filter_map(|((case, _), members)| {
            let worst = members.iter().max_by(|a, b| a.used().total_cmp(&b.used()))?;
            Some(Case {
                case,
                checks: members.len(),
                worst: (*worst).clone(),
                passed: members.iter().all(|member| member.passed),
            })
        })
        .collect()
}

/// `out.step1.grad.double_blocks.0…` becomes `out.step1.grad.*`.
fn group_name(tensor: &str) -> String {
    for sort in ["double_blocks.", "single_blocks."] {
        if let Some(at) = tensor.find(sort) {
            return format!("{}*", &tensor[..at]);
        }
    }
    tensor.to_owned()
}
