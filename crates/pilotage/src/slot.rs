//! Where application threads and tasks wait, one [`Slot`] per connection, listener or datagram port.
//!
//! A waiter reads the [`epoch`](Slot::epoch) of its direction, tries its operation, and waits only
//! while the epoch is unchanged. The driver advances the epoch *before* it notifies, so a change
//! between the attempt and the wait is never lost, and several waiters cannot steal a wake-up from
//! each other. A slot has its own small lock: waking never needs the lock of the core.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Most tasks that may wait for one direction of one slot; the oldest is woken to make room.
const MAX_WAKERS: usize = 64;

/// Which direction of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Waiting for something to read, accept or receive.
    Read,
    /// Waiting for room to write, or for a connection to be established or flushed.
    Write,
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    read: Side,
    write: Side,
    /// The connection is established.
    connected: AtomicBool,
    /// Nothing more will come from the core for this slot.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Side {
    epoch: AtomicU64,
    waiters: Mutex<Waiters>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiters {
    threads: usize,
    /// Nearly always the only one: it costs no allocation.
    first: Option<Waker>,
    others: Vec<Waker>,
}

impl Waiters {
    fn knows(&self, waker: &Waker) -> bool {
        self.first.iter().chain(&self.others).any(|known| known.will_wake(waker))
    }

    /// Returns the oldest task if it had to make room.
    fn add(&mut self, waker: &Waker) -> Option<Waker> {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(waker.clone());
            return None;
        }
        let full = usize::from(self.first.is_some()) + self.others.len() >= MAX_WAKERS;
        let evicted = if full { self.first.take().or_else(|| Some(self.others.remove(0))) } else { None };
        self.others.push(waker.clone());
        evicted
    }
}

impl Slot {
    pub(crate) fn epoch(&self, direction: Direction) -> u64 {
        self.side(direction).epoch.load(Ordering::Acquire)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn set_connected(&self) {
        self.connected.store(true, Ordering::Release);
    }

    pub(crate) fn set_closed(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Blocks until the epoch differs from `seen`; false if `deadline` came first.
    pub(crate) fn wait(&self, direction: Direction, seen: u64, deadline: Option<Instant>) -> bool {
        let side = self.side(direction);
        let mut waiters = side.lock();
        waiters.threads += 1;
        let mut in_time = true;
        while side.epoch.load(Ordering::Acquire) == seen && in_time {
            waiters = match deadline {
                None => side.changed.wait(waiters).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    in_time = !left.is_zero();
                    side.changed
                        .wait_timeout(waiters, left)
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .0
                }
            };
        }
        waiters.threads -= 1;
        side.epoch.load(Ordering::Acquire) != seen
    }

    /// Registers a task to be woken; false if the epoch already differs from `seen`: try again at once.
    pub(crate) fn register(&self, direction: Direction, seen: u64, waker: &Waker) -> bool {
        let side = self.side(direction);
        let mut waiters = side.lock();
        if side.epoch.load(Ordering::Acquire) != seen {
            return false;
        }
        if waiters.knows(waker) {
            return true;
        }
        let evicted = waiters.add(waker);
        drop(waiters);
        if let Some(evicted) = evicted {
            evicted.wake();
        }
        true
    }

    /// One poll of a future: tries, and registers the task if there is nothing yet.
    pub(crate) fn poll_once<T>(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Poll<T> {
        loop {
            let seen = self.epoch(direction);
            if let Some(value) = attempt() {
                return Poll::Ready(value);
            }
            if self.register(direction, seen, cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    /// Advances the epoch and wakes everybody who waits for this direction.
    pub(crate) fn signal(&self, direction: Direction) {
        let mut tasks = Vec::new();
        self.advance(direction, &mut tasks);
        for task in tasks {
            task.wake();
        }
    }

    /// Takes a task off the list again.
    pub(crate) fn forget(&self, direction: Direction, waker: &Waker) {
        let mut waiters = self.side(direction).lock();
        if waiters.first.as_ref().is_some_and(|first| first.will_wake(waker)) {
            waiters.first = None;
        }
        waiters.others.retain(|other| !other.will_wake(waker));
    }

    /// As [`Self::signal`], but leaves it to the caller to wake the tasks, which are added to `tasks`. Whether a thread waited.
    pub(crate) fn advance(&self, direction: Direction, tasks: &mut Vec<Waker>) -> bool {
        let side = self.side(direction);
        let mut waiters = side.lock();
        side.epoch.fetch_add(1, Ordering::AcqRel);
        let threads = waiters.threads;
        tasks.extend(waiters.first.take());
        tasks.append(&mut waiters.others);
        drop(waiters);
        // Notifying costs a system call even when nobody waits.
        if threads > 0 {
            side.changed.notify_all();
        }
        threads > 0
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Side {
    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // Nothing that can panic runs under this lock; a poisoned one is still consistent.
        self.waiters.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::time::Duration;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_signal_between_attempt_and_wait_is_not_lost() {
        let slot = Slot::default();
        let seen = slot.epoch(Direction::Read);
        slot.signal(Direction::Read);
        assert!(slot.wait(Direction::Read, seen, None));
        assert!(!slot.register(Direction::Read, seen, Waker::noop()));
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let slot = Slot::default();
        let seen = slot.epoch(Direction::Write);
        let start = Instant::now();
        assert!(!slot.wait(Direction::Write, seen, Some(start + Duration::from_millis(20))));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn every_waiting_thread_is_woken_by_one_signal() {
        let slot = Arc::new(Slot::default());
        let seen = slot.epoch(Direction::Read);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let slot = slot.clone();
                std::thread::spawn(move || {
                    slot.wait(Direction::Read, seen, Some(Instant::now() + Duration::from_secs(20)))
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        slot.signal(Direction::Read);
        for thread in threads {
            assert!(thread.join().expect("waiter"));
        }
    }

    #[test]
    fn a_task_that_was_forgotten_is_not_woken() {
        let slot = Slot::default();
        let counts: Vec<_> = (0..3).map(|_| Arc::new(Count(AtomicUsize::new(0)))).collect();
        let wakers: Vec<Waker> = counts.iter().cloned().map(Waker::from).collect();
        for forgotten in 0..3 {
            let seen = slot.epoch(Direction::Read);
            for waker in &wakers {
                assert!(slot.register(Direction::Read, seen, waker));
            }
            slot.forget(Direction::Read, &wakers[forgotten]);
            slot.signal(Direction::Read);
        }
        let woken: Vec<_> = counts.iter().map(|count| count.0.load(Ordering::SeqCst)).collect();
        assert_eq!(woken, [2; 3]);
    }

    #[test]
    fn the_same_task_is_stored_once_and_the_table_is_bounded() {
        let slot = Slot::default();
        let seen = slot.epoch(Direction::Read);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        assert!(slot.register(Direction::Read, seen, &waker));
        assert!(slot.register(Direction::Read, seen, &waker));
        for _ in 0..MAX_WAKERS {
            let other = Waker::from(Arc::new(Count(AtomicUsize::new(0))));
            assert!(slot.register(Direction::Read, seen, &other));
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "the oldest task was woken to make room");
        assert_eq!(slot.read.lock().others.len(), MAX_WAKERS);
        slot.signal(Direction::Read);
        assert!(slot.read.lock().others.is_empty());
    }
}
