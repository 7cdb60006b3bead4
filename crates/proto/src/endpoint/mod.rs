//! One UDP socket's worth of peers: demultiplexing, tables, timers (spec/tunnel.md §2, spec/stream.md §2).
//!
//! The endpoint owns tunnels by peer node id and finds connections by [`ConnectionId`]. It decides
//! nothing that a tunnel or connection can decide: it routes datagrams in, collects what they have to
//! tell or to send, and keeps one ordered table of deadlines. A deadline in the table may be earlier
//! than the real one (it is moved later only when it fires), so a busy connection costs no table
//! operation per packet.

/// Splits the endpoint into one tunnel and what that tunnel may use. A macro, because the borrow
/// checker sees disjoint fields only inside one function.
macro_rules! split {
    ($self:ident, $index:expr, $now:expr) => {
        $self.tunnels.get_mut($index as usize).and_then(Option::as_deref_mut).map(|tunnel| {
            (
                tunnel,
                $crate::tunnel::TunnelCx {
                    now: $now,
                    cfg: &$self.cfg,
                    identity: &$self.identity,
                    local: $self.local,
                    rng: &mut $self.rng,
                    relay: $self.beacon_addr,
                    locals: &$self.paths.locals,
                    secure: &mut $self.secure,
                    stats: &mut $self.stats,
                    events: &mut $self.events,
                },
            )
        })
    };
}
mod any_datagram;
mod beacons;
mod gate;
mod limits;
mod memory;
mod moving;
mod mux;
mod own;
mod paths;
mod peers;
mod receive;
mod secure;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use pilotage_nat::BeaconClient;
use pilotage_wire::frame;
use pilotage_wire::{Address, NodeId};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::config::Config;
use crate::crypto::Identity;
use crate::event::{ConnectionId, DatagramIn, EndpointStats, Event};
use crate::secure::Secure;
use crate::timer_table::TimerTable;
use crate::transmit::{Transmit, TransmitBuf};
use crate::tunnel::Tunnel;

use any_datagram::AnyQueue;
use limits::ExchangeLimiter;
use peers::{PendingLookup, Punches};

/// Events that wait to be polled, besides those that are merged per connection. The oldest goes first.
const EVENTS_MAX: usize = 4_096;

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TimerKey {
    Tunnel(u32),
    Connection(u32, u32),
}

/// Where a [`ConnectionId`] points.
#[derive(Debug, Clone, Copy)]
struct ConnRef {
    generation: u32,
    place: Option<(u32, u32)>,
}

/// Connections that wait for `accept` on one port.
#[derive(Debug, Default)]
struct ListenQueue {
    waiting: VecDeque<ConnectionId>,
    /// Connections that answered a SYN and are not established yet, the oldest first: they will want a place too.
    half_open: VecDeque<HalfOpen>,
    /// Those that had to give their place away, at most as many as the queue has: their last packet may be under way,
    /// and then they take a free place after all.
    outside: VecDeque<ConnectionId>,
    /// Streams of S1 that found no place. They have come with all that they carry, so they wait.
    behind: VecDeque<ConnectionId>,
    announced: bool,
}

/// An incoming connection that is not established yet.
#[derive(Debug, Clone, Copy)]
struct HalfOpen {
    tunnel: u32,
    id: ConnectionId,
    since: Instant,
}

/// Datagrams that wait for `recv_datagram` on one port.
#[derive(Debug, Default)]
struct DatagramQueue {
    waiting: VecDeque<DatagramIn>,
    announced: bool,
}

