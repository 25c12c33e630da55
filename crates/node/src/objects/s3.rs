//! How a bucket is reached, by the names of variables that the AWS tools share.
//!
//! | variable | what |
//! |---|---|
//! | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | a key |
//! | `AWS_SHARED_CREDENTIALS_FILE`, `AWS_PROFILE` | a file with keys, read again when it changes, and the section of it (`default`) |
//! | `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_ROLE_SESSION_NAME`, `AWS_ENDPOINT_URL_STS` | a role taken with a pod's token |
//! | `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `AWS_CONTAINER_CREDENTIALS_FULL_URI`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` | keys from an agent on the node |
//! | `AWS_REGION`, `AWS_DEFAULT_REGION` | region; `us-east-1` if absent |
//! | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT` | another server than Amazon's, `https://HOST[:PORT]` |
//! | `AWS_ALLOW_HTTP` | `true`: an endpoint may be `http://` |
//! | `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` | `true`: the bucket is part of the endpoint's host name |
//! | `AWS_CA_BUNDLE` | PEM file with further roots that the server's certificate is verified by |
//! | `AWS_DISABLE_BULK_DELETE` | `true`: objects are deleted one by one |
//! | `AWS_SERVER_SIDE_ENCRYPTION`, `AWS_SSE_KMS_KEY_ID` | encryption by the server |
//!
//! Of several kinds of keys the first in this table counts; without any, those of the machine's own role are asked for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::ReqwestConnector;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use super::ObjectsError;
use super::conflict::ConflictsPass;
use super::credentials::SharedFile;
use super::redacted_http::Discreet;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of one request's silence. A part has to be sent within it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Tries of one request after the first, and the time within which they begin.
const MAX_RETRIES: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Variables that the library knows under the same name.
const PASSED_ON: [&str; 9] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
];

/// What the environment says, checked.
pub struct Settings {
    builder: AmazonS3Builder,
    options: ClientOptions,
}

fn problem(name: &'static str, reason: impl Into<String>) -> ObjectsError {
    ObjectsError::Setting { name, reason: reason.into() }
}

/// The variables of a process.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// An empty variable is none.
    fn read(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn switch(&self, name: &'static str) -> Result<bool, ObjectsError> {
        match self.read(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(problem(name, "must be true or false")),
        }
    }

    /// Roots besides the system's.
    fn certificates(&self, options: ClientOptions) -> Result<ClientOptions, ObjectsError> {
        let Some(path) = self.read("AWS_CA_BUNDLE") else { return Ok(options) };
        let refused = |reason: String| problem("AWS_CA_BUNDLE", reason);
        let pem = std::fs::read(&path).map_err(|error| refused(format!("cannot read {path}: {error}")))?;
        let roots = Certificate::from_pem_bundle(&pem)
            .map_err(|_| refused(format!("{path} is not a PEM file of certificates")))?;
        if roots.is_empty() {
            return Err(refused(format!("{path} has no certificate")));
        }
        Ok(roots.into_iter().fold(options, ClientOptions::with_root_certificate))
    }

    /// A server that is not Amazon's.
    fn endpoint(&self, allow_http: bool) -> Result<Option<String>, ObjectsError> {
        for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"] {
            let Some(endpoint) = self.read(name) else { continue };
            return match (endpoint.split_once("://"), allow_http) {
                (Some((_, host)), _) if host.contains(['@', '?', '#']) => {
                    Err(problem(name, "must be a URL without keys and parameters"))
                }
                (Some(("https", _)), _) | (Some(("http", _)), true) => Ok(Some(endpoint)),
                (Some(("http", _)), false) => {
                    let reason = "is http://, by which keys and pictures could be read on their way; set AWS_ALLOW_HTTP=true to accept that";
                    Err(problem(name, reason))
                }
                _ => Err(problem(name, "must begin with https:// or http://")),
            };
        }
        Ok(None)
    }

    /// Keys, or the file that has them.
    fn credentials(&self, builder: AmazonS3Builder) -> Result<AmazonS3Builder, ObjectsError> {
        match (self.read("AWS_ACCESS_KEY_ID"), self.read("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                Ok(match self.read("AWS_SESSION_TOKEN") {
                    Some(token) => builder.with_token(token),
                    None => builder,
                })
            }
            (Some(_), None) => Err(problem("AWS_SECRET_ACCESS_KEY", "is missing, AWS_ACCESS_KEY_ID is set")),
            (None, Some(_)) => Err(problem("AWS_ACCESS_KEY_ID", "is missing, AWS_SECRET_ACCESS_KEY is set")),
            (None, None) => {
                let Some(path) = self.read("AWS_SHARED_CREDENTIALS_FILE") else { return Ok(builder) };
                let profile = self.read("AWS_PROFILE").unwrap_or_else(|| "default".into());
                let file = SharedFile::open(PathBuf::from(path), profile)?;
                Ok(builder.with_credentials(Arc::new(file)))
            }
        }
    }
}

