//! Scenes: what is behind a subject, and the words that are true of it.

use super::{Canvas, Edge, Library, LibraryError, Region, picture_of};
use crate::rng::SeededRng;
use serde_json::{Value, json};
use std::f32::consts::FRAC_1_SQRT_2;

/// Colours by name, sRGB in `[0, 1]`.
const COLOURS: [(&str, [f32; 3]); 12] = [
    ("red", [0.82, 0.13, 0.13]),
    ("orange", [0.95, 0.55, 0.10]),
    ("yellow", [0.95, 0.87, 0.20]),
    ("green", [0.16, 0.62, 0.24]),
    ("teal", [0.10, 0.58, 0.60]),
    ("blue", [0.13, 0.30, 0.82]),
    ("purple", [0.50, 0.20, 0.68]),
    ("pink", [0.96, 0.58, 0.72]),
    ("brown", [0.45, 0.28, 0.14]),
    ("white", [0.96, 0.96, 0.96]),
    ("grey", [0.52, 0.52, 0.52]),
    ("black", [0.06, 0.06, 0.06]),
];

/// Two colours of one pattern differ by at least this (Euclidean, sRGB).
const MIN_CONTRAST: f32 = 0.45;

type Colour = [f32; 3];

/// What is painted. Lengths and offsets are in panel sides.
#[derive(Clone, Debug)]
enum Kind {
    Flat { colour: Colour },
    Gradient { from: Colour, to: Colour, vertical: bool },
    Stripes { colours: [Colour; 2], across: [f32; 2], period: f32, phase: f32 },
    Checks { colours: [Colour; 2], period: f32, phase: [f32; 2] },
    Dots { ground: Colour, dots: Colour, period: f32, phase: [f32; 2] },
    Clouds { colours: [Colour; 2], grain: f32, seed: u64 },
    Photo { photo: usize, picture: usize, left: f32, top: f32, side: f32 },
}

/// A background and the words for it, e.g. "green and white vertical stripes".
#[derive(Clone, Debug)]
pub struct Scene {
    kind: Kind,
    words: String,
}

impl Scene {
    /// Draws a scene: one in ten is a photograph where there are photographs, and most of the others are calm, so that a
    /// small network spends itself on subjects.
    pub fn draw(draw: &mut SeededRng, photos: Option<&Library>) -> Scene {
        if let Some(library) = photos.filter(|p| !p.entries().is_empty())
            && draw.chance(0.1)
        {
            let photo = draw.below(library.entries().len());
            let side = draw.range(0.55, 1.0);
            let (left, top) = (draw.unit(), draw.unit());
            return Scene {
                kind: Kind::Photo { photo, picture: picture_of(draw, library, photo), left, top, side },
                words: library.entries()[photo].words.clone(),
            };
        }
        let (first, second) = two_colours(draw);
        let (a, b) = (COLOURS[first].0, COLOURS[second].0);
        let (ground, other) = (jittered(draw, first), jittered(draw, second));
        match draw.below(10) {
            0..=3 => Scene { kind: Kind::Flat { colour: ground }, words: format!("plain {a}") },
            4 | 5 => {
                let vertical = draw.chance(0.5);
                let words = if vertical { format!("{a} above {b}") } else { format!("{a} fading into {b}") };
                Scene { kind: Kind::Gradient { from: ground, to: other, vertical }, words }
            }
            6 => {
                let (across, direction) = match draw.below(3) {
                    0 => ([1.0, 0.0], "vertical"),
                    1 => ([0.0, 1.0], "horizontal"),
                    _ => ([FRAC_1_SQRT_2; 2], "diagonal"),
                };
                let (period, phase) = (draw.range(0.2, 0.42), draw.unit());
                let words = format!("{a} and {b} {direction} stripes");
                Scene { kind: Kind::Stripes { colours: [ground, other], across, period, phase }, words }
            }
            7 => {
                let (period, phase) = (draw.range(0.25, 0.5), [draw.unit(), draw.unit()]);
                Scene {
                    kind: Kind::Checks { colours: [ground, other], period, phase },
                    words: format!("{a} and {b} checks"),
                }
            }
            8 => {
                let (period, phase) = (draw.range(0.22, 0.4), [draw.unit(), draw.unit()]);
                Scene {
                    kind: Kind::Dots { ground, dots: other, period, phase },
                    words: format!("{a} with {b} dots"),
                }
            }
            _ => {
                let coarse = draw.chance(0.5);
                let (grain, texture) =
                    if coarse { (draw.range(0.25, 0.4), "clouds") } else { (draw.range(0.05, 0.1), "noise") };
                let seed = draw.next_u64();
                Scene {
                    kind: Kind::Clouds { colours: [ground, other], grain, seed },
                    words: format!("{a} and {b} {texture}"),
                }
            }
        }
    }

