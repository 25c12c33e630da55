//! The TLS of a process over the life of its files.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::telemetry::metrics_registry::{Metric, Registrar, counter, gauge, words};
use prometheus::{IntCounter, IntGaugeVec, Registry};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::files::{Contents, Loaded, TlsError, TlsFiles, load};

/// Time between two looks at the files.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Whether clients must show a certificate. Every certificate that is shown is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients may come without: people have tokens.
    Asked,
    Required,
}

/// Certificate, key and roots as they were when they were last read and right. Clones share them.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    loaded: Arc<Loaded>,
    /// Of the contents that it was made of.
    digest: [u8; 32],
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

const FILES: [&str; 4] = ["certificate", "ca", "store_certificate", "store_ca"];

/// Every metric of the files.
pub const CATALOGUE: &[Metric] = &[
    counter(
        "crescendo_tls_reload_failures_total",
        "",
        &[],
        "Changes of the TLS files that could not be used; what was there before is still in use.",
    ),
    gauge(
        "crescendo_tls_certificate_expiry_timestamp_seconds",
        "seconds",
        &[words("file", &FILES)],
        "Unix time at which what is in use ends: this process's certificate, the first of its roots to end, and the same for etcd.",
    ),
];

/// What is measured of the files.
#[derive(Clone)]
pub struct TlsMetrics {
    reload_failures: IntCounter,
    expiry: IntGaugeVec,
    /// Label values: of the certificate and of the roots.
    files: [&'static str; 2],
}

impl TlsMetrics {
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let reload_failures = registrar.counter("crescendo_tls_reload_failures_total")?;
        let expiry = registrar.gauges("crescendo_tls_certificate_expiry_timestamp_seconds")?;
        registrar.finish()?;
        Ok(Self { reload_failures, expiry, files: ["certificate", "ca"] })
    }

    /// The same metrics for the files of the connection to the store.
    pub fn of_store(&self) -> Self {
        Self { files: ["store_certificate", "store_ca"], ..self.clone() }
    }

    fn show(&self, loaded: &Loaded) {
        for (file, end) in self.files.into_iter().zip([loaded.certificate_not_after, loaded.ca_not_after]) {
            if let Some(end) = end {
                self.expiry.with_label_values(&[file]).set(end);
            }
        }
    }
}

impl Tls {
    /// Reads the files. Every one of them has to be right.
    pub async fn load(files: TlsFiles) -> Result<Self, TlsError> {
        Self::load_at(files, unix_now()).await
    }

    async fn load_at(files: TlsFiles, unix_secs: i64) -> Result<Self, TlsError> {
        let contents = Contents::read(&files).await?;
        let loaded = Arc::new(load(&files, &contents, unix_secs)?);
        let current = RwLock::new(Current { loaded, digest: contents.digest() });
        Ok(Self { shared: Arc::new(Shared { files, current }) })
    }

    /// Reads the files as if it were that Unix time: the only way to show a certificate that has expired.
    #[cfg(feature = "testing")]
    pub async fn load_as_of(files: TlsFiles, unix_secs: i64) -> Result<Self, TlsError> {
        Self::load_at(files, unix_secs).await
    }

    pub fn files(&self) -> &TlsFiles {
        &self.shared.files
    }

    /// Reads the files again if what is in them has changed. On an error everything stays as it was.
    pub async fn reload(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.shared.files).await?;
        let digest = contents.digest();
        if digest == self.shared.current.read().unwrap_or_else(PoisonError::into_inner).digest {
            return Ok(false);
        }
        let loaded = Arc::new(load(&self.shared.files, &contents, unix_now())?);
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = Current { loaded, digest };
        Ok(true)
    }

    /// Looks at the files every so often until `stop`. They are compared by what is in them: a mounted secret changes
    /// by the swap of a link, which no file's own time of change shows.
    pub async fn watch(self, metrics: Option<TlsMetrics>, every: Duration, stop: CancellationToken) {
        let show = || {
            if let Some(metrics) = &metrics {
                metrics.show(&self.loaded());
            }
        };
        show();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<String> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.reload().await {
                Ok(changed) => {
                    told = None;
                    if changed {
                        show();
                        tracing::info!("TLS files are read again; new connections use them");
                    }
                }
                Err(error) => {
                    // Once for each state of the files, not at every look.
                    let error = chain(&error);
                    if told.as_ref() != Some(&error) {
                        if let Some(metrics) = &metrics {
                            metrics.reload_failures.inc();
                        }
                        tracing::error!(error, "changed TLS files cannot be used; the old ones stay in use");
                        told = Some(error);
                    }
                }
            }
        }
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner).loaded)
    }

    /// What a server uses for its next connection. Absent without a certificate of its own.
    pub(super) fn server(&self, clients: ClientCertificates) -> Option<Arc<ServerConfig>> {
        let loaded = self.loaded();
        let servers = loaded.servers.as_ref()?;
        Some(Arc::clone(match clients {
            ClientCertificates::Asked => &servers.asking,
            ClientCertificates::Required => &servers.requiring,
        }))
    }

    /// What a client uses for its next connection.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.loaded().client)
    }

    /// The first name in this process's own certificate.
    pub(super) fn own_name(&self) -> Option<ServerName<'static>> {
        self.loaded().own_name.clone()
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Certificates are dated in the world's time.
pub(super) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
