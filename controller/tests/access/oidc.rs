//! Tokens of an identity provider, with a real one on this machine and keys of this test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crescendo_controller::access::{LoginConfig, OidcConfig};
use crescendo_proto::v1;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use rsa::pkcs1v15::SigningKey;
use rsa::signature::{SignatureEncoding as _, Signer as _};
use rsa::traits::PublicKeyParts as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::cluster::{Guarded, Options, ask_over};
use crescendo_testing::eventually;

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Secret {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<rsa::RsaPrivateKey>),
}

struct Key {
    id: &'static str,
    secret: Secret,
}

impl Key {
    fn p256(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        Self { id, secret: Secret::P256(key.expect("a key")) }
    }

    fn ed25519(id: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self { id, secret: Secret::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key")) }
    }

    fn rsa(id: &'static str) -> Self {
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        Self { id, secret: Secret::Rsa(Box::new(key)) }
    }

    fn algorithm(&self) -> &'static str {
        match self.secret {
            Secret::P256(_) => "ES256",
            Secret::Ed25519(_) => "EdDSA",
            Secret::Rsa(_) => "RS256",
        }
    }

    fn public(&self) -> Value {
        let (id, alg) = (self.id, self.algorithm());
        match &self.secret {
            Secret::P256(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": id, "alg": alg, "use": "sig"})
            }
            Secret::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64(key.public_key()), "kid": id, "use": "sig"})
            }
            Secret::Rsa(key) => {
                let (n, e) = (base64(key.n().to_bytes_be()), base64(key.e().to_bytes_be()));
                json!({"kty": "RSA", "n": n, "e": e, "kid": id, "alg": alg})
            }
        }
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"alg": self.algorithm(), "typ": "JWT", "kid": self.id}), claims)
    }

    fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let signature = match &self.secret {
            Secret::P256(key) => {
                key.sign(&SystemRandom::new(), message.as_bytes()).expect("signed").as_ref().to_vec()
            }
            Secret::Ed25519(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Secret::Rsa(key) => {
                SigningKey::<rsa::sha2::Sha256>::new((**key).clone()).sign(message.as_bytes()).to_vec()
            }
        };
        format!("{message}.{}", base64(signature))
    }
}

/// What the issuer answers: `None` while it is out of order.
type Answers = Arc<Mutex<Option<Value>>>;

/// What it gives for what is sent to it, once each.
type Tokens = Arc<Mutex<BTreeMap<String, String>>>;

struct Issuer {
    url: String,
    keys: Answers,
    tokens: Tokens,
    _server: JoinSet<()>,
}

impl Issuer {
    async fn start(keys: &[&Key]) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let answers: Answers = Arc::default();
        let discovery = json!({
            "issuer": url, "jwks_uri": format!("{url}/keys"),
            "authorization_endpoint": format!("{url}/authorize"), "token_endpoint": format!("{url}/token"),
        })
        .to_string();
        let of_keys = answers.clone();
        let tokens: Tokens = Arc::default();
        let of_codes = tokens.clone();
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(move || async move { discovery }))
            .route(
                "/keys",
                get(move || async move {
                    let keys = of_keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    keys.map(|keys| keys.to_string()).ok_or(StatusCode::SERVICE_UNAVAILABLE)
                }),
            )
            .route(
                "/token",
                post(move |form: String| async move {
                    let mut tokens = of_codes.lock().unwrap_or_else(PoisonError::into_inner);
                    match tokens.remove(&form) {
                        Some(token) => (StatusCode::OK, json!({"access_token": token}).to_string()),
                        None => (StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"}).to_string()),
                    }
                }),
            );
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        let issuer = Self { url, keys: answers, tokens, _server: server };
        issuer.publish(Some(keys));
        Ok(issuer)
    }

    fn publish(&self, keys: Option<&[&Key]>) {
        let set = keys.map(|keys| json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}));
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = set;
    }

    fn config(&self) -> OidcConfig {
        OidcConfig {
            issuer: self.url.clone(),
            audience: "crescendo".to_owned(),
            role_claim: "crescendo_role".to_owned(),
            tenant_claim: "crescendo_tenant".to_owned(),
            fetch_pause: Duration::from_millis(50),
            login: None,
        }
    }

    /// Claims of a good token, for `seconds` from now.
    fn claims(&self, seconds: i64) -> Value {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since_epoch.as_secs()).unwrap_or_default();
        json!({
            "iss": self.url, "aud": ["crescendo", "another"], "sub": "alice", "iat": now, "nbf": now,
            "exp": now + seconds, "crescendo_role": "viewer", "crescendo_tenant": "research",
        })
    }

    fn but(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims(600);
        claims[name] = value;
        claims
    }
}

async fn start(issuer: &Issuer) -> anyhow::Result<Guarded> {
    let cluster = Guarded::start_with(Options { oidc: Some(issuer.config()), ..Options::default() }).await?;
    Ok(cluster)
}

async fn list(cluster: &Guarded, token: &str) -> Result<v1::ListJobsResponse, Status> {
    let channel = cluster.channel().await.map_err(|error| Status::internal(error.to_string()))?;
    ask_over(&channel, Some(token), "JobService/ListJobs", &v1::ListJobsRequest::default()).await
}

