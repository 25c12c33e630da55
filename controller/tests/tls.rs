//! A real controller process with TLS: who gets through to it, and how it starts.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use crescendo_node::tls::{Dialer, Tls, TlsFiles};
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::{ListJobsRequest, SubmitJobRequest};
use crescendo_store::testing::{EtcdProcess, EtcdTls};
use crescendo_testing::certificates::{Authority, BEFORE_EXPIRY, Recorder, Wanted};
use crescendo_testing::controller::Controller;
use crescendo_testing::specs::SPEC;
use crescendo_testing::{LIMIT, eventually};
use tonic::{Code, Status};

const ADMIN: Wanted<'static> =
    Wanted { name: "admin", hosts: &["localhost"], uris: &["urn:crescendo:role:admin"], expired: false };
const CONTROLLER: Wanted<'static> =
    Wanted { name: "controller", hosts: &["localhost", "127.0.0.1"], uris: &[], expired: false };

async fn submit(dialer: &Dialer, address: &str, request_id: &str) -> Result<String, Status> {
    let channel = dialer.channel(address).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let request = SubmitJobRequest {
        request_id: request_id.into(),
        spec_yaml: SPEC.as_bytes().to_vec(),
        validate_only: false,
    };
    let calling = async { JobServiceClient::new(channel).submit_job(request).await };
    let answer = tokio::time::timeout(LIMIT, calling).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("no answer"))??;
    Ok(answer.into_inner().job.map(|job| job.job_id).unwrap_or_default())
}

async fn jobs(dialer: &Dialer, address: &str) -> anyhow::Result<Vec<String>> {
    let mut client = JobServiceClient::new(dialer.channel(address)?);
    let jobs = client.list_jobs(ListJobsRequest::default()).await?.into_inner().jobs;
    Ok(jobs.into_iter().map(|job| job.job_id).collect())
}

async fn leads(dialer: &Dialer, address: &str) -> anyhow::Result<()> {
    eventually("the controller leads", async || match jobs(dialer, address).await {
        Ok(_) => Ok(Some(())),
        Err(error) if error.downcast_ref::<Status>().is_some_and(|s| s.code() == Code::Unavailable) => {
            Ok(None)
        }
        Err(error) => Err(error),
    })
    .await
}