impl Settings {
    pub fn from_environment(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, ObjectsError> {
        let from = Environment(environment);
        let allow_http = from.switch("AWS_ALLOW_HTTP")?;
        let options = from.certificates(
            ClientOptions::new()
                .with_allow_http(allow_http)
                .with_connect_timeout(CONNECT_TIMEOUT)
                .with_read_timeout(READ_TIMEOUT)
                // Large objects take as long as they take, as long as they come.
                .with_timeout_disabled(),
        )?;
        let mut builder = AmazonS3Builder::new()
            .with_virtual_hosted_style_request(from.switch("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")?)
            .with_disable_bulk_delete(from.switch("AWS_DISABLE_BULK_DELETE")?)
            .with_retry(RetryConfig {
                backoff: BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() },
                max_retries: MAX_RETRIES,
                retry_timeout: RETRY_TIMEOUT,
            });
        if let Some(region) = from.read("AWS_REGION").or_else(|| from.read("AWS_DEFAULT_REGION")) {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = from.endpoint(allow_http)? {
            builder = builder.with_endpoint(endpoint);
        }
        builder = from.credentials(builder)?;
        for name in PASSED_ON {
            let Some(value) = from.read(name) else { continue };
            let key: AmazonS3ConfigKey = name
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| problem(name, "is not known to the S3 client"))?;
            builder = builder.with_config(key, value);
        }
        Ok(Self { builder, options })
    }

    pub fn open(self, bucket: &str) -> object_store::Result<AmazonS3> {
        // Fails when there is one already, which is then the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        self.builder
            .with_bucket_name(bucket)
            .with_client_options(self.options)
            .with_http_connector(Discreet::new(ConflictsPass::new(ReqwestConnector::default())))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let found = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_environment(&found).map_err(|error| error.to_string())
    }

    #[test]
    fn wrong_settings_are_named_and_their_values_kept_back() {
        let endpoint = |url| [("AWS_ENDPOINT_URL", url)];
        for (variables, expected) in [
            (&[("AWS_ALLOW_HTTP", "secret")][..], "AWS_ALLOW_HTTP: must be true or false"),
            (&[("AWS_ACCESS_KEY_ID", "secret")][..], "AWS_SECRET_ACCESS_KEY: is missing"),
            (&[("AWS_SECRET_ACCESS_KEY", "secret")][..], "AWS_ACCESS_KEY_ID: is missing"),
            (&endpoint("http://minio:9000")[..], "AWS_ENDPOINT_URL: is http://"),
            (&endpoint("minio:9000")[..], "AWS_ENDPOINT_URL: must begin with"),
            (&endpoint("https://id:secret@minio")[..], "AWS_ENDPOINT_URL: must be a URL without keys"),
            (&[("AWS_CA_BUNDLE", "/nowhere.pem")][..], "AWS_CA_BUNDLE: cannot read /nowhere.pem"),
            (
                &[("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")][..],
                "AWS_SHARED_CREDENTIALS_FILE: cannot read /nowhere",
            ),
        ] {
            let Err(error) = settings(variables) else { panic!("{variables:?} is accepted") };
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn http_has_to_be_allowed() {
        let variables = [
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", ""),
        ];
        assert!(settings(&variables).is_ok());
    }

    #[test]
    fn every_variable_that_is_passed_on_is_known_to_the_library() {
        let all: Vec<(&str, &str)> = PASSED_ON.iter().map(|name| (*name, "aws:kms")).collect();
        assert!(settings(&all).is_ok());
    }
}
