//! Where the border between the two panels of a drawn picture lies.
//!
//! A drawing model that is asked for two panels puts the border where it likes, so it is looked for: a straight line over
//! the whole height (or width) on which the picture jumps. Each row says for itself whether it jumps at a column: by at
//! least [`MIN_STEP`], and by [`MIN_RATIO`] times what it changes nearby, so that texture has no say. A column at which
//! [`MIN_SHARE`] of the rows jump is a line. The published system uses a Hough transform here (UNO paper, section 3.2,
//! which gives no parameters); panels stand upright, so the two directions that matter are enough, and the share of
//! jumping rows is what a Hough transform would count for them.
//!
//! Steps are measured between the means of `reach` pixels on both sides, from 1 pixel up to a 64th of the side: a soft
//! border only shows at a longer reach. The shortest reach that shows a line decides.

use image::{Rgb, RgbImage};

/// Plausible places of the border, as shares of the side: outside of it one panel is of no use.
pub const PLAUSIBLE: (f32, f32) = (0.35, 0.65);
/// Least jump across a border, of 255, in the colour channel that jumps most.
pub const MIN_STEP: f32 = 14.0;
/// Least jump, in mean steps of the same row nearby.
pub const MIN_RATIO: f32 = 3.0;
/// Least share of rows that jump. Less than all: a panel's background may have the colour of the other's here and there.
pub const MIN_SHARE: f32 = 0.72;
/// A line outside the plausible places counts as a second border from this share on; inside it, from [`MIN_SHARE`].
const MIN_SHARE_OUTSIDE: f32 = 0.9;
/// A line whose jump is less than this share of the strongest one's is part of a scene.
const RIVAL_STRENGTH: f32 = 0.5;
/// Widest gutter between panels, as a share of the side; two lines within it are its two edges.
const WIDEST_GUTTER: f32 = 0.04;
/// Sides shorter than this have no room for two panels, pixels.
const MIN_SIDE: u32 = 16;

/// How the panels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arrangement {
    SideBySide,
    /// One above the other.
    Stacked,
}

/// The border: pixels from `first_end` up to `second_start` belong to neither panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// First column (or row) behind the first panel.
    pub first_end: u32,
    /// First column (or row) of the second panel.
    pub second_start: u32,
}

/// Why there is no border to split at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PanelSplitError {
    #[error("there is no border between panels")]
    None,
    #[error("there is more than one border")]
    Several,
}

/// A straight line on which the picture jumps.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// It runs before this column.
    at: usize,
    /// First and last of the columns around `at` at which enough rows jump: more than one where the edge is soft.
    span: (usize, usize),
    share: f32,
    /// Mean jump of the rows that jump, of 255.
    strength: f32,
}

/// Finds the border of a picture whose panels are arranged as said.
pub fn find(picture: &RgbImage, arrangement: Arrangement) -> Result<Split, PanelSplitError> {
    match arrangement {
        Arrangement::SideBySide => find_upright(picture),
        Arrangement::Stacked => {
            find_upright(&image::imageops::rotate90(&image::imageops::flip_vertical(picture)))
        }
    }
}

/// The two panels, without what lies between them.
pub fn panels(picture: &RgbImage, arrangement: Arrangement, split: Split) -> [RgbImage; 2] {
    let (width, height) = picture.dimensions();
    let cut = |x, y, w, h| image::imageops::crop_imm(picture, x, y, w, h).to_image();
    let Split { first_end, second_start } = split;
    match arrangement {
        Arrangement::SideBySide => {
            [cut(0, 0, first_end, height), cut(second_start, 0, width.saturating_sub(second_start), height)]
        }
        Arrangement::Stacked => {
            [cut(0, 0, width, first_end), cut(0, second_start, width, height.saturating_sub(second_start))]
        }
    }
}

fn find_upright(picture: &RgbImage) -> Result<Split, PanelSplitError> {
    let (width, height) = picture.dimensions();
    if width < MIN_SIDE || height < MIN_SIDE / 2 {
        return Err(PanelSplitError::None);
    }
    let sums = RowSums::of(picture);
    let mut reach = 1;
    while reach == 1 || reach <= width as usize / 64 {
        let lines = lines(&sums, reach);
        let found = judge(&lines, width as usize, reach);
        if found != Err(PanelSplitError::None) {
            return found;
        }
        reach *= 2;
    }
    Err(PanelSplitError::None)
}

