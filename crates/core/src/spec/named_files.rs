//! The files and folders that a spec names.

use super::types::*;

/// A file or folder that a spec names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile<'a> {
    /// The field, e.g. `spec.stages[0].data.subjects`.
    pub field: String,
    /// The stage that it is of; `None` for the model's, which every stage reads.
    pub stage: Option<usize>,
    /// As the spec has it.
    pub path: &'a str,
}

/// Every file and folder that a spec names. What is read beside weights is in their folder, which is one of them.
pub fn named_files(spec: &JobSpec) -> Vec<NamedFile<'_>> {
    let ModelSpec { preset, sizes: _, weights, encoders, precision: _ } = &spec.model;
    let of_model = |field: &str, path| NamedFile { field: format!("spec.model.{field}"), stage: None, path };
    let mut found = Vec::new();
    found.extend(weights.as_deref().map(|path| of_model("weights", path)));
    found.extend(encoders.as_deref().map(|path| of_model("encoders", path)));
    if let (Some(weights), None, true) = (weights, encoders, *preset != ModelPreset::Nano)
        && let Some(folder) = folder_of(weights)
    {
        found.push(of_model("weights", folder));
    }
    for (index, stage) in spec.stages.iter().enumerate() {
        found.extend(of_data(&stage.data).into_iter().map(|(field, path)| NamedFile {
            field: format!("spec.stages[{index}].data.{field}"),
            stage: Some(index),
            path,
        }));
    }
    for (index, prompt) in spec.samples.iter().flat_map(|samples| &samples.prompts).enumerate() {
        found.extend(prompt.references.iter().map(|path| NamedFile {
            field: format!("spec.samples.prompts[{index}].references"),
            stage: None,
            path,
        }));
    }
    found
}

/// Folder of the networks that lie beside weights.
fn folder_of(weights: &str) -> Option<&str> {
    weights.rsplit_once('/').map(|(folder, _)| folder).filter(|folder| !folder.is_empty())
}

/// Fields below `data`, with what they name.
fn of_data(data: &DataSpec) -> Vec<(&'static str, &str)> {
    let DataSpec { source, pairs: _, min_pairs: _, unit_size: _, prompts, filter } = data;
    let mut found: Vec<(&'static str, Option<&str>)> = match source {
        DataSource::Compose(compose) => {
            vec![("subjects", Some(&compose.subjects)), ("photos", compose.photos.as_deref())]
        }
        DataSource::Import(import) => vec![("path", Some(&import.path))],
        DataSource::Log(_) => Vec::new(),
        DataSource::Generate(generate) => vec![("subjects", generate.subjects.as_deref())],
        DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => vec![
            ("subjects", crop.subjects.as_deref()),
            ("photos", crop.photos.as_deref()),
            ("detector", crop.detector.as_deref()),
        ],
    };
    if let Some(PromptSpec { taxonomy, subjects, .. }) = prompts {
        found.push(("prompts.taxonomy", taxonomy.as_deref()));
        match subjects {
            Some(SubjectList::File(file)) => found.push(("prompts.subjects", Some(file))),
            Some(SubjectList::List(_)) | None => {}
        }
    }
    let FilterSpec { similarity, judge } = filter;
    found.push(("filter.similarity.encoder", similarity.as_ref().map(|filter| filter.encoder.as_str())));
    match judge {
        Some(JudgeFilter { kind: JudgeKind::Clip { weights, tokenizer, .. }, .. }) => {
            found.push(("filter.judge.weights", Some(weights)));
            found.push(("filter.judge.tokenizer", Some(tokenizer)));
        }
        Some(JudgeFilter { kind: JudgeKind::Endpoint { .. }, .. }) | None => {}
    }
    found.into_iter().filter_map(|(field, path)| Some((field, path?))).collect()
}
