//! A node's half of the beacon protocol. `spec/nat.md §5`, §7, §8.
//!
//! Keeps our registrations alive, asks for introductions, and decides which messages may be believed
//! (rule C15): only those from the configured addresses, only replies we asked for, and few punches.
//!
//! There may be several beacons. All keep our registration; one of them, the *primary*, relays for us and introduces
//! us. It is the first that answers, and another one takes its place when it falls silent.

mod behaviour;
mod link;
mod own;
mod primary;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::{Deref, Range};
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{
    Accept, DELIVER_HEADER_LEN, Extension, MAX_PERMITTED, Message, RELAY_HEADER_LEN, Rank, Refusal,
};

use self::behaviour::Discovery;
use self::link::{Link, retry_after};
use crate::budget::mix;
use crate::scope::{Scope, canonical, is_unicast};

pub use self::behaviour::{Dependence, NatBehaviour};

/// What a beacon message means for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The beacon answered: it sees us at this address.
    Observed(SocketAddr),
    /// Send a few PILP frames to this address now: a node there wants to reach us, or we it.
    Punch(SocketAddr),
    /// The datagram carries a tunnel frame of another node.
    Relayed {
        /// Who sent it, as the beacon says. The frame itself must prove it.
        src: NodeId,
        /// Where in the datagram the frame lies.
        frame: Range<usize>,
    },
    /// Not to be believed, not for us, or over a limit.
    Ignored,
}

/// Signs what proves our key to a beacon.
pub trait Signer {
    /// Ed25519 signature by the key that was given to [`BeaconClient::set_key`].
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// A message to a beacon, at most [`ClientMessage::MAX_LEN`] bytes. Dereferences to its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientMessage {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl ClientMessage {
    /// Bytes of the longest message: a proof that names 64 senders.
    pub const MAX_LEN: usize = 420;

    /// `padded_to` of 0 leaves the message as it is.
    fn new(message: Message<'_>, padded_to: usize) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        let len = message.encode(&mut bytes).unwrap_or(0);
        Self { bytes, len: len.max(padded_to).min(Self::MAX_LEN) }
    }
}

impl Deref for ClientMessage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// How we stand with one beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeaconStatus {
    /// The beacon.
    pub address: SocketAddr,
    /// Whether it relays for us at present.
    pub primary: bool,
    /// Whether it answered when it was last asked.
    pub answers: bool,
    /// Our address as it sees it.
    pub observed: Option<SocketAddr>,
    /// The registration with proof of our key, where there is one.
    pub rank: Option<Rank>,
    /// Why there is none, if it said so.
    pub refused: Option<Refusal>,
}

/// The client half: at most [`BeaconClient::MAX_BEACONS`] beacons, one node id, and a few bounded lists.
///
/// Drain [`poll_transmit`](Self::poll_transmit) or [`poll_transmit_with`](Self::poll_transmit_with) after every call
/// that takes `now`, and call it again when [`poll_timeout`](Self::poll_timeout) is due.
#[derive(Debug, Default)]
pub struct BeaconClient {
    links: Vec<Link>,
    /// Which of them; the first one until one has answered.
    primary: usize,
    /// The primary has answered.
    settled: bool,
    node: Option<NodeId>,
    key: Option<[u8; 32]>,
    /// With which our id is derived from the key; 0 if it is not.
    salt: u16,
    accept: Accept,
    permitted: Vec<NodeId>,
    /// For nonces.
    seed: u64,
    counter: u64,
    /// The primary has been used since this time without being heard.
    used_since: Option<Instant>,
    /// When it was last used.
    used_last: Option<Instant>,
    /// When it was last asked because of that.
    probed: Option<Instant>,
    discovery: Discovery,
    local_port: Option<u16>,
    /// Punch requests to send.
    queue: VecDeque<Request>,
    /// Punch requests of the last second and before: one entry per target.
    requested: VecDeque<Request>,
    /// Punch commands obeyed lately, oldest first.
    punched: VecDeque<(Instant, SocketAddr)>,
}

/// A punch request.
#[derive(Debug, Clone, Copy)]
struct Request {
    target: NodeId,
    at: Instant,
    attempt: u32,
}

impl BeaconClient {
    /// Most beacons; more are left out.
    pub const MAX_BEACONS: usize = 8;

