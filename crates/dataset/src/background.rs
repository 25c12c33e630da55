//! Takes an even background away: a colour key that grows from the border inwards, so that the same colour within the
//! subject stays.

use image::{Rgba, RgbaImage};

/// Distance from the background's colour (Euclidean, of 255 a channel) up to which a pixel is background, and from which on
/// it is none of it. Between them it is both, as it is along an edge.
const SURELY: f32 = 26.0;
const HARDLY: f32 = 64.0;
/// Share of the border that has to have the background's colour.
const EVEN: f32 = 0.8;

/// The picture without its background; `None` if it has transparency already. The reason if its border has not one colour, or
/// nothing or everything would be left.
pub fn removed(picture: &RgbaImage) -> Result<Option<RgbaImage>, String> {
    if picture.pixels().any(|pixel| pixel.0[3] < u8::MAX) {
        return Ok(None);
    }
    let (width, height) = picture.dimensions();
    let border = border(width, height);
    let colour = median(border.iter().map(|(x, y)| picture.get_pixel(*x, *y)));
    let far = |pixel: &Rgba<u8>| distance(pixel, colour);
    let even = border.iter().filter(|(x, y)| far(picture.get_pixel(*x, *y)) <= SURELY).count() as f32
        / border.len().max(1) as f32;
    if even < EVEN {
        return Err(format!(
            "only {:.0} % of its border have one colour, not {:.0} %",
            even * 100.0,
            EVEN * 100.0
        ));
    }
    let mut without = picture.clone();
    let mut reached = vec![false; width as usize * height as usize];
    let mut next = border;
    while let Some((x, y)) = next.pop() {
        let seen = &mut reached[y as usize * width as usize + x as usize];
        let far = far(picture.get_pixel(x, y));
        if *seen || far >= HARDLY {
            continue;
        }
        *seen = true;
        let share = ((far - SURELY) / (HARDLY - SURELY)).clamp(0.0, 1.0);
        without.put_pixel(x, y, unmixed(picture.get_pixel(x, y), colour, share));
        next.extend(
            [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)]
                .into_iter()
                .filter(|(x, y)| *x < width && *y < height),
        );
    }
    let left =
        without.pixels().filter(|pixel| pixel.0[3] >= 128).count() as f32 / reached.len().max(1) as f32;
    if !(0.01..=0.98).contains(&left) {
        return Err(format!("{:.0} % of the picture would be left", left * 100.0));
    }
    Ok(Some(without))
}

/// What is over the background, where it is `share` of what is seen.
fn unmixed(pixel: &Rgba<u8>, background: [u8; 3], share: f32) -> Rgba<u8> {
    if share <= 0.0 {
        return Rgba([0, 0, 0, 0]);
    }
    let over = |channel: usize| {
        let mixed = f32::from(pixel.0[channel]) - (1.0 - share) * f32::from(background[channel]);
        (mixed / share).round().clamp(0.0, 255.0) as u8
    };
    Rgba([over(0), over(1), over(2), (share * 255.0).round() as u8])
}

fn distance(pixel: &Rgba<u8>, colour: [u8; 3]) -> f32 {
    let squares = pixel.0.iter().zip(colour).map(|(a, b)| (f32::from(*a) - f32::from(b)).powi(2));
    squares.sum::<f32>().sqrt()
}

/// Every pixel of the border once.
fn border(width: u32, height: u32) -> Vec<(u32, u32)> {
    let rows = (0..width).flat_map(|x| [(x, 0), (x, height.saturating_sub(1))]);
    let columns = (1..height.saturating_sub(1)).flat_map(|y| [(0, y), (width.saturating_sub(1), y)]);
    rows.chain(columns).filter(|(x, y)| *x < width && *y < height).collect()
}

/// Channel by channel.
fn median<'a>(pixels: impl Iterator<Item = &'a Rgba<u8>>) -> [u8; 3] {
    let mut channels = [const { Vec::new() }; 3];
    for pixel in pixels {
        for (channel, values) in channels.iter_mut().enumerate() {
            values.push(pixel.0[channel]);
        }
    }
    channels.map(|mut values| {
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A red ring with the background's colour in its hole, on a slightly uneven ground.
    fn ring(ground: [u8; 3]) -> RgbaImage {
        RgbaImage::from_fn(60, 60, |x, y| {
            let far = (x as f32 - 29.5).hypot(y as f32 - 29.5);
            let noise = ((x * 7 + y * 3) % 9) as u8;
            let [r, g, b] =
                if (10.0..22.0).contains(&far) { [200, 20, 20] } else { ground.map(|c| c - noise) };
            Rgba([r, g, b, 255])
        })
    }

    #[test]
    fn an_even_background_goes_and_the_subject_stays() {
        let without = removed(&ring([240, 240, 240])).expect("even").expect("opaque");
        let alpha = |x, y| without.get_pixel(x, y).0[3];
        assert_eq!((alpha(0, 0), alpha(59, 30), alpha(30, 14)), (0, 0, 255));
        // Not reached from the border: a hole of the same colour belongs to the subject.
        assert_eq!(alpha(30, 30), 255);
        assert_eq!(without.get_pixel(30, 14).0, [200, 20, 20, 255]);
    }

    #[test]
    fn what_is_not_even_is_left_with_a_reason() {
        let stripes = RgbaImage::from_fn(40, 40, |x, _| Rgba([if x % 8 < 4 { 0 } else { 255 }, 90, 90, 255]));
        assert!(removed(&stripes).expect_err("uneven").contains("of its border"));
        assert!(
            removed(&RgbaImage::from_pixel(40, 40, Rgba([9, 9, 9, 255]))).expect_err("empty").contains("0 %")
        );
        assert_eq!(removed(&RgbaImage::new(40, 40)), Ok(None));
    }

    #[test]
    fn an_edge_keeps_no_rim_of_the_background() {
        let half = Rgba([220, 130, 130, 255]);
        let edge = RgbaImage::from_fn(40, 40, |x, y| match (x.abs_diff(20), y.abs_diff(20)) {
            (dx, dy) if dx.max(dy) < 10 => Rgba([200, 20, 20, 255]),
            (dx, dy) if dx.max(dy) == 10 => half,
            _ => Rgba([240, 240, 240, 255]),
        });
        let without = removed(&edge).expect("even").expect("opaque");
        // A pixel that is half background is far from it in colour, and stays as it is.
        assert_eq!(*without.get_pixel(10, 20), half);
        let pale = RgbaImage::from_fn(40, 40, |x, y| match (x.abs_diff(20), y.abs_diff(20)) {
            (dx, dy) if dx.max(dy) < 10 => Rgba([200, 20, 20, 255]),
            (dx, dy) if dx.max(dy) == 10 => Rgba([234, 210, 210, 255]),
            _ => Rgba([240, 240, 240, 255]),
        });
        let rim = removed(&pale).expect("even").expect("opaque").get_pixel(10, 20).0;
        assert!(rim[3] > 0 && rim[3] < 255 && rim[1] < 210, "{rim:?}");
    }
}
