//! A file of a checkpoint on its way from a curator, through the controller, to a person. Other tenants' files are in
//! `access`, deadlines in the relay's own tests.

use anyhow::{Context as _, Result, bail};
use crescendo_proto::v1;
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, commit_checkpoint, curate};
use crescendo_testing::{LIMIT, eventually};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use v1::open_session_response::Message as Down;
use v1::read_checkpoint_file_response::Message as Part;
use v1::send_object_request::Message as Sent;

/// As many as a controller hands on to the callers of one tenant, or to those without one, at a time.
const MOST_READS: usize = 4;

type Pieces = Streaming<v1::ReadCheckpointFileResponse>;

/// A controller with one job, which has one checkpoint with one file of ten bytes.
struct Scene {
    controller: Controller,
    request: v1::ReadCheckpointFileRequest,
    _trainer: FakeNode,
}

impl Scene {
    async fn new() -> Result<Scene> {
        let controller = Controller::start().await?;
        let job = controller.submit_job("r-1").await?.job_id;
        curate(&controller, &job, "c-1").await?;
        let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
        let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
        let saved = checkpoint(&attempt, 5, false);
        let request = v1::ReadCheckpointFileRequest {
            job_id: job,
            path: saved.path.clone(),
            name: "dit_lora.safetensors".into(),
        };
        commit_checkpoint(&controller, saved).await?;
        Ok(Scene { controller, request, _trainer: trainer })
    }

    async fn read(&self) -> Result<Pieces, Status> {
        Ok(self.controller.objects().read_checkpoint_file(self.request.clone()).await?.into_inner())
    }

    /// Sends what the read id stands for, until all of `messages` have gone.
    async fn send(&self, messages: impl IntoIterator<Item = Sent>) -> Result<(), Status> {
        let messages: Vec<_> =
            messages.into_iter().map(|sent| v1::SendObjectRequest { message: Some(sent) }).collect();
        self.controller.objects().send_object(tokio_stream::iter(messages)).await?;
        Ok(())
    }
}

/// What the curator is asked to read.
async fn asked(curator: &mut FakeNode) -> Result<v1::ReadObject> {
    loop {
        if let Down::ReadObject(read) = curator.next().await? {
            return Ok(read);
        }
    }
}

/// The bytes that come, and the code that they end with.
async fn whole(mut pieces: Pieces) -> Result<(Vec<u8>, Code)> {
    let mut bytes = Vec::new();
    let mut announced = None;
    loop {
        match pieces.message().await {
            Ok(Some(response)) => match response.message.context("something")? {
                Part::File(file) => announced = Some(file),
                Part::Chunk(chunk) => bytes.extend_from_slice(&chunk),
            },
            Ok(None) => break,
            Err(status) => return Ok((bytes, status.code())),
        }
    }
    assert_eq!(announced.context("it is announced")?.size_bytes, 10);
    Ok((bytes, Code::Ok))
}

fn chunk(text: &'static str) -> Sent {
    Sent::Chunk(text.as_bytes().into())
}

#[tokio::test]
async fn a_file_comes_from_a_curator_or_it_is_said_why_not() -> Result<()> {
    let mut scene = Scene::new().await?;
    let status = scene.read().await.err().context("nobody could read it")?;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "no curator is connected that could read it");
    let mut curator = FakeNode::curator(&scene.controller, "c-1").await?;

    let good = scene.request.clone();
    for (request, says) in [
        (v1::ReadCheckpointFileRequest { job_id: "none-000000".into(), ..good.clone() }, "job none-000000"),
        (v1::ReadCheckpointFileRequest { path: "jobs/x".into(), ..good.clone() }, "checkpoint jobs/x of job"),
        (v1::ReadCheckpointFileRequest { name: "../secret".into(), ..good.clone() }, "file ../secret of"),
    ] {
        scene.request = request;
        let status = scene.read().await.err().context("there is no such file")?;
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains(says), "{status:?}");
    }
    scene.request = good;

    let pieces = scene.read().await?;
    let read = asked(&mut curator).await?;
    assert_eq!(read.key, format!("{}/dit_lora.safetensors", scene.request.path));
    assert!(read.object_store_url.starts_with("file:///"), "{}", read.object_store_url);
    let id = || Sent::ReadId(read.read_id.clone());
    let (sent, came) = tokio::join!(scene.send([id(), chunk("01234"), chunk("56789")]), whole(pieces));
    sent?;
    assert_eq!(came?, (b"0123456789".to_vec(), Code::Ok));
    let again = scene.send([id(), chunk("01234")]).await.expect_err("it is sent once");
    assert_eq!(again.code(), Code::NotFound);

    // It ends too early, or cannot be read.
    let failure = |passing| Sent::Failure(v1::SendFailure { reason: "the disk is gone".into(), passing });
    for (last, comes, code) in [
        (chunk("56"), "0123456", Code::Unavailable),
        (failure(true), "01234", Code::Unavailable),
        (failure(false), "01234", Code::FailedPrecondition),
        (chunk("56789 and more"), "01234", Code::DataLoss),
    ] {
        let pieces = scene.read().await?;
        let id = Sent::ReadId(asked(&mut curator).await?.read_id);
        let (_, came) = tokio::join!(scene.send([id, chunk("01234"), last]), whole(pieces));
        assert_eq!(came?, (comes.as_bytes().to_vec(), code));
    }
    Ok(())
}

