//! Streams that have nothing to say, kept from looking dead: load balancers and proxies cut one that is silent for a minute.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;
use tonic::Status;

/// What comes from a channel; after each `every` without anything, what `filler` makes of the last answer.
pub struct KeptAlive<T> {
    receiver: mpsc::Receiver<Result<T, Status>>,
    every: Duration,
    /// Until the next filler.
    wait: Pin<Box<Sleep>>,
    last: Option<T>,
    filler: fn(Option<&T>) -> T,
}

impl<T> KeptAlive<T> {
    pub fn new(
        receiver: mpsc::Receiver<Result<T, Status>>,
        every: Duration,
        filler: fn(Option<&T>) -> T,
    ) -> Self {
        Self { receiver, every, wait: Box::pin(sleep(every)), last: None, filler }
    }
}

impl<T: Clone + Unpin> Stream for KeptAlive<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = match self.receiver.poll_recv(context) {
            Poll::Ready(Some(Ok(answer))) => {
                self.last = Some(answer.clone());
                Ok(answer)
            }
            Poll::Ready(other) => return Poll::Ready(other),
            Poll::Pending => match self.wait.as_mut().poll(context) {
                Poll::Ready(()) => Ok((self.filler)(self.last.as_ref())),
                Poll::Pending => return Poll::Pending,
            },
        };
        let next = Instant::now() + self.every;
        self.wait.as_mut().reset(next);
        Poll::Ready(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    const EVERY: Duration = Duration::from_secs(25);

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_says_something_and_a_busy_one_nothing_more() {
        let (out, receiver) = mpsc::channel(4);
        let mut answers = KeptAlive::new(receiver, EVERY, |last| last.map_or(0, |last| last + 1000));
        let began = tokio::time::Instant::now();
        let mut next = async || {
            let answer = answers.next().await.map(|answer| answer.map_err(|status| status.code()));
            (answer, began.elapsed().as_secs())
        };
        assert_eq!(next().await, (Some(Ok(0)), 25), "before the first answer");
        out.send(Ok(7)).await.expect("room");
        assert_eq!(next().await, (Some(Ok(7)), 25));
        assert_eq!(next().await, (Some(Ok(1007)), 50));
        assert_eq!(next().await, (Some(Ok(1007)), 75));
        tokio::time::sleep(EVERY - Duration::from_secs(1)).await;
        out.send(Ok(8)).await.expect("room");
        assert_eq!(next().await, (Some(Ok(8)), 99), "an answer takes the place of a filler");
        assert_eq!(next().await, (Some(Ok(1008)), 124), "and begins the wait anew");
        out.send(Err(Status::unavailable("over"))).await.expect("room");
        drop(out);
        assert_eq!(next().await, (Some(Err(tonic::Code::Unavailable)), 124));
        assert_eq!(next().await, (None, 124), "it ends when its source does");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_is_noticed_by_the_source() {
        let (out, receiver) = mpsc::channel::<Result<u32, Status>>(4);
        let answers = KeptAlive::new(receiver, EVERY, |_| 0);
        drop(answers);
        out.closed().await;
    }
}
