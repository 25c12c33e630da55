//! Candidates that are not in the pair log.

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
