//! What CLIP and DINO look at: shortest edge resized, centre cropped, normalised.

use crescendo_dataset::pictures::resample::{Filter, Window, resample};
use crescendo_dataset::pictures::{MAX_PIXELS, Picture};
use image::RgbImage;
use image::imageops::crop_imm;
use tch::{Kind, Tensor};

use super::planes;
use crate::error::{ModelError, Result};

/// How 8-bit pixels are resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resampler {
    /// As Pillow does: what published scores were computed with.
    #[default]
    Pillow,
    /// As torchvision does on tensors, the default of newer library versions; differs by a grey level here and there.
    Torch,
}

/// An image processor: bicubic resize of the shortest edge to `resize`, the central `crop` x `crop` pixels, values
/// `(v / 255 − mean) / deviation` by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Shortest edge after resizing, pixels.
    pub resize: u32,
    /// Side of the square that is kept, at most `resize`.
    pub crop: u32,
    pub mean: [f64; 3],
    pub deviation: [f64; 3],
    pub resampler: Resampler,
}

impl ImageProcessor {
    /// CLIP's, for a vision tower of `side` pixels; 224 for those published.
    pub fn clip(side: u32) -> Self {
        Self {
            resize: side,
            crop: side,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            deviation: [0.268_629_54, 0.261_302_58, 0.275_777_11],
            resampler: Resampler::Pillow,
        }
    }

    /// DINO's; published scores resize to 256 and crop 224.
    pub fn dino(resize: u32, crop: u32) -> Self {
        Self {
            resize,
            crop,
            mean: [0.485, 0.456, 0.406],
            deviation: [0.229, 0.224, 0.225],
            resampler: Resampler::Pillow,
        }
    }

    pub fn validate(&self) -> Result<()> {
        if !(1..=4096).contains(&self.resize) {
            return Err(ModelError::Config {
                field: "resize",
                reason: format!("{} is not between 1 and 4096", self.resize),
            });
        }
        if !(1..=self.resize).contains(&self.crop) {
            return Err(ModelError::Config {
                field: "crop",
                reason: format!("{} is not between 1 and resize, {}", self.crop, self.resize),
            });
        }
        if self.deviation.iter().any(|deviation| !(deviation.is_finite() && *deviation > 0.0)) {
            return Err(ModelError::Config {
                field: "deviation",
                reason: format!("{:?} are not all above 0", self.deviation),
            });
        }
        Ok(())
    }

    /// Size of a picture after resizing: the shortest edge exactly, the other cut off to whole pixels.
    fn resized(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let other = |long: u32, short: u32| {
            (f64::from(self.resize) * f64::from(long) / f64::from(short)).min(f64::from(u32::MAX)) as u32
        };
        if width <= height {
            (self.resize, other(height, width))
        } else {
            (other(width, height), self.resize)
        }
    }

    /// The resized and cropped 8-bit pixels.
    pub fn pixels(&self, picture: &RgbImage) -> Result<RgbImage> {
        self.validate()?;
        if picture.width() == 0 || picture.height() == 0 {
            return Err(ModelError::input("picture", "it has no pixels"));
        }
        let (width, height) = self.resized(picture.dimensions());
        let window = Window {
            left: (width - self.crop) / 2,
            top: (height - self.crop) / 2,
            width: self.crop,
            height: self.crop,
        };
        match self.resampler {
            Resampler::Pillow => {
                let picture = Picture::from(picture.clone());
                Ok(resample(&picture, (width, height), window, Filter::Bicubic)?.to_rgb())
            }
            Resampler::Torch => {
                if u64::from(width) * u64::from(height) > MAX_PIXELS {
                    let reason = format!("resized to {width}x{height} it has more than {MAX_PIXELS} pixels");
                    return Err(ModelError::input("picture", reason));
                }
                let size = [i64::from(height), i64::from(width)];
                // On bytes, as torchvision calls it: this kernel has an arithmetic of its own for them.
                let resized = planes(&[picture])?
                    .f_internal_upsample_bicubic2d_aa(size, false, None, None)?
                    .f_squeeze_dim(0)?
                    .f_permute([1, 2, 0])?
                    .f_contiguous()?
                    .f_reshape([-1])?;
                let resized =
                    RgbImage::from_raw(width, height, Vec::<u8>::try_from(&resized)?).unwrap_or_default();
                Ok(crop_imm(&resized, window.left, window.top, window.width, window.height).to_image())
            }
        }
    }

    /// What the network takes: `[n, 3, crop, crop]` float32.
    pub fn process(&self, pictures: &[&RgbImage]) -> Result<Tensor> {
        let cut = pictures.iter().map(|picture| self.pixels(picture)).collect::<Result<Vec<_>>>()?;
        let pixels = planes(&cut.iter().collect::<Vec<_>>())?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?;
        let channel = |values: &[f64; 3]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_to_kind(Kind::Float)?.f_view([1, 3, 1, 1])?)
        };
        Ok(pixels.f_sub(&channel(&self.mean)?)?.f_div(&channel(&self.deviation)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_strip_takes_no_more_memory_than_its_crop() {
        // Resized as a whole it would have 4096 · 30,000,000 pixels.
        let strip = RgbImage::from_pixel(30_000, 1, image::Rgb([10, 20, 30]));
        let processor = ImageProcessor::clip(64);
        let cut = processor.pixels(&strip).expect("bounded");
        assert_eq!(cut.dimensions(), (64, 64));
        assert!(cut.pixels().all(|pixel| pixel.0 == [10, 20, 30]));
        let torch = ImageProcessor { resampler: Resampler::Torch, resize: 4096, ..processor };
        assert!(torch.pixels(&strip).is_err());
    }

    #[test]
    fn values_are_normalised_by_channel() {
        let gray = RgbImage::from_pixel(5, 9, image::Rgb([255, 0, 51]));
        let processor = ImageProcessor::dino(8, 4);
        let tensor = processor.process(&[&gray, &gray]).expect("fits");
        assert_eq!(tensor.size(), [2, 3, 4, 4]);
        for (channel, value) in [1.0, 0.0, 0.2].into_iter().enumerate() {
            let expected = (value - processor.mean[channel]) / processor.deviation[channel];
            let got = tensor.double_value(&[1, channel as i64, 3, 3]);
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn settings_out_of_range_name_their_field() {
        for (processor, field) in [
            (ImageProcessor::dino(8, 9), "crop"),
            (ImageProcessor::dino(0, 0), "resize"),
            (ImageProcessor { deviation: [0.0; 3], ..ImageProcessor::clip(8) }, "deviation"),
        ] {
            let error = processor.validate().expect_err("out of range").to_string();
            assert!(error.starts_with(field), "{error}");
        }
        assert!(ImageProcessor::clip(8).process(&[]).is_err());
        assert!(ImageProcessor::clip(8).pixels(&RgbImage::new(0, 0)).is_err());
    }
}