/// One border, none or several, from all lines of a picture.
fn judge(lines: &[Line], width: usize, reach: usize) -> Result<Split, PanelSplitError> {
    let (low, high) = (PLAUSIBLE.0 * width as f32, PLAUSIBLE.1 * width as f32);
    let inside = |line: &Line| (low..=high).contains(&(line.at as f32));
    let gutter = ((WIDEST_GUTTER * width as f32) as usize).max(2).max(2 * reach);
    // Lines close to each other are the edges of one gutter, or one soft edge.
    let mut borders: Vec<Vec<Line>> = Vec::new();
    for line in lines {
        match borders.last_mut() {
            Some(border) if border.first().is_some_and(|first| line.at - first.at <= gutter) => {
                border.push(*line)
            }
            _ => borders.push(vec![*line]),
        }
    }
    let strength = |border: &[Line]| border.iter().map(|line| line.strength).fold(0.0, f32::max);
    let share = |border: &[Line]| border.iter().map(|line| line.share).fold(0.0, f32::max);
    let best = borders
        .iter()
        .filter(|border| border.iter().all(inside))
        .max_by(|a, b| strength(a).total_cmp(&strength(b)))
        .ok_or(PanelSplitError::None)?;
    let rivals = borders.iter().filter(|border| {
        let needed = if border.iter().all(inside) { MIN_SHARE } else { MIN_SHARE_OUTSIDE };
        share(border) >= needed && strength(border) >= RIVAL_STRENGTH * strength(best)
    });
    if rivals.count() > 1 {
        return Err(PanelSplitError::Several);
    }
    let (first, last) = best.first().zip(best.last()).ok_or(PanelSplitError::None)?;
    Ok(Split { first_end: first.span.0 as u32, second_start: last.span.1 as u32 })
}

/// Columns at which enough rows jump, and more than at their neighbours; from left to right.
fn lines(sums: &RowSums, reach: usize) -> Vec<Line> {
    let (width, height) = (sums.width, sums.height);
    let around = (width / 16).max(4).max(4 * reach);
    let (mut votes, mut jumps) = (vec![0u32; width], vec![0f32; width]);
    let mut steps = vec![0f32; width];
    let mut summed = vec![0f64; width + 1];
    for y in 0..height {
        for (x, step) in steps.iter_mut().enumerate() {
            *step = if x >= reach && x + reach <= width { sums.step(y, x, reach) } else { 0.0 };
        }
        for (x, step) in steps.iter().enumerate() {
            summed[x + 1] = summed[x] + f64::from(*step);
        }
        for (x, step) in steps.iter().enumerate().skip(reach) {
            if *step < MIN_STEP {
                continue;
            }
            // The jump itself, and what a border one pixel wide adds beside it, are not what is nearby.
            let (low, high) = (x.saturating_sub(around), (x + around + 1).min(width));
            let (own_low, own_high) = (x.saturating_sub(2 * reach).max(low), (x + 2 * reach + 1).min(high));
            let outside = (summed[high] - summed[low]) - (summed[own_high] - summed[own_low]);
            let count = (high - low) - (own_high - own_low);
            let nearby = if count == 0 { 0.0 } else { (outside / count as f64) as f32 };
            if *step >= MIN_RATIO * nearby {
                votes[x] += 1;
                jumps[x] += *step;
            }
        }
    }
    let share = |x: usize| votes[x] as f32 / height as f32;
    (reach..width.saturating_sub(reach).max(reach))
        .filter(|x| share(*x) >= MIN_SHARE)
        .filter(|x| {
            let better = |other: usize| jumps[other] > jumps[*x] || (jumps[other] == jumps[*x] && other < *x);
            !(x.saturating_sub(reach)..=(x + reach).min(width - 1)).any(|other| other != *x && better(other))
        })
        .map(|x| {
            let along = |other: &usize| share(*other) >= MIN_SHARE;
            let span = (
                (reach..x).rev().take_while(along).last().unwrap_or(x),
                (x + 1..width).take_while(along).last().unwrap_or(x),
            );
            Line { at: x, span, share: share(x), strength: jumps[x] / votes[x].max(1) as f32 }
        })
        .collect()
}

