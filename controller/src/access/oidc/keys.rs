//! The issuer's public keys.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Keys of one set that are kept.
const MAX_KEYS: usize = 100;

/// The keys of one fetch that can be used here.
#[derive(Debug, Default)]
pub(super) struct Keys {
    list: Vec<Key>,
}

#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// The only one that it is used with.
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    /// Keys that are for something else, or of a kind that is not known here, are left out.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let set: KeySet = serde_json::from_slice(json)?;
        let known = set.keys.into_iter().filter_map(|value| key(&serde_json::from_value(value).ok()?));
        Ok(Self { list: known.take(MAX_KEYS).collect() })
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The key with that id; a token without one can only mean the only key of its algorithm.
    pub fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut fit = self
            .list
            .iter()
            .filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
        let found = fit.next()?;
        (id.is_some() || fit.next().is_none()).then_some(found)
    }
}

fn key(jwk: &Jwk) -> Option<Key> {
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(curve) if curve.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_) => return None,
    };
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    let right = jwk.common.key_algorithm.as_ref().is_none_or(|given| *given == named);
    let id = jwk.common.key_id.clone();
    (signs && right).then_some(Key { id, algorithm, decoding: DecodingKey::from_jwk(jwk).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn okp(id: &str, more: &str) -> String {
        format!(r#"{{"kty": "OKP", "crv": "Ed25519", "x": "{X}"{id}{more}}}"#)
    }

    fn keys(list: &[String]) -> Keys {
        Keys::parse(format!(r#"{{"keys": [{}]}}"#, list.join(",")).as_bytes()).expect("a set")
    }

    #[test]
    fn a_key_is_found_by_id_and_used_with_its_own_algorithm() {
        let set = keys(&[okp(r#", "kid": "a""#, ""), okp(r#", "kid": "b""#, "")]);
        assert!(set.find(Some("a"), Algorithm::EdDSA).is_some());
        assert!(set.find(Some("a"), Algorithm::HS256).is_none());
        assert!(set.find(Some("a"), Algorithm::RS256).is_none());
        assert!(set.find(Some("c"), Algorithm::EdDSA).is_none());
        assert!(set.find(None, Algorithm::EdDSA).is_none(), "which of the two");
        assert!(keys(&[okp("", "")]).find(None, Algorithm::EdDSA).is_some());
    }

    #[test]
    fn keys_for_something_else_are_left_out() {
        let others = [
            okp("", r#", "use": "enc""#),
            okp("", r#", "alg": "RS256""#),
            r#"{"kty": "oct", "k": "c2VjcmV0"}"#.to_owned(),
            r#"{"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}"#.to_owned(),
            r#"{"kty": "new"}"#.to_owned(),
            "7".to_owned(),
        ];
        assert!(keys(&others).is_empty());
        assert!(Keys::parse(b"{}").is_err() && Keys::parse(b"<html>").is_err());
    }
}
