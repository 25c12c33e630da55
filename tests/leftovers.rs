//! What no record names goes from the object store, and nothing else; and a store that is not there is not taken for an empty one:
//! through real processes, in a folder and in a bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::collect_leftovers_response::Message;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use crescendo_proto::v1::{CollectLeftoversRequest, CollectSummary, ListNodesRequest, WatchPairLogRequest};
use crescendo_testing::S3Server;
use crescendo_testing::s3::Detour;
use crescendo_tests::{Cluster, ClusterOptions, base_spec};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};

const LIMIT: Duration = Duration::from_secs(120);
/// Far beyond the grace time.
const AGE: Duration = Duration::from_secs(48 * 3600);

/// Every file below a folder, by its path from there, with its content; but logs, which nodes still write for a moment.
fn files(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.extend((!path.ends_with("logs")).then_some(path));
            } else {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// Where a cluster has its objects.
enum Ground<'a> {
    Folder(&'a Path),
    Bucket(&'a dyn ObjectStore, &'a Detour),
}

impl Ground<'_> {
    /// Every object, with its content; in a folder halves of files too. Not the logs: they are written on behind the job.
    async fn contents(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut found = BTreeMap::new();
        match self {
            Self::Folder(root) => found = files(root)?,
            Self::Bucket(store, _) => {
                let listing = store.list(None).map_ok(|found| found.location);
                for key in listing.try_collect::<Vec<_>>().await? {
                    // One that a log has let go of meanwhile.
                    let Ok(read) = store.get(&key).await else { continue };
                    found.insert(key.to_string(), read.bytes().await?.to_vec());
                }
            }
        }
        found.retain(|key, _| !key.contains("/logs/"));
        Ok(found)
    }

    async fn leave(&self, name: &str) -> Result<()> {
        match self {
            Self::Folder(root) => {
                let path = root.join(name);
                std::fs::create_dir_all(path.parent().context("a folder")?)?;
                Ok(std::fs::write(path, "left")?)
            }
            Self::Bucket(store, _) => Ok(store.put(&name.into(), "left".into()).await.map(drop)?),
        }
    }

    /// All that is there was written long ago, but for one object.
    async fn grow_old(&self, young: &str) -> Result<()> {
        match self {
            Self::Folder(root) => {
                for name in files(root)?.into_keys().filter(|name| name != young) {
                    let file = std::fs::File::options().write(true).open(root.join(name))?;
                    file.set_modified(SystemTime::now() - AGE)?;
                }
            }
            // Nobody can set the time of an object.
            Self::Bucket(_, detour) => detour.grow_old(young),
        }
        Ok(())
    }
}

async fn collect(cluster: &Cluster, job: &str, dry_run: bool) -> Result<(Vec<String>, CollectSummary)> {
    let request = CollectLeftoversRequest { job_id: job.into(), dry_run };
    let mut told =
        ObjectServiceClient::new(cluster.channel()?).collect_leftovers(request).await?.into_inner();
    let mut keys = Vec::new();
    loop {
        let message = tokio::time::timeout(LIMIT, told.message()).await.context("nothing is told")??;
        match message.context("it ends without a summary")?.message {
            Some(Message::Page(page)) => keys.extend(page.leftovers.into_iter().map(|object| object.key)),
            Some(Message::Summary(summary)) => {
                keys.sort();
                return Ok((keys, summary));
            }
            None => {}
        }
    }
}

/// Shards of the stage's pair log.
async fn registered(cluster: &Cluster, job: &str, stage: &str) -> Result<BTreeSet<String>> {
    let request = WatchPairLogRequest { job_id: job.into(), stage: stage.into(), from_unit: 0 };
    let mut news = CurationServiceClient::new(cluster.channel()?).watch_pair_log(request).await?.into_inner();
    let mut paths = BTreeSet::new();
    loop {
        let message = tokio::time::timeout(LIMIT, news.message()).await.context("the log says nothing")??;
        let response = message.context("the log ends before it is sealed")?;
        paths.extend(response.shards.into_iter().map(|shard| shard.path));
        if response.sealed {
            return Ok(paths);
        }
    }
}

#[tokio::test]
async fn leftovers_go_and_what_is_named_stays_and_can_be_loaded() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    leftovers_go(&cluster, &Ground::Folder(cluster.objects())).await
}

