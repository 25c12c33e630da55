//! Conditional writes that met another.
//!
//! A server answers 409 (`ConditionalRequestConflict`) where two writers of one key met: nothing was stored for this one, and
//! whether the key is there is not known yet. The client library takes that for "the key is there", which is what 412 says. Here
//! it becomes 503, after which the library tries again, a bounded number of times, and in the end fails like any other request.

use async_trait::async_trait;
use http::{Method, StatusCode, header};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};

/// Makes clients to whom a conflict is a failure that passes.
#[derive(Debug)]
pub struct ConflictsPass<C> {
    inner: C,
}

impl<C> ConflictsPass<C> {
    pub fn new(inner: C) -> Self {
        Self { inner }
    }
}

impl<C: HttpConnector> HttpConnector for ConflictsPass<C> {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service { inner: self.inner.connect(options)? }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let conditional =
            request.method() == Method::PUT && request.headers().contains_key(header::IF_NONE_MATCH);
        let mut response = self.inner.execute(request).await?;
        if conditional && response.status() == StatusCode::CONFLICT {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }
}
