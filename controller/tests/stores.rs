//! The mark in the object store's root, as nodes tell of it, and what is judged of a root that is another's.

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_testing::controller::{Controller, FakeNode, hello};
use crescendo_testing::eventually;
use tonic::Code;
use v1::collect_leftovers_response::Message as Collected;
use v1::open_session_response::Message as Down;

fn curator(id: &str, store_id: &str) -> v1::Hello {
    let health = Some(v1::NodeHealth { store_id: store_id.into(), ..Default::default() });
    v1::Hello { health, ..hello(id, v1::NodeKind::Curator, 0, "first") }
}

async fn node(controller: &Controller, id: &str) -> Result<v1::Node> {
    let nodes = controller.nodes().list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes;
    nodes.into_iter().find(|node| node.node_id == id).context("it is known")
}

#[tokio::test]
async fn the_first_mark_counts_and_who_sees_another_gets_no_work() -> Result<()> {
    let mut controller = Controller::start().await?;
    let _first = FakeNode::open(&controller, curator("c-1", "store-a")).await?;
    let _other = FakeNode::open(&controller, curator("c-2", "store-b")).await?;
    assert_eq!(node(&controller, "c-1").await?.store_fault, "");
    let fault = node(&controller, "c-2").await?.store_fault;
    assert!(fault.contains("says store-b, and that of the other nodes store-a"), "{fault}");
    // It is remembered, and so is the name of the cluster.
    controller.restart().await?;
    let _other = FakeNode::open(&controller, curator("c-2", "store-b")).await?;
    eventually("the other is refused again", async || {
        Ok((!node(&controller, "c-2").await?.store_fault.is_empty()).then_some(()))
    })
    .await
}

/// The collection that the curator is asked for.
async fn order(curator: &mut FakeNode) -> Result<v1::CollectObjects> {
    loop {
        if let Down::CollectObjects(order) = curator.next().await? {
            return Ok(order);
        }
    }
}

#[tokio::test]
async fn nothing_is_judged_in_a_root_that_is_not_this_clusters() -> Result<()> {
    let controller = Controller::start().await?;
    let collect = v1::CollectLeftoversRequest { job_id: String::new(), dry_run: false };
    let status = controller.objects().collect_leftovers(collect.clone()).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    let mut curator = FakeNode::open(&controller, curator("c-1", "store-a")).await?;
    let mut told = controller.stream_objects().collect_leftovers(collect.clone()).await?.into_inner();
    let order = order(&mut curator).await?;
    assert_eq!((order.prefix.as_str(), order.dry_run), ("jobs", false));
    let busy = controller.objects().collect_leftovers(collect).await.expect_err("one at a time");
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy:?}");

    let object = v1::ListedObject { key: "jobs/x/s/pairs/unit-000000-l1.tar".into(), ..Default::default() };
    let ask = v1::JudgeObjectsRequest {
        collect_id: order.collect_id.clone(),
        listed: vec![object],
        mark: Some(v1::StoreMark {
            cluster_id: "another".into(),
            store_id: "store-a".into(),
            began_empty: true,
        }),
        ..Default::default()
    };
    let refused = controller.objects().judge_objects(ask.clone()).await.expect_err("another's");
    assert!(refused.message().contains("is not marked as this cluster's"), "{refused:?}");
    assert_eq!(refused.code(), Code::FailedPrecondition, "the curator tells it on: {refused:?}");
    let guessed = v1::JudgeObjectsRequest { collect_id: "guessed".into(), ..ask };
    let status = controller.objects().judge_objects(guessed).await.expect_err("no such collection");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");

    // The curator tells why it gives up, and so does the controller.
    let (collect_id, error) = (order.collect_id, "it is another's".to_owned());
    let failed = v1::JudgeObjectsRequest { collect_id, error, ..Default::default() };
    controller.objects().judge_objects(failed).await?;
    let status = told.message().await.expect_err("it has failed");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "it is another's"));
    Ok(())
}

#[tokio::test]
async fn what_was_judged_and_removed_is_told() -> Result<()> {
    let controller = Controller::start().await?;
    let mut curator = FakeNode::open(&controller, curator("c-1", "store-a")).await?;
    let cluster_id = curator.welcome.cluster_id.clone();
    let collect = v1::CollectLeftoversRequest { job_id: "gone-000000".into(), dry_run: false };
    let mut told = controller.stream_objects().collect_leftovers(collect).await?.into_inner();
    let order = order(&mut curator).await?;
    assert_eq!(order.prefix, "jobs/gone-000000");
    let key = "jobs/gone-000000/s/pairs/unit-000000-l1.tar".to_owned();
    let ask = v1::JudgeObjectsRequest {
        collect_id: order.collect_id.clone(),
        listed: vec![v1::ListedObject { key, size_bytes: 7, modified_unix_millis: 1 }],
        mark: Some(v1::StoreMark { cluster_id, store_id: "store-a".into(), began_empty: true }),
        ..Default::default()
    };
    assert_eq!(controller.objects().judge_objects(ask).await?.into_inner().leftovers, [0]);
    let done = v1::JudgeObjectsRequest {
        collect_id: order.collect_id,
        removed_objects: 1,
        removed_bytes: 7,
        done: true,
        ..Default::default()
    };
    controller.objects().judge_objects(done).await?;
    let mut summary = None;
    while let Some(response) = told.message().await? {
        if let Some(Collected::Summary(last)) = response.message {
            summary = Some(last);
        }
    }
    let summary = summary.context("a summary")?;
    assert_eq!((summary.removed_objects, summary.removed_bytes, summary.failed_objects), (1, 7, 0));
    Ok(())
}
