//! Which cluster a command talks to, and with what credentials: flags and environment, contexts of the configuration file,
//! or the cluster that `crescendo up` started.
//!
//! ```text
//!   --controller, --tls-…, --token-file ─┐
//!   CRESCENDO_TOKEN ─────────────────────┤
//!   --context, or the current one ───────┼─▶ resolve ─▶ Target: addresses, TLS files, where the token is
//!   up.json ─────────────────────────────┘
//! ```

pub mod file;
pub mod token;

use std::path::PathBuf;

use crate::args::Common;
use crate::failure::Failure;
use crate::up::state;
use file::{Config, ConfigFile, Context};
use token::TokenSource;

/// Where to call, and as whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// host:port, or with a scheme.
    pub addresses: Vec<String>,
    pub tls: Tls,
    pub token: TokenSource,
    /// Tenant whose jobs are listed unless asked otherwise.
    pub tenant: Option<String>,
    /// Folder or URL of the object store, if it was said.
    pub object_store: Option<String>,
    /// What relative paths of a spec start from on this machine, if that is known.
    pub library_root: Option<PathBuf>,
    pub origin: Origin,
}

/// PEM files; none of them given means the system's roots, where TLS is spoken at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Tls {
    pub fn is_given(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}

/// Where the addresses come from, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
    Flags,
    Context(String),
    /// Folder of the cluster that `up` runs.
    Up(PathBuf),
}

/// The target of a command: from `--controller`, else from the context, else from the cluster that `up` runs.
pub fn find(common: &Common) -> Result<Target, Failure> {
    let environment = std::env::var("CRESCENDO_TOKEN").ok().filter(|token| !token.is_empty());
    let file = ConfigFile::locate(common.config.as_deref());
    let config = match &file {
        // A cluster that is named needs no configuration.
        _ if common.context.is_none() && names_its_cluster(common) => Config::default(),
        Some(file) => file.load()?,
        None => Config::default(),
    };
    if let Some(target) = resolve(common, environment.clone(), &config)? {
        return Ok(target);
    }
    let (path, up) = state::find(common.dir.as_deref())?;
    let Some(up) = up else {
        let path = path.display();
        return Err(Failure::Unreachable(format!(
            "no controller: give its address with --controller or CRESCENDO_CONTROLLER, or choose a context (`crescendo context add`), or start a cluster on this machine with `crescendo up` (there is no {path})"
        )));
    };
    Ok(Target {
        addresses: vec![up.controller],
        // It runs on loopback without TLS; files that are meant for another cluster do not count.
        tls: Tls::default(),
        token: token_of_flags(common, environment).unwrap_or_default(),
        tenant: None,
        object_store: Some(up.object_store),
        library_root: Some(up.library_root),
        origin: Origin::Up(up.dir),
    })
}

fn names_its_cluster(common: &Common) -> bool {
    !common.controller.is_empty() || common.dir.is_some()
}

/// What flags, environment and contexts say; `None` if that is nothing.
///
/// A context's credentials go to the context's own controllers, or to others only if both are named: a token must not
/// reach an address that was given for another cluster.
fn resolve(common: &Common, environment: Option<String>, config: &Config) -> Result<Option<Target>, Failure> {
    let name = match &common.context {
        Some(name) => Some(name),
        None if names_its_cluster(common) => None,
        None => config.current.as_ref(),
    };
    let context = match name {
        None => None,
        Some(name) => Some(config.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = config.contexts.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are: {}", known.join(", ")) };
            Failure::Usage(format!("there is no context {name}; {known}; make one with `crescendo context add {name} --controller HOST:PORT`"))
        })?),
    };
    if context.is_none() && common.controller.is_empty() {
        return Ok(None);
    }
    let none = Context::default();
    let set = context.unwrap_or(&none);
    let given = tls_of_flags(common);
    let addresses =
        if common.controller.is_empty() { set.controllers.clone() } else { common.controller.clone() };
    if addresses.is_empty() {
        return Err(Failure::Usage(format!(
            "context {} has no controllers: give them with --controller",
            name.map_or("", String::as_str)
        )));
    }
    Ok(Some(Target {
        addresses,
        tls: Tls {
            ca: given.ca.or_else(|| set.tls_ca.clone()),
            cert: given.cert.or_else(|| set.tls_cert.clone()),
            key: given.key.or_else(|| set.tls_key.clone()),
        },
        token: token_of_flags(common, environment).unwrap_or_else(|| set.token()),
        tenant: set.tenant.clone(),
        object_store: set.object_store.clone(),
        library_root: None,
        origin: name.map_or(Origin::Flags, |name| Origin::Context(name.clone())),
    }))
}

