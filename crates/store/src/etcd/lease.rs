//! Renewing and revoking one lease in etcd.

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};

use super::channel::{CallError, Endpoints, Repeat, Sorted, sort};
use crate::error::StoreError;
use crate::lease::{LeaseBackend, Renewal};

/// One lease, with the stream that it is renewed on. The stream is opened anew after any failure.
pub(super) struct EtcdLease {
    id: i64,
    endpoints: Arc<Endpoints>,
    stream: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
}

impl EtcdLease {
    pub fn new(id: i64, endpoints: Arc<Endpoints>) -> Self {
        Self { id, endpoints, stream: None }
    }

    async fn renew_on_stream(
        &mut self,
        (mut keeper, mut stream): (LeaseKeeper, LeaseKeepAliveStream),
    ) -> Result<Renewal, Error> {
        keeper.keep_alive().await?;
        match stream.message().await? {
            Some(answer) if answer.ttl() > 0 => {
                self.stream = Some((keeper, stream));
                Ok(Renewal::Renewed)
            }
            Some(_) => Ok(Renewal::Gone),
            None => Err(Error::LeaseKeepAliveError("etcd ended the stream".to_owned())),
        }
    }

    /// Opening a stream is a renewal in itself.
    async fn renew_by_opening(&mut self) -> Result<Renewal, Error> {
        let (ticket, mut client) = self.endpoints.current();
        match client.lease_keep_alive(self.id).await {
            Ok(stream) => {
                self.stream = Some(stream);
                Ok(Renewal::Renewed)
            }
            // The client reports a lease that is gone, and other things, by this error: ask.
            Err(error @ Error::LeaseKeepAliveError(_)) => {
                let answer = client.lease_time_to_live(self.id, None).await?;
                if answer.ttl() <= 0 { Ok(Renewal::Gone) } else { Err(error) }
            }
            Err(error) => {
                self.endpoints.give_up_on(ticket);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl LeaseBackend for EtcdLease {
    async fn renew(&mut self) -> Result<Renewal, StoreError> {
        // Taken out: when this call is dropped at its deadline, a late answer must not be taken for the next one's.
        let renewed = match self.stream.take() {
            Some(stream) => self.renew_on_stream(stream).await,
            None => self.renew_by_opening().await,
        };
        renewed.map_err(|error| CallError::Sorted(sort(error)).into_store_error())
    }

    async fn revoke(&mut self) -> Result<(), StoreError> {
        self.stream = None;
        let id = self.id;
        let revoked = self
            .endpoints
            .call(Repeat::Harmless, |mut client| async move { client.lease_revoke(id).await })
            .await;
        match revoked {
            Ok(_) | Err(CallError::Sorted(Sorted::NotFound(_))) => Ok(()),
            Err(error) => Err(error.into_store_error()),
        }
    }
}
