//! Where a subject goes on its panel, and the words that are true of it.

use super::Region;
use crate::rng::SeededRng;

/// Room that must be left along an axis, in panel sides, before a word is said about the place along it.
const MIN_ROOM: f32 = 0.25;

/// A subject's box on a panel, pixels, whether it is mirrored, and words such as "top left" or "small".
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    pub place: Region,
    pub mirrored: bool,
    /// "top left", "centre", …
    pub position: &'static str,
    /// "small", "large", or nothing for what is between.
    pub size: &'static str,
}

/// One third of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Third {
    Start,
    Middle,
    End,
}

/// Draws the place of a lone subject whose width is `aspect` times its height, on a panel of `side` pixels.
pub fn place_alone(draw: &mut SeededRng, side: usize, aspect: f32) -> Placement {
    let (size, share) = match draw.below(4) {
        0 => ("small", draw.range(0.52, 0.62)),
        1 | 2 => ("", draw.range(0.64, 0.8)),
        _ => ("large", draw.range(0.82, 0.96)),
    };
    let mirrored = draw.chance(0.5);
    let (width, height) = fitted(aspect, share);
    // Beside those whose two thirds happen to be the middle ones.
    let centred = draw.chance(0.25);
    let mut third = |room: f32| -> (Third, f32) {
        let (third, fraction) = match draw.below(3) {
            0 => (Third::Start, draw.range(0.0, 0.2)),
            1 => (Third::Middle, draw.range(0.4, 0.6)),
            _ => (Third::End, draw.range(0.8, 1.0)),
        };
        if centred || room < MIN_ROOM { (Third::Middle, 0.5) } else { (third, fraction) }
    };
    let (column, x) = third(1.0 - width);
    let (row, y) = third(1.0 - height);
    let scale = side as f32;
    Placement {
        place: Region {
            x: (1.0 - width) * x * scale,
            y: (1.0 - height) * y * scale,
            width: width * scale,
            height: height * scale,
        },
        mirrored,
        position: position_words(row, column),
        size,
    }
}

/// Draws the places of several subjects, each in a cell of its own: side by side, one above the other, or in a grid.
pub fn place_together(draw: &mut SeededRng, side: usize, aspects: &[f32]) -> Vec<Placement> {
    use Third::{End, Middle, Start};
    let (columns, rows): (&[Third], &[Third]) = match aspects.len() {
        0 | 1 => (&[Middle], &[Middle]),
        2 if draw.chance(0.7) => (&[Start, End], &[Middle]),
        2 => (&[Middle], &[Start, End]),
        3 | 4 => (&[Start, End], &[Start, End]),
        _ => (&[Start, Middle, End], &[Start, Middle, End]),
    };
    let mut cells: Vec<(usize, usize)> =
        (0..rows.len()).flat_map(|row| (0..columns.len()).map(move |column| (row, column))).collect();
    draw.shuffle(&mut cells);
    let (cell_width, cell_height) = (1.0 / columns.len() as f32, 1.0 / rows.len() as f32);
    let mut placements = Vec::with_capacity(aspects.len());
    // The cells are more than the subjects for up to nine; the spec allows eight references.
    for (aspect, (row, column)) in aspects.iter().zip(cells) {
        // Shapes that are thin along an axis stay near the middle of their cell, where the words put them.
        let (mut width, mut height) = fitted(*aspect, draw.range(0.46, 0.62));
        let shrink = (cell_width / width).min(cell_height / height).min(1.0);
        width *= shrink;
        height *= shrink;
        let x = column as f32 * cell_width
            + (cell_width - width).min(0.4) * draw.range(-0.25, 0.25)
            + (cell_width - width) / 2.0;
        let y = row as f32 * cell_height
            + (cell_height - height).min(0.4) * draw.range(-0.25, 0.25)
            + (cell_height - height) / 2.0;
        let scale = side as f32;
        placements.push(Placement {
            place: Region { x: x * scale, y: y * scale, width: width * scale, height: height * scale },
            mirrored: draw.chance(0.5),
            position: position_words(rows[row], columns[column]),
            size: "",
        });
    }
    placements
}

/// Width and height, in panel sides, of a box of this aspect whose longer side is `share`.
fn fitted(aspect: f32, share: f32) -> (f32, f32) {
    let aspect = aspect.clamp(0.05, 20.0);
    if aspect >= 1.0 { (share, share / aspect) } else { (share * aspect, share) }
}

fn position_words(row: Third, column: Third) -> &'static str {
    match (row, column) {
        (Third::Start, Third::Start) => "top left",
        (Third::Start, Third::Middle) => "top",
        (Third::Start, Third::End) => "top right",
        (Third::Middle, Third::Start) => "left",
        (Third::Middle, Third::Middle) => "centre",
        (Third::Middle, Third::End) => "right",
        (Third::End, Third::Start) => "bottom left",
        (Third::End, Third::Middle) => "bottom",
        (Third::End, Third::End) => "bottom right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the box lies as the words say, and on the panel.
    fn assert_true(placement: &Placement, side: f32) {
        let Placement { place, position, .. } = placement;
        let (x, y) =
            ((place.x + place.width / 2.0) / side - 0.5, (place.y + place.height / 2.0) / side - 0.5);
        let clear = 0.06;
        let (row, column) = (
            if position.contains("top") {
                y < -clear
            } else if position.contains("bottom") {
                y > clear
            } else {
                y.abs() < 0.2
            },
            if position.contains("left") {
                x < -clear
            } else if position.contains("right") {
                x > clear
            } else {
                x.abs() < 0.2
            },
        );
        assert!(row && column, "{placement:?}: centre is off by {x}, {y}");
        let on = place.x >= -1e-3
            && place.y >= -1e-3
            && place.x + place.width <= side + 1e-3
            && place.y + place.height <= side + 1e-3;
        assert!(on, "{placement:?} leaves the panel");
    }

    #[test]
    fn words_are_true_of_lone_subjects() {
        let mut draw = SeededRng::new("placement", &[1]);
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..3000 {
            let placement = place_alone(&mut draw, 32, [0.3, 0.8, 1.0, 1.5, 4.0][i % 5]);
            assert_true(&placement, 32.0);
            seen.insert(placement.position);
            let share = placement.place.width.max(placement.place.height) / 32.0;
            match placement.size {
                "small" => assert!(share < 0.63),
                "large" => assert!(share > 0.81),
                _ => assert!((0.63..0.81).contains(&share)),
            }
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }

    #[test]
    fn several_subjects_do_not_overlap_and_words_are_true() {
        let mut draw = SeededRng::new("placement", &[2]);
        for i in 0..1000 {
            let count = 2 + i % 7;
            let aspects: Vec<f32> = (0..count).map(|_| draw.range(0.3, 3.0)).collect();
            let placements = place_together(&mut draw, 64, &aspects);
            assert_eq!(placements.len(), count);
            for (n, a) in placements.iter().enumerate() {
                assert_true(a, 64.0);
                for b in &placements[..n] {
                    let apart = a.place.x + a.place.width <= b.place.x + 1e-3
                        || b.place.x + b.place.width <= a.place.x + 1e-3
                        || a.place.y + a.place.height <= b.place.y + 1e-3
                        || b.place.y + b.place.height <= a.place.y + 1e-3;
                    assert!(apart, "{a:?} and {b:?} overlap");
                    assert_ne!(a.position, b.position);
                }
            }
        }
    }
}
