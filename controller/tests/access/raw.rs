//! Any call of any service, by its path and the bytes of its request.

use std::time::Duration;

use crescendo_core::access::{RULES, Rule, Who};
use prost::bytes::{Buf as _, BufMut as _};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Limit of one call.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Makes a call, whatever its kind, and gives the first message of the answer (empty if there is none).
pub async fn call(
    channel: &Channel,
    token: Option<&str>,
    path: &str,
    body: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(tokio_stream::once(body));
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        request.metadata_mut().insert("authorization", value);
    }
    let path = path.parse::<http::uri::PathAndQuery>().map_err(|_| Status::invalid_argument("a path"))?;
    let exchange = async {
        let mut answer = client.streaming(request, path, Bytes).await?.into_inner();
        Ok(answer.message().await?.unwrap_or_default())
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
}

/// The calls that the controller answers those who show who they are; the others are for anyone.
pub fn controller_calls() -> impl Iterator<Item = &'static Rule> {
    const ELSEWHERE: [&str; 3] =
        ["crescendo.v1.PairService", "crescendo.v1.AgentService", "grpc.health.v1.Health"];
    RULES.iter().filter(|rule| !ELSEWHERE.contains(&rule.service) && rule.who != Who::Anyone)
}

pub fn path(rule: &Rule) -> String {
    format!("/{}/{}", rule.service, rule.method)
}
