//! Which files, keys and addresses a tenant's specs may name.
//!
//! The operator says it in the tenants file ([`ReachRules`]); what it comes to for one job is its [`Reach`], which goes
//! to the nodes with each assignment. A spec is held to it when it is submitted ([`Reach::overreaches`]), and once more
//! where a file is opened, a key is taken or a connection is made: only there is it known what is a link, and what a
//! name resolves to.

mod address;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Overreach;
use crate::ids::{JobId, Tenant};
use crate::object_keys;
use crate::spec::{EndpointSpec, JobSpec, named_files};
use crate::state::ClusterState;

pub use address::{EndpointRule, allows_address, check_url};

/// What a key of the object store begins with in a spec.
pub const STORE_PREFIX: &str = "store:";
/// The tenant of those who name none.
pub const DEFAULT_TENANT: &str = "default";

/// What a job's spec may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Whatever the nodes reach: the tenant is the operator.
    Everything,
    Bounded(Bounds),
}

/// The bounds of a tenant's specs. What is below `--library-root` is everybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Keys of the object store, and what is below them.
    pub store_prefixes: Vec<String>,
    /// Folders of the nodes outside `--library-root`, absolute.
    pub roots: Vec<String>,
    /// Names of keys for endpoints.
    pub keys: BTreeSet<String>,
    pub endpoints: Vec<EndpointRule>,
}

/// What an operator grants one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// In place of the tenant's own prefix, `tenants/NAME`.
    pub store_prefixes: Option<Vec<String>>,
    pub roots: Vec<String>,
    pub keys: BTreeSet<String>,
    /// In place of every public address.
    pub endpoints: Option<Vec<EndpointRule>>,
}

/// What all tenants may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachRules {
    /// The tenant that is the operator itself, and may reach everything.
    pub operator: Option<Tenant>,
    /// Keys of the object store that everybody may read, and what is below them.
    pub shared: Vec<String>,
    pub listed: BTreeMap<Tenant, Grant>,
    pub others: Grant,
}

/// Where nobody has said anything, the person who names no tenant is the operator, and every other tenant is bounded.
impl Default for ReachRules {
    fn default() -> Self {
        let operator = Tenant::parse(DEFAULT_TENANT).ok();
        Self { operator, shared: Vec::new(), listed: BTreeMap::new(), others: Grant::default() }
    }
}

