//! The files of jobs that are being deleted: one job after the other, a curator lists and removes them.
//!
//! The engine says which job is next, and is told once a pass over the job's files has found none that are to go. Whatever comes in
//! between (a curator or this controller that dies, a store that refuses) is made good by the next pass, here or on whichever controller
//! leads then.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::deletion::{KeptParts, ObjectTotals};
use crescendo_core::ids::JobId;
use crescendo_core::leftovers::Wanted;
use crescendo_core::object_keys::{JobPart, part_of};
use crescendo_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::collections::{Collecting, Collections, Told};
use crate::engine::{DeletionRequest, ObjectRequest, Request};
use crate::leadership::EngineHandle;

/// Looks for a job whose files are to be removed this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Passes over a job's files before it is another's turn: the last finds none that are to go.
const MAX_PASSES: u32 = 4;
/// Limit of counting what a deletion would remove.
const COUNT_DEADLINE: Duration = Duration::from_secs(60);

/// Removes files of jobs that are being deleted, on whichever controller leads.
pub async fn delete_files(collections: Collections, engine: EngineHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = engine.as_leader(delete_next(&collections, &engine)) => {}
        }
    }
}

async fn delete_next(collections: &Collections, engine: &EngineHandle) {
    let next = engine.ask(|reply| Request::Deletions(DeletionRequest::NextFiles { reply })).await;
    // One that does not lead any more has nothing to say; it is asked again.
    let Ok(Some((job, keep))) = next else { return };
    let mut removed = ObjectTotals::default();
    let outcome = remove_files(collections, engine, &job, keep, &mut removed).await;
    let told = match outcome {
        Ok(()) => {
            let gone = |reply| Request::Deletions(DeletionRequest::FilesGone { job, removed, reply });
            engine.ask(gone).await
        }
        Err(why) => engine.tell(Request::Deletions(DeletionRequest::FilesStay { job, removed, why })).await,
    };
    if let Err(status) = told {
        // The files are gone all the same, and the next pass finds it out.
        tracing::debug!(%status, "what was removed of a job is not taken note of");
    }
}

/// Removes all files that are to go, or says why not.
async fn remove_files(
    collections: &Collections,
    engine: &EngineHandle,
    job: &JobId,
    keep: KeptParts,
    removed: &mut ObjectTotals,
) -> Result<(), String> {
    for _ in 0..MAX_PASSES {
        let wanted = Wanted::Deletion { job: job.clone(), keep, dry_run: false };
        let mut collecting =
            begin(collections, engine, job, wanted).await.map_err(|status| status.message().to_owned())?;
        let ended = end_of(&mut collecting, |_| {}).await;
        let summary = collecting.so_far();
        let bytes = summary.removed_bytes;
        *removed = removed.plus(ObjectTotals { objects: summary.removed_objects, bytes });
        ended?;
        if summary.failed_objects > 0 {
            return Err(format!("{} objects cannot be removed: {}", summary.failed_objects, summary.failure));
        }
        if summary.leftover_objects == 0 {
            return Ok(());
        }
    }
    Err("its folder keeps filling up: something still writes there".to_owned())
}

async fn begin(
    collections: &Collections,
    engine: &EngineHandle,
    job: &JobId,
    wanted: Wanted,
) -> Result<Collecting, Status> {
    let dry_run = matches!(wanted, Wanted::Deletion { dry_run: true, .. });
    let collecting = collections
        .begin(wanted)
        .ok_or_else(|| Status::resource_exhausted("another deletion is under way"))?;
    let (collect_id, job) = (collecting.id.clone(), Some(job.clone()));
    engine
        .ask(|reply| Request::Objects(ObjectRequest::CollectLeftovers { collect_id, job, dry_run, reply }))
        .await?;
    Ok(collecting)
}

/// Waits for the end of a collection; each page is looked at.
async fn end_of(
    collecting: &mut Collecting,
    mut look: impl FnMut(Vec<crescendo_core::leftovers::ListedObject>),
) -> Result<(), String> {
    loop {
        match collecting.next().await {
            Ok(Told::Page(page)) => look(page),
            Ok(Told::Summary(_)) => return Ok(()),
            Ok(Told::Failed(reason)) => return Err(reason),
            Err(status) => return Err(status.message().to_owned()),
        }
    }
}

/// What lies in the object store of a job, by part; none if nobody can count it within a minute.
pub async fn count_files(
    collections: &Collections,
    engine: &EngineHandle,
    job: &JobId,
    keep: KeptParts,
) -> Option<Vec<v1::DeletionPart>> {
    let counting = async {
        // Everything is counted, and said of each part whether it goes.
        let wanted = Wanted::Deletion { job: job.clone(), keep: KeptParts::default(), dry_run: true };
        let mut collecting = begin(collections, engine, job, wanted).await.ok()?;
        let mut totals: BTreeMap<JobPart, ObjectTotals> = BTreeMap::new();
        let look = |page: Vec<crescendo_core::leftovers::ListedObject>| {
            for object in page {
                let part = part_of(job.as_str(), &object.key).unwrap_or(JobPart::Rest);
                let total = totals.entry(part).or_default();
                *total = total.plus(ObjectTotals { objects: 1, bytes: object.size_bytes });
            }
        };
        end_of(&mut collecting, look).await.ok()?;
        Some(totals)
    };
    let totals = tokio::time::timeout(COUNT_DEADLINE, counting).await.ok()??;
    let part = |part: JobPart| {
        let ObjectTotals { objects, bytes } = totals.get(&part).copied().unwrap_or_default();
        v1::DeletionPart { part: part.name().to_owned(), objects, bytes, kept: keep.keeps(part) }
    };
    Some(JobPart::ALL.map(part).to_vec())
}
