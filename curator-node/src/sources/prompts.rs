//! What drawn pictures are to show: subjects of many categories in three styles, each with scenes.
//!
//! ```text
//!   taxonomy ──▶ category × style ──▶ subjects ──▶ scenes ──┐
//!                     templates, or a language model        ├──▶ PromptBook: index ─▶ subject and two of its scenes
//!   a list of subjects ─────────────▶ scenes by template ───┘
//! ```
//!
//! The pipeline of the UNO paper (section 3.2 and appendix), with words and instructions of our own. Everything is
//! checked by [`phrase`]: lengths, hidden characters, repetitions. With templates a book is a function of the spec
//! and the seed. What a language model says is written down first ([`llm_prompts`]), once, and read from there by
//! everyone.

pub mod llm_prompts;
pub mod order;
pub mod taxonomy;
pub mod templates;

use crate::llm::network::LlmContext;
use crate::llm::{Chat, EndpointError};
use crate::paths::{PathError, PathResolver};
use crate::phrase;
use crescendo_core::spec::{EndpointSpec, PromptSpec, SubjectList};
use llm_prompts::CategoryAnswer;
use phrase::{MAX_SUBJECT_WORDS, PhraseError, normalised};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use taxonomy::{Category, CategoryKind, TaxonomyError};

pub use crescendo_core::spec::PromptStyle as Style;

/// Most subjects of one book.
const MAX_SUBJECTS: usize = 2_000_000;

/// Most scenes of a subject that the templates make; what a spec may ask for.
const MAX_SCENES: u32 = 64;

/// What one diptych is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiptychPrompt {
    /// Of the taxonomy; the subject itself where subjects were given.
    pub category: String,
    /// A noun phrase; written by the templates without an article.
    pub subject: String,
    pub style: Style,
    /// Lines that each describe the subject somewhere, of the first and the second panel; never the same.
    pub scenes: [String; 2],
}

/// Where a stage's prompts come from, besides its spec.
#[derive(Clone, Debug, Default)]
pub struct PromptSource<'a> {
    /// The book, where a language model wrote it and it was asked before.
    pub book: Option<Arc<PromptBook>>,
    /// The way to language models otherwise.
    pub llm: Option<&'a LlmContext>,
}

/// Why there is no book.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("taxonomy {path}: {reason}")]
    Taxonomy { path: String, reason: TaxonomyError },
    #[error("subject {number} ({shown:?}): {reason}")]
    Subject { number: usize, shown: String, reason: PhraseError },
    #[error("there is no subject")]
    Empty,
    #[error("{count} subjects are more than {MAX_SUBJECTS}; ask for fewer per category")]
    Many { count: usize },
    #[error("the spec has no endpoint `{name}`")]
    NoEndpoint { name: String },
    #[error("prompts: {0}")]
    Endpoint(#[from] EndpointError),
}

/// All subjects with their scenes, in a random order of subject and scenes.
#[derive(Clone, Debug)]
pub struct PromptBook {
    seed: u64,
    entries: Vec<Entry>,
    /// Ordered pairs of scenes of all entries before each entry, and of all at the end.
    before: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Entry {
    category: String,
    subject: String,
    style: Style,
    scenes: Scenes,
}

/// Scenes by template are made when they are asked for: millions of them are not worth their memory.
#[derive(Clone, Debug)]
enum Scenes {
    ByTemplate { kind: CategoryKind, count: u32 },
    Written(Vec<String>),
}

impl Entry {
    fn scene_count(&self) -> u64 {
        match &self.scenes {
            Scenes::ByTemplate { count, .. } => u64::from(*count),
            Scenes::Written(scenes) => scenes.len() as u64,
        }
    }

    fn scenes(&self, seed: u64) -> Vec<String> {
        match &self.scenes {
            Scenes::ByTemplate { kind, count } => {
                templates::scenes(&self.subject, *kind, *count as usize, seed)
            }
            Scenes::Written(scenes) => scenes.clone(),
        }
    }
}

impl PromptBook {
    /// Makes the book that `spec` describes. Where it names one of `endpoints`, every category that nobody has asked
    /// for yet is asked for, which may take long; what is there already is read. Blocks the calling thread, which must not be one
    /// of the runtime's.
    pub fn open(
        spec: &PromptSpec,
        endpoints: &[EndpointSpec],
        seed: u64,
        paths: &PathResolver,
        llm: Option<&LlmContext>,
    ) -> Result<PromptBook, PromptError> {
        if let Some(list) = &spec.subjects {
            return PromptBook::of_subjects(spec, &read_subjects(list, paths)?, seed);
        }
        let categories = categories(spec, paths)?;
        let entries = match author(spec, endpoints, llm)? {
            None => by_template(spec, &categories, seed),
            Some(chat) => written(chat.handle().block_on(llm_prompts::all(&chat, spec, &categories))?),
        };
        PromptBook::of_entries(entries, seed)
    }

    /// The book of a spec whose subjects a language model writes; `None` of any other spec, which takes no time to open.
    pub async fn write(
        spec: &PromptSpec,
        endpoints: &[EndpointSpec],
        seed: u64,
        paths: &PathResolver,
        llm: &LlmContext,
    ) -> Result<Option<PromptBook>, PromptError> {
        if spec.subjects.is_some() {
            return Ok(None);
        }
        let Some(chat) = author(spec, endpoints, Some(llm))? else { return Ok(None) };
        let answers = llm_prompts::all(&chat, spec, &categories(spec, paths)?).await?;
        PromptBook::of_entries(written(answers), seed).map(Some)
    }

