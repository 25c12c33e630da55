//! The store on a real etcd that serves TLS and wants certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crescendo_node::tls::{Dialer, Tls, TlsFiles};
use crescendo_store::contract::{self, Fixture};
use crescendo_store::testing::{EtcdProcess, EtcdTls};
use crescendo_store::{
    ConnectEtcd, EtcdConfig, EtcdStore, KEY_PREFIX, Revision, Store, StoreError, StoreLocation,
};
use crescendo_testing::certificates::{Authority, Wanted};
use tempfile::TempDir;

async fn connect(files: TlsFiles) -> ConnectEtcd {
    let dialer = Dialer::tls(Tls::load(files).await.unwrap());
    Arc::new(move |endpoint| dialer.connect(endpoint))
}

async fn etcd(authority: &Authority, folder: &Path) -> Option<EtcdProcess> {
    let files = authority.write(folder, &Wanted { uris: &[], ..Wanted::node("etcd") });
    let identity = files.identity.unwrap();
    let client_ca = files.ca.unwrap();
    EtcdProcess::start_or_skip_with(Some(EtcdTls { cert: identity.cert, key: identity.key, client_ca })).await
}

struct EtcdWithTls {
    store: Arc<EtcdStore>,
    other_client: Arc<EtcdStore>,
    _process: EtcdProcess,
    _folder: TempDir,
}

#[async_trait::async_trait]
impl Fixture for EtcdWithTls {
    async fn set_up() -> Option<Self> {
        let (authority, folder) = (Authority::new("etcd"), tempfile::tempdir().unwrap());
        let process = etcd(&authority, folder.path()).await?;
        let files =
            authority.write(folder.path(), &Wanted { hosts: &[], uris: &[], ..Wanted::node("controller") });
        let open = async || {
            let url = process.tls_endpoint("localhost").unwrap();
            let mut config = EtcdConfig::new(vec![url], "/test/v1/");
            config.connect = Some(connect(files.clone()).await);
            Arc::new(EtcdStore::connect(config).await.unwrap())
        };
        let (store, other_client) = (open().await, open().await);
        Some(Self { store, other_client, _process: process, _folder: folder })
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn other_client(&self) -> Arc<dyn Store> {
        self.other_client.clone()
    }

    async fn compact(&self, revision: Revision) {
        self.store.compact(revision).await.unwrap();
    }
}

/// What goes over a connection is the same as without TLS, so one case of each kind of call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_watches_leases_and_elections_go_over_tls() {
    let Some(fixture) = EtcdWithTls::set_up().await else { return };
    contract::a_record_is_created_once(&fixture).await;
    let Some(fixture) = EtcdWithTls::set_up().await else { return };
    contract::a_watch_shows_changes_in_order(&fixture).await;
    contract::a_lease_is_kept_alive(&fixture).await;
    contract::one_of_two_candidates_wins(&fixture).await;
}

#[tokio::test]
async fn who_is_not_known_to_etcd_or_does_not_know_it_gets_nothing() {
    let (authority, folder) = (Authority::new("etcd"), tempfile::tempdir().unwrap());
    let Some(process) = etcd(&authority, folder.path()).await else { return };
    let url = process.tls_endpoint("127.0.0.1").unwrap();
    let ca = folder.path().join("ca.pem");
    let open = async |url: &str, connect: Option<ConnectEtcd>| {
        let mut config = EtcdConfig::new(vec![url.to_owned()], KEY_PREFIX);
        (config.call_timeout, config.connect) = (Duration::from_secs(3), connect);
        match EtcdStore::connect(config).await {
            Ok(_) => "it is open".to_owned(),
            Err(error) => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text.push_str(&format!(": {error}"));
                    cause = error.source();
                }
                text
            }
        }
    };

    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::new("theirs").write(elsewhere.path(), &Wanted::node("controller"));
    let stranger = TlsFiles { ca: Some(ca.clone()), ..foreign.clone() };
    let text = open(&url, Some(connect(stranger).await)).await;
    assert!(text.contains("refuses this client's certificate"), "{text}");
    let nobody = TlsFiles { identity: None, ca: Some(ca) };
    let text = open(&url, Some(connect(nobody).await)).await;
    assert!(text.contains("give --tls-cert") || text.contains("refuses this client"), "{text}");
    let text = open(&url, Some(connect(foreign).await)).await;
    assert!(text.contains("is vouched for by no root in"), "{text}");

    let location: StoreLocation = format!("etcd:{url}").parse().unwrap();
    let error = location.open(KEY_PREFIX, None).await.err().unwrap();
    assert!(matches!(&error, StoreError::Invalid(reason) if reason.contains("needs TLS")), "{error}");

    let files =
        authority.write(folder.path(), &Wanted { hosts: &[], uris: &[], ..Wanted::node("controller") });
    let store = location.open(KEY_PREFIX, Some(connect(files).await)).await.unwrap();
    assert!(store.get("anything").await.unwrap().is_none());
}
