//! `crescendo certificates`: the certificates of a release without another issuer. A pod of the chart runs it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use crescendo_node::objects::with_causes;

use crate::certificates::{Api, Due, Issued, Plan, Secret, due, fingerprint, issue_authority, issue_leaf};
use crate::common_args::{Common, Output};
use crate::failure::Failure;
use crate::show::{self, json};

#[derive(Debug, Subcommand)]
pub enum CertificatesCommand {
    /// Make those that are missing, for something else than planned, or past two thirds of their life.
    #[command(after_help = "\
It runs in a pod, and reads and writes Secrets of its namespace, which have to be there, be they empty. The file, for example:

  authorities:
    - {secret: crescendo-ca, commonName: crescendo-ca, lifetime: 3650d}
  certificates:
    - secret: crescendo-controller-tls
      authority: crescendo-ca
      commonName: crescendo-controller
      dnsNames: ['*.crescendo-controller.ml.svc', localhost]
      ipAddresses: [127.0.0.1]
      usages: [server auth]
      lifetime: 90d")]
    Renew(RenewArgs),
}

#[derive(Debug, Args)]
pub struct RenewArgs {
    /// File that says which certificates there should be.
    pub plan: PathBuf,
}

pub async fn run(common: &Common, command: &CertificatesCommand) -> Result<(), Failure> {
    let CertificatesCommand::Renew(args) = command;
    let shown = args.plan.display();
    let text =
        std::fs::read_to_string(&args.plan).map_err(Failure::from_error(format_args!("read {shown}")))?;
    let plan = Plan::parse(&text).map_err(Failure::from_error(&shown))?;
    let api = Api::of_this_pod().map_err(other)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);

    let mut authorities: BTreeMap<&str, Issued> = BTreeMap::new();
    for wanted in &plan.authorities {
        let mut secret = api.secret(&wanted.secret).await.map_err(other)?;
        let made_by = fingerprint(wanted, "");
        let why = due(&secret.held(), &made_by, now);
        let held = secret.text("tls.crt").zip(secret.text("tls.key"));
        let authority = match (why, held) {
            (None, Some((certificate_pem, key_pem))) => Issued { certificate_pem, key_pem },
            _ => {
                let made = issue_authority(wanted, secret.text("tls.key").as_deref(), now).map_err(other)?;
                let files = [("tls.crt", made.certificate_pem.as_str()), ("tls.key", made.key_pem.as_str())];
                write(&api, &mut secret, &files, &made_by).await?;
                made
            }
        };
        say(common, &wanted.secret, why);
        authorities.insert(&wanted.secret, authority);
    }
    for wanted in &plan.certificates {
        // The plan was held to naming its own authorities.
        let by = plan.authorities.iter().find(|authority| authority.secret == wanted.authority);
        let (Some(by), Some(authority)) = (by, authorities.get(wanted.authority.as_str())) else { continue };
        let mut secret = api.secret(&wanted.secret).await.map_err(other)?;
        let made_by = fingerprint(wanted, &authority.certificate_pem);
        let why = due(&secret.held(), &made_by, now);
        if why.is_some() {
            let made = issue_leaf(wanted, by, authority, now).map_err(other)?;
            let files = [
                ("tls.crt", made.certificate_pem.as_str()),
                ("tls.key", made.key_pem.as_str()),
                ("ca.crt", authority.certificate_pem.as_str()),
            ];
            write(&api, &mut secret, &files, &made_by).await?;
        }
        say(common, &wanted.secret, why);
    }
    Ok(())
}

async fn write(api: &Api, secret: &mut Secret, files: &[(&str, &str)], made_by: &str) -> Result<(), Failure> {
    secret.set(files, made_by).map_err(other)?;
    api.replace(secret).await.map_err(other)
}

fn other(error: impl std::error::Error) -> Failure {
    Failure::other(with_causes(&error))
}

fn say(common: &Common, secret: &str, why: Option<Due>) {
    match common.output {
        Output::Json => json::print(&json!({ "secret": secret, "made": why.is_some() })),
        Output::Table => show::outln(match why {
            Some(why) => format!("{secret}: made, since it {}", why.word()),
            None => format!("{secret}: is good"),
        }),
    }
}