    /// A book of subjects that are taken as they are, with scenes by template.
    fn of_subjects(spec: &PromptSpec, subjects: &[String], seed: u64) -> Result<PromptBook, PromptError> {
        let style = spec.styles.first().copied().unwrap_or(Style::Realistic);
        let scenes =
            Scenes::ByTemplate { kind: CategoryKind::Object, count: spec.scenes_per_subject.min(MAX_SCENES) };
        let mut entries = Vec::with_capacity(subjects.len());
        for (n, given) in subjects.iter().enumerate() {
            let subject = phrase::phrase(given, MAX_SUBJECT_WORDS).map_err(|reason| {
                PromptError::Subject { number: n + 1, shown: given.chars().take(60).collect(), reason }
            })?;
            entries.push(Entry { category: subject.clone(), subject, style, scenes: scenes.clone() });
        }
        PromptBook::of_entries(entries, seed)
    }

    fn of_entries(mut entries: Vec<Entry>, seed: u64) -> Result<PromptBook, PromptError> {
        let mut seen = BTreeSet::new();
        // One scene makes no pair.
        entries.retain(|entry| entry.scene_count() >= 2 && seen.insert(normalised(&entry.subject)));
        if entries.is_empty() {
            return Err(PromptError::Empty);
        }
        let mut before = Vec::with_capacity(entries.len() + 1);
        let mut total = 0u64;
        for entry in &entries {
            before.push(total);
            let scenes = entry.scene_count();
            total += scenes * (scenes - 1);
        }
        before.push(total);
        Ok(PromptBook { seed, entries, before })
    }

    /// Subjects in the book.
    pub fn subjects(&self) -> usize {
        self.entries.len()
    }

    /// Different prompts: each subject with each ordered pair of its scenes.
    pub fn prompts(&self) -> u64 {
        self.before.last().copied().unwrap_or(0)
    }

    /// Prompt `index`. Any stretch of [`PromptBook::prompts`] that begins at a multiple of it has each prompt once,
    /// in an order of its own.
    pub fn prompt(&self, index: u64) -> DiptychPrompt {
        let total = self.prompts();
        let place = order::place(index % total, total, "prompt order", &[self.seed, index / total]);
        // The first entry begins at 0, so there always is one that begins at or before the place.
        let at = self.before.partition_point(|start| *start <= place) - 1;
        let entry = &self.entries[at];
        let scenes = entry.scenes(self.seed);
        let others = scenes.len() as u64 - 1;
        let within = place - self.before[at];
        let first = within / others;
        // The second is any but the first.
        let second = within % others + u64::from(within % others >= first);
        DiptychPrompt {
            category: entry.category.clone(),
            subject: entry.subject.clone(),
            style: entry.style,
            scenes: [first, second].map(|n| scenes[n as usize].clone()),
        }
    }
}

/// The categories of a spec; not too many.
fn categories(spec: &PromptSpec, paths: &PathResolver) -> Result<Vec<Category>, PromptError> {
    let (path, text) = match &spec.taxonomy {
        None => ("(built in)".to_owned(), taxonomy::BUILT_IN.to_owned()),
        Some(path) => (path.clone(), read(path, taxonomy::MAX_BYTES, paths)?),
    };
    let categories = taxonomy::parse(&text).map_err(|reason| PromptError::Taxonomy { path, reason })?;
    let count = categories.len() * spec.styles.len() * spec.subjects_per_category as usize;
    if count > MAX_SUBJECTS { Err(PromptError::Many { count }) } else { Ok(categories) }
}

/// The language model that writes the subjects of a spec, if one does.
fn author(
    spec: &PromptSpec,
    endpoints: &[EndpointSpec],
    llm: Option<&LlmContext>,
) -> Result<Option<Chat>, PromptError> {
    let Some(name) = &spec.endpoint else { return Ok(None) };
    let endpoint = endpoints.iter().find(|endpoint| endpoint.name == *name);
    let endpoint = endpoint.ok_or_else(|| PromptError::NoEndpoint { name: name.clone() })?;
    Ok(Some(Chat::open(endpoint, llm)?))
}

/// What a language model wrote, in its order.
fn written(answers: Vec<CategoryAnswer>) -> Vec<Entry> {
    let entries = answers.into_iter().flat_map(|answer| {
        answer.subjects.into_iter().map(move |written| Entry {
            category: answer.category.clone(),
            subject: written.subject,
            style: answer.style,
            scenes: Scenes::Written(written.scenes),
        })
    });
    entries.collect()
}

fn by_template(spec: &PromptSpec, categories: &[Category], seed: u64) -> Vec<Entry> {
    let mut entries = Vec::new();
    for category in categories {
        for style in &spec.styles {
            let subjects = templates::subjects(category, *style, spec.subjects_per_category as usize, seed);
            entries.extend(subjects.into_iter().map(|subject| Entry {
                category: category.name.clone(),
                subject,
                style: *style,
                scenes: Scenes::ByTemplate {
                    kind: category.kind,
                    count: spec.scenes_per_subject.min(MAX_SCENES),
                },
            }));
        }
    }
    entries
}

fn read_subjects(list: &SubjectList, paths: &PathResolver) -> Result<Vec<String>, PromptError> {
    match list {
        SubjectList::List(list) => Ok(list.clone()),
        SubjectList::File(path) => {
            let text = read(path, taxonomy::MAX_BYTES, paths)?;
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
        }
    }
}

fn read(path: &str, most: usize, paths: &PathResolver) -> Result<String, PromptError> {
    use std::io::Read as _;
    let path = paths.resolve(path)?;
    let mut text = String::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(most as u64 + 1).read_to_string(&mut text))
        .map_err(|source| PromptError::Read { path: path.clone(), source })?;
    if text.len() > most {
        let path = path.display().to_string();
        return Err(PromptError::Taxonomy { path, reason: TaxonomyError::Large });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
