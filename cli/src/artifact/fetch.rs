//! A file of a checkpoint onto this machine, whole and as it was registered: read from the store where that is in reach, else
//! through the controller.

use std::path::Path;

use crescendo_core::object_keys;
use crescendo_dataset::checkpoint;
use crescendo_dataset::digest::Content;
use crescendo_node::objects::download::{DownloadError, download, registered};
use crescendo_node::objects::with_causes;
use crescendo_proto::v1::{Checkpoint, CheckpointFile};

use super::receive::receive;
use crate::args::Common;
use crate::connect::{Controller, LOOK};
use crate::failure::Failure;
use crate::objects::{self, Way};
use crate::show::{self, words};

/// Writes the file to `target`, a new file, and holds it to the registry. `store` is what the command line names.
pub async fn fetch(
    controller: &Controller,
    common: &Common,
    store: Option<&str>,
    checkpoint: &Checkpoint,
    file: &CheckpointFile,
    target: &Path,
) -> Result<(), Failure> {
    let key = object_keys::checkpoint_file(&checkpoint.path, &file.name);
    let way = objects::way(controller, store, &key).await?;
    let relayed = || receive(controller, common.timeout.unwrap_or(LOOK), checkpoint, file, target);
    let came = match &way {
        Way::Relayed => relayed().await?,
        Way::Direct(url) | Way::DirectFirst(url) => {
            let store = objects::open_existing(url)?;
            match (download(store.as_ref(), &key, target, Some(file.size_bytes)).await, &way) {
                (Err(error @ DownloadError::Store { .. }), Way::DirectFirst(_)) => {
                    // The environment's keys may be those of another bucket.
                    let why = objects::readable(&error);
                    show::errln(format_args!("{why}; asking the controller for it"));
                    relayed().await?
                }
                (came, _) => came.map_err(|error| not_read(error, url, checkpoint))?,
            }
        }
    };
    verify(&key, &came, file)
}

/// Why the file of `checkpoint` did not come from the store at `url`.
fn not_read(error: DownloadError, url: &str, checkpoint: &Checkpoint) -> Failure {
    match error {
        DownloadError::Missing { key } => Failure::other(format!(
            "{key} is not in the object store; perhaps a newer checkpoint has taken its place (`crescendo checkpoints {}`)",
            checkpoint.job_id
        )),
        error @ DownloadError::Store { .. } => {
            let hint = objects::without_keys(url, |name| std::env::var_os(name).is_some());
            Failure::other(format!("{}{hint}", objects::readable(&error)))
        }
        error => Failure::other(with_causes(&error)),
    }
}

/// Holds what came to what was registered.
fn verify(key: &str, came: &Content, file: &CheckpointFile) -> Result<(), Failure> {
    checkpoint::verify(&file.name, &registered(file), came).map_err(|damage| {
        Failure::other(format!("{key} is not what was registered: {}", words::one_line(&damage.to_string())))
    })
}
