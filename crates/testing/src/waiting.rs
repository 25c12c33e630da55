//! Waiting for something that another process, task or thread does.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Limit of everything that a test waits for; what passes takes no longer for it on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something, at most for [`LIMIT`].
pub async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > LIMIT {
            bail!("did not happen within {LIMIT:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until `holds`, at most for [`LIMIT`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    eventually(what, async || Ok(holds().then_some(()))).await
}
