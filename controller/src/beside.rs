//! Work that takes long in a large cluster, beside what must not wait for it.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does work that takes a while: the other tasks of this thread go on elsewhere, if the runtime has another thread.
pub fn beside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
