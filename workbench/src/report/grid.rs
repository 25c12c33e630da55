//! The grid of pictures: one row a case, with its references, its prompt, and what each model draws.

use font8x8::UnicodeFonts as _;
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

const GAP: u32 = 4;
const GLYPH: u32 = 8;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 36, 48]);

/// What a cell of the grid holds.
pub enum Cell<'a> {
    Picture(&'a RgbImage),
    Text(&'a str),
    Empty,
}

/// Draws `rows` under `headings`; every cell is `cell` pixels wide and high. Pictures are enlarged without smoothing.
pub fn draw_grid(headings: &[&str], rows: &[Vec<Cell>], cell: u32) -> RgbImage {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(headings.len()) as u32;
    let head = 3 * GLYPH;
    let (width, height) = (GAP + columns * (cell + GAP), head + rows.len() as u32 * (cell + GAP));
    let mut grid = RgbImage::from_pixel(width, height, PAPER);
    let left = |column: usize| GAP + column as u32 * (cell + GAP);
    for (column, heading) in headings.iter().enumerate() {
        write_text(&mut grid, heading, left(column), GLYPH, cell, head - GLYPH);
    }
    for (row, cells) in rows.iter().enumerate() {
        let top = head + row as u32 * (cell + GAP);
        for (column, content) in cells.iter().enumerate() {
            match content {
                Cell::Picture(picture) => {
                    let enlarged = resize(*picture, cell, cell, FilterType::Nearest);
                    overlay(&mut grid, &enlarged, i64::from(left(column)), i64::from(top));
                }
                Cell::Text(text) => {
                    write_text(&mut grid, text, left(column), top + GLYPH, cell, cell - GLYPH)
                }
                Cell::Empty => {}
            }
        }
    }
    grid
}

/// Writes `text` in 8-pixel glyphs, wrapped at words, cut off below `height`.
fn write_text(grid: &mut RgbImage, text: &str, left: u32, top: u32, width: u32, height: u32) {
    let line_height = GLYPH + 2;
    for (i, line) in wrap(text, (width / GLYPH) as usize).iter().enumerate() {
        let y = top + i as u32 * line_height;
        if y + GLYPH > top + height {
            break;
        }
        for (j, c) in line.chars().enumerate() {
            let Some(rows) = font8x8::BASIC_FONTS.get(c) else { continue };
            for (dy, bits) in rows.iter().enumerate() {
                for dx in (0..GLYPH).filter(|dx| bits & (1 << dx) != 0) {
                    let (x, y) = (left + j as u32 * GLYPH + dx, y + dy as u32);
                    if x < grid.width() && y < grid.height() {
                        grid.put_pixel(x, y, INK);
                    }
                }
            }
        }
    }
}

/// Splits `text` into lines of at most `columns` characters; longer words are cut.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().take(columns).collect();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wrap_at_words_and_long_words_are_cut() {
        assert_eq!(wrap("a red apple on stripes", 11), ["a red apple", "on stripes"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc"]);
        assert!(wrap("", 3).is_empty());
    }

    #[test]
    fn the_grid_has_room_for_every_cell() {
        let picture = RgbImage::from_pixel(2, 2, Rgb([1, 2, 3]));
        let rows = vec![vec![Cell::Picture(&picture), Cell::Text("x"), Cell::Empty]];
        let grid = draw_grid(&["one", "two"], &rows, 32);
        assert_eq!(grid.dimensions(), (GAP + 3 * (32 + GAP), 3 * GLYPH + 32 + GAP));
        assert_eq!(grid.get_pixel(GAP + 1, 3 * GLYPH + 1), &Rgb([1, 2, 3]));
    }
}
