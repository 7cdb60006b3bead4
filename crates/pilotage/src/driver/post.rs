//! Who waits at the socket: the driver, or a thread of the application that waits in a blocking call anyway.
//!
//! A thread that slept until the driver woke it would cost two switches of threads for each answer. So the thread that blocks
//! takes the [`Watch`] if it is free, runs the driver's turns, and leaves the watch as soon as its own wait is over.
//!
//! # Who has it
//!
//! The watch is in one place at a time: with the driver, with one thread of the application, or here.
//!
//! * The driver gives it up when it woke the threads of one stream several times in a row: they are likely to wait again soon.
//!   A connection that is made, used once and closed stays with the driver.
//! * A thread leaves it here when its wait is over, and to the driver after a turn that brought something only for others.
//! * The driver takes it when it has lain here for one to two times [`GRACE`], or at once if it was [called](Post::call) or a
//!   stream ended. So data for somebody else, and deadlines, wait that long at most while the thread that left the watch does
//!   other things. The poller of Linux rounds its time-outs up by as much.
//!
//! A node on which a task (a future) ever waited is left to its driver: tasks can wait for days without a thread that blocks,
//! and an executor's thread must not.
//!
//! # Why no wake-up is lost
//!
//! * *The thread that has the watch* sleeps in the poller, not on its slot. It is in the slot's list as a task whose waker
//!   is [`Rouse`]. It says `asleep`, then registers under the slot's lock, then polls. Whoever advances the slot does so under
//!   the same lock and then asks for `asleep`. If the registration came first, it reads `true` and writes to the poller's
//!   waker, which is remembered until the next poll. If the advance came first, the registration sees the new epoch.
//! * *The driver* sleeps on `called` under the lock of the state: without a limit only while somebody has the watch and had it
//!   for [`GRACE`] (`deep`); whoever leaves the watch sees that and calls. Else it looks again after [`GRACE`].
//! * *A call* ([`Post::call`]) finds the watch here and sets `urgent`, or writes to the poller's waker. If the holder leaves
//!   without another poll, the event stays in the poller until the next holder polls, twice [`GRACE`] later at most.
//! * *Small writes that others left to the holder* (`Shared::finish_small`) are sent by [`Watch::rest`], which says under the
//!   core's lock that from now on nobody is awake.
//! * *A panic* in a turn drops the [`Lead`], which puts the watch back and calls the driver.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::watch::Watch;
use crate::shared::Shared;
use crate::slot::{Direction, Slot};

/// How long the watch may lie here before the driver takes it.
pub(crate) const GRACE: Duration = Duration::from_micros(500);

/// Where the watch lies while nobody has it.
pub(crate) struct Post {
    state: Mutex<State>,
    /// The driver waits here for the watch.
    called: Condvar,
    /// Only the driver may have the watch from now on.
    reserved: AtomicBool,
    rouse: Arc<Rouse>,
    /// The same, as the waker of a thread that has the watch.
    waker: Waker,
}

#[derive(Default)]
struct State {
    watch: Option<Box<Watch>>,
    /// How often it was left.
    left: u64,
    /// The driver should take it at once.
    urgent: bool,
    /// The driver sleeps until it is called.
    deep: bool,
}

/// Ends the poll of whoever has the watch.
struct Rouse {
    poller: mio::Waker,
    /// A thread of the application is about to poll, and its slot has not been advanced yet.
    asleep: AtomicBool,
}

impl Rouse {
    fn now(&self) {
        if let Err(error) = self.poller.wake() {
            tracing::warn!(%error, "the driver could not be woken");
        }
    }
}

impl Wake for Rouse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.asleep.swap(false, Ordering::AcqRel) {
            self.now();
        }
    }
}

impl Post {
    pub(crate) fn new(poller: mio::Waker) -> Self {
        let rouse = Arc::new(Rouse { poller, asleep: AtomicBool::new(false) });
        let waker = rouse.clone().into();
        Self {
            state: Mutex::default(),
            called: Condvar::new(),
            reserved: AtomicBool::new(false),
            rouse,
            waker,
        }
    }

