//! What the beacon's thread and the links' thread share.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use mio::Waker;
use pilotage_wire::beacon::Message;

use super::Limits;
use crate::virtual_address::is_virtual;

type Wake = Box<dyn Fn() + Send + Sync>;

/// What links have done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed at once, because there are too many.
    pub refused: u64,
    /// Links that came to be: TLS and WebSocket agreed.
    pub opened: u64,
    /// Links open now.
    pub open: u64,
    /// Connections closed because nothing came for too long.
    pub idle: u64,
    /// Datagrams from links to the beacon.
    pub datagrams_in: u64,
    /// Datagrams from the beacon to links.
    pub datagrams_out: u64,
    /// Messages that are no datagrams, or that no link may carry.
    pub drop_strange: u64,
    /// Datagrams over a link's budget.
    pub drop_budget: u64,
    /// Datagrams that found a queue full.
    pub drop_queue: u64,
}

impl Stats {
    /// Datagrams that were not passed on, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.drop_strange + self.drop_budget + self.drop_queue
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) open: AtomicU64,
    pub(super) idle: AtomicU64,
    pub(super) datagrams_in: AtomicU64,
    pub(super) datagrams_out: AtomicU64,
    pub(super) drop_strange: AtomicU64,
    pub(super) drop_budget: AtomicU64,
    pub(super) drop_queue: AtomicU64,
}

/// Datagrams for links.
#[derive(Debug, Default)]
struct Outbox {
    /// Of open links only.
    queues: HashMap<SocketAddr, VecDeque<Vec<u8>>>,
    /// Links with something to send, each once.
    ready: Vec<SocketAddr>,
}

pub(super) struct Shared {
    limits: Limits,
    inbox: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    outbox: Mutex<Outbox>,
    /// The links' thread was woken and has not looked yet.
    woken: AtomicBool,
    links: Waker,
    beacon: OnceLock<Wake>,
    pub(super) stats: Counters,
}

/// The beacon's end of all links. Cheap to clone.
#[derive(Clone)]
pub struct Side(Arc<Shared>);

impl Side {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// What wakes the beacon's thread when a datagram has come. To be set once, before the server runs.
    pub fn on_arrival(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.beacon.set(Box::new(wake));
    }

    /// The next datagram from a link, with the address that the beacon is to know the link by.
    pub fn take(&self) -> Option<(SocketAddr, Vec<u8>)> {
        lock(&self.0.inbox).pop_front()
    }

    /// Takes what the beacon sends, if it is for a link, or must not go by UDP; `false` if it is for the socket.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) -> bool {
        if !is_virtual(to) {
            // "Punch to that link" leads nowhere.
            return matches!(Message::decode(datagram), Ok(Message::PunchCommand { addr }) if is_virtual(addr));
        }
        if matches!(Message::decode(datagram), Ok(Message::PunchCommand { .. })) {
            // Nothing that this node sends by UDP arrives.
            return true;
        }
        let shared = &self.0;
        let mut outbox = lock(&shared.outbox);
        let Some(queue) = outbox.queues.get_mut(&to) else { return true };
        if queue.len() >= shared.limits.queue {
            shared.stats.drop_queue.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        queue.push_back(datagram.to_vec());
        if queue.len() == 1 {
            outbox.ready.push(to);
            drop(outbox);
            shared.wake_links();
        }
        true
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let stats = &self.0.stats;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            accepted: get(&stats.accepted),
            refused: get(&stats.refused),
            opened: get(&stats.opened),
            open: get(&stats.open),
            idle: get(&stats.idle),
            datagrams_in: get(&stats.datagrams_in),
            datagrams_out: get(&stats.datagrams_out),
            drop_strange: get(&stats.drop_strange),
            drop_budget: get(&stats.drop_budget),
            drop_queue: get(&stats.drop_queue),
        }
    }
}

impl Shared {
    pub(super) fn new(links: Waker, limits: Limits) -> Self {
        Self {
            limits,
            inbox: Mutex::default(),
            outbox: Mutex::default(),
            woken: AtomicBool::new(false),
            links,
            beacon: OnceLock::new(),
            stats: Counters::default(),
        }
    }

    fn wake_links(&self) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Err(error) = self.links.wake()
        {
            tracing::warn!(%error, "carriage: the links could not be woken");
        }
    }

    /// A link is open: it may be sent to.
    pub(super) fn know(&self, address: SocketAddr) {
        self.stats.opened.fetch_add(1, Ordering::Relaxed);
        self.stats.open.fetch_add(1, Ordering::Relaxed);
        lock(&self.outbox).queues.entry(address).or_default();
    }

    pub(super) fn forget(&self, address: SocketAddr) {
        if lock(&self.outbox).queues.remove(&address).is_some() {
            self.stats.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The links that have something to send.
    pub(super) fn take_ready(&self) -> Vec<SocketAddr> {
        self.woken.store(false, Ordering::Release);
        std::mem::take(&mut lock(&self.outbox).ready)
    }

    pub(super) fn next_for(&self, address: SocketAddr) -> Option<Vec<u8>> {
        lock(&self.outbox).queues.get_mut(&address)?.pop_front()
    }

    /// A datagram that the link did not take after all.
    pub(super) fn put_back(&self, address: SocketAddr, datagram: Vec<u8>) {
        if let Some(queue) = lock(&self.outbox).queues.get_mut(&address) {
            queue.push_front(datagram);
        }
    }

    /// A datagram from a link, for the beacon.
    pub(super) fn arrived(&self, from: SocketAddr, datagram: Vec<u8>) {
        // Nobody can punch to a link, and a link cannot punch.
        if matches!(Message::decode(&datagram), Ok(Message::PunchRequest { .. })) {
            self.stats.drop_strange.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut inbox = lock(&self.inbox);
        if inbox.len() >= self.limits.inbox {
            self.stats.drop_queue.fetch_add(1, Ordering::Relaxed);
            return;
        }
        inbox.push_back((from, datagram));
        let first = inbox.len() == 1;
        drop(inbox);
        self.stats.datagrams_in.fetch_add(1, Ordering::Relaxed);
        if first && let Some(wake) = self.beacon.get() {
            wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
