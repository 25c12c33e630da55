//! How often the nearest subject is the right one, what chance would give, and how far the number can be relied on.

/// One draw of a subject, assigned to one of several candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub right: bool,
    /// Subjects to choose from, the right one among them.
    pub candidates: usize,
}

/// Outcomes of one model: for each subject, its draws.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub per_subject: Vec<Vec<Assigned>>,
}

impl Score {
    /// Number of draws.
    pub fn draws(&self) -> usize {
        self.per_subject.iter().map(Vec::len).sum()
    }

    /// Subjects that were drawn.
    pub fn subjects(&self) -> usize {
        self.drawn().count()
    }

    fn drawn(&self) -> impl Iterator<Item = &Vec<Assigned>> {
        self.per_subject.iter().filter(|draws| !draws.is_empty())
    }

    /// Share of right draws of each subject.
    fn rates(&self) -> Vec<f64> {
        let rate = |draws: &Vec<Assigned>| {
            draws.iter().filter(|draw| draw.right).count() as f64 / draws.len() as f64
        };
        self.drawn().map(rate).collect()
    }

    /// Share of right draws, 0 to 1: the mean over subjects of each subject's share, so that every subject counts alike.
    /// None without draws.
    pub fn right(&self) -> Option<f64> {
        mean(&self.rates())
    }

    /// What assigning at random would give of [`Score::right`], in expectation.
    pub fn chance(&self) -> Option<f64> {
        let of = |draws: &Vec<Assigned>| {
            draws.iter().map(|draw| 1.0 / draw.candidates.max(1) as f64).sum::<f64>() / draws.len() as f64
        };
        mean(&self.drawn().map(of).collect::<Vec<_>>())
    }

    /// Fewest and most subjects that a draw had to choose from.
    pub fn candidates(&self) -> Option<(usize, usize)> {
        let all = || self.per_subject.iter().flatten().map(|draw| draw.candidates);
        Some((all().min()?, all().max()?))
    }

    /// Standard error of [`Score::right`] as an estimate for subjects like these: draws of one subject hang together, so
    /// its spread over subjects counts, not that over draws. Where all subjects come out at 0 or all at 1 there is no spread,
    /// which is no certainty: then as of a share with one more subject on either side (Laplace's rule of succession). None of
    /// fewer than two subjects.
    pub fn standard_error(&self) -> Option<f64> {
        let rates = self.rates();
        let (mean, n) = (mean(&rates)?, rates.len() as f64);
        if n < 2.0 {
            return None;
        }
        if mean <= 0.0 || mean >= 1.0 {
            let share = (n * mean + 1.0) / (n + 2.0);
            return Some((share * (1.0 - share) / n).sqrt());
        }
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Some((variance / n).sqrt())
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Index of the row of `gallery` that is nearest to `query` by cosine; rows and query have unit length and equal width.
/// `None` for an empty gallery.
pub fn nearest(query: &[f32], gallery: &[&[f32]]) -> Option<usize> {
    let dot = |row: &[f32]| -> f32 { row.iter().zip(query).map(|(a, b)| a * b).sum() };
    (0..gallery.len()).max_by(|&a, &b| dot(gallery[a]).total_cmp(&dot(gallery[b])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(right: &[bool], candidates: usize) -> Vec<Assigned> {
        right.iter().map(|&right| Assigned { right, candidates }).collect()
    }

    #[test]
    fn every_subject_counts_alike_however_often_it_was_drawn() {
        let score = Score { per_subject: vec![draws(&[true; 3], 4), draws(&[false], 4), vec![]] };
        assert_eq!((score.draws(), score.subjects()), (4, 2));
        assert_eq!(score.right(), Some(0.5));
    }

    #[test]
    fn the_error_is_that_of_a_mean_over_subjects() {
        // Shares 1, 1/2, 0 and 1/2: variance 1/6, of four subjects.
        let per_subject = [&[true, true][..], &[true, false], &[false, false], &[false, true]];
        let score = Score { per_subject: per_subject.map(|right| draws(right, 4)).into() };
        assert!((score.standard_error().unwrap() - (1.0f64 / 6.0 / 4.0).sqrt()).abs() < 1e-12);
        // Ten times the draws of the same subjects with the same shares say nothing new of other subjects.
        let more = Score { per_subject: per_subject.map(|right| draws(&right.repeat(10), 4)).into() };
        assert_eq!(more.standard_error(), score.standard_error());
    }

    #[test]
    fn subjects_that_all_come_out_alike_are_no_certainty() {
        let of = |right| Score { per_subject: vec![draws(&[right, right], 4); 8] };
        for score in [of(false), of(true)] {
            assert!((score.standard_error().unwrap() - (0.1f64 * 0.9 / 8.0).sqrt()).abs() < 1e-12);
        }
    }

    #[test]
    fn one_subject_has_no_error_and_no_draw_has_no_number() {
        let score = Score { per_subject: vec![draws(&[true, false], 2)] };
        assert_eq!((score.right(), score.standard_error()), (Some(0.5), None));
        let none = Score::default();
        assert_eq!(
            (none.right(), none.chance(), none.candidates(), none.standard_error()),
            (None, None, None, None)
        );
    }

    #[test]
    fn chance_is_that_of_the_candidates_there_were() {
        let score = Score { per_subject: vec![draws(&[true; 2], 5), draws(&[false; 2], 5)] };
        assert_eq!((score.chance(), score.candidates()), (Some(0.2), Some((5, 5))));
        let mixed = Score { per_subject: vec![draws(&[true], 2), draws(&[true], 4)] };
        assert_eq!((mixed.chance(), mixed.candidates()), (Some(0.375), Some((2, 4))));
    }

    #[test]
    fn the_nearest_row_has_the_largest_cosine() {
        let rows: [&[f32]; 3] = [&[1.0, 0.0], &[0.0, 1.0], &[0.6, 0.8]];
        assert_eq!(nearest(&[0.5, 0.86], &rows), Some(2));
        assert_eq!(nearest(&[0.5, 0.86], &[]), None);
    }
}
