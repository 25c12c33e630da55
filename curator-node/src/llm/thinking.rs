//! What a model thought, taken out of what it said. Open models write it into the answer, between marks of their own, where
//! their server has no parser for it; some leave the opening mark out, because it stood in the prompt.

/// Marks between which models think.
const MARKS: &[(&str, &str)] = &[
    // DeepSeek R1, Qwen3, GLM and most others.
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    // Magistral.
    ("[THINK]", "[/THINK]"),
    // Kimi-VL.
    ("◁think▷", "◁/think▷"),
    // Seed-OSS.
    ("<seed:think>", "</seed:think>"),
];
/// Before the answer of gpt-oss, after what it thought.
const FINAL_CHANNEL: &str = "<|channel|>final<|message|>";

/// A text without what was thought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    pub text: String,
    /// The thinking did not end.
    pub thinks_still: bool,
}

/// Takes thinking out: whatever stands between marks, before a closing mark that was never opened, and behind an opening one
/// that is never closed.
pub fn taken_out(text: &str) -> Visible {
    if let Some((_, answer)) = text.rsplit_once(FINAL_CHANNEL) {
        let answer = answer.split("<|").next().unwrap_or_default();
        return Visible { text: answer.to_owned(), thinks_still: false };
    }
    let whole = Visible { text: text.to_owned(), thinks_still: false };
    MARKS.iter().fold(whole, |visible, (open, close)| {
        let Visible { text, thinks_still } = between(&visible.text, open, close);
        Visible { text, thinks_still: thinks_still || visible.thinks_still }
    })
}

fn between(text: &str, open: &str, close: &str) -> Visible {
    let mut kept = String::new();
    let mut rest = text;
    loop {
        let opened = rest.find(open);
        match (opened, rest.find(close)) {
            (None, None) => {
                kept.push_str(rest);
                return Visible { text: kept, thinks_still: false };
            }
            (Some(at), None) => {
                kept.push_str(rest.get(..at).unwrap_or_default());
                return Visible { text: kept, thinks_still: true };
            }
            (opened, Some(closed)) => {
                match opened.filter(|at| *at < closed) {
                    Some(at) => kept.push_str(rest.get(..at).unwrap_or_default()),
                    // All before it was thought.
                    None => kept.clear(),
                }
                rest = rest.get(closed + close.len()..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn thinking_is_taken_out_wherever_it_stands() {
        let text = |said: &str| taken_out(said).text;
        assert_eq!(text("<think>\nperhaps 3? {\"x\": 1}\n</think>\n\nfour"), "\n\nfour");
        assert_eq!(text("perhaps 3?</think>four"), "four");
        assert_eq!(text("<think>a</think>b</think>four"), "four");
        assert_eq!(text("Well. <think>a</think>four <think>b</think>"), "Well. four ");
        assert_eq!(text("[THINK]a[/THINK]four"), "four");
        assert_eq!(text("◁think▷a◁/think▷four"), "four");
        let harmony = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>";
        assert_eq!(text(harmony), "four");
        assert_eq!(text("1 < 2 and a thinker"), "1 < 2 and a thinker");
    }

    #[test]
    fn thinking_that_does_not_end_is_told() {
        let cut = taken_out("<think>hm hm");
        assert_eq!(cut, Visible { text: String::new(), thinks_still: true });
        assert!(!taken_out("<think>hm</think>").thinks_still);
    }

    proptest! {
        #[test]
        fn no_mark_is_left(parts in proptest::collection::vec(0..4u8, 0..20)) {
            let said: String = parts.iter().map(|part| ["<think>", "</think>", "x", "y"][usize::from(*part)]).collect();
            let visible = taken_out(&said);
            prop_assert!(!visible.text.contains("<think>") && !visible.text.contains("</think>"));
        }
    }
}
