//! What a node knows to be wrong with itself, on its way to the controller: said when a session begins, and when it changes.

use crescendo_proto::v1::NodeHealth;
use tokio::sync::watch;

/// Where the node's parts put what they find; [`crate::session::NodeSession`] sends it, before any report that follows. Never
/// waits. Clones share it.
#[derive(Clone, Debug)]
pub struct HealthReport(watch::Sender<NodeHealth>);

impl Default for HealthReport {
    fn default() -> Self {
        Self(watch::Sender::new(NodeHealth::default()))
    }
}

impl HealthReport {
    /// Changes what is told, if that is a change.
    pub fn update(&self, change: impl FnOnce(&mut NodeHealth)) {
        self.0.send_if_modified(|now| {
            let before = now.clone();
            change(now);
            *now != before
        });
    }

    /// As it is now.
    pub fn now(&self) -> NodeHealth {
        self.0.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<NodeHealth> {
        self.0.subscribe()
    }
}
