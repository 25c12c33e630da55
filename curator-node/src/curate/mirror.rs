//! Files of a bucket on this machine: networks and data sets are read from files, so what a spec names with `store:` is
//! copied before work on its stage begins. In an object store that is a folder they are read where they lie.
//!
//! ```text
//!   key ─▶ object, at least SHARED_BYTES ─▶ cache of the scratch folder ─ link ─▶ MIRROR/key
//!      │   object, smaller               ─▶ copy                        ───────▶ MIRROR/key
//!      │   index of weights in several files: they too
//!      └─▶ no object: all objects below it
//! ```

use crescendo_core::reach::{Reach, STORE_PREFIX};
use crescendo_core::spec::{DataSource, JobSpec, ModelPreset, named_files};
use crescendo_model::weight_files::shards_of_index;
use crescendo_node::objects::cache::{Cache, CacheError, Cached};
use crescendo_node::objects::download::{DownloadError, download};
use crescendo_node::objects::with_causes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// Limit of the wait for what the store says of an object, or for a listing.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// Files and folders of encoders beside the weights, as published and as diffusers has them.
const ENCODERS: [&str; 6] =
    ["ae.safetensors", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"];
/// End of the names of what lists weights in several files.
const INDEX: &str = ".index.json";
/// What is at least as large comes through the cache, which outlives the stage and the process. Each of its files is held
/// open while it is used, and a data set may have very many small ones.
const SHARED_BYTES: u64 = 16 << 20;
/// Files of one folder that are copied at most.
const MAX_FILES: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("store:{key}: {reason}")]
    Read { key: String, reason: String },
    #[error("store:{key}: there is no such object, and none below it")]
    Missing { key: String },
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Where objects of one store are kept on this machine.
#[derive(Clone, Debug)]
pub struct LocalCopies {
    /// URL of the store.
    pub url: String,
    /// Folder on the file system of the cache.
    pub scratch: PathBuf,
    pub cache: Cache,
}

/// What a stage's files are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its pairs are made and served.
    Curating,
    /// Pictures are drawn with its checkpoints.
    Sampling,
}

/// Whether a stage can do without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Must,
    /// Published layouts differ, and what is read is said by who reads it.
    May,
}

/// Copies of the objects that one stage needs, in a folder of their own which goes with this.
#[derive(Debug)]
pub struct Mirror {
    root: TempDir,
    /// Where large objects come from; without, all are copied.
    copies: Option<LocalCopies>,
    /// Objects, and folders: keys that objects are below.
    wanted: BTreeMap<String, Need>,
    /// Files of the cache that have links here.
    held: Mutex<Vec<Cached>>,
}

impl Mirror {
    /// What the stage at `index` needs of the object store; `None` if nothing. What is out of the job's reach is not
    /// copied: whoever resolves its path says so.
    pub fn of(
        job: &JobSpec,
        index: usize,
        purpose: Purpose,
        reach: &Reach,
        copies: LocalCopies,
    ) -> Result<Option<Mirror>, MirrorError> {
        let may = |key: &str| reach.check_path(&format!("{STORE_PREFIX}{key}")).is_ok();
        let wanted: BTreeMap<_, _> =
            wanted(job, index, purpose).into_iter().filter(|(key, _)| may(key)).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let failed = |source| MirrorError::Write { path: copies.scratch.clone(), source };
        std::fs::create_dir_all(&copies.scratch).map_err(failed)?;
        let root = tempfile::Builder::new().prefix("store-").tempdir_in(&copies.scratch).map_err(failed)?;
        Ok(Some(Mirror { root, copies: Some(copies), wanted, held: Mutex::default() }))
    }

    /// One that wants nothing of itself, for [`Mirror::bring_key`], in a temporary folder.
    pub fn empty() -> Result<Mirror, MirrorError> {
        let root = tempfile::Builder::new().prefix("crescendo-store-").tempdir();
        let root = root.map_err(|source| MirrorError::Write { path: std::env::temp_dir(), source })?;
        Ok(Mirror { root, copies: None, wanted: BTreeMap::new(), held: Mutex::default() })
    }