async fn refused(cluster: &Guarded, what: &str, token: &str) -> String {
    let status = list(cluster, token).await.expect_err(what);
    assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status:?}");
    status.message().to_owned()
}

#[tokio::test]
async fn tokens_of_the_issuer_are_taken_whatever_their_key() -> anyhow::Result<()> {
    let keys = [Key::p256("ec"), Key::ed25519("ed"), Key::rsa("rsa")];
    let issuer = Issuer::start(&keys.iter().collect::<Vec<_>>()).await?;
    let cluster = start(&issuer).await?;
    for key in &keys {
        list(&cluster, &key.sign(&issuer.claims(600))).await?;
    }
    // Without a key id there is one key of each algorithm that it can mean.
    let token = keys[0].sign_with(&json!({"alg": "ES256"}), &issuer.claims(600));
    list(&cluster, &token).await?;
    let submitter = json!({"alg": "ES256", "kid": "ec"});
    let token = keys[0].sign_with(&submitter, &issuer.but("crescendo_role", json!("node")));
    assert!(refused(&cluster, "a node", &token).await.contains("only certificates"));
    Ok(())
}

#[tokio::test]
async fn tokens_that_are_not_right_in_every_way_are_refused() -> anyhow::Result<()> {
    let (key, rsa, other) = (Key::p256("ec"), Key::rsa("rsa"), Key::p256("ec"));
    let issuer = Issuer::start(&[&key, &rsa]).await?;
    let cluster = start(&issuer).await?;
    let good = key.sign(&issuer.claims(600));
    list(&cluster, &good).await?;

    let claims = issuer.claims(600);
    let now = claims["iat"].as_i64().unwrap_or_default();
    let cases = [
        ("expired", issuer.claims(-31), "has expired"),
        ("not yet valid", issuer.but("nbf", json!(now + 60)), "not valid yet"),
        ("a time that is none", issuer.but("nbf", json!("now")), "not valid"),
        ("wrong issuer", issuer.but("iss", json!("https://example.org")), "another issuer"),
        ("no issuer", issuer.but("iss", Value::Null), "not valid"),
        ("wrong audience", issuer.but("aud", json!("another")), "another audience"),
        ("no audience", issuer.but("aud", Value::Null), "not valid"),
        ("no end", issuer.but("exp", Value::Null), "not valid"),
        ("no role", issuer.but("crescendo_role", Value::Null), "names no role"),
        ("no tenant", issuer.but("crescendo_tenant", Value::Null), "names no tenant"),
    ];
    for (what, claims, said) in cases {
        let message = refused(&cluster, what, &key.sign(&claims)).await;
        assert!(message.contains(said), "{what}: {message}");
    }

    let forged = other.sign(&claims);
    assert!(refused(&cluster, "another's key", &forged).await.contains("signature is wrong"));
    let (head, _) = good.rsplit_once('.').expect("three parts");
    assert!(
        refused(&cluster, "another's signature", &format!("{head}.{}", base64([7; 64])))
            .await
            .contains("signature")
    );
    refused(&cluster, "no signature", &format!("{head}.")).await;

    let none = format!(
        "{}.{}.",
        base64(json!({"alg": "none", "kid": "ec"}).to_string()),
        base64(claims.to_string())
    );
    refused(&cluster, "alg none", &none).await;
    // Issuers may be set to these; the key is right, and would not have been found.
    for algorithm in ["RS512", "PS256", "ES384", "ES512", "ES256K", "HS256", "none"] {
        let header = json!({"alg": algorithm, "kid": "rsa"}).to_string();
        let token = format!("{}.{}.{}", base64(header), base64(claims.to_string()), base64([7; 64]));
        let message = refused(&cluster, algorithm, &token).await;
        assert!(
            message.contains("algorithm is not taken; RS256, ES256 and EdDSA are"),
            "{algorithm}: {message}"
        );
    }

    // The public key as the secret of a symmetric signature: the key decides how it is used, not the token.
    let public = rsa.public();
    for secret in [public["n"].as_str().unwrap_or_default().to_owned(), public.to_string()] {
        let header = json!({"alg": "HS256", "kid": "rsa"});
        let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let signature = base64(ring::hmac::sign(&secret, message.as_bytes()));
        refused(&cluster, "HS256", &format!("{message}.{signature}")).await;
    }
    let confused = key.sign_with(&json!({"alg": "RS256", "kid": "ec"}), &claims);
    refused(&cluster, "another algorithm than the key's", &confused).await;

    for garbage in ["a.b.c", "...", "eyJ.eyJ.", "%00.%00.%00", &"x.".repeat(2000)] {
        refused(&cluster, "garbage", garbage).await;
    }
    list(&cluster, &good).await?;
    Ok(())
}

