//! Work that gives way: a runtime whose threads the system runs when others of this process leave a core to spare.

use tokio::runtime::{Builder, Handle, Runtime};

/// How much they give way, on the scale of `nice`: a quarter of a core where another thread of the process wants all of it.
/// With much less, what a save has copied would wait so long to be written that training had to wait for that.
const NICE: i32 = 5;
const MAX_NICE: i32 = 19;

/// A runtime of its own, which ends without waiting when this goes.
#[derive(Debug)]
pub struct Background(Option<Runtime>);

impl Background {
    /// With threads of this name.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            // On Linux this is of the calling thread alone. Where it is refused, they take their share.
            .on_thread_start(give_way)
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Waiting is not allowed where this may be dropped.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn give_way() {
    if let Ok(now) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, (now + NICE).min(MAX_NICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn its_threads_give_way_and_others_do_not() {
        let before = nice();
        let background = Background::start("test").unwrap();
        let handle = background.handle().unwrap();
        let (worker, blocking) = (handle.spawn(async { nice() }), handle.spawn_blocking(nice));
        let expected = (before + NICE).min(MAX_NICE);
        assert_eq!((worker.await.unwrap(), blocking.await.unwrap(), nice()), (expected, expected, before));
        drop(background);
    }
}