    /// Stands for the root of the object store.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Copies everything. Calling it again after an error copies what is missing.
    pub async fn bring(&self, objects: &dyn ObjectStore) -> Result<(), MirrorError> {
        for (key, need) in &self.wanted {
            match self.bring_key(objects, key).await {
                Err(MirrorError::Missing { .. }) if *need == Need::May => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Copies the object at `key`, and what it lists if it is an index, or else all objects below it.
    pub async fn bring_key(&self, objects: &dyn ObjectStore, key: &str) -> Result<(), MirrorError> {
        let location = parsed(key)?;
        if self.copy(objects, &location).await? {
            return self.bring_listed(objects, key).await;
        }
        let listing = objects.list(Some(&location)).map_ok(|found| found.location).take(MAX_FILES + 1);
        let found = late(key, listing.try_collect::<Vec<Key>>()).await?;
        let found = found.map_err(|e| read(key, &e))?;
        if found.is_empty() {
            return Err(MirrorError::Missing { key: key.to_owned() });
        }
        if found.len() > MAX_FILES {
            let reason = format!("more than {MAX_FILES} objects are below it");
            return Err(MirrorError::Read { key: key.to_owned(), reason });
        }
        for one in &found {
            self.copy(objects, one).await?;
        }
        Ok(())
    }

    /// Copies the weights that an index at `key`, which is here, says are beside it.
    async fn bring_listed(&self, objects: &dyn ObjectStore, key: &str) -> Result<(), MirrorError> {
        if !key.ends_with(INDEX) {
            return Ok(());
        }
        let unreadable = |reason| MirrorError::Read { key: key.to_owned(), reason };
        let names = shards_of_index(&self.root().join(key)).map_err(|e| unreadable(e.to_string()))?;
        for name in names {
            let beside = key.rsplit_once('/').map_or(name.clone(), |(folder, _)| format!("{folder}/{name}"));
            if !self.copy(objects, &parsed(&beside)?).await? {
                return Err(MirrorError::Missing { key: beside });
            }
        }
        Ok(())
    }

    /// Copies one object; false if there is none.
    async fn copy(&self, objects: &dyn ObjectStore, location: &Key) -> Result<bool, MirrorError> {
        let key = location.as_ref();
        let target = self.root().join(key);
        if target.is_file() {
            return Ok(true);
        }
        let size = match late(key, objects.head(location)).await? {
            Ok(found) => found.size,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(read(key, &error)),
        };
        let failed = |source| MirrorError::Write { path: target.clone(), source };
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        if let Some(LocalCopies { url, cache, .. }) = self.copies.as_ref().filter(|_| size >= SHARED_BYTES) {
            let cached = cache.fetch(objects, url, key, None).await?;
            std::fs::hard_link(cached.path(), &target).map_err(failed)?;
            self.held.lock().unwrap_or_else(|held| held.into_inner()).push(cached);
            return Ok(true);
        }
        // Under another name until it is whole.
        let part = PathBuf::from(format!("{}.part", target.display()));
        download(objects, key, &part, Some(size)).await?;
        tokio::fs::rename(&part, &target).await.map_err(failed)?;
        Ok(true)
    }
}

fn parsed(key: &str) -> Result<Key, MirrorError> {
    Key::parse(key).map_err(|e| MirrorError::Read { key: key.to_owned(), reason: e.to_string() })
}

fn read(key: &str, error: &object_store::Error) -> MirrorError {
    MirrorError::Read { key: key.to_owned(), reason: with_causes(error) }
}

async fn late<T>(key: &str, waiting: impl Future<Output = T>) -> Result<T, MirrorError> {
    tokio::time::timeout(READ_DEADLINE, waiting).await.map_err(|_| MirrorError::Read {
        key: key.to_owned(),
        reason: format!("no answer within {READ_DEADLINE:?}"),
    })
}

/// The keys that a stage's curation reads. Base weights are only read by sources that draw; encoders without a folder of
/// their own lie beside them, or in them if they are a folder.
fn wanted(job: &JobSpec, index: usize, purpose: Purpose) -> BTreeMap<String, Need> {
    let Some(stage) = job.stages.get(index) else { return BTreeMap::new() };
    let mut keys = BTreeSet::new();
    let key = |path: &str| Some(path.strip_prefix(STORE_PREFIX)?.trim_matches('/').to_owned());
    let key_of = |path: &Option<String>| key(path.as_deref()?);
    let of_stage = named_files(job).into_iter().filter(|file| file.stage == Some(index));
    keys.extend(of_stage.filter_map(|file| key(file.path)));
    let weights = key_of(&job.model.weights);
    let of_samples = job.samples.iter().flat_map(|samples| &samples.prompts);
    let references =
        of_samples.flat_map(|prompt| &prompt.references).filter(|_| purpose == Purpose::Sampling);
    keys.extend(references.filter_map(|path| key(path)));
    let draws = purpose == Purpose::Sampling
        || matches!(stage.data.source, DataSource::Generate(_) | DataSource::Recompose(_));
    keys.extend(weights.clone().filter(|_| draws));
    let mut wanted: BTreeMap<String, Need> = keys.into_iter().map(|key| (key, Need::Must)).collect();
    if job.model.preset == ModelPreset::Nano {
        return wanted;
    }
    let folders = match (&job.model.encoders, weights) {
        (Some(_), _) => key_of(&job.model.encoders).into_iter().collect(),
        (None, Some(weights)) => {
            let beside = weights.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
            vec![beside, weights]
        }
        (None, None) => vec![],
    };
    for folder in folders {
        for name in ENCODERS {
            let key = format!("{folder}/{name}").trim_start_matches('/').to_owned();
            wanted.entry(key).or_insert(Need::May);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_core::reach::Bounds;
    use object_store::memory::InMemory;

    fn job(model: &str, data: &str) -> JobSpec {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: a}}\nspec:\n  model: {{{model}}}\n  resources: {{gpus: 1}}\n  \
             stages:\n    - name: s\n      references: 1\n      data: {{{data}, pairs: 8, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, \
             steps: 1, globalBatch: 1}}\n"
        );
        crescendo_core::spec::parse(yaml.as_bytes()).expect("a valid spec")
    }

    fn keys(model: &str, data: &str) -> Vec<String> {
        wanted(&job(model, data), 0, Purpose::Curating).into_keys().collect()
    }

    fn bounded_mirror_of(job: &JobSpec, scratch: &Path, reach: &Reach) -> Option<Mirror> {
        let cache = Cache::new(scratch.join("cache"), 1 << 30);
        let copies = LocalCopies { url: "s3://b".into(), scratch: scratch.into(), cache };
        Mirror::of(job, 0, Purpose::Curating, reach, copies).expect("a folder")
    }

    fn mirror_of(job: &JobSpec, scratch: &Path) -> Mirror {
        bounded_mirror_of(job, scratch, &Reach::Everything).expect("something is wanted")
    }

    #[test]
    fn only_what_the_stage_reads_is_wanted() {
        let compose = "source: compose, subjects: 'store:sets/x/', panel: 64";
        let local = "source: compose, subjects: x, panel: 64";
        assert_eq!(keys("preset: nano, weights: 'store:b/w.safetensors'", compose), ["sets/x"]);
        assert_eq!(keys("preset: nano, weights: w.safetensors", local), [""; 0]);
        let beside = keys("preset: flux-dev, weights: 'store:b/w.safetensors'", local);
        for name in ENCODERS {
            assert!(beside.contains(&format!("b/{name}")), "{beside:?}");
        }
        assert!(!beside.contains(&"b/w.safetensors".to_owned()), "nothing is drawn: {beside:?}");
        let folder = keys("preset: flux-dev, weights: 'store:b'", local);
        assert!(folder.contains(&"vae".to_owned()) && folder.contains(&"b/vae".to_owned()), "{folder:?}");
        let elsewhere =
            keys("preset: flux-dev, weights: 'store:w.safetensors', encoders: 'store:e'", compose);
        assert!(elsewhere.iter().all(|key| key.starts_with("e/") || key == "sets/x"), "{elsewhere:?}");
        assert_eq!(elsewhere.len(), 1 + ENCODERS.len());
    }

    #[test]
    fn who_draws_samples_wants_the_base_and_their_references_too() {
        let mut job =
            job("preset: nano, weights: 'store:b/w.safetensors'", "source: compose, subjects: x, panel: 64");
        let samples = "every: 1000, heldOut: 0, pictures: 1, seed: 1, validationPairs: 0, weights: trained, \
                       draw: {steps: 1, guidance: 1.0, trueCfg: 1.0, batch: 1}, \
                       prompts: [{prompt: a cup, references: ['store:seen/cup.png', local.png]}]";
        let samples = serde_yaml::from_str(&format!("{{{samples}}}")).expect("they are right");
        job.samples = Some(samples);
        let keys = |purpose| wanted(&job, 0, purpose).into_keys().collect::<Vec<_>>();
        assert_eq!(keys(Purpose::Sampling), ["b/w.safetensors", "seen/cup.png"]);
        assert_eq!(keys(Purpose::Curating), [""; 0]);
    }

    #[tokio::test]
    async fn objects_and_folders_are_copied_once() {
        let objects = InMemory::new();
        for key in ["sets/x/index.json", "sets/x/cut/1.png", "sets/xy/no.png"] {
            objects.put(&key.into(), key.into()).await.expect("put");
        }
        let job = job("preset: nano, weights: w", "source: compose, subjects: 'store:sets/x', panel: 16");
        let scratch = tempfile::tempdir().expect("make a folder");
        let mirror = mirror_of(&job, scratch.path());
        mirror.bring(&objects).await.expect("bring");
        let there = |key: &str| std::fs::read(mirror.root().join(key)).ok();
        assert_eq!(there("sets/x/index.json").as_deref(), Some(&b"sets/x/index.json"[..]));
        assert_eq!(there("sets/x/cut/1.png").as_deref(), Some(&b"sets/x/cut/1.png"[..]));
        assert_eq!(there("sets/xy/no.png"), None);
        // What is there is not read again.
        std::fs::write(mirror.root().join("sets/x/index.json"), "mine").expect("write");
        mirror.bring(&objects).await.expect("bring again");
        assert_eq!(there("sets/x/index.json").as_deref(), Some(&b"mine"[..]));
    }

    #[test]
    fn what_is_anothers_is_not_copied() {
        let job = job("preset: nano, weights: w", "source: compose, subjects: 'store:jobs/b-1/x', panel: 16");
        let scratch = tempfile::tempdir().expect("make a folder");
        let of = |prefix: &str| {
            let bounds = Bounds { store_prefixes: vec![prefix.to_owned()], ..Bounds::default() };
            bounded_mirror_of(&job, scratch.path(), &Reach::Bounded(bounds))
        };
        assert!(of("jobs/a-1").is_none(), "there is nothing that it may copy");
        assert_eq!(of("jobs/b-1").expect("its own").wanted.len(), 1);
    }

    #[tokio::test]
    async fn large_objects_and_what_an_index_lists_come_once_for_all_stages() {
        let objects = InMemory::new();
        let shard = vec![7u8; SHARED_BYTES as usize];
        let index = br#"{"metadata": {}, "weight_map": {"a": "w-1.safetensors", "b": "w-2.safetensors"}}"#;
        objects.put(&"b/w.safetensors.index.json".into(), index.to_vec().into()).await.expect("put");
        objects.put(&"b/w-1.safetensors".into(), shard.clone().into()).await.expect("put");
        objects.put(&"b/w-2.safetensors".into(), b"small".to_vec().into()).await.expect("put");
        objects.put(&"b/vae/config.json".into(), b"{}".to_vec().into()).await.expect("put");
        let model = "preset: flux-dev, weights: 'store:b/w.safetensors.index.json'";
        let draws = "source: generate, subjects: x, panel: 512";
        let job = job(model, draws);
        let scratch = tempfile::tempdir().expect("make a folder");
        let (first, second) = (mirror_of(&job, scratch.path()), mirror_of(&job, scratch.path()));
        first.bring(&objects).await.expect("encoders that are not there are left to who reads them");
        assert_eq!(std::fs::read(first.root().join("b/vae/config.json")).expect("diffusers' layout"), b"{}");
        let large = std::fs::read(first.root().join("b/w-1.safetensors")).expect("the large one");
        assert!(large == shard, "its content");
        second.bring(&objects).await.expect("bring to another stage");
        let inode = |mirror: &Mirror, name: &str| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(mirror.root().join(name)).expect("a file").ino()
        };
        assert_eq!(inode(&first, "b/w-1.safetensors"), inode(&second, "b/w-1.safetensors"));
        assert_ne!(inode(&first, "b/w-2.safetensors"), inode(&second, "b/w-2.safetensors"));
        objects.delete(&"b/w-2.safetensors".into()).await.expect("delete");
        let error = mirror_of(&job, scratch.path()).bring(&objects).await.expect_err("a file is gone");
        assert!(error.to_string().starts_with("store:b/w-2.safetensors: there is no such object"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let job = job("preset: nano, weights: w", "source: compose, subjects: 'store:sets/x', panel: 16");
        let scratch = tempfile::tempdir().expect("make a folder");
        let error = mirror_of(&job, scratch.path()).bring(&InMemory::new()).await;
        let error = error.expect_err("nothing is there").to_string();
        assert_eq!(error, "store:sets/x: there is no such object, and none below it");
    }
}
