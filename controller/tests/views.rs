//! What a page shows: views on one stream, curves from reports and from checkpoints, and the page itself beside gRPC.

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1;
use crescendo_testing::LIMIT;
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, commit_checkpoint, curate};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Streaming};
use v1::open_session_request::Message as Up;
use v1::open_session_response::Message as Down;
use v1::send_object_request::Message as Sent;
use v1::view::Shows;
use v1::watch_views_response::Shown;

/// A controller with a job that trains on a played node.
struct Scene {
    controller: Controller,
    job: String,
    trainer: FakeNode,
    attempt: v1::AttemptRef,
}

impl Scene {
    async fn new() -> Result<Self> {
        let controller = Controller::start().await?;
        let job = controller.submit_job("r-1").await?.job_id;
        curate(&controller, &job, "c-1").await?;
        let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
        let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
        Ok(Self { controller, job, trainer, attempt })
    }

    async fn step(&self, step: u64) -> Result<()> {
        self.trainer
            .send(Up::AttemptReport(v1::AttemptReport {
                attempt: Some(self.attempt.clone()),
                phase: v1::AttemptPhase::Running.into(),
                step,
                loss: 1.0 / step as f64,
                grad_norm: 2.0,
                learning_rate: 1e-4,
                samples_per_sec: 4.0,
                data_wait_fraction: 0.25,
                failed_rank: -1,
                ..Default::default()
            }))
            .await
    }

    fn curves(&self) -> Shows {
        Shows::Curves(v1::CurvesView { job_id: self.job.clone(), ..Default::default() })
    }
}

/// One stream of views, numbered from 1.
struct Watch(Streaming<v1::WatchViewsResponse>);

impl Watch {
    async fn open(controller: &Controller, shows: impl IntoIterator<Item = Shows>) -> Result<Self> {
        let view = |(at, shows): (usize, Shows)| v1::View { view_id: at as u32 + 1, shows: Some(shows) };
        let views = shows.into_iter().enumerate().map(view).collect();
        let opened = controller.views().watch_views(v1::WatchViewsRequest { views }).await?;
        Ok(Self(opened.into_inner()))
    }

