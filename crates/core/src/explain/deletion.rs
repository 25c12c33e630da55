//! Jobs that are being deleted.

use super::words::span;
use super::{Explanation, View};
use crate::decide::still_works_on;
use crate::deletion::{DeletionPhase, DeletionRecord};
use crate::object_keys::JobPart;

pub(super) fn deleting(view: &View<'_>, deletion: &DeletionRecord) -> Explanation {
    let id = &deletion.job;
    let mut findings = Vec::new();
    if let Some(why) = &deletion.by_retention {
        findings.push(format!("its tenant's retention asked for it: {why}"));
    }
    let kept: Vec<&str> =
        JobPart::ALL.into_iter().filter(|part| deletion.keep.keeps(*part)).map(JobPart::name).collect();
    if !kept.is_empty() {
        findings.push(format!("kept in the object store: {}", kept.join(", ")));
    }
    let wall = view.seen.wall(view.now);
    findings.push(format!("asked for {} ago", span(wall.since(deletion.requested_at))));
    let summary = match deletion.phase {
        DeletionPhase::Files => match still_works_on(view.seen, id) {
            Some(node) => format!("is being deleted: waits until node {node} has stopped working on it"),
            None => "is being deleted: a curator removes its files".to_owned(),
        },
        DeletionPhase::Records => "is being deleted: its files are gone, and its records go".to_owned(),
        DeletionPhase::Gone { .. } => "was deleted".to_owned(),
    };
    let remedies = vec![format!("what stays known of it: crescendo lineage {id}")];
    Explanation { cause: "deleting", summary, findings, remedies, ..Explanation::default() }
}
