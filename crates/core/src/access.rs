//! Who may call what: the roles, one rule for every call of every service, and the decision.
//!
//! A call without a rule is refused, whoever makes it; a test holds the table to the descriptors of all services in both
//! directions. What a caller may *see* is not decided here but by its [`Scope`]: a job outside of it does not exist.

use std::fmt;

use crate::ids::Tenant;

/// What a caller may do. People and services have one of the first four, each of which includes those before it; node
/// is apart and includes none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks at the jobs of its tenant.
    Viewer,
    /// Submits, cancels and deletes jobs of its tenant.
    Submitter,
    /// Looks at the nodes too.
    Operator,
    /// Everything that people may do; the only role that need not belong to a tenant.
    Admin,
    /// A trainer or curator node.
    Node,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Submitter, Self::Operator, Self::Admin, Self::Node];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Node => "node",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Whether whoever has this role may do what `needed` may.
    pub fn covers(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Node, Self::Node) => true,
            (Self::Node, _) | (_, Self::Node) => false,
            (had, needed) => had >= needed,
        }
    }

    /// Every role but admin and node belongs to one tenant; a node serves all of them.
    pub fn check_tenant(self, tenant: Option<&Tenant>) -> Result<(), &'static str> {
        match (self, tenant) {
            (Self::Viewer | Self::Submitter | Self::Operator, None) => {
                Err("needs a tenant; only an admin can do without")
            }
            (Self::Node, Some(_)) => Err("cannot have a tenant: a node serves all of them"),
            (Self::Viewer | Self::Submitter | Self::Operator, Some(_))
            | (Self::Admin, _)
            | (Self::Node, None) => Ok(()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a rule lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Without any credential.
    Anyone,
    AtLeast(Role),
    Node,
    NodeOr(Role),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone, without a credential"),
            Self::AtLeast(Role::Admin) => f.write_str("admin"),
            Self::AtLeast(role) => write!(f, "{role} and up"),
            Self::Node => f.write_str("node"),
            Self::NodeOr(role) => write!(f, "{role} and up, node"),
        }
    }
}

/// What a call does to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEffect {
    /// Nothing. Only a refusal goes into the audit log.
    Read,
    /// It goes into the audit log.
    Change,
    /// Nodes do it all the time, and what comes of it is a change of its own: only a refusal goes into the audit log.
    Heartbeat,
}

impl CallEffect {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Change => "change",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// One call, and who may make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Full name, e.g. `crescendo.v1.JobService`.
    pub service: &'static str,
    pub method: &'static str,
    pub who: Who,
    pub effect: CallEffect,
}

const fn rule(service: &'static str, method: &'static str, who: Who, effect: CallEffect) -> Rule {
    Rule { service, method, who, effect }
}

