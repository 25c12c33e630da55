//! The file with what each tenant may use.
//!
//! ```yaml
//! unlisted: refuse                 # whether tenants that are not below may submit: accept or refuse
//! default: {maxQueuedJobs: 20}     # limits of tenants that are not below
//! tenants:
//!   research: {maxGpus: 16, maxQueuedJobs: 100, maxStoredBytes: 2TB, callsPerSecond: 20, burst: 60}
//! ```

use std::collections::BTreeMap;

use crescendo_core::ids::Tenant;
use crescendo_core::quotas::{CallRate, Quotas, TenantLimits};
use serde::Deserialize;

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantsError {
    #[error("{0}")]
    Shape(String),
    #[error("tenants.{name:?}: {reason}")]
    Name { name: String, reason: String },
    #[error("{path}: {reason}")]
    Limit { path: String, reason: &'static str },
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    unlisted: Unlisted,
    default: Entry,
    tenants: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Unlisted {
    #[default]
    Accept,
    Refuse,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Entry {
    max_gpus: Option<u32>,
    max_queued_jobs: Option<u32>,
    max_stored_bytes: Option<Size>,
    calls_per_second: Option<u32>,
    burst: Option<u32>,
}

/// `1500`, `2TB` or `500 GiB`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

pub fn parse(text: &str) -> Result<Quotas, TenantsError> {
    let file: Option<File> =
        serde_yaml::from_str(text).map_err(|error| TenantsError::Shape(error.to_string()))?;
    let File { unlisted, default, tenants } = file.unwrap_or_default();
    let mut listed = BTreeMap::new();
    for (name, entry) in tenants {
        let limits = entry.check(&format!("tenants.{name}"))?;
        let tenant =
            Tenant::parse(&name).map_err(|error| TenantsError::Name { name, reason: error.to_string() })?;
        listed.insert(tenant, limits);
    }
    Ok(Quotas {
        listed,
        others: default.check("default")?,
        others_may_submit: matches!(unlisted, Unlisted::Accept),
    })
}

impl Entry {
    fn check(self, path: &str) -> Result<TenantLimits, TenantsError> {
        let Self { max_gpus, max_queued_jobs, max_stored_bytes, calls_per_second, burst } = self;
        let bad = |field: &str, reason| TenantsError::Limit { path: format!("{path}.{field}"), reason };
        let max_stored_bytes = max_stored_bytes.map(|size| size.bytes()).map(|bytes| {
            bytes.ok_or_else(|| {
                bad("maxStoredBytes", "must be bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB")
            })
        });
        let calls = match (calls_per_second, burst) {
            (None, None) => None,
            (None, Some(_)) => return Err(bad("burst", "says nothing without callsPerSecond")),
            (Some(0), _) => return Err(bad("callsPerSecond", "must be at least 1")),
            (Some(_), Some(0)) => return Err(bad("burst", "must be at least 1")),
            (Some(per_sec), burst) => {
                Some(CallRate { per_sec, burst: burst.unwrap_or(per_sec.saturating_mul(2)) })
            }
        };
        Ok(TenantLimits { max_gpus, max_queued_jobs, max_stored_bytes: max_stored_bytes.transpose()?, calls })
    }
}

impl Size {
    fn bytes(self) -> Option<u64> {
        let text = match self {
            Self::Bytes(bytes) => return Some(bytes),
            Self::Text(text) => text,
        };
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let factor: u64 = match unit.trim() {
            "kB" => 1000,
            "MB" => 1000 * 1000,
            "GB" => 1000 * 1000 * 1000,
            "TB" => 1000 * 1000 * 1000 * 1000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_what_its_entry_says() {
        let text = "
unlisted: refuse
default: {maxQueuedJobs: 20}
tenants:
  research: {maxGpus: 16, maxStoredBytes: 2TB, callsPerSecond: 20}
  products: {maxStoredBytes: 1024, callsPerSecond: 5, burst: 6}
";
        let quotas = parse(text).expect("good");
        let research = quotas.of("research");
        assert_eq!((research.max_gpus, research.max_queued_jobs), (Some(16), None));
        assert_eq!(research.max_stored_bytes, Some(2_000_000_000_000));
        assert_eq!(research.calls, Some(CallRate { per_sec: 20, burst: 40 }));
        assert_eq!(quotas.of("products").max_stored_bytes, Some(1024));
        assert_eq!(quotas.of("others").max_queued_jobs, Some(20));
        assert!(quotas.check_may_submit("others").is_err() && quotas.check_may_submit("research").is_ok());
        assert_eq!(parse("").expect("empty"), Quotas::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("tenants: {research: {maxGpu: 1}}", "unknown field `maxGpu`"),
            ("tenants: {Research Team: {}}", "tenants.\"Research Team\": tenant must be"),
            ("tenants: {a: {maxStoredBytes: 2Tb}}", "tenants.a.maxStoredBytes: must be bytes"),
            ("tenants: {a: {maxStoredBytes: 99999999999TB}}", "tenants.a.maxStoredBytes: must be bytes"),
            ("tenants: {a: {callsPerSecond: 0}}", "tenants.a.callsPerSecond: must be at least 1"),
            ("default: {burst: 3}", "default.burst: says nothing without"),
            ("unlisted: maybe", "unknown variant `maybe`"),
            ("tenants: {a: {maxGpus: -1}}", "maxGpus"),
        ];
        for (text, said) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
