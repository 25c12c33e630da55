//! Whoever is not who they should be, at each service of a cluster of real processes: refused, with nothing changed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_node::tls::{Dialer, Tls, TlsFiles};
use crescendo_proto::v1::agent_service_client::AgentServiceClient;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message as Ask;
use crescendo_proto::v1::{
    AttemptRef, AwaitRendezvousRequest, Hello, ListJobsRequest, ListNodesRequest, NodeKind, OpenPairs,
    OpenSessionRequest, PublishRendezvousRequest, StreamPairsRequest, SubmitJobRequest,
};
use crescendo_testing::certificates::{Authority, BEFORE_EXPIRY, Recorder, Wanted};
use crescendo_tests::{Cluster, ClusterOptions, base_spec, http_get};
use tonic::transport::Channel;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Submit,
    OpenSession,
    StreamPairs,
    Publish,
}

impl Call {
    const ALL: [Call; 4] = [Call::Submit, Call::OpenSession, Call::StreamPairs, Call::Publish];

    fn address(self, cluster: &Cluster) -> Result<String> {
        match self {
            Call::Submit | Call::OpenSession => cluster.controller.grpc_address(),
            Call::StreamPairs => cluster.curators[0].grpc_address(),
            Call::Publish => cluster.trainers[0].grpc_address(),
        }
    }

    fn metrics_address(self, cluster: &Cluster) -> Result<String> {
        match self {
            Call::Submit | Call::OpenSession => cluster.controller.metrics_address(),
            Call::StreamPairs => cluster.curators[0].metrics_address(),
            Call::Publish => cluster.trainers[0].metrics_address(),
        }
    }

    /// Would change something if it came through.
    async fn make(self, channel: Channel) -> Result<(), Status> {
        let calling = async {
            match self {
                Call::Submit => {
                    let request = SubmitJobRequest {
                        request_id: "stranger".into(),
                        spec_yaml: base_spec(1).into_bytes(),
                        validate_only: false,
                    };
                    JobServiceClient::new(channel).submit_job(request).await.map(|_| ())
                }
                Call::OpenSession => {
                    let hello = Hello {
                        node_id: "stranger".into(),
                        incarnation: "1".into(),
                        kind: NodeKind::Trainer.into(),
                        slots: 8,
                        device: "cpu".into(),
                        address: "127.0.0.1:1".into(),
                        version: "0.1.0".into(),
                        ..Hello::default()
                    };
                    let first = OpenSessionRequest { message: Some(Up::Hello(hello)) };
                    NodeServiceClient::new(channel).open_session(once(first)).await.map(|_| ())
                }
                Call::StreamPairs => {
                    let open = OpenPairs {
                        job_id: "no-such-job".into(),
                        stage: "base".into(),
                        generation: 1,
                        credits: 8,
                        ..OpenPairs::default()
                    };
                    let first = StreamPairsRequest { message: Some(Ask::Open(open)) };
                    PairServiceClient::new(channel).stream_pairs(once(first)).await.map(|_| ())
                }
                Call::Publish => {
                    let request =
                        PublishRendezvousRequest { attempt: Some(attempt()), token: b"127.0.0.1:1".to_vec() };
                    AgentServiceClient::new(channel).publish_rendezvous(request).await.map(|_| ())
                }
            }
        };
        tokio::time::timeout(LIMIT, calling)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
    }
}

fn once<T: Send + 'static>(message: T) -> impl tonic::IntoStreamingRequest<Message = T> {
    tokio_stream::iter([message])
}

fn attempt() -> AttemptRef {
    AttemptRef { job_id: "no-such-job".into(), stage: "base".into(), generation: 1 }
}

/// What there is: jobs, nodes, and whether the agent knows of a rendezvous that nobody should have told it.
async fn state(cluster: &Cluster, node: &Dialer) -> Result<(Vec<String>, Vec<String>, Code)> {
    let channel = cluster.channel()?;
    let jobs = JobServiceClient::new(channel.clone()).list_jobs(ListJobsRequest::default()).await?;
    let jobs = jobs.into_inner().jobs.into_iter().map(|job| job.job_id).collect();
    let nodes = NodeServiceClient::new(channel).list_nodes(ListNodesRequest {}).await?;
    let mut nodes: Vec<String> = nodes.into_inner().nodes.into_iter().map(|node| node.node_id).collect();
    nodes.sort();
    let agent = node.channel(&cluster.trainers[0].grpc_address()?)?;
    let request = AwaitRendezvousRequest { attempt: Some(attempt()), timeout_millis: 50 };
    let code = match AgentServiceClient::new(agent).await_rendezvous(request).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    };
    Ok((jobs, nodes, code))
}