const ACCESS: &str = "crescendo.v1.AccessService";
const JOBS: &str = "crescendo.v1.JobService";
const NODES: &str = "crescendo.v1.NodeService";
const CHECKPOINTS: &str = "crescendo.v1.CheckpointService";
const CURATION: &str = "crescendo.v1.CurationService";
const OBJECTS: &str = "crescendo.v1.ObjectService";
const QUEUES: &str = "crescendo.v1.QueueService";
const VIEWS: &str = "crescendo.v1.ViewService";
const REVIEW: &str = "crescendo.v1.ReviewService";
const SAMPLES: &str = "crescendo.v1.SampleService";
const PAIRS: &str = "crescendo.v1.PairService";
const AGENT: &str = "crescendo.v1.AgentService";
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Every call there is. A node may look at jobs and pair logs, since `crescendo-curator-node export` reads them with
/// the certificate of its node.
pub const RULES: [Rule; 53] = [
    rule(ACCESS, "WhoAmI", Who::NodeOr(Role::Viewer), CallEffect::Read),
    // Before a login there is no credential. Neither tells anything of the cluster.
    rule(ACCESS, "GetLogin", Who::Anyone, CallEffect::Read),
    rule(ACCESS, "ExchangeCode", Who::Anyone, CallEffect::Read),
    rule(JOBS, "SubmitJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "GetJob", Who::NodeOr(Role::Viewer), CallEffect::Read),
    rule(JOBS, "GetSpec", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "ListJobs", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "WatchJob", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "ExplainJob", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "CancelJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "PauseJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "ResumeJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "RetryJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "NoteJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "PlanContinuation", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "DeleteJob", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(JOBS, "GetLineage", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(JOBS, "ReadLogs", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(NODES, "OpenSession", Who::Node, CallEffect::Change),
    rule(NODES, "ListNodes", Who::AtLeast(Role::Operator), CallEffect::Read),
    // Nodes serve every tenant: the service asks for an admin that is bound to none.
    rule(NODES, "DrainNode", Who::AtLeast(Role::Admin), CallEffect::Change),
    rule(NODES, "ForgetNode", Who::AtLeast(Role::Admin), CallEffect::Change),
    rule(CHECKPOINTS, "CommitCheckpoint", Who::Node, CallEffect::Change),
    rule(CHECKPOINTS, "ListCheckpoints", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(CHECKPOINTS, "KeepCheckpoint", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(CHECKPOINTS, "MarkCheckpointDamaged", Who::Node, CallEffect::Change),
    rule(QUEUES, "ListQueues", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(QUEUES, "ListUsage", Who::AtLeast(Role::Viewer), CallEffect::Read),
    // Nodes are shown to those alone who may list them.
    rule(VIEWS, "WatchViews", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(VIEWS, "ReadCurves", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(REVIEW, "ReadPairs", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(REVIEW, "MarkPairs", Who::AtLeast(Role::Submitter), CallEffect::Change),
    rule(REVIEW, "ListPairMarks", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(CURATION, "LeaseUnit", Who::Node, CallEffect::Heartbeat),
    rule(CURATION, "RenewUnit", Who::Node, CallEffect::Heartbeat),
    rule(CURATION, "CommitUnit", Who::Node, CallEffect::Change),
    rule(CURATION, "FailUnit", Who::Node, CallEffect::Change),
    rule(CURATION, "WatchPairLog", Who::NodeOr(Role::Viewer), CallEffect::Read),
    rule(OBJECTS, "ReadCheckpointFile", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(OBJECTS, "SendObject", Who::Node, CallEffect::Heartbeat),
    // It reaches every tenant's files: the service asks for an admin that is bound to none.
    rule(OBJECTS, "CollectLeftovers", Who::AtLeast(Role::Admin), CallEffect::Change),
    rule(OBJECTS, "JudgeObjects", Who::Node, CallEffect::Heartbeat),
    rule(SAMPLES, "ListSamples", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(SAMPLES, "ReadSamples", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(SAMPLES, "ReportSamples", Who::Node, CallEffect::Heartbeat),
    rule(PAIRS, "StreamPairs", Who::Node, CallEffect::Read),
    rule(AGENT, "OpenRankSession", Who::Node, CallEffect::Heartbeat),
    rule(AGENT, "PublishRendezvous", Who::Node, CallEffect::Heartbeat),
    rule(AGENT, "AwaitRendezvous", Who::Node, CallEffect::Read),
    // Probes have no credentials, and learn nothing but whether this process leads.
    rule(HEALTH, "Check", Who::Anyone, CallEffect::Read),
    rule(HEALTH, "Watch", Who::Anyone, CallEffect::Read),
    rule(REFLECTION, "ServerReflectionInfo", Who::AtLeast(Role::Viewer), CallEffect::Read),
    rule(REFLECTION_V1ALPHA, "ServerReflectionInfo", Who::AtLeast(Role::Viewer), CallEffect::Read),
];

/// The rule of a gRPC path, e.g. `/crescendo.v1.JobService/GetJob`.
pub fn rule_of(path: &str) -> Option<&'static Rule> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    RULES.iter().find(|rule| rule.service == service && rule.method == method)
}

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "{method} needs a credential, and none came: send a bearer token in the authorization metadata, or a client certificate"
    )]
    NoCredential { method: &'static str },
    #[error("{method} is for {needed}; the caller's role is {had}")]
    Role { method: &'static str, needed: Who, had: Role },
}

/// Whether a caller with `role` (`None`: no credential) may make the call.
pub fn decide(rule: &Rule, role: Option<Role>) -> Result<(), Denied> {
    let method = rule.method;
    let allowed = |had: Role| match rule.who {
        Who::Anyone => true,
        Who::AtLeast(needed) => had.covers(needed),
        Who::Node => had.covers(Role::Node),
        Who::NodeOr(needed) => had.covers(Role::Node) || had.covers(needed),
    };
    match role {
        _ if rule.who == Who::Anyone => Ok(()),
        None => Err(Denied::NoCredential { method }),
        Some(had) if allowed(had) => Ok(()),
        Some(had) => Err(Denied::Role { method, needed: rule.who, had }),
    }
}

/// Whose jobs a caller sees. To it the others do not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Only(Tenant),
}

impl Scope {
    pub fn sees(&self, tenant: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(own) => own.as_str() == tenant,
        }
    }
}

/// The table for people, as Markdown.
pub fn markdown_table() -> String {
    let mut out = String::from("| service | call | who | effect |\n|---|---|---|---|\n");
    for Rule { service, method, who, effect } in RULES {
        let service = service.trim_start_matches("crescendo.v1.");
        out.push_str(&format!("| `{service}` | `{method}` | {who} | {} |\n", effect.as_str()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_people_include_each_other_and_node_is_apart() {
        use Role::{Admin, Node, Operator, Submitter, Viewer};
        let people = [Viewer, Submitter, Operator, Admin];
        for (had_at, had) in people.into_iter().enumerate() {
            for (needed_at, needed) in people.into_iter().enumerate() {
                assert_eq!(had.covers(needed), had_at >= needed_at, "{had} for {needed}");
            }
            assert!(!had.covers(Node) && !Node.covers(had), "{had}");
        }
        assert!(Node.covers(Node));
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("Admin"), None);
    }

    #[test]
    fn without_a_credential_only_health_and_the_login_answer() {
        for rule in &RULES {
            let allowed = decide(rule, None).is_ok();
            let is_login = ["GetLogin", "ExchangeCode"].contains(&rule.method);
            assert_eq!(allowed, rule.service == HEALTH || is_login, "{}/{}", rule.service, rule.method);
        }
    }

    #[test]
    fn no_person_may_do_what_nodes_do_and_no_node_changes_jobs() {
        let of = |path: &str| rule_of(path).expect("a rule");
        for role in [Role::Viewer, Role::Submitter, Role::Operator, Role::Admin] {
            for path in [
                "/crescendo.v1.NodeService/OpenSession",
                "/crescendo.v1.CurationService/CommitUnit",
                "/crescendo.v1.ObjectService/SendObject",
            ] {
                assert!(decide(of(path), Some(role)).is_err(), "{role} {path}");
            }
        }
        for path in ["/crescendo.v1.JobService/SubmitJob", "/crescendo.v1.JobService/CancelJob"] {
            let denied = decide(of(path), Some(Role::Node)).expect_err("refused");
            assert!(denied.to_string().contains("submitter and up; the caller's role is node"), "{denied}");
        }
    }

    #[test]
    fn a_call_has_one_rule() {
        for (at, rule) in RULES.iter().enumerate() {
            let path = format!("/{}/{}", rule.service, rule.method);
            assert_eq!(rule_of(&path), Some(rule));
            assert!(!RULES.iter().skip(at + 1).any(|other| rule_of(&path) == Some(other)), "{path}");
        }
        for unknown in ["", "/", "x", "/crescendo.v1.JobService", "/crescendo.v1.JobService/DropJobs"] {
            assert_eq!(rule_of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn tenants_belong_to_people() {
        let tenant = Tenant::parse("research").expect("valid");
        for role in Role::ALL {
            let (without, with) = (role.check_tenant(None).is_ok(), role.check_tenant(Some(&tenant)).is_ok());
            assert_eq!((without, with), (role >= Role::Admin, role != Role::Node), "{role}");
        }
    }
}
