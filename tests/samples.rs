//! Pictures that curators draw with checkpoints while a job trains, and the loss on pairs that it never sees.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::read_samples_response::Message;
use crescendo_proto::v1::sample_service_client::SampleServiceClient;
use crescendo_proto::v1::{ListSamplesRequest, ReadSamplesRequest, Sampling, SamplingState};
use crescendo_testing::eventually;
use crescendo_testing::tensorboard::TensorBoard;
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};
use sha2::{Digest as _, Sha256};

const LIMIT: Duration = Duration::from_secs(180);

async fn samplings(cluster: &Cluster, job_id: &str) -> Result<Vec<Sampling>> {
    let request = ListSamplesRequest { job_id: job_id.into(), stage: String::new() };
    let listed = cluster
        .ask(async |channel| {
            let answer = SampleServiceClient::new(channel).list_samples(request.clone()).await;
            answer.map(tonic::Response::into_inner)
        })
        .await?;
    Ok(listed.samplings)
}

async fn await_samplings(
    cluster: &Cluster,
    job_id: &str,
    done: impl Fn(&[Sampling]) -> bool,
) -> Result<Vec<Sampling>> {
    let mut last = Vec::new();
    let waiting = async {
        loop {
            last = samplings(cluster, job_id).await?;
            if done(&last) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    waited.with_context(|| format!("not within {LIMIT:?}; logs:\n{}", cluster.logs()))??;
    Ok(last)
}

fn spec(base: &str, samples: &str) -> String {
    lora_spec(base, 1, 12, 4)
        .replace("  stages:\n", &format!("  samples: {{{samples}}}\n  stages:\n"))
        .replace("unitSize: 4}", "unitSize: 4, holdOutOneIn: 4}")
}

/// The tar of a step's pictures.
async fn pictures(cluster: &Cluster, sampling: &Sampling) -> Result<Vec<u8>> {
    let Sampling { job_id, stage, step, .. } = sampling.clone();
    let request = ReadSamplesRequest { job_id, stage, step };
    let mut pieces = SampleServiceClient::new(cluster.channel()?).read_samples(request).await?.into_inner();
    let mut tar = Vec::new();
    while let Some(piece) = pieces.message().await? {
        if let Some(Message::Chunk(chunk)) = piece.message {
            tar.extend_from_slice(&chunk);
        }
    }
    Ok(tar)
}

fn names(tar: &[u8]) -> Result<Vec<String>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries()?;
    entries.map(|entry| Ok(entry?.path()?.to_string_lossy().into_owned())).collect()
}

#[tokio::test]
async fn checkpoints_are_drawn_with_while_the_job_trains_and_its_end_afterwards() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let base = cluster.train_base().await?;
    let library = cluster.library();
    let subject = std::fs::read_dir(library.join("subjects"))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .find(|name| name.ends_with(".webp"))
        .context("the library has a picture")?;
    let samples = format!(
        "heldOut: 2, pictures: 2, validationPairs: 3, draw: {{steps: 2}}, prompts: [{{prompt: a thing on a table, references: subjects/{subject}}}]"
    );
    let job_id = cluster.submit("drawn", &spec(&base, &samples)).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    let ended = |all: &[Sampling]| {
        all.iter().any(|one| one.step == 12) && all.iter().all(|one| one.state() != SamplingState::Wanted)
    };
    let all = await_samplings(&cluster, &job_id, ended).await?;
    let steps: Vec<u64> = all.iter().map(|one| one.step).collect();
    // A save that is due while another is under way comes later.
    ensure!(steps.first() == Some(&0) && steps.last() == Some(&12) && steps.len() <= 4, "{steps:?}");
    let drawn: Vec<&Sampling> = all.iter().filter(|one| one.state() == SamplingState::Drawn).collect();
    // Steps between may be passed over where ranks are faster.
    ensure!(
        [0, 12].iter().all(|step| drawn.iter().any(|one| one.step == *step)),
        "what it begins and ends with is drawn: {all:#?}"
    );
    for sampling in &drawn {
        let loss = sampling.validation.as_ref().context("it is validated")?;
        ensure!(loss.pairs == 3 && loss.mean.is_finite() && loss.mean > 0.0, "{loss:?}");
        let mean = loss.losses.iter().sum::<f64>() / loss.losses.len() as f64;
        ensure!(loss.times.len() == 5 && (mean - loss.mean).abs() < 1e-12, "{loss:?}");
        let file = sampling.file.as_ref().context("it has pictures")?;
        let tar = pictures(&cluster, sampling).await?;
        let sha256: String = Sha256::digest(&tar).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(
            sha256 == file.sha256 && tar.len() as u64 == file.size_bytes,
            "what came is what is registered"
        );
        let targets = names(&tar)?.into_iter().filter(|name| name.ends_with(".target.png")).count();
        ensure!((targets, sampling.pictures) == (6, 6), "three subjects, two pictures each: {targets}");
    }
    // The network has changed, and what it is asked has not.
    let (first, last) = (drawn[0], drawn[drawn.len() - 1]);
    ensure!(first.validation != last.validation, "training has changed nothing: {first:#?}");
    // Nobody else's.
    let status = pictures(&cluster, &Sampling { step: 5, ..last.clone() }).await.expect_err("there are none");
    ensure!(status.to_string().contains("pictures of step 5"), "{status:?}");
    // The same from the command line.
    let (ok, out, error) = cluster.crescendo(&["samples", &job_id]).await?;
    ensure!(ok && out.contains("drawn"), "{out}\n{error}");
    let sheet = cluster.folder().join("samples.html");
    let (ok, out, error) =
        cluster.crescendo(&["samples", &job_id, "--sheet", &sheet.to_string_lossy()]).await?;
    ensure!(ok && std::fs::read_to_string(&sheet)?.contains("before training"), "{out}\n{error}");
    // And in TensorBoard, by its data server and by its own reader.
    for way in [&[][..], &["--load_fast=false"]] {
        let Some(board) = TensorBoard::start_or_skip(&cluster.objects().join("jobs"), way) else {
            return Ok(());
        };
        in_tensorboard(&board, &drawn).await.with_context(|| format!("TensorBoard {way:?}"))?;
    }
    Ok(())
}