/// A SendObject that has begun, and what it ends with.
async fn begin(
    scene: &Scene,
    read_id: String,
) -> Result<(mpsc::Sender<v1::SendObjectRequest>, JoinSet<Option<Code>>)> {
    let (to, messages) = mpsc::channel(1);
    let mut client = scene.controller.stream_objects();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        client.send_object(ReceiverStream::new(messages)).await.err().map(|status| status.code())
    });
    for message in [Sent::ReadId(read_id), chunk("01234")] {
        to.send(v1::SendObjectRequest { message: Some(message) }).await?;
    }
    Ok((to, sending))
}

#[tokio::test]
async fn each_end_learns_that_the_other_has_gone() -> Result<()> {
    let mut scene = Scene::new().await?;
    let mut curator = FakeNode::curator(&scene.controller, "c-1").await?;
    let first_chunk = async |pieces: &mut Pieces| -> Result<()> {
        loop {
            match pieces.message().await?.and_then(|response| response.message) {
                Some(Part::Chunk(_)) => return Ok(()),
                Some(Part::File(_)) => {}
                None => bail!("the stream has ended"),
            }
        }
    };

    let mut pieces = scene.read().await?;
    let (_to, mut sending) = begin(&scene, asked(&mut curator).await?.read_id).await?;
    first_chunk(&mut pieces).await?;
    drop(pieces);
    let ended = tokio::time::timeout(LIMIT, sending.join_next()).await;
    let code = ended.context("the curator is not told")?.context("it was sending")??;
    assert_eq!(code, Some(Code::Cancelled));

    let mut pieces = scene.read().await?;
    let (_to, mut sending) = begin(&scene, asked(&mut curator).await?.read_id).await?;
    first_chunk(&mut pieces).await?;
    sending.abort_all();
    assert_eq!(whole(pieces).await?.1, Code::Unavailable);

    let mut pieces = scene.read().await?;
    let (_to, _sending) = begin(&scene, asked(&mut curator).await?.read_id).await?;
    first_chunk(&mut pieces).await?;
    let (stopped, came) = tokio::join!(scene.controller.stop(), whole(pieces));
    assert_eq!(came?.1, Code::Unavailable);
    assert!(stopped?.success());
    Ok(())
}

#[tokio::test]
async fn so_many_files_are_read_at_a_time_and_no_more() -> Result<()> {
    let scene = Scene::new().await?;
    let mut one = FakeNode::curator(&scene.controller, "c-1").await?;
    let mut two = FakeNode::curator(&scene.controller, "c-2").await?;
    let mut open = Vec::new();
    for _ in 0..MOST_READS {
        open.push(scene.read().await?);
    }
    let status = scene.read().await.err().context("there is no place")?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.metadata().contains_key("crescendo-retry-after-millis"), "{status:?}");
    // They are spread over those who can.
    for curator in [&mut one, &mut two] {
        for _ in 0..MOST_READS / 2 {
            asked(curator).await?;
        }
    }
    open.pop();
    eventually("a place is free", async || Ok(scene.read().await.ok())).await?;
    Ok(())
}

