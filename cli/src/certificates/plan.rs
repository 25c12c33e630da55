//! What certificates there should be, and whether one that is there will do. Pure.

use std::net::IpAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

const MIN_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LIFETIME: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// All certificates of a release.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Plan {
    pub authorities: Vec<Authority>,
    pub certificates: Vec<Leaf>,
}

/// Vouches for certificates. Its key stays when it is renewed, so that what it has signed remains good.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Authority {
    /// The Secret that it is kept in, which no pod mounts.
    pub secret: String,
    pub common_name: String,
    #[serde(deserialize_with = "read_duration", serialize_with = "write_duration")]
    pub lifetime: Duration,
}

/// A certificate of a kind of process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Leaf {
    /// The Secret that it is kept in: tls.crt, tls.key, and ca.crt of the authority.
    pub secret: String,
    /// The authority's Secret.
    pub authority: String,
    pub common_name: String,
    #[serde(default)]
    pub dns_names: Vec<String>,
    #[serde(default)]
    pub ip_addresses: Vec<IpAddr>,
    #[serde(default)]
    pub uris: Vec<String>,
    pub usages: Vec<Usage>,
    #[serde(deserialize_with = "read_duration", serialize_with = "write_duration")]
    pub lifetime: Duration,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Usage {
    #[serde(rename = "server auth")]
    Server,
    #[serde(rename = "client auth")]
    Client,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{0}")]
    NotAPlan(String),
    #[error("secret {0} is named twice")]
    Twice(String),
    #[error("certificates: {secret}: there is no authority {authority}")]
    NoAuthority { secret: String, authority: String },
    #[error("{secret}: lifetime is not between a minute and a hundred years")]
    Lifetime { secret: String },
}

impl Plan {
    pub fn parse(yaml: &str) -> Result<Self, PlanError> {
        let plan: Self =
            serde_yaml::from_str(yaml).map_err(|error| PlanError::NotAPlan(error.to_string()))?;
        let authorities = plan.authorities.iter().map(|authority| (&authority.secret, authority.lifetime));
        let leaves = plan.certificates.iter().map(|leaf| (&leaf.secret, leaf.lifetime));
        let mut seen = std::collections::BTreeSet::new();
        for (secret, lifetime) in authorities.chain(leaves) {
            if !seen.insert(secret) {
                return Err(PlanError::Twice(secret.clone()));
            }
            if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
                return Err(PlanError::Lifetime { secret: secret.clone() });
            }
        }
        for leaf in &plan.certificates {
            if !plan.authorities.iter().any(|authority| authority.secret == leaf.authority) {
                let (secret, authority) = (leaf.secret.clone(), leaf.authority.clone());
                return Err(PlanError::NoAuthority { secret, authority });
            }
        }
        Ok(plan)
    }
}

/// What a Secret holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// PEM of the certificate.
    pub certificate: Option<String>,
    pub has_key: bool,
    /// The fingerprint that it was made by.
    pub fingerprint: Option<String>,
}

/// Why a certificate is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Missing,
    Unreadable,
    /// Something else is wanted of it, or its authority is another one.
    Differs,
    /// Two thirds of its life are over.
    Old,
}

impl Due {
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "was missing",
            Self::Unreadable => "could not be read",
            Self::Differs => "was for something else",
            Self::Old => "was past two thirds of its life",
        }
    }
}

/// Whether a certificate has to be made, at `now_unix_secs`.
pub fn due(held: &Held, wanted_fingerprint: &str, now_unix_secs: i64) -> Option<Due> {
    let (Some(pem), true) = (&held.certificate, held.has_key) else { return Some(Due::Missing) };
    let Some((from, until)) = validity(pem) else { return Some(Due::Unreadable) };
    if held.fingerprint.as_deref() != Some(wanted_fingerprint) {
        return Some(Due::Differs);
    }
    // At two thirds: from + 2 * (until - from) / 3, without a product that could overflow.
    (now_unix_secs >= until.saturating_sub(until.saturating_sub(from) / 3)).then_some(Due::Old)
}

/// Beginning and end of the first certificate of a PEM text, Unix time.
fn validity(pem: &str) -> Option<(i64, i64)> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// Changes with whatever is asked of a certificate, and with its authority's certificate, PEM.
pub fn fingerprint(wanted: &impl Serialize, authority_pem: &str) -> String {
    let mut digest = Sha256::new();
    // Plain data, whose serialization cannot fail; if it did, all would be made anew.
    digest.update(serde_json::to_vec(wanted).unwrap_or_default());
    digest.update([0]);
    digest.update(authority_pem);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("{text:?} is no time such as 90d: {error}")))
}

fn write_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::{issue_authority, issue_leaf};
    use super::*;

    const PLAN: &str = r#"
authorities:
  - {secret: x-ca, commonName: x-ca, lifetime: 3650d}
certificates:
  - {secret: x-controller-tls, authority: x-ca, commonName: x-controller, dnsNames: ["*.x-controller.ml.svc"],
     ipAddresses: [127.0.0.1], usages: [server auth], lifetime: 90m}
"#;
    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_plan_is_read_and_its_contradictions_are_named() {
        let plan = Plan::parse(PLAN).expect("a plan");
        assert_eq!(plan.certificates[0].lifetime, Duration::from_secs(90 * 60));
        let bad =
            |from: &str, to: &str| Plan::parse(&PLAN.replace(from, to)).expect_err("refused").to_string();
        assert_eq!(bad("secret: x-controller-tls", "secret: x-ca"), "secret x-ca is named twice");
        assert_eq!(
            bad("authority: x-ca", "authority: y-ca"),
            "certificates: x-controller-tls: there is no authority y-ca"
        );
        for lifetime in ["30s", "101y"] {
            assert_eq!(
                bad("90m", lifetime),
                "x-controller-tls: lifetime is not between a minute and a hundred years"
            );
        }
        assert!(bad("90m", "soon").contains("\"soon\" is no time such as 90d"));
        assert!(bad("usages", "uses").contains("uses"));
        assert!(bad("server auth", "code signing").contains("code signing"));
    }

    #[test]
    fn a_certificate_is_made_when_it_is_missing_other_or_old() {
        let plan = Plan::parse(PLAN).expect("a plan");
        let authority = issue_authority(&plan.authorities[0], None, NOW).expect("an authority");
        let leaf = &plan.certificates[0];
        let wanted = fingerprint(leaf, &authority.certificate_pem);
        let made = issue_leaf(leaf, &plan.authorities[0], &authority, NOW).expect("a certificate");
        let held = Held {
            certificate: Some(made.certificate_pem),
            has_key: true,
            fingerprint: Some(wanted.clone()),
        };
        assert_eq!(due(&Held::default(), &wanted, NOW), Some(Due::Missing));
        assert_eq!(due(&Held { has_key: false, ..held.clone() }, &wanted, NOW), Some(Due::Missing));
        let unreadable = Held { certificate: Some("no PEM".to_owned()), ..held.clone() };
        assert_eq!(due(&unreadable, &wanted, NOW), Some(Due::Unreadable));
        assert_eq!(due(&held, &fingerprint(leaf, "another authority"), NOW), Some(Due::Differs));
        // It is good for 90 minutes.
        assert_eq!(due(&held, &wanted, NOW + 59 * 60), None);
        assert_eq!(due(&held, &wanted, NOW + 60 * 60), Some(Due::Old));
        assert_eq!(due(&held, &wanted, NOW + 100 * 60), Some(Due::Old));
    }
}
