//! What curation asks of other models.

use super::{Writer, number, text, words};
use crate::spec::types::*;

pub(super) fn write_endpoints(out: &mut Writer, endpoints: &[EndpointSpec]) {
    if endpoints.is_empty() {
        return;
    }
    out.open(1, "endpoints");
    for endpoint in endpoints {
        let EndpointSpec {
            name,
            url,
            model,
            key,
            concurrency,
            requests_per_minute,
            tokens_per_minute,
            timeout_seconds,
            tries,
            max_tokens,
            input_price,
            output_price,
            spend_limit,
        } = endpoint;
        out.item(2, "name", text(name));
        out.line(3, "url", text(url));
        out.line(3, "model", text(model));
        if let Some(key) = key {
            out.line(3, "key", text(key));
        }
        out.line(3, "concurrency", concurrency);
        out.line(3, "requestsPerMinute", requests_per_minute);
        out.line(3, "tokensPerMinute", tokens_per_minute);
        out.line(3, "timeoutSeconds", number(*timeout_seconds));
        out.line(3, "tries", tries);
        out.line(3, "maxTokens", max_tokens);
        out.line(3, "inputPrice", number(*input_price));
        out.line(3, "outputPrice", number(*output_price));
        if let Some(limit) = spend_limit {
            out.line(3, "spendLimit", number(*limit));
        }
    }
}

pub(super) fn write_prompts(out: &mut Writer, prompts: &PromptSpec) {
    let PromptSpec { taxonomy, subjects, styles, subjects_per_category, scenes_per_subject, endpoint } =
        prompts;
    out.open(4, "prompts");
    if let Some(taxonomy) = taxonomy {
        out.line(5, "taxonomy", text(taxonomy));
    }
    match subjects {
        None => {}
        Some(SubjectList::File(file)) => out.line(5, "subjects", text(file)),
        Some(SubjectList::List(list)) => out.line(5, "subjects", words(list.iter().map(|word| text(word)))),
    }
    out.line(5, "styles", words(styles.iter().map(|style| style.word().to_owned())));
    out.line(5, "subjectsPerCategory", subjects_per_category);
    out.line(5, "scenesPerSubject", scenes_per_subject);
    if let Some(endpoint) = endpoint {
        out.line(5, "endpoint", text(endpoint));
    }
}

pub(super) fn write_judge(out: &mut Writer, judge: &JudgeFilter) {
    let JudgeFilter { min, kind } = judge;
    out.open(5, "judge");
    match kind {
        JudgeKind::Endpoint { endpoint, retries, image_side } => {
            out.line(6, "kind", "endpoint");
            out.line(6, "min", number(*min));
            out.line(6, "endpoint", text(endpoint));
            out.line(6, "retries", retries);
            out.line(6, "imageSide", image_side);
        }
        JudgeKind::Clip { weights, tokenizer, likeness, agreement } => {
            out.line(6, "kind", "clip");
            out.line(6, "min", number(*min));
            out.line(6, "weights", text(weights));
            out.line(6, "tokenizer", text(tokenizer));
            out.line(6, "likeness", limits(*likeness));
            out.line(6, "agreement", limits(*agreement));
        }
    }
}

fn limits((low, high): (f64, f64)) -> String {
    format!("[{}, {}]", number(low), number(high))
}
