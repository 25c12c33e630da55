//! Large objects go to a bucket in parts: one request may carry 5 GiB at most, and what fails is sent again whole.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, WriteMultipart,
};

/// Objects up to this size are one request. Parts may be at most 10,000, so objects have 156 GiB at most.
const PART_BYTES: usize = 16 << 20;
/// Parts under way at a time.
const PARTS_AT_A_TIME: usize = 4;

/// A store that writes large objects in parts. The object is there once all of it is, as with one request.
#[derive(Debug)]
pub struct InParts<S> {
    inner: S,
}

impl<S> InParts<S> {
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: std::fmt::Display> std::fmt::Display for InParts<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<S: ObjectStore> InParts<S> {
    async fn put_in_parts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let PutOptions { tags, attributes, extensions, .. } = options;
        let options = PutMultipartOptions { tags, attributes, extensions };
        let upload = self.inner.put_multipart_opts(location, options).await?;
        let mut writing = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        for piece in payload {
            let mut left: Bytes = piece;
            while !left.is_empty() {
                if let Err(error) = writing.wait_for_capacity(PARTS_AT_A_TIME).await {
                    // Parts that stay behind cost space until the bucket's own rules remove them.
                    if let Err(error) = writing.abort().await {
                        tracing::warn!(%location, %error, "an upload cannot be taken back");
                    }
                    return Err(error);
                }
                writing.put(left.split_to(left.len().min(PART_BYTES)));
            }
        }
        writing.finish().await
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for InParts<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // Conditions hold for one request only.
        if payload.content_length() <= PART_BYTES || options.mode != PutMode::Overwrite {
            return self.inner.put_opts(location, payload, options).await;
        }
        self.put_in_parts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt as _;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_large_object_arrives_whole() {
        let store = InParts::new(InMemory::new());
        let content: Vec<u8> = (0..2 * PART_BYTES + 5).map(|n| (n % 251) as u8).collect();
        store.put(&"large".into(), content.clone().into()).await.unwrap();
        let read = store.get(&"large".into()).await.unwrap().bytes().await.unwrap();
        assert!(read == content, "it differs");
    }
}
