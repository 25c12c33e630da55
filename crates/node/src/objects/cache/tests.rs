use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use super::*;

const URL: &str = "s3://bucket";

/// Counts what is read of its objects.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemory,
    reads: AtomicUsize,
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(
        &self,
        at: &Key,
        payload: PutPayload,
        o: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(at, payload, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Key,
        o: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Key, o: GetOptions) -> object_store::Result<GetResult> {
        if !o.head {
            self.reads.fetch_add(1, Ordering::Relaxed);
            // Long enough for whoever else wants it to come and wait.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.inner.get_opts(at, o).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, o: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, o).await
    }
}

impl Counting {
    async fn with(objects: &[(&str, &'static [u8])]) -> Arc<Self> {
        let store = Self::default();
        for (key, content) in objects {
            store.inner.put(&(*key).into(), (*content).into()).await.unwrap();
        }
        Arc::new(store)
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let listing = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != FOLDER_LOCK);
    names.sort();
    names
}

#[tokio::test]
async fn those_who_want_one_object_at_once_bring_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Counting::with(&[("a", b"content")]).await;
    let content = Content::of(b"content");
    for (expected, reads) in [(Some(&content), 1), (None, 2)] {
        // Each with a view of its own, as processes have.
        let caches = [(); 4].map(|()| Cache::new(folder.path().into(), 100));
        let all = caches.iter().map(|cache| cache.fetch(store.as_ref(), URL, "a", expected));
        for cached in futures::future::join_all(all).await {
            assert_eq!(std::fs::read(cached.unwrap().path()).unwrap(), b"content");
        }
        assert_eq!(store.reads(), reads);
    }
}

#[tokio::test]
async fn a_damaged_entry_is_fetched_again_and_another_version_is_another_object() {
    let folder = tempfile::tempdir().unwrap();
    let store = Counting::with(&[("a", b"content")]).await;
    let cache = Cache::new(folder.path().into(), 100);
    let content = Content::of(b"content");
    for expected in [Some(&content), None] {
        let path = cache.fetch(store.as_ref(), URL, "a", expected).await.unwrap().path().to_owned();
        for damage in [&b"contenT"[..], b"conten", b""] {
            std::fs::write(&path, damage).unwrap();
            let again = cache.fetch(store.as_ref(), URL, "a", expected).await.unwrap();
            assert_eq!(std::fs::read(again.path()).unwrap(), b"content");
        }
    }
    assert_eq!(store.reads(), 8);
    store.inner.put(&"a".into(), "another".into()).await.unwrap();
    let newer = cache.fetch(store.as_ref(), URL, "a", None).await.unwrap();
    assert_eq!(std::fs::read(newer.path()).unwrap(), b"another");
    let stale = cache.fetch(store.as_ref(), URL, "a", Some(&Content::of(b"what it was"))).await;
    assert!(matches!(stale, Err(CacheError::Different { found, .. }) if found == Content::of(b"another")));
    let absent = cache.fetch(store.as_ref(), URL, "b", None).await;
    assert!(matches!(absent, Err(CacheError::Download(DownloadError::Missing { .. }))));
    assert!(names(folder.path()).iter().all(|name| !name.ends_with(PART)));
}

#[tokio::test]
async fn what_a_process_that_died_has_left_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Counting::with(&[("a", b"content"), ("b", b"another")]).await;
    let cache = Cache::new(folder.path().into(), 14);
    let content = Content::of(b"content");
    let part = folder.path().join(format!("{}.7{PART}", name_of(&content)));
    std::fs::write(&part, b"contenT and more").unwrap();
    let cached = cache.fetch(store.as_ref(), URL, "a", Some(&content)).await.unwrap();
    assert_eq!(std::fs::read(cached.path()).unwrap(), b"content");
    // One of an object that nobody asks for again takes no room for good.
    std::fs::write(folder.path().join(format!("gone.7{PART}")), b"half").unwrap();
    cache.fetch(store.as_ref(), URL, "b", Some(&Content::of(b"another"))).await.unwrap();
    assert_eq!(names(folder.path()).len(), 2);
}

#[tokio::test]
async fn the_bound_holds_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        Counting::with(&[("a", b"aaaa"), ("b", b"bbbb"), ("c", b"cccc"), ("d", b"ddddddddddddd")]).await;
    let cache = Cache::new(folder.path().into(), 8);
    let fetch = async |key: &'static str, content: &'static [u8]| {
        cache.fetch(store.as_ref(), URL, key, Some(&Content::of(content))).await
    };
    let held = fetch("a", b"aaaa").await.unwrap();
    drop(fetch("b", b"bbbb").await.unwrap());
    let other = fetch("c", b"cccc").await.unwrap();
    assert!(held.path().is_file() && other.path().is_file());
    assert_eq!(names(folder.path()).len(), 2, "b is gone");
    let full = fetch("b", b"bbbb").await.unwrap_err();
    assert!(full.to_string().contains("b: 4 bytes do not fit into the cache"), "{full}");
    drop(held);
    drop(fetch("b", b"bbbb").await.unwrap());
    assert!(matches!(fetch("d", b"ddddddddddddd").await, Err(CacheError::Full { .. })));
    assert!(names(folder.path()).iter().all(|name| !name.ends_with(PART)), "{:?}", names(folder.path()));
}

#[test]
fn who_was_not_used_for_longest_goes_first() {
    let entry = |name: &str, bytes, used_at: u64, in_use| Entry {
        name: name.into(),
        bytes,
        used_at: SystemTime::UNIX_EPOCH + Duration::from_secs(used_at),
        in_use,
    };
    let entries = [entry("new", 4, 9, false), entry("held", 4, 1, true), entry("old", 4, 2, false)];
    for (needed, max, expected) in [
        (4, 16, Some(vec![])),
        (4, 12, Some(vec!["old"])),
        (5, 12, Some(vec!["old", "new"])),
        (9, 12, None),
        (u64::MAX, 12, None),
    ] {
        assert_eq!(to_remove(&entries, needed, max), expected, "{needed} {max}");
    }
}
