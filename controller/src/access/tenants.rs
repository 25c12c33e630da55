//! The file with what each tenant may use.
//!
//! ```yaml
//! unlisted: refuse                 # whether tenants that are not below may submit: accept or refuse
//! default: {maxQueuedJobs: 20}     # limits of tenants that are not below
//! tenants:
//!   research: {maxGpus: 16, maxQueuedJobs: 100, maxStoredBytes: 2TB, callsPerSecond: 20, burst: 60}
//!   products:
//!     maxPriority: 100
//!     maxCurators: 4
//!     storePrefixes: [sets/products]        # in place of tenants/products
//!     roots: [/data/products]               # folders of the nodes outside --library-root
//!     keys: [vlm]                           # keys for endpoints
//!     keepEndedFor: 720h                    # its jobs are deleted by themselves this long after they have ended
//!     queue: research                       # of its jobs that name none; without it, the one called default
//!     share: 2                              # twice as much is fair for it as for one of share 1
//!     keepEndedJobs: 100                    # and all but so many, the oldest first; neither: they stay
//!     endpoints: [public, "vllm.llm.svc:8000"]
//!     webhooks:                             # are told that a job of the tenant has ended; at most 8
//!       - url: https://hooks.example.com/x  # http only to this machine, or with allowHttp: true
//!         events: [failed, cancelled]       # or succeeded; without this line all three
//!         secret: chat                      # a file in the folder of --webhook-secrets; without it nothing is signed
//! classes:                                  # jobs of a higher class take the slots of those of a lower one
//!   idle: {from: -100, preempts: false}     # priorities -100 to -1: wait for free slots
//!   normal: {from: 0}
//!   fixed: {from: 100, preemptible: false}  # lose their slots to nobody
//! order: backfill                           # or strict: later jobs never use what the first one waits for
//! queues:
//!   research:
//!     guaranteed: {cuda: 16}                # slots that its jobs are sure of, by kind of device: cuda or cpu
//!     max: {cuda: 32}                       # with those that they borrow; of a kind that is not named as many as there are
//!     tenants: [research]                   # whose jobs may be in it; without this line everybody's
//!     order: strict                         # in place of the cluster's order
//!     packing: spread                       # ranks of a gang on many nodes; pack, on few, is what is usual
//!     nodeLabels: {pool: h100}              # labels of the nodes that its jobs run on
//! clusterSlots: {cuda: 64}                  # if given, the queues cannot be sure of more than this together
//! fairShare: {halfLife: 7days}              # of jobs of one priority those go first whose tenant has used least
//! shared: [models]                          # what every tenant may read of the object store
//! operator: platform                        # the tenant that may reach everything, if there is one
//! ```
//!
//! Where there is such a file, no tenant is the operator unless it says so: `default` is one like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::ids::Tenant;
use crescendo_core::notices::{Webhook, Webhooks};
use crescendo_core::queues::SlotsByDevice;
use crescendo_core::quotas::{CallRate, QueueOrder, Quotas, TenantLimits};
use crescendo_core::reach::{EndpointRule, Grant, ReachRules, STORE_PREFIX};
use serde::Deserialize;

use super::names::check_name;
use super::queues::{BadQueue, FairShare, QueueEntry, queues_of};
use super::webhooks::{BadWebhook, WebhookEntries, webhooks_of};

/// A job that has just ended is looked at before it goes.
const SHORTEST_KEEP: Duration = Duration::from_secs(3600);

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantsError {
    #[error("{0}")]
    Shape(String),
    #[error("tenants.{name:?}: {reason}")]
    Name { name: String, reason: String },
    #[error("{path}: {reason}")]
    Limit { path: String, reason: &'static str },
    #[error("{path}: {reason}")]
    Queue { path: String, reason: String },
    #[error(
        "classes.{name}.from: {from} is that of class {other} too; each class begins at its own priority"
    )]
    SameBeginning { name: String, other: String, from: i32 },
}