/// Sums of each row's colours up to a column.
struct RowSums {
    width: usize,
    height: usize,
    /// `[height, width + 1]`.
    sums: Vec<[u32; 3]>,
}

impl RowSums {
    fn of(picture: &RgbImage) -> RowSums {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let mut sums = Vec::with_capacity(height * (width + 1));
        for row in picture.rows() {
            let mut total = [0u32; 3];
            sums.push(total);
            for Rgb(colour) in row {
                for (sum, value) in total.iter_mut().zip(colour) {
                    *sum += u32::from(*value);
                }
                sums.push(total);
            }
        }
        RowSums { width, height, sums }
    }

    /// How much row `y` changes before column `x`, of 255: the channel that changes most, means over `reach` pixels.
    fn step(&self, y: usize, x: usize, reach: usize) -> f32 {
        let row = y * (self.width + 1);
        let at = |column: usize| self.sums.get(row + column).copied().unwrap_or_default();
        let (low, middle, high) = (at(x - reach), at(x), at(x + reach));
        (0..3)
            .map(|c| {
                let (left, right) = (middle[c] - low[c], high[c] - middle[c]);
                left.abs_diff(right) as f32 / reach as f32
            })
            .fold(0.0, f32::max)
    }
}

#[cfg(test)]
mod tests {
    use super::Arrangement::{SideBySide, Stacked};
    use super::*;
    use crate::rng::SeededRng;

    type Painting = Box<dyn Fn(u32, u32) -> [u8; 3]>;

    fn flat(colour: [u8; 3]) -> Painting {
        Box::new(move |_, _| colour)
    }

    fn stripes(period: u32, across: bool) -> Painting {
        Box::new(move |x, y| {
            if ((if across { y } else { x }) / period).is_multiple_of(2) {
                [200, 60, 40]
            } else {
                [240, 220, 90]
            }
        })
    }

    /// Two panels, a disc in each, noise of a few levels all over.
    fn diptych(width: u32, height: u32, border: u32, left: &Painting, right: &Painting) -> RgbImage {
        let mut noise = SeededRng::new("noise", &[u64::from(width), u64::from(border)]);
        RgbImage::from_fn(width, height, |x, y| {
            let (panel, from, to) = if x < border { (left, 0, border) } else { (right, border, width) };
            let (dx, dy) = (x.abs_diff((from + to) / 2), y.abs_diff(height / 2));
            let disc = dx * dx + dy * dy < (height / 4).pow(2);
            let colour = if disc { [30, 90, 160] } else { panel(x, y) };
            Rgb(colour.map(|c| c.saturating_add(noise.below(6) as u8)))
        })
    }

    fn place(picture: &RgbImage) -> Result<u32, PanelSplitError> {
        find(picture, SideBySide).map(|split| (split.first_end + split.second_start) / 2)
    }

    #[test]
    fn a_border_is_found_where_it_is() {
        for (width, height) in [(64, 32), (256, 128), (1536, 1024)] {
            for share in [0.38f32, 0.45, 0.5, 0.57, 0.62] {
                let border = (share * width as f32) as u32;
                let picture = diptych(width, height, border, &flat([220, 220, 210]), &flat([90, 140, 80]));
                assert_eq!(find(&picture, SideBySide), Ok(Split { first_end: border, second_start: border }));
                let turned = image::imageops::rotate90(&image::imageops::flip_vertical(&picture));
                assert_eq!(find(&turned, Stacked), Ok(Split { first_end: border, second_start: border }));
            }
        }
    }

    #[test]
    fn one_panel_or_a_border_out_of_place_is_none() {
        let scene = flat([220, 200, 180]);
        assert_eq!(place(&diptych(256, 128, 128, &scene, &scene)), Err(PanelSplitError::None));
        for border in [40, 200] {
            assert_eq!(
                place(&diptych(256, 128, border, &scene, &flat([40, 60, 90]))),
                Err(PanelSplitError::None)
            );
        }
        assert_eq!(place(&RgbImage::new(4, 4)), Err(PanelSplitError::None));
        assert_eq!(place(&RgbImage::new(0, 0)), Err(PanelSplitError::None));
        // What is only half as high as the picture is part of a scene.
        let half =
            RgbImage::from_fn(256, 128, |x, y| Rgb(if x < 128 && y < 64 { [250; 3] } else { [20; 3] }));
        assert_eq!(place(&half), Err(PanelSplitError::None));
    }