    /// A client without a beacon: sends nothing, believes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the beacon, or gives it up. A new one is asked at once; the observed address is forgotten.
    pub fn set_beacon(&mut self, beacon: Option<SocketAddr>, now: Instant) {
        self.set_beacons(beacon.as_slice(), now);
    }

    /// Sets the beacons, in the order of preference where nothing else decides. New ones are asked at once; those that
    /// stay keep what is known of them.
    pub fn set_beacons(&mut self, beacons: &[SocketAddr], now: Instant) {
        let primary = self.beacon().filter(|_| self.settled);
        let mut old = std::mem::take(&mut self.links);
        for &address in beacons {
            let address = canonical(address);
            let known = self.links.iter().any(|link| link.address == address);
            if known || self.links.len() >= Self::MAX_BEACONS {
                continue;
            }
            let link = match old.iter().position(|link| link.address == address) {
                Some(index) => old.swap_remove(index),
                None => Link::new(address, now, self.key.is_some()),
            };
            self.links.push(link);
        }
        let stays = primary.and_then(|address| self.links.iter().position(|link| link.address == address));
        self.primary = stays.unwrap_or(0);
        self.settled = stays.is_some();
        if stays.is_none() {
            self.discovery.reset();
            (self.used_since, self.probed) = (None, None);
            self.queue.clear();
            self.requested.clear();
            self.punched.clear();
            self.elect(now);
        }
    }

    /// The primary beacon; the first configured one until one has answered.
    pub fn beacon(&self) -> Option<SocketAddr> {
        self.links.get(self.primary).map(|link| link.address)
    }

    /// Whether messages from this address may be from a configured beacon.
    pub fn is_beacon(&self, address: SocketAddr) -> bool {
        self.link(address).is_some()
    }

