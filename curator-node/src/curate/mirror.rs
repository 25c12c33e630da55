//! Files of a bucket on this machine: networks and data sets are read from files, so what a spec names with `store:` is
//! copied before work on its stage begins. In an object store that is a folder they are read where they lie.

use crescendo_core::reach::{Reach, STORE_PREFIX};
use crescendo_core::spec::{DataSource, JobSpec, ModelPreset, named_files};
use crescendo_node::objects::with_causes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

/// Limit of the wait for the next piece of an object, or for a listing.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// Files and folders of encoders, as they are published beside the weights.
const ENCODERS: [&str; 5] = ["ae.safetensors", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"];
/// Files of one folder that are copied at most.
const MAX_FILES: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("store:{key}: {reason}")]
    Read { key: String, reason: String },
    #[error("store:{key}: there is no such object, and none below it")]
    Missing { key: String },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Copies of the objects that one stage needs, in a folder of their own which goes with this.
#[derive(Debug)]
pub struct Mirror {
    root: TempDir,
    /// Objects, and folders: keys that objects are below.
    wanted: BTreeSet<String>,
}

impl Mirror {
    /// What the stage at `index` needs of the object store; `None` if nothing. What is out of the job's reach is not
    /// copied: whoever resolves its path says so.
    pub fn of(job: &JobSpec, index: usize, reach: &Reach) -> Result<Option<Mirror>, MirrorError> {
        let may = |key: &String| reach.check_path(&format!("{STORE_PREFIX}{key}")).is_ok();
        let wanted: BTreeSet<String> = wanted(job, index).into_iter().filter(may).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        Ok(Some(Mirror { wanted, ..Mirror::empty()? }))
    }

    /// One that wants nothing of itself, for [`Mirror::bring_key`].
    pub fn empty() -> Result<Mirror, MirrorError> {
        let root = tempfile::Builder::new().prefix("crescendo-store-").tempdir();
        let root = root.map_err(|source| MirrorError::Write { path: std::env::temp_dir(), source })?;
        Ok(Mirror { root, wanted: BTreeSet::new() })
    }

    /// Stands for the root of the object store.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Copies everything. Calling it again after an error copies what is missing.
    pub async fn bring(&self, objects: &dyn ObjectStore) -> Result<(), MirrorError> {
        for key in &self.wanted {
            self.bring_key(objects, key).await?;
        }
        Ok(())
    }

    /// Copies the object at `key`, or else all objects below it.
    pub async fn bring_key(&self, objects: &dyn ObjectStore, key: &str) -> Result<(), MirrorError> {
        let location = parsed(key)?;
        if self.copy(objects, &location).await? {
            return Ok(());
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

    /// Copies one object; false if there is none.
    async fn copy(&self, objects: &dyn ObjectStore, location: &Key) -> Result<bool, MirrorError> {
        let key = location.as_ref();
        let target = self.root().join(key);
        if target.is_file() {
            return Ok(true);
        }
        let got = match late(key, objects.get(location)).await? {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(read(key, &error)),
        };
        let failed = |source| MirrorError::Write { path: target.clone(), source };
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        // Under another name until it is whole.
        let part = PathBuf::from(format!("{}.part", target.display()));
        let mut file = tokio::fs::File::create(&part).await.map_err(failed)?;
        let mut pieces = got.into_stream();
        while let Some(piece) = late(key, pieces.next()).await? {
            let piece = piece.map_err(|e| read(key, &e))?;
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
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
/// their own lie beside them.
fn wanted(job: &JobSpec, index: usize) -> BTreeSet<String> {
    let Some(stage) = job.stages.get(index) else { return BTreeSet::new() };
    let mut keys = BTreeSet::new();
    let key = |path: &str| Some(path.strip_prefix(STORE_PREFIX)?.trim_matches('/').to_owned());
    let key_of = |path: &Option<String>| key(path.as_deref()?);
    let of_stage = named_files(job).into_iter().filter(|file| file.stage == Some(index));
    keys.extend(of_stage.filter_map(|file| key(file.path)));
    let weights = key_of(&job.model.weights);
    let draws = matches!(stage.data.source, DataSource::Generate(_) | DataSource::Recompose(_));
    keys.extend(weights.clone().filter(|_| draws));
    if job.model.preset == ModelPreset::Nano {
        return keys;
    }
    let folder = match (&job.model.encoders, weights) {
        (Some(_), _) => key_of(&job.model.encoders),
        (None, weights) => {
            weights.map(|key| key.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.into()))
        }
    };
    for name in folder.iter().flat_map(|_| ENCODERS) {
        let folder = folder.as_deref().unwrap_or_default();
        keys.insert(format!("{folder}/{name}").trim_start_matches('/').to_owned());
    }
    keys
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
        wanted(&job(model, data), 0).into_iter().collect()
    }

    #[test]
    fn only_what_the_stage_reads_is_wanted() {
        let compose = "source: compose, subjects: 'store:sets/x/', panel: 64";
        let local = "source: compose, subjects: x, panel: 64";
        assert_eq!(keys("preset: nano, weights: 'store:b/w.safetensors'", compose), ["sets/x"]);
        assert_eq!(keys("preset: nano, weights: w.safetensors", local), [""; 0]);
        let beside =
            ["b/ae.safetensors", "b/text_encoder", "b/text_encoder_2", "b/tokenizer", "b/tokenizer_2"];
        assert_eq!(keys("preset: flux-dev, weights: 'store:b/w.safetensors'", local), beside);
        let elsewhere =
            keys("preset: flux-dev, weights: 'store:w.safetensors', encoders: 'store:e'", compose);
        assert!(elsewhere.iter().all(|key| key.starts_with("e/") || key == "sets/x"), "{elsewhere:?}");
        assert_eq!(elsewhere.len(), 6);
    }

    #[tokio::test]
    async fn objects_and_folders_are_copied_once() {
        let objects = InMemory::new();
        for key in ["sets/x/index.json", "sets/x/cut/1.png", "sets/xy/no.png"] {
            objects.put(&key.into(), key.into()).await.expect("put");
        }
        let job = job("preset: nano, weights: w", "source: compose, subjects: 'store:sets/x', panel: 16");
        let mirror = Mirror::of(&job, 0, &Reach::Everything).expect("a folder").expect("something is wanted");
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
        let of = |prefix: &str| {
            let bounds = Bounds { store_prefixes: vec![prefix.to_owned()], ..Bounds::default() };
            Mirror::of(&job, 0, &Reach::Bounded(bounds)).expect("a folder")
        };
        assert!(of("jobs/a-1").is_none(), "there is nothing that it may copy");
        assert_eq!(of("jobs/b-1").expect("its own").wanted.len(), 1);
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let job = job("preset: nano, weights: w", "source: compose, subjects: 'store:sets/x', panel: 16");
        let mirror = Mirror::of(&job, 0, &Reach::Everything).expect("a folder").expect("something is wanted");
        let error = mirror.bring(&InMemory::new()).await.expect_err("nothing is there").to_string();
        assert_eq!(error, "store:sets/x: there is no such object, and none below it");
    }
}
