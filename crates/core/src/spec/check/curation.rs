//! Endpoints, and what refers to them.

use super::Found;
use crate::spec::types::*;

/// The job's endpoints themselves.
pub(super) fn endpoints(found: &mut Found, spec: &JobSpec) {
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = |field: &str| format!("spec.endpoints[{index}].{field}");
        let before = spec.endpoints.iter().take(index).position(|other| other.name == endpoint.name);
        if let Some(first) = before {
            let message = format!("`{}` is the name of endpoints[{first}] already", endpoint.name);
            found.add(at("name"), &[&format!("spec.endpoints[{first}].name")], message);
        }
        if let Err(reason) = check_url(&endpoint.url) {
            found.add(at("url"), &[], reason.to_owned());
        }
        if endpoint.spend_limit.is_some() && endpoint.input_price == 0.0 && endpoint.output_price == 0.0 {
            let message = "without prices nothing is spent: set inputPrice and outputPrice".into();
            found.add(at("spendLimit"), &[&at("inputPrice"), &at("outputPrice")], message);
        }
    }
}

/// Whether requests can go below this address. Names and passwords in it would end up in logs.
fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .ok_or("must begin with https:// or http://")?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        Err("names no host")
    } else if host.contains('@') {
        Err("must not hold a name or a password; set `key`")
    } else if url.contains(['?', '#', '\\']) || url.contains(char::is_whitespace) {
        Err("must be a plain address without `?`, `#`, `\\` and spaces")
    } else {
        Ok(())
    }
}

/// What stage refers to.
pub(super) fn stage(found: &mut Found, spec: &JobSpec, stage: &StageSpec, at: &impl Fn(&str) -> String) {
    if let Some(prompts) = &stage.data.prompts {
        if prompts.taxonomy.is_some() && prompts.subjects.is_some() {
            let message = "subjects are taken as they are; give them or a taxonomy, not both".into();
            found.add(at("data.prompts.subjects"), &[&at("data.prompts.taxonomy")], message);
        }
        if let Some(name) = &prompts.endpoint {
            known(found, spec, name, at("data.prompts.endpoint"));
        }
    }
    let Some(JudgeFilter { min: _, kind }) = &stage.data.filter.judge else { return };
    if stage.references == 0 {
        let message = "the judge compares the target with its references, and the stage has none".into();
        found.add(at("data.filter.judge"), &[&at("references")], message);
    }
    match kind {
        JudgeKind::Endpoint { endpoint, .. } => {
            known(found, spec, endpoint, at("data.filter.judge.endpoint"));
        }
        JudgeKind::Clip { likeness, agreement, .. } => {
            for (name, (low, high)) in [("likeness", likeness), ("agreement", agreement)] {
                if low >= high {
                    let message = format!("{low} scores 0 and {high} scores 4: the first has to be less");
                    found.add(at(&format!("data.filter.judge.{name}")), &[], message);
                }
            }
        }
    }
}

fn known(found: &mut Found, spec: &JobSpec, name: &str, path: String) {
    if spec.endpoints.iter().any(|endpoint| endpoint.name == name) {
        return;
    }
    let names = spec.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "there are none".to_owned() } else { format!("there are: {names}") };
    found.add(path, &["spec.endpoints"], format!("spec.endpoints has no `{name}`; {names}"));
}
