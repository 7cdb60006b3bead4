//! UDP blocked: datagrams to and from the beacon through a link to the hub (`spec/reach.md §1`).
//!
//! One thread per node that has a hub. It notices that the beacon does not answer, opens a link, and then whatever the
//! endpoint sends to the beacon goes into a bounded queue for that link instead of the socket. The endpoint sees the same
//! beacon address all the time. The thread holds the node only weakly, so that opening a link cannot keep it alive.

mod memory;
mod thread;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilotage_carriage::Dialed;

pub(crate) use memory::EvidenceMemory;
pub(crate) use thread::{Plan, Prepared};

/// Datagrams, and bytes, that wait for the link.
const MAX_QUEUE: usize = 1_024;
const MAX_BYTES: usize = 2 << 20;

/// How datagrams reach the beacon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarriageStatus {
    /// The hub's WebSocket.
    pub url: String,
    /// Whether datagrams for the beacon go through it now, because UDP does not work.
    pub carried: bool,
    /// Whether the beacon is asked by UDP and has not answered.
    pub in_doubt: bool,
    /// Time since that last changed between UDP and the link.
    pub since: Option<Duration>,
    /// Links opened since the start.
    pub links: u64,
    /// SHA-256 of the hub's certificate, once a link was open.
    pub fingerprint: Option<[u8; 32]>,
    /// Why the last attempt to open a link failed.
    pub last_error: Option<String>,
    /// Datagrams that went through links.
    pub datagrams_sent: u64,
    /// Datagrams that came through links.
    pub datagrams_received: u64,
    /// Datagrams that found the queue full.
    pub dropped: u64,
}

/// What an attempt to open a link has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarriageProbe {
    /// Time from the first packet to the open link.
    pub took: Duration,
    /// SHA-256 of the hub's certificate.
    pub fingerprint: [u8; 32],
    /// The hub's clock is ahead of ours by so many milliseconds, give or take half of `took`.
    pub clock_ahead_ms: Option<i64>,
}

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Facts {
    in_doubt: bool,
    changed: Option<Instant>,
    links: u64,
    fingerprint: Option<[u8; 32]>,
    last_error: Option<String>,
}

/// What the thread shares with those who send and receive.
#[derive(Debug)]
pub(crate) struct Carrier {
    plan: Plan,
    url: String,
    waker: mio::Waker,
    carried: AtomicBool,
    /// Something went to the beacon by UDP, and the thread knows.
    sent: AtomicBool,
    /// Something came from the beacon by UDP.
    heard: AtomicBool,
    network_changed: AtomicBool,
    stop: AtomicBool,
    queue: Mutex<Queue>,
    facts: Mutex<Facts>,
    datagrams_sent: AtomicU64,
    datagrams_received: AtomicU64,
    dropped: AtomicU64,
}

impl Carrier {
    fn new(plan: Plan, waker: mio::Waker) -> Self {
        Self {
            url: plan.url.to_string(),
            plan,
            waker,
            carried: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            network_changed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            queue: Mutex::default(),
            facts: Mutex::default(),
            datagrams_sent: AtomicU64::new(0),
            datagrams_received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Takes a batch that goes to the beacon, if it does not go by UDP.
    pub(crate) fn take(&self, destination: SocketAddr, bytes: &[u8], segment: usize) -> bool {
        if destination != self.plan.beacon {
            return false;
        }
        if !self.carried.load(Ordering::Acquire) {
            if !self.sent.load(Ordering::Relaxed) {
                self.sent.store(true, Ordering::Release);
                self.wake();
            }
            return false;
        }
        let mut queue = lock(&self.queue);
        let was_empty = queue.datagrams.is_empty();
        for datagram in bytes.chunks(segment.max(1)) {
            if queue.datagrams.len() >= MAX_QUEUE || queue.bytes + datagram.len() > MAX_BYTES {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            queue.bytes += datagram.len();
            queue.datagrams.push_back(datagram.to_vec());
        }
        drop(queue);
        if was_empty {
            self.wake();
        }
        true
    }

    /// A datagram came by UDP; true if it is not for the endpoint, because the beacon is spoken to through the link.
    pub(crate) fn on_datagram(&self, from: SocketAddr) -> bool {
        if from != self.plan.beacon {
            return false;
        }
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Release);
            if self.carried.load(Ordering::Relaxed) {
                self.wake();
            }
        }
        self.carried.load(Ordering::Relaxed)
    }

    /// Opens a link and closes it again.
    pub(crate) fn try_link(&self) -> Result<CarriageProbe, String> {
        let dialed = self.plan.dial(&self.url)?;
        dialed.link.close();
        let Dialed { took, fingerprint, clock_ahead_ms, .. } = dialed;
        Ok(CarriageProbe { took, fingerprint, clock_ahead_ms })
    }

    pub(crate) fn network_changed(&self) {
        self.network_changed.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_carried(&self) -> bool {
        self.carried.load(Ordering::Acquire)
    }

    pub(crate) fn status(&self) -> CarriageStatus {
        let facts = lock(&self.facts);
        CarriageStatus {
            url: self.url.clone(),
            carried: self.is_carried(),
            in_doubt: facts.in_doubt,
            since: facts.changed.map(|at| at.elapsed()),
            links: facts.links,
            fingerprint: facts.fingerprint,
            last_error: facts.last_error.clone(),
            datagrams_sent: self.datagrams_sent.load(Ordering::Relaxed),
            datagrams_received: self.datagrams_received.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        let datagram = queue.datagrams.pop_front()?;
        queue.bytes -= datagram.len();
        Some(datagram)
    }

    fn put_back(&self, datagram: Vec<u8>) {
        let mut queue = lock(&self.queue);
        queue.bytes += datagram.len();
        queue.datagrams.push_front(datagram);
    }

    fn clear(&self) {
        *lock(&self.queue) = Queue::default();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::warn!(%error, "the carrier could not be woken");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_for_a_link_is_bounded() {
        let poll = mio::Poll::new().expect("poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("waker");
        let beacon = "127.0.0.1:9".parse().expect("address");
        let url = "wss://hub".parse().expect("URL");
        let plan = Plan { beacon, url, pins: Vec::new(), memory: EvidenceMemory::default() };
        let carrier = Carrier::new(plan, waker);
        assert!(!carrier.take(beacon, b"x", 1), "UDP is used until it is known not to work");
        carrier.carried.store(true, Ordering::Release);
        assert!(!carrier.take("127.0.0.1:8".parse().expect("address"), b"x", 1), "not the beacon");
        assert!(carrier.take(beacon, b"aabbc", 2));
        assert_eq!(
            [carrier.next(), carrier.next(), carrier.next()].map(|d| d.map_or(0, |d| d.len())),
            [2, 2, 1]
        );
        for _ in 0..MAX_QUEUE + 5 {
            carrier.take(beacon, &[1; 100], 100);
        }
        assert_eq!(carrier.status().dropped, 5);
        carrier.clear();
        for _ in 0..MAX_QUEUE {
            carrier.take(beacon, &[1; 60_000], 60_000);
        }
        assert_eq!(lock(&carrier.queue).datagrams.len(), MAX_BYTES / 60_000);
    }
}
