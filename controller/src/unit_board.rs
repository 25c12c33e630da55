//! What curators say of the units that they make, until the engine looks. It does so at its own pace: such words are for
//! people, and wake no decision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crescendo_core::ids::{NodeId, StageRef};
use crescendo_core::under_way::UnitProgress;

use crate::engine::SessionId;

/// Words that wait at most; one more is left out, and the next of the same curator comes in a second.
const MAX_WAITING: usize = 4096;

/// The newest word of each curator on each of its stages. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct UnitBoard(Arc<Mutex<Waiting>>);

type Waiting = BTreeMap<(NodeId, StageRef), (SessionId, UnitProgress)>;

impl UnitBoard {
    pub fn put(&self, node: &NodeId, session: SessionId, stage: StageRef, progress: UnitProgress) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node.clone(), stage);
        if waiting.len() < MAX_WAITING || waiting.contains_key(&key) {
            waiting.insert(key, (session, progress));
        }
    }

    pub fn take(&self) -> impl Iterator<Item = (NodeId, StageRef, SessionId, UnitProgress)> {
        let waiting = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().map(|((node, stage), (session, progress))| (node, stage, session, progress))
    }
}
