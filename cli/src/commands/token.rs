//! `crescendo token`: static tokens for people and services. Nothing is sent anywhere: the controller gets the hash.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use crescendo_core::access::Role;
use crescendo_core::ids::Tenant;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::common_args::{Common, Output};
use crate::failure::Failure;
use crate::show::{self, json};

/// What a token begins with, so that it is recognised where it should not lie.
const PREFIX: &str = "crescendo_";
const TOKEN_BYTES: usize = 32;

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, print it once, and the entry that the controller needs.
    #[command(after_help = "\
Examples:
  crescendo token new --name ci-bot --role submitter --tenant research --expires 90d
  crescendo token new --name alice --role admin --expires 30d --write ~/.config/crescendo/token

The entry goes into the file of the controller's --auth-tokens, which takes it without a restart.")]
    New(NewArgs),
}

#[derive(Debug, Args)]
pub struct NewArgs {
    /// Whose token it is, as the audit log will say: 1 to 100 of A-Z, a-z, 0-9, . _ @ and -.
    #[arg(long, value_parser = parse_name)]
    pub name: String,
    /// viewer, submitter, operator or admin.
    #[arg(long, value_parser = parse_role)]
    pub role: Role,
    /// Tenant that it is for; only an admin can do without.
    #[arg(long, value_parser = parse_tenant)]
    pub tenant: Option<Tenant>,
    /// How long it is good for, e.g. 90d.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub expires: Duration,
    /// Write the token to a new file that only you can read, instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
}

fn parse_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if text.is_empty() || text.len() > 100 || !text.chars().all(plain) {
        return Err("must be 1 to 100 of A-Z, a-z, 0-9, . _ @ and -".into());
    }
    Ok(text.into())
}

fn parse_role(text: &str) -> Result<Role, String> {
    match Role::parse(text) {
        Some(Role::Node) => Err("nodes have certificates, not tokens".into()),
        Some(role) => Ok(role),
        None => Err("must be viewer, submitter, operator or admin".into()),
    }
}

fn parse_tenant(text: &str) -> Result<Tenant, String> {
    Tenant::parse(text).map_err(|error| error.to_string())
}

pub fn run(common: &Common, args: &TokenArgs) -> Result<(), Failure> {
    let TokenCommand::New(args) = &args.command;
    args.role
        .check_tenant(args.tenant.as_ref())
        .map_err(|reason| Failure::Usage(format!("--role {} {reason}: give --tenant", args.role)))?;
    let expires = SystemTime::now()
        .checked_add(args.expires)
        .ok_or_else(|| Failure::Usage("--expires is too far away".to_owned()))?;
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random).map_err(Failure::from_error("draw a random number"))?;
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let entry = Entry::new(args, &token, expires);
    if let Some(path) = &args.write {
        write_new(path, &token).map_err(Failure::from_error(format_args!("write {}", path.display())))?;
    }
    let printed = args.write.is_none().then_some(token);
    match common.output {
        Output::Json => json::print(&json!({ "token": printed, "entry": entry.json() })),
        Output::Table => {
            if let Some(token) = printed {
                show::errln("The token. It is shown this once; keep it like a password:");
                show::outln(token);
            }
            show::errln("Its entry for the file of the controller's --auth-tokens:");
            show::outln(entry.yaml());
        }
    }
    Ok(())
}

fn write_new(path: &Path, token: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()
}

/// What the controller is told.
struct Entry<'a> {
    args: &'a NewArgs,
    sha256: String,
    expires: String,
}

impl<'a> Entry<'a> {
    fn new(args: &'a NewArgs, token: &str, expires: SystemTime) -> Self {
        let sha256 = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { args, sha256, expires: humantime::format_rfc3339_seconds(expires).to_string() }
    }

    /// Every value is of characters that YAML takes as they are, but a name may look like a number.
    fn yaml(&self) -> String {
        let Self { args, sha256, expires } = self;
        let tenant = args.tenant.as_ref().map(|tenant| format!("tenant: \"{tenant}\", ")).unwrap_or_default();
        format!(
            "- {{name: \"{}\", role: {}, {tenant}sha256: \"{sha256}\", expires: \"{expires}\"}}",
            args.name, args.role
        )
    }

    fn json(&self) -> serde_json::Value {
        let Self { args, sha256, expires } = self;
        let mut entry = json!({
            "name": args.name, "role": args.role.as_str(), "sha256": sha256, "expires": expires,
        });
        if let Some(tenant) = &args.tenant {
            entry["tenant"] = json!(tenant.as_str());
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_no_tokens_and_names_are_plain() {
        assert!(parse_role("node").is_err_and(|error| error.contains("certificates")));
        assert!(parse_role("root").is_err());
        assert_eq!(parse_role("admin"), Ok(Role::Admin));
        for bad in ["", "a b", "a\n", "a\"", &"a".repeat(101)] {
            assert!(parse_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_entry_has_the_hash_and_not_the_token() {
        let args = NewArgs {
            name: "1e5".into(),
            role: Role::Viewer,
            tenant: Tenant::parse("research").ok(),
            expires: Duration::from_secs(1),
            write: None,
        };
        let entry = Entry::new(&args, "secret", SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
        assert_eq!(
            entry.yaml(),
            "- {name: \"1e5\", role: viewer, tenant: \"research\", sha256: \
             \"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\", expires: \
             \"1970-01-02T00:00:00Z\"}"
        );
        assert!(!entry.json().to_string().contains("secret\""));
    }
}