#[tokio::test]
async fn leftovers_go_from_a_bucket() -> Result<()> {
    let Some(server) = S3Server::start_or_skip().await else { return Ok(()) };
    let detour = server.detour().await?;
    let options = ClusterOptions {
        object_store: Some(server.url("clusters/one")),
        environment: detour.environment.clone(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await?;
    let ground = Ground::Bucket(cluster.object_store(), &detour);
    leftovers_go(&cluster, &ground).await.with_context(|| cluster.whole_logs())
}

async fn leftovers_go(cluster: &Cluster, ground: &Ground<'_>) -> Result<()> {
    let job = cluster.submit("base", &base_spec(2)).await?;
    cluster.await_success(&job, LIMIT).await?;
    let checkpoints = cluster.checkpoints(&job).await?;
    let last = checkpoints.last().context("there is no checkpoint")?;
    let (folder, _) = last.path.rsplit_once('/').context("a folder in a folder")?;

    // The job itself leaves shards of units that were made when the log was sealed already, and nothing else.
    let young = format!("{folder}/step-00000001-g8/state.json");
    ground.grow_old(&young).await?;
    let (own, _) = collect(cluster, "", true).await?;
    let registered = registered(cluster, &job, &last.stage).await?;
    let is_unread = |key: &String| key.contains("/pairs/unit-") && !registered.contains(key);
    ensure!(own.iter().all(is_unread), "{own:?} {registered:?}");

    // Of an attempt that died, of a lease that was lost, of a writer that was killed, and of a job that nobody knows.
    let shard = registered.iter().find(|key| key.ends_with("-l1.tar")).context("there is no shard")?;
    let mut invented =
        vec![format!("{folder}/step-00000001-g9/dit_lora.safetensors"), shard.replace("-l1.tar", "-l7.tar")];
    if matches!(ground, Ground::Folder(_)) {
        invented.push(format!("{folder}/step-00000001-g9/optimizer.safetensors#3"));
    }
    // Of no job with a record: it goes only when a person names it.
    let forgotten = "jobs/forgotten/stage-1/pairs/unit-000000-l1.tar".to_owned();
    for name in invented.iter().chain([&young, &forgotten]) {
        ground.leave(name).await?;
    }
    ground.grow_old(&young).await?;
    let before = ground.contents().await?;
    invented.extend(own);
    invented.sort();
    let all = u64::try_from(invented.len())?;

    let (listed, summary) = collect(cluster, "", true).await?;
    ensure!(listed == invented, "{listed:?}");
    ensure!(summary.removed_objects == 0 && summary.leftover_objects == all, "{summary:?}");
    ensure!(ground.contents().await? == before, "a dry run has changed something");

    let (listed, summary) = collect(cluster, "forgotten", false).await?;
    ensure!(listed == [forgotten.clone()] && summary.removed_objects == 1, "{listed:?} {summary:?}");
    let (listed, summary) = collect(cluster, &job, false).await?;
    ensure!(summary.removed_objects == all && summary.failed_objects == 0, "{listed:?} {summary:?}");
    let mut expected = before;
    expected.retain(|name, _| !invented.contains(name) && *name != forgotten);
    let after = ground.contents().await?;
    let keys = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<BTreeSet<_>>();
    let differ: Vec<_> = keys(&after).symmetric_difference(&keys(&expected)).cloned().collect();
    ensure!(after == expected, "something else has gone, has stayed or is another: {differ:?}");
    cluster.final_file_sha256(&job, &last.stage, "model.safetensors").await?;
    let (listed, _) = collect(cluster, "", false).await?;
    ensure!(listed.is_empty(), "{listed:?}");
    Ok(())
}

/// What each node says of the object store.
async fn faults(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes = NodeServiceClient::new(cluster.channel()?).list_nodes(ListNodesRequest {}).await?;
    Ok(nodes.into_inner().nodes.into_iter().map(|node| node.store_fault).collect())
}

#[tokio::test]
async fn a_store_that_is_not_mounted_is_told_and_costs_no_job() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let (root, away) = (cluster.objects(), cluster.objects().with_extension("away"));
    let all = async |what: &str, are: &dyn Fn(&str) -> bool| -> Result<()> {
        let waiting = async {
            loop {
                let faults = faults(&cluster).await?;
                if faults.len() == 3 && faults.iter().all(|fault| are(fault)) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.with_context(|| what.to_owned())?
    };
    let marked = async {
        while !root.join("crescendo.store").exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, marked).await.context("nobody marks the root")?;
    // An empty folder, as there is where a file system is not mounted.
    std::fs::rename(root, &away)?;
    std::fs::create_dir(root)?;
    all("every node misses the mark", &|fault| fault.contains("is it mounted?")).await?;
    let job = cluster.submit("base", &base_spec(2)).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(cluster.job(&job).await?.started_at.is_none(), "nobody could work on it");
    ensure!(root.read_dir()?.next().is_none(), "something was written where the store is not");
    std::fs::remove_dir(root)?;
    std::fs::rename(&away, root)?;
    all("every node finds it again", &str::is_empty).await?;
    cluster.await_success(&job, LIMIT).await?;
    Ok(())
}
