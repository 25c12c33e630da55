//! Files of checkpoints for people who do not reach the object store: a curator reads, the controller hands on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use crescendo_proto::v1::read_checkpoint_file_response::Message;
use crescendo_proto::v1::{ReadCheckpointFileRequest, ReadCheckpointFileResponse};
use crescendo_tests::{Cluster, ClusterOptions, base_spec};
use tonic::{Code, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(120);
const FILE: &str = "model.safetensors";

async fn read(
    cluster: &Cluster,
    job_id: &str,
    path: &str,
) -> Result<Result<Streaming<ReadCheckpointFileResponse>, Status>> {
    let request = ReadCheckpointFileRequest { job_id: job_id.into(), path: path.into(), name: FILE.into() };
    let answer = ObjectServiceClient::new(cluster.channel()?).read_checkpoint_file(request).await;
    Ok(answer.map(tonic::Response::into_inner))
}

/// The next piece; `None` at the end.
async fn next(pieces: &mut Streaming<ReadCheckpointFileResponse>) -> Result<Option<Vec<u8>>, Status> {
    let message = tokio::time::timeout(LIMIT, pieces.message()).await;
    let message = message.unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing comes")))?;
    Ok(message.map(|response| match response.message {
        Some(Message::Chunk(chunk)) => chunk.to_vec(),
        Some(Message::File(_)) | None => Vec::new(),
    }))
}

#[tokio::test]
async fn a_file_comes_through_the_controller_as_it_lies_in_the_store() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let job_id = cluster.submit("base", &base_spec(2)).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    let checkpoints = cluster.checkpoints(&job_id).await?;
    let path = &checkpoints.last().context("there is no checkpoint")?.path;
    let lies = std::fs::read(cluster.objects().join(path).join(FILE)).context("read the file itself")?;

    let mut pieces = read(&cluster, &job_id, path).await??;
    let mut came = Vec::new();
    while let Some(piece) = next(&mut pieces).await? {
        came.extend(piece);
    }
    ensure!(came == lies, "{} bytes came, {} lie there", came.len(), lies.len());

    // One that nobody takes stands still on its way, so that its curator dies in the middle of it.
    let mut pieces = read(&cluster, &job_id, path).await??;
    let mut bytes = 0;
    while bytes == 0 {
        bytes = next(&mut pieces).await?.context("it has ended")?.len();
    }
    cluster.curators[0].kill_9()?;
    let status = loop {
        match next(&mut pieces).await {
            Ok(Some(piece)) => bytes += piece.len(),
            Ok(None) => anyhow::bail!("the stream ends as if it were whole, after {bytes} of {}", lies.len()),
            Err(status) => break status,
        }
    };
    ensure!(status.code() == Code::Unavailable && status.message().contains("has gone"), "{status:?}");
    ensure!(bytes < lies.len(), "all of it had come");
    // There is no other.
    let gone = async {
        loop {
            match read(&cluster, &job_id, path).await? {
                Err(status) if status.code() == Code::Unavailable => return anyhow::Ok(status),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let status = tokio::time::timeout(LIMIT, gone).await.context("somebody still reads")??;
    ensure!(status.message() == "no curator is connected that could read it", "{status:?}");
    Ok(())
}
