//! The controllers: reachable, one leader, clocks and versions that agree; and the nodes behind them.

use std::time::{Duration, SystemTime};

use crescendo_proto::v1::{Node, NodeReach, WhoAmIRequest, WhoAmIResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::report::Check;
use crate::commands::{nodes, whoami};
use crate::connect::{self, Controller, LOOK, brief};
use crate::failure::Failure;
use crate::show::words;
use crate::wire::Wire;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const ANSWER: Duration = Duration::from_secs(5);
/// Clocks further apart than this make leases and expiry dates wrong by as much.
const CLOCK_OFF: Duration = Duration::from_secs(5);
const CLOCK_WRONG: Duration = Duration::from_secs(60);

pub struct Seen {
    pub checks: Vec<Check>,
    /// As a controller says.
    pub object_store: Option<String>,
}

/// One controller's answer.
struct Answer {
    told: WhoAmIResponse,
    took: Duration,
    /// This machine's clock in the middle of the call.
    at: SystemTime,
}

pub async fn check(controller: &Controller) -> Seen {
    let mut checks = Vec::new();
    let mut answers = Vec::new();
    for (address, wire) in controller.each() {
        match ask(wire).await {
            Ok(answer) => {
                checks.push(reached(&address, &answer));
                checks.push(clock(&address, &answer));
                answers.push(answer);
            }
            Err(check) => checks.push(Check { found: format!("{address}: {}", check.found), ..check }),
        }
    }
    let object_store = answers.first().map(|answer| answer.told.object_store_url.clone());
    if let Some(answer) = answers.first() {
        checks.push(Check::ok("login", whoami::words(&answer.told)));
        checks.push(leaders(answers.iter().map(|answer| &answer.told)));
        checks.push(match nodes::fetch(controller, LOOK).await {
            Ok(nodes) => judge_nodes(&nodes),
            Err(Failure::NotAllowed(why)) => Check::skipped("nodes", why),
            Err(failure) => {
                Check::failed("nodes", failure.to_string(), "look at the leader's log: it could not answer")
            }
        });
    }
    Seen { checks, object_store: object_store.filter(|url| !url.is_empty()) }
}

async fn ask(wire: Result<Wire, Failure>) -> Result<Answer, Check> {
    let name = "controller";
    let wire = wire.map_err(|failure| Check::failed(name, failure.to_string(), "correct the token"))?;
    let began = Instant::now();
    let answer = tokio::time::timeout(ANSWER, connect::access(wire).who_am_i(WhoAmIRequest {})).await;
    let took = began.elapsed();
    match answer {
        Ok(Ok(told)) => {
            let at = SystemTime::now().checked_sub(took / 2).unwrap_or(SystemTime::UNIX_EPOCH);
            Ok(Answer { told: told.into_inner(), took, at })
        }
        Ok(Err(status)) => Err(refused(&status)),
        Err(_) => Err(Check::failed(
            name,
            format!("no answer within {} s", ANSWER.as_secs()),
            "look at its log, and at what is between: firewalls, network policies, a proxy",
        )),
    }
}

fn refused(status: &Status) -> Check {
    let name = "controller";
    match status.code() {
        Code::Unauthenticated => {
            Check::failed(name, status.message(), "log in: crescendo login, --token-file or CRESCENDO_TOKEN")
        }
        Code::PermissionDenied => {
            Check::failed(name, status.message(), "ask an admin for a role that may look")
        }
        Code::Unimplemented => Check::warning(
            name,
            "it answers, but does not know this call",
            "it is of an older version: upgrade it, or use a `crescendo` of its version",
        ),
        _ => Check::failed(
            name,
            brief(status),
            "is it running, and is this its address? TLS on one side alone looks like this too",
        ),
    }
}

fn reached(address: &str, answer: &Answer) -> Check {
    let told = &answer.told;
    let role = if told.leads { "leads" } else { "stands by" };
    let found =
        format!("{address} answers in {} ms, version {}, {role}", answer.took.as_millis(), told.version);
    if told.version == VERSION {
        Check::ok("controller", found)
    } else {
        Check::warning(
            "controller",
            format!("{found}; this is {VERSION}"),
            "use a `crescendo` of the controllers' version",
        )
    }
}

fn clock(address: &str, answer: &Answer) -> Check {
    let name = "clock";
    let Some(theirs) = words::system_time(answer.told.at.as_ref()) else {
        return Check::skipped(name, format!("{address} does not tell its time"));
    };
    let off = match theirs.duration_since(answer.at) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    // Half the way there and back is not known.
    let found = format!("{:.1} s from that of {address}", off.saturating_sub(answer.took / 2).as_secs_f64());
    let remedy = "set the clocks by NTP (chrony, systemd-timesyncd) on both machines";
    match off {
        off if off >= CLOCK_WRONG => Check::failed(
            name,
            format!("{found}: certificates and tokens look expired, or not valid yet"),
            remedy,
        ),
        off if off >= CLOCK_OFF => Check::warning(name, found, remedy),
        _ => Check::ok(name, found),
    }
}

fn leaders<'a>(told: impl Iterator<Item = &'a WhoAmIResponse> + Clone) -> Check {
    let name = "leader";
    let leading = told.clone().filter(|told| told.leads).count();
    let named: Vec<&str> =
        told.map(|told| told.leader.as_str()).filter(|leader| !leader.is_empty()).collect();
    match (leading, named.first()) {
        (1, _) => Check::ok(name, "one controller leads"),
        (0, Some(leader)) => Check::warning(
            name,
            format!("none of these leads; {leader} is said to"),
            "name all controllers with --controller, so that calls find the one that leads",
        ),
        (0, None) => Check::failed(
            name,
            "no controller leads",
            "look at the store (etcd): without it none can be elected; jobs that run go on",
        ),
        (_, _) => {
            Check::warning(name, "two say that they lead", "ask again: one of them has just stopped to")
        }
    }
}