    #[test]
    fn a_third_panel_is_one_too_many() {
        let three = |borders: [u32; 2]| {
            RgbImage::from_fn(256, 128, move |x, _| {
                Rgb(if x < borders[0] {
                    [230, 220, 200]
                } else if x < borders[1] {
                    [60, 90, 140]
                } else {
                    [190, 60, 60]
                })
            })
        };
        assert_eq!(place(&three([100, 150])), Err(PanelSplitError::Several));
        assert_eq!(place(&three([64, 128])), Err(PanelSplitError::Several));
    }

    #[test]
    fn a_soft_border_and_a_gutter_are_one_border() {
        let soft = RgbImage::from_fn(512, 256, |x, _| {
            let t = ((x as f32 - 230.0) / 6.0).clamp(0.0, 1.0);
            Rgb([220.0 - 150.0 * t, 210.0 - 60.0 * t, 60.0 + 90.0 * t].map(|c| c as u8))
        });
        let Split { first_end, second_start } = find(&soft, SideBySide).expect("a border");
        assert!(
            first_end <= 233 && second_start >= 233 && second_start - first_end <= 12,
            "{first_end} {second_start}"
        );
        for gutter in [1, 4, 16] {
            let colour = |x: u32| {
                if x < 250 {
                    [120, 80, 60]
                } else if x < 250 + gutter {
                    [255; 3]
                } else {
                    [110, 130, 60]
                }
            };
            let picture = RgbImage::from_fn(512, 256, |x, _| Rgb(colour(x)));
            assert_eq!(
                find(&picture, SideBySide),
                Ok(Split { first_end: 250, second_start: 250 + gutter }),
                "gutter of {gutter}"
            );
        }
        // As wide as this it is a panel of its own.
        let wide = RgbImage::from_fn(512, 256, |x, _| {
            Rgb(if (220..290).contains(&x) { [255; 3] } else { [60, 80, 90] })
        });
        assert_eq!(place(&wide), Err(PanelSplitError::Several));
    }

    #[test]
    fn stripes_along_the_border_hide_it_but_never_move_it() {
        let plain = flat([40, 60, 170]);
        // Across the border they change nothing.
        assert_eq!(place(&diptych(256, 128, 110, &stripes(9, true), &plain)), Ok(110));
        for period in [5, 8, 13, 21] {
            match place(&diptych(256, 128, 110, &plain, &stripes(period, false))) {
                Ok(at) => assert_eq!(at, 110, "stripes of {period}"),
                Err(PanelSplitError::None | PanelSplitError::Several) => {}
            }
            let striped = diptych(256, 128, 128, &stripes(period, false), &stripes(period, false));
            assert!(place(&striped).is_err(), "stripes of {period} in one panel");
        }
    }

    #[test]
    fn texture_has_no_border() {
        let mut draw = SeededRng::new("texture", &[]);
        let noise = RgbImage::from_fn(256, 128, |_, _| Rgb([0; 3].map(|_: u8| draw.below(256) as u8)));
        assert_eq!(place(&noise), Err(PanelSplitError::None));
    }

    #[test]
    fn panels_leave_the_gutter_out() {
        let picture = RgbImage::from_fn(20, 10, |x, y| Rgb([x as u8, y as u8, 0]));
        let split = Split { first_end: 8, second_start: 11 };
        let [left, right] = panels(&picture, SideBySide, split);
        assert_eq!((left.dimensions(), right.dimensions()), ((8, 10), (9, 10)));
        assert_eq!(right.get_pixel(0, 0).0, [11, 0, 0]);
        let split = Split { first_end: 4, second_start: 5 };
        let [above, below] = panels(&picture, Stacked, split);
        assert_eq!((above.dimensions(), below.dimensions()), ((20, 4), (20, 5)));
        assert_eq!(below.get_pixel(0, 0).0, [0, 5, 0]);
    }
}
