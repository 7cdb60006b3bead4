//! A blocking call as a future, on a thread of its own, without a runtime.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

struct Cell<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// The thread is gone, with or without a value.
    over: bool,
}

/// Marks the cell as over even if the call panics.
struct Finish<T>(Arc<Mutex<Cell<T>>>);

impl<T> Drop for Finish<T> {
    fn drop(&mut self) {
        let waker = {
            let mut cell = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            cell.over = true;
            cell.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Runs `call` on a new thread and waits for its value. The thread ends by itself if the future is dropped.
///
/// # Errors
/// No thread could be started, or the call panicked.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let cell = Arc::new(Mutex::new(Cell { value: None, waker: None, over: false }));
    let finish = Finish(cell.clone());
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let value = call();
        finish.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).value = Some(value);
    })?;
    poll_fn(|cx| {
        let mut cell = cell.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if cell.over {
            return Poll::Ready(cell.value.take().ok_or_else(|| io::Error::other("the thread panicked")));
        }
        cell.waker = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Wake};
    use std::thread::Thread;

    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = Arc::new(Unpark(std::thread::current())).into();
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            std::thread::park_timeout(std::time::Duration::from_secs(10));
        }
    }

    #[test]
    fn the_value_arrives() {
        assert_eq!(block_on(run("test", || 7)).expect("value"), 7);
    }

    #[test]
    fn a_panic_is_an_error_not_a_hang() {
        assert!(block_on(run("test", || -> u8 { panic!("on purpose") })).is_err());
    }
}
