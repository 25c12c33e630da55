//! Options of every command.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Address of the controller, host:port, or of several, separated by commas. Without it: those of the context, or
    /// else the cluster that `crescendo up` started last.
    #[arg(long, global = true, env = "CRESCENDO_CONTROLLER", value_name = "ADDR", value_delimiter = ',')]
    pub controller: Vec<String>,
    /// Context to use in place of the current one: a cluster and how to log in there (see `crescendo context`).
    #[arg(long, global = true, env = "CRESCENDO_CONTEXT", value_name = "NAME", value_parser = crate::settings::file::check_name)]
    pub context: Option<String>,
    /// File that contexts are kept in [default: crescendo/config.yaml in $XDG_CONFIG_HOME or ~/.config].
    #[arg(long, global = true, env = "CRESCENDO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of a cluster that `crescendo up` runs (there: where to keep it, ./.crescendo if absent).
    #[arg(long, global = true, env = "CRESCENDO_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Root certificates that vouch for the controllers, PEM. Without it: the system's.
    #[arg(long, global = true, env = "CRESCENDO_TLS_CA", value_name = "FILE", help_heading = "Login")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate to log in with, PEM; instead of a token.
    #[arg(
        long,
        global = true,
        env = "CRESCENDO_TLS_CERT",
        value_name = "FILE",
        help_heading = "Login",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    #[arg(
        long,
        global = true,
        env = "CRESCENDO_TLS_KEY",
        value_name = "FILE",
        help_heading = "Login",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// File with the token to log in with. The variable CRESCENDO_TOKEN may hold the token itself.
    #[arg(long, global = true, env = "CRESCENDO_TOKEN_FILE", value_name = "FILE", help_heading = "Login")]
    pub token_file: Option<PathBuf>,
    /// How results are printed.
    #[arg(
        short,
        long,
        global = true,
        env = "CRESCENDO_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: Output,
    /// How long to go on trying while the controller cannot be reached, e.g. 30s [default: 3s to look at things, 60s
    /// to change them, 10m to watch].
    #[arg(long, global = true, env = "CRESCENDO_TIMEOUT", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<std::time::Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For scripts: one document, or one line per event for what goes on (watch, logs).
    Json,
}
