//! Tokens of an identity provider (OpenID Connect).
//!
//! ```text
//!   token ─▶ its key, by id ─▶ signature, issuer, audience, times ─▶ claims ─▶ Caller
//!              │ unknown                                              (role, tenant)
//!              └─▶ fetch: discovery ─▶ key set ─▶ keys     at most every few seconds, and now and then unasked
//! ```
//!
//! Only signatures with the issuer's public keys count (RS256, ES256, EdDSA), each key with the one algorithm that is its
//! own: what the token says of algorithms decides nothing. While the issuer is down, the keys that were fetched before
//! are good.

mod claims;
mod fetch;
mod keys;
mod login;
mod signatures;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crescendo_node::runtime::supervise::Tasks;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use prometheus::IntCounter;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;

use crate::access::caller::{BadCredential, Caller};
use fetch::{BadIssuer, Fetcher, discovery_of};
use keys::Keys;

pub use login::{Login, LoginConfig, LoginError};

/// Clocks may differ by this much.
const LEEWAY: Duration = Duration::from_secs(30);

/// Whose tokens are taken, and where they say who their owner is.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// URL of the issuer, as its tokens have it in `iss`.
    pub issuer: String,
    /// What the tokens have in `aud`.
    pub audience: String,
    /// Claim with the role: a name, or a JSON pointer where it begins with `/`.
    pub role_claim: String,
    /// Claim with the tenant.
    pub tenant_claim: String,
    /// Wait between two fetches of the keys.
    pub fetch_pause: Duration,
    /// Browsers log in at the issuer.
    pub login: Option<LoginConfig>,
}

/// Checks tokens of one issuer. Cheap to clone.
#[derive(Clone)]
pub struct Oidc {
    config: Arc<OidcConfig>,
    keys: watch::Receiver<Arc<Keys>>,
    fetcher: Fetcher,
}

impl Oidc {
    /// Starts to fetch the keys; tokens are refused until there are some.
    pub fn start(config: &OidcConfig, failures: IntCounter, tasks: &Tasks) -> anyhow::Result<Self> {
        signatures::install();
        let (fetcher, keys) = Fetcher::start(&config.issuer, config.fetch_pause, failures, tasks)
            .with_context(|| format!("use issuer {}", config.issuer))?;
        Ok(Self { config: Arc::new(config.clone()), keys, fetcher })
    }

    /// Where the issuer says what it has.
    fn discovery(&self) -> Result<Url, BadIssuer> {
        discovery_of(&self.config.issuer)
    }

    /// How browsers log in, if they do.
    pub fn login(&self) -> anyhow::Result<Option<Login>> {
        let login = self.config.login.clone().map(|config| Login::new(self.clone(), config));
        login.transpose().context("set up the page's login")
    }

    /// Whose token this is.
    pub async fn caller(&self, token: &str) -> Result<Caller, BadCredential> {
        if !is_taken(token).unwrap_or(true) {
            return Err(invalid("its signature's algorithm is not taken; RS256, ES256 and EdDSA are"));
        }
        let header = decode_header(token).map_err(|_| invalid("it is not a signed JSON Web Token"))?;
        let kid = header.kid.as_deref();
        let mut keys = self.keys.borrow().clone();
        if keys.find(kid, header.alg).is_none() {
            // The issuer may have begun to sign with a new key.
            self.fetcher.fetch().await;
            keys = self.keys.borrow().clone();
        }
        if keys.is_empty() {
            return Err(BadCredential::NoKeys);
        }
        let key = keys.find(kid, header.alg).ok_or(invalid("none of its issuer's keys has signed it"))?;
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let token =
            decode::<claims::Claims>(token, &key.decoding, &validation).map_err(|error| why(error.kind()))?;
        claims::caller(&token.claims, &self.config)
    }
}

/// Whether a token's header names an algorithm that is taken; none where it has no header to be read.
fn is_taken(token: &str) -> Option<bool> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    let (header, _) = token.split_once('.')?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    // By their names: the library does not know all that there are.
    Some(["RS256", "ES256", "EdDSA"].contains(&header.alg.as_str()))
}

fn invalid(reason: &'static str) -> BadCredential {
    BadCredential::Invalid { reason }
}

/// What the library found, in words that repeat nothing of the token.
fn why(error: &ErrorKind) -> BadCredential {
    match error {
        ErrorKind::ExpiredSignature => BadCredential::Expired,
        ErrorKind::ImmatureSignature => invalid("it is not valid yet"),
        ErrorKind::InvalidIssuer => invalid("it is of another issuer"),
        ErrorKind::InvalidAudience => invalid("it is for another audience"),
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => invalid("its signature is wrong"),
        ErrorKind::MissingRequiredClaim(_) => invalid("one of the claims exp, iss, aud and sub is missing"),
        _ => invalid("it is not a signed JSON Web Token"),
    }
}
