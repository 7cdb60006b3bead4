//! Worker threads that serve records and claims on connections which the registry's server hands over.
//!
//! A worker answers questions from the [`Shelf`] at once, unless a head has to be signed by other nodes first. Writes go over
//! a bounded queue to threads that check signatures by the dozen, from there to the shelf, and their answers come back to
//! the worker.
//!
//! Bounds: connections in all and per source; input buffer; unanswered writes of a connection, after which it is not read;
//! unread output, likewise; writes that wait for a check, after which they are refused as busy; a slow reader and an idle
//! connection are cut.

mod answer;
mod conn;
mod points;
mod replica;
mod verify;

use super::message::Reply;
use super::shelf::{Look, Shelf};
use crate::replica::node::{Replica, Sign};
use conn::Conn;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use verify::Checks;

const WAKER: Token = Token(usize::MAX);
/// Requests of one connection decided per turn.
const MAX_REQUESTS_PER_TURN: usize = 256;
/// Granularity of the timers.
const TICK: Duration = Duration::from_secs(1);

/// Bounds and threads.
#[derive(Debug, Clone)]
pub struct BookConfig {
    /// Threads that answer. Default: one.
    pub workers: usize,
    /// Threads that check signatures. Default: one less than the machine has, at least one.
    pub checkers: usize,
    /// Most connections. Default: 8,192.
    pub max_connections: usize,
    /// Most connections of one IP address. Default: 4,096.
    pub max_connections_per_source: usize,
    /// A connection without a request for so long is closed. Default: 5 minutes.
    pub idle: Duration,
    /// A connection that leaves answers unread for so long is closed. Default: 30 s.
    pub slow_reader: Duration,
    /// What keeps records for others, and knows who is alive. Default: none.
    pub replica: Option<Arc<Replica>>,
    /// The key that signed heads before this hub became one of a cluster. Default: none.
    pub former: Option<Former>,
}

/// A key that signs heads no more, and may only say who does.
#[derive(Clone)]
pub struct Former {
    /// The key.
    pub key: [u8; 32],
    /// Signs with it.
    pub sign: Sign,
}

impl std::fmt::Debug for Former {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Former").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Default for BookConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: 1,
            checkers: (threads - 1).max(1),
            max_connections: 8_192,
            max_connections_per_source: 4_096,
            idle: Duration::from_secs(300),
            slow_reader: Duration::from_secs(30),
            replica: None,
            former: None,
        }
    }
}

/// Running threads that serve a [`Shelf`]. Dropping it ends them.
#[derive(Debug)]
pub struct Book {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next: AtomicUsize,
}

/// Counters of a [`Book`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BookStats {
    /// Open connections.
    pub connections: usize,
    /// Requests answered since the start.
    pub requests: u64,
    /// Writes refused because too many waited.
    pub busy: u64,
}

#[derive(Debug)]
struct Shared {
    shelf: Arc<dyn Shelf>,
    config: BookConfig,
    stop: AtomicBool,
    workers: Vec<Mailbox>,
    checks: Checks,
    connections: AtomicUsize,
    sources: Mutex<HashMap<IpAddr, usize>>,
    requests: AtomicU64,
    busy: AtomicU64,
}

/// What others leave for a worker.
#[derive(Debug)]
struct Mailbox {
    waker: Waker,
    arrived: Mutex<Vec<Arrival>>,
    answered: Mutex<Vec<Answer>>,
}

#[derive(Debug)]
struct Arrival {
    stream: TcpStream,
    source: IpAddr,
    input: Vec<u8>,
}

/// Where the answer to a write has to go.
#[derive(Debug, Clone, Copy)]
struct Place {
    worker: usize,
    conn: usize,
    /// Tells apart connections that had the same place.
    generation: u64,
    number: u32,
}

#[derive(Debug)]
struct Answer {
    place: Place,
    reply: Reply,
}

