//! Signatures of tokens, checked with ring: the one cryptographic library of all processes.

use jsonwebtoken::crypto::{CryptoProvider, JwkUtils, JwtVerifier};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature as ring_signature;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(new_error(ErrorKind::InvalidAlgorithm)),
    verifier_factory: |algorithm, key| Ok(Box::new(verifier(*algorithm, key)?)),
    jwk_utils: JwkUtils::new_unimplemented(),
};

/// Makes the library use it. Doing so again changes nothing.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

struct RingVerifier {
    algorithm: Algorithm,
    key: PublicKey,
}

enum PublicKey {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// Uncompressed point.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<RingVerifier> {
    let key = match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            PublicKey::Rsa(without_zeros(n), without_zeros(e))
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => PublicKey::P256(point.clone()),
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => PublicKey::Ed25519(key.clone()),
        _ => return Err(new_error(ErrorKind::InvalidAlgorithm)),
    };
    Ok(RingVerifier { algorithm, key })
}

/// Ring takes numbers without leading zeros; some issuers write one.
fn without_zeros(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let outcome = match &self.key {
            PublicKey::Rsa(n, e) => ring_signature::RsaPublicKeyComponents { n, e }.verify(
                &ring_signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                given,
            ),
            PublicKey::P256(point) => {
                ring_signature::UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, given)
            }
            PublicKey::Ed25519(key) => {
                ring_signature::UnparsedPublicKey::new(&ring_signature::ED25519, key).verify(message, given)
            }
        };
        outcome.map_err(|_| signature::Error::new())
    }
}
