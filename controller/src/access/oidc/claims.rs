//! From what a token claims to what its owner may do.

use crescendo_core::access::Role;
use crescendo_core::ids::Tenant;
use serde_json::{Map, Value};

use crate::access::caller::{BadCredential, Caller, shown};
use crate::access::oidc::OidcConfig;

pub(super) type Claims = Map<String, Value>;

/// The caller behind claims whose signature, issuer, audience and times are right.
pub(super) fn caller(claims: &Claims, config: &OidcConfig) -> Result<Caller, BadCredential> {
    let bad = |claim: &str, reason| BadCredential::Claim { claim: claim.to_owned(), reason };
    let subject = claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
    let subject = subject.ok_or_else(|| bad("sub", "is not a text"))?;

    let role_claim = config.role_claim.as_str();
    let mut roles = texts(claims, role_claim).into_iter().filter_map(Role::parse).collect::<Vec<_>>();
    roles.sort_unstable();
    roles.dedup();
    // A list of an identity provider has names of other systems too; of ours there has to be one.
    let role = match roles.as_slice() {
        [role] => *role,
        [] => return Err(bad(role_claim, "names no role: viewer, submitter, operator or admin")),
        _ => return Err(bad(role_claim, "names several roles")),
    };
    if role == Role::Node {
        return Err(bad(role_claim, "names role node, which only certificates can have"));
    }

    let tenant_claim = config.tenant_claim.as_str();
    let tenant = match texts(claims, tenant_claim).as_slice() {
        [] => None,
        [tenant] => Some(Tenant::parse(tenant).map_err(|_| bad(tenant_claim, "is not a tenant"))?),
        _ => return Err(bad(tenant_claim, "names several tenants")),
    };
    role.check_tenant(tenant.as_ref())
        .map_err(|_| bad(tenant_claim, "names no tenant, which the role needs"))?;
    Ok(Caller { name: shown(subject), role, tenant, node: None, from: None })
}

/// A claim that is one text or a list of texts.
fn texts<'a>(claims: &'a Claims, name: &str) -> Vec<&'a str> {
    let value = match name.strip_prefix('/') {
        // A pointer into nested claims; its first part is a name on the top level.
        Some(path) => {
            let (first, rest) = path.find('/').map_or((path, ""), |at| path.split_at(at));
            claims.get(first).and_then(|value| value.pointer(rest))
        }
        None => claims.get(name),
    };
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(_) | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(claims: Value, role_claim: &str) -> Result<Caller, BadCredential> {
        let config = OidcConfig {
            issuer: "https://id.example.org".to_owned(),
            audience: "crescendo".to_owned(),
            role_claim: role_claim.to_owned(),
            tenant_claim: "crescendo_tenant".to_owned(),
            fetch_pause: Duration::from_secs(10),
            login: None,
        };
        caller(claims.as_object().expect("an object"), &config)
    }

    #[test]
    fn role_and_tenant_come_from_their_claims() {
        let alice = serde_json::json!({
            "sub": "alice", "crescendo_role": "submitter", "crescendo_tenant": ["research"],
            "realm": {"roles": ["offline_access", "operator"]},
        });
        let caller = of(alice.clone(), "crescendo_role").expect("good");
        assert_eq!((caller.name.as_str(), caller.role), ("alice", Role::Submitter));
        assert_eq!(of(alice, "/realm/roles").expect("good").role, Role::Operator);
    }

    #[test]
    fn a_claim_that_does_not_decide_is_refused_by_name() {
        let cases = [
            (serde_json::json!({"sub": "a"}), "`crescendo_role` names no role"),
            (serde_json::json!({"sub": "a", "crescendo_role": 4}), "`crescendo_role` names no role"),
            (serde_json::json!({"sub": "a", "crescendo_role": "node"}), "names role node"),
            (serde_json::json!({"sub": "a", "crescendo_role": ["viewer", "admin"]}), "several roles"),
            (
                serde_json::json!({"sub": "a", "crescendo_role": "viewer"}),
                "`crescendo_tenant` names no tenant",
            ),
            (
                serde_json::json!({"sub": "a", "crescendo_role": "viewer", "crescendo_tenant": ["a", "b"]}),
                "several tenants",
            ),
            (
                serde_json::json!({"sub": "a", "crescendo_role": "admin", "crescendo_tenant": "A/B"}),
                "is not a tenant",
            ),
            (serde_json::json!({"sub": "", "crescendo_role": "admin"}), "`sub` is not a text"),
        ];
        for (claims, said) in cases {
            let error = of(claims.clone(), "crescendo_role").expect_err("refused").to_string();
            assert!(error.contains(said), "{claims}: {error}");
        }
    }
}
