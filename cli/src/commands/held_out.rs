//! Who is held out of training, where a spec's subject library lies on this machine.

use std::path::Path;

use crescendo_core::spec::{Parsed, Problem, StageSpec, SubjectLibrary, Warning};
use crescendo_dataset::{FolderRules, HoldOut, INDEX, Library, LibraryError, Severity, scan};

/// Longer side to which a library's pictures would be shrunk; only their names are read here.
const UNREAD: usize = 1;
/// Subjects that people are shown; scripts get all.
const SHOWN: usize = 50;

/// Files of a plain folder that are named where they cannot be used.
const NAMED: usize = 5;

/// What a stage keeps out of training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOut {
    /// Stages that do so.
    pub stages: Vec<String>,
    /// As the spec names it.
    pub library: String,
    /// All that the library has.
    pub subjects: usize,
    /// Their ids, in order.
    pub held_out: Vec<String>,
}

impl HeldOut {
    pub fn json(&self) -> serde_json::Value {
        let HeldOut { stages, library, subjects, held_out } = self;
        serde_json::json!({"stages": stages, "library": library, "subjects": subjects, "heldOut": held_out})
    }

    /// One line, for people.
    pub fn text(&self) -> String {
        let HeldOut { stages, library, subjects, held_out } = self;
        let shown: Vec<&str> = held_out.iter().take(SHOWN).map(String::as_str).collect();
        let more = match held_out.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "held out of training in {}: {} of the {subjects} subjects of {library}: {}{more}",
            stages.join(", "),
            held_out.len(),
            shown.join(", ")
        )
    }
}

/// What was found out about the libraries of a spec.
#[derive(Debug, Default)]
pub struct Look {
    pub held_out: Vec<HeldOut>,
    /// Names in `holdOut` that no subject has.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Warning>,
}

/// Looks at every library that is a folder of this machine; relative paths start from `root`. Libraries that lie elsewhere
/// are left to the curators.
pub fn look(parsed: &Parsed, root: &Path) -> Look {
    let mut look = Look::default();
    for (index, stage) in parsed.spec.stages.iter().enumerate() {
        let Some(library) = stage.data.source.library() else { continue };
        let folder = root.join(library.subjects);
        if library.subjects.starts_with("store:") || !folder.is_dir() {
            continue;
        }
        let at = |field: &str, message: String| {
            parsed.places.warning(&format!("spec.stages[{index}].data.{field}"), message)
        };
        let unusable = unusable(&folder);
        look.warnings.extend(unusable.into_iter().map(|message| at("subjects", message)));
        let found = Library::open_subjects(&folder, UNREAD).and_then(|opened| {
            let hold_out = HoldOut { named: library.hold_out, one_in: library.hold_out_one_in };
            let (training, held_out) = opened.split(hold_out)?;
            Ok((opened, training, held_out))
        });
        match found {
            Ok((opened, training, held_out)) => {
                let warnings = doubts(stage, &library, training.len(), held_out.len());
                look.warnings.extend(warnings.into_iter().map(|(field, message)| at(field, message)));
                let ids = held_out.iter().filter_map(|n| opened.entries().get(*n));
                let held_out: Vec<String> = ids.map(|entry| entry.id.clone()).collect();
                add(&mut look.held_out, stage, &library, opened.entries().len(), held_out);
            }
            Err(error @ LibraryError::HoldOut { .. }) => {
                look.problems.push(at("holdOut", error.to_string()).into());
            }
            Err(
                error @ (LibraryError::Read { .. }
                | LibraryError::Index { .. }
                | LibraryError::Folder { .. }
                | LibraryError::Picture { .. }),
            ) => look.warnings.push(at("subjects", error.to_string())),
        }
    }
    look
}

/// Files of a plain folder that make no subject, the first few and how many more; a library has been checked when it was made.
fn unusable(folder: &Path) -> Vec<String> {
    if folder.join(INDEX).exists() {
        return Vec::new();
    }
    let Ok(found) = scan(folder, &FolderRules::default()) else { return Vec::new() };
    let errors: Vec<String> = found
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(|problem| format!("left out: {problem}"))
        .collect();
    let more = errors.len().saturating_sub(NAMED);
    let mut named: Vec<String> = errors.into_iter().take(NAMED).collect();
    if more > 0 {
        named.push(format!("left out: {more} more; `crescendo library make` names them all"));
    }
    named
}

fn add(
    all: &mut Vec<HeldOut>,
    stage: &StageSpec,
    library: &SubjectLibrary<'_>,
    subjects: usize,
    held_out: Vec<String>,
) {
    let same = all.iter_mut().find(|other| other.library == library.subjects && other.held_out == held_out);
    match same {
        Some(same) => same.stages.push(stage.name.clone()),
        None => all.push(HeldOut {
            stages: vec![stage.name.clone()],
            library: library.subjects.to_owned(),
            subjects,
            held_out,
        }),
    }
}

