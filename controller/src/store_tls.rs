//! TLS between the controller and etcd, whose certificates need not come from where the cluster's own do.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::tls::{Dialer, Identity, RELOAD_INTERVAL, Tls, TlsFiles, TlsMetrics};
use crescendo_store::{ConnectEtcd, StoreLocation};

/// Files for etcd at `https://` URLs.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreTlsArgs {
    /// Root certificates that vouch for etcd, PEM; those of the system if absent
    #[arg(long, env = "CRESCENDO_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Certificate that etcd knows the controller by, PEM; needs --store-key
    #[arg(long, env = "CRESCENDO_STORE_CERT", value_name = "FILE", requires = "store_key")]
    pub store_cert: Option<PathBuf>,
    /// Private key of --store-cert, PEM
    #[arg(long, env = "CRESCENDO_STORE_KEY", value_name = "FILE", requires = "store_cert")]
    pub store_key: Option<PathBuf>,
}

impl StoreTlsArgs {
    /// How the store's members are reached; `None` if plainly. The files are watched as the others are.
    pub async fn connect(
        &self,
        location: &StoreLocation,
        metrics: TlsMetrics,
        tasks: &Tasks,
    ) -> anyhow::Result<Option<ConnectEtcd>> {
        let Self { store_ca, store_cert, store_key } = self;
        if !needs_tls(location)? {
            if store_ca.is_some() || store_cert.is_some() {
                bail!("--store-ca and --store-cert are for etcd:https://... only, and --store is {location}");
            }
            return Ok(None);
        }
        let identity = match (store_cert, store_key) {
            (Some(cert), Some(key)) => Some(Identity { cert: cert.clone(), key: key.clone() }),
            _ => None,
        };
        let tls = Tls::load(TlsFiles { identity, ca: store_ca.clone() }).await?;
        tasks.spawn(tls.clone().watch(Some(metrics), RELOAD_INTERVAL, tasks.stop_token()));
        let dialer = Dialer::tls(tls);
        Ok(Some(Arc::new(move |endpoint| dialer.connect(endpoint))))
    }
}

/// Whether the members are at `https://` URLs: all of them, or none.
fn needs_tls(location: &StoreLocation) -> anyhow::Result<bool> {
    let StoreLocation::Etcd { endpoints } = location else { return Ok(false) };
    let protected = endpoints.iter().filter(|url| url.starts_with("https://")).count();
    match protected {
        0 => Ok(false),
        all if all == endpoints.len() => Ok(true),
        _ => bail!("--store {location}: some members are https:// and some are not"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_without_tls_are_a_mistake() {
        let (tasks, _supervisor) = Tasks::new();
        let metrics = TlsMetrics::register(&prometheus::Registry::new()).unwrap();
        let args = StoreTlsArgs { store_ca: Some("ca.pem".into()), ..StoreTlsArgs::default() };
        for (store, says) in [
            ("embedded:/tmp/x", "only, and --store is embedded:/tmp/x"),
            ("etcd:http://a:1", "only, and --store is etcd:http://a:1"),
            ("etcd:https://a:1,http://b:1", "some members are https://"),
            ("etcd:https://a:1", "cannot read ca.pem"),
        ] {
            let location = store.parse().unwrap();
            let error = args.connect(&location, metrics.clone(), &tasks).await.err().expect(store);
            assert!(format!("{error:#}").contains(says), "{store}: {error:#}");
        }
        let (plain, location) = (StoreTlsArgs::default(), "etcd:a:1".parse().unwrap());
        assert!(plain.connect(&location, metrics, &tasks).await.unwrap().is_none());
    }
}
