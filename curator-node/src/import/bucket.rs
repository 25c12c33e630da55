//! The published training resolutions (UNO's data loader): each picture is stretched to the bucket whose shape is nearest.

/// (height, width) at 512 pixels, in the published order.
const AT_512: [(u32, u32); 11] = [
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

/// Sides are multiples of this, pixels.
const STEP: u32 = 16;

/// (height, width) that a picture of `height` x `width` is stretched to at `resolution` pixels: the first bucket with the
/// nearest height / width. Both truncations of the published code are kept.
pub fn bucket(height: u32, width: u32, resolution: u32) -> (u32, u32) {
    let scaled = |side: u32| {
        let pixels = (f64::from(side) / 512.0 * f64::from(resolution)) as u32;
        (pixels / STEP * STEP).max(STEP)
    };
    let ratio = f64::from(height) / f64::from(width.max(1));
    let mut best = (f64::INFINITY, (STEP, STEP));
    for (bucket_height, bucket_width) in AT_512.map(|(h, w)| (scaled(h), scaled(w))) {
        let distance = (f64::from(bucket_height) / f64::from(bucket_width) - ratio).abs();
        if distance < best.0 {
            best = (distance, (bucket_height, bucket_width));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_shape_is_taken() {
        assert_eq!(bucket(1024, 1024, 512), (512, 512));
        assert_eq!(bucket(1024, 811, 512), (576, 448));
        assert_eq!(bucket(100, 1000, 512), (256, 768));
        assert_eq!(bucket(9000, 1, 512), (768, 256));
        // 576 / 512 * 320 = 360, floored to 352; 448 / 512 * 320 = 280, floored to 272.
        assert_eq!(bucket(1024, 811, 320), (352, 272));
        assert_eq!(bucket(512, 512, 32), (32, 32));
    }

    /// The golden sizes of the published loader.
    #[test]
    fn sizes_are_the_published_ones() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/image_preproc_bucket.safetensors");
        let file = crescendo_model::weights::TensorFile::open(std::path::Path::new(path))
            .expect("the fixture is there");
        let rows = |name: &str| -> Vec<Vec<i64>> {
            let tensor = file.tensor(name).expect("the fixture has it");
            Vec::<Vec<i64>>::try_from(&tensor).expect("a table of whole numbers")
        };
        let (inputs, outputs) = (rows("in.single"), rows("out.single"));
        assert!(inputs.len() > 10);
        for (input, output) in inputs.iter().zip(&outputs) {
            let (height, width) = bucket(input[0] as u32, input[1] as u32, input[2] as u32);
            assert_eq!(vec![i64::from(height), i64::from(width)], *output, "of {input:?}");
        }
    }
}
