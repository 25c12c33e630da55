//! What curation asks of other models.

use super::{Default, default_of, number, whole};
use crate::spec::reader::{Path, Reader, Section};
use crate::spec::types::*;

/// The endpoints of a job; none if there is no such list.
pub(super) fn endpoints(reader: &mut Reader, spec: Section<'_>, path: &Path) -> Vec<EndpointSpec> {
    let row = |name: &str| format!("spec.endpoints[].{name}");
    let sections = reader.sections(spec, path);
    sections
        .into_iter()
        .map(|(path, section)| EndpointSpec {
            name: reader.name(section, &path.field("name")).unwrap_or_default(),
            url: reader.text(section, &path.field("url")).unwrap_or_default(),
            model: reader.text(section, &path.field("model")).unwrap_or_default(),
            key: reader.name(section, &path.field("key")),
            concurrency: whole(reader, section, &path.field("concurrency"), &row("concurrency")),
            requests_per_minute: whole(
                reader,
                section,
                &path.field("requestsPerMinute"),
                &row("requestsPerMinute"),
            ),
            tokens_per_minute: whole(
                reader,
                section,
                &path.field("tokensPerMinute"),
                &row("tokensPerMinute"),
            ),
            timeout_seconds: number(reader, section, &path.field("timeoutSeconds"), &row("timeoutSeconds")),
            tries: whole(reader, section, &path.field("tries"), &row("tries")),
            max_tokens: whole(reader, section, &path.field("maxTokens"), &row("maxTokens")),
            input_price: number(reader, section, &path.field("inputPrice"), &row("inputPrice")),
            output_price: number(reader, section, &path.field("outputPrice"), &row("outputPrice")),
            spend_limit: reader.number(section, &path.field("spendLimit")),
        })
        .collect()
}

/// The judge of a stage, if it has one.
pub(super) fn judge(reader: &mut Reader, filter: Section<'_>, path: &Path) -> Option<JudgeFilter> {
    let section = reader.section(filter, path);
    if !reader.is_section_present(section) {
        return None;
    }
    let row = |name: &str| format!("spec.stages[].data.filter.judge.{name}");
    let (kind, least) = match reader.word(section, &path.field("kind")) {
        Some("clip") => {
            reader.check_variant(section, path, "kind: clip");
            let kind = JudgeKind::Clip {
                weights: reader.text(section, &path.field("weights")).unwrap_or_default(),
                tokenizer: reader.text(section, &path.field("tokenizer")).unwrap_or_default(),
                likeness: pair(reader, section, &path.field("likeness"), &row("likeness")),
                agreement: pair(reader, section, &path.field("agreement"), &row("agreement")),
            };
            (kind, 3.0)
        }
        _ => {
            reader.check_variant(section, path, "kind: endpoint");
            let kind = JudgeKind::Endpoint {
                endpoint: reader.name(section, &path.field("endpoint")).unwrap_or_default(),
                retries: whole(reader, section, &path.field("retries"), &row("retries")),
                image_side: whole(reader, section, &path.field("imageSide"), &row("imageSide")),
            };
            (kind, 4.0)
        }
    };
    let min = reader.number(section, &path.field("min")).unwrap_or(least);
    Some(JudgeFilter { min, kind })
}

/// What is drawn, if anything is.
pub(super) fn prompts(reader: &mut Reader, data: Section<'_>, path: &Path) -> Option<PromptSpec> {
    let section = reader.section(data, path);
    if !reader.is_section_present(section) {
        return None;
    }
    let row = |name: &str| format!("spec.stages[].data.prompts.{name}");
    let subjects = reader.text_or_texts(section, &path.field("subjects"));
    let styles = reader.words(section, &path.field("styles"));
    let styles = PromptStyle::ALL
        .into_iter()
        .filter(|style| styles.as_ref().is_none_or(|given| given.contains(&style.word())))
        .collect();
    Some(PromptSpec {
        taxonomy: reader.text(section, &path.field("taxonomy")),
        subjects: subjects.map(|given| match given {
            Ok(file) => SubjectList::File(file),
            Err(list) => SubjectList::List(list),
        }),
        styles,
        subjects_per_category: whole(
            reader,
            section,
            &path.field("subjectsPerCategory"),
            &row("subjectsPerCategory"),
        ),
        scenes_per_subject: whole(reader, section, &path.field("scenesPerSubject"), &row("scenesPerSubject")),
        endpoint: reader.name(section, &path.field("endpoint")),
    })
}

fn pair(reader: &mut Reader, section: Section<'_>, path: &Path, row: &str) -> (f64, f64) {
    reader.pair(section, path).unwrap_or_else(|| match default_of(row) {
        Default::Pair(first, second) => (first, second),
        other => unreachable!("the table has a pair as default of {row}, not {other}"),
    })
}