fn judge_nodes(nodes: &[Node]) -> Check {
    let name = "nodes";
    let silent: Vec<&str> = nodes
        .iter()
        .filter(|node| node.reach() != NodeReach::Connected)
        .map(|node| node.node_id.as_str())
        .collect();
    let other: Vec<String> = nodes
        .iter()
        .filter(|node| node.reach() == NodeReach::Connected && node.version != VERSION)
        .map(|node| format!("{} ({})", node.node_id, node.version))
        .collect();
    let connected = nodes.len() - silent.len();
    if connected == 0 {
        return Check::warning(
            name,
            "none is connected",
            "start curators and trainers, or read in their logs why they cannot connect",
        );
    }
    if !other.is_empty() {
        let found = format!("{connected} connected, of other versions than {VERSION}: {}", other.join(", "));
        return Check::warning(name, found, "upgrade them: all programs are meant to be of one version");
    }
    if !silent.is_empty() {
        let found = format!("{connected} connected, silent: {}", silent.join(", "));
        return Check::warning(name, found, "look at those machines, unless they were taken away for good");
    }
    Check::ok(name, format!("{connected} connected, all of version {VERSION}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status as Verdict;
    use super::*;

    fn answer(leads: bool, leader: &str) -> WhoAmIResponse {
        WhoAmIResponse { leads, leader: leader.into(), version: VERSION.into(), ..WhoAmIResponse::default() }
    }

    #[test]
    fn one_leads() {
        let verdict = |answers: &[WhoAmIResponse]| leaders(answers.iter()).status;
        assert_eq!(verdict(&[answer(false, "a:1"), answer(true, "")]), Verdict::Ok);
        assert_eq!(verdict(&[answer(false, "a:1")]), Verdict::Warning);
        assert_eq!(verdict(&[answer(false, "")]), Verdict::Failed);
        assert_eq!(verdict(&[answer(true, ""), answer(true, "")]), Verdict::Warning);
    }

    #[test]
    fn clocks_are_compared_in_both_directions() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let verdict = |theirs: u64| {
            let told = WhoAmIResponse {
                at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(theirs)).into()),
                ..answer(true, "")
            };
            clock("a:1", &Answer { told, took: Duration::from_millis(4), at: now }).status
        };
        assert_eq!(
            [verdict(1_000_001), verdict(999_990), verdict(1_000_010), verdict(900_000), verdict(1_100_000)],
            [Verdict::Ok, Verdict::Warning, Verdict::Warning, Verdict::Failed, Verdict::Failed]
        );
    }

    #[test]
    fn nodes_should_be_there_and_of_one_version() {
        let node = |version: &str, reach: NodeReach| Node {
            version: version.into(),
            reach: reach as i32,
            ..Node::default()
        };
        let verdict = |nodes: &[Node]| judge_nodes(nodes).status;
        assert_eq!(verdict(&[]), Verdict::Warning);
        assert_eq!(verdict(&[node(VERSION, NodeReach::Connected)]), Verdict::Ok);
        assert_eq!(verdict(&[node("9.9.9", NodeReach::Connected)]), Verdict::Warning);
        assert_eq!(
            verdict(&[node(VERSION, NodeReach::Connected), node(VERSION, NodeReach::Silent)]),
            Verdict::Warning
        );
    }
}