/// One UDP socket's worth of tunnels and connections. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Endpoint {
    cfg: Config,
    identity: Identity,
    local: Address,
    rng: ChaCha20Rng,
    beacon: BeaconClient,
    beacon_addr: Option<SocketAddr>,
    tunnels: Vec<Option<Box<Tunnel>>>,
    free_tunnels: Vec<u32>,
    by_node: HashMap<NodeId, u32>,
    ready: VecDeque<u32>,
    dirty: Vec<u32>,
    /// The latest time that any call brought.
    now: Instant,
    refs: Vec<ConnRef>,
    free_refs: Vec<u32>,
    open_connections: usize,
    /// Memory of the receive buffers of all connections.
    unread: usize,
    listeners: HashMap<u16, ListenQueue>,
    datagram_ports: HashMap<u16, DatagramQueue>,
    any_datagram: Option<AnyQueue>,
    timers: TimerTable<TimerKey>,
    lookups: HashMap<NodeId, PendingLookup>,
    exchange_limiter: ExchangeLimiter,
    punches: Punches,
    gate: gate::Gate,
    own: own::Own,
    paths: paths::Paths,
    secure: Option<Box<Secure>>,
    events: VecDeque<Event>,
    next_port: u16,
    next_token: u64,
    stats: EndpointStats,
    closing: bool,
}

impl Endpoint {
    /// An endpoint for `identity` at `address`. `seed` are 32 bytes of the operating system's random
    /// source; nothing else random is ever read.
    pub fn new(config: Config, identity: Identity, address: Address, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let next_port = streams::first_ephemeral_port(&mut rng);
        let mut beacon = BeaconClient::new();
        beacon.set_seed(beacons::nonce_seed(&seed));
        beacon.set_node(address.node, now);
        beacon.set_key(identity.public_key(), now);
        Self {
            cfg: config,
            identity,
            local: address,
            rng,
            beacon,
            beacon_addr: None,
            tunnels: Vec::new(),
            free_tunnels: Vec::new(),
            by_node: HashMap::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            now,
            refs: Vec::new(),
            free_refs: Vec::new(),
            open_connections: 0,
            unread: 0,
            listeners: HashMap::new(),
            datagram_ports: HashMap::new(),
            any_datagram: None,
            timers: TimerTable::default(),
            lookups: HashMap::new(),
            exchange_limiter: ExchangeLimiter::default(),
            punches: Punches::default(),
            gate: gate::Gate::default(),
            own: own::Own::default(),
            paths: paths::Paths::default(),
            secure: None,
            events: VecDeque::new(),
            next_port,
            next_token: 1,
            stats: EndpointStats::default(),
            closing: false,
        }
    }

    /// Our address.
    pub fn local_address(&self) -> Address {
        self.local
    }

    /// Takes the address that a registry assigned instead of the derived one. Refused (`false`) once a
    /// tunnel exists, because peers know us by it.
    pub fn set_local_address(&mut self, now: Instant, address: Address) -> bool {
        if self.by_node.is_empty() || address == self.local {
            self.local = address;
            self.beacon.set_node(address.node, now);
            if let Some(secure) = &mut self.secure {
                secure.set_address(address);
            }
            return true;
        }
        false
    }

