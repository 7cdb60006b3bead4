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
//!   other things. The poller of Linux rounds its time-outs up by as much. Where the watch is taken again and again for long, the
//!   driver looks less often, down to once in [`GRACE_MOST`] times as long: each look takes the core from somebody, 4 µs of the
//!   20 that a request takes.
//!
//! A node on which a task (a future) ever waited is left to its driver: tasks can wait for days without a thread that blocks,
//! and an executor's thread must not. Unless one of them *drives* it ([`Drive`](super::task::Drive)): then the watch lies here between two
//! polls of that task, nobody else takes it, and a call wakes the task, until that is dropped or the node closes.
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
//!   without another poll, the event stays in the poller until the next holder polls, twice [`GRACE`] times [`GRACE_MOST`] later at most.
//! * *Small writes that others left to the holder* (`Shared::finish_small`) are sent by [`Watch::rest`], which says under the
//!   core's lock that from now on nobody is awake.
//! * *A task that drives* leaves its waker here when it asks for the watch, under the lock under which calls look for it; so
//!   a call wakes it from then on, and what was called before is done by whoever leaves the watch to it.
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
/// After so many looks in a row between which somebody had it, it may lie here longer by [`GRACE`], and up to so many times as long: who
/// asks and waits without a pause is not interrupted two thousand times a second.
const TRUST: u32 = 8;
const GRACE_MOST: u32 = 8;

/// Where the watch lies while nobody has it.
pub(crate) struct Post {
    state: Mutex<State>,
    /// The driver waits here for the watch.
    called: Condvar,
    /// Only the driver, or a task that drives, may have the watch from now on.
    reserved: AtomicBool,
    /// A task drives: the driver leaves the watch to it.
    driven: AtomicBool,
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
    /// The task that drives.
    task: Option<Task>,
    /// No task may drive any more.
    over: bool,
}

/// A task that drives, or is about to.
struct Task {
    number: u64,
    waker: Waker,
    /// It has the watch.
    holds: bool,
}

/// What a task that wants to drive is told.
pub(super) enum Sought {
    /// It drives.
    Watch(Box<Watch>),
    /// It will be woken when it may.
    Wait,
    /// Another one drives.
    Taken,
    /// The node is closing.
    Over,
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
            driven: AtomicBool::new(false),
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
        if let Some(task) = &state.task {
            let (waker, held) = (task.waker.clone(), task.holds || state.watch.is_some());
            drop(state);
            if !held {
                self.rouse.now();
            }
            return waker.wake();
        }
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
        if state.watch.is_some() && state.task.is_none() {
            state.urgent = true;
            drop(state);
            self.called.notify_one();
        }
    }

    pub(super) fn leave(&self, watch: Box<Watch>, urgent: bool) {
        let mut state = self.lock();
        state.watch = Some(watch);
        state.left += 1;
        if let Some(task) = &state.task {
            let waker = task.waker.clone();
            drop(state);
            return waker.wake();
        }
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
        // Looks in a row between which somebody had it.
        let mut turns = 0_u32;
        loop {
            if state.task.is_some() {
                state = self.called.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                (last, turns) = ((state.left, false), 0);
                continue;
            }
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
                (last, turns) = ((state.left, false), 0);
                state.deep = false;
            } else {
                turns = if seen.0 == last.0 { 0 } else { turns.saturating_add(1) };
                let grace = GRACE * (1 + turns / TRUST).min(GRACE_MOST);
                let end = Instant::now() + grace;
                let mut left = grace;
                while !state.urgent && !left.is_zero() {
                    let waited = self.called.wait_timeout(state, left);
                    state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                    left = end.saturating_duration_since(Instant::now());
                }
                last = looked;
            }
        }
    }

    /// A task drives, or is about to.
    pub(super) fn is_driven(&self) -> bool {
        self.driven.load(Ordering::Acquire)
    }

    /// A task wants to drive, or goes on. Its number tells it from others.
    pub(super) fn seek(&self, number: u64, waker: &Waker) -> Sought {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.over {
            return Sought::Over;
        }
        if state.task.is_none() {
            self.driven.store(true, Ordering::Release);
            self.reserved.store(true, Ordering::Release);
        }
        let task = state.task.get_or_insert_with(|| Task { number, waker: waker.clone(), holds: false });
        if task.number != number {
            return Sought::Taken;
        }
        if !task.waker.will_wake(waker) {
            task.waker.clone_from(waker);
        }
        task.holds = state.watch.is_some();
        state.urgent = false;
        if let Some(watch) = state.watch.take() {
            return Sought::Watch(watch);
        }
        drop(guard);
        // Whoever has it sees at the end of the turn that a task wants it.
        self.rouse.now();
        Sought::Wait
    }

    /// The task that drives has been polled.
    pub(super) fn put_back(&self, watch: Box<Watch>) {
        let mut state = self.lock();
        state.watch = Some(watch);
        state.left += 1;
        match &mut state.task {
            Some(task) => task.holds = false,
            // The node was closed meanwhile.
            None => {
                state.urgent = true;
                drop(state);
                self.called.notify_one();
            }
        }
    }

    /// The task of this number does not drive any more: the driver does.
    pub(super) fn stop_driving(&self, number: u64) {
        let mut state = self.lock();
        if state.task.as_ref().is_some_and(|task| task.number == number) {
            state.task = None;
            self.back_to_the_driver(state);
        }
    }

    /// The node closes: tasks may not drive it any more, because whoever waits for its end may be on their thread.
    pub(crate) fn end_driving(&self) {
        let mut state = self.lock();
        state.over = true;
        if let Some(task) = state.task.take() {
            self.back_to_the_driver(state);
            task.waker.wake();
        }
    }

    fn back_to_the_driver(&self, mut state: MutexGuard<'_, State>) {
        self.driven.store(false, Ordering::Release);
        state.urgent = state.watch.is_some();
        drop(state);
        self.called.notify_one();
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
