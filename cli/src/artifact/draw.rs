//! Pure: what a person is told at the end of a job, with a command that draws with what was trained.

use std::fmt::Write as _;

use crescendo_core::spec::{ModelPreset, Positions, StageSpec};

/// What was trained, where it is, and how to draw with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub job: String,
    pub stage: String,
    pub step: u64,
    /// An adapter, or else all weights of the network.
    pub is_lora: bool,
    /// Where it lies on this machine, if it does.
    pub at: Option<String>,
    /// The cluster is there for `crescendo cp` still when this is read.
    pub cluster_stays: bool,
    /// The command, or why there is none.
    pub drawing: Result<Drawing, String>,
}

/// A `generate` command. Paths are as they are to be typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    pub preset: ModelPreset,
    pub weights: String,
    /// Folder of the other networks, where the preset needs any.
    pub model_dir: Option<String>,
    pub lora: Option<String>,
    pub references: Vec<String>,
    pub positions: Positions,
    /// Times the published offset.
    pub position_scale: f64,
    pub prompt: String,
    pub out: String,
}

/// Stands for a picture that only the reader has.
pub const OWN_PICTURE: &str = "PICTURE.png";

/// Name of a copy in the current folder.
pub fn copy_name(job: &str) -> String {
    format!("{job}.safetensors")
}

impl Ending {
    /// Some lines for a terminal, each command ready to be pasted. `program`: how this one is called.
    pub fn text(&self, program: &str) -> String {
        let Ending { job, stage, step, is_lora, at, cluster_stays, drawing } = self;
        let (what, it) = if *is_lora { ("LoRA", "it") } else { ("weights", "them") };
        let mut text = String::new();
        let mut say = |line: &str| {
            let _ = writeln!(text, "{line}");
        };
        match at {
            Some(path) => say(&format!("\n{what} of {stage}, step {step}:\n  {path}")),
            None => say(&format!("\nto fetch the {what} of {stage}, step {step}:")),
        }
        if at.is_some() && *cluster_stays {
            say(&format!("to copy {it} elsewhere:"));
        }
        if at.is_none() || *cluster_stays {
            say(&format!(
                "  {} cp {}:{} {}",
                quoted(program),
                quoted(job),
                quoted(stage),
                quoted(&copy_name(job))
            ));
        }
        match drawing {
            Ok(drawing) => {
                let own = drawing.references.iter().any(|reference| reference == OWN_PICTURE);
                let own = if own {
                    format!(", with a picture of your subject as {OWN_PICTURE}")
                } else {
                    String::new()
                };
                say(&format!("to draw with {it}{own}:\n{}", drawing.command(program)));
            }
            Err(why) => say(&format!("no command to draw with {it} here: {why}")),
        }
        text
    }
}

impl Drawing {
    /// The command over several lines, indented.
    fn command(&self, program: &str) -> String {
        let mut parts = vec![format!("  {} generate --preset {}", quoted(program), preset(self.preset))];
        let mut option = |name: &str, value: &str| parts.push(format!("--{name} {}", quoted(value)));
        option("weights", &self.weights);
        if let Some(folder) = &self.model_dir {
            option("model-dir", folder);
        }
        if let Some(lora) = &self.lora {
            option("lora", lora);
        }
        for reference in &self.references {
            option("reference", reference);
        }
        if let Some(word) = positions(self.positions) {
            option("positions", word);
        }
        if self.position_scale != 1.0 {
            option("position-scale", &self.position_scale.to_string());
        }
        option("prompt", &self.prompt);
        option("out", &self.out);
        parts.join(" \\\n    ")
    }
}

fn preset(preset: ModelPreset) -> &'static str {
    match preset {
        ModelPreset::FluxDev => "flux-dev",
        ModelPreset::FluxSchnell => "flux-schnell",
        ModelPreset::Nano => "nano",
    }
}

/// The word for where references lie, unless it is what `generate` does by itself.
fn positions(positions: Positions) -> Option<&'static str> {
    match positions {
        Positions::Diagonal => None,
        Positions::Height => Some("height"),
        Positions::Width => Some("width"),
        Positions::None => Some("none"),
        Positions::Frame => Some("frame"),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    // A control character would move the cursor; no file of ours has one in its name.
    let word: String = word.chars().filter(|c| !c.is_control()).collect();
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A prompt such as those that the stage was trained with. `words` are how captions call the subjects of its references;
/// fewer than it has references if they are not known.
pub fn prompt(stage: &StageSpec, words: &[String]) -> String {
    let count = stage.references as usize;
    let by_name = stage.data.source.library().is_some_and(|library| library.name_share >= 0.5);
    let named = by_name && words.len() >= count.max(1);
    let call = |index: usize| match words.get(index) {
        Some(words) if named => words.clone(),
        _ if count > 1 => format!("the {} subject", ORDINALS.get(index).copied().unwrap_or("other")),
        _ => "the subject".to_owned(),
    };
    match count {
        0 | 1 => format!("{} on plain blue, centre", call(0)),
        count => {
            let each: Vec<String> = (0..count)
                .map(|index| format!("{} {}", call(index), PLACES.get(index).copied().unwrap_or("centre")))
                .collect();
            format!("{}, on plain blue", each.join(" and "))
        }
    }
}

/// As captions count subjects, and places that do not overlap.
const ORDINALS: [&str; 8] = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];
const PLACES: [&str; 8] =
    ["left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"];

