//! Pairs as a person sees them: out of the tars of units, by a filter, with small pictures.

use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::pair::Facts;
use crescendo_dataset::pictures::Picture;
use crescendo_dataset::shard::{StoredPair, read_stored};
use crescendo_node::objects::with_causes;
use crescendo_proto::v1::{
    PairFilter, PairPlace, PairTar, PartScore, ReadPairsResponse, ReadStoredPairs, ReviewedPair, SendFailure,
};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use object_store::{ObjectStore, ObjectStoreExt as _};
use prost::Message as _;
use serde_json::Value;

use crate::serve::failure::{lasting, passing};

/// Largest answer.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// Bytes of tars that are read for one answer; the one that passes it is read to its end.
const MAX_READ_BYTES: usize = 256 << 20;
/// Limit of reading one tar.
const TAR_DEADLINE: Duration = Duration::from_secs(20);
/// A provenance that is longer is left out.
const MAX_PROVENANCE_BYTES: usize = 16 << 10;
/// Parts of a judgment that are shown.
const MAX_PARTS: usize = 160;
/// Quality of a picture that had to be made smaller, of 100.
const QUALITY: u8 = 88;
/// Below this a picture is not made smaller for the sake of the answer's size.
const LEAST_PIXELS: u32 = 32;

/// The pairs that are asked for, as the bytes of a [`ReadPairsResponse`].
pub async fn read(store: &dyn ObjectStore, wanted: &ReadStoredPairs) -> Result<Bytes, SendFailure> {
    let mut answer = Answer::default();
    let mut read_bytes = 0;
    for (at, tar) in wanted.tars.iter().enumerate() {
        let first = if at == 0 { wanted.from_number } else { 0 };
        if read_bytes >= MAX_READ_BYTES {
            answer.next = Some(PairPlace { unit: tar.unit, number: first });
            break;
        }
        let Some(bytes) = get(store, tar).await? else { continue };
        read_bytes += bytes.len();
        let (tar, filter) = (tar.clone(), wanted.filter.clone().unwrap_or_default());
        let (limit, pixels) = (wanted.limit as usize, wanted.picture_pixels);
        let looking = tokio::task::spawn_blocking(move || {
            let looked = answer.look(&tar, first, &bytes, &filter, limit, pixels);
            (answer, looked)
        });
        let looked = looking.await.map_err(|error| passing(format!("read pairs: {error}")))?;
        answer = looked.0;
        looked.1?;
        if answer.next.is_some() {
            break;
        }
    }
    let response = ReadPairsResponse { pairs: answer.pairs, next: answer.next, units: 0 };
    Ok(response.encode_to_vec().into())
}

/// What was found so far.
#[derive(Default)]
struct Answer {
    pairs: Vec<ReviewedPair>,
    bytes: usize,
    /// The first that had no room.
    next: Option<PairPlace>,
}

impl Answer {
    /// Takes what is wanted of one tar, from its pair `first` on.
    fn look(
        &mut self,
        tar: &PairTar,
        first: u32,
        bytes: &[u8],
        filter: &PairFilter,
        limit: usize,
        pixels: u32,
    ) -> Result<(), SendFailure> {
        let is_registered = !tar.sha256.is_empty();
        let stored = match read_stored(bytes) {
            Ok(stored) => stored,
            Err(reason) if is_registered => return Err(lasting(format!("shard {}: {reason}", tar.key))),
            Err(reason) => {
                tracing::warn!(key = tar.key, %reason, "turned-down candidates are passed over");
                return Ok(());
            }
        };
        let readable = if is_registered { tar.readable as usize } else { stored.len() };
        let numbered = (0u32..).zip(stored.into_iter().take(readable)).skip(first as usize);
        for (number, stored) in numbered.filter(|(_, stored)| is_wanted(&stored.facts, filter)) {
            let place = PairPlace { unit: tar.unit, number };
            let index = is_registered.then(|| tar.first_index + u64::from(number));
            if self.pairs.len() >= limit {
                self.next = Some(place);
                return Ok(());
            }
            let pair = shown(place, index, stored, pixels);
            let size = pair.encoded_len();
            if self.bytes + size > MAX_ANSWER_BYTES {
                self.next = Some(place);
                return Ok(());
            }
            self.bytes += size;
            self.pairs.push(pair);
        }
        Ok(())
    }
}

