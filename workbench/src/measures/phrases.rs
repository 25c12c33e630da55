//! Vectors of phrases, and what a composed picture can be said to show.
//!
//! A scene has many words in many orders. A word has a fixed random vector; one at another place of a phrase is turned round by as many channels as tell the
//! places apart; a phrase is the sum of them (random indexing with permutations, Sahlgren et al. 2008). Phrases of a few
//! words out of a few dozen are nearly at right angles in 64 channels unless they share words at the same places.

use crescendo_model::randomness::NormalStream;

/// Channels by which the vector of a word is turned from one place of a phrase to the next.
const TURN: usize = 5;
/// Most subjects that the prompt's encoder tells apart by their number.
pub const MOST_COUNTED: usize = 4;

/// A part of the vector by which the prompt's encoder describes a picture, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The words of the scene.
    Scene,
    /// Where the subjects are.
    Place,
    /// How many there are.
    Count,
}

impl Segment {
    /// First channel, and how many there are.
    const fn range(self) -> (usize, usize) {
        match self {
            Segment::Scene => (0, 64),
            Segment::Place => (64, 32),
            Segment::Count => (96, 32),
        }
    }

    /// First channel.
    pub const fn start(self) -> usize {
        self.range().0
    }

    /// Channels.
    pub const fn width(self) -> usize {
        self.range().1
    }

    /// Its part of a vector; nothing of one that is too short.
    pub fn of(self, vector: &[f32]) -> &[f32] {
        vector.get(self.start()..self.start() + self.width()).unwrap_or_default()
    }

    /// The vector of a phrase in it, of length 1.
    pub fn phrase(self, words: &str) -> Vec<f32> {
        let width = self.width();
        let mut sum = vec![0f64; width];
        // Of few phrases each is a word by itself: "top left" is to lie as far from "top right" as from "bottom".
        let parts: Vec<&str> = match self {
            Segment::Scene => words.split_whitespace().collect(),
            Segment::Place | Segment::Count => vec![words],
        };
        for (place, word) in parts.into_iter().enumerate() {
            let mut stream = NormalStream::for_word(word);
            for channel in 0..width {
                sum[(channel + TURN * place) % width] += stream.next_normal();
            }
        }
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
        sum.into_iter().map(|value| (value / length) as f32).collect()
    }
}

/// All channels of the prompt's encoder.
pub const WIDTH: usize = Segment::Count.start() + Segment::Count.width();

/// Where subjects are, in an order that does not say which is which: "bottom and top".
pub fn arrangement<'a>(positions: impl IntoIterator<Item = &'a str>) -> String {
    let mut positions: Vec<&str> = positions.into_iter().collect();
    positions.sort_unstable();
    positions.join(" and ")
}

/// All arrangements of `count` subjects that are composed; none where there is nothing to choose.
pub fn arrangements(count: usize) -> Vec<String> {
    const PLACES: [&str; 9] =
        ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"];
    const CORNERS: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];
    match count {
        1 => PLACES.map(str::to_owned).to_vec(),
        2 => vec![arrangement(["left", "right"]), arrangement(["top", "bottom"])],
        3 => CORNERS
            .iter()
            .map(|empty| arrangement(CORNERS.iter().copied().filter(|corner| corner != empty)))
            .collect(),
        _ => Vec::new(),
    }
}

/// Numbers of subjects by their words, from none.
pub fn counts() -> Vec<String> {
    ["none", "one", "two", "three", "four"]
        .iter()
        .take(MOST_COUNTED + 1)
        .map(|word| (*word).to_owned())
        .collect()
}

/// Index of the phrase that the segment of `vector` is nearest to.
pub fn nearest_phrase(segment: Segment, vector: &[f32], phrases: &[String]) -> Option<usize> {
    let vectors: Vec<Vec<f32>> = phrases.iter().map(|words| segment.phrase(words)).collect();
    let rows: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
    super::score::nearest(segment.of(vector), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(segment: Segment, a: &str, b: &str) -> f32 {
        segment.phrase(a).iter().zip(segment.phrase(b)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn the_order_of_words_counts() {
        assert!((cosine(Segment::Scene, "red above blue", "red above blue") - 1.0).abs() < 1e-5);
        assert!(cosine(Segment::Scene, "red above blue", "blue above red") < 0.8);
        assert!(cosine(Segment::Scene, "plain red", "green and white checks").abs() < 0.5);
    }

    #[test]
    fn what_is_to_be_told_apart_lies_apart() {
        for (segment, phrases) in [
            (Segment::Place, arrangements(1)),
            (Segment::Place, arrangements(2)),
            (Segment::Place, arrangements(3)),
            (Segment::Count, counts()),
        ] {
            for (n, phrase) in phrases.iter().enumerate() {
                let mut vector = vec![0.0; WIDTH];
                vector[segment.start()..segment.start() + segment.width()]
                    .copy_from_slice(&segment.phrase(phrase));
                assert_eq!(nearest_phrase(segment, &vector, &phrases), Some(n));
                for other in &phrases[..n] {
                    assert!(cosine(segment, phrase, other) < 0.9, "{phrase} and {other}");
                }
            }
        }
    }

    #[test]
    fn a_vector_that_is_too_short_has_no_segment() {
        assert!(Segment::Count.of(&[0.0; 100]).is_empty());
        assert_eq!(Segment::Count.of(&[0.0; WIDTH]).len(), 32);
    }
}
