//! Command line arguments that all servers have, and those that all nodes have. Each can be given as an environment
//! variable `CRESCENDO_<NAME>` too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::telemetry::trace::TraceArgs;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What every long-running process needs.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address of the gRPC server; port 0 takes a free one
    #[arg(long, env = "CRESCENDO_LISTEN", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address of the HTTP server for /metrics; port 0 takes a free one
    #[arg(long, env = "CRESCENDO_METRICS_LISTEN", default_value = "127.0.0.1:0")]
    pub metrics_listen: SocketAddr,
    /// File to write the bound addresses to once the process serves, as JSON
    #[arg(long, env = "CRESCENDO_PORT_FILE")]
    pub port_file: Option<PathBuf>,
    /// Connections to the gRPC server that may be open at a time; one beyond that is closed at once
    #[arg(long, env = "CRESCENDO_MAX_CONNECTIONS", default_value_t = 16_384, value_parser = parse_connections)]
    pub max_connections: usize,
    /// Host name or address under which others reach this process; the listening address if absent
    #[arg(long, env = "CRESCENDO_ADVERTISE_HOST")]
    pub advertise_host: Option<String>,
    #[command(flatten)]
    pub security: SecurityArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// How connections are protected: all three files, or `--dev`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityArgs {
    /// This process's certificate and those between it and a root, PEM; read again when it changes
    #[arg(long, env = "CRESCENDO_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM; read again when it changes
    #[arg(long, env = "CRESCENDO_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Root certificates that vouch for the other processes and for people, PEM; read again when it changes
    #[arg(long, env = "CRESCENDO_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Neither encryption nor login, and on loopback addresses only: for one machine
    #[arg(long, env = "CRESCENDO_DEV")]
    pub dev: bool,
}

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// How log lines are written
    #[arg(long, env = "CRESCENDO_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What is logged: a level, or a list of target=level
    #[arg(long, env = "CRESCENDO_LOG", default_value = "info")]
    pub log_filter: String,
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// What every node needs.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Name of this node, the same at every start: a-z, 0-9, '.' and '-', at most 63 characters
    #[arg(long, env = "CRESCENDO_NODE_ID", value_parser = parse_node_id)]
    pub node_id: String,
    /// Addresses of the controllers, host:port, separated by commas
    #[arg(long, env = "CRESCENDO_CONTROLLER", value_delimiter = ',', required = true)]
    pub controller: Vec<String>,
    /// Folder that relative paths of a job spec are below
    #[arg(long, env = "CRESCENDO_LIBRARY_ROOT", default_value = ".")]
    pub library_root: PathBuf,
    /// Labels for placement, key=value, separated by commas
    #[arg(long, env = "CRESCENDO_LABELS", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Time to hand over what this node works on after a SIGTERM, seconds; a second SIGTERM, or SIGINT, ends it at once
    #[arg(long, env = "CRESCENDO_DRAIN_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_seconds: u64,
}

impl NodeArgs {
    /// How long a hand-over may take.
    pub fn drain_within(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(connections) if (1..=1 << 20).contains(&connections) => Ok(connections),
        _ => Err("must be a number from 1 to 1048576".into()),
    }
}

fn parse_node_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(allowed) {
        return Err("must be 1 to 63 characters of a-z, 0-9, '.' and '-'".into());
    }
    Ok(text.into())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("must be key=value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_checked() {
        assert!(parse_node_id("trainer-0.rack-1").is_ok());
        for bad in ["", "Trainer", "a_b", "a/b", &"x".repeat(64)] {
            assert!(parse_node_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_need_a_key() {
        assert_eq!(parse_label("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert!(parse_label("=a").is_err());
        assert!(parse_label("zone").is_err());
    }
}
