//! The invariants, checked while the world runs.
//!
//! Each has a name. The first violation is kept with its time; the run ends there, because what follows it proves
//! nothing. `tests/invariants.rs` breaks each one on purpose.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use pilotage_nat::BeaconStats;
use pilotage_proto::audit::Sealed;
use pilotage_proto::{Config, MemoryUse, PathInfo};

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Invariant {
    /// Bytes read from a stream are those that were written, in order.
    Prefix,
    /// The end of a stream is read only behind all bytes that were written before its writer ended it.
    WholeStream,
    /// A stream or datagram comes from the node that it says.
    Authentic,
    /// No datagram is delivered twice.
    DatagramOnce,
    /// No key seals two frames under one nonce.
    NonceOnce,
    /// Nobody is sent more bytes than came in its name, unless it is a known peer.
    NoAmplification,
    /// Data leaves only while less than a window is in flight.
    InFlight,
    /// A congestion window holds at least one segment.
    Window,
    /// A timer that is due is done with when it was handled.
    TimerInThePast,
    /// Work per instant and per second is bounded.
    BusyLoop,
    /// What a process holds stays within its settings.
    Memory,
    /// Nothing is sent to a peer with which nothing is open.
    Silence,
    /// Nothing leaves a node unsealed but key exchange, hole punching and beacon messages.
    NoPlaintext,
    /// No datagram is larger than the settings allow.
    DatagramSize,
    /// A connection reports its end once, and nothing after it.
    ClosedOnce,
    /// The registry's claims have one owner, and its records only grow.
    Registry,
    /// When all faults are over, everybody reaches everybody again.
    Liveness,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Prefix,
        Self::WholeStream,
        Self::Authentic,
        Self::DatagramOnce,
        Self::NonceOnce,
        Self::NoAmplification,
        Self::InFlight,
        Self::Window,
        Self::TimerInThePast,
        Self::BusyLoop,
        Self::Memory,
        Self::Silence,
        Self::NoPlaintext,
        Self::DatagramSize,
        Self::ClosedOnce,
        Self::Registry,
        Self::Liveness,
    ];
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant:?} broken after {at:?}: {detail}")]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// Virtual time since the start.
    pub at: Duration,
    /// What was seen.
    pub detail: String,
}

/// The observer of one world.
#[derive(Debug, Default)]
pub struct Audit {
    pub(super) at: Duration,
    violation: Option<Violation>,
    /// Highest counter sealed under a key and prefix.
    counters: HashMap<(u128, [u8; 4]), Option<u64>>,
    sealed: Vec<Sealed>,
    /// Frames sealed in all.
    pub frames_sealed: u64,
    /// By address that nobody was introduced to: bytes that came in its name, bytes that were sent to it.
    strangers: BTreeMap<SocketAddr, (u64, u64)>,
    /// By such an address: the hosts that were made to believe that it is theirs, and tell their peers so.
    believed: BTreeMap<SocketAddr, BTreeSet<usize>>,
    /// By host and path: what may be in flight. While more is in flight than the window (it was just cut), this is
    /// the bound from before the cut, because proportional rate reduction (RFC 6937) lets segments out meanwhile.
    ceilings: HashMap<(usize, usize), u64>,
}

