//! Who makes and serves what, from one decision to the next.

use crate::decide::curation::{self, Made, OpenCurator};
use crate::decide::kept::KeptJob;
use crate::decide::servers::Servers;
use crate::decide::{DecideContext, NEVER, PlanDraft, nodes, takes_work};
use crate::ids::{IdMap, StageRef, Timestamp};
use crate::observed::NodeView;
use crate::records::NodeKind;

/// The curators that may be given work, which are the same as long as this is kept, and what they do.
pub(super) struct Serving {
    /// By id.
    curators: Vec<Curator>,
    pub made: Made,
    /// What was divided holds until then.
    until: Timestamp,
    servers: Servers,
    /// The curators that serve each stage that is trained.
    served_by: IdMap<StageRef, ServedBy>,
}

struct Curator {
    address: String,
    /// As it was when it was last divided who makes what.
    view: NodeView,
    /// In order.
    serves: Vec<StageRef>,
    /// Nothing is to be sent to it until then.
    until: Timestamp,
    /// Something may be to be sent to it.
    stirred: bool,
}

#[derive(PartialEq, Eq)]
struct ServedBy {
    /// No pair is added to its log any more.
    complete: bool,
    /// Places of the curators, in order.
    at: Vec<usize>,
}

fn open<'a>(nodes: &DecideContext<'a>) -> Vec<OpenCurator<'a>> {
    nodes.open_to_work(NodeKind::Curator).collect()
}

/// Whether what the curator serves alone is another than before: nothing that may be to be made, and it refuses the same.
fn makes_the_same(nodes: &DecideContext<'_>, before: &NodeView, now: &NodeView) -> bool {
    let may_be_made = |stage: &StageRef| {
        let job = nodes.state.job(&stage.job);
        job.is_some_and(|job| job.facts().makes == job.stage_index(stage.stage.as_str()))
    };
    let mut others = before.curating.symmetric_difference(&now.curating);
    before.refused == now.refused && !others.any(may_be_made)
}

impl Serving {
    pub fn new(nodes: &DecideContext<'_>) -> Self {
        let curators = open(nodes);
        let new = |(record, view): &OpenCurator<'_>| Curator {
            address: record.address.clone(),
            view: (*view).clone(),
            serves: Vec::new(),
            until: NEVER,
            stirred: true,
        };
        Self {
            curators: curators.iter().map(new).collect(),
            servers: Servers::new(curators.iter().map(|(record, _)| &record.id)),
            made: Made::default(),
            until: Timestamp(0),
            served_by: IdMap::default(),
        }
    }

    /// Some curator makes the stage.
    pub fn is_made(&self, stage: &StageRef) -> bool {
        self.made.stages.contains(stage)
    }

    /// Divides anew who makes what, unless nothing has changed that this rests on: then there is nothing to return. What is returned was made by
    /// nobody before.
    /// `wants_others`: the jobs want others to be made than before.
    pub fn make(
        &mut self,
        nodes: &DecideContext<'_>,
        jobs: &[KeptJob],
        wants_others: bool,
    ) -> Option<Vec<StageRef>> {
        let curators = open(nodes);
        let mut are_as_before = true;
        for (kept, (_, view)) in self.curators.iter_mut().zip(&curators) {
            if !kept.view.shares_facts_with(view) {
                are_as_before &= makes_the_same(nodes, &kept.view, view);
                kept.view = (*view).clone();
                kept.stirred = true;
            }
        }
        // Who has waited for something outside is asked by the time.
        let is_as_before = are_as_before && !wants_others && nodes.seen.under_way.has_no_waits();
        if is_as_before && nodes.now < self.until {
            return None;
        }
        let wanted = jobs.iter().filter_map(|kept| {
            let stage = kept.job.stages.get(kept.wants?)?;
            Some((&stage.id, kept.job.record.spec.tenant.as_str()))
        });
        nodes.holds_until();
        let made = curation::spread(nodes, &curators, wanted.collect());
        self.until = nodes.holds_until();
        let before = std::mem::replace(&mut self.made, made);
        for (at, kept) in self.curators.iter_mut().enumerate() {
            kept.stirred |= self.made.by_curator.get(at) != before.by_curator.get(at);
        }
        let newly = self.made.stages.iter().filter(|stage| !before.stages.contains(*stage));
        Some(newly.cloned().collect())
    }

    /// Follows whether the stage is trained, and is complete. Whether others serve it now.
    pub fn serve(&mut self, nodes: &DecideContext<'_>, stage: &StageRef, is_trained: bool) -> bool {
        let before = self.served_by.get(stage);
        if before.is_none() && !is_trained {
            return false;
        }
        let is_complete = || nodes.state.read_log_of(stage).is_some_and(|log| log.is_sealed());
        let complete = is_trained.then(is_complete);
        if complete == before.map(|before| before.complete) {
            return false;
        }
        for at in self.served_by.remove(stage).into_iter().flat_map(|before| before.at) {
            if let Some(kept) = self.curators.get_mut(at) {
                if let Ok(known) = kept.serves.binary_search(stage) {
                    kept.serves.remove(known);
                }
                kept.stirred = true;
            }
        }
        if let Some(complete) = complete {
            let at = self.servers.choose(stage, complete);
            for place in &at {
                if let Some(kept) = self.curators.get_mut(*place) {
                    // Where many are new they come in order.
                    let behind = kept.serves.last().is_none_or(|last| last < stage);
                    let at = if behind { Err(kept.serves.len()) } else { kept.serves.binary_search(stage) };
                    if let Err(at) = at {
                        kept.serves.insert(at, stage.clone());
                    }
                    kept.stirred = true;
                }
            }
            self.served_by.insert(stage.clone(), ServedBy { complete, at });
        }
        true
    }
    /// Addresses of the curators that serve a stage which is trained. One that drains is served from only where no other is left.
    pub fn addresses<'s>(&'s self, nodes: &'s DecideContext<'_>, stage: &StageRef) -> Vec<&'s str> {
        if self.curators.is_empty() {
            let serves = nodes.reachable(NodeKind::Curator).filter(|(_, view)| view.curating.contains(stage));
            return serves.map(|(record, _)| record.address.as_str()).collect();
        }
        let at = self.served_by.get(stage).into_iter().flat_map(|served_by| &served_by.at);
        at.filter_map(|at| self.curators.get(*at)).map(|curator| curator.address.as_str()).collect()
    }

    /// The difference between what curators work on and serve and what they should.
    pub fn send(&mut self, nodes: &DecideContext<'_>, plan: &mut PlanDraft) {
        let some_are_open = !self.curators.is_empty();
        let mut open = self.curators.iter_mut().zip(&self.made.by_curator);
        for (record, view) in nodes.known(NodeKind::Curator) {
            let Some(view) = view.filter(|view| view.connected) else { continue };
            if !nodes.is_reachable(view) || !takes_work(record, view) {
                nodes::released(record, view, some_are_open, plan);
                continue;
            }
            let Some((kept, makes)) = open.next() else { continue };
            if !kept.stirred && nodes.now < kept.until {
                continue;
            }
            let mut wanted: Vec<&StageRef> = kept.serves.iter().collect();
            for stage in makes {
                if let Err(at) = wanted.binary_search(&stage) {
                    wanted.insert(at, stage);
                }
            }
            let sent = plan.sends.len();
            nodes.holds_until();
            nodes::curator_sends(nodes, record, view, &wanted, plan);
            kept.until = nodes.holds_until();
            kept.stirred = plan.sends.len() > sent;
        }
    }
}
