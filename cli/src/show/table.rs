//! Aligned columns.

use std::fmt;

use super::words;

/// Rows below headings; each column is as wide as its widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// A table of as many columns as there are headings, which come from outside.
    pub fn of(headings: impl IntoIterator<Item = String>) -> Table {
        let mut table = Table { rows: Vec::new() };
        table.cells(headings);
        table
    }

    pub fn cells(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| words::one_line(&cell)).collect());
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.cells(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "N"]);
        table.row(["a".into(), "10".into()]);
        table.row(["längeres\nx".into(), "2".into()]);
        assert_eq!(table.to_string(), "NAME        N\na           10\nlängeres x  2\n");
    }
}
