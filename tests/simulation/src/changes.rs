//! Waiting for something to be the case, where those who wait are woken in the order in which they came. `watch` wakes
//! its receivers in an order that is drawn at random, which no seed of ours reaches.

use std::sync::Arc;

use tokio::sync::Notify;

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Notify>);

impl Changes {
    /// Something is another way now.
    pub fn tell(&self) {
        self.0.notify_waiters();
    }

    /// Waits until `look` finds something. It is asked now, and after each change.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let told = self.0.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            told.await;
        }
    }
}