/// What was drawn is there, by step, with the loss.
async fn in_tensorboard(board: &TensorBoard, drawn: &[&Sampling]) -> Result<()> {
    let run = format!("{}/stage-1/tensorboard/samples", drawn[0].job_id);
    let asked = run.replace('/', "%2F");
    let losses: Vec<(u64, f32)> =
        drawn.iter().filter_map(|one| Some((one.step, one.validation.as_ref()?.mean as f32))).collect();
    let path = format!("/data/plugin/scalars/scalars?run={asked}&tag=validation%2Floss");
    eventually("the loss is a curve", async || {
        let points: Vec<(f64, u64, f32)> =
            board.ask(&path).await.and_then(|answer| serde_json::from_value(answer).ok()).unwrap_or_default();
        let points: Vec<(u64, f32)> = points.into_iter().map(|(_, step, loss)| (step, loss)).collect();
        Ok((points == losses).then_some(()))
    })
    .await?;
    let tags = board.ask("/data/plugin/images/tags").await.context("tags of pictures")?;
    let tags: Vec<String> = tags[&run].as_object().context("the run has pictures")?.keys().cloned().collect();
    ensure!(tags.len() == 3 && tags.iter().any(|tag| tag.ends_with(": a thing on a table")), "{tags:?}");
    for tag in tags {
        let tag: String = tag.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/data/plugin/images/images?sample=0&run={asked}&tag={tag}");
        let pictures = board.ask(&path).await.context("pictures")?;
        let steps: Vec<u64> =
            pictures.as_array().into_iter().flatten().filter_map(|one| one["step"].as_u64()).collect();
        ensure!(steps == drawn.iter().map(|one| one.step).collect::<Vec<_>>(), "{steps:?}: {pictures}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_curator_was_drawing_when_it_died_is_drawn_by_another() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { curators: 2, ..ClusterOptions::default() }).await?;
    let base = cluster.train_base().await?;
    // So many steps that it is caught in the middle of them.
    let samples = "every: 12, heldOut: 4, draw: {steps: 400, batch: 1}";
    let job_id = cluster.submit("killed", &spec(&base, samples)).await?;
    let begun =
        |all: &[Sampling]| all.iter().any(|one| one.progress.as_ref().is_some_and(|now| now.done > 0));
    let all = await_samplings(&cluster, &job_id, begun).await?;
    let drawing = all.iter().find_map(|one| Some((one.step, one.progress.clone()?.node_id)));
    let (step, node) = drawing.context("somebody draws")?;
    let at = if node.ends_with('0') { 0 } else { 1 };
    cluster.curators[at].kill_9()?;
    let again = |all: &[Sampling]| {
        all.iter().any(|one| one.step == step && one.state() == SamplingState::Drawn && one.pictures == 4)
    };
    let all = await_samplings(&cluster, &job_id, again).await?;
    ensure!(all.iter().all(|one| one.state() != SamplingState::GivenUp), "{all:#?}");
    Ok(())
}
