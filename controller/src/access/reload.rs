//! Files that are read again when their content changes. One that cannot be used changes nothing.

use std::fmt::Display;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crescendo_node::runtime::supervise::Tasks;
use prometheus::IntCounter;
use tokio::sync::watch;

/// How often the file is looked at. Its content counts, not its time: mounted secrets change by a link.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const MAX_BYTES: u64 = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
}

/// Reads the file now, and follows it from then on. `failures` counts versions of it that cannot be used.
pub fn follow<T, E>(
    path: &Path,
    parse: fn(&str) -> Result<T, E>,
    failures: IntCounter,
    tasks: &Tasks,
) -> Result<watch::Receiver<Arc<T>>, FileError>
where
    T: Send + Sync + 'static,
    E: Display + 'static,
{
    let text = read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let first = parsed(path, &text, parse)?;
    let (current, seen) = watch::channel(Arc::new(first));
    let (path, stop) = (path.to_owned(), tasks.stop_token());
    tasks.spawn(async move {
        let mut last = Ok(text);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let read = tokio::task::spawn_blocking({
                let path = path.clone();
                move || read(&path).map_err(|error| error.to_string())
            });
            let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
            // The same content, or the same trouble, as before.
            if read == last {
                continue;
            }
            let outcome = match &read {
                Ok(text) => parsed(&path, text, parse).map_err(|error| error.to_string()),
                Err(reason) => Err(reason.clone()),
            };
            match outcome {
                Ok(new) => {
                    tracing::info!(path = %path.display(), "file has changed and is in use");
                    current.send_replace(Arc::new(new));
                }
                Err(reason) => {
                    failures.inc();
                    tracing::error!(path = %path.display(), reason, "file cannot be used; what was read before stands");
                }
            }
            last = read;
        }
    });
    Ok(seen)
}

fn parsed<T, E: Display>(path: &Path, text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, FileError> {
    parse(text).map_err(|error| FileError::Content { path: path.to_owned(), reason: error.to_string() })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_taken_and_a_broken_one_is_not() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("number");
        std::fs::write(&path, "1")?;
        let failures = IntCounter::new("failures", "for this test")?;
        let (tasks, _supervisor) = Tasks::new();
        let mut seen = follow(&path, |text| text.trim().parse::<u32>(), failures.clone(), &tasks)?;
        assert_eq!(**seen.borrow_and_update(), 1);
        std::fs::write(&path, "two")?;
        while failures.get() == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        assert!(!seen.has_changed()?);
        std::fs::write(&path, "3")?;
        seen.changed().await?;
        assert_eq!(**seen.borrow_and_update(), 3);
        std::fs::remove_file(&path)?;
        while failures.get() == 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        assert_eq!(**seen.borrow(), 3);
        Ok(())
    }

    #[test]
    fn a_file_that_cannot_be_used_at_the_start_is_an_error_that_names_it() -> anyhow::Result<()> {
        let (tasks, _supervisor) = Tasks::new();
        let failures = IntCounter::new("failures", "for this test")?;
        let parse = |text: &str| text.trim().parse::<u32>();
        let missing = follow(Path::new("/nowhere/tokens.yaml"), parse, failures.clone(), &tasks);
        assert!(missing.expect_err("missing").to_string().contains("/nowhere/tokens.yaml"));
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("number");
        std::fs::write(&path, "two")?;
        let bad = follow(&path, parse, failures.clone(), &tasks).expect_err("bad").to_string();
        assert!(bad.contains("number: invalid digit"), "{bad}");
        // A stream without an end, of which no more is read than a file may hold.
        let endless = follow(Path::new("/dev/zero"), parse, failures, &tasks).expect_err("endless");
        assert!(format!("{:#}", anyhow::Error::from(endless)).contains("larger than"));
        Ok(())
    }
}
