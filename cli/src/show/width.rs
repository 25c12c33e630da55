//! Text arranged to the columns of a terminal: nothing is broken in mid-word.

use console::{Term, measure_text_width};

/// Columns of the terminal that standard output is; `None` if it is none.
pub fn of_stdout() -> Option<usize> {
    columns(&Term::stdout())
}

/// The same of standard error.
pub fn of_stderr() -> Option<usize> {
    columns(&Term::stderr())
}

fn columns(terminal: &Term) -> Option<usize> {
    terminal.size_checked().map(|(_, columns)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// The text in at most `width` columns: cut behind a word, which `…` tells.
pub fn cut(text: &str, width: usize) -> String {
    if measure_text_width(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for word in text.split_inclusive(' ') {
        // The sign takes the place of what ends the last word.
        if measure_text_width(&kept) + measure_text_width(word.trim_end()) + 1 > width {
            break;
        }
        kept.push_str(word);
    }
    let kept = kept.trim_end_matches([' ', ',', ';', ':']);
    if !kept.is_empty() {
        return format!("{kept}…");
    }
    // Not even one word has room: there is no better place.
    let mut kept = String::new();
    for c in text.chars() {
        if measure_text_width(&kept) + measure_text_width(c.encode_utf8(&mut [0; 4])) + 1 > width {
            break;
        }
        kept.push(c);
    }
    if width == 0 { String::new() } else { format!("{kept}…") }
}

/// As many of the parts as have room in `width` columns, the first ones first, with commas between them.
pub fn fit(parts: &[String], width: usize) -> String {
    let mut line = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if line.is_empty() {
            line = cut(part, width);
        } else if measure_text_width(&line) + 2 + measure_text_width(part) <= width {
            line.push_str(", ");
            line.push_str(part);
        }
    }
    line
}

/// The text as lines of at most `width` columns, those after the first indented. A word that is longer than a line, such as a
/// path, stays whole: it can be copied.
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut words = 0;
    for word in text.split(' ') {
        if words > 0 && measure_text_width(&line) + 1 + measure_text_width(word) > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            words = 0;
        }
        if words > 0 {
            line.push(' ');
        }
        line.push_str(word);
        words += 1;
    }
    lines.push(line);
    lines
}

/// [`wrap`] of each line of a text, if there is a width to wrap it to.
pub fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let Some(width) = width else { return text.to_owned() };
    let lines = text.split('\n').flat_map(|line| {
        let own = line.len() - line.trim_start().len();
        wrap(line, width, own + indent)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_ends_behind_a_word() {
        assert_eq!(cut("waits for pairs", 15), "waits for pairs");
        assert_eq!(cut("waits for pairs, all of them", 27), "waits for pairs, all of…");
        assert_eq!(cut("waits for pairs, all of them", 17), "waits for pairs…");
        assert_eq!(cut("unbreakable", 6), "unbre…");
        assert_eq!((cut("ab", 1), cut("ab", 0)), ("…".to_owned(), String::new()));
        // Two columns each.
        assert_eq!(cut("子狗子狗", 5), "子狗…");
    }

    #[test]
    fn parts_without_room_are_left_out() {
        let parts = ["7/9 pairs", "37 of 64 drawn", "", "3 a minute"].map(str::to_owned);
        assert_eq!(fit(&parts, 80), "7/9 pairs, 37 of 64 drawn, 3 a minute");
        assert_eq!(fit(&parts, 24), "7/9 pairs, 3 a minute");
        assert_eq!(fit(&parts, 8), "7/9…");
    }

    #[test]
    fn lines_break_between_words_and_paths_stay_whole() {
        let text = "job uno-1 failed: cannot read /library/of/a/very/long/name/index.json: not there";
        let lines = wrap(text, 30, 2);
        assert_eq!(
            lines,
            ["job uno-1 failed: cannot read", "  /library/of/a/very/long/name/index.json:", "  not there"]
        );
        assert_eq!(wrapped("a\n  - one two", Some(8), 2), "a\n  - one\n    two");
        assert_eq!(wrapped("one two", None, 0), "one two");
    }
}
