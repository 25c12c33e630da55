//! Three controllers on an etcd of three members: seconds from `kill -9` of the one that leads until another takes a job; then
//! none of them reaches etcd for three seconds, and who leads must lead still. Prints one JSON line.
//!
//! `failover_bench [KILLS] [OUTAGES]`, 20 and 10 if absent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crescendo_store::testing::Traffic;
use crescendo_tests::{Cluster, ClusterOptions, waiting_spec};

const LIMIT: Duration = Duration::from_secs(60);
const CONTROLLERS: usize = 3;
/// How long nobody reaches etcd.
const OUTAGE: Duration = Duration::from_secs(3);
/// Between two faults, so that each meets a cluster at rest.
const PAUSE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str, default: usize| -> Result<usize> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}: {text}")))
    };
    let (kills, outages) = (number("KILLS", 20)?, number("OUTAGES", 10)?);
    let options = ClusterOptions {
        controllers: CONTROLLERS,
        etcd_members: 3,
        proxied: true,
        curators: 0,
        trainers: 0,
        ..Default::default()
    };
    let mut cluster = Cluster::start(options).await?;
    let mut submitted = 0;
    let mut submit = async |cluster: &Cluster| -> Result<f64> {
        let asked = Instant::now();
        let job_id = cluster.submit_once_led(&format!("job-{submitted}"), &waiting_spec(), LIMIT).await?;
        let seconds = asked.elapsed().as_secs_f64();
        submitted += 1;
        cluster.cancel(&job_id).await?;
        Ok(seconds)
    };
    submit(&cluster).await?;
    let mut seconds = Vec::new();
    for _ in 0..kills {
        let leading = cluster.leading();
        cluster.controller_at(leading).kill_9()?;
        seconds.push(submit(&cluster).await?);
        cluster.controller_at(leading).start_again().await?;
        tokio::time::sleep(PAUSE).await;
    }
    let mut moved = 0;
    for _ in 0..outages {
        let leading = cluster.leading();
        let all = || cluster.to_store.iter().flatten();
        all().for_each(|proxy| proxy.set(Traffic::Cut));
        tokio::time::sleep(OUTAGE).await;
        all().for_each(|proxy| proxy.set(Traffic::Passes));
        submit(&cluster).await?;
        moved += usize::from(cluster.leading() != leading);
        tokio::time::sleep(PAUSE).await;
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (seconds.len().saturating_sub(1) as f64 * share).round() as usize;
        seconds.get(index).map(|seconds| (seconds * 1e3).round() / 1e3)
    };
    println!(
        "{}",
        serde_json::json!({
            "figure": "kill -9 of the leading controller to the next job that is taken",
            "seconds": { "p50": at(0.5), "p99": at(0.99), "worst": at(1.0) }, "kills": kills,
            "outages_of_etcd": outages, "of_them_moved_the_leader": moved,
        })
    );
    Ok(())
}
