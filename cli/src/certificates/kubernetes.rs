//! Secrets of the namespace that this pod is in, by the Kubernetes API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Method, StatusCode};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::plan::Held;

/// Where Kubernetes puts what a pod needs to call the API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Limit of one exchange.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest text of a refusal that is passed on.
const MAX_REASON_CHARS: usize = 400;
/// What a certificate was made by.
const FINGERPRINT: &str = "crescendo/made-by";

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("this is no pod with a service account's token: {0}")]
    NoPod(String),
    #[error("set up TLS for the Kubernetes API: {0}")]
    Tls(String),
    #[error("{what} secret {name}")]
    Call {
        what: &'static str,
        name: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{what} secret {name}: the Kubernetes API answers {status}: {reason}")]
    Refused { what: &'static str, name: String, status: u16, reason: String },
    #[error("secret {name}: somebody else has changed it meanwhile: run this again")]
    Conflict { name: String },
    #[error("secret {name}: the Kubernetes API has answered something else than a secret")]
    NoSecret { name: String },
}

/// The API, as this pod's service account may use it.
pub struct Api {
    client: Client,
    /// URL of the namespace's secrets.
    secrets: String,
    token: String,
}

/// A Secret as the API has it: what is not about the certificate stays as it is.
pub struct Secret {
    name: String,
    object: Value,
}

impl Api {
    /// By what Kubernetes gives to every pod that wants a token.
    pub fn of_this_pod() -> Result<Self, ApiError> {
        let variable =
            |name: &str| std::env::var(name).map_err(|_| ApiError::NoPod(format!("{name} is not set")));
        let file = |name: &str| {
            let path = Path::new(ACCOUNT).join(name);
            std::fs::read_to_string(&path)
                .map_err(|error| ApiError::NoPod(format!("read {}: {error}", path.display())))
        };
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let namespace = file("namespace")?;
        Self::new(
            &format!("https://{host}:{port}"),
            namespace.trim(),
            file("token")?.trim(),
            &file("ca.crt")?,
        )
    }

    fn new(server: &str, namespace: &str, token: &str, ca_pem: &str) -> Result<Self, ApiError> {
        let tls = |error: &dyn std::fmt::Display| ApiError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(root.map_err(|error| tls(&error))?).map_err(|error| tls(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(config)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DEADLINE)
            .user_agent(concat!("crescendo/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| tls(&error))?;
        let secrets = format!("{server}/api/v1/namespaces/{namespace}/secrets");
        Ok(Self { client, secrets, token: token.to_owned() })
    }

    pub async fn secret(&self, name: &str) -> Result<Secret, ApiError> {
        let object = self.call("get", Method::GET, name, Vec::new()).await?;
        Ok(Secret { name: name.to_owned(), object })
    }

    /// Writes it back, unless somebody else has since.
    pub async fn replace(&self, secret: &Secret) -> Result<(), ApiError> {
        let body = secret.object.to_string().into_bytes();
        self.call("update", Method::PUT, &secret.name, body).await.map(|_| ())
    }

    async fn call(
        &self,
        what: &'static str,
        method: Method,
        name: &str,
        body: Vec<u8>,
    ) -> Result<Value, ApiError> {
        let failed = |source| ApiError::Call { what, name: name.to_owned(), source };
        let answer = self
            .client
            .request(method, format!("{}/{name}", self.secrets))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(body)
            .send()
            .await
            .map_err(failed)?;
        let status = answer.status();
        let content = answer.bytes().await.map_err(failed)?;
        let value: Value = serde_json::from_slice(&content).unwrap_or_default();
        if status == StatusCode::CONFLICT {
            return Err(ApiError::Conflict { name: name.to_owned() });
        }
        if !status.is_success() {
            let reason = value.get("message").and_then(Value::as_str).unwrap_or("without a reason");
            let reason = reason.chars().take(MAX_REASON_CHARS).collect();
            return Err(ApiError::Refused { what, name: name.to_owned(), status: status.as_u16(), reason });
        }
        Ok(value)
    }
}

impl Secret {
    pub fn text(&self, key: &str) -> Option<String> {
        let encoded = self.object.get("data")?.get(key)?.as_str()?;
        let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        (!text.is_empty()).then_some(text)
    }

    pub fn held(&self) -> Held {
        let annotations = self.object.get("metadata").and_then(|metadata| metadata.get("annotations"));
        let fingerprint = annotations.and_then(|all| all.get(FINGERPRINT)).and_then(Value::as_str);
        Held {
            certificate: self.text("tls.crt"),
            has_key: self.text("tls.key").is_some(),
            fingerprint: fingerprint.map(str::to_owned),
        }
    }

    /// Puts files in, all at once, and what they were made by.
    pub fn set(&mut self, files: &[(&str, &str)], fingerprint: &str) -> Result<(), ApiError> {
        let error = ApiError::NoSecret { name: self.name.clone() };
        let encoded: serde_json::Map<String, Value> = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Value::String(STANDARD.encode(text))))
            .collect();
        let Some(object) = self.object.as_object_mut() else { return Err(error) };
        object.insert("data".to_owned(), Value::Object(encoded));
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        let Some(metadata) = metadata.as_object_mut() else { return Err(error) };
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[FINGERPRINT] = Value::String(fingerprint.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_keeps_what_is_not_about_the_certificate() {
        let object = json!({"kind": "Secret", "metadata": {"name": "a", "resourceVersion": "7", "labels": {"b": "c"}}});
        let mut secret = Secret { name: "a".to_owned(), object };
        assert!(secret.held().certificate.is_none());
        secret.set(&[("tls.crt", "x"), ("tls.key", "y")], "f").expect("a secret");
        assert_eq!(secret.object["metadata"]["labels"]["b"], "c");
        assert_eq!(secret.object["metadata"]["resourceVersion"], "7");
        assert_eq!(secret.text("tls.crt").as_deref(), Some("x"));
        let held = secret.held();
        assert!(held.has_key);
        assert_eq!(held.fingerprint.as_deref(), Some("f"));
    }

    #[test]
    fn an_answer_that_is_no_secret_is_an_error() {
        let mut secret = Secret { name: "a".to_owned(), object: Value::Null };
        let error = secret.set(&[], "f").expect_err("refused").to_string();
        assert_eq!(error, "secret a: the Kubernetes API has answered something else than a secret");
    }
}
