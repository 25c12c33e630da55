//! Static tokens: a file with the SHA-256 of each, so that whoever reads the file cannot use them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crescendo_core::access::Role;
use crescendo_core::ids::Tenant;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::access::caller::{BadCredential, Caller};

const MAX_TOKENS: usize = 10_000;
const MAX_NAME_CHARS: usize = 100;

/// The tokens of one version of the file.
#[derive(Debug, Default)]
pub struct Tokens {
    list: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    name: String,
    role: Role,
    tenant: Option<Tenant>,
    sha256: [u8; 32],
    /// `None`: never.
    expires: Option<SystemTime>,
}

/// One entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: String,
    tenant: Option<String>,
    sha256: String,
    expires: String,
}

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    #[error("must be a list of tokens: {reason}")]
    Shape { reason: String },
    #[error("more than {MAX_TOKENS} tokens")]
    TooMany,
    #[error("{entry}: {reason}")]
    Entry { entry: String, reason: String },
}

impl Tokens {
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        // An empty file lets nobody in, which may be meant.
        let entries: Option<Vec<serde_yaml::Value>> =
            serde_yaml::from_str(text).map_err(|error| TokensError::Shape { reason: error.to_string() })?;
        let entries = entries.unwrap_or_default();
        if entries.len() > MAX_TOKENS {
            return Err(TokensError::TooMany);
        }
        let (mut names, mut digests) = (BTreeSet::new(), BTreeSet::new());
        let mut list = Vec::with_capacity(entries.len());
        for (at, value) in entries.into_iter().enumerate() {
            let name = value.get("name").and_then(|name| name.as_str()).map(str::to_owned);
            let bad = |reason: String| {
                let name = name.as_deref().map(|name| format!(" ({})", name.escape_debug()));
                TokensError::Entry { entry: format!("token {}{}", at + 1, name.unwrap_or_default()), reason }
            };
            let token = serde_yaml::from_value(value)
                .map_err(|error| error.to_string())
                .and_then(Token::check)
                .map_err(bad)?;
            if !names.insert(token.name.clone()) {
                return Err(bad("another token has this name".to_owned()));
            }
            if !digests.insert(token.sha256) {
                return Err(bad("another token has this sha256".to_owned()));
            }
            list.push(token);
        }
        Ok(Self { list })
    }

    /// Whose token this is. Takes as long for one that is known as for one that is not.
    pub fn find(&self, token: &str, now: SystemTime) -> Result<Caller, BadCredential> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = u32::MAX;
        for (at, known) in (0u32..).zip(&self.list) {
            let same: Choice = known.sha256.ct_eq(&digest);
            found.conditional_assign(&at, same);
        }
        let known = usize::try_from(found).ok().and_then(|at| self.list.get(at));
        let known = known.ok_or(BadCredential::Unknown)?;
        if known.expires.is_some_and(|expires| expires <= now) {
            return Err(BadCredential::Expired);
        }
        let Token { name, role, tenant, .. } = known;
        Ok(Caller { name: name.clone(), role: *role, tenant: tenant.clone(), node: None, from: None })
    }
}

impl Token {
    fn check(entry: Entry) -> Result<Self, String> {
        let Entry { name, role, tenant, sha256, expires } = entry;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(plain) {
            return Err(format!("name: must be 1 to {MAX_NAME_CHARS} characters of [A-Za-z0-9._@-]"));
        }
        let role = match Role::parse(&role) {
            Some(Role::Node) => return Err("role: nodes have certificates, not tokens".to_owned()),
            Some(role) => role,
            None => return Err("role: must be viewer, submitter, operator or admin".to_owned()),
        };
        let tenant = tenant.map(|tenant| Tenant::parse(&tenant)).transpose();
        let tenant = tenant.map_err(|error| format!("tenant: {error}"))?;
        role.check_tenant(tenant.as_ref()).map_err(|reason| format!("role {role} {reason}"))?;
        let expires =
            match expires.as_str() {
                "never" => None,
                text => Some(time(text).ok_or(
                    "expires: must be a time as 2027-01-31T00:00:00Z, a day as 2027-01-31, or `never`",
                )?),
            };
        let sha256 = digest(&sha256).ok_or("sha256: must be 64 hexadecimal digits")?;
        Ok(Self { name, role, tenant, sha256, expires })
    }
}

