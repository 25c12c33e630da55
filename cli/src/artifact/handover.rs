//! The last words about a job that has succeeded: gathers what [`super::draw`] says.

use std::path::{Path, PathBuf};

use crescendo_core::spec::{self, AdapterSpec, JobSpec, ModelPreset};
use crescendo_dataset::HoldOut;
use crescendo_dataset::checkpoint::MODEL_FILE;
use crescendo_node::objects::Location;
use crescendo_proto::v1::{Checkpoint, Job};

use super::choice::{self, JobStage};
use super::draw::{self, Drawing, Ending, OWN_PICTURE};
use super::example;
use crate::args::{Common, Output};
use crate::commands::{checkpoints, get};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::{objects, show};

/// After a job that was followed has succeeded: where its result is, and how to draw with it. Only for people; a script
/// has `crescendo checkpoints -o json`. `cluster_stays`: the controller is there still when this is read.
pub async fn say(controller: &Controller, common: &Common, job_id: &str, cluster_stays: bool) {
    if common.output == Output::Json {
        return;
    }
    match gather(controller, common, job_id).await {
        Ok(ending) => show::err(Ending { cluster_stays, ..ending }.text(&program())),
        // The job is done all the same.
        Err(failure) if !cluster_stays => show::errln(format_args!("its result cannot be told: {failure}")),
        Err(failure) => {
            let copy = draw::copy_name(job_id);
            show::errln(format_args!("\nto fetch the result: crescendo cp {job_id} {copy}  ({failure})"));
        }
    }
}

async fn gather(controller: &Controller, common: &Common, job_id: &str) -> Result<Ending, Failure> {
    // What is watched leaves the resolved spec out.
    let job: Job = get::fetch(controller, common, job_id).await?;
    let spec = spec::parse(job.resolved_spec_yaml.as_bytes())
        .map_err(|_| Failure::other("this program cannot read the job's spec"))?;
    let registered = checkpoints::fetch(controller, common, job_id, "").await?;
    let url = objects::url(controller, None).await.ok();
    let root = controller.library_root().map(Path::to_owned);
    let here = std::env::current_dir().map_err(Failure::from_error("find the current folder"))?;
    let places = Places {
        objects: url.and_then(|url| match Location::parse(&url) {
            Ok(Location::Folder(folder)) if folder.is_dir() => Some(folder),
            _ => None,
        }),
        library_root: root.unwrap_or_else(|| here.clone()),
        here,
    };
    ending(&job.job_id, &spec, &registered, &places)
}

