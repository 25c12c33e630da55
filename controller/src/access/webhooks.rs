//! The webhooks of the tenants file; see [`super::tenants`].

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use crescendo_core::notices::{JobEnd, MAX_WEBHOOKS, Webhook, WebhookId};
use crescendo_core::secret::Secret;
use reqwest::Url;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::names::check_name;
use crate::http_client::is_safe;

/// Longest URL, in bytes.
const MAX_URL: usize = 2048;
/// Bytes of a URL's digest that tell it from others.
const ID_BYTES: usize = 16;

/// What is wrong with an entry, and where it is.
#[derive(Debug)]
pub(super) struct BadWebhook {
    pub path: String,
    pub reason: &'static str,
}

/// The list of a tenant.
#[derive(Default)]
pub(super) struct WebhookEntries(Vec<WebhookEntry>);

impl<'de> Deserialize<'de> for WebhookEntries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NoText { shape: Shape::List, of: PhantomData }).map(Self)
    }
}

struct WebhookEntry(Fields);

impl<'de> Deserialize<'de> for WebhookEntry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NoText { shape: Shape::Entry, of: PhantomData }).map(Self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Entry,
}

/// Takes what has the shape. Who gives a URL in its place is told so without the URL, which may hold a key.
struct NoText<T> {
    shape: Shape,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for NoText<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self.shape {
            Shape::List => "a list such as [{url: \"https://hooks.example.com/x\"}]",
            Shape::Entry => "an entry such as {url: \"https://hooks.example.com/x\"}",
        })
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<T, E> {
        Err(E::invalid_type(Unexpected::Other("text"), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        match self.shape {
            Shape::Entry => T::deserialize(MapAccessDeserializer::new(map)),
            Shape::List => Err(A::Error::invalid_type(Unexpected::Map, &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        match self.shape {
            Shape::List => T::deserialize(SeqAccessDeserializer::new(list)),
            Shape::Entry => Err(A::Error::invalid_type(Unexpected::Seq, &self)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fields {
    url: String,
    events: Option<Vec<JobEnd>>,
    secret: Option<String>,
    #[serde(default)]
    allow_http: bool,
}

/// The webhooks of one tenant, whose list is at `path`.
pub(super) fn webhooks_of(
    WebhookEntries(entries): WebhookEntries,
    path: &str,
) -> Result<Vec<Webhook>, BadWebhook> {
    let bad = |path: String, reason| BadWebhook { path, reason };
    if entries.len() > MAX_WEBHOOKS {
        return Err(bad(path.to_owned(), "must be at most 8"));
    }
    let mut webhooks: Vec<Webhook> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let webhook =
            entry.0.check().map_err(|(field, reason)| bad(format!("{path}[{index}].{field}"), reason))?;
        if webhooks.iter().any(|other| other.id == webhook.id) {
            return Err(bad(
                format!("{path}[{index}].url"),
                "is that of another entry too; name all events in one",
            ));
        }
        webhooks.push(webhook);
    }
    Ok(webhooks)
}

impl Fields {
    /// Never repeats the URL, which may hold a key.
    fn check(self) -> Result<Webhook, (&'static str, &'static str)> {
        let Self { url: text, events, secret, allow_http } = self;
        let bad_url = |reason| ("url", reason);
        if text.len() > MAX_URL {
            return Err(bad_url("must be at most 2048 bytes"));
        }
        let url =
            Url::parse(&text).map_err(|_| bad_url("must be a URL such as https://hooks.example.com/x"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad_url(
                "must have no name or password; give the receiver a secret to check signatures with",
            ));
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad_url("must begin with https:// or http://"));
        }
        if !is_safe(&url) && !allow_http {
            return Err(bad_url("is http to another machine: use https, or say allowHttp: true beside it"));
        }
        let events: BTreeSet<JobEnd> = match events {
            None => JobEnd::ALL.into(),
            Some(events) if events.is_empty() => {
                return Err((
                    "events",
                    "must be some of succeeded, failed and cancelled; without this line all three",
                ));
            }
            Some(events) => events.into_iter().collect(),
        };
        let secret = secret.map(|name| check_name(&name)).transpose();
        let secret =
            secret.map_err(|()| ("secret", "must be the name of a secret: [a-z0-9-], 1 to 40 characters"))?;
        let digest = Sha256::digest(url.as_str());
        let id = digest.iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect();
        // Without a path, which may hold a key.
        let shown = url.origin().ascii_serialization();
        Ok(Webhook { id: WebhookId(id), url: Secret::new(url.as_str()), shown, events, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_webhook_is_named_without_its_url() {
        let nine = ["{url: \"https://h/KEY\"}"; 9].join(", ");
        let cases = [
            ("{url: KEY}", "tenants.a.webhooks[0].url: must be a URL"),
            ("{url: \"ftp://h/KEY\"}", "webhooks[0].url: must begin with https://"),
            ("{url: \"http://h/KEY\"}", "webhooks[0].url: is http to another machine"),
            ("{url: \"https://me:KEY@h/\"}", "webhooks[0].url: must have no name or password"),
            (
                "{url: \"https://h/KEY\"}, {url: \"https://h/KEY\"}",
                "webhooks[1].url: is that of another entry",
            ),
            ("{url: \"https://h/KEY\", events: []}", "webhooks[0].events: must be some of"),
            ("{url: \"https://h/KEY\", events: [done]}", "unknown variant `done`"),
            ("{url: \"https://h/KEY\", secret: ../chat}", "webhooks[0].secret: must be the name"),
            ("{url: \"https://h/KEY\", token: x}", "unknown field `token`"),
            (nine.as_str(), "tenants.a.webhooks: must be at most 8"),
            ("https://h/KEY", "invalid type: text, expected an entry such as {url:"),
            (
                "{url: \"https://h/x\"}, [\"https://h/KEY\"]",
                "invalid type: sequence, expected an entry such as {url:",
            ),
        ];
        for (entries, said) in cases {
            let error = match serde_yaml::from_str(&format!("[{entries}]")) {
                Ok(parsed) => {
                    let BadWebhook { path, reason } =
                        webhooks_of(parsed, "tenants.a.webhooks").expect_err(entries);
                    format!("{path}: {reason}")
                }
                Err(error) => error.to_string(),
            };
            assert!(error.contains(said) && !error.contains("KEY"), "{entries}: {error}");
        }
    }
}