impl Audit {
    /// The first violation, if any.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Notes a violation unless there is one already.
    pub fn fail(&mut self, invariant: Invariant, detail: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, at: self.at, detail: detail() });
        }
    }

    /// Notes a violation unless `good`.
    pub fn require(&mut self, good: bool, invariant: Invariant, detail: impl FnOnce() -> String) {
        if !good {
            self.fail(invariant, detail);
        }
    }

    /// Looks at what was sealed since the last call. Counters of one key and prefix must rise, so none comes twice.
    pub(super) fn check_nonces(&mut self, sabotage: bool) {
        let mut sealed = std::mem::take(&mut self.sealed);
        pilotage_proto::audit::take(&mut sealed);
        if let (true, Some(last)) = (sabotage, sealed.last().copied()) {
            sealed.push(last);
        }
        for frame in sealed.drain(..) {
            self.on_sealed(frame);
        }
        self.sealed = sealed;
    }

    /// A frame was sealed.
    pub fn on_sealed(&mut self, frame: Sealed) {
        self.frames_sealed += 1;
        let highest = self.counters.entry((frame.key, frame.prefix)).or_default();
        // S1 counts from 0.
        let rises = Some(frame.counter) > *highest;
        *highest = (*highest).max(Some(frame.counter));
        self.require(rises, Invariant::NonceOnce, || {
            format!("counter {} under prefix {:02x?} was used before", frame.counter, frame.prefix)
        });
    }

    /// From now on this address counts as one that nobody knows.
    pub fn watch_stranger(&mut self, addr: SocketAddr) {
        self.strangers.entry(addr).or_default();
    }

    /// A process received bytes in the name of an address.
    pub fn on_received(&mut self, from: SocketAddr, bytes: usize) {
        if let Some(stranger) = self.strangers.get_mut(&from) {
            stranger.0 += bytes as u64;
        }
    }

    /// A host was told by a forged answer that it is at this address. It names that to its peers, who then send there what
    /// the host itself sends, and `first` bytes in all: once for each host, however often it is told.
    pub fn on_believed(&mut self, host: usize, addr: SocketAddr, first: usize) {
        if let Some(stranger) = self.strangers.get_mut(&addr)
            && self.believed.entry(addr).or_default().insert(host)
        {
            stranger.0 += first as u64;
        }
    }

    /// A host sent bytes, to whomever.
    pub fn on_sent_by(&mut self, host: usize, bytes: usize) {
        for (addr, hosts) in &self.believed {
            if hosts.contains(&host)
                && let Some(stranger) = self.strangers.get_mut(addr)
            {
                stranger.0 += bytes as u64;
            }
        }
    }

    /// A process sent bytes to an address (RFC 9000 §8; here without the factor three).
    pub fn on_sent(&mut self, to: SocketAddr, bytes: usize) {
        let Some(stranger) = self.strangers.get_mut(&to) else { return };
        stranger.1 += bytes as u64;
        let (received, sent) = *stranger;
        self.require(sent <= received, Invariant::NoAmplification, || {
            format!("{sent} bytes were sent to {to}, in whose name {received} came")
        });
    }

    /// A beacon never sends more than it received, headers counted.
    pub fn check_beacon(&mut self, stats: &BeaconStats, sabotage: Option<Invariant>) {
        let received = stats.bytes_in + 46 * stats.datagrams_in;
        let sent = stats.bytes_out + 28 * stats.datagrams_out;
        let good = sent <= received && sabotage != Some(Invariant::NoAmplification);
        self.require(good, Invariant::NoAmplification, || {
            format!("a beacon sent {sent} bytes and received at most {received}")
        });
    }

    /// A batch left on a path of a host that so many connections share: `before` and `after` are the path's state
    /// around it.
    pub fn on_batch(&mut self, path: (usize, usize), shared: usize, before: &PathInfo, after: &PathInfo) {
        // Outside the window, for each connection: a tail loss probe, a window probe and two retransmissions after a
        // timeout (spec/recovery.md); and one segment may begin where less than a segment of window is left.
        let bound = after.congestion_window + (1 + 4 * shared as u64) * after.datagram_size as u64;
        let ceiling = self.ceilings.entry(path).or_insert(bound);
        if before.in_flight <= after.congestion_window || bound > *ceiling {
            *ceiling = bound;
        }
        let ceiling = *ceiling;
        let grew = after.in_flight > before.in_flight;
        self.require(!grew || after.in_flight <= ceiling, Invariant::InFlight, || {
            format!(
                "{} bytes in flight, {} before, window {}, bound {ceiling}",
                after.in_flight, before.in_flight, after.congestion_window
            )
        });
        self.require(after.congestion_window + 128 >= after.datagram_size as u64, Invariant::Window, || {
            format!("window {} below one segment of {}", after.congestion_window, after.datagram_size)
        });
    }

    /// What a process holds, against its settings.
    pub fn check_memory(&mut self, used: &MemoryUse, config: &Config) {
        let bounds = [
            // Above the common bound every connection may still hold 64 KiB (and what was in flight).
            (
                "received",
                used.received,
                config.receive_memory + used.connections.min(config.max_connections) * (128 << 10),
            ),
            ("received per connection", used.received, used.connections * (config.recv_buffer + 65_536)),
            ("written", used.written, used.connections * config.send_buffer),
            ("datagrams in", used.datagrams_in, config.datagram_queue * 4),
            ("queued out", used.queued_out, used.peers * (256 + 64 + 64)),
            ("peers", used.peers, config.max_peers),
            ("connections", used.connections, config.max_connections),
            ("events", used.events, 4_096 + 3 * config.max_connections),
            ("lookups", used.lookups, 64),
        ];
        for (what, value, bound) in bounds {
            self.require(value <= bound, Invariant::Memory, || format!("{what}: {value}, bound {bound}"));
        }
    }

    /// Every datagram that a node puts on the wire.
    pub fn check_datagram(&mut self, bytes: &[u8], config: &Config) {
        let sealed = [b"PILS", b"PILA", b"PILP"].iter().any(|magic| bytes.starts_with(*magic))
            || pilotage_wire::s1::Kind::of(bytes).is_some();
        let beacon = bytes.first().is_some_and(|b| *b < 0x10);
        self.require(sealed || beacon, Invariant::NoPlaintext, || {
            format!("a frame begins with {:02x?}", &bytes[..bytes.len().min(8)])
        });
        self.require(bytes.len() <= config.max_datagram_size, Invariant::DatagramSize, || {
            format!("{} bytes, allowed {}", bytes.len(), config.max_datagram_size)
        });
    }
}
