//! Waking many tasks from the driver's thread at the price of one.
//!
//! A runtime whose thread sleeps is roused by a system call, and on a busy core that thread then runs at once, serves the one
//! task, and sleeps again: two thread switches for each task. So the driver wakes only the first of those whom one batch of
//! datagrams concerns; the others are woken by it, from inside of the runtime, when it is polled. Whoever is still waiting when the
//! driver is about to sleep is woken by the driver: the first task may be gone, or belong to another runtime.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;

/// Tasks that the first one wakes.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    waiting: Mutex<VecDeque<Waker>>,
    /// Read without the lock: whether somebody waits.
    some: AtomicBool,
}

impl Relay {
    /// Wakes the first, and leaves the others to [`Self::run`], which somebody must call soon.
    pub(crate) fn wake(&self, wakers: &mut Vec<Waker>) {
        let mut wakers = wakers.drain(..);
        let Some(first) = wakers.next() else { return };
        if wakers.len() > 0 {
            let mut waiting = self.lock();
            waiting.extend(wakers);
            self.some.store(true, Ordering::Release);
        }
        first.wake();
    }

    /// Wakes whoever was left.
    pub(crate) fn run(&self) {
        while self.some.load(Ordering::Acquire) {
            let mut waiting = self.lock();
            let next = waiting.pop_front();
            if waiting.is_empty() {
                self.some.store(false, Ordering::Release);
            }
            drop(waiting);
            // Outside of the lock: a waker may do anything.
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waker>> {
        // Nothing that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_is_woken_at_once_and_the_others_by_whoever_comes_next() {
        let relay = Relay::default();
        let counts: Vec<_> = (0..5).map(|_| Arc::new(Count(AtomicUsize::new(0)))).collect();
        let seen = || counts.iter().map(|c| c.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let mut wakers: Vec<Waker> = counts.iter().cloned().map(Waker::from).collect();
        relay.wake(&mut wakers);
        assert_eq!((seen(), wakers.len()), (vec![1, 0, 0, 0, 0], 0));
        relay.run();
        assert_eq!(seen(), [1; 5]);
        relay.run();
        assert_eq!(seen(), [1; 5], "each once");
        relay.wake(&mut vec![counts[0].clone().into()]);
        assert!(!relay.some.load(Ordering::SeqCst), "a single one needs nobody");
    }
}
