//! A browser's login: it is sent to the issuer, and what it brings back is exchanged here for a token (authorization code with
//! PKCE, RFC 7636). The page reaches no other address by script, and there is no secret of a client: the verifier that only the
//! browser knows takes its place.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Oidc;
use super::fetch::BadIssuer;
use crate::http_client::{client, is_safe};

/// Limit of one exchange with the issuer.
const DEADLINE: Duration = Duration::from_secs(10);
/// What an issuer says of itself is asked for again after this.
const REFRESH: Duration = Duration::from_secs(600);
/// Exchanges at a time: whoever asks has no credential yet.
const MOST_EXCHANGES: usize = 8;
const MAX_BYTES: usize = 256 * 1024;
/// What a browser may send: codes and verifiers are far shorter.
const MAX_TEXT_BYTES: usize = 4096;

/// How the page logs in.
#[derive(Clone, Debug)]
pub struct LoginConfig {
    /// The page's name at the issuer, where it is a public client.
    pub client_id: String,
    /// What is asked for, words separated by blanks.
    pub scope: String,
}

/// Why there is no token. The text goes to whoever asks, and repeats nothing that was sent.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("as many logins are under way as may be")]
    Busy,
    #[error("{field} is missing or too long")]
    Request { field: &'static str },
    #[error("the issuer cannot be asked")]
    Issuer(#[source] reqwest::Error),
    #[error("the issuer's answer is not understood")]
    Answer,
    #[error("the issuer does not take the code: {reason}")]
    Refused { reason: String },
    #[error("the issuer's token lets nobody in here: {reason}")]
    Token { reason: String },
}

/// What an issuer says of its login.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoints {
    pub authorization_endpoint: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: Option<String>,
    id_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Sends browsers to one issuer. Cheap to clone.
#[derive(Clone)]
pub struct Login {
    oidc: Oidc,
    config: Arc<LoginConfig>,
    client: Client,
    discovery: Url,
    known: Arc<Mutex<Option<(Instant, Endpoints)>>>,
    turns: Arc<Semaphore>,
}

impl Login {
    pub fn new(oidc: Oidc, config: LoginConfig) -> Result<Self, BadIssuer> {
        let discovery = oidc.discovery()?;
        Ok(Self {
            client: client(discovery.scheme(), DEADLINE)?,
            oidc,
            config: Arc::new(config),
            discovery,
            known: Arc::default(),
            turns: Arc::new(Semaphore::new(MOST_EXCHANGES)),
        })
    }

    pub fn config(&self) -> &LoginConfig {
        &self.config
    }

    /// Where a browser goes to.
    pub async fn endpoints(&self) -> Result<Endpoints, LoginError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, endpoints)) = known
            && at.elapsed() < REFRESH
        {
            return Ok(endpoints);
        }
        let _turn = self.turns.try_acquire().map_err(|_| LoginError::Busy)?;
        let answer = self.client.get(self.discovery.clone()).send().await.map_err(LoginError::Issuer)?;
        let body = whole(answer).await?;
        let endpoints: Endpoints = serde_json::from_slice(&body).map_err(|_| LoginError::Answer)?;
        // As the keys: with TLS, or on this machine if the issuer is.
        let good = |text: &str| {
            Url::parse(text).is_ok_and(|url| {
                url.scheme() == "https" || (is_safe(&url) && self.discovery.scheme() == "http")
            })
        };
        if !good(&endpoints.authorization_endpoint) || !good(&endpoints.token_endpoint) {
            return Err(LoginError::Answer);
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), endpoints.clone()));
        Ok(endpoints)
    }

    /// The token for a code, if it is one that calls are let in with.
    pub async fn exchange(
        &self,
        code: &str,
        code_verifier: &str,
        redirect_uri: &str,
    ) -> Result<String, LoginError> {
        for (field, text) in
            [("code", code), ("code_verifier", code_verifier), ("redirect_uri", redirect_uri)]
        {
            if text.is_empty() || text.len() > MAX_TEXT_BYTES {
                return Err(LoginError::Request { field });
            }
        }
        let endpoints = self.endpoints().await?;
        let _turn = self.turns.try_acquire().map_err(|_| LoginError::Busy)?;
        let url = Url::parse(&endpoints.token_endpoint).map_err(|_| LoginError::Answer)?;
        let form = form(&[
            ("grant_type", "authorization_code"),
            ("client_id", &self.config.client_id),
            ("code", code),
            ("code_verifier", code_verifier),
            ("redirect_uri", redirect_uri),
        ]);
        let asked = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form);
        let answer = asked.send().await.map_err(LoginError::Issuer)?;
        let is_good = answer.status().is_success();
        let body = whole(answer).await?;
        if !is_good {
            let reason = serde_json::from_slice::<Refusal>(&body).map_or_else(
                |_| "it does not say why".to_owned(),
                |refusal| refusal.error.chars().filter(|c| !c.is_control()).take(100).collect(),
            );
            return Err(LoginError::Refused { reason });
        }
        let tokens: Tokens = serde_json::from_slice(&body).map_err(|_| LoginError::Answer)?;
        self.good(tokens).await
    }

    /// The access token; or that of the identity, where the issuer has the role in that one only.
    async fn good(&self, Tokens { access_token, id_token }: Tokens) -> Result<String, LoginError> {
        let mut reason = "there is none".to_owned();
        for token in [id_token, access_token].into_iter().flatten().rev() {
            match self.oidc.caller(&token).await {
                Ok(_) => return Ok(token),
                Err(bad) => reason = bad.to_string(),
            }
        }
        Err(LoginError::Token { reason })
    }
}

async fn whole(mut answer: reqwest::Response) -> Result<Vec<u8>, LoginError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(LoginError::Issuer)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(LoginError::Answer);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Fields as a form sends them.
fn form(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_takes_any_text() {
        assert_eq!(
            form(&[("code", "a b&c=d"), ("redirect_uri", "https://h/ü")]),
            "code=a%20b%26c%3Dd&redirect_uri=https%3A%2F%2Fh%2F%C3%BC"
        );
    }
}
