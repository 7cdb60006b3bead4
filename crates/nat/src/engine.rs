//! The beacon: tells nodes their address, introduces them to each other, relays between them.
//!
//! `spec/nat.md §2` to `§4`, §7 to §9. One [`BeaconEngine`] serves one UDP socket, and a second one that helps nodes
//! to find out how their NATs behave.
//!
//! # Why it never amplifies
//!
//! UDP sources can be forged, so whoever makes the beacon send must have paid for it: **every byte sent
//! was paid for by a byte received before, and no byte pays twice**. In detail:
//!
//! * Datagrams are weighed as what they cost a link: the IP packet, at least 46 bytes, to which Ethernet
//!   pads ([`wire_size`]). A 5-byte discover and its 8-byte reply weigh the same; over IPv6 a reply
//!   outweighs a bare discover, and must wait for a second one or a padded one.
//! * A reply goes to the source of the discover and is paid for by it, or by what that registered
//!   address has saved from datagrams that were not answered.
//! * A punch request pays for one command, which goes to the target; the command to the requester is sent
//!   only if the request was padded, or savings cover it. Both ends must be registered, the requester at
//!   the address the request came from. A target gets at most [`BeaconConfig::punch_per_target`].
//! * A relayed frame leaves as one datagram that is no longer than the one that brought it.
//!
//! So nothing is ever sent to an address at which no node is registered but replies to its own messages,
//! and in all the beacon sends no more than it received. Other beacons, which the operator named and which share a
//! key, are outside of this account: what is carried to them grows by 18 bytes, and they are told who is here.
//!
//! # Bounds
//!
//! [`BeaconConfig::max_nodes`] registrations of under 256 bytes each and under 1 KiB for a proof, two fixed tables of
//! source budgets, [`BeaconConfig::max_remote`] nodes of other beacons, one buffer of a datagram. Each call does work
//! for one datagram, [`BeaconEngine::handle_timeout`] looks at up to 4,096 registrations.

mod config;
mod peers;
mod proof;
mod relay;
mod table;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{Extension, Message};
use pilotage_wire::frame::MAX_DATAGRAM;

use self::peers::Peers;
use self::proof::Cookies;
use self::table::{Registration, Table};
use crate::budget::{PrefixBuckets, TokenBucket};
use crate::scope::is_unicast;

pub use self::config::{BeaconConfig, BeaconStats, Verify};

/// Which of a beacon's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The one that all know.
    Main,
    /// The other one, for probes only.
    Other,
}

/// How a datagram came.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Its source.
    pub from: SocketAddr,
    /// To which socket it came.
    pub port: Port,
    /// Its destination, where the system says it.
    pub to: Option<SocketAddr>,
}

/// Says which key the registry names for a node; `None` where it does not know the node.
pub type KeySource = Arc<dyn Fn(NodeId) -> Option<[u8; 32]> + Send + Sync>;

/// The server half of the beacon protocol.
///
/// Feed every received datagram to [`handle_datagram`](Self::handle_datagram) or [`handle`](Self::handle), which hand
/// what must be sent to a closure, at once. Call [`handle_timeout`](Self::handle_timeout) when
/// [`next_timeout`](Self::next_timeout) is due; being late only costs memory, and time until other beacons hear of a
/// new node.
pub struct BeaconEngine {
    config: BeaconConfig,
    table: Table,
    prefixes: PrefixBuckets,
    proof_prefixes: PrefixBuckets,
    relay_prefixes: PrefixBuckets,
    messages: TokenBucket,
    proofs: TokenBucket,
    relay_bytes: TokenBucket,
    cookies: Cookies,
    peers: Peers,
    key_source: Option<KeySource>,
    next_sweep: Option<Instant>,
    stats: BeaconStats,
    scratch: Box<[u8]>,
}

impl fmt::Debug for BeaconEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeaconEngine").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

type Out<'a> = &'a mut dyn FnMut(Port, SocketAddr, &[u8]);

/// Why a message between two nodes was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Unreachable,
    OverBudget,
    NotPermitted,
}