/// None where candidates that were turned down were not kept.
async fn get(store: &dyn ObjectStore, tar: &PairTar) -> Result<Option<Vec<u8>>, SendFailure> {
    let key = &tar.key;
    let location = object_store::path::Path::parse(key).map_err(|error| lasting(error.to_string()))?;
    let reading = async { store.get(&location).await?.bytes().await };
    let bytes = match tokio::time::timeout(TAR_DEADLINE, reading).await {
        Ok(Ok(bytes)) => bytes.to_vec(),
        Ok(Err(object_store::Error::NotFound { .. })) if tar.sha256.is_empty() => return Ok(None),
        Ok(Err(object_store::Error::NotFound { .. })) => {
            return Err(lasting(format!("{key} is not in the object store")));
        }
        Ok(Err(error)) => return Err(passing(format!("cannot read {key}: {}", with_causes(&error)))),
        Err(_) => return Err(passing(format!("cannot read {key}: no answer within {TAR_DEADLINE:?}"))),
    };
    if !tar.sha256.is_empty() && sha256_hex(&bytes) != tar.sha256 {
        return Err(lasting(format!("shard {key}: its SHA-256 is not the registered one")));
    }
    Ok(Some(bytes))
}

fn is_wanted(facts: &Facts, filter: &PairFilter) -> bool {
    let PairFilter { reasons, score, least, most } = filter;
    let reason = facts.rejected();
    let has_reason = reasons.is_empty() || reason.is_empty() || reasons.iter().any(|one| one == reason);
    let in_range = || facts.scores.get(score).is_some_and(|value| least <= value && value <= most);
    has_reason && (score.is_empty() || in_range())
}

fn shown(place: PairPlace, index: Option<u64>, stored: StoredPair, pixels: u32) -> ReviewedPair {
    let StoredPair { facts, target, references } = stored;
    let provenance_json = facts.provenance.to_string();
    let reason = if index.is_some() { String::new() } else { facts.rejected().to_owned() };
    let mut pair = ReviewedPair {
        place: Some(place),
        index,
        reason,
        parts: parts(&facts.provenance),
        provenance_json: if provenance_json.len() > MAX_PROVENANCE_BYTES {
            String::new()
        } else {
            provenance_json
        },
        prompt: facts.prompt,
        reference_words: facts.reference_words,
        scores: facts.scores,
        target: Vec::new(),
        references: Vec::new(),
    };
    // Together they have to fit, however large and many.
    let mut pixels = pixels;
    loop {
        pair.target = small(&target, pixels);
        pair.references = references.iter().map(|png| small(png, pixels)).collect();
        if pair.encoded_len() <= MAX_ANSWER_BYTES || pixels <= LEAST_PIXELS {
            return pair;
        }
        pixels /= 2;
    }
}

/// What the judge's score is made of, as its details in the provenance have it.
fn parts(provenance: &Value) -> Vec<PartScore> {
    let Some(judged) = provenance.get("judge") else { return Vec::new() };
    let of = |reference: Option<u32>, details: &Value| -> Vec<PartScore> {
        let listed = details.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let part = |one: &Value| {
            let (part, score) = (one.get("part")?.as_str()?.to_owned(), one.get("score")?.as_f64()?);
            Some(PartScore { reference, part, score })
        };
        listed.iter().filter_map(part).collect()
    };
    let by_reference = judged.get("references").and_then(Value::as_array).map(Vec::as_slice);
    let each = (0u32..).zip(by_reference.unwrap_or_default());
    let parts = each.flat_map(|(reference, details)| of(Some(reference), details)).chain(of(None, judged));
    parts.take(MAX_PARTS).collect()
}