fn tls_of_flags(common: &Common) -> Tls {
    Tls { ca: common.tls_ca.clone(), cert: common.tls_cert.clone(), key: common.tls_key.clone() }
}

/// A file that is named goes before the environment.
fn token_of_flags(common: &Common, environment: Option<String>) -> Option<TokenSource> {
    match (&common.token_file, environment) {
        (Some(file), _) => Some(TokenSource::File(file.clone())),
        (None, Some(token)) => Some(TokenSource::Given(token.into())),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn config() -> Config {
        serde_yaml::from_str(
            "current: lab\ncontexts:\n  lab: {controllers: ['lab:7070'], tlsCa: /ca.pem, tokenFile: /lab.token, tenant: research, objectStore: 's3://b'}\n  home: {controllers: ['127.0.0.1:1', '127.0.0.1:2'], exec: [get-token, --now]}\n",
        )
        .unwrap()
    }

    fn target(args: &[&str], environment: Option<&str>) -> Result<Option<Target>, Failure> {
        // Flags alone: variables of whoever runs the tests do not count.
        let common = Cli::try_parse_from(["crescendo", "nodes"].iter().chain(args)).unwrap().common;
        resolve(&common, environment.map(str::to_owned), &config())
    }

    #[test]
    fn the_current_context_is_used_unless_something_else_is_named() {
        let lab = target(&[], None).unwrap().unwrap();
        assert_eq!(lab.addresses, ["lab:7070"]);
        assert_eq!(lab.token, TokenSource::File("/lab.token".into()));
        assert_eq!(lab.tls.ca.as_deref(), Some(std::path::Path::new("/ca.pem")));
        assert_eq!((lab.tenant.as_deref(), lab.object_store.as_deref()), (Some("research"), Some("s3://b")));
        assert_eq!(lab.origin, Origin::Context("lab".into()));
        let home = target(&["--context", "home"], None).unwrap().unwrap();
        assert_eq!(home.addresses.len(), 2);
        assert_eq!(home.token, TokenSource::Exec(vec!["get-token".into(), "--now".into()]));
        assert_eq!(home.tls, Tls::default());
    }

    #[test]
    fn credentials_of_a_context_do_not_reach_other_addresses_by_themselves() {
        let other = target(&["--controller", "other:1"], None).unwrap().unwrap();
        assert_eq!(
            (other.token, other.tls, other.origin),
            (TokenSource::None, Tls::default(), Origin::Flags)
        );
        let named = target(&["--controller", "other:1", "--context", "lab"], None).unwrap().unwrap();
        assert_eq!(
            (named.addresses, named.token),
            (vec!["other:1".to_owned()], TokenSource::File("/lab.token".into()))
        );
        // A local cluster that is named is not the context's.
        assert_eq!(target(&["--dir", "x"], None).unwrap(), None);
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_context() {
        let token = |args: &[&str], env| target(args, env).unwrap().unwrap().token;
        assert_eq!(token(&[], Some("t")), TokenSource::Given("t".to_owned().into()));
        assert_eq!(token(&["--token-file", "/f"], Some("t")), TokenSource::File("/f".into()));
        let tls = target(&["--tls-ca", "/other.pem"], None).unwrap().unwrap().tls;
        assert_eq!(tls.ca.as_deref(), Some(std::path::Path::new("/other.pem")));
    }

    #[test]
    fn a_context_that_is_not_there_is_wrong_use_and_the_others_are_named() {
        let Err(Failure::Usage(message)) = target(&["--context", "lap"], None) else {
            panic!("it is refused")
        };
        assert!(message.contains("there is no context lap") && message.contains("home, lab"), "{message}");
    }
}