impl BeaconEngine {
    /// A beacon that knows nobody. `seed` is secret randomness that keeps others from choosing with whom
    /// they share a budget, and from making cookies. For tests; see [`with_secret`](Self::with_secret).
    pub fn new(config: BeaconConfig, seed: u64) -> Self {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&seed.to_be_bytes());
        Self::with_secret(config, secret)
    }

    /// A beacon that knows nobody. `secret` are 32 bytes of the operating system's random source.
    pub fn with_secret(config: BeaconConfig, secret: [u8; 32]) -> Self {
        let cookies = Cookies::new(&secret);
        let seed = cookies.seed();
        let peers = Peers::new(&config, seed);
        Self {
            table: Table::new(seed),
            prefixes: PrefixBuckets::new(seed),
            proof_prefixes: PrefixBuckets::new(seed),
            relay_prefixes: PrefixBuckets::new(seed),
            messages: TokenBucket::default(),
            proofs: TokenBucket::default(),
            relay_bytes: TokenBucket::default(),
            cookies,
            peers,
            key_source: None,
            next_sweep: None,
            stats: BeaconStats::default(),
            scratch: vec![0; MAX_DATAGRAM].into_boxed_slice(),
            config,
        }
    }

    /// Asks this registry which key an id belongs to. The answer must come at once: it is asked for each proof.
    pub fn set_key_source(&mut self, source: KeySource) {
        self.key_source = Some(source);
    }

    /// As [`handle`](Self::handle), for a beacon with one socket.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        data: &[u8],
        out: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        let arrival = Arrival { from, port: Port::Main, to: None };
        self.handle(now, &arrival, data, &mut |_, to, data| out(to, data));
    }

    /// Handles one received datagram. Calls `out` at most twice, with what to send from which socket to where.
    pub fn handle(&mut self, now: Instant, arrival: &Arrival, data: &[u8], out: Out<'_>) {
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += data.len() as u64;
        let Ok(message) = Message::decode(data) else {
            self.stats.malformed += 1;
            return;
        };
        let from = arrival.from;
        if !is_unicast(from) {
            self.stats.bad_source += 1;
            return;
        }
        if let Message::Extension(extension) = message {
            return self.handle_extension(now, arrival, data, extension, out);
        }
        if arrival.port == Port::Other {
            self.stats.not_for_beacons += 1;
            return;
        }
        match message {
            Message::Discover { node } => self.discover(now, from, node, false, data.len(), out),
            Message::DiscoverEx { node } => self.discover(now, from, node, true, data.len(), out),
            Message::PunchRequest { node, target } => self.punch(now, from, node, target, data.len(), out),
            Message::Relay { src, dst, frame } => self.relay(now, from, src, dst, frame, out),
            // Never answered, so two beacons cannot be made to talk to each other for ever.
            Message::DiscoverReply { .. }
            | Message::PunchCommand { .. }
            | Message::Deliver { .. }
            | Message::DeliverEx { .. }
            | Message::Gossip { .. }
            | Message::Extension(_) => self.stats.not_for_beacons += 1,
        }
    }

    fn handle_extension(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        data: &[u8],
        extension: Extension<'_>,
        out: Out<'_>,
    ) {
        if let Extension::Probe { from_other_port, nonce } = extension {
            return self.probe(now, arrival, from_other_port, nonce, data.len(), out);
        }
        if arrival.port == Port::Other {
            self.stats.not_for_beacons += 1;
            return;
        }
        match extension {
            Extension::Hello { renew, node, nonce } if self.config.verify.is_some() => {
                self.hello(now, arrival.from, node, (nonce, renew), data.len(), out);
            }
            Extension::Prove { .. } if self.config.verify.is_some() => {
                self.prove(now, arrival, data, &extension, out);
            }
            Extension::Sync { boot, echo, number, proven, nodes, tag } => {
                let told = peers::Told { boot, echo, number, proven, nodes, tag };
                match self.peers.on_sync(now, arrival.from, data, &told) {
                    true => self.stats.syncs += 1,
                    false => self.stats.bad_beacon += 1,
                }
            }
            Extension::Carry { proven, src, dst, tag, frame } => {
                self.carried(now, arrival.from, proven, (src, dst), tag, frame, out);
            }
            _ => self.stats.not_for_beacons += 1,
        }
    }

    /// Forgets registrations that have run out, some at each call.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|due| due <= now) {
            // A large table takes many sweeps.
            let steps = if fault::point!("nat.beacon.slow_sweep") { 1 } else { SWEEP_STEP };
            self.table.sweep(now, self.config.registration_ttl, steps);
            self.next_sweep = (self.table.len() > 0).then(|| now + SWEEP_INTERVAL);
        }
    }

    /// Tells other beacons who is here, as far as that is due.
    pub fn poll_beacons(&mut self, now: Instant, out: &mut impl FnMut(SocketAddr, &[u8])) {
        let Self { peers, table, config, stats, .. } = self;
        peers.poll(now, table, config.registration_ttl, &mut |to, data| {
            stats.datagrams_out += 1;
            stats.bytes_out += data.len() as u64;
            out(to, data);
        });
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`poll_beacons`](Self::poll_beacons) has something to do;
    /// `None` while nobody is registered and there is no other beacon.
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.next_sweep, self.peers.next()].into_iter().flatten().min()
    }

    /// The counters.
    pub fn stats(&self) -> BeaconStats {
        BeaconStats {
            registered: self.table.len() as u64,
            proven: self.table.proven() as u64,
            remote: self.peers.remote() as u64,
            ..self.stats
        }
    }

    /// The configured beacons, and how long ago each was last heard.
    pub fn beacons(&self, now: Instant) -> Vec<(SocketAddr, Option<Duration>)> {
        self.peers.heard(now)
    }

    /// `spec/nat.md §2`.
    fn discover(
        &mut self,
        now: Instant,
        from: SocketAddr,
        node: NodeId,
        extended: bool,
        len: usize,
        out: Out<'_>,
    ) {
        if !self.within_budget(now, from) {
            return;
        }
        self.stats.discovers += 1;
        let named = node != NodeId::UNREGISTERED && node != NodeId::BROADCAST;
        let registered = named && self.register(now, from, node, extended);
        let mut credit = wire_size(from, len);
        if registered {
            credit += self.savings(node).map_or(0, std::mem::take);
        }
        if !fault::point!("nat.beacon.lose_reply") {
            self.send_paid(Port::Main, from, &Message::DiscoverReply { addr: from }, &mut credit, out);
        }
        if registered {
            self.save(node, credit);
        }
    }

    /// `spec/nat.md §3`.
    fn punch(
        &mut self,
        now: Instant,
        from: SocketAddr,
        node: NodeId,
        target: NodeId,
        len: usize,
        out: Out<'_>,
    ) {
        if !self.within_budget(now, from) {
            return;
        }
        let Some(place) = self.refresh(now, from, node) else { return };
        let proven = match self.table.get_mut(place) {
            Some(known) => {
                known.note_addressed(now, target);
                known.is_proven()
            }
            None => false,
        };
        let mut credit = wire_size(from, len) + self.savings(node).map_or(0, std::mem::take);
        match self.commanded_target(now, from, (node, proven), target) {
            Err(dropped) => self.count_dropped(dropped),
            Ok(target) => {
                // The target first: it does not know yet that somebody wants to reach it.
                let command = Message::PunchCommand { addr: from };
                if self.send_paid(Port::Main, target, &command, &mut credit, out) {
                    self.stats.punches += 1;
                    let command = Message::PunchCommand { addr: target };
                    self.send_paid(Port::Main, from, &command, &mut credit, out);
                } else {
                    self.stats.over_budget += 1;
                }
            }
        }
        self.save(node, credit);
    }

    /// Where to send a command for `target`, if one may be sent to it.
    fn commanded_target(
        &mut self,
        now: Instant,
        from: SocketAddr,
        (node, proven): (NodeId, bool),
        target: NodeId,
    ) -> Result<SocketAddr, Dropped> {
        let rate = self.config.punch_per_target;
        let place = self.live(now, target).ok_or(Dropped::Unreachable)?;
        let target = self.table.get_mut(place).ok_or(Dropped::Unreachable)?;
        let same_family = target.address.ip().to_canonical().is_ipv4() == from.ip().to_canonical().is_ipv4();
        if target.address == from || !same_family {
            return Err(Dropped::Unreachable);
        }
        if !target.accepts(now, node, proven) {
            return Err(Dropped::NotPermitted);
        }
        // Many others want to reach this node.
        if !target.commands.take(now, rate, 1) || fault::point!("nat.beacon.target_busy") {
            return Err(Dropped::OverBudget);
        }
        Ok(target.address)
    }

    /// `spec/nat.md §8`: what a node wants to know of its NAT.
    fn probe(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        from_other_port: bool,
        nonce: u64,
        len: usize,
        out: Out<'_>,
    ) {
        if !self.within_budget(now, arrival.from) {
            return;
        }
        self.stats.probes += 1;
        let [main, other] = self.config.ports;
        let (sibling_port, sibling) = match arrival.port {
            Port::Main => (other, Port::Other),
            Port::Other => (main, Port::Main),
        };
        let port = match (from_other_port, sibling_port) {
            (false, _) => arrival.port,
            // There is no other port to answer from.
            (true, 0) => return,
            (true, _) => sibling,
        };
        let reply = Extension::ProbeReply { nonce, other_port: sibling_port, addr: arrival.from };
        let mut credit = wire_size(arrival.from, len);
        self.send_paid(port, arrival.from, &Message::Extension(reply), &mut credit, out);
    }

    fn count_dropped(&mut self, dropped: Dropped) {
        match dropped {
            Dropped::Unreachable => self.stats.unreachable += 1,
            Dropped::OverBudget => self.stats.over_budget += 1,
            Dropped::NotPermitted => self.stats.not_permitted += 1,
        }
    }

    /// Takes one message from the budgets of the source's prefix and of the beacon.
    fn within_budget(&mut self, now: Instant, from: SocketAddr) -> bool {
        // The prefix first: a noisy one must not use up what belongs to all.
        let within = !fault::point!("nat.beacon.over_budget")
            && self.prefixes.take(now, self.config.messages_per_prefix, from)
            && self.messages.take(now, self.config.messages_total, 1);
        if !within {
            self.stats.over_budget += 1;
        }
        within
    }

    /// Binds `node` to the address its discover came from. `spec/nat.md §2.2`.
    fn register(&mut self, now: Instant, from: SocketAddr, node: NodeId, extended: bool) -> bool {
        let prefix_slot = self.prefixes.slot(from);
        let ttl = self.config.registration_ttl;
        if let Some(place) = self.table.find(node) {
            return self.register_again(now, from, place, extended);
        }
        if self.config.require_proof {
            return false;
        }
        let unproven = |table: &Table| table.len() - table.proven();
        let full = |engine: &Self| {
            engine.table.len() >= engine.config.max_nodes
                || unproven(&engine.table) >= engine.config.max_unproven
        };
        if full(self) {
            self.table.sweep(now, ttl, SWEEP_STEP_WHEN_FULL);
        }
        if full(self)
            || fault::point!("nat.beacon.table_full")
            || self.table.count_of_prefix(false, prefix_slot) >= self.config.max_nodes_per_prefix
        {
            self.stats.table_full += 1;
            return false;
        }
        let mut registration = Registration::new(node, now, from, prefix_slot);
        registration.extended = extended;
        self.insert(now, registration);
        true
    }

    /// A discover for an id that is in the table.
    fn register_again(&mut self, now: Instant, from: SocketAddr, place: u32, extended: bool) -> bool {
        let prefix_slot = self.prefixes.slot(from);
        let ttl = self.config.registration_ttl;
        let Some(known) = self.table.get(place) else { return false };
        let (live, node) = (known.is_live(now, ttl), known.node);
        let silent = now.saturating_duration_since(known.seen);
        // A datagram of the old address, on its way for long, may have been a sign of life just now.
        let silent_enough =
            silent >= self.config.takeover_after.min(ttl) && !fault::point!("nat.beacon.takeover_refused");
        let same = known.address == from;
        // What a key holds is not moved without it.
        let may_move =
            if known.is_proven() { !live } else { known.address.ip() == from.ip() || silent_enough };
        if !same && !may_move {
            self.stats.takeovers_refused += 1;
            return false;
        }
        if live && same
            || !known.is_proven() && known.prefix_slot == prefix_slot && !self.config.require_proof
        {
            let Some(known) = self.table.get_mut(place) else { return false };
            if !same {
                // Savings belong to an address; the budgets stay, so that moving does not refill them.
                known.savings = 0;
            }
            (known.address, known.seen, known.extended) = (from, now, extended);
            return true;
        }
        // It comes from elsewhere, or it starts anew.
        if self.config.require_proof
            || self.table.count_of_prefix(false, prefix_slot) >= self.config.max_nodes_per_prefix
        {
            self.stats.table_full += u64::from(!self.config.require_proof);
            return false;
        }
        let Some(old) = self.table.remove(node) else { return false };
        let fresh = Registration::new(node, now, from, prefix_slot);
        self.insert(now, Registration { extended, ..fresh.with_budgets_of(&old) });
        true
    }

    fn insert(&mut self, now: Instant, registration: Registration) {
        self.peers.note_new(registration.node, now);
        self.table.insert(registration);
        self.next_sweep.get_or_insert(now + SWEEP_INTERVAL);
    }

    /// The place of `node` if it is registered at `from`, which then counts as a sign of life.
    fn refresh(&mut self, now: Instant, from: SocketAddr, node: NodeId) -> Option<u32> {
        let place = self.live(now, node).filter(|&place| {
            let known = self.table.get_mut(place).filter(|known| known.address == from);
            known.is_some_and(|known| {
                known.seen = now;
                true
            })
        });
        if place.is_none() {
            self.stats.not_registered += 1;
        }
        place
    }

    fn live(&mut self, now: Instant, node: NodeId) -> Option<u32> {
        let ttl = self.config.registration_ttl;
        // The beacon has been restarted, or the node's refreshes were lost.
        if fault::point!("nat.beacon.forget_node") {
            self.table.remove(node);
        }
        let place = self.table.find(node)?;
        self.table.get(place).is_some_and(|known| known.is_live(now, ttl)).then_some(place)
    }

    fn savings(&mut self, node: NodeId) -> Option<&mut usize> {
        self.table.node_mut(node).map(|known| &mut known.savings)
    }

    fn save(&mut self, node: NodeId, credit: usize) {
        if let Some(savings) = self.savings(node) {
            *savings = credit.min(MAX_SAVINGS);
        }
    }

    /// Sends a message if `credit` covers its weight, which is then taken off.
    fn send_paid(
        &mut self,
        port: Port,
        to: SocketAddr,
        message: &Message<'_>,
        credit: &mut usize,
        out: Out<'_>,
    ) -> bool {
        match credit.checked_sub(wire_size(to, message.encoded_len())) {
            Some(rest) => {
                *credit = rest;
                self.send(port, to, message, out);
                true
            }
            None => {
                self.stats.unpaid += 1;
                false
            }
        }
    }

    fn send(&mut self, port: Port, to: SocketAddr, message: &Message<'_>, out: Out<'_>) {
        // Cannot fail but where a frame near the limit is carried to another beacon, which is a loss like any other.
        if let Ok(len) = message.encode(&mut self.scratch) {
            self.stats.datagrams_out += 1;
            self.stats.bytes_out += len as u64;
            out(port, to, &self.scratch[..len]);
        }
    }
}

/// What a datagram of `len` payload bytes costs a link: the IP packet, at least 46 bytes, to which an
/// Ethernet frame is padded (IEEE 802.3). `spec/nat.md §4.3`.
fn wire_size(peer: SocketAddr, len: usize) -> usize {
    let headers = match peer.ip().to_canonical() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    };
    (headers + len).max(46)
}

/// Most weight that an address can save up: some twenty commands.
const MAX_SAVINGS: usize = 1_024;
/// How often expired registrations are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Registrations looked at in one sweep: 100,000 are through in 25 s.
const SWEEP_STEP: usize = 4_096;
/// As above, when the table is full and a new node waits; small, because anybody can cause it.
const SWEEP_STEP_WHEN_FULL: usize = 64;

#[cfg(test)]
mod tests;