impl From<BadQueue> for TenantsError {
    fn from(BadQueue { path, reason }: BadQueue) -> Self {
        Self::Queue { path, reason }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct File {
    unlisted: Unlisted,
    default: Entry,
    tenants: BTreeMap<String, Entry>,
    classes: BTreeMap<String, ClassEntry>,
    order: QueueOrder,
    queues: BTreeMap<String, QueueEntry>,
    cluster_slots: Option<SlotsByDevice>,
    fair_share: Option<FairShare>,
    shared: Vec<String>,
    operator: Option<String>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Unlisted {
    #[default]
    Accept,
    Refuse,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Entry {
    max_gpus: Option<u32>,
    max_queued_jobs: Option<u32>,
    max_stored_bytes: Option<Size>,
    calls_per_second: Option<u32>,
    burst: Option<u32>,
    max_priority: Option<i32>,
    max_curators: Option<u32>,
    keep_ended_for: Option<String>,
    keep_ended_jobs: Option<u32>,
    queue: Option<String>,
    share: Option<u32>,
    store_prefixes: Option<Vec<String>>,
    roots: Vec<String>,
    keys: Vec<String>,
    endpoints: Option<Vec<String>>,
    webhooks: WebhookEntries,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClassEntry {
    from: i32,
    #[serde(default = "yes")]
    preempts: bool,
    #[serde(default = "yes")]
    preemptible: bool,
}

fn yes() -> bool {
    true
}

/// `1500`, `2TB` or `500 GiB`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

pub fn parse(text: &str) -> Result<Quotas, TenantsError> {
    let file: Option<File> =
        serde_yaml::from_str(text).map_err(|error| TenantsError::Shape(error.to_string()))?;
    let File {
        unlisted,
        mut default,
        tenants,
        classes,
        order,
        queues,
        cluster_slots,
        fair_share,
        shared,
        operator,
    } = file.unwrap_or_default();
    let mut webhooks = Webhooks::default();
    let (mut listed, mut grants, mut of_tenants) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, mut entry) in tenants {
        let queue = entry.queue.take();
        let told = entry.webhooks(&format!("tenants.{name}"))?;
        let (limits, grant) = entry.check(&format!("tenants.{name}"))?;
        let tenant =
            Tenant::parse(&name).map_err(|error| TenantsError::Name { name, reason: error.to_string() })?;
        of_tenants.extend(queue.map(|queue| (tenant.clone(), queue)));
        grants.insert(tenant.clone(), grant);
        webhooks.listed.insert(tenant.clone(), told);
        listed.insert(tenant, limits);
    }
    webhooks.others = default.webhooks("default")?;
    let (others, others_granted) = default.check("default")?;
    let shared = checked(shared, "shared", check_prefix)?;
    let operator = operator.filter(|name| !name.is_empty()).map(|name| {
        Tenant::parse(&name).map_err(|_| TenantsError::Limit {
            path: "operator".to_owned(),
            reason: "must be a tenant: [a-z0-9-], 1 to 40 characters",
        })
    });
    Ok(Quotas {
        listed,
        others,
        others_may_submit: matches!(unlisted, Unlisted::Accept),
        classes: classes_of(classes)?,
        order,
        queues: queues_of(queues, of_tenants, cluster_slots)?,
        fair_share: fair_share.map(FairShare::check).transpose()?,
        webhooks,
        reach: ReachRules { operator: operator.transpose()?, shared, listed: grants, others: others_granted },
    })
}

/// Priorities are between the negative of it and itself.
const MAX_PRIORITY: i32 = 1000;
/// Most classes that a file may have.
const MAX_CLASSES: usize = 32;

fn classes_of(entries: BTreeMap<String, ClassEntry>) -> Result<PriorityClasses, TenantsError> {
    let bad = |path: String, reason| TenantsError::Limit { path, reason };
    if entries.len() > MAX_CLASSES {
        return Err(bad("classes".to_owned(), "must be at most 32"));
    }
    let mut by_lowest: BTreeMap<i32, PriorityClass> = BTreeMap::new();
    for (name, ClassEntry { from, preempts, preemptible }) in entries {
        if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&from) {
            return Err(bad(format!("classes.{name}.from"), "must be -1000 to 1000"));
        }
        check_name(&name)
            .map_err(|_| bad(format!("classes.{name:?}"), "must be [a-z0-9-], 1 to 40 characters"))?;
        if let Some(other) = by_lowest.get(&from) {
            return Err(TenantsError::SameBeginning { name, other: other.name.clone(), from });
        }
        by_lowest.insert(from, PriorityClass { name, preempts, preemptible });
    }
    Ok(PriorityClasses::new(by_lowest))
}

/// Every item of a list as it is to be, or the first that cannot be.
fn checked<T>(
    texts: Vec<String>,
    path: &str,
    check: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, TenantsError> {
    let one = |(index, text): (usize, &String)| {
        check(text).map_err(|reason| TenantsError::Limit { path: format!("{path}[{index}]"), reason })
    };
    texts.iter().enumerate().map(one).collect()
}

/// A key of the object store that others are below, without slashes around it.
fn check_prefix(text: &str) -> Result<String, &'static str> {
    let key = text.strip_prefix(STORE_PREFIX).unwrap_or(text).trim_matches('/');
    if key.is_empty() || !is_straight(key) {
        return Err(
            "must be a key of the object store without empty parts, `.` and `..`, such as sets/uno-1m",
        );
    }
    Ok(key.to_owned())
}

fn check_root(text: &str) -> Result<String, &'static str> {
    let folder = text.trim_end_matches('/');
    let is_right = folder.strip_prefix('/').is_some_and(is_straight);
    is_right
        .then(|| folder.to_owned())
        .ok_or("must be an absolute folder without `.` and `..`, such as /data/uno-1m")
}

fn is_straight(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn check_key(text: &str) -> Result<String, &'static str> {
    check_name(text).map_err(|()| "must be the name of a key: [a-z0-9-], 1 to 40 characters")
}

impl Entry {
    /// Takes its webhooks out.
    fn webhooks(&mut self, path: &str) -> Result<Vec<Webhook>, TenantsError> {
        let webhooks = webhooks_of(std::mem::take(&mut self.webhooks), &format!("{path}.webhooks"));
        webhooks.map_err(|BadWebhook { path, reason }| TenantsError::Limit { path, reason })
    }

    fn check(self, path: &str) -> Result<(TenantLimits, Grant), TenantsError> {
        let Self { max_gpus, max_queued_jobs, max_stored_bytes, calls_per_second, burst, .. } = &self;
        let (max_gpus, max_queued_jobs) = (*max_gpus, *max_queued_jobs);
        let (calls_per_second, burst) = (*calls_per_second, *burst);
        let bad = |field: &str, reason| TenantsError::Limit { path: format!("{path}.{field}"), reason };
        let max_stored_bytes = max_stored_bytes.as_ref().map(Size::bytes).map(|bytes| {
            bytes.ok_or_else(|| {
                bad("maxStoredBytes", "must be bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB")
            })
        });
        let calls = match (calls_per_second, burst) {
            (None, None) => None,
            (None, Some(_)) => return Err(bad("burst", "says nothing without callsPerSecond")),
            (Some(0), _) => return Err(bad("callsPerSecond", "must be at least 1")),
            (Some(_), Some(0)) => return Err(bad("burst", "must be at least 1")),
            (Some(per_sec), burst) => {
                Some(CallRate { per_sec, burst: burst.unwrap_or(per_sec.saturating_mul(2)) })
            }
        };
        let max_stored_bytes = max_stored_bytes.transpose()?;
        let keep_ended_for = match self.keep_ended_for.as_deref().map(humantime::parse_duration) {
            None => None,
            Some(Ok(time)) if time >= SHORTEST_KEEP => Some(time),
            Some(_) => return Err(bad("keepEndedFor", "must be a time such as 720h or 30days, at least 1h")),
        };
        let Self { max_priority, max_curators, keep_ended_jobs, share, .. } = self;
        if share.is_some_and(|share| !(1..=1000).contains(&share)) {
            return Err(bad("share", "must be 1 to 1000"));
        }
        if self.queue.is_some() {
            return Err(bad("queue", "tenants that are not listed are in the queue called default"));
        }
        let Self { store_prefixes, roots, keys, endpoints, .. } = self;
        if keep_ended_jobs == Some(0) {
            return Err(bad("keepEndedJobs", "must be at least 1"));
        }
        if max_curators == Some(0) {
            return Err(bad("maxCurators", "must be at least 1"));
        }
        let limits = TenantLimits {
            max_gpus,
            max_queued_jobs,
            max_stored_bytes,
            calls,
            max_priority,
            max_curators,
            keep_ended_for,
            keep_ended_jobs,
            share,
        };
        let list = |field: &str| format!("{path}.{field}");
        let prefixes = store_prefixes.map(|texts| checked(texts, &list("storePrefixes"), check_prefix));
        let endpoints = endpoints.map(|texts| checked(texts, &list("endpoints"), EndpointRule::parse));
        let grant = Grant {
            store_prefixes: prefixes.transpose()?,
            roots: checked(roots, &list("roots"), check_root)?,
            keys: checked(keys, &list("keys"), check_key)?.into_iter().collect(),
            endpoints: endpoints.transpose()?,
        };
        Ok((limits, grant))
    }
}

impl Size {
    fn bytes(&self) -> Option<u64> {
        let text = match self {
            Self::Bytes(bytes) => return Some(*bytes),
            Self::Text(text) => text,
        };
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let factor: u64 = match unit.trim() {
            "kB" => 1000,
            "MB" => 1000 * 1000,
            "GB" => 1000 * 1000 * 1000,
            "TB" => 1000 * 1000 * 1000 * 1000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    }
}

#[cfg(test)]
mod tests {
    use crescendo_core::queues::{DEFAULT_HALF_LIFE, Packing, Queues};

    use super::*;

    #[test]
    fn a_tenant_has_the_webhooks_of_its_entry_and_others_those_of_default() {
        let text = "
default: {webhooks: [{url: \"http://hooks.svc:8080/all\", allowHttp: true}]}
tenants:
  research:
    webhooks:
      - {url: \"https://hooks.example.com/T0/key\", events: [failed, cancelled], secret: chat}
      - {url: \"http://127.0.0.1:9/x\"}
  products: {}
";
        let webhooks = parse(text).expect("good").webhooks;
        let [chat, here] = webhooks.of("research") else { panic!("two webhooks") };
        assert_eq!(
            (chat.shown.as_str(), chat.secret.as_deref()),
            ("https://hooks.example.com", Some("chat"))
        );
        assert_eq!(chat.url.expose(), "https://hooks.example.com/T0/key");
        assert_eq!(
            chat.events,
            std::collections::BTreeSet::from([
                crescendo_core::notices::JobEnd::Failed,
                crescendo_core::notices::JobEnd::Cancelled
            ])
        );
        assert_eq!((here.events.len(), &here.secret), (3, &None));
        assert!(webhooks.of("products").is_empty(), "one that is listed has its own alone");
        assert_eq!(webhooks.of("others")[0].shown, "http://hooks.svc:8080");
        assert!(!format!("{webhooks:?}").contains("T0/key"), "paths may hold keys");
        for (wrong, expected) in [
            ("https://h/KEY", "text, expected a list such as [{url"),
            ("{url: https://h/KEY}", "map, expected a list such as [{url"),
            ("[https://h/KEY]", "text, expected an entry such as {url"),
        ] {
            let error =
                parse(&format!("tenants: {{a: {{webhooks: {wrong}}}}}")).expect_err(wrong).to_string();
            let says = error.contains("tenants.a.webhooks") && error.contains(expected);
            assert!(says && !error.contains("KEY"), "{error}");
        }
        assert!(parse("default: {webhooks: []}").expect("good").webhooks.others.is_empty());
    }

    #[test]
    fn each_tenant_has_what_its_entry_says() {
        let text = "
unlisted: refuse
default: {maxQueuedJobs: 20}
tenants:
  research: {maxGpus: 16, maxStoredBytes: 2TB, callsPerSecond: 20}
  products: {maxStoredBytes: 1024, callsPerSecond: 5, burst: 6}
";
        let quotas = parse(text).expect("good");
        let research = quotas.of("research");
        assert_eq!((research.max_gpus, research.max_queued_jobs), (Some(16), None));
        assert_eq!(research.max_stored_bytes, Some(2_000_000_000_000));
        assert_eq!(research.calls, Some(CallRate { per_sec: 20, burst: 40 }));
        assert_eq!(quotas.of("products").max_stored_bytes, Some(1024));
        assert_eq!(quotas.of("others").max_queued_jobs, Some(20));
        assert!(quotas.check_may_submit("others").is_err() && quotas.check_may_submit("research").is_ok());
        let empty = parse("").expect("empty");
        assert_eq!(empty.reach.operator, None, "with a file nobody is the operator");
        assert_eq!(
            (empty.listed.len(), empty.others, empty.others_may_submit),
            (0, Default::default(), true)
        );
    }

    #[test]
    fn each_tenant_reaches_what_its_entry_says() {
        let text = "
shared: [models, 'store:/sets/open/']
operator: platform
default: {endpoints: []}
tenants:
  research: {storePrefixes: [sets/research], roots: [/data/x/], keys: [vlm], endpoints: [public, 'vllm:8000']}
  products: {maxPriority: 10, maxCurators: 2}
";
        let quotas = parse(text).expect("good");
        assert_eq!(quotas.reach.shared, ["models", "sets/open"]);
        assert_eq!(quotas.reach.operator.as_ref().map(Tenant::as_str), Some("platform"));
        let of = |name: &str| quotas.reach.listed[&Tenant::parse(name).expect("valid")].clone();
        let research = of("research");
        assert_eq!(research.store_prefixes, Some(vec!["sets/research".to_owned()]));
        assert_eq!((research.roots, research.keys.len()), (vec!["/data/x".to_owned()], 1));
        let endpoints: Vec<String> = research.endpoints.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["public", "vllm:8000"]);
        assert_eq!(of("products"), Grant::default());
        assert_eq!(quotas.reach.others, Grant { endpoints: Some(Vec::new()), ..Grant::default() });
        let products = quotas.of("products");
        assert_eq!((products.max_priority, products.max_curators), (Some(10), Some(2)));
    }

    #[test]
    fn classes_are_bands_of_priorities() {
        let text = "classes: {idle: {from: -100, preempts: false}, normal: {from: 0}, fixed: {from: 100, preemptible: false}}";
        let classes = parse(text).expect("good").classes;
        let of = |priority| classes.of(priority).map(|(lowest, class)| (lowest, class.name.as_str()));
        assert_eq!([of(-101), of(99), of(5000)], [None, Some((0, "normal")), Some((100, "fixed"))]);
        assert!(classes.may_preempt(100, 0) && !classes.may_preempt(-1, -200), "as the entries say");
        let (empty, strict) = (parse("").expect("empty"), parse("order: strict").expect("good"));
        assert_eq!(empty.classes, PriorityClasses::default());
        assert_eq!([empty.order, strict.order], [QueueOrder::Backfill, QueueOrder::Strict]);
    }

    #[test]
    fn ended_jobs_are_kept_as_long_as_an_entry_says() {
        let text =
            "default: {keepEndedJobs: 100}\ntenants:\n  research: {keepEndedFor: 720h}\n  products: {}\n";
        let quotas = parse(text).expect("good");
        let of = |name: &str| (quotas.of(name).keep_ended_for, quotas.of(name).keep_ended_jobs);
        assert_eq!(of("research"), (Some(Duration::from_secs(720 * 3600)), None));
        assert_eq!((of("products"), of("others")), ((None, None), (None, Some(100))));
        assert!(quotas.retires() && !parse("tenants: {a: {maxGpus: 1}}").expect("good").retires());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("classes: {a: {from: 1}, b: {from: 1}}", "classes.b.from: 1 is that of class a too"),
            ("order: fair", "unknown variant `fair`"),
            ("classes: {a: {from: 2000}}", "classes.a.from: must be -1000 to 1000"),
            ("classes: {a: {}}", "missing field `from`"),
            ("classes: {Big Jobs: {from: 1}}", "classes.\"Big Jobs\": must be [a-z0-9-]"),
            ("classes: {a: {from: 1, preempt: true}}", "unknown field `preempt`"),
            ("default: {keepEndedFor: '720'}", "default.keepEndedFor: must be a time such as 720h"),
            ("tenants: {a: {keepEndedFor: 59m}}", "tenants.a.keepEndedFor: must be a time such as 720h"),
            ("tenants: {a: {keepEndedJobs: 0}}", "tenants.a.keepEndedJobs: must be at least 1"),
            ("tenants: {a: {roots: [data]}}", "tenants.a.roots[0]: must be an absolute folder"),
            ("tenants: {a: {roots: [/a, /a/../b]}}", "tenants.a.roots[1]: must be an absolute folder"),
            ("tenants: {a: {roots: [/]}}", "tenants.a.roots[0]: must be an absolute folder"),
            ("tenants: {a: {storePrefixes: ['']}}", "tenants.a.storePrefixes[0]: must be a key"),
            ("shared: [a/../b]", "shared[0]: must be a key"),
            ("operator: The Team", "operator: must be a tenant"),
            ("tenants: {a: {keys: [VLM]}}", "tenants.a.keys[0]: must be the name of a key"),
            ("tenants: {a: {endpoints: ['http://x/v1']}}", "tenants.a.endpoints[0]: must be `public`"),
            ("tenants: {a: {maxCurators: 0}}", "tenants.a.maxCurators: must be at least 1"),
            ("tenants: {research: {maxGpu: 1}}", "unknown field `maxGpu`"),
            ("tenants: {Research Team: {}}", "tenants.\"Research Team\": tenant must be"),
            ("tenants: {a: {maxStoredBytes: 2Tb}}", "tenants.a.maxStoredBytes: must be bytes"),
            ("tenants: {a: {maxStoredBytes: 99999999999TB}}", "tenants.a.maxStoredBytes: must be bytes"),
            ("tenants: {a: {callsPerSecond: 0}}", "tenants.a.callsPerSecond: must be at least 1"),
            ("default: {burst: 3}", "default.burst: says nothing without"),
            ("unlisted: maybe", "unknown variant `maybe`"),
            ("tenants: {a: {maxGpus: -1}}", "maxGpus"),
        ];
        for (text, said) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_queue_is_what_its_entry_says() {
        let text = "
queues:
  research: {guaranteed: {cuda: 16}, max: {cuda: 32}, tenants: [research], order: strict}
  default: {packing: spread, nodeLabels: {pool: spare}}
fairShare: {halfLife: 24h}
clusterSlots: {cuda: 16}
tenants:
  research: {queue: research, share: 3}
";
        let quotas = parse(text).expect("good");
        let research = &quotas.queues.by_name["research"];
        assert_eq!((research.guaranteed_of("cuda"), research.most["cuda"]), (16, 32));
        assert_eq!((research.order, research.packing), (Some(QueueOrder::Strict), Packing::Pack));
        let default = &quotas.queues.by_name["default"];
        assert_eq!((default.packing, default.node_labels["pool"].as_str()), (Packing::Spread, "spare"));
        assert!(!default.counts_slots() && research.counts("cuda") && !research.counts("cpu"));
        assert_eq!(quotas.fair_share, Some(Duration::from_secs(24 * 3600)));
        assert_eq!((quotas.of("research").share, quotas.of("other").share), (Some(3), None));
        let none = parse("fairShare: {}").expect("good");
        assert_eq!(none.fair_share, Some(DEFAULT_HALF_LIFE));
        assert_eq!((none.queues, parse("").expect("empty").fair_share), (Queues::default(), None));
    }

    #[test]
    fn what_is_wrong_with_a_queue_is_named() {
        let cases = [
            ("queues: {Big One: {}}", "queues.\"Big One\": must be [a-z0-9-]"),
            ("queues: {a: {guaranteed: {tpu: 1}}}", "queues.a.guaranteed.tpu: there is no such kind"),
            ("queues: {a: {guaranteed: {cuda: 2000000}}}", "queues.a.guaranteed.cuda: must be at most"),
            (
                "queues: {a: {guaranteed: {cuda: 8}, max: {cuda: 4}}}",
                "queues.a.max.cuda: 4 is less than the 8",
            ),
            ("queues: {a: {tenants: [The Team]}}", "queues.a.tenants[0]: "),
            ("queues: {a: {borrow: true}}", "unknown field `borrow`"),
            ("queues: {a: {packing: dense}}", "unknown variant `dense`"),
            (
                "queues: {a: {}}\ntenants: {t: {queue: b}}",
                "tenants.t.queue: there is no queue b below queues: a",
            ),
            (
                "queues: {a: {tenants: [x]}}\ntenants: {t: {queue: a}}",
                "tenants.t.queue: queues.a.tenants does not name t",
            ),
            (
                "clusterSlots: {cuda: 8}\nqueues: {a: {guaranteed: {cuda: 6}}, b: {guaranteed: {cuda: 3}}}",
                "clusterSlots.cuda: the queues are sure of 9 cuda slots, and there are 8",
            ),
            ("clusterSlots: {gpu: 8}", "clusterSlots.gpu: there is no such kind"),
            ("fairShare: {halfLife: 1s}", "fairShare.halfLife: must be a time such as 24h"),
            ("tenants: {a: {share: 0}}", "tenants.a.share: must be 1 to 1000"),
        ];
        for (text, said) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