impl Book {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no event queue or no thread left.
    pub fn start(shelf: Arc<dyn Shelf>, config: BookConfig) -> io::Result<Self> {
        let polls = (0..config.workers.max(1)).map(|_| Poll::new()).collect::<Result<Vec<_>, _>>()?;
        let mailbox = |poll: &Poll| {
            let waker = Waker::new(poll.registry(), WAKER)?;
            Ok(Mailbox { waker, arrived: Mutex::default(), answered: Mutex::default() })
        };
        let workers = polls.iter().map(mailbox).collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            shelf,
            stop: AtomicBool::new(false),
            workers,
            checks: Checks::default(),
            connections: AtomicUsize::new(0),
            sources: Mutex::default(),
            requests: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            config,
        });
        let mut book = Self { shared: shared.clone(), threads: Vec::new(), next: AtomicUsize::new(0) };
        for (at, poll) in polls.into_iter().enumerate() {
            let shared = shared.clone();
            book.spawn("registry-book", move || Worker::new(shared, at, poll).run())?;
        }
        for _ in 0..book.shared.config.checkers.max(1) {
            let shared = shared.clone();
            book.spawn("registry-check", move || verify::run(&shared))?;
        }
        Ok(book)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// Takes a connection over; `input` is what was read after the magic. One over a bound is closed.
    pub(crate) fn adopt(&self, stream: TcpStream, source: IpAddr, input: Vec<u8>) {
        if !self.shared.admit(source) {
            return;
        }
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.shared.workers.len();
        let mailbox = &self.shared.workers[worker];
        lock(&mailbox.arrived).push(Arrival { stream, source, input });
        // A failure means that the worker is gone, and with it the mailbox soon.
        let _ = mailbox.waker.wake();
    }

    /// State now.
    #[must_use]
    pub fn stats(&self) -> BookStats {
        BookStats {
            connections: self.shared.connections.load(Ordering::Relaxed),
            requests: self.shared.requests.load(Ordering::Relaxed),
            busy: self.shared.busy.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.checks.stop();
        for mailbox in &self.shared.workers {
            let _ = mailbox.waker.wake();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn admit(&self, source: IpAddr) -> bool {
        let mut sources = lock(&self.sources);
        let of_source = sources.get(&source).copied().unwrap_or(0);
        let all = self.connections.load(Ordering::Relaxed);
        if all >= self.config.max_connections || of_source >= self.config.max_connections_per_source {
            return false;
        }
        sources.insert(source, of_source + 1);
        self.connections.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn leave(&self, source: IpAddr) {
        let mut sources = lock(&self.sources);
        if let Some(count) = sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&source);
            }
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        for answer in answers {
            let mailbox = &self.workers[answer.place.worker];
            let first = {
                let mut answered = lock(&mailbox.answered);
                answered.push(answer);
                answered.len() == 1
            };
            // Whoever finds the box empty wakes the worker, which empties it.
            if first {
                let _ = mailbox.waker.wake();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the server is the IO edge: it reads the clock for idle connections"
)]
fn clock() -> Instant {
    Instant::now()
}

struct Worker {
    shared: Arc<Shared>,
    at: usize,
    poll: Poll,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    ready: Vec<usize>,
    generation: u64,
}

impl Worker {
    fn new(shared: Arc<Shared>, at: usize, poll: Poll) -> Self {
        Self { shared, at, poll, conns: Vec::new(), free: Vec::new(), ready: Vec::new(), generation: 0 }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut next_tick = clock() + TICK;
        while !self.shared.stop.load(Ordering::Acquire) {
            let wait = if self.ready.is_empty() {
                next_tick.saturating_duration_since(clock())
            } else {
                Duration::ZERO
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "registry's event queue failed");
                    return;
                }
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(at) => self.wake(at, event.is_readable() || event.is_error()),
                }
            }
            let now = clock();
            self.collect(now);
            self.turn(now);
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now);
            }
        }
    }

    fn wake(&mut self, at: usize, readable: bool) {
        if let Some(Some(conn)) = self.conns.get_mut(at) {
            conn.readable |= readable;
            if !std::mem::replace(&mut conn.queued, true) {
                self.ready.push(at);
            }
        }
    }

    fn collect(&mut self, now: Instant) {
        let (arrived, answered) = {
            let mailbox = &self.shared.workers[self.at];
            (std::mem::take(&mut *lock(&mailbox.arrived)), std::mem::take(&mut *lock(&mailbox.answered)))
        };
        for mut arrival in arrived {
            let at = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut arrival.stream, Token(at), interest).is_err() {
                self.shared.leave(arrival.source);
                self.free.push(at);
                continue;
            }
            self.generation += 1;
            self.conns[at] =
                Some(Conn::new(arrival.stream, arrival.source, arrival.input, self.generation, now));
            self.wake(at, true);
        }
        for Answer { place, reply } in answered {
            let Some(Some(conn)) = self.conns.get_mut(place.conn) else { continue };
            if conn.generation == place.generation {
                conn.waiting = conn.waiting.saturating_sub(1);
                reply.encode(place.number, &mut conn.output);
                self.wake(place.conn, false);
            }
        }
    }

    fn turn(&mut self, now: Instant) {
        // One snapshot for all questions of the turn.
        let shared = self.shared.clone();
        let mut look: Option<Box<dyn Look + '_>> = None;
        for at in std::mem::take(&mut self.ready) {
            let Some(Some(conn)) = self.conns.get_mut(at) else { continue };
            conn.queued = false;
            conn.read();
            for _ in 0..MAX_REQUESTS_PER_TURN {
                if conn.is_congested() {
                    break;
                }
                let Some((number, request)) = conn.next_request(now) else { break };
                self.shared.requests.fetch_add(1, Ordering::Relaxed);
                let place = Place { worker: self.at, conn: at, generation: conn.generation, number };
                match answer::decide(&shared, &mut look, place, request) {
                    Some(reply) => reply.encode(number, &mut conn.output),
                    None => conn.waiting += 1,
                }
            }
            conn.compact();
            conn.flush(now);
            if conn.is_finished() {
                self.close(at);
            } else if conn.has_work() && !std::mem::replace(&mut conn.queued, true) {
                self.ready.push(at);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        for at in 0..self.conns.len() {
            let config = &self.shared.config;
            let overdue = self.conns[at]
                .as_ref()
                .is_some_and(|conn| conn.overdue(now, config.idle, config.slow_reader));
            if overdue {
                self.close(at);
            }
        }
    }

    fn close(&mut self, at: usize) {
        let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { return };
        let _ = self.poll.registry().deregister(&mut conn.stream);
        self.shared.leave(conn.source);
        self.free.push(at);
    }
}
