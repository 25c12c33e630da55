//! The report on a terminal, in 80 columns.

use std::fmt::Write as _;

use super::figures::{Figures, Table};
use super::grid::fold;

const COLUMNS: usize = 80;

/// Facts, scores, stages, notes.
pub fn render(figures: &Figures) -> String {
    let mut out = String::new();
    let facts = figures.facts();
    let name_width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    for (name, value) in &facts {
        push_wrapped(&mut out, &format!("{name:<name_width$}"), value);
    }
    for table in [figures.score_table(), figures.part_table(), figures.stage_table()] {
        if !table.rows.is_empty() {
            out.push('\n');
            push_table(&mut out, &table);
        }
    }
    for (n, note) in figures.all_notes().iter().enumerate() {
        if n == 0 {
            out.push('\n');
        }
        push_wrapped(&mut out, "note: ", note);
    }
    out
}

/// `text` after `lead`, further lines under its beginning. A word that is longer than a line, a path say, stays whole.
fn push_wrapped(out: &mut String, lead: &str, text: &str) {
    let room = COLUMNS.saturating_sub(lead.chars().count());
    let words = text.split_whitespace().map(str::to_owned);
    for (n, line) in fold(words, room).iter().enumerate() {
        let before = if n == 0 { lead.to_owned() } else { " ".repeat(lead.chars().count()) };
        let _ = writeln!(out, "{before}{line}");
    }
}

/// Columns as wide as what is in them; the first is left-aligned, numbers are right-aligned.
fn push_table(out: &mut String, table: &Table) {
    let width = |column: usize| {
        let cells = table.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).chain([table.headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.headings.len()).map(width).collect();
    let headings: Vec<String> = table.headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(&table.rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 || !is_number(table, column) {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// Whether every cell of a column begins with a digit.
fn is_number(table: &Table, column: usize) -> bool {
    let cells = table.rows.iter().filter_map(|row| row.get(column));
    cells.filter(|cell| !cell.is_empty()).all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figures::tests::figures;

    #[test]
    fn everything_fits_in_eighty_columns_and_words_stay_whole() {
        let mut figures = figures();
        let words = "a sentence that is much longer than a terminal is wide and has to be continued below";
        figures.notes = vec![words.to_owned()];
        for score in &mut figures.scores {
            score.model = "stage-1, each of three subjects".into();
        }
        let text = render(&figures);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(joined.contains(words), "{text}");
    }

    #[test]
    fn a_path_is_not_cut() {
        let mut figures = figures();
        let path = format!("/{}/dit_lora.safetensors", "long/".repeat(20));
        figures.trained = Some(path.clone());
        assert!(render(&figures).contains(&path));
    }
}
