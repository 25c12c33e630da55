//! A tar of any bytes gives pairs, rejections or an error, and the same ones whenever it is read.
#![no_main]

use crescendo_core::spec::Orientation;
use crescendo_dataset::tar_pairs::{TarPairs, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let told = |found: TarPairs| -> (Vec<_>, _) {
        let pairs = found.pairs.into_iter().map(|pair| pair.map(|pair| (pair.prompt, pair.references.len())));
        (pairs.collect(), found.foreign)
    };
    let Ok(found) = read(tar, Orientation::Upright) else { return };
    let (pairs, foreign) = told(found);
    // Each member takes a block of its own.
    assert!(pairs.len() as u64 + foreign.members <= tar.len() as u64 / 512);
    let again = read(tar, Orientation::Upright).expect("it was read before");
    assert_eq!((pairs, foreign), told(again));
});
