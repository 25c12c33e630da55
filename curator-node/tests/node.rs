//! A real curator process between a controller and a rank, both in this process.

#[path = "support/page.rs"]
mod page;
mod support;

use crescendo_dataset::digest::sha256_hex;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message as Up;
use crescendo_proto::v1::stream_pairs_response::Message as Down;
use crescendo_proto::v1::{
    AssignCuration, Checkpoint, CheckpointFile, FetchPairs, GrantCredits, NodeKind, OpenPairs, Reach,
    StreamPairsRequest, StreamPairsResponse, UnitFailureKind,
};
use page::http_get;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use support::{Curator, FakeController, Log, assignment, prepare, wait_for};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_crescendo-curator-node"))
}

/// A rank's end of a pair stream.
struct Rank {
    requests: mpsc::Sender<StreamPairsRequest>,
    responses: Streaming<StreamPairsResponse>,
}

impl Rank {
    async fn open(address: &str, credits: u32) -> Rank {
        let mut client = PairServiceClient::connect(format!("http://{address}")).await.expect("connect");
        let (requests, outgoing) = mpsc::channel(16);
        let open = OpenPairs {
            job_id: "test-1".into(),
            stage: "stage-1".into(),
            generation: 1,
            rank: 0,
            credits,
            takes_bytes: true,
        };
        requests.send(StreamPairsRequest { message: Some(Up::Open(open)) }).await.expect("send");
        let responses = client.stream_pairs(ReceiverStream::new(outgoing)).await.expect("open").into_inner();
        Rank { requests, responses }
    }

    async fn send(&self, message: Up) {
        self.requests.send(StreamPairsRequest { message: Some(message) }).await.expect("the stream is open");
    }

    async fn next(&mut self) -> Result<Down, Status> {
        let response = tokio::time::timeout(Duration::from_secs(60), self.responses.message()).await;
        let response = response.expect("an answer in time")?.expect("the stream goes on");
        Ok(response.message.expect("a message"))
    }

    /// The next pair, whatever is said of the log before it.
    async fn pair(&mut self) -> Result<u64, Status> {
        loop {
            match self.next().await? {
                Down::Pair(pair) => return Ok(pair.index),
                Down::Status(_) => {}
                Down::Opened(opened) => {
                    let text = opened.empty_text.expect("the empty text");
                    assert_eq!(text.tokens.expect("tokens").shape, [24, 64]);
                }
            }
        }
    }
}

/// A controller and a curator that has been assigned a stage of units of 16 pairs; the first `open_units` may be made.
struct Cluster {
    folder: TempDir,
    log: Arc<watch::Sender<Log>>,
    controller: std::net::SocketAddr,
    tasks: Tasks,
    curator: Curator,
    address: String,
    metrics: String,
}

impl Cluster {
    async fn start(open_units: u64, target: u64) -> Cluster {
        let folder = tempfile::tempdir().expect("make a folder");
        let work = assignment(prepare(folder.path(), 16, 1, 32), &folder.path().join("objects"));
        Cluster::start_in(folder, work, open_units, target).await
    }

    async fn start_in(folder: TempDir, work: AssignCuration, open_units: u64, target: u64) -> Cluster {
        let log = Arc::new(watch::Sender::new(Log { open_units, target, ..Log::default() }));
        let (tasks, _) = Tasks::new();
        let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
        let curator = Curator::start(&binary(), folder.path(), controller).expect("start the curator");
        let (address, metrics) = curator.addresses().await.expect("the curator serves");
        Cluster { folder, log, controller, tasks, curator, address, metrics }
    }

