//! Which store to open, as written on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::embedded::{EmbeddedConfig, EmbeddedStore};
use crate::error::StoreError;
use crate::etcd::{ConnectEtcd, EtcdConfig, EtcdStore};
use crate::store::Store;

/// The prefix of every key of this version's records.
pub const KEY_PREFIX: &str = "/crescendo/v1/";

/// Where records are kept: `embedded:DIR` or `etcd:URL[,URL...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// One file in this folder, for a single controller.
    Embedded {
        /// The folder; made when missing.
        dir: PathBuf,
    },
    /// An etcd cluster.
    Etcd {
        /// Client URLs of its members, such as `http://127.0.0.1:2379`.
        endpoints: Vec<String>,
    },
}

impl StoreLocation {
    /// Opens the store with default limits and deadlines; every key is kept under `prefix` (see [`KEY_PREFIX`]). `connect`
    /// is for etcd at `https://` URLs.
    pub async fn open(
        &self,
        prefix: &str,
        connect: Option<ConnectEtcd>,
    ) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            StoreLocation::Embedded { dir } => {
                Ok(Arc::new(EmbeddedStore::open(EmbeddedConfig::new(dir, prefix)).await?))
            }
            StoreLocation::Etcd { endpoints } => {
                let config = EtcdConfig { connect, ..EtcdConfig::new(endpoints.clone(), prefix) };
                Ok(Arc::new(EtcdStore::connect(config).await?))
            }
        }
    }
}

impl FromStr for StoreLocation {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let invalid =
            || StoreError::Invalid(format!("store {text:?} is neither embedded:DIR nor etcd:URL[,URL]"));
        match text.split_once(':') {
            Some(("embedded", dir)) if !dir.is_empty() => Ok(Self::Embedded { dir: PathBuf::from(dir) }),
            Some(("etcd", urls)) => {
                let endpoints: Vec<String> =
                    urls.split(',').map(with_scheme).collect::<Option<_>>().ok_or_else(invalid)?;
                Ok(Self::Etcd { endpoints })
            }
            _ => Err(invalid()),
        }
    }
}

/// `host:port` is taken as `http://host:port`.
fn with_scheme(url: &str) -> Option<String> {
    match url {
        "" => None,
        url if url.contains("://") => Some(url.to_owned()),
        address => Some(format!("http://{address}")),
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreLocation::Embedded { dir } => write!(formatter, "embedded:{}", dir.display()),
            StoreLocation::Etcd { endpoints } => write!(formatter, "etcd:{}", endpoints.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_printed_alike() {
        for text in ["embedded:/var/lib/crescendo", "etcd:http://a:2379,http://b:2379"] {
            assert_eq!(text.parse::<StoreLocation>().unwrap().to_string(), text);
        }
        let bare: StoreLocation = "etcd:127.0.0.1:2379".parse().unwrap();
        assert_eq!(bare, StoreLocation::Etcd { endpoints: vec!["http://127.0.0.1:2379".into()] });
        for bad in ["", "embedded:", "etcd:", "etcd:a:1,,b:2", "redis:localhost"] {
            assert!(bad.parse::<StoreLocation>().is_err(), "{bad:?}");
        }
    }
}
