//! What is kept of the arithmetic of nodes and of gangs: how fast it is, and what its last bits depend on. What is made of that
//! is in [`precision`](crate::precision) and [`processor`](crate::processor).

use std::fmt;
use std::time::Duration;

use crate::ids::Generation;
use crate::spec::Precision;

/// What a node has measured of its own arithmetic when it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// Median time of one product of the nano network's shape, in float32; zero if it was not measured.
    pub f32_time: Duration,
    /// The same in bfloat16.
    pub bf16_time: Duration,
    /// Kind of processor, as far as the last bits of results tell; empty if unknown.
    pub processor: String,
    /// Threads for the arithmetic of one rank.
    pub threads: u32,
}

impl Arithmetic {
    /// How many times as fast as f32 bf16 is; `None` if it was not measured.
    pub fn bf16_factor(&self) -> Option<f64> {
        let (f32_time, bf16_time) = (self.f32_time.as_secs_f64(), self.bf16_time.as_secs_f64());
        (f32_time > 0.0 && bf16_time > 0.0).then(|| f32_time / bf16_time)
    }
}

/// What a stage computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StagePrecision {
    F32,
    Bf16,
}

impl fmt::Display for StagePrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl From<StagePrecision> for Precision {
    fn from(precision: StagePrecision) -> Self {
        match precision {
            StagePrecision::F32 => Self::F32,
            StagePrecision::Bf16 => Self::Bf16,
        }
    }
}

/// What `auto` has come to for a stage, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecisionChoice {
    pub precision: StagePrecision,
    /// One line, about a node and with the factor.
    pub why: String,
}

/// What the last bits of a gang's results depend on: the same kind gives the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GangKind {
    /// By rank; ranks in a row that are alike are one.
    pub parts: Vec<GangPart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangPart {
    pub ranks: u32,
    /// Empty if its node has not said.
    pub processor: String,
    /// Of one rank.
    pub threads: u32,
}

/// A stage was trained by gangs of this kind from a generation on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanOn {
    pub generation: Generation,
    /// Step of the checkpoint that it went on from; 0 if it began the stage.
    pub from_step: u64,
    pub gang: GangKind,
}

impl GangKind {
    pub fn ranks(&self) -> u32 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.ranks))
    }

    /// Its ranks by kind alone, wherever they stand in it; in the order in which the kinds come first.
    pub fn by_kind(&self) -> Vec<GangPart> {
        let mut kinds: Vec<GangPart> = Vec::new();
        for part in &self.parts {
            let alike =
                |known: &&mut GangPart| (&known.processor, known.threads) == (&part.processor, part.threads);
            match kinds.iter_mut().find(alike) {
                Some(known) => known.ranks = known.ranks.saturating_add(part.ranks),
                None => kinds.push(part.clone()),
            }
        }
        kinds
    }
}

impl GangPart {
    pub(crate) fn is_known(&self) -> bool {
        !self.processor.is_empty()
    }
}

impl fmt::Display for GangKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for GangPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: u32| if n == 1 { "" } else { "s" };
        write!(f, "{} rank{} ", self.ranks, plural(self.ranks))?;
        if self.threads > 0 {
            write!(f, "of {} thread{} ", self.threads, plural(self.threads))?;
        }
        write!(f, "on {}", if self.is_known() { &self.processor } else { "an unknown processor" })
    }
}

/// A stage went on with gangs of another kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindChange {
    pub before: GangKind,
    pub since: RanOn,
}

impl fmt::Display for KindChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RanOn { from_step, gang, .. } = &self.since;
        write!(f, "resumed at step {from_step} on {gang}, before on {}: last bits may differ", self.before)
    }
}
