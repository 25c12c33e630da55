//! Command line and limits.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use crescendo_core::decide::Limits;
use crescendo_core::quotas::TenantLimits;
use crescendo_core::transitions::QueueLimits;
use crescendo_node::runtime::args::ServerArgs;

use crate::access::{AccessConfig, AuditTo, OidcConfig};
use crate::store_tls::StoreTlsArgs;

/// Runs the controller of a Crescendo cluster
#[derive(Parser, Clone, Debug)]
#[command(name = "crescendo-controller", version)]
pub struct Args {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub access: AccessArgs,
    /// Where records are kept: embedded:DIR for one controller, or etcd:URL (more URLs after commas) for several
    #[arg(long, env = "CRESCENDO_STORE")]
    pub store: String,
    #[command(flatten)]
    pub store_tls: StoreTlsArgs,
    /// Root of pairs and checkpoints, handed to the nodes: file:///DIR or s3://BUCKET/PREFIX. Keys of S3 are the nodes' own
    #[arg(long, env = "CRESCENDO_OBJECT_STORE")]
    pub object_store: String,
    /// Seconds without a word after which a node counts as silent and gets no new work
    #[arg(long, env = "CRESCENDO_SILENT_AFTER_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    pub silent_after_seconds: u64,
    /// Seconds of silence, with no training step either, after which ranks on a node are given up
    #[arg(long, env = "CRESCENDO_RANKS_LOST_AFTER_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub ranks_lost_after_seconds: u64,
    /// Seconds after which a gang with fewer ranks than its job asks for leaves to come back with more, where slots are free
    #[arg(long, env = "CRESCENDO_GROW_AFTER_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub grow_after_seconds: u64,
    /// Failures of a stage without a new checkpoint in between after which its job fails
    #[arg(long, env = "CRESCENDO_MAX_FAILURES_IN_A_ROW", default_value_t = 10)]
    pub max_failures_in_a_row: u32,
    /// Seconds that a curation unit's lease lasts unless renewed
    #[arg(long, env = "CRESCENDO_UNIT_LEASE_SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub unit_lease_seconds: u64,
    /// Seconds that leadership outlives a controller that has died
    #[arg(long, env = "CRESCENDO_LEADER_LEASE_SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub leader_lease_seconds: u64,
    /// Jobs that wait or run at most; a submit beyond that is refused for now
    #[arg(long, env = "CRESCENDO_MAX_OPEN_JOBS", default_value_t = 20_000)]
    pub max_open_jobs: usize,
    /// Nodes that are known at most
    #[arg(long, env = "CRESCENDO_MAX_NODES", default_value_t = 8192)]
    pub max_nodes: usize,
    /// Calls that are worked on at a time; a call beyond that is refused for now
    #[arg(long, env = "CRESCENDO_MAX_CONCURRENT_CALLS", default_value_t = 512)]
    pub max_concurrent_calls: usize,
    /// Hours between two collections of leftovers, what lies in the object store and no record names; 0 for none
    #[arg(long, env = "CRESCENDO_COLLECT_EVERY_HOURS", default_value_t = 24)]
    pub collect_every_hours: u64,
    /// Hours for which an object that no record names is left alone
    #[arg(long, env = "CRESCENDO_COLLECT_GRACE_HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..))]
    pub collect_grace_hours: u64,
    /// Serve the web page, and gRPC-Web over HTTP/1.1 for it, at the address of gRPC
    #[arg(long, env = "CRESCENDO_WEB_PAGE", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub web_page: bool,
}

/// How callers are known, what they may use, and what is written down of them.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AccessArgs {
    /// Static tokens of people and services: a YAML list of name, role, tenant, sha256 and expires; read again when it
    /// changes
    #[arg(long, env = "CRESCENDO_AUTH_TOKENS", value_name = "FILE")]
    pub auth_tokens: Option<PathBuf>,
    /// Issuer of OpenID Connect tokens, as they have it in `iss`; https, or http on this machine
    #[arg(long, env = "CRESCENDO_OIDC_ISSUER", value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// What those tokens have in `aud`
    #[arg(long, env = "CRESCENDO_OIDC_AUDIENCE", value_name = "TEXT")]
    pub oidc_audience: Option<String>,
    /// Claim with the caller's role; a JSON pointer if it begins with /
    #[arg(long, env = "CRESCENDO_OIDC_ROLE_CLAIM", value_name = "CLAIM", default_value = "crescendo_role")]
    pub oidc_role_claim: String,
    /// Claim with the caller's tenant; a JSON pointer if it begins with /
    #[arg(
        long,
        env = "CRESCENDO_OIDC_TENANT_CLAIM",
        value_name = "CLAIM",
        default_value = "crescendo_tenant"
    )]
    pub oidc_tenant_claim: String,
    /// Seconds between two fetches of the issuer's keys at least
    #[arg(long, env = "CRESCENDO_OIDC_FETCH_PAUSE_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub oidc_fetch_pause_seconds: u64,
    /// What each tenant may use, YAML; read again when it changes
    #[arg(long, env = "CRESCENDO_TENANTS", value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Folder of the secrets that webhooks of the tenants file name: one file each, `whsec_` with base64 or plain bytes; read anew for
    /// each delivery
    #[arg(long, env = "CRESCENDO_WEBHOOK_SECRETS", value_name = "DIR")]
    pub webhook_secrets: Option<PathBuf>,
    /// Where every change and every refusal is written down, one JSON line each: a file that is appended to, or - for
    /// the standard output
    #[arg(long, env = "CRESCENDO_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<AuditTo>,
}

