//! Grids of pictures with headings and text, as one picture.

use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const GAP: u32 = 6;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 36, 48]);
const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;
const LINE: u32 = HEIGHT.val() as u32;
/// Headings have at most this many lines.
const HEADING_LINES: usize = 2;

/// What a cell of a grid holds.
pub enum Cell<'a> {
    Picture(&'a RgbImage),
    Text(&'a str),
}

/// Draws `rows` under `headings`; every cell is `cell` pixels wide and high, and every picture as large in it as its shape
/// lets it be. Pictures are enlarged without smoothing.
pub fn draw_grid(headings: &[&str], rows: &[Vec<Cell>], cell: u32) -> RgbImage {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(headings.len()) as u32;
    let fitting = (cell / character_width()) as usize;
    let lines = headings.iter().map(|heading| wrap(heading, fitting).len()).max().unwrap_or(0);
    let head = lines.min(HEADING_LINES) as u32 * LINE + GAP;
    let (width, height) = (GAP + columns * (cell + GAP), head + rows.len() as u32 * (cell + GAP));
    let mut grid = RgbImage::from_pixel(width, height, PAPER);
    let left = |column: usize| GAP + column as u32 * (cell + GAP);
    for (column, heading) in headings.iter().enumerate() {
        write_text(&mut grid, heading, left(column), GAP / 2, cell, head);
    }
    for (row, cells) in rows.iter().enumerate() {
        let top = head + row as u32 * (cell + GAP);
        for (column, content) in cells.iter().enumerate() {
            match content {
                Cell::Picture(picture) => lay(&mut grid, picture, left(column), top, cell),
                Cell::Text(text) => write_text(&mut grid, text, left(column), top, cell, cell),
            }
        }
    }
    grid
}

/// Pictures one below the other, each under its title.
pub fn stack(titled: &[(&str, RgbImage)]) -> RgbImage {
    const TITLE: u32 = LINE + 2 * GAP;
    let width = titled.iter().map(|(_, picture)| picture.width()).max().unwrap_or(1);
    let height: u32 = titled.iter().map(|(_, picture)| TITLE + picture.height()).sum();
    let mut all = RgbImage::from_pixel(width, height.max(1), PAPER);
    let mut top = 0;
    for (title, picture) in titled {
        write_text(&mut all, title, GAP, top + GAP, width.saturating_sub(2 * GAP), LINE);
        overlay(&mut all, picture, 0, i64::from(top + TITLE));
        top += TITLE + picture.height();
    }
    all
}

/// Puts a picture into the middle of a square.
fn lay(grid: &mut RgbImage, picture: &RgbImage, left: u32, top: u32, cell: u32) {
    let longer = u64::from(picture.width().max(picture.height()).max(1));
    let scaled = |side: u32| ((u64::from(side) * u64::from(cell) / longer) as u32).clamp(1, cell);
    let (width, height) = (scaled(picture.width()), scaled(picture.height()));
    let filter = if longer > u64::from(cell) { FilterType::CatmullRom } else { FilterType::Nearest };
    let fitted = resize(picture, width, height, filter);
    let (x, y) = (left + (cell - width) / 2, top + (cell - height) / 2);
    overlay(grid, &fitted, i64::from(x), i64::from(y));
}

fn character_width() -> u32 {
    get_raster_width(WEIGHT, HEIGHT) as u32
}

/// Writes `text`, wrapped at words, cut off below `height`. A character that the font lacks is a question mark.
fn write_text(grid: &mut RgbImage, text: &str, left: u32, top: u32, width: u32, height: u32) {
    let advance = character_width();
    for (i, line) in wrap(text, (width / advance) as usize).iter().enumerate() {
        let y = top + i as u32 * LINE;
        if y + LINE > top + height {
            break;
        }
        for (j, c) in line.chars().enumerate() {
            let drawn = get_raster(c, WEIGHT, HEIGHT).or_else(|| get_raster('?', WEIGHT, HEIGHT));
            let Some(drawn) = drawn else { continue };
            for (n, ink) in drawn.pixels().iter().enumerate() {
                let (dx, dy) = (n % drawn.width(), n / drawn.width());
                let (x, y) = (left + j as u32 * advance + dx as u32, y + dy as u32);
                if *ink > 0 && x < grid.width() && y < grid.height() {
                    blend(grid.get_pixel_mut(x, y), *ink);
                }
            }
        }
    }
}

/// Lays ink of this strength over a pixel.
fn blend(pixel: &mut Rgb<u8>, ink: u8) {
    for (channel, of_ink) in pixel.0.iter_mut().zip(INK.0) {
        let (under, over, share) = (u32::from(*channel), u32::from(of_ink), u32::from(ink));
        *channel = ((under * (255 - share) + over * share) / 255) as u8;
    }
}

/// Splits `text` into lines of at most `columns` characters; longer words are cut.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let cut = |word: &str| word.chars().take(columns).collect::<String>();
    fold(text.split_whitespace().map(cut), columns)
}

/// Lines of at most `columns` characters; a word that is longer has its own.
pub fn fold(words: impl Iterator<Item = String>, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
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
        let rows = vec![vec![Cell::Picture(&picture), Cell::Text("x"), Cell::Text("")]];
        let grid = draw_grid(&["one", "two"], &rows, 32);
        let head = LINE + GAP;
        assert_eq!(grid.dimensions(), (GAP + 3 * (32 + GAP), head + 32 + GAP));
        assert_eq!(grid.get_pixel(GAP + 1, head + 1), &Rgb([1, 2, 3]));
    }

    #[test]
    fn a_picture_keeps_its_shape() {
        let wide = RgbImage::from_pixel(4, 2, Rgb([1, 2, 3]));
        let grid = draw_grid(&[], &[vec![Cell::Picture(&wide)]], 32);
        let coloured = grid.pixels().filter(|pixel| **pixel == Rgb([1, 2, 3])).count();
        assert_eq!(coloured, 32 * 16);
    }

    #[test]
    fn text_is_drawn_with_soft_edges_also_where_the_font_lacks_it() {
        let shades = |text: &str| {
            let grid = draw_grid(&[text], &[], 64);
            grid.pixels().map(|pixel| pixel.0[0]).collect::<std::collections::BTreeSet<u8>>()
        };
        assert!(shades("target").len() > 8, "{:?}", shades("target"));
        assert_eq!(shades("猫"), shades("?"));
        assert_eq!(shades("").len(), 1);
    }

    #[test]
    fn stacked_pictures_lie_below_each_other() {
        let picture = |shade| RgbImage::from_pixel(100, 10, Rgb([shade, 0, 0]));
        let all = stack(&[("a", picture(7)), ("b", picture(9))]);
        let title = LINE + 2 * GAP;
        assert_eq!(all.dimensions(), (100, 2 * (title + 10)));
        assert_eq!((all.get_pixel(99, title).0[0], all.get_pixel(99, 2 * title + 10).0[0]), (7, 9));
    }
}
