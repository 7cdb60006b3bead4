//! Passes events on.
//!
//! Each connection has a reader (the caller's thread), a writer and a queue between all publishers and its writer. A
//! publisher never waits for a subscriber: whose queue is full is too slow and is dropped, or, if it publishes itself and
//! so may not read at all (peers do that), no longer sent anything.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::wire::{Event, WireError};
use crate::budget::{Budget, Taken};
use crate::duplex::{Duplex, Io};

/// Events that wait for one subscriber at most.
pub const MAX_QUEUED_EVENTS: usize = 1024;

/// Bytes that wait for one subscriber at most; a single event may be longer.
pub const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that wait for all subscribers together at most.
pub const MAX_TOTAL_BYTES: usize = 128 * 1024 * 1024;

/// Bytes of events that are being read, over all publishers, at most.
pub const MAX_READING: usize = 64 * 1024 * 1024;

/// The subscription must come within this time.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a writer may be busy after its connection has ended.
const LINGER: Duration = Duration::from_secs(1);

/// What a broker has done.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events published.
    pub published: AtomicU64,
    /// Copies put into queues.
    pub delivered: AtomicU64,
    /// Subscribers dropped because their queue was full.
    pub dropped: AtomicU64,
    /// Publishers that did not read and are no longer sent anything.
    pub muted: AtomicU64,
}

/// The subscribers of one node.
#[derive(Debug)]
pub struct Broker {
    subscribers: Mutex<Subscribers>,
    counters: Counters,
    queued: Arc<Budget>,
    reading: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Subscribers {
    next: u64,
    by_id: BTreeMap<u64, Arc<Subscriber>>,
}

struct Subscriber {
    topic: Vec<u8>,
    queue: Mutex<Queue>,
    filled: Condvar,
    published: AtomicBool,
    abort: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber")
            .field("topic", &String::from_utf8_lossy(&self.topic))
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Arc<[u8]>, Taken)>,
    bytes: usize,
    /// The writer has an event in its hands.
    writing: bool,
    /// Nothing more is put in.
    closed: bool,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            subscribers: Mutex::default(),
            counters: Counters::default(),
            queued: Budget::new(MAX_TOTAL_BYTES),
            reading: Budget::new(MAX_READING),
        }
    }
}

impl Broker {
    /// Counters so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections with a subscription.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Serves one connection until the peer ends it or is dropped.
    ///
    /// # Errors
    /// The stream fails, or what comes is not an event.
    pub fn serve<D: Duplex + 'static>(&self, stream: &Arc<D>) -> Result<(), WireError> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SUBSCRIBE_TIMEOUT))?;
        let Some(first) = self.read(&**stream)? else { return Ok(()) };
        stream.set_read_timeout(None)?;
        let aborting = stream.clone();
        let subscriber = Arc::new(Subscriber {
            topic: first.topic,
            queue: Mutex::default(),
            filled: Condvar::new(),
            published: AtomicBool::new(false),
            abort: Box::new(move || aborting.abort()),
        });
        let id = self.add(subscriber.clone());
        let outcome = thread::scope(|scope| {
            let writer = thread::Builder::new()
                .name("events-writer".into())
                .spawn_scoped(scope, || write_events(&**stream, &subscriber));
            let outcome = match writer {
                Ok(_) => self.read_events(&**stream, id, &subscriber),
                Err(error) => Err(error.into()),
            };
            self.lock().by_id.remove(&id);
            subscriber.end();
            outcome
        });
        let finished = stream.finish();
        outcome.and_then(|()| Ok(finished?))
    }

    fn read<D: Duplex + ?Sized>(&self, stream: &D) -> Result<Option<Event>, WireError> {
        let mut taken = self.reading.begin();
        Event::read(&mut Io(stream), &mut |more| taken.grow(more))
    }

    fn read_events<D: Duplex + ?Sized>(
        &self,
        stream: &D,
        id: u64,
        subscriber: &Subscriber,
    ) -> Result<(), WireError> {
        while let Some(event) = self.read(stream)? {
            subscriber.published.store(true, Ordering::Release);
            self.publish(Some(id), &event)?;
        }
        Ok(())
    }

    /// Gives `event` to every subscriber but `from`. Never waits.
    ///
    /// # Errors
    /// The event is too long.
    fn publish(&self, from: Option<u64>, event: &Event) -> Result<(), WireError> {
        let bytes: Arc<[u8]> = event.encode()?.into();
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        let takers: Vec<_> = {
            let all = self.lock();
            let wanted =
                all.by_id.iter().filter(|(id, other)| Some(**id) != from && event.matches(&other.topic));
            wanted.map(|(id, other)| (*id, other.clone())).collect()
        };
        for (id, taker) in takers {
            if taker.put(&bytes, &self.queued) {
                self.counters.delivered.fetch_add(1, Ordering::Relaxed);
            } else if self.lock().by_id.remove(&id).is_some() {
                self.too_slow(&taker);
            }
        }
        Ok(())
    }

    /// Publishes an event of this node itself.
    ///
    /// # Errors
    /// Topic or payload are too long.
    pub fn publish_local(&self, event: &Event) -> Result<(), WireError> {
        self.publish(None, event)
    }

    fn too_slow(&self, subscriber: &Subscriber) {
        if subscriber.published.load(Ordering::Acquire) {
            self.counters.muted.fetch_add(1, Ordering::Relaxed);
            subscriber.lock().empty();
        } else {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            subscriber.close();
            (subscriber.abort)();
        }
    }

    fn add(&self, subscriber: Arc<Subscriber>) -> u64 {
        let mut all = self.lock();
        all.next += 1;
        let id = all.next;
        all.by_id.insert(id, subscriber);
        id
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn empty(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

impl Subscriber {
    /// `false` if the queue is full.
    fn put(&self, bytes: &Arc<[u8]>, budget: &Arc<Budget>) -> bool {
        let mut queue = self.lock();
        if queue.closed {
            return true;
        }
        let fits = queue.waiting.is_empty() || queue.bytes + bytes.len() <= MAX_QUEUED_BYTES;
        if !fits || queue.waiting.len() >= MAX_QUEUED_EVENTS {
            return false;
        }
        let Some(taken) = budget.take(bytes.len()) else { return false };
        queue.bytes += bytes.len();
        queue.waiting.push_back((bytes.clone(), taken));
        self.filled.notify_all();
        true
    }

    /// Waits for the next event for the writer; `None` when there will be none.
    fn next(&self) -> Option<(Arc<[u8]>, Taken)> {
        let mut queue = self.lock();
        queue.writing = false;
        self.filled.notify_all();
        loop {
            if queue.closed {
                return None;
            }
            if let Some((bytes, taken)) = queue.waiting.pop_front() {
                queue.bytes -= bytes.len();
                queue.writing = true;
                return Some((bytes, taken));
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.empty();
        self.filled.notify_all();
    }

    /// The connection has ended: a writer that does not come back from its last event is freed by force.
    fn end(&self) {
        self.close();
        let queue = self.lock();
        let waited = self.filled.wait_timeout_while(queue, LINGER, |queue| queue.writing);
        let stuck = waited.map_or(true, |(queue, _)| queue.writing);
        if stuck {
            (self.abort)();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_events<D: Duplex + ?Sized>(stream: &D, subscriber: &Subscriber) {
    while let Some((bytes, taken)) = subscriber.next() {
        let written: io::Result<()> = Io(stream).write_all(&bytes);
        drop(taken);
        if written.is_err() {
            // The reader finds out as well.
            subscriber.close();
        }
    }
}
