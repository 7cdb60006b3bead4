//! The beacon: tells nodes their address, introduces them to each other, relays between them.
//!
//! `spec/nat.md §2` to `§4`. One [`BeaconEngine`] serves one UDP socket.
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
//! So nothing is ever sent to an address at which no node is registered but replies to its own discovers,
//! and in all the beacon sends no more than it received.
//!
//! # Bounds
//!
//! [`BeaconConfig::max_nodes`] registrations of under 256 bytes each, a fixed table of source budgets, one
//! buffer of a datagram. Each call does work for one datagram, [`BeaconEngine::handle_timeout`] looks at
//! up to 4,096 registrations.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;
use pilotage_wire::frame::MAX_DATAGRAM;

use crate::budget::{PrefixBuckets, Rate, TokenBucket};
use crate::scope::is_unicast;

/// Limits of a [`BeaconEngine`].
#[derive(Debug, Clone)]
pub struct BeaconConfig {
    /// Most registered nodes. When full, new ones are refused and old ones go on working.
    pub max_nodes: usize,
    /// Most registered nodes per source prefix (IPv4 /32, IPv6 /64).
    pub max_nodes_per_prefix: u16,
    /// How long a registration lasts without a sign of life. Nodes refresh each 25 to 30 s.
    pub registration_ttl: Duration,
    /// How long a node must be silent before another IP address may take its id over. A new port of the
    /// same IP address may at once, which is what a restart or a new NAT mapping looks like.
    pub takeover_after: Duration,
    /// Discovers and punch requests per source prefix.
    pub messages_per_prefix: Rate,
    /// Discovers and punch requests in all.
    pub messages_total: Rate,
    /// Punch commands to one node on the request of others.
    pub punch_per_target: Rate,
    /// Relayed bytes from one node, and to one node.
    pub relay_bytes_per_node: Rate,
    /// Relayed bytes in all.
    pub relay_bytes_total: Rate,
}

impl Default for BeaconConfig {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            max_nodes: 100_000,
            max_nodes_per_prefix: 4_096,
            registration_ttl: Duration::from_secs(120),
            takeover_after: Duration::from_secs(35),
            messages_per_prefix: Rate { per_second: 200, burst: 1_000 },
            messages_total: Rate { per_second: 50_000, burst: 50_000 },
            punch_per_target: Rate { per_second: 5, burst: 5 },
            relay_bytes_per_node: Rate { per_second: 32 * MIB, burst: 4 * MIB },
            relay_bytes_total: Rate { per_second: 256 * MIB, burst: 32 * MIB },
        }
    }
}

/// What a beacon has done since it started. Every received datagram ends in exactly one of the counters
/// from `discovers` on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BeaconStats {
    /// Nodes registered now, some of which may have run out since the last sweep.
    pub registered: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// UDP payload bytes received.
    pub bytes_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// UDP payload bytes sent.
    pub bytes_out: u64,
    /// Replies to discovers, commands to requesters and to targets that were left out because the bytes
    /// received did not pay for them.
    pub unpaid: u64,
    /// Registrations refused because the table or the share of the source prefix was full.
    pub table_full: u64,
    /// Registrations refused because the id is in use from another IP address.
    pub takeovers_refused: u64,

    /// Discovers handled, answered or not.
    pub discovers: u64,
    /// Punch requests that led to at least one command.
    pub punches: u64,
    /// Frames relayed.
    pub relays: u64,
    /// Dropped: no beacon message, or one with nothing in it to relay.
    pub malformed: u64,
    /// Dropped: a message that beacons send, or gossip, which nothing authenticates.
    pub not_for_beacons: u64,
    /// Dropped: from an address that is no single host.
    pub bad_source: u64,
    /// Dropped: over a message or byte budget.
    pub over_budget: u64,
    /// Dropped: the sender is not registered at the address the message came from.
    pub not_registered: u64,
    /// Dropped: the other node is not registered, is the sender itself or shares no IP version with it.
    pub unreachable: u64,
}

