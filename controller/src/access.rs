//! Who calls, what it may do, and the record of it.
//!
//! ```text
//!   request ─▶ layer ─┬─ certificate ─┐
//!                     ├─ tokens       ├─▶ Caller ─▶ core::access::decide ─▶ rate ─▶ service ─▶ answer
//!                     └─ oidc ────────┘      │             │ no               │ no       │ Scope   │
//!                                            │             └──────▶ refused ◀─┘          ▼         ▼
//!                                            └───────────────────────▶ audit ◀── on what, and how it ended
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`caller`] | the identity behind a call, from each kind of credential |
//! | [`tokens`] | static tokens: hashes in a file |
//! | [`oidc`] | tokens of an identity provider |
//! | [`tenants`] | the file with what each tenant may use |
//! | [`rate`] | calls a second of each caller |
//! | [`audit`] | one JSON line for every change and every refusal |
//! | [`reload`] | files that are read again when they change |
//! | [`layer`] | all of it around every call |
//!
//! With `--dev` everybody is an admin; the audit log is written all the same.

pub mod audit;
pub mod caller;
pub mod layer;
mod names;
pub mod oidc;
mod queues;
pub mod rate;
pub mod reload;
pub mod tenants;
pub mod tokens;
mod webhooks;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use crescendo_core::quotas::Quotas;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::telemetry::metrics_registry::{Metric, Registrar, counter, words};
use prometheus::{IntCounterVec, Registry};
use tokio::sync::watch;

pub use audit::{AuditContext, AuditTo};
pub use caller::{Caller, caller_of, trail_of};
pub use layer::AccessLayer;
pub use oidc::{Login, LoginConfig, LoginError, OidcConfig};

const REFUSALS: [&str; 4] = ["bad_credential", "no_credential", "role", "rate"];
const SOURCES: [&str; 3] = ["tokens", "tenants", "oidc"];

/// Every metric of access; the audit log has its own.
pub const CATALOGUE: &[Metric] = &[
    counter(
        "crescendo_access_refused_total",
        "",
        &[words("reason", &REFUSALS)],
        "Calls refused before they reached a service.",
    ),
    counter(
        "crescendo_access_reload_failures_total",
        "",
        &[words("source", &SOURCES)],
        "Times that a changed file or the keys of the issuer could not be used, so that what was there before stands.",
    ),
];

use audit::AuditLog;
use oidc::Oidc;
use rate::Buckets;
use tokens::Tokens;

/// How callers are known, and what is written down of them.
#[derive(Clone, Debug, Default)]
pub struct AccessConfig {
    /// Everybody may do everything.
    pub dev: bool,
    pub tokens: Option<PathBuf>,
    pub tenants: Option<PathBuf>,
    /// Folder of the secrets that webhooks name.
    pub webhook_secrets: Option<PathBuf>,
    pub audit_log: Option<AuditTo>,
    pub oidc: Option<OidcConfig>,
}

impl AccessConfig {
    /// Everybody may do everything, and nothing is written down.
    pub fn dev() -> Self {
        Self { dev: true, ..Self::default() }
    }
}

/// What every call is held to. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    dev: bool,
    tokens: Option<watch::Receiver<Arc<Tokens>>>,
    oidc: Option<Oidc>,
    quotas: watch::Receiver<Arc<Quotas>>,
    audit: AuditLog,
    buckets: Arc<Buckets>,
    refused: IntCounterVec,
}

impl Access {
    /// Reads the files, and keeps them up to date with tasks that end with the stop token of `tasks`. A file that cannot
    /// be used is an error here; later it is logged, and what was read before stands.
    pub fn start(config: &AccessConfig, registry: &Registry, tasks: &Tasks) -> anyhow::Result<Self> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let refused = registrar.counters("crescendo_access_refused_total")?;
        let failures = registrar.counters("crescendo_access_reload_failures_total")?;
        registrar.finish()?;
        let tokens = match &config.tokens {
            Some(path) => {
                let failures = failures.with_label_values(&["tokens"]);
                Some(reload::follow(path, Tokens::parse, failures, tasks).context("read the tokens")?)
            }
            None => None,
        };
        let quotas = match &config.tenants {
            Some(path) => {
                let failures = failures.with_label_values(&["tenants"]);
                reload::follow(path, tenants::parse, failures, tasks).context("read the tenants")?
            }
            None => watch::channel(Arc::default()).1,
        };
        let oidc = match &config.oidc {
            Some(oidc) => {
                Some(Oidc::start(oidc, failures.with_label_values(&["oidc"]), tasks).context("set up OIDC")?)
            }
            None => None,
        };
        let audit =
            AuditLog::start(config.audit_log.as_ref(), registry, tasks).context("open the audit log")?;
        if config.dev {
            tracing::warn!(
                "--dev: there is no login, and everybody who reaches this process may do everything"
            );
        } else if tokens.is_none() && oidc.is_none() {
            tracing::info!("neither tokens nor an OIDC issuer are set: callers need a client certificate");
        }
        Ok(Self {
            dev: config.dev,
            tokens,
            oidc,
            quotas,
            audit,
            buckets: Arc::new(Buckets::default()),
            refused,
        })
    }

    /// How browsers log in at the issuer, if they do.
    pub fn login(&self) -> anyhow::Result<Option<Login>> {
        Ok(self.oidc.as_ref().map(Oidc::login).transpose()?.flatten())
    }

    /// What tenants may use, as the file says now.
    pub fn quotas(&self) -> watch::Receiver<Arc<Quotas>> {
        self.quotas.clone()
    }
}
