//! Marks of pairs: kept with their version, told to the ranks that read the log, and bounded.

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_testing::controller::{Controller, FakeNode, curate};
use tonic::{Code, Status};
use v1::open_session_response::Message as Down;

/// A job whose log has eight pairs.
struct Scene {
    controller: Controller,
    job_id: String,
}

impl Scene {
    async fn mark(&self, indices: &[u64], undo: bool) -> Result<v1::PairMarkList, Status> {
        let request = v1::MarkPairsRequest {
            job_id: self.job_id.clone(),
            stage: "stage-1".into(),
            indices: indices.to_vec(),
            undo,
            reason: " blurred\nat the edge ".into(),
        };
        let answer = self.controller.review().mark_pairs(request).await?.into_inner();
        answer.marks.ok_or_else(|| Status::internal("no marks"))
    }

    async fn list(&self) -> Result<(u64, Vec<u64>)> {
        let request = v1::ListPairMarksRequest { job_id: self.job_id.clone(), stage: "stage-1".into() };
        let answer = self.controller.review().list_pair_marks(request).await?.into_inner();
        let marks = answer.marks.context("marks")?;
        Ok((marks.version, marks.marks.iter().map(|mark| mark.index).collect()))
    }
}

/// The marks that a trainer is told of next, beside its curators.
async fn told(trainer: &mut FakeNode) -> Result<v1::PairMarks> {
    loop {
        if let Down::UpdateCurators(update) = trainer.next().await? {
            assert!(!update.curator_addresses.is_empty());
            if let Some(marks) = update.pair_marks {
                return Ok(marks);
            }
        }
    }
}

#[tokio::test]
async fn marks_are_kept_by_version_and_told_to_the_ranks() -> Result<()> {
    let controller = Controller::start().await?;
    let job_id = controller.submit_job("r-1").await?.job_id;
    curate(&controller, &job_id, "c-1").await?;
    let scene = Scene { controller, job_id };
    let _curator = FakeNode::curator(&scene.controller, "c-1").await?;
    let mut trainer = FakeNode::trainer(&scene.controller, "t-1", 2).await?;
    let start = trainer.start_command().await?;
    assert_eq!(start.pair_marks, None);

    let marked = scene.mark(&[3, 5, 3], false).await?;
    assert_eq!(marked.version, 2, "each pair once");
    let mark = marked.marks.first().context("a mark")?;
    assert_eq!((mark.index, mark.reason.as_str()), (3, "blurred at the edge"));
    assert!(!mark.by.is_empty() && mark.at.is_some(), "{mark:?}");
    let both = v1::PairMarks { indices: vec![3, 5], bad: vec![true, true] };
    assert_eq!(told(&mut trainer).await?, both);

    assert_eq!(scene.mark(&[5], false).await?.version, 2, "it is marked already");
    assert_eq!(scene.mark(&[3], true).await?.version, 3);
    let changes = v1::PairMarks { indices: vec![3, 5, 3], bad: vec![true, true, false] };
    assert_eq!(told(&mut trainer).await?, changes);

    let many: Vec<u64> = (0..101).collect();
    for (indices, code, says) in [
        (&[8][..], Code::InvalidArgument, "has no pair 8"),
        (&[], Code::InvalidArgument, "1 to 100"),
        (&many, Code::InvalidArgument, "1 to 100"),
        (&[0, 1, 2, 3, 4, 6, 7], Code::FailedPrecondition, "would be left"),
    ] {
        let status = scene.mark(indices, false).await.expect_err("it is refused");
        assert!(status.code() == code && status.message().contains(says), "{status:?}");
    }
    let unknown = v1::ListPairMarksRequest { job_id: scene.job_id.clone(), stage: "none".into() };
    let status = scene.controller.review().list_pair_marks(unknown).await.expect_err("no such stage");
    assert_eq!(status.code(), Code::NotFound);

    // Whoever leads next knows them, and so do ranks that start later.
    let mut scene = scene;
    scene.controller.restart().await?;
    assert_eq!(scene.list().await?, (3, vec![5]));
    Ok(())
}