/// The server half of the beacon protocol.
///
/// Feed every received datagram to [`handle_datagram`](Self::handle_datagram); it hands what must be sent
/// to a closure, at once. Call [`handle_timeout`](Self::handle_timeout) when
/// [`next_timeout`](Self::next_timeout) is due; being late only costs memory.
#[derive(Debug)]
pub struct BeaconEngine {
    config: BeaconConfig,
    // Ordered, so that nothing depends on a hash seed and the sweep can go on where it stopped.
    nodes: BTreeMap<NodeId, Registration>,
    nodes_per_prefix: Box<[u16]>,
    prefixes: PrefixBuckets,
    messages: TokenBucket,
    relay_bytes: TokenBucket,
    next_sweep: Option<Instant>,
    sweep_after: Option<NodeId>,
    stats: BeaconStats,
    scratch: Box<[u8]>,
}

/// A node as the beacon knows it.
#[derive(Debug)]
struct Registration {
    address: SocketAddr,
    seen: Instant,
    /// Asked for deliveries that name their destination.
    extended: bool,
    /// Weight of datagrams from this address that has not been spent on answers.
    savings: usize,
    prefix_slot: usize,
    commands: TokenBucket,
    relayed_from: TokenBucket,
    relayed_to: TokenBucket,
}

type Out<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

impl BeaconEngine {
    /// A beacon that knows nobody. `seed` is secret randomness that keeps others from choosing with whom
    /// they share a budget.
    pub fn new(config: BeaconConfig, seed: u64) -> Self {
        Self {
            config,
            nodes: BTreeMap::new(),
            nodes_per_prefix: vec![0; PrefixBuckets::SLOTS].into_boxed_slice(),
            prefixes: PrefixBuckets::new(seed),
            messages: TokenBucket::default(),
            relay_bytes: TokenBucket::default(),
            next_sweep: None,
            sweep_after: None,
            stats: BeaconStats::default(),
            scratch: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        }
    }

