//! The text file that DreamBench comes with: which class each subject is of, and 25 prompts for objects and 25 for
//! living subjects.
//!
//! ```text
//! subject_name,class
//! backpack,backpack
//! dog2,dog
//!
//! Object Prompts
//! 'a {0} {1} in the jungle'.format(unique_token, class_token),
//!
//! Live Subject Prompts
//! 'a {0} {1} wearing a red hat'.format(unique_token, class_token),
//! ```

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// Classes whose prompts are those of living subjects.
const LIVE: [&str; 2] = ["cat", "dog"];

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptFile {
    /// Subject folder to class words.
    pub classes: BTreeMap<String, String>,
    /// Prompts with `{}` where the class words go.
    objects: Vec<String>,
    live: Vec<String>,
}

impl PromptFile {
    /// Reads the text; lines of another form are passed over, since headings and brackets vary.
    pub fn parse(text: &str) -> Result<Self> {
        let mut file = Self::default();
        let (mut in_table, mut in_live) = (false, false);
        for line in text.lines().map(str::trim) {
            let lower = line.to_lowercase();
            if let Some(prompt) = quoted(line) {
                in_table = false;
                let prompt = prompt.replace("{0} {1}", "{}").replace("{0}", "").replace("{1}", "{}");
                let prompts = if in_live { &mut file.live } else { &mut file.objects };
                prompts.push(prompt.split_whitespace().collect::<Vec<_>>().join(" "));
            } else if lower.starts_with("subject_name") {
                in_table = true;
            } else if lower.contains("prompt") && !line.contains('=') {
                in_table = false;
                in_live = lower.contains("live");
            } else if in_table && let Some((subject, class)) = line.split_once(',') {
                let (subject, class) = (subject.trim(), class.trim());
                ensure!(!subject.is_empty() && !class.is_empty(), "line {line:?} names no subject and class");
                file.classes.insert(subject.to_owned(), class.to_owned());
            }
        }
        ensure!(!file.classes.is_empty(), "it has no table of subjects and classes");
        ensure!(!file.objects.is_empty() || !file.live.is_empty(), "it has no prompts");
        Ok(file)
    }

    /// The prompts of a class, with its words in place.
    pub fn prompts(&self, class: &str) -> Vec<String> {
        let live = LIVE.contains(&class) && !self.live.is_empty() || self.objects.is_empty();
        let prompts = if live { &self.live } else { &self.objects };
        prompts.iter().map(|prompt| prompt.replace("{}", class)).collect()
    }
}

/// What stands between the quotes that a line starts with.
fn quoted(line: &str) -> Option<&str> {
    let quote = line.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let rest = &line[1..];
    Some(&rest[..rest.rfind(quote)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Classes\n\nsubject_name,class\nbackpack_dog,backpack\nbear_plushie,stuffed animal\ndog2,dog\n\n\
        Prompts\n\nObject Prompts\n\nprompt_list = [\n'a {0} {1} in the jungle'.format(unique_token, class_token),\n\
        'a {0} {1} with a city in the background'.format(unique_token, class_token),\n]\n\n\
        Live Subject Prompts\n\nprompt_list = [\n'a {0} {1} wearing a red hat'.format(unique_token, class_token),\n]\n";

    #[test]
    fn classes_take_their_own_prompts() -> Result<()> {
        let file = PromptFile::parse(TEXT)?;
        assert_eq!(file.classes["bear_plushie"], "stuffed animal");
        assert_eq!(
            file.prompts("stuffed animal"),
            ["a stuffed animal in the jungle", "a stuffed animal with a city in the background"]
        );
        assert_eq!(file.prompts("dog"), ["a dog wearing a red hat"]);
        Ok(())
    }

    #[test]
    fn a_text_without_table_or_prompts_is_refused() {
        for text in ["", "subject_name,class\na,b\n", "'a {0} {1}'", "subject_name,class\n,b\n'x'"] {
            assert!(PromptFile::parse(text).is_err(), "{text:?}");
        }
    }
}
