//! `crescendo curation`: what language models have answered, as it is kept for all jobs.

use clap::{Args, Subcommand};
use crescendo_core::object_keys;
use crescendo_dataset::digest::of_model;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::json;

use crate::common_args::{Common, Output};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::objects;
use crate::show;

/// Objects that are removed at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Subcommand)]
pub enum CurationCommand {
    /// Forget what a language model has answered: the next job asks it again.
    #[command(after_help = "\
Answers and prompts are kept for all jobs in the object store, by address and model, and are never asked for twice. After a
model was replaced under its old name, or a server was set up badly and gave answers that can be read and are wrong, they
are to go. What was made of them stays: pairs of jobs are not touched.

Examples:
  crescendo curation forget --url https://models.internal/v1 --model some-vision-model --dry-run
  crescendo curation forget --url https://models.internal/v1 --model some-vision-model
  crescendo curation forget --unnamed           what was kept before records were kept by model")]
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// Address of the endpoint, as the spec's `url` has it.
    #[arg(long, required_unless_present = "unnamed", requires = "model")]
    pub url: Option<String>,
    /// The model, as the spec's `model` names it.
    #[arg(long, requires = "url")]
    pub model: Option<String>,
    /// Records of a time when they were not kept by model: of all endpoints and models.
    #[arg(long)]
    pub unnamed: bool,
    /// Count them alone.
    #[arg(long)]
    pub dry_run: bool,
    /// Folder or URL of the object store [default: that of the context or of the cluster that `crescendo up` runs].
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "DIR|URL")]
    pub object_store: Option<String>,
}

pub async fn run(common: &Common, command: &CurationCommand) -> Result<(), Failure> {
    match command {
        CurationCommand::Forget(args) => forget(common, args).await,
    }
}

async fn forget(common: &Common, args: &ForgetArgs) -> Result<(), Failure> {
    let url = match args.object_store.as_deref() {
        Some(given) => objects::as_url(given)?,
        None => objects::url(&Controller::find(common).await?, None).await?,
    };
    let store = objects::open_existing(&url)?;
    let mut answers = Vec::new();
    let mut prompts = Vec::new();
    if let (Some(url), Some(model)) = (&args.url, &args.model) {
        let model = of_model(url, model);
        answers.extend(keys(&*store, &object_keys::replies(&model), |_| true).await?);
        prompts.extend(keys(&*store, &object_keys::prompts_of(&model), |_| true).await?);
    }
    if args.unnamed {
        answers.extend(keys(&*store, object_keys::REPLIES, object_keys::is_of_no_model).await?);
        prompts.extend(keys(&*store, object_keys::PROMPTS, object_keys::is_of_no_model).await?);
    }
    if !args.dry_run {
        let removing = answers.iter().chain(&prompts).map(|key| remove(&*store, key));
        futures::stream::iter(removing).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    let (answers, prompts) = (answers.len(), prompts.len());
    match common.output {
        Output::Json => show::json::print(&json!({
            "answers": answers, "prompts": prompts, "removed": !args.dry_run,
        })),
        Output::Table => {
            let what = if args.dry_run { "would be removed" } else { "removed" };
            show::outln(format_args!("{answers} answers and {prompts} sets of prompts {what}"));
        }
    }
    Ok(())
}

/// The keys below a folder that are `wanted`.
async fn keys(
    store: &dyn ObjectStore,
    folder: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Path>, Failure> {
    let failed =
        |error: object_store::Error| Failure::other(format!("list {folder}: {}", objects::readable(&error)));
    let found: Vec<object_store::ObjectMeta> =
        store.list(Some(&Path::from(folder))).try_collect().await.map_err(failed)?;
    Ok(found.into_iter().map(|object| object.location).filter(|key| wanted(key.as_ref())).collect())
}

/// Removes an object, or finds it gone.
async fn remove(store: &dyn ObjectStore, key: &Path) -> Result<(), Failure> {
    match store.delete(key).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(Failure::other(format!("remove {key}: {}", objects::readable(&error)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::PutPayload;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn the_records_of_one_model_are_found_and_no_others() {
        let store = InMemory::new();
        let (one, other) = (of_model("https://h/v1/", "m"), of_model("https://h/v1", "n"));
        assert_eq!(one, of_model("https://h/v1", "m"));
        let all = [
            object_keys::reply(&one, "ab1"),
            object_keys::reply(&other, "ab2"),
            object_keys::prompts(&one, "ab3"),
            object_keys::older_reply("ab4"),
            object_keys::older_prompts("ab5"),
        ];
        for key in &all {
            store.put(&Path::from(key.as_str()), PutPayload::from_static(b"{}")).await.expect("put");
        }
        let found = keys(&store, &object_keys::replies(&one), |_| true).await.expect("list");
        assert_eq!(found, [Path::from(all[0].as_str())]);
        let older = keys(&store, object_keys::REPLIES, object_keys::is_of_no_model).await.expect("list");
        assert_eq!(older, [Path::from(all[3].as_str())]);
        let older = keys(&store, object_keys::PROMPTS, object_keys::is_of_no_model).await.expect("list");
        assert_eq!(older, [Path::from(all[4].as_str())]);
        remove(&store, &found[0]).await.expect("remove it");
        assert_eq!(keys(&store, &object_keys::replies(&one), |_| true).await.expect("list"), []);
    }
}