    /// Handles one received datagram. Calls `out` at most twice, with what to send where.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        data: &[u8],
        out: &mut impl FnMut(SocketAddr, &[u8]),
    ) {
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += data.len() as u64;
        let Ok(message) = Message::decode(data) else {
            self.stats.malformed += 1;
            return;
        };
        if !is_unicast(from) {
            self.stats.bad_source += 1;
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
            | Message::Gossip { .. } => self.stats.not_for_beacons += 1,
        }
    }

    /// Forgets registrations that have run out, some at each call.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|due| due <= now) {
            // A large table takes many sweeps.
            let steps = if fault::point!("nat.beacon.slow_sweep") { 1 } else { SWEEP_STEP };
            self.sweep(now, steps);
            self.next_sweep = (!self.nodes.is_empty()).then(|| now + SWEEP_INTERVAL);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do; `None` while nobody is registered.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// The counters.
    pub fn stats(&self) -> BeaconStats {
        BeaconStats { registered: self.nodes.len() as u64, ..self.stats }
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
            self.send_paid(from, &Message::DiscoverReply { addr: from }, &mut credit, out);
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
        if !self.within_budget(now, from) || !self.refresh(now, from, node) {
            return;
        }
        let mut credit = wire_size(from, len) + self.savings(node).map_or(0, std::mem::take);
        match self.commanded_target(now, from, target) {
            Err(Dropped::Unreachable) => self.stats.unreachable += 1,
            Err(Dropped::OverBudget) => self.stats.over_budget += 1,
            Ok(target) => {
                // The target first: it does not know yet that somebody wants to reach it.
                if self.send_paid(target, &Message::PunchCommand { addr: from }, &mut credit, out) {
                    self.stats.punches += 1;
                    self.send_paid(from, &Message::PunchCommand { addr: target }, &mut credit, out);
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
        target: NodeId,
    ) -> Result<SocketAddr, Dropped> {
        let rate = self.config.punch_per_target;
        let target = self.live(now, target).ok_or(Dropped::Unreachable)?;
        let same_family = target.address.ip().to_canonical().is_ipv4() == from.ip().to_canonical().is_ipv4();
        if target.address == from || !same_family {
            return Err(Dropped::Unreachable);
        }
        // Many others want to reach this node.
        if !target.commands.take(now, rate, 1) || fault::point!("nat.beacon.target_busy") {
            return Err(Dropped::OverBudget);
        }
        Ok(target.address)
    }

    /// `spec/nat.md §4`.
    fn relay(
        &mut self,
        now: Instant,
        from: SocketAddr,
        src: NodeId,
        dst: NodeId,
        frame: &[u8],
        out: Out<'_>,
    ) {
        // Only tunnel frames: a beacon message inside another one serves no honest node.
        if frame.first().is_none_or(|&byte| byte < 0x10) {
            self.stats.malformed += 1;
            return;
        }
        if !self.refresh(now, from, src) {
            return;
        }
        let receiver = match self.relay_receiver(now, from, src, dst, frame.len() as u64) {
            Ok(receiver) => receiver,
            Err(Dropped::Unreachable) => {
                self.stats.unreachable += 1;
                return;
            }
            Err(Dropped::OverBudget) => {
                self.stats.over_budget += 1;
                return;
            }
        };
        let message = match receiver.extended {
            true => Message::DeliverEx { src, dst, frame },
            false => Message::Deliver { src, frame },
        };
        let address = receiver.address;
        self.stats.relays += 1;
        self.send(address, &message, out);
    }

    /// The registration to deliver to, with the bytes taken from every budget or from none.
    fn relay_receiver(
        &mut self,
        now: Instant,
        from: SocketAddr,
        src: NodeId,
        dst: NodeId,
        bytes: u64,
    ) -> Result<&Registration, Dropped> {
        let (per_node, total) = (self.config.relay_bytes_per_node, self.config.relay_bytes_total);
        let ttl = self.config.registration_ttl;
        let room = self.relay_bytes.has(now, total, bytes)
            && self.nodes.get_mut(&src).is_some_and(|sender| sender.relayed_from.has(now, per_node, bytes));
        let receiver =
            self.nodes.get_mut(&dst).filter(|node| node.is_live(now, ttl)).ok_or(Dropped::Unreachable)?;
        // A frame must not come back to where it came from, under whatever id.
        if receiver.address == from {
            return Err(Dropped::Unreachable);
        }
        if !room
            || fault::point!("nat.beacon.relay_exhausted")
            || !receiver.relayed_to.take(now, per_node, bytes)
        {
            return Err(Dropped::OverBudget);
        }
        self.relay_bytes.take(now, total, bytes);
        if let Some(sender) = self.nodes.get_mut(&src) {
            sender.relayed_from.take(now, per_node, bytes);
        }
        self.nodes.get(&dst).ok_or(Dropped::Unreachable)
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
        if let Some(known) = self.nodes.get_mut(&node) {
            let silent = now.saturating_duration_since(known.seen);
            // A datagram of the old address, on its way for long, may have been a sign of life just now.
            let silent_enough = silent >= self.config.takeover_after.min(ttl)
                && !fault::point!("nat.beacon.takeover_refused");
            let may_move = known.address.ip() == from.ip() || silent_enough;
            if known.address != from && !may_move {
                self.stats.takeovers_refused += 1;
                return false;
            }
            let old_slot = known.prefix_slot;
            if old_slot != prefix_slot {
                if self.nodes_per_prefix[prefix_slot] >= self.config.max_nodes_per_prefix {
                    self.stats.table_full += 1;
                    return false;
                }
                self.nodes_per_prefix[old_slot] -= 1;
                self.nodes_per_prefix[prefix_slot] += 1;
            }
            if known.address != from {
                // Savings belong to an address; the budgets stay, so that moving does not refill them.
                known.savings = 0;
            }
            (known.address, known.seen, known.extended, known.prefix_slot) =
                (from, now, extended, prefix_slot);
            return true;
        }
        if self.nodes.len() >= self.config.max_nodes {
            self.sweep(now, SWEEP_STEP_WHEN_FULL);
        }
        if self.nodes.len() >= self.config.max_nodes
            || fault::point!("nat.beacon.table_full")
            || self.nodes_per_prefix[prefix_slot] >= self.config.max_nodes_per_prefix
        {
            self.stats.table_full += 1;
            return false;
        }
        self.nodes_per_prefix[prefix_slot] += 1;
        self.nodes.insert(node, Registration::new(now, from, extended, prefix_slot));
        self.next_sweep.get_or_insert(now + SWEEP_INTERVAL);
        true
    }

    /// Whether `node` is registered at `from`, which then counts as a sign of life.
    fn refresh(&mut self, now: Instant, from: SocketAddr, node: NodeId) -> bool {
        match self.live(now, node) {
            Some(known) if known.address == from => {
                known.seen = now;
                true
            }
            _ => {
                self.stats.not_registered += 1;
                false
            }
        }
    }

    fn live(&mut self, now: Instant, node: NodeId) -> Option<&mut Registration> {
        let ttl = self.config.registration_ttl;
        // The beacon has been restarted, or the node's refreshes were lost.
        if fault::point!("nat.beacon.forget_node") {
            self.forget(node);
        }
        self.nodes.get_mut(&node).filter(|known| known.is_live(now, ttl))
    }

    fn savings(&mut self, node: NodeId) -> Option<&mut usize> {
        self.nodes.get_mut(&node).map(|known| &mut known.savings)
    }

    fn save(&mut self, node: NodeId, credit: usize) {
        if let Some(savings) = self.savings(node) {
            *savings = credit.min(MAX_SAVINGS);
        }
    }

    /// Sends a message if `credit` covers its weight, which is then taken off.
    fn send_paid(&mut self, to: SocketAddr, message: &Message<'_>, credit: &mut usize, out: Out<'_>) -> bool {
        match credit.checked_sub(wire_size(to, message.encoded_len())) {
            Some(rest) => {
                *credit = rest;
                self.send(to, message, out);
                true
            }
            None => {
                self.stats.unpaid += 1;
                false
            }
        }
    }

    fn send(&mut self, to: SocketAddr, message: &Message<'_>, out: Out<'_>) {
        // Cannot fail: a delivery is no longer than the relay message, which came in one datagram.
        if let Ok(len) = message.encode(&mut self.scratch) {
            self.stats.datagrams_out += 1;
            self.stats.bytes_out += len as u64;
            out(to, &self.scratch[..len]);
        }
    }

    /// Looks at up to `steps` registrations after the place where the last sweep stopped.
    fn sweep(&mut self, now: Instant, steps: usize) {
        let start = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let ttl = self.config.registration_ttl;
        let mut expired = Vec::new();
        let mut seen = 0;
        for (&node, known) in self.nodes.range((start, Bound::Unbounded)).take(steps) {
            seen += 1;
            self.sweep_after = Some(node);
            if !known.is_live(now, ttl) {
                expired.push(node);
            }
        }
        if seen < steps {
            self.sweep_after = None;
        }
        for node in expired {
            self.forget(node);
        }
    }

    fn forget(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.remove(&node) {
            self.nodes_per_prefix[known.prefix_slot] -= 1;
        }
    }
}

impl Registration {
    fn new(now: Instant, address: SocketAddr, extended: bool, prefix_slot: usize) -> Self {
        Self {
            address,
            seen: now,
            extended,
            savings: 0,
            prefix_slot,
            commands: TokenBucket::default(),
            relayed_from: TokenBucket::default(),
            relayed_to: TokenBucket::default(),
        }
    }

    fn is_live(&self, now: Instant, ttl: Duration) -> bool {
        now.saturating_duration_since(self.seen) < ttl
    }
}

/// Why a message between two nodes was dropped.
enum Dropped {
    Unreachable,
    OverBudget,
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