    /// Our Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.identity.public_key()
    }

    /// Counters since the start.
    pub fn stats(&self) -> EndpointStats {
        self.stats
    }

    // ------------------------------------------------------------------ output

    /// Writes the next batch of datagrams into `buf`. Call until `None`.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut TransmitBuf) -> Option<Transmit> {
        let message = self.beacon.poll_transmit_with(now, &self.identity);
        self.follow_beacon(now);
        if self.beacon.take_nat_news() {
            self.on_observed();
        }
        if let Some((destination, message)) = message {
            let size = message.len();
            buf.data_mut()[..size].copy_from_slice(&message);
            return Some(self.count(Transmit { destination, size, segment_size: None }));
        }
        if let Some((destination, datagram)) = self.punches.pop() {
            let size = match &datagram[..] {
                // Opens our NAT's mapping towards the peer; nothing is read from it (draft-01 facts §4, §9).
                [] => frame::encode_pilp(buf.data_mut()).unwrap_or(0),
                answer => {
                    buf.data_mut()[..answer.len()].copy_from_slice(answer);
                    answer.len()
                }
            };
            return Some(self.count(Transmit { destination, size, segment_size: None }));
        }
        self.settle_dirty();
        while let Some(&index) = self.ready.front() {
            let Some((tunnel, mut cx)) = split!(self, index, now) else {
                self.ready.pop_front();
                continue;
            };
            let out = tunnel.poll_transmit(buf, &mut cx);
            if out.is_none() || !tunnel.wants_poll(now, cx.locals) {
                tunnel.in_ready = false;
                self.ready.pop_front();
            } else if self.ready.len() > 1 {
                self.ready.rotate_left(1);
            }
            self.mark_dirty(index, now);
            if let Some(transmit) = out
                && !self.keep_own(&transmit, buf)
            {
                if Some(transmit.destination) == self.beacon_addr {
                    self.beacon.on_relaying(now);
                }
                return Some(self.count(transmit));
            }
        }
        None
    }

    fn count(&mut self, transmit: Transmit) -> Transmit {
        let datagrams = transmit.segment_size.map_or(1, |s| transmit.size.div_ceil(s));
        self.stats.datagrams_sent += datagrams as u64;
        self.stats.bytes_sent += transmit.size as u64;
        transmit
    }

    /// The next thing that happened. Call until `None` after every batch of inputs.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.settle_dirty();
        let event = self.events.pop_front()?;
        match &event {
            Event::Readable(id) => self.with_queued(*id, |q| q.readable = false),
            Event::Writable(id) => self.with_queued(*id, |q| q.writable = false),
            Event::Incoming { port } => {
                if let Some(queue) = self.listeners.get_mut(port) {
                    queue.announced = false;
                }
            }
            Event::Datagram { port } => {
                if let Some(queue) = self.datagram_ports.get_mut(port) {
                    queue.announced = false;
                }
            }
            Event::AnyDatagram => {
                if let Some(queue) = &mut self.any_datagram {
                    queue.polled();
                }
            }
            _ => {}
        }
        Some(event)
    }

    fn with_queued(&mut self, id: ConnectionId, f: impl FnOnce(&mut crate::connection::Notify)) {
        if let Some((tunnel, slot)) = self.stream_place(id) {
            let mux = self.tunnel_mut(tunnel).and_then(|t| t.mux.as_deref_mut());
            if let Some(stream) = mux.and_then(|mux| mux.streams.get_mut(slot)) {
                f(&mut stream.queued);
            }
            return;
        }
        if let Some((tunnel, slot)) = self.place(id)
            && let Some(conn) = self.tunnel_mut(tunnel).and_then(|t| t.slots.get_mut(slot))
        {
            f(&mut conn.queued);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called next. May be early, never late.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.settle_dirty();
        let table = self.timers.first();
        let own = (!self.own.is_empty()).then_some(self.now);
        [own, table, self.beacon.poll_timeout()].into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_lookups(now);
        self.take_own(now);
        while let Some(key) = self.timers.pop_due(now) {
            match key {
                TimerKey::Tunnel(index) => {
                    if let Some((tunnel, mut cx)) = split!(self, index, now) {
                        tunnel.registered = None;
                        if tunnel.deadline(now, cx.locals, cx.cfg).is_some_and(|t| t <= now) {
                            tunnel.on_timeout(&mut cx);
                        }
                        if std::mem::take(&mut tunnel.lost_way) {
                            self.beacon.rediscover(now);
                        }
                        self.mark_dirty(index, now);
                    }
                }
                TimerKey::Connection(index, slot) => self.on_connection_timer(index, slot, now),
            }
        }
    }

    fn on_connection_timer(&mut self, index: u32, slot: u32, now: Instant) {
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        let cfg = cx.cfg;
        let suspicious = tunnel.with_connection(slot, cfg, now, |c, ccx| {
            c.registered = None;
            if c.deadline(ccx.path, ccx.cfg).is_some_and(|t| t <= now) {
                c.on_timeout(ccx);
            }
            c.suspects_silence()
        });
        if suspicious == Some(true) {
            tunnel.suspect_silence(&mut cx);
            tunnel.doubt_way(now);
        }
        tunnel.blocked = false; // what was in flight may be counted as lost now
        tunnel.slots.touch(slot);
        self.mark_dirty(index, now);
    }

    // ------------------------------------------------------------------ bookkeeping after every step

    /// Collects what a tunnel and its touched connections have to tell, send or wait for.
    ///
    /// Done once per batch of inputs, not per packet.
    fn settle_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            if let Some(tunnel) = self.tunnel_mut(index) {
                tunnel.dirty = false;
                self.settle(index, self.now);
            }
        }
    }

    /// Notes that a tunnel has to be settled before anything is polled.
    fn mark_dirty(&mut self, index: u32, now: Instant) {
        self.now = self.now.max(now);
        if let Some(tunnel) = self.tunnels.get_mut(index as usize).and_then(Option::as_deref_mut)
            && !tunnel.dirty
        {
            tunnel.dirty = true;
            self.dirty.push(index);
        }
    }

    fn settle(&mut self, index: u32, now: Instant) {
        self.convert(index, now);
        self.settle_streams(index, now);
        loop {
            let Some(tunnel) = self.tunnels.get_mut(index as usize).and_then(Option::as_deref_mut) else {
                return;
            };
            let Some(slot) = tunnel.slots.take_touched() else { break };
            self.settle_connection(index, slot, now);
        }
        let Some(tunnel) = self.tunnels.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        tunnel.path.squeezed = self.unread > self.cfg.receive_memory;
        let locals = &self.paths.locals;
        let deadline = tunnel.deadline(now, locals, &self.cfg);
        self.timers.register(&mut tunnel.registered, deadline, TimerKey::Tunnel(index));
        let begins =
            !tunnel.can_send() && tunnel.has_work() && tunnel.may_begin() && !tunnel.awaits_confirmation(now);
        let wants = begins || tunnel.wants_poll(now, locals);
        if wants && !tunnel.in_ready {
            tunnel.in_ready = true;
            self.ready.push_back(index);
        }
        while self.events.len() > EVENTS_MAX + 3 * self.open_connections {
            self.events.pop_front();
        }
    }

    fn settle_connection(&mut self, index: u32, slot: u32, now: Instant) {
        let Some((tunnel, _)) = split!(self, index, now) else { return };
        let Tunnel { slots, path, .. } = tunnel;
        let Some(conn) = slots.get_mut(slot) else { return };
        let unread = conn.allocated();
        self.unread = self.unread + unread - conn.counted_unread;
        conn.counted_unread = unread;
        let notify = std::mem::take(&mut conn.notify);
        let id = conn.id;
        if notify.connected && !conn.incoming {
            self.events.push_back(Event::Connected(id));
        }
        if notify.readable && !conn.queued.readable && !conn.detached {
            conn.queued.readable = true;
            self.events.push_back(Event::Readable(id));
        }
        if notify.writable && !conn.queued.writable && !conn.detached {
            conn.queued.writable = true;
            self.events.push_back(Event::Writable(id));
        }
        if notify.closed && !conn.detached {
            self.events.push_back(Event::Closed(id));
        }
        let deadline = conn.deadline(path, &self.cfg);
        self.timers.register(&mut conn.registered, deadline, TimerKey::Connection(index, slot));
        let announce = notify.connected && conn.incoming && !conn.announced;
        let (port, over) = (conn.local.port, conn.is_over() && conn.detached);
        // An attempt that failed before it was announced has no owner who could drop it.
        let orphan = conn.incoming && !conn.announced && conn.is_over();
        tunnel.slots.mark_ready(slot);
        if announce {
            self.announce(index, slot, id, port, now);
        } else if over || orphan {
            self.forget(index, slot, now);
        }
    }

    fn tunnel_mut(&mut self, index: u32) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(index as usize).and_then(Option::as_deref_mut)
    }

    fn tunnel(&self, index: u32) -> Option<&Tunnel> {
        self.tunnels.get(index as usize).and_then(Option::as_deref)
    }

    fn place(&self, id: ConnectionId) -> Option<(u32, u32)> {
        let r = self.refs.get(id.index as usize)?;
        if r.generation == id.generation { r.place } else { None }
    }
}

#[cfg(test)]
mod tests;
