//! How a process leaves on signals. They reach the whole process, so all ways to leave are played in one test.

#![allow(unsafe_code, reason = "the process signals itself")]

use std::time::Duration;

use crescendo_node::runtime::supervise::{Drain, Tasks};

fn raise(signal: libc::c_int) {
    // SAFETY: the supervisor's handlers are in place, so the process only takes note.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

/// Sends a SIGTERM, and once the hand-over is asked for does `then`. Whether it was asked for.
async fn leave(within: Duration, then: impl FnOnce(Drain)) -> bool {
    let (tasks, supervisor) = Tasks::new();
    let (drain, stop) = (Drain::new(within), tasks.stop_token());
    let (asked, handing_over) = (drain.asked(), drain.clone());
    let leaving = async {
        // The supervisor is polled before this, and listens by now.
        raise(libc::SIGTERM);
        if !within.is_zero() {
            asked.cancelled().await;
            assert!(!stop.is_cancelled(), "stopped before anything was handed over");
            then(handing_over);
        }
        stop.cancelled().await;
        asked.is_cancelled()
    };
    let running = supervisor.draining(drain).run(Duration::from_secs(5));
    let (ended, asked) = tokio::join!(running, leaving);
    ended.expect("a clean end");
    asked
}

#[tokio::test]
async fn a_sigterm_asks_for_the_hand_over_first() {
    let hour = Duration::from_secs(3600);
    assert!(leave(hour, |drain| drain.finish()).await);
    assert!(leave(hour, |_| raise(libc::SIGTERM)).await, "a second one ends it");
    assert!(leave(hour, |_| raise(libc::SIGINT)).await, "and so does this");
    assert!(leave(Duration::from_millis(10), |_| {}).await, "time ends it too");
    assert!(!leave(Duration::ZERO, |_| {}).await, "there is nothing to hand over");
}
