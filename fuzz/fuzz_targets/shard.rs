//! A shard of any bytes is read or refused, and each pair of one that is read can be read alone.
#![no_main]

use crescendo_dataset::shard::read_shard;
use crescendo_dataset::shard_index::ShardIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let read = read_shard(tar);
    let Ok(index) = ShardIndex::of(tar) else { return };
    for place in 0..index.len() {
        let range = index.range(place).expect("a counted pair has a place");
        let bytes = tar.get(range.start as usize..range.end as usize).expect("it lies in the shard");
        let alone = index.verified(place, bytes);
        if let Ok(pairs) = &read
            && pairs.len() == index.len()
            && let Ok(alone) = alone
        {
            assert_eq!(alone.prompt, pairs[place].prompt);
        }
    }
});