impl AccessArgs {
    /// With `dev` nobody has to be known.
    pub fn resolve(&self, dev: bool) -> anyhow::Result<AccessConfig> {
        let Self {
            auth_tokens,
            oidc_issuer,
            oidc_audience,
            oidc_role_claim,
            oidc_tenant_claim,
            oidc_fetch_pause_seconds,
            tenants,
            webhook_secrets,
            audit_log,
        } = self;
        if dev && (auth_tokens.is_some() || oidc_issuer.is_some()) {
            bail!("--dev has no login: give either --dev, or --auth-tokens and --oidc-issuer");
        }
        let oidc = match (oidc_issuer, oidc_audience) {
            (Some(issuer), Some(audience)) => Some(OidcConfig {
                issuer: issuer.clone(),
                audience: audience.clone(),
                role_claim: oidc_role_claim.clone(),
                tenant_claim: oidc_tenant_claim.clone(),
                fetch_pause: Duration::from_secs(*oidc_fetch_pause_seconds),
            }),
            (None, None) => None,
            (Some(_), None) => {
                bail!("--oidc-issuer needs --oidc-audience: what its tokens for this cluster have in `aud`")
            }
            (None, Some(_)) => bail!("--oidc-audience needs --oidc-issuer"),
        };
        Ok(AccessConfig {
            dev,
            tokens: auth_tokens.clone(),
            tenants: tenants.clone(),
            webhook_secrets: webhook_secrets.clone(),
            audit_log: audit_log.clone(),
            oidc,
        })
    }
}

/// What the controller's parts need, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub object_store_url: String,
    pub limits: Limits,
    pub queue: QueueLimits,
    pub max_nodes: usize,
    pub max_concurrent_calls: usize,
    pub leader_lease: Duration,
    pub heartbeat: Duration,
    /// Streams of one kind (watches of jobs, watches of pair logs) at a time.
    pub max_watchers: usize,
    /// Writes of one transaction at most, unless what belongs together is more; the rest is split.
    pub txn_writes: usize,
    /// Records that are read at a time when the state is.
    pub load_page_records: usize,
    /// Between two collections of leftovers; none if nothing is collected by itself.
    pub collect_every: Option<Duration>,
    /// Objects that were written within this are no leftovers.
    pub collect_grace: Duration,
    /// The web page is served, and HTTP/1.1 taken for it.
    pub web_page: bool,
}

/// Writes of one transaction; a store takes no more than 128 operations.
pub(crate) const MAX_TXN_WRITES: usize = 120;

/// Records that are read at a time: some 2 MB, and few enough pages of a million, each of which etcd counts all that is left for.
const LOAD_PAGE_RECORDS: usize = 5000;
const HOUR_SECONDS: u64 = 3600;

impl Config {
    /// Defaults for everything but the object store.
    pub fn new(object_store_url: impl Into<String>) -> Self {
        Self {
            object_store_url: object_store_url.into(),
            limits: Limits::default(),
            queue: QueueLimits {
                max_open_jobs: 20_000,
                retry_after: Duration::from_secs(2),
                tenant: TenantLimits::default(),
            },
            max_nodes: 8192,
            max_concurrent_calls: 512,
            leader_lease: Duration::from_secs(4),
            heartbeat: Duration::from_secs(2),
            max_watchers: 8192,
            txn_writes: MAX_TXN_WRITES,
            load_page_records: LOAD_PAGE_RECORDS,
            collect_every: Some(Duration::from_secs(24 * HOUR_SECONDS)),
            collect_grace: Duration::from_secs(24 * HOUR_SECONDS),
            web_page: true,
        }
    }
}

impl From<&Args> for Config {
    fn from(args: &Args) -> Self {
        // Every field is named, so that a new flag is not forgotten here.
        let Args {
            server: _,
            access: _,
            store: _,
            store_tls: _,
            object_store,
            silent_after_seconds,
            ranks_lost_after_seconds,
            grow_after_seconds,
            max_failures_in_a_row,
            unit_lease_seconds,
            leader_lease_seconds,
            max_open_jobs,
            max_nodes,
            max_concurrent_calls,
            collect_every_hours,
            collect_grace_hours,
            web_page,
        } = args;
        let hours = |hours: u64| Duration::from_secs(hours.saturating_mul(HOUR_SECONDS));
        let defaults = Config::new(object_store);
        Self {
            limits: Limits {
                silent_after: Duration::from_secs(*silent_after_seconds),
                ranks_lost_after: Duration::from_secs(*ranks_lost_after_seconds),
                grow_after: Duration::from_secs(*grow_after_seconds),
                max_failures_in_a_row: *max_failures_in_a_row,
                lease_ttl: Duration::from_secs(*unit_lease_seconds),
                ..defaults.limits
            },
            queue: QueueLimits { max_open_jobs: *max_open_jobs, ..defaults.queue },
            max_nodes: *max_nodes,
            max_concurrent_calls: *max_concurrent_calls,
            leader_lease: Duration::from_secs(*leader_lease_seconds),
            collect_every: Some(*collect_every_hours).filter(|every| *every > 0).map(hours),
            collect_grace: hours(*collect_grace_hours),
            web_page: *web_page,
            ..defaults
        }
    }
}