/// What the curator is asked to read of pairs.
async fn asked_for_pairs(curator: &mut FakeNode) -> Result<v1::ReadStoredPairs> {
    loop {
        if let Down::ReadStoredPairs(read) = curator.next().await? {
            return Ok(read);
        }
    }
}

#[tokio::test]
async fn pairs_are_read_by_a_curator_from_where_one_is() -> Result<()> {
    let scene = Scene::new().await?;
    let job_id = scene.request.job_id.clone();
    let all = v1::ReadPairsRequest { job_id, stage: "stage-1".into(), ..Default::default() };
    let read = async |request: v1::ReadPairsRequest| {
        scene.controller.review().read_pairs(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(read(all.clone()).await.expect_err("nobody could read them").code(), Code::Unavailable);
    let mut curator = FakeNode::curator(&scene.controller, "c-1").await?;
    let score =
        |least, most| Some(v1::PairFilter { score: "similarity".into(), least, most, ..Default::default() });
    for (bad, code, says) in [
        (v1::ReadPairsRequest { limit: 61, ..all.clone() }, Code::InvalidArgument, "limit"),
        (
            v1::ReadPairsRequest { picture_pixels: 4000, ..all.clone() },
            Code::InvalidArgument,
            "picture_pixels",
        ),
        (
            v1::ReadPairsRequest { filter: score(0.5, f64::NAN), ..all.clone() },
            Code::InvalidArgument,
            "least",
        ),
        (v1::ReadPairsRequest { stage: "none".into(), ..all.clone() }, Code::NotFound, "stage"),
    ] {
        let status = read(bad).await.expect_err("it is refused");
        assert!(status.code() == code && status.message().contains(says), "{status:?}");
    }

    // Two units of four pairs each; a fifth pair of the first is asked for.
    let from = v1::PairPlace { unit: 0, number: 3 };
    let request = v1::ReadPairsRequest { from: Some(from), filter: score(0.5, 0.9), limit: 5, ..all.clone() };
    let answering = async {
        let asked = asked_for_pairs(&mut curator).await?;
        let of: Vec<(u64, u64, u64)> =
            asked.tars.iter().map(|tar| (tar.unit, tar.first_index, tar.readable)).collect();
        assert_eq!(of, [(0, 0, 4), (1, 4, 4)]);
        assert_eq!((asked.from_number, asked.limit, asked.picture_pixels), (3, 5, 192));
        assert_eq!(asked.filter, score(0.5, 0.9));
        let next = Some(v1::PairPlace { unit: 1, number: 1 });
        let pairs = vec![v1::ReviewedPair { index: Some(3), ..Default::default() }];
        let answer = v1::ReadPairsResponse { pairs, next, units: 99 };
        scene.send([Sent::ReadId(asked.read_id), Sent::Chunk(answer.encode_to_vec().into())]).await?;
        anyhow::Ok(())
    };
    let (came, answered) = tokio::join!(read(request), answering);
    answered?;
    let came = came?;
    assert_eq!(came.pairs.iter().map(|pair| pair.index).collect::<Vec<_>>(), [Some(3)]);
    assert_eq!((came.next, came.units), (Some(v1::PairPlace { unit: 1, number: 1 }), 2));

    // Behind the last unit nobody has to be asked.
    let behind = v1::PairPlace { unit: 2, number: 0 };
    let none = read(v1::ReadPairsRequest { from: Some(behind), rejected: true, ..all.clone() }).await?;
    assert_eq!((none.pairs.len(), none.next, none.units), (0, None, 2));
    // What a curator sends has to be an answer.
    let answering = async {
        let asked = asked_for_pairs(&mut curator).await?;
        assert!(asked.tars.iter().all(|tar| tar.sha256.is_empty() && tar.key.contains("/rejected/")));
        scene.send([Sent::ReadId(asked.read_id), Sent::Chunk(vec![0xff; 9].into())]).await?;
        anyhow::Ok(())
    };
    let (came, answered) = tokio::join!(read(v1::ReadPairsRequest { rejected: true, ..all }), answering);
    answered?;
    assert_eq!(came.expect_err("these are no pairs").code(), Code::DataLoss);
    Ok(())
}