    /// True of the picture that [`Scene::render`] paints.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// Its words in the one order of those that say the same: red and blue checks are blue and red checks.
    pub fn appearance(&self) -> String {
        let either_way =
            matches!(self.kind, Kind::Stripes { .. } | Kind::Checks { .. } | Kind::Clouds { .. });
        match self.words.split(' ').collect::<Vec<_>>()[..] {
            [first, "and", second, ref what @ ..] if either_way && second < first => {
                format!("{second} and {first} {}", what.join(" "))
            }
            _ => self.words.clone(),
        }
    }

    /// Enough to tell which scene it was.
    pub fn provenance(&self) -> Value {
        json!({ "words": self.words, "kind": self.kind_name() })
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Flat { .. } => "flat",
            Kind::Gradient { .. } => "gradient",
            Kind::Stripes { .. } => "stripes",
            Kind::Checks { .. } => "checks",
            Kind::Dots { .. } => "dots",
            Kind::Clouds { .. } => "clouds",
            Kind::Photo { .. } => "photo",
        }
    }

    /// Paints it on a square of `side` pixels. A photograph that cannot be read is an error naming it.
    pub fn render(&self, side: usize, photos: Option<&Library>) -> Result<Canvas, LibraryError> {
        let scale = side as f32;
        // Half the cells of a periodic pattern, by the parity of the cell that a point lies in.
        let odd = |at: f32, period: f32, phase: f32| {
            ((at / period + 2.0 * phase) * 2.0).floor().rem_euclid(2.0) >= 1.0
        };
        Ok(match &self.kind {
            Kind::Flat { colour } => {
                let colour = *colour;
                Canvas { width: side, height: side, pixels: vec![colour; side * side] }
            }
            Kind::Gradient { from, to, vertical } => {
                Canvas::painted(side, side, |x, y| mix(*from, *to, if *vertical { y } else { x } / scale))
            }
            Kind::Stripes { colours, across, period, phase } => Canvas::painted(side, side, |x, y| {
                let at = (x * across[0] + y * across[1]) / scale;
                colours[usize::from(odd(at, *period, *phase))]
            }),
            Kind::Checks { colours, period, phase } => Canvas::painted(side, side, |x, y| {
                let cell = odd(x / scale, *period, phase[0]) != odd(y / scale, *period, phase[1]);
                colours[usize::from(cell)]
            }),
            Kind::Dots { ground, dots, period, phase } => Canvas::painted(side, side, |x, y| {
                let dx = (x / scale / period + phase[0]).rem_euclid(1.0) - 0.5;
                let dy = (y / scale / period + phase[1]).rem_euclid(1.0) - 0.5;
                if dx * dx + dy * dy < 0.09 { *dots } else { *ground }
            }),
            Kind::Clouds { colours, grain, seed } => Canvas::painted(side, side, |x, y| {
                mix(colours[0], colours[1], value_noise(x / scale / grain, y / scale / grain, *seed))
            }),
            Kind::Photo { photo, picture, left, top, side: part } => {
                let Some(library) = photos else {
                    return Ok(Canvas { width: side, height: side, pixels: vec![[0.5; 3]; side * side] });
                };
                let raster = library.raster(*photo, *picture)?;
                let (width, height) = (raster.width() as f32, raster.height() as f32);
                let length = width.min(height) * part;
                let region = Region {
                    x: (width - length) * left,
                    y: (height - length) * top,
                    width: length,
                    height: length,
                };
                let pixels = raster
                    .sample(region, side, side, Edge::Ignored)
                    .into_iter()
                    .map(|[r, g, b, _]| [r, g, b])
                    .collect();
                Canvas { width: side, height: side, pixels }
            }
        })
    }
}

/// Two colours of the table that can be told apart.
fn two_colours(draw: &mut SeededRng) -> (usize, usize) {
    let first = draw.below(COLOURS.len());
    let apart = |other: &usize| {
        let (a, b) = (COLOURS[first].1, COLOURS[*other].1);
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() >= MIN_CONTRAST * MIN_CONTRAST
    };
    let others: Vec<usize> = (0..COLOURS.len()).filter(apart).collect();
    let second = draw.pick(&others).copied().unwrap_or((first + 1) % COLOURS.len());
    (first, second)
}

fn jittered(draw: &mut SeededRng, colour: usize) -> Colour {
    COLOURS[colour].1.map(|c| (c + draw.range(-0.05, 0.05)).clamp(0.0, 1.0))
}

fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * share)
}

