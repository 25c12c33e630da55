//! A controller that is guarded as in production, and what is needed to call it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crescendo_controller::access::{AccessConfig, AuditTo, OidcConfig};
use crescendo_controller::{Config, Controller};
use crescendo_core::decide::Limits;
use crescendo_node::runtime::supervise::{Drain, Supervisor, Tasks};
use crescendo_node::tls::{ClientCertificates, ConnectionMetrics, Dialer, Incoming, Tls, TlsFiles};
use crescendo_proto::v1;
use crescendo_store::{KEY_PREFIX, Store, StoreLocation};
use crescendo_testing::certificates::{Authority, Wanted};
use crescendo_testing::eventually;
use crescendo_testing::specs::SPEC;
use prometheus::Registry;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Channel;

use super::raw;

pub const NODE: &[&str] = &["urn:crescendo:role:node"];

/// Of a tenant, with a unit for every call that takes one.
pub fn spec_of(tenant: &str) -> String {
    SPEC.replace("pairs: 8", "pairs: 16")
        .replace("{name: trial}", &format!("{{name: trial, tenant: {tenant}}}"))
}

/// An entry of the tokens file; the token of NAME is `token-of-NAME`.
pub fn entry(name: &str, role: &str, tenant: Option<&str>, expires: &str) -> String {
    let sha256: String = Sha256::digest(token(name)).iter().map(|byte| format!("{byte:02x}")).collect();
    let tenant = tenant.map(|tenant| format!("tenant: {tenant}, ")).unwrap_or_default();
    format!("- {{name: {name}, role: {role}, {tenant}sha256: \"{sha256}\", expires: {expires}}}\n")
}

pub fn token(name: &str) -> String {
    format!("token-of-{name}")
}

/// People of two tenants, one for each role.
pub fn people() -> String {
    let mut all = entry("root", "admin", None, "never");
    for tenant in ["research", "products"] {
        for role in ["viewer", "submitter", "operator", "admin"] {
            all += &entry(&format!("{role}-{tenant}"), role, Some(tenant), "never");
        }
    }
    all + &entry("former", "admin", None, "2020-01-01")
}

#[derive(Default)]
pub struct Options {
    pub tokens: Option<String>,
    pub tenants: Option<String>,
    pub oidc: Option<OidcConfig>,
}

pub struct Guarded {
    pub folder: tempfile::TempDir,
    pub registry: Registry,
    authority: Authority,
    store: Arc<dyn Store>,
    address: String,
    tasks: Tasks,
    _supervisor: Supervisor,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.tasks.stop_token().cancel();
    }
}

impl Guarded {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options { tokens: Some(people()), ..Options::default() }).await
    }

    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: Option<String>| -> anyhow::Result<Option<PathBuf>> {
            text.map(|text| std::fs::write(at(name), text).map(|()| at(name))).transpose().context("write")
        };
        let authority = Authority::new("the cluster's");
        let server = Wanted { name: "controller", hosts: &["localhost", "127.0.0.1"], ..Wanted::default() };
        let tls = Tls::load(authority.write(folder.path(), &server)).await?;
        let store = format!("embedded:{}", at("store").display()).parse::<StoreLocation>()?;
        let store = store.open(KEY_PREFIX, None).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let registry = Registry::new();
        let (tasks, supervisor) = Tasks::new();
        let incoming = Incoming::new(
            listener,
            Some((tls, ClientCertificates::Asked)),
            64,
            ConnectionMetrics::register(&registry)?,
        );
        let access = AccessConfig {
            dev: false,
            tokens: write("tokens.yaml", options.tokens)?,
            tenants: write("tenants.yaml", options.tenants)?,
            webhook_secrets: None,
            audit_log: Some(AuditTo::File(at("audit.jsonl"))),
            oidc: options.oidc,
        };
        let mut config = Config::new("file:///nowhere");
        // However slow the machine: nothing happens in a test but what it does.
        let long = Duration::from_secs(3600);
        config.limits = Limits { ranks_lost_after: long, lease_ttl: long, ..config.limits };
        let controller = Controller {
            config,
            access,
            store: store.clone(),
            registry: registry.clone(),
            address: address.clone(),
            drain: Drain::new(Duration::ZERO),
        };
        controller.start(incoming, &tasks)?.leads().await?;
        Ok(Self { folder, registry, authority, store, address, tasks, _supervisor: supervisor })
    }

    /// Without a certificate.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        self.dial(TlsFiles { identity: None, ca: Some(self.folder.path().join("ca.pem")) }).await
    }

    /// With a certificate that has these URIs.
    pub async fn channel_as(&self, name: &str, uris: &[&str]) -> anyhow::Result<Channel> {
        let wanted = Wanted { name, uris, ..Wanted::default() };
        self.dial(self.authority.write(self.folder.path(), &wanted)).await
    }

    async fn dial(&self, files: TlsFiles) -> anyhow::Result<Channel> {
        Ok(Dialer::tls(Tls::load(files).await?).channel(&self.address)?)
    }

    /// Every record but those of the leadership, with the revision at which it was last written.
    pub async fn dump(&self) -> anyhow::Result<BTreeMap<String, (u64, Vec<u8>)>> {
        let items = self.store.snapshot("").await?.items.into_iter();
        let records = items.filter(|item| !item.key.starts_with("leaders/"));
        Ok(records.map(|item| (item.key, (item.mod_revision.0, item.value.to_vec()))).collect())
    }

    /// The audit log, once `wanted` of it holds.
    pub async fn audit_when(
        &self,
        what: &str,
        wanted: impl Fn(&[serde_json::Value]) -> bool,
    ) -> anyhow::Result<Vec<serde_json::Value>> {
        eventually(what, async || {
            let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl"))?;
            // The last line may be on its way.
            let lines: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            Ok(wanted(&lines).then_some(lines))
        })
        .await
    }

    pub async fn submit(
        &self,
        name: &str,
        request_id: &str,
        spec: &str,
    ) -> Result<v1::SubmitJobResponse, Status> {
        let request = v1::SubmitJobRequest {
            request_id: request_id.into(),
            spec_yaml: spec.as_bytes().to_vec(),
            validate_only: false,
        };
        self.ask(name, "JobService/SubmitJob", &request).await
    }

    /// A call of whoever has the token of `name`, without a certificate.
    pub async fn ask<A: Message + Default>(
        &self,
        name: &str,
        call: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        let channel = self.channel().await.map_err(|error| Status::internal(error.to_string()))?;
        ask_over(&channel, Some(&token(name)), call, request).await
    }
}

pub async fn ask_over<A: Message + Default>(
    channel: &Channel,
    token: Option<&str>,
    call: &str,
    request: &impl Message,
) -> Result<A, Status> {
    let path = format!("/crescendo.v1.{call}");
    let answer = raw::call(channel, token, &path, request.encode_to_vec()).await?;
    A::decode(answer.as_slice()).map_err(|error| Status::internal(error.to_string()))
}
