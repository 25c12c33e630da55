//! Keys and tokens in a spec: refused, since a spec is stored, shown and passed on.

use super::Problem;
use super::tree::{Node, Position, Value};
use crate::secret::{Mark, find, is_secret_name, redact};

/// Where keys belong.
const INSTEAD: &str = "a spec is stored and shown, so no key belongs in it: give an endpoint's key to the curators \
                       (CRESCENDO_ENDPOINT_<NAME>_KEY) and write its name in `key`, an object store's to the curators and \
                       trainers (AWS_SHARED_CREDENTIALS_FILE)";

/// Everything in the tree that is, or is called, a secret.
pub(super) fn problems(root: &Node) -> Vec<Problem> {
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found
}

/// The problems of secrets before those of others; what is said of the others quotes none.
pub(super) fn join(secrets: Vec<Problem>, others: Vec<Problem>) -> Vec<Problem> {
    let same = |other: &Problem| {
        secrets.iter().any(|secret| {
            secret.path == other.path || (secret.line, secret.column) == (other.line, other.column)
        })
    };
    let mut all: Vec<Problem> = others
        .into_iter()
        .filter(|other| !same(other))
        .map(|other| Problem {
            path: redact(&other.path).into_owned(),
            message: redact(&other.message).into_owned(),
            ..other
        })
        .collect();
    all.extend(secrets);
    all
}

fn walk(node: &Node, path: &str, found: &mut Vec<Problem>) {
    match &node.value {
        Value::Null | Value::Refused => {}
        Value::Scalar { text, .. } => {
            if let Some(mark) = find(text) {
                found.push(problem(node.at, path, mark));
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let dot = if path.is_empty() { "" } else { "." };
                let field = format!("{path}{dot}{}", redact(&entry.key));
                let holds = matches!(&entry.value.value, Value::Scalar { text, .. } if !text.is_empty());
                if let Some(mark) = find(&entry.key) {
                    found.push(problem(entry.key_at, &field, mark));
                } else if holds && is_secret_name(&entry.key) {
                    found.push(problem(entry.key_at, &field, Mark::Named));
                } else {
                    walk(&entry.value, &field, found);
                }
            }
        }
    }
}

fn problem(at: Position, path: &str, mark: Mark) -> Problem {
    let message = format!("is {mark}; {INSTEAD}");
    Problem { line: at.line, column: at.column, path: path.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use crate::spec;

    const KEY: &str = "sk-0123456789abcdefghijABCD";

    /// A spec with `KEY` in every place where someone might put one.
    #[test]
    fn a_secret_in_any_place_is_refused_and_not_repeated() {
        let whole = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: NAME, tenant: TENANT}\nspec:\n  model: {preset: nano, weights: WEIGHTS}\n  endpoints: [{name: vlm, url: URL, model: MODEL, key: KEYNAME}]\n  stages:\n    - name: STAGE\n      data: {source: compose, subjects: SUBJECTS, pairs: PAIRS}\n";
        let good = [
            ("NAME", "uno"),
            ("TENANT", "research"),
            ("WEIGHTS", "base.safetensors"),
            ("URL", "https://host/v1"),
            ("MODEL", "m"),
            ("KEYNAME", "vlm"),
            ("STAGE", "stage-1"),
            ("SUBJECTS", "lib"),
            ("PAIRS", "8"),
        ];
        let fill = |except: &str, with: &str| {
            good.iter().fold(whole.to_owned(), |text, (place, value)| {
                text.replacen(place, if *place == except { with } else { value }, 1)
            })
        };
        spec::parse(fill("", "").as_bytes()).expect("without a secret it is right");
        for (place, _) in good {
            for secret in
                [KEY.to_owned(), format!("\"https://u:{KEY}@h/x\""), format!("\"s3://b/x?token={KEY}\"")]
            {
                let problems = spec::parse(fill(place, &secret).as_bytes()).expect_err("refused");
                let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
                assert!(said.iter().any(|line| line.contains("no key belongs in it")), "{place}: {said:?}");
                assert!(!said.concat().contains(KEY), "{place}: {said:?}");
            }
        }
        for field in ["apiKey: x", "token: x", "aws_secret_access_key: x", &format!("{KEY}: x")] {
            let text = whole.replace("key: KEYNAME", field);
            let text = good.iter().fold(text, |text, (place, value)| text.replacen(place, value, 1));
            let problems = spec::parse(text.as_bytes()).expect_err("refused");
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert!(said.len() == 1 && said[0].contains("no key belongs in it"), "{field}: {said:?}");
            assert!(!said[0].contains(KEY));
        }
    }
}