/// A day means its beginning, UTC.
fn time(text: &str) -> Option<SystemTime> {
    let time = humantime::parse_rfc3339(text)
        .or_else(|_| humantime::parse_rfc3339(&format!("{text}T00:00:00Z")))
        .ok()?;
    (time > UNIX_EPOCH + Duration::from_secs(1)).then_some(time)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `secret`.
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn file(role: &str, tenant: &str, sha256: &str, expires: &str) -> String {
        format!("- {{name: ci-bot, role: {role}, {tenant}sha256: {sha256}, expires: {expires}}}\n")
    }

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).expect("a time")
    }

    #[test]
    fn a_token_is_found_until_it_expires() {
        let tokens =
            Tokens::parse(&file("submitter", "tenant: research, ", SECRET, "2027-01-31")).expect("good");
        let before = at("2027-01-30T23:59:59Z");
        let caller = tokens.find("secret", before).expect("known");
        assert_eq!((caller.name.as_str(), caller.role), ("ci-bot", Role::Submitter));
        assert_eq!(caller.tenant.as_ref().map(Tenant::as_str), Some("research"));
        assert_eq!(tokens.find("secret", at("2027-01-31T00:00:00Z")), Err(BadCredential::Expired));
        for other in ["", "Secret", "secret ", SECRET] {
            assert_eq!(tokens.find(other, before), Err(BadCredential::Unknown), "{other:?}");
        }
        let forever = Tokens::parse(&file("admin", "", SECRET, "never")).expect("good");
        assert!(forever.find("secret", at("2999-01-01T00:00:00Z")).is_ok());
        assert!(Tokens::parse("").expect("empty").find("secret", before).is_err());
    }

    /// The very line that `crescendo token new` prints, for a name that looks like a number.
    #[test]
    fn an_entry_of_the_command_line_is_taken_as_it_is() {
        let printed = format!(
            "- {{name: \"1e5\", role: viewer, tenant: \"research\", sha256: \"{SECRET}\", expires: \"2027-01-02T00:00:00Z\"}}"
        );
        let tokens = Tokens::parse(&printed).expect("good");
        assert_eq!(tokens.find("secret", at("2027-01-01T00:00:00Z")).expect("known").name, "1e5");
    }

    #[test]
    fn what_is_wrong_is_said_of_the_entry() {
        let good = file("admin", "", SECRET, "never");
        let twice = format!("{good}{}", good.replace("ci-bot", "other"));
        let cases = [
            (file("root", "", SECRET, "never"), "token 1 (ci-bot): role: must be viewer"),
            (file("node", "", SECRET, "never"), "nodes have certificates"),
            (file("viewer", "", SECRET, "never"), "role viewer needs a tenant"),
            (file("viewer", "tenant: A B, ", SECRET, "never"), "tenant: tenant must be"),
            (file("admin", "", "abc", "never"), "sha256: must be 64"),
            (file("admin", "", &"+1".repeat(32), "never"), "sha256: must be 64"),
            (file("admin", "", SECRET, "90d"), "expires: must be a time"),
            (file("admin", "", SECRET, "2027-02-30"), "expires: must be a time"),
            (good.replace("role", "rolle"), "unknown field `rolle`"),
            (good.replace(", expires: never", ""), "missing field `expires`"),
            (good.replace("ci-bot", "'ci bot'"), "token 1 (ci bot): name: must be"),
            (format!("{good}{good}"), "token 2 (ci-bot): another token has this name"),
            (twice, "token 2 (other): another token has this sha256"),
            ("{a: 1}".to_owned(), "must be a list of tokens"),
        ];
        for (text, said) in cases {
            let error = Tokens::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains(SECRET), "{error}");
        }
    }
}
