//! A job's requests go to the addresses that its tenant may use, and to no other.

use crescendo_core::reach::{Bounds, EndpointRule, Reach};
use crescendo_core::spec::EndpointSpec;
use crescendo_curator_node::llm::network::LlmContext;
use crescendo_curator_node::llm::{Chat, EndpointError};

use super::ask;
use super::replay::Replay;

fn bounded(replay: &Replay, endpoints: &[&str], keys: &[&str]) -> LlmContext {
    let rule = |text: &&str| EndpointRule::parse(text).expect("a rule");
    let bounds = Bounds {
        endpoints: endpoints.iter().map(rule).collect(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..Bounds::default()
    };
    LlmContext { reach: Reach::Bounded(bounds), ..replay.llm() }
}

fn requests(replay: &Replay) -> usize {
    replay.seen.requests.lock().expect("no panic").len()
}

/// An endpoint at a name which leads to this machine.
fn by_name(replay: &Replay) -> EndpointSpec {
    EndpointSpec { url: replay.url.replace("127.0.0.1", "localhost"), key: None, ..replay.spec() }
}

#[tokio::test]
async fn an_address_or_a_key_out_of_reach_is_told_before_anything_is_sent() {
    let replay = Replay::start("judge").await;
    let open = |endpoints: &[&str], keys: &[&str]| {
        Chat::open(&replay.spec(), Some(&bounded(&replay, endpoints, keys)))
    };
    let told = |opened: Result<Chat, EndpointError>| opened.expect_err("out of reach").to_string();
    let address = told(open(&["public"], &["test"]));
    assert!(address.contains("127.0.0.1 is not among the addresses that the tenant may use"), "{address}");
    let key = told(open(&["127.0.0.1"], &["other"]));
    assert!(key.contains("key `test` is not among those that the operator gives the tenant: other"), "{key}");
    open(&["127.0.0.1"], &["test"]).expect("both are its own");
    assert_eq!(requests(&replay), 0);
}

#[tokio::test]
async fn what_a_name_resolves_to_is_looked_at_when_a_connection_is_made() {
    let replay = Replay::start("judge").await;
    // Nothing can be said of the name before it is resolved, and then it leads to this machine.
    let elsewhere = bounded(&replay, &["10.0.0.0/8"], &[]);
    let chat = Chat::open(&by_name(&replay), Some(&elsewhere)).expect("open");
    let refused = ask(&chat, "Hello").await.expect_err("out of reach");
    assert!(matches!(refused, EndpointError::Denied { .. }), "{refused}");
    assert!(
        refused.to_string().contains("localhost leads to no address that the tenant may use"),
        "{refused}"
    );
    assert_eq!(requests(&replay), 0, "nothing was sent");
    let here = bounded(&replay, &["127.0.0.0/8"], &[]);
    let chat = Chat::open(&by_name(&replay), Some(&here)).expect("open");
    // The recording may know no answer; a request comes all the same.
    let _ = ask(&chat, "Hello").await;
    assert!(requests(&replay) > 0);
}
