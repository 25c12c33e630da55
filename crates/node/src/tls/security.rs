//! How a process protects its connections, as its command line says.

use super::accept::{ConnectionMetrics, Incoming};
use super::dial::Dialer;
use super::files::{Identity, TlsError, TlsFiles};
use super::reload::{ClientCertificates, RELOAD_INTERVAL, Tls, TlsMetrics};
use super::roles::NodesOnly;
use crate::runtime::args::SecurityArgs;
use crate::runtime::supervise::Tasks;

/// Protected by TLS, or not at all.
#[derive(Clone, Debug)]
pub enum Security {
    /// Neither encryption nor login: loopback only.
    Dev,
    Tls(Tls),
}

#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error(
        "connections must be protected, and {missing} missing: give --tls-cert, --tls-key and --tls-ca (docs/security.md says how to make the files), or --dev for a cluster on this machine alone, without encryption and login"
    )]
    Missing { missing: String },
    #[error("--dev means no TLS, and {given} given: leave out one or the other")]
    Both { given: String },
    #[error("read the TLS files")]
    Files(#[from] TlsError),
}

impl SecurityArgs {
    /// The files to use; none with `--dev`.
    pub fn resolve(&self) -> Result<Option<TlsFiles>, SecurityError> {
        let Self { tls_cert, tls_key, tls_ca, dev } = self;
        let flags = [("--tls-cert", tls_cert), ("--tls-key", tls_key), ("--tls-ca", tls_ca)];
        let named = |wanted: bool| -> Vec<&str> {
            flags.iter().filter(|(_, file)| file.is_some() == wanted).map(|(flag, _)| *flag).collect()
        };
        match (tls_cert, tls_key, tls_ca, dev) {
            (Some(cert), Some(key), Some(ca), false) => Ok(Some(TlsFiles {
                identity: Some(Identity { cert: cert.clone(), key: key.clone() }),
                ca: Some(ca.clone()),
            })),
            (None, None, None, true) => Ok(None),
            (_, _, _, true) => Err(SecurityError::Both { given: sentence(&named(true)) }),
            (_, _, _, false) => Err(SecurityError::Missing { missing: sentence(&named(false)) }),
        }
    }

    /// The same as arguments, for a process that this one starts.
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let mut args = Vec::new();
        for (flag, file) in
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-ca", &self.tls_ca)]
        {
            if let Some(file) = file {
                args.extend([flag.into(), file.into()]);
            }
        }
        if self.dev {
            args.push("--dev".into());
        }
        args
    }
}

fn sentence(flags: &[&str]) -> String {
    let verb = if flags.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", flags.join(", "))
}

impl Security {
    /// Reads the files once.
    pub async fn load(args: &SecurityArgs) -> Result<Self, SecurityError> {
        Ok(match args.resolve()? {
            Some(files) => Self::Tls(Tls::load(files).await?),
            None => Self::Dev,
        })
    }

    /// Reads the files, and from then on looks at them now and then until the tasks stop. With `--dev` it says so, loudly.
    pub async fn start(
        args: &SecurityArgs,
        metrics: &TlsMetrics,
        tasks: &Tasks,
    ) -> Result<Self, SecurityError> {
        let security = Self::load(args).await?;
        match &security {
            Self::Dev => tracing::warn!(
                "--dev: NOTHING IS PROTECTED. There is neither encryption nor login; whoever reaches this machine's loopback may do everything"
            ),
            Self::Tls(tls) => {
                tasks.spawn(tls.clone().watch(Some(metrics.clone()), RELOAD_INTERVAL, tasks.stop_token()));
            }
        }
        Ok(security)
    }

    pub fn is_dev(&self) -> bool {
        matches!(self, Self::Dev)
    }

    /// How this process reaches others.
    pub fn dialer(&self) -> Dialer {
        match self {
            Self::Dev => Dialer::plain(),
            Self::Tls(tls) => Dialer::tls(tls.clone()),
        }
    }

    /// The connections to a server of this process, at most `max_connections` at a time.
    pub fn incoming(
        &self,
        listener: tokio::net::TcpListener,
        clients: ClientCertificates,
        max_connections: usize,
        metrics: ConnectionMetrics,
    ) -> Incoming {
        let tls = match self {
            Self::Dev => None,
            Self::Tls(tls) => Some((tls.clone(), clients)),
        };
        Incoming::new(listener, tls, max_connections, metrics)
    }

    /// A layer that lets only nodes through; with `--dev` there is no telling who is one.
    pub fn nodes_only(&self) -> NodesOnly {
        NodesOnly::new(!self.is_dev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_files_or_dev() {
        let all = SecurityArgs {
            tls_cert: Some("c".into()),
            tls_key: Some("k".into()),
            tls_ca: Some("a".into()),
            dev: false,
        };
        assert_eq!(all.resolve().unwrap().unwrap().ca, Some("a".into()));
        assert_eq!(all.to_args(), ["--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"]);
        let dev = SecurityArgs { dev: true, ..SecurityArgs::default() };
        assert!(dev.resolve().unwrap().is_none());
        assert_eq!(dev.to_args(), ["--dev"]);

        let error = SecurityArgs::default().resolve().unwrap_err().to_string();
        assert!(error.contains("--tls-cert, --tls-key, --tls-ca are missing") && error.contains("--dev"));
        let error = SecurityArgs { tls_ca: None, ..all.clone() }.resolve().unwrap_err().to_string();
        assert!(error.contains("--tls-ca is missing"), "{error}");
        let error = SecurityArgs { dev: true, ..all }.resolve().unwrap_err().to_string();
        assert!(error.contains("--tls-cert, --tls-key, --tls-ca are given"), "{error}");
    }
}
