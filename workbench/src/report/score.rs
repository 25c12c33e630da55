//! How often the nearest subject is the right one, with a standard error that knows that draws of one subject hang together.

/// Outcomes of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub label: String,
    pub references: u32,
    /// For each subject, whether each of its draws was assigned to it.
    pub per_subject: Vec<Vec<bool>>,
}

impl Score {
    /// Number of draws.
    pub fn draws(&self) -> usize {
        self.per_subject.iter().map(Vec::len).sum()
    }

    /// Share of right draws, 0 to 1; 0 without draws.
    pub fn share(&self) -> f64 {
        let right = self.per_subject.iter().flatten().filter(|&&right| right).count();
        right as f64 / self.draws().max(1) as f64
    }

    /// Standard error of [`Score::share`] over draws as they are, the subjects taken as given: each subject's draws vary
    /// around its own rate, so the variances of the subjects add up. Falls back on the binomial formula where a subject
    /// has a single draw.
    pub fn standard_error(&self) -> f64 {
        let draws = self.draws();
        if draws == 0 {
            return 0.0;
        }
        if self.per_subject.iter().any(|d| d.len() < 2) {
            let share = self.share();
            return (share * (1.0 - share) / draws as f64).sqrt();
        }
        let variance: f64 = self
            .per_subject
            .iter()
            .map(|d| {
                let n = d.len() as f64;
                let rate = d.iter().filter(|&&right| right).count() as f64 / n;
                // Unbiased variance of the sum of n draws of this subject.
                n * n / (n - 1.0) * rate * (1.0 - rate)
            })
            .sum();
        variance.sqrt() / draws as f64
    }

    /// Standard error over subjects as well: what to expect on other held-out subjects.
    pub fn standard_error_over_subjects(&self) -> f64 {
        let n = self.per_subject.len() as f64;
        if n < 2.0 {
            return 0.0;
        }
        let rates: Vec<f64> = self
            .per_subject
            .iter()
            .map(|d| d.iter().filter(|&&right| right).count() as f64 / d.len().max(1) as f64)
            .collect();
        let mean = rates.iter().sum::<f64>() / n;
        let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (variance / n).sqrt()
    }
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

    #[test]
    fn the_share_counts_draws_not_subjects() {
        let score =
            Score { label: String::new(), references: 1, per_subject: vec![vec![true; 3], vec![false]] };
        assert_eq!(score.draws(), 4);
        assert_eq!(score.share(), 0.75);
    }

    #[test]
    fn subjects_without_variation_have_no_error_of_draws_but_one_of_subjects() {
        let score =
            Score { label: String::new(), references: 1, per_subject: vec![vec![true; 4], vec![false; 4]] };
        assert_eq!(score.standard_error(), 0.0);
        assert!((score.standard_error_over_subjects() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn single_draws_fall_back_on_the_binomial_error() {
        let score = Score { label: String::new(), references: 0, per_subject: vec![vec![true], vec![false]] };
        assert!((score.standard_error() - (0.25f64 / 2.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_nearest_row_has_the_largest_cosine() {
        let rows: [&[f32]; 3] = [&[1.0, 0.0], &[0.0, 1.0], &[0.6, 0.8]];
        assert_eq!(nearest(&[0.5, 0.86], &rows), Some(2));
        assert_eq!(nearest(&[0.5, 0.86], &[]), None);
    }
}