/// How many connections the process has refused so far.
async fn refused_connections(metrics_address: &str) -> Result<f64> {
    let text = http_get(metrics_address, "/metrics").await?;
    let lines = text.lines().filter(|line| line.starts_with("crescendo_connections_refused_total{"));
    let mut sum = 0.0;
    for line in lines {
        sum += line.rsplit(' ').next().context("a value")?.parse::<f64>()?;
    }
    Ok(sum)
}

#[tokio::test]
async fn strangers_are_refused_everywhere_and_change_nothing() -> Result<()> {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (folder, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let node_files = ours.write(folder.path(), &Wanted::node("node"));
    let ca = node_files.ca.clone();
    let node = Dialer::tls(Tls::load(node_files).await?);
    let foreign = TlsFiles { ca: ca.clone(), ..theirs.write(elsewhere.path(), &Wanted::node("node")) };
    let expired = ours.write(folder.path(), &Wanted { expired: true, ..Wanted::node("old") });
    let person =
        ours.write(folder.path(), &Wanted { uris: &["urn:crescendo:role:admin"], ..Wanted::node("p") });
    let strangers = [
        ("without TLS", Dialer::plain()),
        ("of a foreign authority", Dialer::tls(Tls::load(foreign).await?)),
        ("expired", Dialer::tls(Tls::load_as_of(expired, BEFORE_EXPIRY).await?)),
    ];
    let options = ClusterOptions { trainers: 1, authority: Some(ours), ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let nodes_are_there = async {
        while NodeServiceClient::new(cluster.channel()?)
            .list_nodes(ListNodesRequest {})
            .await?
            .into_inner()
            .nodes
            .len()
            < 2
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, nodes_are_there).await.context("wait for both nodes")??;
    let before = state(&cluster, &node).await?;
    ensure!(
        before.2 != Code::Ok && before.0.is_empty() && before.1 == ["curator-0", "trainer-0"],
        "{before:?}"
    );

    for call in Call::ALL {
        let address = call.address(&cluster)?;
        for (who, dialer) in &strangers {
            let answer = call.make(dialer.channel(&address)?).await;
            let status =
                answer.err().with_context(|| format!("{call:?} of a stranger {who} came through"))?;
            ensure!(
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled),
                "{call:?} {who} was answered: {status}"
            );
        }
    }
    // The servers of nodes are for nodes.
    let nobody = Dialer::tls(Tls::load(TlsFiles { identity: None, ca }).await?);
    let person = Dialer::tls(Tls::load(person).await?);
    for call in [Call::StreamPairs, Call::Publish] {
        let address = call.address(&cluster)?;
        ensure!(call.make(nobody.channel(&address)?).await.is_err(), "{call:?} without a certificate");
        let status = call.make(person.channel(&address)?).await.err().context("a person is no node")?;
        ensure!(status.code() == Code::PermissionDenied, "{call:?}: {status}");
    }
    let after = state(&cluster, &node).await?;
    ensure!(after == before, "{before:?} became {after:?}");

    // What is said over a connection is worth nothing from somebody who has only heard it.
    for call in [Call::OpenSession, Call::StreamPairs, Call::Publish] {
        let (address, metrics) = (call.address(&cluster)?, call.metrics_address(&cluster)?);
        let recorder = Recorder::before(&address).await?;
        match call {
            // A look: what it would change is done by nobody here.
            Call::OpenSession => {
                let channel = cluster.channel_at(&recorder.address)?;
                NodeServiceClient::new(channel).list_nodes(ListNodesRequest {}).await?;
            }
            // The curator does not know the job; that it says so means that the call came through.
            _ => {
                let answer = call.make(node.channel(&recorder.address)?).await;
                let code = answer.err().map_or(Code::Ok, |status| status.code());
                ensure!(code != Code::PermissionDenied, "{call:?} of a node is refused");
            }
        }
        let refused = refused_connections(&metrics).await?;
        let replay = tokio::time::timeout(LIMIT, recorder.replay(&address));
        let bytes = replay.await.context("the server closes")??;
        ensure!(bytes > 500, "only {bytes} bytes were recorded");
        let counted = async {
            while refused_connections(&metrics).await? <= refused {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LIMIT, counted)
            .await
            .with_context(|| format!("the replay of {call:?} is refused"))??;
    }
    let (jobs, nodes, _) = state(&cluster, &node).await?;
    ensure!((jobs, nodes) == (before.0, before.1), "a replay changed something");
    Ok(())
}