/// The picture with no side longer than `pixels`: its own file, if it is so already. Empty if it cannot be decoded.
fn small(png: &[u8], pixels: u32) -> Vec<u8> {
    let Ok(picture) = Picture::decode("picture", png) else { return Vec::new() };
    let (width, height) = picture.size();
    let longest = width.max(height);
    if longest <= pixels {
        return png.to_vec();
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(pixels) / u64::from(longest)).max(1) as u32;
    let small: RgbImage = image::imageops::thumbnail(&picture.into_rgb(), scaled(width), scaled(height));
    let mut bytes = Cursor::new(Vec::new());
    match small.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)) {
        Ok(()) => bytes.into_inner(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crescendo_core::object_keys;
    use crescendo_core::rejection::Rejection;
    use crescendo_dataset::pair::Pair;
    use crescendo_dataset::shard::{ShardBytes, ShardWriter};
    use object_store::memory::InMemory;
    use serde_json::json;

    use super::*;

    fn pair(similarity: f64, side: u32) -> Pair {
        Pair {
            target: RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, 7])),
            references: vec![RgbImage::new(8, 8)],
            prompt: format!("a cup, {similarity}"),
            reference_words: vec!["cup".into()],
            scores: BTreeMap::from([("similarity".to_owned(), similarity)]),
            provenance: json!({ "seed": 3, "judge": { "references": [
                { "parts": [{ "part": "handle", "score": 4 }, { "part": "rim", "score": 2 }] },
            ] } }),
        }
    }

    fn tar(pairs: &[Pair]) -> ShardBytes {
        let mut writer = ShardWriter::default();
        pairs.iter().for_each(|pair| writer.push(pair).expect("written"));
        writer.finish().expect("a shard")
    }

    async fn put(store: &InMemory, key: &str, bytes: Vec<u8>) {
        store.put(&key.into(), bytes.into()).await.expect("put");
    }

    /// Units 3 and 4 of a log, with pairs 10 to 12 and 13 to 14, of which the last cannot be read yet.
    async fn log(store: &InMemory) -> Vec<PairTar> {
        let mut tars = Vec::new();
        for (unit, similarities, first_index, readable) in
            [(3, &[0.7, 0.9, 0.8][..], 10, 3), (4, &[0.95, 0.99][..], 13, 1)]
        {
            let pairs: Vec<Pair> = similarities.iter().map(|one| pair(*one, 64)).collect();
            let shard = tar(&pairs);
            let key = object_keys::shard("j", "s", unit, 1);
            put(store, &key, shard.bytes).await;
            tars.push(PairTar { unit, key, sha256: shard.sha256, first_index, readable });
        }
        tars
    }

    async fn ask(store: &InMemory, wanted: &ReadStoredPairs) -> ReadPairsResponse {
        let bytes = read(store, wanted).await.expect("read");
        ReadPairsResponse::decode(bytes).expect("an answer")
    }

    fn indices(answer: &ReadPairsResponse) -> Vec<u64> {
        answer.pairs.iter().filter_map(|pair| pair.index).collect()
    }

    #[tokio::test]
    async fn a_log_is_read_in_parts_and_by_score() {
        let store = InMemory::new();
        let tars = log(&store).await;
        let wanted = ReadStoredPairs { tars, limit: 2, picture_pixels: 32, ..Default::default() };
        let first = ask(&store, &wanted).await;
        assert_eq!((indices(&first), first.next), (vec![10, 11], Some(PairPlace { unit: 3, number: 2 })));
        let rest = ask(&store, &ReadStoredPairs { from_number: 2, limit: 9, ..wanted.clone() }).await;
        assert_eq!((indices(&rest), rest.next), (vec![12, 13], None));
        let filter = PairFilter { score: "similarity".into(), least: 0.8, most: 0.9, ..Default::default() };
        let some = ask(&store, &ReadStoredPairs { filter: Some(filter), limit: 9, ..wanted.clone() }).await;
        assert_eq!(indices(&some), [11, 12]);
        let shown = &some.pairs[0];
        assert_eq!((shown.prompt.as_str(), shown.reason.as_str()), ("a cup, 0.9", ""));
        let parts: Vec<_> =
            shown.parts.iter().map(|one| (one.reference, one.part.as_str(), one.score)).collect();
        assert_eq!(parts, [(Some(0), "handle", 4.0), (Some(0), "rim", 2.0)]);
        let side = |bytes: &[u8]| Picture::decode("picture", bytes).expect("a picture").size();
        assert_eq!((side(&shown.target), side(&shown.references[0])), ((32, 32), (8, 8)));
    }

    #[tokio::test]
    async fn a_shard_that_is_not_what_is_registered_is_an_error_and_a_sample_is_passed_over() {
        let store = InMemory::new();
        let mut tars = log(&store).await;
        let mut turned_down = pair(0.2, 16);
        turned_down.note_rejection(Rejection::SimilarityLow);
        let sample = |unit: u64| PairTar {
            unit,
            key: object_keys::rejected_sample("j", "s", unit),
            ..Default::default()
        };
        put(&store, &sample(1).key, tar(&[turned_down, pair(0.3, 16)]).bytes).await;
        put(&store, &sample(2).key, b"torn".to_vec()).await;
        let wanted = ReadStoredPairs {
            tars: (0..4).map(sample).collect(),
            limit: 9,
            picture_pixels: 32,
            ..Default::default()
        };
        let found = ask(&store, &wanted).await;
        let reasons: Vec<&str> = found.pairs.iter().map(|pair| pair.reason.as_str()).collect();
        assert_eq!((reasons, indices(&found).len()), (vec!["similarity_low", ""], 0));
        let filter = PairFilter { reasons: vec!["judge_low".into()], ..Default::default() };
        let none = ask(&store, &ReadStoredPairs { filter: Some(filter), ..wanted.clone() }).await;
        assert_eq!(none.pairs.iter().filter(|pair| pair.reason == "similarity_low").count(), 0);

        tars[0].sha256 = "0".repeat(64);
        let refused =
            read(&store, &ReadStoredPairs { tars, ..wanted.clone() }).await.expect_err("it is another");
        assert!(refused.reason.contains("SHA-256") && !refused.passing, "{refused:?}");
        let gone = PairTar { sha256: "0".repeat(64), ..sample(9) };
        let refused = read(&store, &ReadStoredPairs { tars: vec![gone], ..wanted }).await.expect_err("gone");
        assert!(refused.reason.ends_with("is not in the object store"), "{refused:?}");
    }
}
