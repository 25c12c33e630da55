//! Similarities between pictures and prompts from the features of image and text encoders.
//!
//! CLIP-I and DINO compare a drawn picture with real pictures of its subject, CLIP-T with its prompt. As published (see
//! arXiv 2504.02160, section 4): cosines of features; a subject's score is the mean over drawn x real pictures, a picture
//! of several subjects counts the mean over them, a benchmark the mean over its groups of pictures.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};

/// Cosines of every row of `a` `[m, width]` with every row of `b` `[n, width]`: `[m, n]` float32, −1 to 1, neither
/// clamped at 0 nor scaled. A row without direction has cosine 0 with everything.
pub fn cosines(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(unit_rows(a)?.f_matmul(&unit_rows(b)?.f_transpose(0, 1)?)?)
}

/// Rows `[n, width]` at length 1, float32.
pub fn unit_rows(rows: &Tensor) -> Result<Tensor> {
    let shape = rows.size();
    if !matches!(shape[..], [_, width] if width > 0) {
        return Err(ModelError::input("features", format!("shape {shape:?} is not [n, width]")));
    }
    let rows = rows.f_to_kind(Kind::Float)?;
    let lengths = rows.f_norm_scalaropt_dim(2.0, [1i64], true)?;
    Ok(rows.f_div(&lengths.f_clamp_min(1e-12)?)?)
}

/// Cosine of two feature vectors of one width; 0 if one has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Mean cosine of one picture's features with those of every real picture of a subject. `None` without real pictures.
pub fn subject_similarity<'a>(picture: &[f32], real: impl IntoIterator<Item = &'a [f32]>) -> Option<f64> {
    mean(real.into_iter().map(|other| cosine(picture, other)))
}

/// Cosine of picture and prompt, not below 0: the published protocol cuts it there.
pub fn text_similarity(picture: &[f32], prompt: &[f32]) -> f64 {
    cosine(picture, prompt).max(0.0)
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Gives each subject at most one of the found boxes and each box to at most one subject, most similar first.
///
/// `similarity[subject][found]` is `None` where a box shows something else than what the subject is. Returns the box
/// of each subject.
pub fn assign(similarity: &[Vec<Option<f64>>]) -> Vec<Option<usize>> {
    let mut pairs: Vec<(f64, usize, usize)> = similarity
        .iter()
        .enumerate()
        .flat_map(|(subject, row)| {
            row.iter().enumerate().filter_map(move |(found, value)| Some(((*value)?, subject, found)))
        })
        .collect();
    // Ties go to the first subject and the first box.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    let mut boxes = vec![None; similarity.len()];
    let mut taken = std::collections::BTreeSet::new();
    for (_, subject, found) in pairs {
        if boxes[subject].is_none() && taken.insert(found) {
            boxes[subject] = Some(found);
        }
    }
    boxes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_rows_agree_with_those_of_vectors() {
        let (a, b) = ([[1.0f32, 0.0], [3.0, 4.0]], [[0.0f32, 2.0], [-1.0, 0.0], [0.0, 0.0]]);
        let tensor = |rows: &[[f32; 2]]| Tensor::from_slice(&rows.concat()).view([-1, 2]);
        let table = cosines(&tensor(&a), &tensor(&b)).expect("fits");
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                assert!((table.double_value(&[i as i64, j as i64]) - cosine(x, y)).abs() < 1e-6);
            }
        }
        assert_eq!(cosine(&a[1], &b[0]), 0.8);
        assert!(cosines(&Tensor::from_slice(&[1.0f32]), &tensor(&b)).is_err());
    }

    #[test]
    fn a_subject_counts_every_real_picture() {
        let real: [&[f32]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
        assert_eq!(subject_similarity(&[2.0, 0.0], real), Some(0.5));
        assert_eq!(subject_similarity(&[2.0, 0.0], []), None);
    }

    #[test]
    fn text_similarity_ends_at_zero() {
        assert_eq!(text_similarity(&[1.0, 0.0], &[-1.0, 0.0]), 0.0);
        assert_eq!(text_similarity(&[1.0, 0.0], &[2.0, 0.0]), 1.0);
    }

    #[test]
    fn one_box_serves_one_subject() {
        // Two cats, one box: the more similar one gets it.
        assert_eq!(assign(&[vec![Some(0.4)], vec![Some(0.6)]]), [None, Some(0)]);
        // Each prefers box 0; the second is left with box 1.
        assert_eq!(assign(&[vec![Some(0.9), Some(0.1)], vec![Some(0.8), Some(0.2)]]), [Some(0), Some(1)]);
        // A box of another class is out of reach.
        assert_eq!(assign(&[vec![None, Some(-0.3)], vec![Some(0.5), None]]), [Some(1), Some(0)]);
        assert_eq!(assign(&[vec![]]), [None]);
    }
}