/// Sum of what was refused, from the process itself.
async fn refused(controller: &Controller) -> anyhow::Result<f64> {
    let text = controller.metrics().await?;
    let lines = text.lines().filter(|line| line.starts_with("crescendo_connections_refused_total{"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

#[tokio::test]
async fn strangers_and_replays_change_nothing() -> anyhow::Result<()> {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (folder, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let flags = ours.write_args(folder.path(), &CONTROLLER);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let controller = Controller::start_process(None, &flags).await?;
    let address = controller.address.clone();
    let admin_files = ours.write(folder.path(), &ADMIN);
    let admin = Dialer::tls(Tls::load(admin_files.clone()).await?);
    leads(&admin, &address).await?;
    let kept = submit(&admin, &address, "kept").await?;

    let foreign = TlsFiles { ca: admin_files.ca.clone(), ..theirs.write(elsewhere.path(), &ADMIN) };
    let old = ours.write(folder.path(), &Wanted { expired: true, name: "old", ..ADMIN });
    for (who, dialer) in [
        ("without TLS", Dialer::plain()),
        ("of a foreign authority", Dialer::tls(Tls::load(foreign).await?)),
        ("expired", Dialer::tls(Tls::load_as_of(old, BEFORE_EXPIRY).await?)),
    ] {
        let before = refused(&controller).await?;
        let answer = submit(&dialer, &address, "stranger").await;
        ensure!(answer.is_err(), "a stranger {who} has submitted a job");
        eventually("the refusal is counted", async || {
            Ok((refused(&controller).await? > before).then_some(()))
        })
        .await
        .context(who)?;
    }
    ensure!(jobs(&admin, &address).await? == std::slice::from_ref(&kept));

    let recorder = Recorder::before(&address).await?;
    let recorded = submit(&admin, &recorder.address, "recorded").await?;
    let before = (jobs(&admin, &address).await?, refused(&controller).await?);
    ensure!(before.0.len() == 2 && before.0.contains(&recorded));
    let bytes = tokio::time::timeout(LIMIT, recorder.replay(&address)).await.context("it closes")??;
    ensure!(bytes > SPEC.len() + 500, "only {bytes} bytes were recorded");
    eventually("the replay is refused", async || Ok((refused(&controller).await? > before.1).then_some(())))
        .await?;
    let calls = controller.metrics().await?;
    let submits = calls
        .lines()
        .filter(|line| line.starts_with("crescendo_rpcs_total{") && line.contains("JobService/SubmitJob"));
    let submits: f64 = submits.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    ensure!(submits == 2.0, "{submits} calls of SubmitJob came through, and two were made");
    ensure!(jobs(&admin, &address).await? == before.0);
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() -> anyhow::Result<()> {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let folder = tempfile::tempdir()?;
    let flags = first.write_args(folder.path(), &CONTROLLER);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let controller = Controller::start_process(None, &flags).await?;
    let address = controller.address.clone();
    let admin = Dialer::tls(Tls::load(first.write(folder.path(), &ADMIN)).await?);
    leads(&admin, &address).await?;
    let mut open = JobServiceClient::new(admin.channel(&address)?);
    open.list_jobs(ListJobsRequest::default()).await?;

    // Everything of another authority: whoever trusts only that one is a stranger until the process has read it.
    let elsewhere = tempfile::tempdir()?;
    let admin = Dialer::tls(Tls::load(second.write(elsewhere.path(), &ADMIN)).await?);
    ensure!(jobs(&admin, &address).await.is_err(), "it cannot know the second authority");
    second.write(folder.path(), &CONTROLLER);
    eventually("the second authority is known", async || Ok(jobs(&admin, &address).await.ok())).await?;
    open.list_jobs(ListJobsRequest::default()).await.context("the connection from before lives on")?;
    Ok(())
}

#[tokio::test]
async fn a_controller_reaches_etcd_over_tls() -> anyhow::Result<()> {
    let (ours, etcds) = (Authority::new("ours"), Authority::new("etcd"));
    let (folder, etcd_folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let files = etcds.write(etcd_folder.path(), &Wanted { uris: &[], ..Wanted::node("etcd") });
    let (identity, client_ca) = (files.identity.context("files")?, files.ca.context("a root")?);
    let tls = EtcdTls { cert: identity.cert, key: identity.key, client_ca: client_ca.clone() };
    let Some(etcd) = EtcdProcess::start_or_skip_with(Some(tls)).await else { return Ok(()) };
    let client = etcds.write(etcd_folder.path(), &Wanted { hosts: &[], uris: &[], ..Wanted::node("client") });
    let client = client.identity.context("files")?;
    let mut flags = ours.write_args(folder.path(), &CONTROLLER);
    for (flag, file) in
        [("--store-ca", client_ca), ("--store-cert", client.cert), ("--store-key", client.key)]
    {
        flags.extend([flag.to_owned(), file.display().to_string()]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let store = format!("etcd:{}", etcd.tls_endpoint("localhost").context("it serves TLS")?);
    let controller = Controller::start_process(Some(store), &flags).await?;
    let admin = Dialer::tls(Tls::load(ours.write(folder.path(), &ADMIN)).await?);
    leads(&admin, &controller.address).await?;
    let job = submit(&admin, &controller.address, "over-tls").await?;
    ensure!(jobs(&admin, &controller.address).await? == [job]);
    let metrics = controller.metrics().await?;
    for file in ["ca", "certificate", "store_ca", "store_certificate"] {
        let line = format!("crescendo_tls_certificate_expiry_timestamp_seconds{{file=\"{file}\"}} ");
        let end = metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<f64>().ok());
        ensure!(end.is_some_and(|end| end > 1.7e9), "{line} has no time in {metrics}");
    }
    Ok(())
}

/// Runs a controller that cannot start, to its end.
fn refusal(flags: &[String]) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let Output { status, stderr, .. } = Command::new("timeout")
        .arg(Duration::from_secs(20).as_secs().to_string())
        .arg(env!("CARGO_BIN_EXE_crescendo-controller"))
        .args(["--store", &format!("embedded:{}", folder.path().join("store").display())])
        .args(["--object-store", &format!("file://{}", folder.path().display())])
        .args(flags)
        .output()?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    Ok(String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn it_does_not_start_unprotected_or_with_wrong_files() -> anyhow::Result<()> {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir()?);
    let words = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
    let good = authority.write_args(folder.path(), &CONTROLLER);
    let and = |more: &[&str]| [good.clone(), words(more)].concat();
    let old = authority.write_args(folder.path(), &Wanted { expired: true, name: "old", ..CONTROLLER });
    let mut mixed = good.clone();
    mixed.splice(3..4, [folder.path().join("old.key").display().to_string()]);
    for (flags, says) in [
        (Vec::new(), "--tls-cert, --tls-key, --tls-ca are missing: give --tls-cert"),
        (good[..4].to_vec(), "--tls-ca is missing"),
        (and(&["--dev"]), "--dev means no TLS"),
        (words(&["--dev", "--listen", "0.0.0.0:0"]), "with --dev there is neither encryption nor login"),
        (
            words(&["--dev", "--metrics-listen", "0.0.0.0:0"]),
            "with --dev there is neither encryption nor login",
        ),
        (old, "old.pem (CN=old) has expired"),
        (mixed, "old.key does not belong to the certificate"),
        (and(&["--store-ca", "nowhere.pem"]), "--store-ca and --store-cert are for etcd:https://"),
    ] {
        let text = refusal(&flags)?;
        ensure!(text.contains(says), "{flags:?} gave, without {says:?}: {text}");
    }
    Ok(())
}