    /// How we stand with each beacon, in the order in which they were set.
    pub fn beacons(&self) -> impl Iterator<Item = BeaconStatus> + '_ {
        self.links.iter().enumerate().map(|(index, link)| BeaconStatus {
            address: link.address,
            primary: index == self.primary,
            answers: link.answers(),
            observed: link.observed,
            rank: link.rank,
            refused: link.refused,
        })
    }

    /// Our Ed25519 public key: from now on beacons that can be are shown that it is ours.
    pub fn set_key(&mut self, key: [u8; 32], now: Instant) {
        if self.key == Some(key) {
            return;
        }
        self.key = Some(key);
        self.find_salt();
        for link in &mut self.links {
            link.restart(now, true);
        }
    }

    /// Secret randomness for the numbers by which answers are recognised.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The port of our socket, to see whether a NAT keeps it.
    pub fn set_local_port(&mut self, port: u16) {
        self.local_port = Some(port);
    }

    /// From whom beacons of ours let frames and introductions through to us: see [`Accept`]. At most 64 are named.
    /// Those of the reference let everything through.
    pub fn set_accept(&mut self, accept: Accept, permitted: &[NodeId], now: Instant) {
        let permitted: Vec<NodeId> = permitted.iter().copied().take(MAX_PERMITTED).collect();
        if self.accept == accept && self.permitted == permitted {
            return;
        }
        (self.accept, self.permitted) = (accept, permitted);
        for link in self.links.iter_mut().filter(|_| self.key.is_some()) {
            link.renew = true;
            link.next_hello = Some(now);
        }
    }

    /// Sets our node id once it is known, and registers it with the beacons at once.
    pub fn set_node(&mut self, node: NodeId, now: Instant) {
        if self.node == Some(node) {
            return;
        }
        self.node = Some(node);
        self.find_salt();
        for link in &mut self.links {
            link.stale_reply = link.unanswered > 0;
            link.rank = None;
            link.restart(now, self.key.is_some());
        }
    }

    /// Our address as the primary beacon last saw it.
    pub fn observed(&self) -> Option<SocketAddr> {
        self.links.get(self.primary)?.observed
    }

    /// Our addresses as the beacons saw them, each once.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        let mut seen: Vec<SocketAddr> = Vec::new();
        for addr in self.links.iter().filter_map(|link| link.observed) {
            if !seen.contains(&addr) {
                seen.push(addr);
            }
        }
        seen
    }

    /// How the NAT between us and the beacons behaves, once that was found out. Needs a beacon of ours.
    pub fn nat_behaviour(&self) -> Option<NatBehaviour> {
        let seen = self.links.iter().filter_map(|link| Some((link.address, link.observed?)));
        self.discovery.result(seen, self.local_port)
    }

    /// On what our NAT's mapping depends. Known before the rest of [`Self::nat_behaviour`].
    pub fn nat_mapping(&self) -> Option<Dependence> {
        let seen = self.links.iter().filter_map(|link| Some((link.address, link.observed?)));
        self.discovery.mapping(seen)
    }

    /// Whether more is known of our NAT than when this was last asked: time alone may tell, when no answer comes.
    pub fn take_nat_news(&mut self) -> bool {
        self.discovery.take_news()
    }

    /// When the primary beacon last failed to answer this many questions in a row it is probably gone.
    pub fn unanswered(&self) -> u32 {
        self.links.get(self.primary).map_or(0, |link| link.unanswered)
    }

    /// Discards the present mapping's timing and asks again now, after a change of network.
    pub fn rediscover(&mut self, now: Instant) {
        for link in &mut self.links {
            link.restart(now, self.key.is_some());
        }
        self.discovery.reset();
    }

    /// Asks the beacon to introduce us to `target`. Repeating it is how a lost request is repaired.
    ///
    /// Returns whether the request will be sent: not without a beacon or a node id, not more often than
    /// once per second and target, and not while 16 requests wait or 64 were made within a second.
    pub fn punch_request(&mut self, target: NodeId, now: Instant) -> bool {
        if self.links.is_empty()
            || self.node.is_none_or(|own| own == target)
            || self.queue.len() >= MAX_QUEUE
            || fault::point!("nat.client.queue_full")
        {
            return false;
        }
        let earlier = self.requested.iter().position(|request| request.target == target);
        let attempt = match earlier {
            Some(index) => {
                let earlier = self.requested[index];
                if now.saturating_duration_since(earlier.at) < REQUEST_INTERVAL {
                    return false;
                }
                self.requested.remove(index);
                earlier.attempt.wrapping_add(1)
            }
            None => 0,
        };
        if self.requested.len() >= MAX_REQUESTED {
            // The list is in order of time: if its oldest entry still counts, all do.
            if self
                .requested
                .front()
                .is_some_and(|oldest| now.saturating_duration_since(oldest.at) < REQUEST_INTERVAL)
            {
                return false;
            }
            self.requested.pop_front();
        }
        let request = Request { target, at: now, attempt };
        self.requested.push_back(request);
        self.queue.push_back(request);
        true
    }

    /// As [`poll_transmit_with`](Self::poll_transmit_with) for a node that proves no key.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(SocketAddr, ClientMessage)> {
        self.poll(now, None)
    }

    /// The next message to send, and to whom.
    pub fn poll_transmit_with(
        &mut self,
        now: Instant,
        signer: &dyn Signer,
    ) -> Option<(SocketAddr, ClientMessage)> {
        self.poll(now, Some(signer))
    }

    fn poll(&mut self, now: Instant, signer: Option<&dyn Signer>) -> Option<(SocketAddr, ClientMessage)> {
        if self.links.is_empty() {
            return None;
        }
        // The host has joined another network.
        let asked = self.links.get(self.primary).and_then(|link| link.asked);
        if asked.is_some_and(|at| now.saturating_duration_since(at) >= FIRST_RETRY)
            && fault::point!("nat.client.rediscover")
        {
            self.rediscover(now);
        }
        self.watch_primary(now);
        for index in 0..self.links.len() {
            if let Some(message) = self.poll_link(now, index, signer) {
                return Some((self.links[index].address, message));
            }
        }
        if let Some(out) = self.poll_discovery(now) {
            return Some(out);
        }
        self.poll_request()
    }

    /// What one beacon is to be told now.
    fn poll_link(
        &mut self,
        now: Instant,
        index: usize,
        signer: Option<&dyn Signer>,
    ) -> Option<ClientMessage> {
        let node = self.node.unwrap_or(NodeId::UNREGISTERED);
        let link = self.links.get_mut(index)?;
        if let (Some(signer), Some((cookie, observed))) = (signer, link.challenge.take()) {
            return self.prove(index, signer, &cookie, observed);
        }
        if link.next_discover.is_some_and(|due| due <= now) {
            // A beacon that never amplifies cannot answer a bare discover over IPv6 (`spec/nat.md §4.3`);
            // one that insists on 5 bytes gets them on the next try.
            let is_ipv6 = link.address.is_ipv6();
            let padded_to = if is_ipv6 && link.unanswered.is_multiple_of(2) { PADDED_DISCOVER } else { 0 };
            link.next_discover = Some(now + retry_after(link.unanswered));
            link.unanswered = link.unanswered.saturating_add(1);
            link.asked = Some(now);
            return Some(ClientMessage::new(Message::Discover { node }, padded_to));
        }
        if signer.is_some() && link.next_hello.is_some_and(|due| due <= now) {
            self.counter += 1;
            let nonce = mix(self.seed ^ self.counter);
            link.nonce = Some((nonce, now));
            link.hellos = link.hellos.saturating_add(1);
            link.next_hello = Some(now + link.hello_again());
            if link.rank.is_some() {
                link.unanswered = link.unanswered.saturating_add(1);
                if link.hellos >= HELLOS_BEFORE_DISCOVER {
                    // Perhaps another beacon has taken its place, one that knows no proofs.
                    link.rank = None;
                    link.next_discover = Some(now);
                }
            }
            let hello = Extension::Hello { renew: link.renew, node, nonce };
            // As long as its longest answer, which is the challenge over IPv6.
            return Some(ClientMessage::new(Message::Extension(hello), PADDED_HELLO));
        }
        None
    }

    fn poll_request(&mut self) -> Option<(SocketAddr, ClientMessage)> {
        let beacon = self.beacon()?;
        let (node, request) = (self.node?, self.queue.pop_front()?);
        // The datagram never leaves the host.
        if fault::point!("nat.client.lose_request") {
            return None;
        }
        // Long enough to pay for the commands to both sides, likewise.
        let padded_to = match (request.attempt.is_multiple_of(2), beacon.is_ipv6()) {
            (true, false) => PADDED_REQUEST_IPV4,
            (true, true) => PADDED_REQUEST_IPV6,
            (false, _) => 0,
        };
        Some((beacon, ClientMessage::new(Message::PunchRequest { node, target: request.target }, padded_to)))
    }

    /// Says what a decoded beacon message means. `from` is the source of the datagram.
    pub fn handle(&mut self, from: SocketAddr, message: &Message<'_>, now: Instant) -> ClientEvent {
        // Two messages that may come from elsewhere; what they hold shows that we caused them.
        match *message {
            Message::Extension(Extension::ProbeReply { nonce, other_port, addr }) => {
                let from_beacon = self.links.iter().any(|link| link.address.ip() == canonical(from).ip());
                self.counter += 1;
                let next = mix(self.seed ^ self.counter);
                if from_beacon && is_unicast(addr) {
                    self.discovery.on_reply(now, from, nonce, other_port, addr, next);
                }
                return ClientEvent::Ignored;
            }
            Message::Extension(Extension::Hairpin { nonce }) => {
                self.discovery.on_hairpin(nonce);
                return ClientEvent::Ignored;
            }
            _ => {}
        }
        let Some(index) = self.link(from) else { return ClientEvent::Ignored };
        let beacon = self.links[index].address;
        let event = match *message {
            Message::DiscoverReply { addr } => self.handle_reply(index, addr, now),
            Message::PunchCommand { addr } => self.handle_command(beacon, addr, now),
            Message::Deliver { src, frame } => self.handle_delivery(src, DELIVER_HEADER_LEN, frame),
            Message::DeliverEx { src, dst, frame } if self.node == Some(dst) => {
                self.handle_delivery(src, RELAY_HEADER_LEN, frame)
            }
            Message::Extension(extension) => self.handle_extension(index, extension, now),
            _ => ClientEvent::Ignored,
        };
        if event != ClientEvent::Ignored {
            self.heard(index, now);
        }
        event
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to send.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self.links.iter().filter_map(|link| match self.key {
            Some(_) => link.next(),
            None => link.next_discover,
        });
        let watch = self.used_since.map(|since| self.next_watch(since));
        links.chain(self.discovery.next()).chain(watch).min()
    }

    fn link(&self, address: SocketAddr) -> Option<usize> {
        let address = canonical(address);
        self.links.iter().position(|link| link.address == address)
    }

    /// A message that we believe came from a beacon.
    fn heard(&mut self, index: usize, now: Instant) {
        let Some(link) = self.links.get_mut(index) else { return };
        link.heard = Some(now);
        if index == self.primary {
            self.settled |= link.unanswered == 0;
            self.used_since = None;
        } else if !self.settled && link.answers() {
            // The first that answers.
            (self.primary, self.settled) = (index, true);
            self.used_since = None;
        }
    }

    fn handle_reply(&mut self, index: usize, addr: SocketAddr, now: Instant) -> ClientEvent {
        let Some(link) = self.links.get_mut(index) else { return ClientEvent::Ignored };
        let asked = link.asked.is_some_and(|at| now.saturating_duration_since(at) < REPLY_WAIT)
            && !fault::point!("nat.client.late_reply");
        // A beacon that has registered our key tells our address with a number that only it knows.
        if !asked || !is_unicast(addr) || link.rank.is_some() {
            return ClientEvent::Ignored;
        }
        link.observed = Some(addr);
        if !std::mem::take(&mut link.stale_reply) && link.unanswered > 0 {
            link.unanswered = 0;
            // One question, one answer: who forges more of them moves nothing.
            link.asked = None;
            if link.next_discover.is_some() {
                link.next_discover = Some(now + REFRESH_INTERVAL);
            }
        }
        ClientEvent::Observed(addr)
    }

    /// `spec/nat.md §5.3`. A command carries no id, so all that can be limited is how many there are and
    /// where they point.
    fn handle_command(&mut self, beacon: SocketAddr, addr: SocketAddr, now: Instant) -> ClientEvent {
        while self.punched.front().is_some_and(|&(at, _)| now.saturating_duration_since(at) >= PUNCH_WINDOW) {
            self.punched.pop_front();
        }
        let lately = |&(at, to): &(Instant, SocketAddr)| {
            to == addr && now.saturating_duration_since(at) < PUNCH_INTERVAL
        };
        let points_at_us = self.links.iter().any(|link| link.observed == Some(addr) || link.address == addr);
        // A beacon on the internet has no business to point into our site, nor one in our site at our
        // host; the other way round is normal.
        let too_near = Scope::of(addr.ip()) < Scope::of(beacon.ip());
        if !is_unicast(addr) || points_at_us || too_near {
            return ClientEvent::Ignored;
        }
        if self.punched.len() >= MAX_PUNCHES
            || fault::point!("nat.client.punches_used_up")
            || self.punched.iter().any(lately)
        {
            return ClientEvent::Ignored;
        }
        self.punched.push_back((now, addr));
        ClientEvent::Punch(addr)
    }

    fn handle_delivery(&self, src: NodeId, header_len: usize, frame: &[u8]) -> ClientEvent {
        let own = self.node.is_none_or(|own| own == src);
        // A beacon message inside a delivery would be one that nobody may believe.
        if own || src == NodeId::UNREGISTERED || frame.first().is_none_or(|&byte| byte < 0x10) {
            return ClientEvent::Ignored;
        }
        ClientEvent::Relayed { src, frame: header_len..header_len + frame.len() }
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Below the 30 s after which careless NATs forget a mapping.
const REFRESH_INTERVAL: Duration = Duration::from_secs(25);
/// A reply that comes later than this was not asked for.
const REPLY_WAIT: Duration = Duration::from_secs(10);
/// Between two requests for one target.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// Requests that wait to be sent.
const MAX_QUEUE: usize = 16;
/// Targets remembered for their interval.
const MAX_REQUESTED: usize = 64;
/// Commands obeyed within a window.
const MAX_PUNCHES: usize = 8;
const PUNCH_WINDOW: Duration = Duration::from_secs(10);
/// Between two commands for one address.
const PUNCH_INTERVAL: Duration = Duration::from_secs(1);
/// A hello as long as a challenge over IPv6.
const PADDED_HELLO: usize = 53;
/// Hellos without an answer after which we register without proof as well.
const HELLOS_BEFORE_DISCOVER: u32 = 3;
/// A discover as long as its reply over IPv6.
const PADDED_DISCOVER: usize = 20;
/// A punch request that weighs as much as two commands: 28 + 64 = 2 × 46.
const PADDED_REQUEST_IPV4: usize = 64;
/// Likewise: 48 + 88 = 2 × 68.
const PADDED_REQUEST_IPV6: usize = 88;

#[cfg(test)]
mod tests;