/// Smooth noise in `[0, 1]`: random values on the integer grid, interpolated, with more contrast than plain blending.
fn value_noise(x: f32, y: f32, seed: u64) -> f32 {
    let (cell_x, cell_y) = (x.floor(), y.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (tx, ty) = (ease(x - cell_x), ease(y - cell_y));
    let corner = |dx: i64, dy: i64| {
        let mut bits = seed
            ^ ((cell_x as i64 + dx) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ ((cell_y as i64 + dy) as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    let top = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * tx;
    let bottom = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * tx;
    ease((top + (bottom - top) * ty).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(canvas: &Canvas, keep: impl Fn(usize, usize) -> bool) -> Colour {
        let mut sum = [0f32; 3];
        let mut count = 0f32;
        for y in 0..canvas.height {
            for x in 0..canvas.width {
                if keep(x, y) {
                    for (total, value) in sum.iter_mut().zip(canvas.pixels[y * canvas.width + x]) {
                        *total += value;
                    }
                    count += 1.0;
                }
            }
        }
        sum.map(|s| s / count)
    }

    fn nearest_colour(colour: Colour) -> &'static str {
        let distance = |other: &Colour| colour.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        COLOURS.iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1))).map(|c| c.0).unwrap_or("")
    }

    /// Scenes until every procedural kind was seen often.
    fn scenes() -> Vec<Scene> {
        let mut draw = SeededRng::new("scenes", &[3]);
        (0..400).map(|_| Scene::draw(&mut draw, None)).collect()
    }

    #[test]
    fn words_name_the_colours_that_are_painted() {
        for scene in scenes() {
            let canvas = scene.render(32, None).expect("procedural scenes cannot fail");
            let words: Vec<&str> = scene.words().split(' ').collect();
            match scene.kind {
                Kind::Flat { .. } => {
                    assert_eq!(nearest_colour(mean(&canvas, |_, _| true)), words[1], "{}", scene.words())
                }
                Kind::Gradient { vertical, .. } => {
                    let start = mean(&canvas, |x, y| if vertical { y < 2 } else { x < 2 });
                    let end = mean(&canvas, |x, y| if vertical { y >= 30 } else { x >= 30 });
                    assert_eq!(nearest_colour(start), words[0], "{}", scene.words());
                    assert_eq!(nearest_colour(end), words[words.len() - 1], "{}", scene.words());
                }
                Kind::Stripes { .. } | Kind::Checks { .. } | Kind::Dots { .. } => {
                    let (a, b) = (words[0], words[2]);
                    let painted: Vec<&str> = canvas.pixels.iter().map(|p| nearest_colour(*p)).collect();
                    for name in [a, b] {
                        let share =
                            painted.iter().filter(|p| **p == name).count() as f32 / painted.len() as f32;
                        assert!(share > 0.08, "{}: {name} fills {share}", scene.words());
                    }
                }
                Kind::Clouds { .. } | Kind::Photo { .. } => {}
            }
        }
    }

    #[test]
    fn what_looks_alike_has_one_appearance() {
        let mut of_sorted = std::collections::BTreeMap::new();
        for scene in scenes() {
            let appearance = scene.appearance();
            let mut words: Vec<&str> = scene.words().split(' ').collect();
            words.sort_unstable();
            let told: Vec<&str> = appearance.split(' ').collect();
            if matches!(scene.kind, Kind::Stripes { .. } | Kind::Checks { .. } | Kind::Clouds { .. }) {
                assert!(told[0] < told[2], "{appearance}");
                assert_eq!(*of_sorted.entry(words.join(" ")).or_insert(appearance.clone()), appearance);
            } else {
                assert_eq!(appearance, scene.words());
            }
        }
        assert!(!of_sorted.is_empty());
    }

    #[test]
    fn stripes_run_as_they_say() {
        for scene in scenes() {
            let Kind::Stripes { .. } = scene.kind else {
                continue;
            };
            let canvas = scene.render(32, None).expect("procedural scenes cannot fail");
            let constant_down =
                (0..32).all(|x| (1..32).all(|y| canvas.pixels[y * 32 + x] == canvas.pixels[x]));
            let constant_across =
                (0..32).all(|y| (1..32).all(|x| canvas.pixels[y * 32 + x] == canvas.pixels[y * 32]));
            assert_eq!(constant_down, scene.words().contains("vertical"), "{}", scene.words());
            assert_eq!(constant_across, scene.words().contains("horizontal"), "{}", scene.words());
        }
    }

    #[test]
    fn every_kind_occurs() {
        let kinds: std::collections::BTreeSet<&str> = scenes().iter().map(Scene::kind_name).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
    }
}
