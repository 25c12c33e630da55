//! Leadership.

use std::time::Duration;

use super::{Fixture, PATIENCE};
use crate::{Revision, StoreError, Txn};

/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(1);

/// Two candidates: one leads, the other waits until it resigns.
pub async fn one_of_two_candidates_wins(fixture: &impl Fixture) {
    let (store, other) = (fixture.store(), fixture.other_client());
    assert_eq!(store.leader("controller").await.unwrap(), None);
    let (first, second) = {
        let one = store.campaign("controller", "one", TTL, PATIENCE);
        let two = other.campaign("controller", "two", TTL, PATIENCE);
        tokio::pin!(one, two);
        tokio::select! {
            won = &mut one => {
                let leadership = won.unwrap();
                assert_eq!(store.leader("controller").await.unwrap().unwrap().identity, "one");
                let elected_at = leadership.elected_at();
                let (second, ()) = tokio::join!(two, leadership.resign());
                (elected_at, second.unwrap())
            }
            won = &mut two => {
                let leadership = won.unwrap();
                assert_eq!(store.leader("controller").await.unwrap().unwrap().identity, "two");
                let elected_at = leadership.elected_at();
                let (second, ()) = tokio::join!(one, leadership.resign());
                (elected_at, second.unwrap())
            }
        }
    };
    assert!(second.elected_at() > first);
    let leader = store.leader("controller").await.unwrap().unwrap();
    assert_eq!((leader.identity.as_str(), leader.elected_at), (second.identity(), second.elected_at()));
    store.txn(Txn::new().put("by-leader", "1").led_by(&second)).await.unwrap();
    assert!(!second.is_lost());
    second.resign().await;
    assert_eq!(store.leader("controller").await.unwrap(), None);
}

/// A leader that goes silent: another one leads after its time, and its late transaction is refused.
pub async fn a_leader_that_vanishes_is_replaced_and_fenced_off(fixture: &impl Fixture) {
    let store = fixture.store();
    let old = store.campaign("controller", "old", TTL, PATIENCE).await.unwrap();
    let revision = store.txn(Txn::new().put("jobs/a", "1").led_by(&old)).await.unwrap();
    let late = Txn::new().at_revision("jobs/a", revision).put("jobs/a", "late").led_by(&old);
    let late_elsewhere = Txn::new().at_revision("jobs/a", Revision(u64::MAX)).led_by(&old);
    old.abandon();

    let new = fixture.other_client().campaign("controller", "new", TTL, PATIENCE).await.unwrap();
    let error = store.txn(late).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotLeader { name } if name == "controller"), "{error:?}");
    // Leadership comes before everything else: a stale leader is told to stop, not to try again.
    let error = store.txn(late_elsewhere).await.unwrap_err();
    assert!(matches!(error, StoreError::NotLeader { .. }), "{error:?}");
    store.txn(Txn::new().at_revision("jobs/a", revision).put("jobs/a", "new").led_by(&new)).await.unwrap();
    assert_eq!(store.get("jobs/a").await.unwrap().unwrap().value, "new");
}

/// A person may force a leader out by deleting its record.
pub async fn a_leader_whose_record_is_deleted_is_fenced_off(fixture: &impl Fixture) {
    let store = fixture.store();
    let leadership = store.campaign("controller", "one", TTL, PATIENCE).await.unwrap();
    fixture.other_client().txn(Txn::new().delete("leaders/controller")).await.unwrap();
    let refused = store.txn(Txn::new().put("a", "1").led_by(&leadership)).await;
    assert!(matches!(refused, Err(StoreError::NotLeader { .. })), "{refused:?}");
    assert_eq!(store.get("a").await.unwrap(), None);
}

/// Somebody else leads all the time.
pub async fn a_campaign_ends_at_its_deadline(fixture: &impl Fixture) {
    let store = fixture.store();
    let leadership = store.campaign("controller", "one", TTL, PATIENCE).await.unwrap();
    let wait = Duration::from_millis(300);
    let error = fixture.other_client().campaign("controller", "two", TTL, wait).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NotElected { leader: Some(leader), .. } if leader == "one"),
        "{error:?}"
    );
    // Another name is another leadership.
    let other = store.campaign("janitor", "two", TTL, PATIENCE).await.unwrap();
    assert!(!leadership.is_lost() && !other.is_lost());
}
