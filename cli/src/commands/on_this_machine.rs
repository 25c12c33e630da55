//! Files that a spec names and that this machine does not have, where its nodes are on this machine.

use std::path::Path;

use crescendo_core::spec::{DataSource, Parsed, Warning};

/// Warns of each path that leads to nothing from `root`, what the nodes' relative paths start from. Keys of the object store are left
/// to the curators.
pub fn missing(parsed: &Parsed, root: &Path) -> Vec<Warning> {
    let mut named: Vec<(String, &str)> = Vec::new();
    let model = &parsed.spec.model;
    named.extend(model.weights.as_deref().map(|path| ("spec.model.weights".to_owned(), path)));
    named.extend(model.encoders.as_deref().map(|path| ("spec.model.encoders".to_owned(), path)));
    for (index, stage) in parsed.spec.stages.iter().enumerate() {
        let data = format!("spec.stages[{index}].data");
        if let Some(library) = stage.data.source.library() {
            named.push((format!("{data}.subjects"), library.subjects));
        }
        if let DataSource::Import(import) = &stage.data.source {
            named.push((format!("{data}.path"), &import.path));
        }
        if let Some(similarity) = &stage.data.filter.similarity {
            named.push((format!("{data}.filter.similarity.encoder"), &similarity.encoder));
        }
    }
    let found = named.into_iter().filter_map(|(field, path)| {
        let message = if path.starts_with("store:") {
            return None;
        } else if path.starts_with('~') || path.contains("://") {
            format!("{path} is taken as it is written, not expanded: write the whole path")
        } else if root.join(path).exists() {
            return None;
        } else {
            let looked = std::path::absolute(root.join(path)).unwrap_or_else(|_| root.join(path));
            format!(
                "{path} is not on this machine ({}), and the nodes of this machine need it",
                looked.display()
            )
        };
        Some(parsed.places.warning(&field, message))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.safetensors"), "").unwrap();
        let warned = |weights: &str, subjects: &str| -> Vec<(u32, String)> {
            let yaml = format!(
                "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: x}}\nspec:\n  model: {{preset: nano, weights: {weights}}}\n  stages:\n    \
                 - data: {{source: compose, nameShare: 0, subjects: {subjects}}}\n"
            );
            let parsed = crescendo_core::spec::read(yaml.as_bytes(), None).unwrap();
            let found = missing(&parsed, folder.path());
            found.into_iter().map(|warning| (warning.line, warning.message)).collect()
        };
        assert_eq!(warned("base.safetensors", "store:libraries/a"), []);
        let [(line, message)] = &warned("base.safetensors", "toys")[..] else { panic!("one warning") };
        assert!(*line == 7 && message.starts_with("toys is not on this machine (/"), "{message}");
        let [(_, tilde), (_, url)] = &warned("'~/base.safetensors'", "file:///toys")[..] else {
            panic!("two")
        };
        assert!(tilde.contains("not expanded") && url.contains("write the whole path"), "{tilde} {url}");
    }
}
