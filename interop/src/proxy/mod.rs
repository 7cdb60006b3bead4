//! A UDP proxy between real processes: an emulated link in user space, and what was seen on it.
//!
//! Clients send to [`Proxy::address`]; every client address gets a socket of its own towards the server, as
//! behind a NAT. Both directions go through one [`link::Link`] each, which all clients share. Time counts from
//! the first datagram of a client. Every decision follows the seed and the order of the packets; that order
//! and the times are those of real processes.

pub(crate) mod link;
mod relay;
mod sights;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::Failure;
use link::{Counts, Impairment, Link};
pub(crate) use sights::Sights;

/// What changes under a client's feet, as a NAT that forgets does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// The source port that the server sees.
    Port,
    /// The source address that the server sees.
    Address,
}

/// When the mapping of every client changes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rebinding {
    pub(crate) change: Change,
    pub(crate) first_ms: u32,
    pub(crate) every_ms: u32,
}

/// Two fixed ends whose datagrams share the link with the clients; each datagram wraps a packet of another
/// protocol in `overhead` bytes, which do not count.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) near: UdpSocket,
    pub(crate) far: UdpSocket,
    pub(crate) near_peer: SocketAddr,
    pub(crate) far_peer: SocketAddr,
    pub(crate) overhead: usize,
    /// Called for each datagram before it is passed on.
    pub(crate) mend: fn(&mut [u8]),
}

/// What a proxy is to do.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) server: SocketAddr,
    pub(crate) up: Impairment,
    pub(crate) down: Impairment,
    pub(crate) seed: u64,
    pub(crate) rebinding: Option<Rebinding>,
    /// For this long only the first datagram of each client passes.
    pub(crate) gate: Option<Duration>,
    pub(crate) wire: Option<Wire>,
}

#[cfg(test)]
impl Setup {
    /// The same in both directions, nothing else.
    fn both(server: SocketAddr, link: Impairment, seed: u64) -> Self {
        Self { server, up: link, down: link, seed, rebinding: None, gate: None, wire: None }
    }
}

/// What one direction did and saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Direction {
    pub(crate) counts: Counts,
    pub(crate) sights: Sights,
}

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// From clients to the server.
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    /// Client addresses.
    pub(crate) clients: usize,
    /// Source addresses that the server got to see, in this order.
    pub(crate) sources: Vec<SocketAddr>,
    /// Datagrams of clients that the gate stopped.
    pub(crate) gated: u64,
    /// Datagrams of the server while a gate was closed.
    pub(crate) answers_at_gate: u64,
    /// The most that the server had sent to a gated client beyond what it had got from it, in bytes; below 0
    /// if it always sent less.
    pub(crate) excess_at_gate: Option<i64>,
    /// Datagrams of the wire that passed, in both directions.
    pub(crate) wire_passed: u64,
    /// From the first datagram to the last that was delivered.
    pub(crate) lasted: Duration,
    /// Longest time in which nothing was delivered to clients, between two datagrams that were.
    pub(crate) longest_pause: Duration,
}

/// What the thread works on.
#[derive(Debug)]
pub(crate) struct State {
    up: Link,
    down: Link,
    seen: Seen,
}

/// A running proxy; it stops on drop.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(setup: Setup) -> Result<Self, Failure> {
        let any_port = match setup.server.ip() {
            IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)),
        };
        let front = UdpSocket::bind(any_port)?;
        let address = front.local_addr()?;
        let state = State {
            up: Link::new(setup.up, setup.seed.wrapping_mul(2)),
            down: Link::new(setup.down, setup.seed.wrapping_mul(2) + 1),
            seen: Seen::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let stop = Arc::new(AtomicBool::new(false));
        let relay = relay::Relay::new(setup, front, state.clone(), stop.clone())?;
        let thread = std::thread::Builder::new().name("proxy".into()).spawn(move || relay.run())?;
        Ok(Self { address, state, stop, thread: Some(thread) })
    }

    /// Where clients send to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn seen(&self) -> Seen {
        let state = lock(&self.state);
        let mut seen = state.seen.clone();
        seen.up.counts = state.up.counts;
        seen.down.counts = state.down.counts;
        seen
    }

    /// Waits until `condition` holds for what was seen.
    #[cfg(test)]
    fn wait(&self, limit: Duration, condition: impl Fn(&Seen) -> bool) -> bool {
        let deadline = std::time::Instant::now() + limit;
        while !condition(&self.seen()) {
            if std::time::Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the proxy has shown itself as a failed scenario.
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
