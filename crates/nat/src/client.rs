//! A node's half of the beacon protocol. `spec/nat.md §5`.
//!
//! Keeps our registration alive, asks for introductions, and decides which messages may be believed
//! (rule C15): only those from the configured address, only replies we asked for, and few punches.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::{Deref, Range};
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{DELIVER_HEADER_LEN, Message, RELAY_HEADER_LEN};

use crate::scope::{Scope, canonical, is_unicast};

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

/// A message to the beacon, at most [`ClientMessage::MAX_LEN`] bytes. Dereferences to its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientMessage {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl ClientMessage {
    /// Bytes of the longest message.
    pub const MAX_LEN: usize = 88;

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

/// The client half: at most one beacon, one node id, and a few bounded lists.
///
/// Drain [`poll_transmit`](Self::poll_transmit) after every call that takes `now`, and call it again when
/// [`poll_timeout`](Self::poll_timeout) is due.
#[derive(Debug, Default)]
pub struct BeaconClient {
    beacon: Option<SocketAddr>,
    node: Option<NodeId>,
    observed: Option<SocketAddr>,
    /// When the next discover is due; `None` without a beacon.
    next_discover: Option<Instant>,
    /// When the last discover was sent to this beacon.
    asked: Option<Instant>,
    /// Discovers sent since the last reply.
    unanswered: u32,
    /// The next reply answers a discover that did not carry our present id.
    stale_reply: bool,
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
    /// A client without a beacon: sends nothing, believes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the beacon, or gives it up. A new one is asked at once; the observed address is forgotten.
    pub fn set_beacon(&mut self, beacon: Option<SocketAddr>, now: Instant) {
        if self.beacon == beacon {
            return;
        }
        let node = self.node;
        *self = Self { beacon, node, next_discover: beacon.map(|_| now), ..Self::default() };
    }

    /// The configured beacon.
    pub fn beacon(&self) -> Option<SocketAddr> {
        self.beacon
    }

    /// Sets our node id once it is known, and registers it with the beacon at once.
    pub fn set_node(&mut self, node: NodeId, now: Instant) {
        if self.node == Some(node) {
            return;
        }
        self.node = Some(node);
        if self.beacon.is_some() {
            self.stale_reply = self.unanswered > 0;
            self.unanswered = 0;
            self.next_discover = Some(now);
        }
    }

    /// Our address as the beacon last saw it.
    pub fn observed(&self) -> Option<SocketAddr> {
        self.observed
    }

    /// When the beacon last failed to answer this many discovers in a row it is probably gone.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Discards the present mapping's timing and asks again now, after a change of network.
    pub fn rediscover(&mut self, now: Instant) {
        if self.beacon.is_some() {
            self.unanswered = 0;
            self.next_discover = Some(now);
        }
    }

    /// Asks the beacon to introduce us to `target`. Repeating it is how a lost request is repaired.
    ///
    /// Returns whether the request will be sent: not without a beacon or a node id, not more often than
    /// once per second and target, and not while 16 requests wait or 64 were made within a second.
    pub fn punch_request(&mut self, target: NodeId, now: Instant) -> bool {
        if self.beacon.is_none()
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

    /// The next message to send, and to whom.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(SocketAddr, ClientMessage)> {
        let beacon = self.beacon?;
        let is_ipv6 = beacon.ip().to_canonical().is_ipv6();
        // The host has joined another network.
        if self.asked.is_some_and(|at| now.saturating_duration_since(at) >= FIRST_RETRY)
            && fault::point!("nat.client.rediscover")
        {
            self.rediscover(now);
        }
        if self.next_discover.is_some_and(|due| due <= now) {
            // A beacon that never amplifies cannot answer a bare discover over IPv6 (`spec/nat.md §4.3`);
            // one that insists on 5 bytes gets them on the next try.
            let padded_to = if is_ipv6 && self.unanswered.is_multiple_of(2) { PADDED_DISCOVER } else { 0 };
            let node = self.node.unwrap_or(NodeId::UNREGISTERED);
            self.next_discover = Some(now + retry_after(self.unanswered));
            self.unanswered = self.unanswered.saturating_add(1);
            self.asked = Some(now);
            return Some((beacon, ClientMessage::new(Message::Discover { node }, padded_to)));
        }
        let (node, request) = (self.node?, self.queue.pop_front()?);
        // The datagram never leaves the host.
        if fault::point!("nat.client.lose_request") {
            return None;
        }
        // Long enough to pay for the commands to both sides, likewise.
        let padded_to = match (request.attempt.is_multiple_of(2), is_ipv6) {
            (true, false) => PADDED_REQUEST_IPV4,
            (true, true) => PADDED_REQUEST_IPV6,
            (false, _) => 0,
        };
        Some((beacon, ClientMessage::new(Message::PunchRequest { node, target: request.target }, padded_to)))
    }

    /// Says what a decoded beacon message means. `from` is the source of the datagram.
    pub fn handle(&mut self, from: SocketAddr, message: &Message<'_>, now: Instant) -> ClientEvent {
        let Some(beacon) = self.beacon.filter(|&beacon| canonical(beacon) == canonical(from)) else {
            return ClientEvent::Ignored;
        };
        match *message {
            Message::DiscoverReply { addr } => self.handle_reply(addr, now),
            Message::PunchCommand { addr } => self.handle_command(beacon, addr, now),
            Message::Deliver { src, frame } => self.handle_delivery(src, DELIVER_HEADER_LEN, frame),
            Message::DeliverEx { src, dst, frame } if self.node == Some(dst) => {
                self.handle_delivery(src, RELAY_HEADER_LEN, frame)
            }
            _ => ClientEvent::Ignored,
        }
    }

    /// When [`poll_transmit`](Self::poll_transmit) has a discover to send.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_discover
    }

    fn handle_reply(&mut self, addr: SocketAddr, now: Instant) -> ClientEvent {
        let asked = self.asked.is_some_and(|at| now.saturating_duration_since(at) < REPLY_WAIT)
            && !fault::point!("nat.client.late_reply");
        if !asked || !is_unicast(addr) {
            return ClientEvent::Ignored;
        }
        self.observed = Some(addr);
        if !std::mem::take(&mut self.stale_reply) && self.unanswered > 0 {
            self.unanswered = 0;
            self.next_discover = Some(now + REFRESH_INTERVAL);
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
        let points_at_us = self.observed == Some(addr) || canonical(beacon) == addr;
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

/// How long to wait for a reply before the discover is repeated: 0.5, 1, 2, 4 s, … up to the refresh interval.
fn retry_after(unanswered: u32) -> Duration {
    (FIRST_RETRY * (1 << unanswered.min(6))).min(REFRESH_INTERVAL)
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
/// A discover as long as its reply over IPv6.
const PADDED_DISCOVER: usize = 20;
/// A punch request that weighs as much as two commands: 28 + 64 = 2 × 46.
const PADDED_REQUEST_IPV4: usize = 64;
/// Likewise: 48 + 88 = 2 × 68.
const PADDED_REQUEST_IPV6: usize = 88;

#[cfg(test)]
mod tests;
