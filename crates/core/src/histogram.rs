//! Distributions of scores: fixed buckets, so that counts of units can be added whoever made them.

use std::collections::BTreeMap;

/// The buckets of one score: equal parts of `least` to `most`. What lies outside belongs to the first or last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Name of the score in a pair.
    pub name: &'static str,
    pub least: f64,
    pub most: f64,
    pub buckets: usize,
}

/// Every score whose distribution is counted, by name.
pub const SCALES: [Scale; 3] = [
    Scale { name: "judge", least: 0.0, most: 4.0, buckets: 16 },
    Scale { name: "score", least: 0.0, most: 4.0, buckets: 16 },
    Scale { name: "similarity", least: -1.0, most: 1.0, buckets: 40 },
];

impl Scale {
    /// The scale of a score; none for one that is not counted.
    pub fn of(name: &str) -> Option<&'static Scale> {
        SCALES.iter().find(|scale| scale.name == name)
    }

    /// The bucket of a value. What is not a number has none.
    pub fn bucket(&self, value: f64) -> Option<usize> {
        if value.is_nan() {
            return None;
        }
        let place = (value - self.least) / (self.most - self.least) * self.buckets as f64;
        Some((place.max(0.0) as usize).min(self.buckets - 1))
    }
}

/// Counts by score and bucket. A score that was never counted is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoreCounts(BTreeMap<String, Vec<u64>>);

impl ScoreCounts {
    /// Takes over counts from outside; the error names what is wrong.
    pub fn checked(counts: BTreeMap<String, Vec<u64>>) -> Result<Self, String> {
        for (name, buckets) in &counts {
            let Some(scale) = Scale::of(name) else { return Err(format!("{name:?} is no score")) };
            if buckets.len() != scale.buckets {
                return Err(format!("{name} has {} buckets, not {}", buckets.len(), scale.buckets));
            }
        }
        Ok(Self(counts))
    }

    /// Takes over counts as they are stored: those of scores or scales that only another version knows are kept, and not
    /// shown.
    pub fn stored(counts: BTreeMap<String, Vec<u64>>) -> Self {
        Self(counts)
    }

    /// Counts one value; one that is not counted, or not a number, is passed over.
    pub fn count(&mut self, name: &str, value: f64) {
        let Some(scale) = Scale::of(name) else { return };
        let Some(bucket) = scale.bucket(value) else { return };
        let counts = self.0.entry(name.to_owned()).or_insert_with(|| vec![0; scale.buckets]);
        if let Some(count) = counts.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    pub fn add(&mut self, other: &Self) {
        // Counts of another scale cannot be added to those of ours; they stay with their unit.
        let ours =
            |name: &str, counts: &[u64]| Scale::of(name).is_none_or(|scale| scale.buckets == counts.len());
        for (name, counts) in other.0.iter().filter(|(name, counts)| ours(name, counts)) {
            let mine = self.0.entry(name.clone()).or_insert_with(|| vec![0; counts.len()]);
            for (mine, count) in mine.iter_mut().zip(counts) {
                *mine = mine.saturating_add(*count);
            }
        }
    }

    /// Takes out counts that were added.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for (name, counts) in &other.0 {
            let mine = self.0.get_mut(name).into_iter().flatten();
            mine.zip(counts).for_each(|(mine, count)| *mine = mine.saturating_sub(*count));
        }
        self.0.retain(|_, counts| counts.iter().any(|count| *count > 0));
    }

    /// Whether all of them are on a scale of this version, so that nothing is lost when they are added.
    pub(crate) fn is_known(&self) -> bool {
        self.scores().count() == self.0.len()
    }

    /// Each counted score with its scale and the counts of its buckets.
    pub fn scores(&self) -> impl Iterator<Item = (&'static Scale, &[u64])> {
        let known =
            |name: &str, counts: &[u64]| Scale::of(name).filter(|scale| scale.buckets == counts.len());
        self.0.iter().filter_map(move |(name, counts)| Some((known(name, counts)?, counts.as_slice())))
    }

    /// As they are stored.
    pub fn counts(&self) -> &BTreeMap<String, Vec<u64>> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_to_their_buckets_and_the_edges_take_the_rest() {
        let scale = Scale::of("similarity").expect("it is counted");
        for (value, bucket) in [
            (-1.0, 0),
            (-5.0, 0),
            (-0.96, 0),
            (-0.94, 1),
            (0.0, 20),
            (0.99, 39),
            (1.0, 39),
            (f64::INFINITY, 39),
        ] {
            assert_eq!(scale.bucket(value), Some(bucket), "{value}");
        }
        assert_eq!(scale.bucket(f64::NAN), None);
        assert_eq!(Scale::of("beauty"), None);
    }

    #[test]
    fn counts_add_up() {
        let mut counts = ScoreCounts::default();
        for value in [3.9, 4.0, 0.0, f64::NAN] {
            counts.count("judge", value);
        }
        counts.count("beauty", 1.0);
        let mut sum = counts.clone();
        sum.add(&counts);
        let (scale, found) = sum.scores().next().expect("one score");
        assert_eq!((scale.name, found[0], found[15], found.iter().sum::<u64>()), ("judge", 2, 4, 6));
        assert_eq!(sum.scores().count(), 1);
    }

    #[test]
    fn counts_of_another_scale_are_refused() {
        let counts =
            |name: &str, buckets| ScoreCounts::checked(BTreeMap::from([(name.to_owned(), vec![1; buckets])]));
        assert!(counts("judge", 16).is_ok());
        assert_eq!(counts("judge", 15), Err("judge has 15 buckets, not 16".to_owned()));
        assert_eq!(counts("beauty", 16), Err("\"beauty\" is no score".to_owned()));
    }
}
