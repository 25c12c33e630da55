//! Fields that mean nothing beside others of the same section: giving them is an error, and they are not written out.

use super::types::*;

/// A field that nothing looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    /// Last part of its path.
    pub name: &'static str,
    /// What makes it so.
    pub why: &'static str,
}

/// Those of a stage's `data`.
pub(super) fn of_data(data: &DataSpec) -> Vec<Idle> {
    let all = |names: &[&'static str], why| names.iter().map(|name| Idle { name, why }).collect();
    match &data.source {
        DataSource::Import(ImportSpec { format: ImportFormat::Webdataset, .. }) => all(
            &["minScore", "scoreDisagreement", "scoreInvalid", "directions", "unitSize"],
            "has no effect with `format: webdataset`: every pair of a tar is taken as it is, and a unit is a tar",
        ),
        DataSource::Import(ImportSpec { format: ImportFormat::UnoTrain, .. }) => all(
            &["minScore", "scoreDisagreement", "scoreInvalid", "directions"],
            "has no effect with `format: uno-train`: its records have no scores, and say which picture is the target",
        ),
        DataSource::Generate(GenerateSpec { subjects: None, .. }) => all(
            &["holdOut", "holdOutOneIn"],
            "has no effect without `subjects`, the library that it speaks of",
        ),
        DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => match crop.subjects {
            None => all(
                &["photos", "holdOut", "holdOutOneIn", "nameShare"],
                "has no effect without `subjects`: targets come from the pair log of `from`",
            ),
            Some(_) => all(
                &["detector", "detectorMin"],
                "has no effect with `subjects`: where they are in a composed target is known",
            ),
        },
        DataSource::Log(_) => all(
            &["unitSize", "filter"],
            "has no effect with `source: log`: pairs are taken as they were made",
        ),
        DataSource::Import(ImportSpec { format: ImportFormat::Uno1m, .. })
        | DataSource::Generate(GenerateSpec { subjects: Some(_), .. })
        | DataSource::Compose(_) => Vec::new(),
    }
}
