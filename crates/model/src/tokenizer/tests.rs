//! The rules on small vocabularies.

use super::*;

/// Words of the vocabulary of [`t5_json`] beside the special ones.
const WORDS: [&str; 4] = ["a", "red", "apple", "pear"];

/// A tokenizer with T5's special tokens over whole words: `<pad>` 0, `</s>` 1, `<unk>` 2, then [`WORDS`].
pub(crate) fn t5_json() -> Value {
    let mut vocab = json!({"<pad>": 0, "</s>": 1, "<unk>": 2});
    for (id, word) in WORDS.iter().enumerate() {
        vocab[*word] = json!(id + 3);
    }
    json!({
        "version": "1.0",
        // A file's own truncation, padding and template must not matter.
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<unk>",
        },
        "added_tokens": [special("<pad>", 0), special("</s>", 1), special("<unk>", 2)],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

fn special(token: &str, id: u32) -> Value {
    json!({
        "id": id, "content": token, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// Writes CLIP's older form into `folder`: pieces of "a cat" and "é", 98 and 99 around the text.
pub(crate) fn write_clip_files(folder: &Path) {
    let vocab = json!({
        "a": 0, "c": 1, "t": 2, "a</w>": 3, "c</w>": 4, "t</w>": 5, "ca": 6, "cat</w>": 7, "Ã": 8, "©</w>": 9,
        "1</w>": 10, "!</w>": 11, "'s</w>": 12, "'": 13, "s</w>": 14,
        "<|startoftext|>": 98, "<|endoftext|>": 99,
    });
    std::fs::write(folder.join("vocab.json"), vocab.to_string()).unwrap();
    std::fs::write(folder.join("merges.txt"), "#version: 0.2\nc a\nca t</w>\n' s</w>\n").unwrap();
}

fn t5(max_length: usize) -> PromptTokenizer {
    let rule = TokenRule { max_length, ..TokenRule::t5() };
    PromptTokenizer::from_bytes(t5_json().to_string().as_bytes(), Path::new("t.json"), &rule).unwrap()
}

fn clip(max_length: usize) -> PromptTokenizer {
    let folder = tempfile::tempdir().unwrap();
    write_clip_files(folder.path());
    PromptTokenizer::load(folder.path(), &TokenRule { max_length, ..TokenRule::clip() }).unwrap()
}

#[test]
fn t5_ends_the_text_and_pads_with_zeros_whatever_its_file_says() {
    let tokenizer = t5(6);
    for (prompt, expected) in [
        ("", [1, 0, 0, 0, 0, 0]),
        ("  \n", [1, 0, 0, 0, 0, 0]),
        ("a red apple", [3, 4, 5, 1, 0, 0]),
        ("a blue apple", [3, 2, 5, 1, 0, 0]),
        ("a red apple a pear", [3, 4, 5, 3, 6, 1]),
        ("a red apple a pear a pear", [3, 4, 5, 3, 6, 1]),
        ("a</s>red", [3, 1, 4, 1, 0, 0]),
    ] {
        assert_eq!(tokenizer.ids(prompt).unwrap(), expected, "{prompt:?}");
    }
    assert_eq!(tokenizer.largest_id(), 6);
    let published = t5(TokenRule::t5().max_length);
    assert_eq!(published.encode(&["a", ""]).unwrap().size(), [2, 512]);
}

#[test]
fn clip_surrounds_the_text_and_pads_with_its_end() {
    let tokenizer = clip(8);
    for (prompt, expected) in [
        ("", [98, 99, 99, 99, 99, 99, 99, 99]),
        ("a cat", [98, 3, 7, 99, 99, 99, 99, 99]),
        (" A \t CAT", [98, 3, 7, 99, 99, 99, 99, 99]),
        ("cat's", [98, 7, 12, 99, 99, 99, 99, 99]),
        // Each digit is a word; bytes without a piece are the end token, as published.
        ("11!", [98, 10, 10, 11, 99, 99, 99, 99]),
        // One letter, two bytes, in either way of writing it.
        ("\u{e9}", [98, 8, 9, 99, 99, 99, 99, 99]),
        ("e\u{301}", [98, 8, 9, 99, 99, 99, 99, 99]),
        ("a a a a a a", [98, 3, 3, 3, 3, 3, 3, 99]),
        ("a a a a a a cat", [98, 3, 3, 3, 3, 3, 3, 99]),
    ] {
        assert_eq!(tokenizer.ids(prompt).unwrap(), expected, "{prompt:?}");
    }
    assert_eq!(tokenizer.largest_id(), 99);
}

#[test]
fn prompts_of_ten_thousand_tokens_are_cut_and_monsters_refused() {
    let long = "a red ".repeat(5000);
    let ids = t5(512).ids(&long).unwrap();
    assert_eq!((ids.len(), &ids[..2], &ids[509..]), (512, &[3i64, 4][..], &[4i64, 3, 1][..]));
    let ids = clip(77).ids(&"cat ".repeat(10_000)).unwrap();
    assert_eq!((ids.len(), ids[0], ids[75], ids[76]), (77, 98, 7, 99));
    // One word without a space.
    assert_eq!(clip(77).ids(&"cat".repeat(10_000)).unwrap().len(), 77);
    let error = t5(6).ids(&"a".repeat(MAX_PROMPT_BYTES + 1)).unwrap_err().to_string();
    assert!(error.contains("prompt") && error.contains("bytes"), "{error}");
}

#[test]
fn batches_are_rows_in_order() {
    let tokenizer = t5(4);
    let ids = tokenizer.encode(&["a", "", "red apple"]).unwrap();
    assert_eq!((ids.size(), ids.kind()), (vec![3, 4], Kind::Int64));
    let rows = Vec::<i64>::try_from(ids.view([-1])).unwrap();
    assert_eq!(rows, [3, 1, 0, 0, 1, 0, 0, 0, 4, 5, 1, 0]);
    assert_eq!(tokenizer.encode(&[]).unwrap().size(), [0, 4]);
}

#[test]
fn a_whole_file_and_the_older_form_agree() {
    let folder = tempfile::tempdir().unwrap();
    write_clip_files(folder.path());
    let whole = clip_tokenizer(&folder.path().join("vocab.json"), &folder.path().join("merges.txt")).unwrap();
    // The published whole file has pairs as words with a space between.
    let mut published = whole;
    published["model"]["merges"] = json!(["c a", "ca t</w>", "' s</w>"]);
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("tokenizer.json"), published.to_string()).unwrap();
    let rule = TokenRule { max_length: 8, ..TokenRule::clip() };
    let from_whole = PromptTokenizer::load(other.path(), &rule).unwrap();
    for prompt in ["a cat's cat", "11! a", ""] {
        assert_eq!(from_whole.ids(prompt).unwrap(), clip(8).ids(prompt).unwrap(), "{prompt}");
    }
}

#[test]
fn files_that_are_no_tokenizer_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let reason = |rule: &TokenRule| PromptTokenizer::load(folder.path(), rule).unwrap_err().to_string();
    assert!(reason(&TokenRule::t5()).contains("vocab.json"), "{}", reason(&TokenRule::t5()));
    for damage in ["", "{", "[]", "{\"model\": {\"type\": \"BPE\"}}", "\u{0}"] {
        std::fs::write(&path, damage).unwrap();
        assert!(reason(&TokenRule::t5()).contains("tokenizer.json"), "{damage}");
    }
    let mut broken = t5_json();
    broken["model"] = json!({"type": "Unigram", "unk_id": 9, "vocab": []});
    std::fs::write(&path, broken.to_string()).unwrap();
    assert!(reason(&TokenRule::t5()).contains("tokenizer.json"));
    std::fs::write(&path, t5_json().to_string()).unwrap();
    assert!(reason(&TokenRule::clip()).contains("startoftext"));
    let short = TokenRule { max_length: 1, ..TokenRule::t5() };
    assert!(reason(&short).contains("max_length"));
    std::fs::remove_file(&path).unwrap();
    write_clip_files(folder.path());
    std::fs::write(folder.path().join("merges.txt"), "ab\n").unwrap();
    assert!(reason(&TokenRule::clip()).contains("merges.txt"));
    std::fs::write(folder.path().join("merges.txt"), "c zebra\n").unwrap();
    assert!(reason(&TokenRule::clip()).contains("vocab.json"));
}
