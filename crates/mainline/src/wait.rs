//! Futures with an end in time, without a runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls on this thread until it is done; `None` if that takes until `deadline`.
pub(crate) fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_future_is_waited_for_and_no_longer_than_that() {
        assert_eq!(until(Instant::now(), async { 5 }), Some(5));
        let begin = Instant::now();
        assert_eq!(until(begin + Duration::from_millis(30), std::future::pending::<()>()), None);
        assert!(begin.elapsed() >= Duration::from_millis(30));
        // Woken from another thread.
        let (send, receive) = mpsc::channel::<Waker>();
        let waker = thread::spawn(move || receive.recv().unwrap().wake());
        let mut polls = 0;
        let woken = std::future::poll_fn(|context| {
            polls += 1;
            let _ = send.send(context.waker().clone());
            if polls == 2 { Poll::Ready(polls) } else { Poll::Pending }
        });
        assert_eq!(until(begin + Duration::from_secs(60), woken), Some(2));
        assert!(begin.elapsed() < Duration::from_secs(50), "nobody woke it");
        waker.join().unwrap();
    }
}