    /// Leaves the watch to the driver for ever. True for the first who asks.
    pub(crate) fn reserve(&self) -> bool {
        !self.is_reserved() && !self.reserved.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::Acquire)
    }

    /// The holder is no longer in the poller.
    pub(super) fn awake(&self) {
        self.rouse.asleep.store(false, Ordering::Release);
    }

    /// Makes somebody look at everything soon.
    pub(crate) fn call(&self) {
        let mut state = self.lock();
        if state.watch.is_none() {
            drop(state);
            return self.rouse.now();
        }
        state.urgent = true;
        drop(state);
        self.called.notify_one();
    }

    /// A stream ended, and with it perhaps the interest of the thread that left the watch here: the driver takes it.
    pub(crate) fn call_if_left(&self) {
        let mut state = self.lock();
        if state.watch.is_some() {
            state.urgent = true;
            drop(state);
            self.called.notify_one();
        }
    }

    pub(super) fn leave(&self, watch: Box<Watch>, urgent: bool) {
        let mut state = self.lock();
        state.watch = Some(watch);
        state.left += 1;
        state.urgent |= urgent || self.is_reserved();
        let call = state.urgent || state.deep;
        state.deep = false;
        drop(state);
        if call {
            self.called.notify_one();
        }
    }

    fn take(&self) -> Option<Box<Watch>> {
        if self.is_reserved() {
            return None;
        }
        let mut state = self.lock();
        if state.urgent { None } else { state.watch.take() }
    }

    /// The driver waits for the watch.
    pub(super) fn guard(&self) -> Box<Watch> {
        let mut state = self.lock();
        // At the last look: how often it had been left, and whether it lay here.
        let mut last = (state.left, false);
        loop {
            let seen = (state.left, state.watch.is_some());
            if (state.urgent || seen == last)
                && let Some(watch) = state.watch.take()
            {
                state.urgent = false;
                return watch;
            }
            // With the same holder for so long it may take hours.
            state.deep = seen == last && !seen.1;
            let looked = seen;
            if state.deep {
                state = self.called.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                last = (state.left, false);
                state.deep = false;
            } else {
                let end = Instant::now() + GRACE;
                let mut left = GRACE;
                while !state.urgent && !left.is_zero() {
                    let waited = self.called.wait_timeout(state, left);
                    state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                    left = end.saturating_duration_since(Instant::now());
                }
                last = looked;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("reserved", &self.reserved).finish_non_exhaustive()
    }
}

/// A thread of the application that has the watch. Dropping it leaves the watch.
struct Lead<'a> {
    post: &'a Post,
    watch: Option<Box<Watch>>,
    urgent: bool,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.post.awake();
        if let Some(watch) = self.watch.take() {
            self.post.leave(watch, self.urgent || std::thread::panicking());
        }
    }
}

impl Shared {
    /// Blocks until the slot's epoch differs from `seen`, false if `deadline` came first; keeps the watch meanwhile if
    /// nobody else does.
    pub(crate) fn wait(
        &self,
        slot: &Slot,
        direction: Direction,
        seen: u64,
        deadline: Option<Instant>,
    ) -> bool {
        if let Some(watch) = self.post.take() {
            self.counters.led.fetch_add(1, Ordering::Relaxed);
            let mut lead = Lead { post: &self.post, watch: Some(watch), urgent: true };
            let in_time = self.lead(&mut lead, slot, direction, seen, deadline);
            drop(lead);
            if let Some(in_time) = in_time {
                return in_time;
            }
        }
        slot.wait(direction, seen, deadline)
    }

    /// `None` if the watch is better left to others before the wait is over.
    fn lead(
        &self,
        lead: &mut Lead<'_>,
        slot: &Slot,
        direction: Direction,
        seen: u64,
        deadline: Option<Instant>,
    ) -> Option<bool> {
        let watch = lead.watch.as_mut()?;
        let outcome = loop {
            let timeout = watch.prepare_sleep(self);
            self.post.rouse.asleep.store(true, Ordering::Release);
            if !slot.register(direction, seen, &self.post.waker) {
                break Some(true);
            }
            let Some(timeout) = timeout.filter(|_| watch.open && !self.post.is_reserved()) else {
                break None;
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break Some(false);
            }
            if watch.turn(self, timeout.into_iter().chain(left).min()).is_err() {
                break None;
            }
            if slot.epoch(direction) != seen {
                break Some(true);
            }
            if watch.threads > 0 {
                break None;
            }
        };
        self.post.awake();
        slot.forget(direction, &self.post.waker);
        let busy = watch.rest(self);
        lead.urgent = busy || outcome.is_none() || self.post.is_reserved();
        outcome
    }
}