#[tokio::test]
async fn a_new_key_is_fetched_and_an_issuer_that_is_down_is_lived_through() -> anyhow::Result<()> {
    let (old, new) = (Key::p256("old"), Key::ed25519("new"));
    let issuer = Issuer::start(&[&old]).await?;
    let cluster = start(&issuer).await?;
    let (old_token, new_token) = (old.sign(&issuer.claims(600)), new.sign(&issuer.claims(600)));
    list(&cluster, &old_token).await?;
    let unknown = refused(&cluster, "a key that is not published", &new_token).await;
    assert!(unknown.contains("none of its issuer's keys"), "{unknown}");

    issuer.publish(None);
    list(&cluster, &old_token).await?;
    refused(&cluster, "unknown while the issuer is down", &new_token).await;

    issuer.publish(Some(&[&new]));
    eventually("the new key is known", async || Ok(list(&cluster, &new_token).await.ok())).await?;
    refused(&cluster, "the old key is withdrawn", &old_token).await;
    Ok(())
}

#[tokio::test]
async fn an_issuer_that_never_answers_lets_nobody_in() -> anyhow::Result<()> {
    let key = Key::p256("ec");
    let issuer = Issuer::start(&[&key]).await?;
    issuer.publish(None);
    let cluster = start(&issuer).await?;
    let status = list(&cluster, &key.sign(&issuer.claims(600))).await.expect_err("no keys");
    assert_eq!(status.code(), Code::Unavailable, "trying again may help: {status:?}");
    issuer.publish(Some(&[&key]));
    eventually("the keys are there", async || Ok(list(&cluster, &key.sign(&issuer.claims(600))).await.ok()))
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_issuer_over_plain_http_elsewhere_is_refused_at_the_start() -> anyhow::Result<()> {
    let issuer = Issuer::start(&[]).await?;
    let plain = OidcConfig { issuer: "http://id.example.org".to_owned(), ..issuer.config() };
    let started = Guarded::start_with(Options { oidc: Some(plain), ..Options::default() }).await;
    let error = format!("{:#}", started.err().expect("refused"));
    assert!(error.contains("http://id.example.org") && error.contains("must be https"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_browser_brings_a_code_and_gets_a_token_that_lets_it_in() -> anyhow::Result<()> {
    let key = Key::p256("ec");
    let issuer = Issuer::start(&[&key]).await?;
    let login = LoginConfig { client_id: "page".to_owned(), scope: "openid roles".to_owned() };
    let oidc = OidcConfig { login: Some(login), ..issuer.config() };
    let cluster = Guarded::start_with(Options { oidc: Some(oidc), ..Options::default() }).await?;
    let channel = cluster.channel().await?;
    let where_to: v1::GetLoginResponse =
        ask_over(&channel, None, "AccessService/GetLogin", &v1::GetLoginRequest {}).await?;
    assert_eq!(where_to.authorization_endpoint, format!("{}/authorize", issuer.url));
    assert_eq!((where_to.client_id.as_str(), where_to.scope.as_str()), ("page", "openid roles"));

    let give = |code: &str, token: String| {
        let form = format!(
            "grant_type=authorization_code&client_id=page&code={code}&code_verifier=v-1&redirect_uri=https%3A%2F%2Fc%2F"
        );
        issuer.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(form, token);
    };
    let exchange = async |code: &str, verifier: &str| -> Result<String, Status> {
        let request = v1::ExchangeCodeRequest {
            code: code.into(),
            code_verifier: verifier.into(),
            redirect_uri: "https://c/".into(),
        };
        let got: v1::ExchangeCodeResponse =
            ask_over(&channel, None, "AccessService/ExchangeCode", &request).await?;
        Ok(got.token)
    };
    give("good", key.sign(&issuer.claims(600)));
    let stolen = exchange("good", "v-2").await.expect_err("the verifier is another");
    assert_eq!(stolen.code(), Code::Unauthenticated);
    assert!(stolen.message().contains("invalid_grant") && !stolen.message().contains("v-2"), "{stolen:?}");
    let token = exchange("good", "v-1").await?;
    list(&cluster, &token).await?;
    assert!(exchange("good", "v-1").await.is_err(), "a code is good once");
    give("other", key.sign(&issuer.but("aud", json!("another"))));
    let foreign = exchange("other", "v-1").await.expect_err("it is for another audience");
    assert_eq!(foreign.code(), Code::Unauthenticated);
    assert!(foreign.message().contains("another audience"), "{foreign:?}");
    let empty = exchange("", "v-1").await.expect_err("there is no code");
    assert_eq!(empty.code(), Code::InvalidArgument);
    Ok(())
}

#[tokio::test]
async fn without_a_login_for_browsers_there_is_none() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let channel = cluster.channel().await?;
    let nowhere: v1::GetLoginResponse =
        ask_over(&channel, None, "AccessService/GetLogin", &v1::GetLoginRequest {}).await?;
    assert_eq!(nowhere, v1::GetLoginResponse::default());
    let refused: Result<v1::ExchangeCodeResponse, Status> =
        ask_over(&channel, None, "AccessService/ExchangeCode", &v1::ExchangeCodeRequest::default()).await;
    assert_eq!(refused.expect_err("no login").code(), Code::FailedPrecondition);
    Ok(())
}
