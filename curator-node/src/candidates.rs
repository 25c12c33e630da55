//! Candidates of pairs: those of a unit, and those that were turned down.

use crescendo_core::rejection::Rejection;
use crescendo_dataset::pair::Pair;

/// A candidate that was turned down, with the pair itself where there is one to look at.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub reason: Rejection,
    pub pair: Option<Box<Pair>>,
}

impl Rejected {
    pub fn of(reason: Rejection, pair: Pair) -> Rejected {
        Rejected { reason, pair: Some(Box::new(pair)) }
    }
}

impl From<Rejection> for Rejected {
    fn from(reason: Rejection) -> Rejected {
        Rejected { reason, pair: None }
    }
}

/// The candidates of one unit.
#[derive(Debug)]
pub struct CandidateBatch {
    pub candidates: Vec<Result<Pair, Rejection>>,
    /// The source has no more after this unit.
    pub exhausted: bool,
    /// Cosines of pairs that the source compared itself.
    pub cosines: Vec<f64>,
    /// Pairs that the source compared and turned down, for people to see; their reasons stand in `candidates`.
    pub turned_down: Vec<Rejected>,
}

impl CandidateBatch {
    /// Candidates that were not compared.
    pub fn of(candidates: Vec<Result<Pair, Rejection>>, exhausted: bool) -> CandidateBatch {
        CandidateBatch { candidates, exhausted, cosines: Vec::new(), turned_down: Vec::new() }
    }
}