/// What is hardly meant, with the field that it is about.
fn doubts(
    stage: &StageSpec,
    library: &SubjectLibrary<'_>,
    training: usize,
    held_out: usize,
) -> Vec<(&'static str, String)> {
    let mut doubts = Vec::new();
    let (references, one_in) = (stage.references as usize, library.hold_out_one_in);
    // As curators want it: there has to be something to tell a subject from.
    let needed = references.max(2);
    if training < needed {
        let message =
            format!("too few subjects are left for training: {training}, and curators want {needed}");
        doubts.push(("subjects", message));
    }
    if references > 0 && held_out == 0 && one_in > 0 {
        let message = format!(
            "one in {one_in} by hash is none of these {training} subjects, so a report can only show subjects that were trained on; \
             name some in `holdOut`, or take a smaller number"
        );
        doubts.push(("holdOutOneIn", message));
    } else if references > 0 && (1..=references).contains(&held_out) {
        let message = format!(
            "{held_out} held out: a report needs {} to tell the right ones from others, and else shows subjects that were trained on",
            references + 1
        );
        doubts.push((if library.hold_out.is_empty() { "holdOutOneIn" } else { "holdOut" }, message));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(subjects: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<serde_json::Value> = (0..subjects)
            .map(|n| serde_json::json!({"id": format!("s{n}"), "name": format!("toy {n}"), "file": "a.png", "words": format!("a toy {n}")}))
            .collect();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        std::fs::write(folder.path().join("lib/index.json"), serde_json::to_vec(&entries).unwrap()).unwrap();
        folder
    }

    fn parsed(data: &str) -> Parsed {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: x}}\nspec:\n  model: {{preset: nano, weights: w}}\n  stages:\n    \
             - data: {{source: compose, nameShare: 0, {data}}}\n    - data: {{source: compose, nameShare: 0, {data}}}\n"
        );
        crescendo_core::spec::read(yaml.as_bytes(), None).unwrap()
    }

    #[test]
    fn who_is_held_out_is_listed_once() {
        let folder = folder(6);
        let Look { held_out, problems, warnings } =
            look(&parsed("subjects: lib, holdOut: [s4, toy 2, s1]"), folder.path());
        assert_eq!((problems, warnings), (vec![], vec![]));
        let [found] = &held_out[..] else { panic!("{held_out:?}") };
        assert_eq!(
            found.text(),
            "held out of training in stage-1, stage-2: 3 of the 6 subjects of lib: s1, s2, s4"
        );
    }

    #[test]
    fn what_a_plain_folder_has_that_is_no_subject_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        for n in 0..3 {
            let picture = image::RgbImage::from_pixel(40, 40, image::Rgb([n, 200, 90]));
            picture
                .save(folder.path().join(format!("lib/toy {}.png", ["one", "two", "three"][n as usize])))
                .unwrap();
        }
        std::fs::write(folder.path().join("lib/broken cup.png"), "no picture").unwrap();
        let told = |of: &Path| -> Vec<String> {
            let found = look(&parsed("subjects: lib, holdOutOneIn: 0"), of).warnings;
            found.into_iter().filter(|warning| warning.line == 7).map(|warning| warning.message).collect()
        };
        let messages = told(folder.path());
        let [broken] = &messages[..] else { panic!("{messages:?}") };
        assert!(broken.starts_with("left out: broken cup.png: "), "{broken}");
        for n in 0..9 {
            std::fs::write(folder.path().join(format!("lib/{n}-cup.png")), "no picture").unwrap();
        }
        let messages = told(folder.path());
        assert_eq!(messages.len(), NAMED + 1);
        assert!(messages.iter().any(|message| message.starts_with("left out: 5 more")), "{messages:?}");
    }

    #[test]
    fn a_name_that_nobody_has_is_a_problem_with_its_line() {
        let folder = folder(6);
        let found = look(&parsed("subjects: lib, holdOut: [s4, toi 2]"), folder.path());
        let problem = found.problems.first().expect("there is one");
        assert_eq!((problem.line, problem.path.as_str()), (7, "spec.stages[0].data.holdOut"));
        assert!(problem.message.ends_with(": `toi 2` (did you mean `toy 2`?)"), "{}", problem.message);
    }

    #[test]
    fn too_few_on_either_side_are_doubted() {
        let folder = folder(3);
        let doubts = |data: &str| -> Vec<String> {
            let found = look(&parsed(&format!("subjects: lib, {data}")), folder.path()).warnings;
            found.iter().map(|warning| warning.path.clone()).collect()
        };
        let [first, second] = ["spec.stages[0].data", "spec.stages[1].data"];
        // The second stage has two references.
        assert_eq!(doubts("holdOut: s1"), [format!("{first}.holdOut"), format!("{second}.holdOut")]);
        assert_eq!(
            doubts("holdOut: [s1, s2]"),
            [format!("{first}.subjects"), format!("{second}.subjects"), format!("{second}.holdOut")]
        );
        let none = (2..100).find(|n| (0..3).all(|s| !crescendo_dataset::is_held_out(&format!("s{s}"), *n)));
        let data = format!("holdOutOneIn: {}", none.expect("there is one"));
        assert_eq!(doubts(&data), [format!("{first}.holdOutOneIn"), format!("{second}.holdOutOneIn")]);
    }

    #[test]
    fn libraries_elsewhere_are_left_to_the_curators() {
        let folder = folder(3);
        for data in ["subjects: other, holdOut: x", "subjects: 'store:lib', holdOut: x"] {
            let Look { held_out, problems, warnings } = look(&parsed(data), folder.path());
            assert!(held_out.is_empty() && problems.is_empty() && warnings.is_empty());
        }
        std::fs::write(folder.path().join("lib/index.json"), "{").unwrap();
        let found = look(&parsed("subjects: lib, holdOut: s1"), folder.path());
        assert_eq!(found.warnings[0].path, "spec.stages[0].data.subjects");
    }
}
