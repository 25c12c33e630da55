//! Training sizes: pictures of one batch position share one bucket (upstream: UNO's dataset and its collation).

use super::{PictureError, Result};

/// Buckets `(height, width)` at resolution 512, in the order in which ties are decided.
pub const BUCKETS: [(u32, u32); 11] = [
    (256, 768),
    (320, 768),
    (320, 704),
    (384, 640),
    (448, 576),
    (512, 512),
    (576, 448),
    (640, 384),
    (704, 320),
    (768, 320),
    (768, 256),
];

/// The resolution that [`BUCKETS`] are for.
const RESOLUTION: f64 = 512.0;

/// A bucket at another resolution: scaled and cut off, then floored to a multiple of 16.
fn scaled(side: u32, resolution: u32) -> u32 {
    (f64::from(side) / RESOLUTION * f64::from(resolution)) as u32 / 16 * 16
}

/// `(height, width)` that pictures of these `(height, width)` are brought to: the first bucket whose height / width
/// is nearest to the arithmetic mean of theirs.
pub fn choose(sizes: &[(u32, u32)], resolution: u32) -> Result<(u32, u32)> {
    choose_among(&BUCKETS, sizes, resolution)
}

/// [`choose`] with other buckets, `(height, width)` at resolution 512.
pub fn choose_among(buckets: &[(u32, u32)], sizes: &[(u32, u32)], resolution: u32) -> Result<(u32, u32)> {
    if sizes.is_empty() || sizes.iter().any(|(height, width)| *height == 0 || *width == 0) {
        return Err(PictureError::input("sizes", format!("{sizes:?} are not sizes of pictures")));
    }
    // Below 32 only a whole step of 16 leaves a bucket: the square.
    if resolution != 16 && !(32..=8192).contains(&resolution) {
        return Err(PictureError::input(
            "resolution",
            format!("{resolution} is not 16, or between 32 and 8192"),
        ));
    }
    let ratios = sizes.iter().map(|(height, width)| f64::from(*height) / f64::from(*width));
    let mean = ratios.sum::<f64>() / sizes.len() as f64;
    let mut best = (f64::INFINITY, (0, 0));
    for (height, width) in buckets {
        let (height, width) = (scaled(*height, resolution), scaled(*width, resolution));
        if height == 0 || width == 0 {
            continue;
        }
        let distance = (f64::from(height) / f64::from(width) - mean).abs();
        if distance < best.0 {
            best = (distance, (height, width));
        }
    }
    if best.0.is_infinite() {
        return Err(PictureError::input("buckets", format!("none has pixels at resolution {resolution}")));
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_ratios_decides() {
        assert_eq!(choose(&[(500, 500)], 512).ok(), Some((512, 512)));
        // Ratios 0.5 and 2: the mean is 1.25, not 1.
        assert_eq!(choose(&[(100, 200), (200, 100)], 512).ok(), Some((576, 448)));
        assert_eq!(choose(&[(1, 8000)], 512).ok(), Some((256, 768)));
    }

    #[test]
    fn the_smallest_resolution_has_the_square_alone() {
        assert_eq!(choose(&[(100, 1000)], 16).ok(), Some((16, 16)));
    }

    #[test]
    fn sides_are_cut_off_twice() {
        // 448 / 512 · 320 = 280, floored to 272.
        assert_eq!(choose(&[(448, 576)], 320).ok(), Some((272, 352)));
    }

    #[test]
    fn sizes_that_make_no_bucket_are_refused() {
        assert!(
            choose(&[], 512).is_err() && choose(&[(0, 1)], 512).is_err() && choose(&[(1, 1)], 31).is_err()
        );
    }
}
