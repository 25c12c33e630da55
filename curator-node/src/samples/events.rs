//! What was drawn with a checkpoint, and the loss on pairs that training never sees, for TensorBoard.

use crescendo_core::object_keys;
use crescendo_node::tfevents::{Event, Value, begin, push};
use crescendo_proto::v1::{DrawSamples, ValidationLoss};
use image::{ImageFormat, RgbImage, imageops};
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use std::io::Cursor;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Limit of writing the file: the samples are registered after it, and do not depend on it.
const PUT_DEADLINE: Duration = Duration::from_secs(20);
/// Longest side of a picture in a strip, pixels: TensorBoard keeps all steps in memory.
const MOST_PIXELS: u32 = 256;
/// Longest name of a strip, characters.
const MOST_WORDS: usize = 120;
/// Pixels between the references and what was drawn.
const GAP: u32 = 4;

/// Why an event file was not written.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    #[error("encode a picture")]
    Picture(#[from] image::ImageError),
    #[error("the key is none")]
    Key(#[from] object_store::path::Error),
    #[error("write the events")]
    Put(#[from] object_store::Error),
    #[error("no answer within {PUT_DEADLINE:?}")]
    Late,
}

/// The references of one prompt, and what was drawn after them, side by side.
pub struct Strip {
    words: String,
    pictures: Vec<RgbImage>,
    references: usize,
}

impl Strip {
    pub fn of(prompt: &str, references: &[RgbImage]) -> Self {
        let pictures: Vec<RgbImage> = references.iter().map(small).collect();
        Self { words: prompt.chars().take(MOST_WORDS).collect(), references: pictures.len(), pictures }
    }

    pub fn add(&mut self, drawn: &RgbImage) {
        self.pictures.push(small(drawn));
    }

    fn picture(&self) -> RgbImage {
        let gap = if self.references > 0 { GAP } else { 0 };
        let width = self.pictures.iter().map(RgbImage::width).sum::<u32>() + gap;
        let height = self.pictures.iter().map(RgbImage::height).max().unwrap_or(0);
        let mut strip = RgbImage::from_pixel(width.max(1), height.max(1), image::Rgb([255; 3]));
        let mut x = 0;
        for (n, picture) in self.pictures.iter().enumerate() {
            if n == self.references {
                x += gap;
            }
            imageops::replace(&mut strip, picture, i64::from(x), 0);
            x += picture.width();
        }
        strip
    }
}

/// A picture no larger than strips have them.
fn small(picture: &RgbImage) -> RgbImage {
    let longer = picture.width().max(picture.height());
    if longer <= MOST_PIXELS {
        return picture.clone();
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(MOST_PIXELS) / u64::from(longer)).max(1) as u32;
    imageops::resize(
        picture,
        scaled(picture.width()),
        scaled(picture.height()),
        imageops::FilterType::Triangle,
    )
}

/// Puts the event file of an order that was carried out; nothing if there is nothing to show.
pub async fn write(
    objects: &dyn ObjectStore,
    order: &DrawSamples,
    strips: Vec<Strip>,
    validation: Option<&ValidationLoss>,
) -> Result<(), EventsError> {
    let stage = order.stage.clone().unwrap_or_default();
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let Some(file) = file(at, order.step, &strips, validation)? else { return Ok(()) };
    let key = object_keys::sample_events(&stage.job_id, &stage.stage, order.step, order.generation);
    let location = object_store::path::Path::parse(&key)?;
    let putting = objects.put(&location, PutPayload::from(file));
    tokio::time::timeout(PUT_DEADLINE, putting).await.map_err(|_| EventsError::Late)??;
    Ok(())
}

fn file(
    at: f64,
    step: u64,
    strips: &[Strip],
    validation: Option<&ValidationLoss>,
) -> Result<Option<Vec<u8>>, EventsError> {
    let mut values = Vec::new();
    if let Some(loss) = validation {
        values.push(Value::scalar("validation/loss", loss.mean));
        for (time, at_time) in loss.times.iter().zip(&loss.losses) {
            values.push(Value::scalar(&format!("validation/loss at time {time}"), *at_time));
        }
    }
    for (number, strip) in strips.iter().enumerate() {
        let picture = strip.picture();
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png)?;
        // Two prompts may have the same words.
        let tag = format!("samples/{}: {}", number + 1, strip.words);
        values.push(Value::picture(&tag, picture.dimensions(), png.into_inner()));
    }
    if values.is_empty() {
        return Ok(None);
    }
    let mut file = Vec::new();
    begin(&mut file, at);
    push(&mut file, &Event::of_step(at, step, values));
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_testing::event_files::events;

    fn plain(side: u32, shade: u8) -> RgbImage {
        RgbImage::from_pixel(side, side, image::Rgb([shade; 3]))
    }

    #[test]
    fn pictures_stand_beside_their_references_under_the_prompt() {
        let mut strip = Strip::of("a cup", &[plain(8, 10)]);
        strip.add(&plain(8, 90));
        strip.add(&plain(8, 200));
        let loss = ValidationLoss { mean: 0.25, pairs: 2, times: vec![0.1, 0.9], losses: vec![0.125, 0.375] };
        let file = file(3.0, 40, &[strip], Some(&loss)).unwrap().unwrap();
        let found = events(&file);
        assert_eq!(found[1].step, 40);
        let values = &found[1].summary.as_ref().unwrap().value;
        let numbers: Vec<_> =
            values.iter().filter_map(|one| Some((one.tag.as_str(), one.simple_value?))).collect();
        assert_eq!(
            numbers,
            [
                ("validation/loss", 0.25),
                ("validation/loss at time 0.1", 0.125),
                ("validation/loss at time 0.9", 0.375)
            ]
        );
        let shown = &values[3];
        assert_eq!(shown.tag, "samples/1: a cup");
        let picture = image::load_from_memory(&shown.image.as_ref().unwrap().encoded).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (8 * 3 + GAP, 8));
        let at = |x: u32| picture.get_pixel(x, 0).0[0];
        assert_eq!([at(0), at(8), at(8 + GAP), at(16 + GAP)], [10, 255, 90, 200]);
    }

    #[test]
    fn what_is_large_is_shrunk_and_what_is_not_there_has_no_file() {
        let mut strip = Strip::of("a house", &[]);
        strip.add(&RgbImage::new(1024, 512));
        assert_eq!(strip.picture().dimensions(), (256, 128));
        assert!(file(0.0, 1, &[], None).unwrap().is_none());
    }
}