    fn shard(&self, log: &Log, unit: u64) -> PathBuf {
        self.folder.path().join("objects").join(&log.units[&unit].0.path)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_come_in_order_as_credits_and_commits_allow() {
    let cluster = Cluster::start(1, 24).await;
    let mut rank = Rank::open(&cluster.address, 2).await;
    rank.send(Up::Fetch(FetchPairs { first_index: 0, count: 20 })).await;
    assert_eq!((rank.pair().await.expect("a pair"), rank.pair().await.expect("a pair")), (0, 1));
    // Two credits, two pairs. What comes after the credit is granted was not sent before it: the log's growth is told
    // first.
    cluster.log.send_modify(|log| log.open_units = 2);
    let committed = wait_for(&cluster.log, "unit 1 is done", |log| log.units.len() == 2).await;
    loop {
        match rank.next().await.expect("an answer") {
            Down::Status(status) if status.committed == 24 => {
                assert!(status.sealed);
                break;
            }
            Down::Status(_) => {}
            other => panic!("without credits came {other:?}"),
        }
    }
    rank.send(Up::Grant(GrantCredits { pairs: 100 })).await;
    for index in 2..20 {
        assert_eq!(rank.pair().await.expect("a pair"), index);
    }
    // Any range again, and then one that will never exist.
    rank.send(Up::Fetch(FetchPairs { first_index: 3, count: 2 })).await;
    assert_eq!((rank.pair().await.expect("a pair"), rank.pair().await.expect("a pair")), (3, 4));
    rank.send(Up::Fetch(FetchPairs { first_index: 23, count: 2 })).await;
    assert_eq!(rank.pair().await.expect("the last pair"), 23);
    assert_eq!(rank.pair().await.expect_err("past the end").code(), Code::OutOfRange);

    let hello = committed.hello.expect("it said hello");
    assert_eq!(
        (hello.node_id.as_str(), hello.kind, hello.address),
        ("curator-0", NodeKind::Curator as i32, cluster.address.clone())
    );
    // Counted when the answer to the commit is there, which the ranks do not wait for.
    let lines = ["crescendo_curator_pairs_accepted_total 32", "crescendo_curator_pairs_served_total 23"];
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let page = http_get(&cluster.metrics).await;
            if lines.iter().all(|line| page.contains(line)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{lines:?} never come"));
    assert!(cluster.curator.stop().await.expect("it stops").success());
    cluster.tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_shard_is_named_and_the_others_are_served() {
    let cluster = Cluster::start(3, 48).await;
    let log = wait_for(&cluster.log, "three units are done", |log| log.units.len() == 3).await;
    let whole = std::fs::read(cluster.shard(&log, 1)).expect("read a shard");
    std::fs::write(cluster.shard(&log, 1), &whole[..whole.len() / 2]).expect("cut it short");
    let mut rank = Rank::open(&cluster.address, 100).await;
    rank.send(Up::Fetch(FetchPairs { first_index: 15, count: 2 })).await;
    assert_eq!(rank.pair().await.expect("a pair"), 15);
    let status = rank.pair().await.expect_err("the shard is damaged");
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains(&log.units[&1].0.path), "{status}");
    let mut rank = Rank::open(&cluster.address, 100).await;
    rank.send(Up::Fetch(FetchPairs { first_index: 32, count: 1 })).await;
    assert_eq!(rank.pair().await.expect("a pair of another shard"), 32);
    cluster.tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_controller_only_delays() {
    let cluster = Cluster::start(1, 1000).await;
    // The curator knows of its unit's place in the log when it serves it.
    let mut early = Rank::open(&cluster.address, 100).await;
    early.send(Up::Fetch(FetchPairs { first_index: 0, count: 1 })).await;
    assert_eq!(early.pair().await.expect("a pair"), 0);
    cluster.tasks.stop_token().cancel();
    // What is committed goes on being served.
    let mut rank = Rank::open(&cluster.address, 100).await;
    rank.send(Up::Fetch(FetchPairs { first_index: 0, count: 32 })).await;
    for index in 0..16 {
        assert_eq!(rank.pair().await.expect("a pair"), index);
    }
    // The same address, the same records, a new process so to say.
    cluster.log.send_modify(|log| {
        log.open_units = 2;
        log.hello = None;
    });
    let (tasks, _) = Tasks::new();
    let work = assignment(prepare(cluster.folder.path(), 16, 1, 32), &cluster.folder.path().join("objects"));
    FakeController::serve(&cluster.controller.to_string(), cluster.log.clone(), work, tasks.clone()).await;
    for index in 16..32 {
        assert_eq!(rank.pair().await.expect("a pair"), index);
    }
    let log = wait_for(&cluster.log, "it said hello again", |log| log.hello.is_some()).await;
    assert_eq!(log.hello.expect("a hello").curating.len(), 1);
    tasks.stop_token().cancel();
}

/// What a curator says of a stage whose library is `subjects` at `root`, for a job with these bounds.
async fn refused(folder: &TempDir, reach: Reach) -> Log {
    let work = AssignCuration {
        reach: Some(reach),
        ..assignment(prepare(folder.path(), 16, 1, 32), &folder.path().join("objects"))
    };
    // Its files lie outside of the library, where another's may be.
    let elsewhere = folder.path().join("elsewhere");
    std::fs::rename(folder.path().join("subjects"), &elsewhere).expect("move the library");
    std::os::unix::fs::symlink(&elsewhere, folder.path().join("library").join("subjects")).expect("link");
    let log = Arc::new(watch::Sender::new(Log { open_units: 1, target: 16, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let library = folder.path().join("library");
    let _curator = Curator::start(&binary(), &library, controller).expect("start the curator");
    wait_for(&log, "the unit failed or is there", |log| !log.failed.is_empty() || !log.units.is_empty()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_out_of_the_library_is_followed_for_the_operator_alone() {
    let folder = tempfile::tempdir().expect("make a folder");
    std::fs::create_dir(folder.path().join("library")).expect("make the library's root");
    let log = refused(&folder, Reach::default()).await;
    assert!(log.units.is_empty() && log.failed[0].contains("is a link that leads to"), "{:?}", log.failed);
    assert_eq!(
        log.failure_kinds,
        [UnitFailureKind::Source],
        "no other curator is to be asked as if it might pass"
    );

    let folder = tempfile::tempdir().expect("make a folder");
    std::fs::create_dir(folder.path().join("library")).expect("make the library's root");
    let allowed = vec![folder.path().join("elsewhere").display().to_string()];
    let log = refused(&folder, Reach { roots: allowed, ..Reach::default() }).await;
    assert!(log.failed.is_empty(), "the operator allows that folder: {:?}", log.failed);

    let folder = tempfile::tempdir().expect("make a folder");
    std::fs::create_dir(folder.path().join("library")).expect("make the library's root");
    let log = refused(&folder, Reach { everything: true, ..Reach::default() }).await;
    assert!(log.failed.is_empty(), "{:?}", log.failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_curated_is_told_to_the_controller() {
    let folder = tempfile::tempdir().expect("make a folder");
    let spec = prepare(folder.path(), 16, 1, 32);
    std::fs::remove_dir_all(folder.path().join("subjects")).expect("remove the library");
    let log = Arc::new(watch::Sender::new(Log { open_units: 1, target: 16, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let work = assignment(spec, &folder.path().join("objects"));
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let _curator = Curator::start(&binary(), folder.path(), controller).expect("start the curator");
    let log = wait_for(&log, "the unit failed and was logged", |log| {
        !log.failed.is_empty() && log.logged.iter().any(|line| line.message.contains("failed"))
    })
    .await;
    let path = folder.path().join("subjects");
    let named = format!("cannot read {}: No such file", path.display());
    assert!(log.failed[0].starts_with(&named), "{:?}", log.failed);
    assert_eq!(log.failure_kinds, [UnitFailureKind::Source]);
    let line = log.logged.iter().find(|line| line.message.contains("failed")).expect("the failure is logged");
    assert_eq!(
        (line.job_id.as_str(), line.stage.as_str(), line.level.as_str()),
        ("test-1", "stage-1", "ERROR")
    );
    tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_unit_is_is_told_while_it_is_made() {
    let folder = tempfile::tempdir().expect("make a folder");
    // Large enough that it takes seconds.
    let work = assignment(prepare(folder.path(), 4000, 1, 128), &folder.path().join("objects"));
    let cluster = Cluster::start_in(folder, work, 1, 1_000_000).await;
    let log = wait_for(&cluster.log, "two words with some candidates", |log| {
        log.reports.iter().filter(|report| report.drawn > 0).count() >= 2
    })
    .await;
    let stage = log.reports[0].stage.clone().expect("a stage");
    assert_eq!((stage.job_id.as_str(), stage.stage.as_str()), ("test-1", "stage-1"));
    assert!(log.reports.iter().all(|report| report.unit == 0 && report.candidates == 4000));
    let drawn: Vec<u64> = log.reports.iter().map(|report| report.drawn).collect();
    assert!(drawn.is_sorted() && drawn.iter().all(|drawn| *drawn <= 4000), "{drawn:?}");
    cluster.tasks.stop_token().cancel();
}

/// A resolved spec, as JSON, whose second stage of units of 8 candidates has the model of the first draw second
/// references; its library and its base below `root`; and an adapter as the first stage might have trained it.
fn prepare_redrawing(root: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    use crescendo_model::tch::{Device, Kind};
    use crescendo_model::{BlockSelection, Flux, FluxConfig, LoraAdapter, weights};
    prepare(root, 8, 1, 32);
    let config = FluxConfig::nano();
    let mut flux = Flux::init(&config, 3, Kind::Float, Device::Cpu).expect("fresh weights");
    weights::save(&root.join("base.safetensors"), &flux.tensors(), &Default::default())
        .expect("save the base");
    let blocks = BlockSelection::all(&config);
    let mut adapter =
        LoraAdapter::init(&config, 4, &blocks, 1, Kind::Float, Device::Cpu).expect("a fresh adapter");
    let adapter = weights::to_bytes(&adapter.tensors(), &Default::default()).expect("encode the adapter");
    let spec = "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: test}
spec:
  model: {preset: nano, precision: f32, weights: base.safetensors}
  resources: {gpus: 1}
  seed: 5
  stages:
    - data: {source: compose, subjects: subjects}
    - data: {source: recompose, subjects: subjects, pairs: 1000, unitSize: 8, draw: {steps: 2}}
";
    let job = crescendo_core::spec::parse(spec.as_bytes()).expect("the spec is right");
    (serde_json::to_vec(&job).expect("encode the spec"), adapter)
}

/// Work on a stage that redraws, with the checkpoint of the stage before as the controller names it.
fn redrawing(folder: &TempDir, sha256: Option<&str>) -> AssignCuration {
    let objects = folder.path().join("objects");
    let (spec, adapter) = prepare_redrawing(folder.path());
    let path = "jobs/test-1/stage-1/checkpoints/step-00000002-g1";
    std::fs::create_dir_all(objects.join(path)).expect("make the checkpoint's folder");
    std::fs::write(objects.join(path).join("dit_lora.safetensors"), &adapter).expect("write the adapter");
    let file = CheckpointFile {
        name: "dit_lora.safetensors".into(),
        size_bytes: adapter.len() as u64,
        sha256: sha256.map_or_else(|| sha256_hex(&adapter), str::to_owned),
    };
    let checkpoint = Checkpoint {
        job_id: "test-1".into(),
        stage: "stage-1".into(),
        step: 2,
        path: path.into(),
        files: vec![file],
        r#final: true,
        ..Checkpoint::default()
    };
    AssignCuration {
        stage: Some(crescendo_proto::v1::StageRef { job_id: "test-1".into(), stage: "stage-2".into() }),
        stage_index: 1,
        source_checkpoint: Some(checkpoint),
        ..assignment(spec, &objects)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_references_are_drawn_with_the_checkpoint_that_the_controller_names() {
    let folder = tempfile::tempdir().expect("make a folder");
    let work = redrawing(&folder, None);
    let cluster = Cluster::start_in(folder, work, 2, 1000).await;
    let log = wait_for(&cluster.log, "two units are done", |log| log.units.len() == 2).await;
    let bytes = std::fs::read(cluster.shard(&log, 0)).expect("the shard is there");
    let pairs = crescendo_dataset::shard::read_shard(bytes.as_slice()).expect("read");
    let rejected: u64 = log.units[&0].1.values().sum();
    assert_eq!(pairs.len() as u64 + rejected, 8);
    assert!(!pairs.is_empty(), "{:?}", log.units[&0].1);
    for pair in &pairs {
        assert_eq!((pair.references.len(), pair.provenance["source"].as_str()), (2, Some("recompose")));
    }
    assert!(cluster.curator.stop().await.expect("it stops").success());
    cluster.tasks.stop_token().cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_drawn_with_weights_that_are_not_what_was_registered() {
    let folder = tempfile::tempdir().expect("make a folder");
    let work = redrawing(&folder, Some(&"0".repeat(64)));
    let cluster = Cluster::start_in(folder, work, 1, 1000).await;
    let log = wait_for(&cluster.log, "the unit failed", |log| !log.failed.is_empty()).await;
    assert!(
        log.failed[0].contains("dit_lora.safetensors") && log.failed[0].contains("registered"),
        "{:?}",
        log.failed
    );
    assert_eq!(log.failure_kinds[0], UnitFailureKind::Passing, "the store is to blame, not this curator");
    assert!(log.units.is_empty());
    cluster.tasks.stop_token().cancel();
}