/// How this program is called: by its name where that finds it, else by its path from the current folder.
fn program() -> String {
    const NAME: &str = "crescendo";
    let Ok(own) = std::env::current_exe().and_then(|own| own.canonicalize()) else { return NAME.into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    let first = found.find(|program| program.is_file()).and_then(|program| program.canonicalize().ok());
    if first.as_ref() == Some(&own) {
        return NAME.into();
    }
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    called_from(&here, &own)
}

/// The path of a program as it is typed in a folder: a bare name would be looked for on PATH.
fn called_from(here: &Path, program: &Path) -> String {
    match program.strip_prefix(here) {
        Ok(below) if below.components().count() == 1 => format!("./{}", below.display()),
        Ok(below) => below.display().to_string(),
        Err(_) => program.display().to_string(),
    }
}

/// Where a job's files may lie on this machine.
struct Places {
    /// The object store, if it is a folder of this machine.
    objects: Option<PathBuf>,
    /// What relative paths of a spec start from.
    library_root: PathBuf,
    here: PathBuf,
}

impl Places {
    /// A path of a spec, if something is there on this machine.
    fn of_spec(&self, path: &str) -> Option<PathBuf> {
        let found = match path.strip_prefix("store:") {
            Some(key) => self.objects.as_ref()?.join(key),
            None => self.library_root.join(path),
        };
        found.exists().then_some(found)
    }

    /// A file of a checkpoint, if it is on this machine.
    fn of_checkpoint(&self, checkpoint: &Checkpoint, name: &str) -> Option<PathBuf> {
        let found = self.objects.as_ref()?.join(&checkpoint.path).join(name);
        found.is_file().then_some(found)
    }

    /// As it is typed in the current folder.
    fn typed(&self, path: &Path) -> String {
        path.strip_prefix(&self.here).unwrap_or(path).display().to_string()
    }
}

fn ending(job: &str, spec: &JobSpec, registered: &[Checkpoint], places: &Places) -> Result<Ending, Failure> {
    let of = JobStage { job: job.to_owned(), stage: None };
    let checkpoint = choice::choose(&of, registered, None)?;
    let file = choice::trained_file(checkpoint)?;
    let at = places.of_checkpoint(checkpoint, &file.name);
    Ok(Ending {
        job: job.to_owned(),
        stage: checkpoint.stage.clone(),
        step: checkpoint.step,
        is_lora: file.name != MODEL_FILE,
        at: at.as_deref().map(|path| places.typed(path)),
        cluster_stays: true,
        drawing: drawing(job, spec, registered, checkpoint, at.as_deref(), places),
    })
}

/// The command that draws with a checkpoint, whose file is `at` or else has been copied here.
fn drawing(
    job: &str,
    spec: &JobSpec,
    registered: &[Checkpoint],
    checkpoint: &Checkpoint,
    at: Option<&Path>,
    places: &Places,
) -> Result<Drawing, String> {
    if spec.model.sizes.is_some() {
        return Err(
            "`crescendo generate` knows only the sizes of the presets, and the spec has others".into()
        );
    }
    let index = spec.stages.iter().position(|stage| stage.name == checkpoint.stage);
    let (index, stage) = index
        .and_then(|index| Some((index, spec.stages.get(index)?)))
        .ok_or_else(|| format!("the spec has no stage {}", checkpoint.stage))?;
    let trained = at.map_or_else(|| draw::copy_name(job), |path| places.typed(path));
    let is_lora = matches!(stage.train.adapter, AdapterSpec::Lora { .. });
    let weights =
        match (is_lora, spec.stages.iter().take(index).rfind(|stage| trains_all(&stage.train.adapter))) {
            (false, _) => trained.clone(),
            // The adapter lies on what an earlier stage has trained.
            (true, Some(base)) => {
                let of = JobStage { job: job.to_owned(), stage: Some(base.name.clone()) };
                let found = choice::choose(&of, registered, None).map_err(|failure| failure.to_string())?;
                let path = places.of_checkpoint(found, MODEL_FILE);
                places.typed(
                    &path.ok_or_else(|| {
                        format!("the weights of stage {} are in the object store", base.name)
                    })?,
                )
            }
            (true, None) => {
                let given = spec.model.weights.as_deref().unwrap_or_default();
                let path = places.of_spec(given);
                places.typed(&path.ok_or_else(|| format!("the base, {given}, is not on this machine"))?)
            }
        };
    let model_dir = match (spec.model.preset, spec.model.encoders.as_deref()) {
        (ModelPreset::Nano, _) => None,
        (ModelPreset::FluxDev | ModelPreset::FluxSchnell, Some(encoders)) => {
            let path = places.of_spec(encoders);
            let path = path.ok_or_else(|| format!("the encoders, {encoders}, are not on this machine"))?;
            Some(places.typed(&path))
        }
        (ModelPreset::FluxDev | ModelPreset::FluxSchnell, None) => {
            let given = spec.model.weights.as_deref().and_then(|path| places.of_spec(path));
            let folder = given.as_deref().and_then(Path::parent).map(|folder| places.typed(folder));
            Some(folder.filter(|folder| !folder.is_empty()).unwrap_or_else(|| ".".into()))
        }
    };
    let count = stage.references as usize;
    let examples = match stage.data.source.library() {
        Some(library) if count > 0 => {
            let hold_out = HoldOut { named: library.hold_out, one_in: library.hold_out_one_in };
            let folder = places.of_spec(library.subjects);
            folder.map(|folder| example::subjects(&folder, hold_out, count)).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let words: Vec<String> = examples.iter().map(|example| example.words.clone()).collect();
    let mut references: Vec<String> = examples.iter().map(|example| places.typed(&example.file)).collect();
    references.resize(count, OWN_PICTURE.to_owned());
    Ok(Drawing {
        preset: spec.model.preset,
        weights,
        model_dir,
        lora: is_lora.then_some(trained),
        references,
        positions: stage.positions,
        position_scale: stage.position_scale,
        prompt: draw::prompt(stage, &words),
        out: format!("{job}.png"),
    })
}

fn trains_all(adapter: &AdapterSpec) -> bool {
    match adapter {
        AdapterSpec::None => true,
        AdapterSpec::Lora { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use crescendo_dataset::checkpoint::ADAPTER_FILE;
    use crescendo_proto::v1::CheckpointFile;

    use super::*;

    fn spec() -> JobSpec {
        let yaml = "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: a}
spec:
  model: {preset: nano, weights: base.safetensors}
  stages:
    - name: stage-1
      references: 1
      data: {source: compose, subjects: subjects, nameShare: 0}
      train: {adapter: {rank: 4}}
";
        spec::parse(yaml.as_bytes()).unwrap()
    }

    fn checkpoint(stage: &str, step: u64, name: &str) -> Checkpoint {
        Checkpoint {
            stage: stage.into(),
            step,
            path: format!("jobs/a-1/{stage}/checkpoints/step-{step:08}-g1"),
            files: vec![CheckpointFile { name: name.into(), ..CheckpointFile::default() }],
            ..Checkpoint::default()
        }
    }

    #[test]
    fn a_program_is_called_by_a_path_that_finds_it() {
        let called = |here: &str| called_from(Path::new(here), Path::new("/x/target/release/crescendo"));
        assert_eq!(called("/x"), "target/release/crescendo");
        assert_eq!(called("/x/target/release"), "./crescendo");
        assert_eq!(called("/elsewhere"), "/x/target/release/crescendo");
    }

    #[test]
    fn the_command_names_files_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let places = Places {
            objects: Some(here.join("objects")),
            library_root: here.to_owned(),
            here: here.to_owned(),
        };
        let last = [checkpoint("stage-1", 40, ADAPTER_FILE)];
        let told = || ending("a-1", &spec(), &last, &places).unwrap();

        // Nothing is here: what can be said is said.
        let first = told();
        assert_eq!((first.at, first.step, first.is_lora), (None, 40, true));
        assert!(first.drawing.unwrap_err().contains("base.safetensors, is not on this machine"));

        std::fs::write(here.join("base.safetensors"), "").unwrap();
        let second = told().drawing.unwrap();
        assert_eq!(second.lora.as_deref(), Some("a-1.safetensors"), "the copy that `cp` makes");
        assert_eq!(second.references, [OWN_PICTURE]);

        let folder = here.join("objects").join(&last[0].path);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(ADAPTER_FILE), "").unwrap();
        std::fs::create_dir(here.join("subjects")).unwrap();
        image::RgbaImage::new(2, 2).save(here.join("subjects/mug.png")).unwrap();
        let index = r#"[{"id": "mug", "file": "mug.png", "words": "a red mug"}]"#;
        std::fs::write(here.join("subjects/index.json"), index).unwrap();
        let third = told();
        let lora = "objects/jobs/a-1/stage-1/checkpoints/step-00000040-g1/dit_lora.safetensors";
        assert_eq!(third.at.as_deref(), Some(lora));
        let drawing = third.drawing.unwrap();
        assert_eq!(drawing.lora.as_deref(), Some(lora));
        assert_eq!(drawing.weights, "base.safetensors");
        assert_eq!(drawing.references, ["subjects/mug.png"]);
        assert_eq!(drawing.prompt, "the subject on plain blue, centre");
    }

    #[test]
    fn an_adapter_is_drawn_on_what_an_earlier_stage_has_trained() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let places =
            Places { objects: Some(here.to_owned()), library_root: here.to_owned(), here: here.to_owned() };
        let mut spec = spec();
        let mut base = spec.stages[0].clone();
        base.name = "base".into();
        base.train.adapter = AdapterSpec::None;
        spec.stages.insert(0, base);
        let registered = [checkpoint("base", 9, MODEL_FILE), checkpoint("stage-1", 40, ADAPTER_FILE)];
        let drawing = |registered: &[Checkpoint]| ending("a-1", &spec, registered, &places).unwrap().drawing;
        assert!(drawing(&registered).unwrap_err().contains("weights of stage base"));
        let folder = here.join(&registered[0].path);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(MODEL_FILE), "").unwrap();
        let found = drawing(&registered).unwrap();
        assert_eq!(found.weights, format!("{}/{MODEL_FILE}", registered[0].path));
        // A stage that trains everything is drawn with alone.
        let found = drawing(&registered[..1]).unwrap();
        assert_eq!((found.weights.ends_with(MODEL_FILE), found.lora), (true, None));
    }
}