#[cfg(test)]
mod tests {
    use crescendo_core::spec;

    use super::*;

    fn stage(references: u32, data: &str) -> StageSpec {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: a}}\nspec:\n  model: {{preset: nano, weights: w.safetensors}}\n  \
             stages:\n    - {{name: s, references: {references}, data: {{{data}}}, train: {{adapter: {{rank: 4}}}}}}\n"
        );
        spec::parse(yaml.as_bytes()).unwrap().stages.remove(0)
    }

    #[test]
    fn prompts_are_of_the_kind_that_was_trained() {
        let compose = |share: f64| format!("source: compose, subjects: x, nameShare: {share}");
        let words = ["a red mug".to_owned(), "a toy car".to_owned()];
        assert_eq!(prompt(&stage(1, &compose(0.0)), &words), "the subject on plain blue, centre");
        assert_eq!(prompt(&stage(1, &compose(1.0)), &words), "a red mug on plain blue, centre");
        assert_eq!(prompt(&stage(1, &compose(1.0)), &[]), "the subject on plain blue, centre");
        assert_eq!(
            prompt(&stage(2, &compose(0.0)), &words),
            "the first subject left and the second subject right, on plain blue"
        );
        assert_eq!(
            prompt(&stage(2, &compose(1.0)), &words),
            "a red mug left and a toy car right, on plain blue"
        );
    }

    fn drawing() -> Drawing {
        Drawing {
            preset: ModelPreset::Nano,
            weights: "assets/nano/base.safetensors".into(),
            model_dir: None,
            lora: Some("objects/it's here/dit_lora.safetensors".into()),
            references: vec!["subjects/mug.png".into()],
            positions: Positions::Diagonal,
            position_scale: 1.0,
            prompt: "the subject on plain blue, centre".into(),
            out: "a-1.png".into(),
        }
    }

    #[test]
    fn the_end_of_a_job_is_commands_to_paste() {
        let ending = Ending {
            job: "a-1".into(),
            stage: "stage-2".into(),
            step: 200,
            is_lora: true,
            at: Some("objects/it's here/dit_lora.safetensors".into()),
            cluster_stays: true,
            drawing: Ok(drawing()),
        };
        assert_eq!(
            ending.text("crescendo"),
            "
LoRA of stage-2, step 200:
  objects/it's here/dit_lora.safetensors
to copy it elsewhere:
  crescendo cp a-1:stage-2 a-1.safetensors
to draw with it:
  crescendo generate --preset nano \\
    --weights assets/nano/base.safetensors \\
    --lora 'objects/it'\\''s here/dit_lora.safetensors' \\
    --reference subjects/mug.png \\
    --prompt 'the subject on plain blue, centre' \\
    --out a-1.png
"
        );
        let flux = Drawing {
            preset: ModelPreset::FluxDev,
            model_dir: Some("models/flux".into()),
            positions: Positions::Frame,
            position_scale: 2.0,
            references: vec![OWN_PICTURE.into()],
            ..drawing()
        };
        let from_a_path = ending.text("target/release/crescendo");
        assert!(from_a_path.contains("\n  target/release/crescendo generate --preset"), "{from_a_path}");
        let gone = Ending { cluster_stays: false, ..ending.clone() }.text("crescendo");
        assert!(!gone.contains("crescendo cp") && gone.contains("crescendo generate"), "{gone}");
        let text = Ending { at: None, drawing: Ok(flux), ..ending.clone() }.text("crescendo");
        assert!(text.starts_with("\nto fetch the LoRA of stage-2, step 200:\n  crescendo cp a-1"), "{text}");
        assert!(text.contains("to draw with it, with a picture of your subject as PICTURE.png:\n"), "{text}");
        assert!(text.contains("--model-dir models/flux") && text.contains("--positions frame"), "{text}");
        assert!(text.contains("--position-scale 2"), "{text}");
        let text = Ending { drawing: Err("the base is elsewhere".into()), ..ending }.text("crescendo");
        assert!(text.ends_with("no command to draw with it here: the base is elsewhere\n"), "{text}");
    }

    #[test]
    fn words_survive_a_shell() {
        for (word, expected) in [("a/b-1.png", "a/b-1.png"), ("", "''"), ("a b", "'a b'"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(quoted("a\u{1b}'b"), "'a'\\''b'");
    }
}
