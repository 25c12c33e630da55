//! A picture of any bytes is decoded or refused, turned by what lies beside its pixels or not, and becomes a reference or an error.
#![no_main]

use crescendo_core::spec::Orientation;
use crescendo_dataset::pictures::{Picture, reference};
use libfuzzer_sys::fuzz_target;

/// Pictures larger than this are not resampled: speed is not what is tested.
const MOST_PIXELS: u32 = 1 << 18;
const LONG_SIDE: u32 = 64;
const MULTIPLE: u32 = 16;

fuzz_target!(|bytes: &[u8]| {
    let stored = Picture::decode("stored", bytes);
    let upright = Picture::decode_as("upright", bytes, Orientation::Upright);
    // What lies beside the pixels decides how they lie, and not whether there are any.
    assert_eq!(stored.is_ok(), upright.is_ok());
    let (Ok(stored), Ok(upright)) = (stored, upright) else { return };
    let ((wide, high), turned) = (stored.size(), upright.size());
    assert!(turned == (wide, high) || turned == (high, wide), "{turned:?} of {wide} x {high}");
    for picture in [&stored, &upright] {
        let pixels = wide as usize * high as usize;
        assert_eq!(picture.bytes().len(), pixels * picture.channels().count());
    }
    if wide.checked_mul(high).is_some_and(|pixels| pixels <= MOST_PIXELS)
        && let Ok(reference) = reference::prepare("reference", &upright, LONG_SIDE, MULTIPLE)
    {
        assert!(reference.width().max(reference.height()) <= LONG_SIDE);
        assert!(reference.width() % MULTIPLE == 0 && reference.height() % MULTIPLE == 0);
    }
});