    /// The next answer that is wanted.
    async fn until<T>(&mut self, what: &str, wanted: impl Fn(u32, &Shown) -> Option<T>) -> Result<T> {
        let looking = async {
            loop {
                let answer = self.0.message().await?.context("the stream ended")?;
                if let Some(found) = answer.shown.as_ref().and_then(|shown| wanted(answer.view_id, shown)) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(LIMIT, looking).await.with_context(|| format!("{what}: it never came"))?
    }

    /// The curve, once it reaches this step; `known` are the points that the caller has.
    async fn curve_to(&mut self, step: u64, known: &mut Vec<u64>) -> Result<v1::Curve> {
        loop {
            let curve = self
                .until("a curve", |_, shown| match shown {
                    Shown::Curves(shown) => shown.curves.first().cloned(),
                    _ => None,
                })
                .await?;
            known.retain(|had| *had <= curve.after_step);
            known.extend(&curve.steps);
            if known.last() == Some(&step) {
                return Ok(curve);
            }
        }
    }
}

#[tokio::test]
async fn several_views_on_one_stream_follow_what_changes() -> Result<()> {
    let scene = Scene::new().await?;
    let (controller, job) = (&scene.controller, scene.job.clone());
    let shows = [
        Shows::Jobs(v1::JobsView::default()),
        Shows::Job(v1::JobView { job_id: job.clone() }),
        Shows::Nodes(v1::NodesView {}),
        Shows::Queues(v1::QueuesView {}),
        scene.curves(),
        Shows::Job(v1::JobView { job_id: "none-000000".into() }),
    ];
    let mut watch = Watch::open(controller, shows).await?;
    let listed = watch.until("the list", |view, shown| match shown {
        Shown::Jobs(jobs) if view == 1 => Some((jobs.job_ids.clone(), jobs.total)),
        _ => None,
    });
    assert_eq!(listed.await?, (vec![job.clone()], 1));
    let whole = watch.until("the job", |view, shown| match shown {
        Shown::Job(shown) if view == 2 => Some(shown.clone()),
        _ => None,
    });
    let whole = whole.await?;
    assert!(whole.job.is_some() && whole.explanation.is_some() && whole.checkpoints.is_some(), "{whole:?}");
    let node = watch.until("the nodes", |view, shown| match shown {
        Shown::Nodes(nodes) if view == 3 => Some(nodes.changed.iter().any(|node| node.node_id == "t-1")),
        _ => None,
    });
    assert!(node.await?);
    let failed = watch.until("the failure", |view, shown| match shown {
        Shown::Failed(failed) if view == 6 => Some(failed.code),
        _ => None,
    });
    assert_eq!(failed.await?, Code::NotFound as i32, "and the others go on");

    scene.step(1).await?;
    scene.step(2).await?;
    let mut known = Vec::new();
    watch.curve_to(2, &mut known).await?;
    scene.step(3).await?;
    let curve = watch.curve_to(3, &mut known).await?;
    assert_eq!(known, [1, 2, 3], "what comes follows what came");
    assert_eq!(curve.steps_per_sec.context("a pace")?.mean.last(), Some(&2.0), "of a batch of two");
    assert_eq!(curve.data_wait.context("a share")?.mean.last(), Some(&0.25));

    let pause = v1::PauseJobRequest { job_id: job.clone(), reason: "lunch".into(), keep_curating: false };
    controller.jobs().pause_job(pause).await?;
    watch
        .until("the pause", |view, shown| match shown {
            Shown::Jobs(jobs) if view == 1 => {
                jobs.changed.iter().any(|job| job.state() == v1::JobState::Paused).then_some(())
            }
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_controller_that_has_heard_nothing_reads_the_history_of_the_checkpoint() -> Result<()> {
    let mut scene = Scene::new().await?;
    let text: String = (1..=5)
        .map(|step| {
            format!(
                "{{\"step\":{step},\"loss\":0.5,\"grad_norm\":1.0,\"learning_rate\":0.001,\"seconds\":0.25}}\n"
            )
        })
        .collect();
    let sha256: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut saved = checkpoint(&scene.attempt, 5, false);
    saved.files.push(v1::CheckpointFile {
        name: "history.jsonl".into(),
        size_bytes: text.len() as u64,
        sha256,
    });
    commit_checkpoint(&scene.controller, saved).await?;
    scene.controller.restart().await?;
    let request = v1::ReadCurvesRequest { job_id: scene.job.clone(), ..Default::default() };
    let unread = scene.controller.views().read_curves(request.clone()).await?.into_inner();
    ensure!(
        unread.curves.len() == 1 && unread.curves[0].steps.is_empty(),
        "nobody could read it: {unread:?}"
    );

    let mut curator = FakeNode::curator(&scene.controller, "c-1").await?;
    let mut watch = Watch::open(&scene.controller, [scene.curves()]).await?;
    let read = loop {
        if let Down::ReadObject(read) = curator.next().await? {
            break read;
        }
    };
    ensure!(read.key.ends_with("/history.jsonl"), "{}", read.key);
    let sends = [Sent::ReadId(read.read_id), Sent::Chunk(text.into_bytes().into())];
    let sends = sends.map(|sent| v1::SendObjectRequest { message: Some(sent) });
    scene.controller.objects().send_object(tokio_stream::iter(sends)).await?;
    let mut known = Vec::new();
    let curve = watch.curve_to(5, &mut known).await?;
    assert_eq!(known, [1, 2, 3, 4, 5]);
    assert_eq!(curve.steps_per_sec.context("a pace")?.mean, [4.0; 5]);
    let again = scene.controller.views().read_curves(request).await?.into_inner();
    assert_eq!(again.curves[0].steps, [1, 2, 3, 4, 5], "once read, it is there for all");
    Ok(())
}

#[tokio::test]
async fn a_watch_that_makes_no_sense_is_refused() -> Result<()> {
    let controller = Controller::start().await?;
    let view = |view_id| v1::View { view_id, shows: Some(Shows::Queues(v1::QueuesView {})) };
    let empty = v1::View { view_id: 1, shows: None };
    for (views, says) in [
        (vec![], "must be 1 to 64"),
        ((0..65).map(view).collect(), "must be 1 to 64"),
        (vec![view(3), view(3)], "view_id 3 comes twice"),
        (vec![empty], "shows nothing"),
    ] {
        let refused = controller.views().watch_views(v1::WatchViewsRequest { views }).await;
        let status = refused.err().context(says)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(says), "{status:?}");
    }
    Ok(())
}

/// What comes back over HTTP/1.1, headers first.
async fn http(controller: &Controller, head: &str, body: &[u8]) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(&controller.address).await?;
    let length = body.len();
    let head = format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.context("no answer")??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_browser_gets_the_page_and_calls_over_http_1() -> Result<()> {
    let controller = Controller::start().await?;
    let host = format!("Host: {}", controller.address);
    let page = http(&controller, &format!("GET / HTTP/1.1\r\n{host}"), &[]).await?;
    let is_built = page.starts_with("HTTP/1.1 200");
    ensure!(
        is_built || (page.starts_with("HTTP/1.1 404") && page.contains("without the web page")),
        "{page}"
    );
    ensure!(page.contains("content-security-policy: default-src 'none'"), "{page}");

    // No message: an empty one, with its length.
    let empty = [0; 5];
    let call = |service: &str| {
        format!("POST /crescendo.v1.{service} HTTP/1.1\r\n{host}\r\nContent-Type: application/grpc-web+proto")
    };
    let who = http(&controller, &call("AccessService/WhoAmI"), &empty).await?;
    ensure!(who.starts_with("HTTP/1.1 200") && who.contains("dev") && who.contains("grpc-status:0"), "{who}");
    let unit = http(&controller, &call("CurationService/LeaseUnit"), &empty).await?;
    ensure!(!unit.contains("grpc-status:0"), "only what people use is there for browsers: {unit}");

    let foreign = http(&controller, "GET / HTTP/1.1\r\nHost: evil.example", &[]).await?;
    ensure!(foreign.starts_with("HTTP/1.1 403"), "a name that is not this machine's: {foreign}");
    let crossing = format!("{}\r\nSec-Fetch-Site: cross-site", call("AccessService/WhoAmI"));
    let crossing = http(&controller, &crossing, &empty).await?;
    ensure!(crossing.starts_with("HTTP/1.1 403"), "from another site: {crossing}");
    Ok(())
}

#[tokio::test]
async fn without_the_page_nothing_but_grpc_is_spoken() -> Result<()> {
    let controller = Controller::start_with(&["--web-page", "false"]).await?;
    let host = format!("Host: {}", controller.address);
    let answer = http(&controller, &format!("GET / HTTP/1.1\r\n{host}"), &[]).await;
    ensure!(!answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1")), "HTTP/1.1 is not spoken");
    Ok(())
}