/// Where a path of a spec leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecPath<'a> {
    /// Below `--library-root` of the node.
    Library(&'a str),
    /// Absolute on the node.
    Absolute(&'a str),
    /// A key of the object store.
    Store(&'a str),
}

impl<'a> SpecPath<'a> {
    /// What kind of path it is; whether anybody may read it is another question.
    pub fn of(path: &'a str) -> SpecPath<'a> {
        match path.strip_prefix(STORE_PREFIX) {
            Some(key) => SpecPath::Store(key.trim_start_matches('/')),
            None if path.starts_with('/') => SpecPath::Absolute(path),
            None => SpecPath::Library(path),
        }
    }
}

impl ReachRules {
    /// What a job of `tenant` with this spec may reach: what its tenant is granted, what is shared, and of the tenant's
    /// other jobs those that the spec names.
    pub fn of(&self, tenant: &str, spec: &JobSpec, state: &ClusterState) -> Reach {
        let Ok(tenant) = Tenant::parse(tenant) else { return Reach::Bounded(Bounds::default()) };
        if self.operator.as_ref() == Some(&tenant) {
            return Reach::Everything;
        }
        let Grant { store_prefixes, roots, keys, endpoints } =
            self.listed.get(&tenant).unwrap_or(&self.others).clone();
        let mut store_prefixes = store_prefixes.unwrap_or_else(|| vec![object_keys::tenant(tenant.as_str())]);
        store_prefixes.extend(self.shared.iter().cloned());
        let own: BTreeSet<JobId> = named_files(spec)
            .into_iter()
            .filter_map(|file| match SpecPath::of(file.path) {
                SpecPath::Store(key) => JobId::parse(object_keys::job_of(key)?).ok(),
                SpecPath::Library(_) | SpecPath::Absolute(_) => None,
            })
            .filter(|job| state.tenant_of(job) == Some(tenant.as_str()))
            .collect();
        store_prefixes.extend(own.iter().map(|job| object_keys::job(job.as_str())));
        let endpoints = endpoints.unwrap_or_else(|| vec![EndpointRule::Public]);
        Reach::Bounded(Bounds { store_prefixes, roots, keys, endpoints })
    }
}

impl Reach {
    /// Everything in the spec that is out of reach, in the order of its fields.
    pub fn overreaches(&self, spec: &JobSpec) -> Vec<Overreach> {
        let mut found = Vec::new();
        for file in named_files(spec) {
            if let Err(message) = self.check_path(file.path) {
                found.push(Overreach { field: file.field, message });
            }
        }
        for (index, EndpointSpec { url, key, .. }) in spec.endpoints.iter().enumerate() {
            let mut check = |field: &str, checked: Result<(), String>| {
                let field = format!("spec.endpoints[{index}].{field}");
                found.extend(checked.err().map(|message| Overreach { field, message }));
            };
            check("url", self.check_url(url));
            check("key", key.as_ref().map_or(Ok(()), |key| self.check_key(key)));
        }
        found.sort();
        found
    }

    /// Whether a spec may name this file or folder, as far as that can be told without opening it.
    pub fn check_path<'a>(&self, path: &'a str) -> Result<SpecPath<'a>, String> {
        let place = SpecPath::of(path);
        let Reach::Bounded(bounds) = self else { return Ok(place) };
        if path.split('/').any(|part| part == "..") {
            return Err(format!(
                "{path} has a `..`, which leads out of where it starts: write the path without"
            ));
        }
        match place {
            SpecPath::Library(_) => Ok(place),
            SpecPath::Absolute(path) if bounds.roots.iter().any(|root| is_below(path, root)) => Ok(place),
            SpecPath::Absolute(path) => Err(format!(
                "{path} is absolute: write a path below the nodes' --library-root, or {}",
                match bounds.roots.join(", ") {
                    roots if roots.is_empty() => "`store:` and a key of the object store".to_owned(),
                    roots => format!("one below a folder that the operator allows: {roots}"),
                }
            )),
            SpecPath::Store(key) if bounds.store_prefixes.iter().any(|prefix| is_below(key, prefix)) => {
                Ok(place)
            }
            SpecPath::Store(_) => Err(format!(
                "{path} is not the tenant's: it may name what is below {}, and its own jobs' files",
                match bounds.store_prefixes.join(", ") {
                    prefixes if prefixes.is_empty() => "no prefix".to_owned(),
                    prefixes => format!("store:{}", prefixes.replace(", ", ", store:")),
                }
            )),
        }
    }

    /// Whether a spec may name this key for an endpoint.
    pub fn check_key(&self, name: &str) -> Result<(), String> {
        let Reach::Bounded(Bounds { keys, .. }) = self else { return Ok(()) };
        if keys.contains(name) {
            return Ok(());
        }
        let granted = keys.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let granted = if granted.is_empty() { "none".to_owned() } else { granted };
        Err(format!("key `{name}` is not among those that the operator gives the tenant: {granted}"))
    }

    /// Whether a spec may name this address of an endpoint, as far as that can be told before its name is resolved.
    pub fn check_url(&self, url: &str) -> Result<(), String> {
        match self {
            Reach::Everything => Ok(()),
            Reach::Bounded(bounds) => check_url(&bounds.endpoints, url),
        }
    }
}

/// Whether `path` is `root` or lies below it. Neither has a `..`.
fn is_below(path: &str, root: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    root.split('/').filter(|part| !part.is_empty()).all(|part| parts.next() == Some(part))
}

#[cfg(test)]
mod tests;
