//! Peers: introduction, look-up of strangers, reachability (spec/tunnel.md §2, §6).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_nat::agent::PathPolicy;
use pilotage_wire::frame::{self, Frame};
use pilotage_wire::{Address, NodeId};

use super::Endpoint;
use super::secure::Loose;
use crate::config::PeerConfig;
use crate::event::{ConnectError, Event, TunnelInfo};
use crate::s1::Incoming;
use crate::tunnel::{Route, Tunnel};

/// Strangers whose key is being looked up at one time (rule C10).
const LOOKUPS_MAX: usize = 64;
/// A look-up without an answer is forgotten after this long.
const LOOKUP_KEPT: Duration = Duration::from_secs(10);
/// Punch commands that wait to be sent out.
const PUNCHES_MAX: usize = 8;
/// Answers that wait to be sent out, punch commands included.
const ANSWERS_MAX: usize = 64;

/// A stranger's frames of key exchange, kept until its key is known: the last of each kind, since a first call has both and the second
/// to come must not push the first one out (`spec/secure.md` §12.2).
#[derive(Debug)]
pub(super) struct PendingLookup {
    pila: Option<Kept<Vec<u8>>>,
    initiation: Option<Kept<Box<Incoming>>>,
    /// A frame of which nothing could be kept came by this way.
    bare: Option<Kept<()>>,
    since: Instant,
}

/// A frame that waits.
#[derive(Debug)]
struct Kept<T> {
    frame: T,
    route: Route,
    /// Length of the frame, which is what may be answered (rule C16).
    len: usize,
}

impl PendingLookup {
    fn keep(&mut self, held: Held, route: Route, len: usize) {
        match held {
            Held::Nothing => self.bare = self.bare.take().or(Some(Kept { frame: (), route, len })),
            Held::Pila(frame) => self.pila = Some(Kept { frame, route, len }),
            Held::Initiation(frame) => self.initiation = Some(Kept { frame, route, len }),
        }
    }
}

/// What waits for the key of a stranger.
#[derive(Debug)]
pub(super) enum Held {
    /// Nothing that could be taken up.
    Nothing,
    /// A key exchange frame of the draft.
    Pila(Vec<u8>),
    /// An initiation of S1, whose identity is proven; whether it belongs to the node id is to be found out.
    Initiation(Box<Incoming>),
}

/// Addresses to open a NAT mapping towards, and answers that belong to no tunnel, which are not empty.
#[derive(Debug, Default)]
pub(super) struct Punches(VecDeque<Loose>);

impl Punches {
    pub(super) fn push_back_bounded(&mut self, to: SocketAddr) {
        if self.0.len() < PUNCHES_MAX && !fault::point!("proto.endpoint.lose_punch") {
            self.0.push_back((to, Vec::new()));
        }
    }

    /// An answer without state: dropped at the bound, since whoever wants it asks again.
    pub(super) fn push_datagram(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.0.len() < ANSWERS_MAX && !bytes.is_empty() {
            self.0.push_back((to, bytes));
        }
    }

    pub(super) fn pop(&mut self) -> Option<Loose> {
        self.0.pop_front()
    }
}

impl Endpoint {
    /// Introduces a peer, or updates what is known of it.
    ///
    /// # Errors
    ///
    /// [`ConnectError::PinMismatch`] if another key was known for this node id,
    /// [`ConnectError::LimitReached`] at the bound of peers with all of them in use.
    pub fn add_peer(&mut self, now: Instant, peer: PeerConfig) -> Result<(), ConnectError> {
        let peer = PeerConfig { endpoint: peer.endpoint.map(|addr| self.towards(addr)), ..peer };
        let node = peer.address.node;
        if self.is_own(node) {
            // Nobody needs to tell where we are.
            return self.own_tunnel(now).map(drop);
        }
        if let Some(&index) = self.by_node.get(&node) {
            let relay = self.beacon_addr;
            let Some((tunnel, cx)) = split!(self, index, now) else { return Err(ConnectError::UnknownPeer) };
            let cfg = cx.cfg;
            tunnel.update(&peer, cfg, relay, now)?;
            self.tell_prekey(now, index, &peer);
            self.mark_dirty(index, now);
            return Ok(());
        }
        let index = self.new_tunnel(now, &peer)?;
        self.tell_prekey(now, index, &peer);
        Ok(())
    }

    /// What the caller knows for S1.
    fn tell_prekey(&mut self, now: Instant, index: u32, peer: &PeerConfig) {
        if let Some((tunnel, mut cx)) = split!(self, index, now) {
            if let Some(prekey) = peer.prekey {
                tunnel.introduce_prekey(prekey, &mut cx);
            }
            tunnel.demand(peer.policy.least, &mut cx);
            tunnel.hurry_s1(&mut cx);
        }
    }

    /// Makes room and a tunnel.
    pub(super) fn new_tunnel(&mut self, now: Instant, peer: &PeerConfig) -> Result<u32, ConnectError> {
        if fault::point!("proto.endpoint.peers_full") {
            self.evict_idle_peer();
        }
        if self.by_node.len() >= self.cfg.max_peers && !self.evict_idle_peer() {
            return Err(ConnectError::LimitReached);
        }
        let agent = self.new_agent(peer.address.node, now);
        let mut tunnel = Box::new(Tunnel::new(peer, &self.cfg, self.beacon_addr, agent, now));
        let index = match self.free_tunnels.pop() {
            Some(index) => index,
            None => {
                self.tunnels.push(None);
                self.tunnels.len() as u32 - 1
            }
        };
        tunnel.index = index;
        tunnel.floor = tunnel.floor.max(self.floor_of_all(peer.address.node));
        self.tunnels[index as usize] = Some(tunnel);
        self.by_node.insert(peer.address.node, index);
        Ok(index)
    }

    /// Makes room: drops the peer without connections that was silent longest.
    fn evict_idle_peer(&mut self) -> bool {
        let idle = self
            .by_node
            .iter()
            .filter_map(|(node, i)| self.tunnel(*i).map(|t| (node, i, t)))
            .filter(|(_, _, t)| t.open_count() == 0)
            .min_by_key(|(node, _, t)| (t.last_valid, node.0))
            .map(|(node, i, _)| (*node, *i));
        let Some((node, index)) = idle else { return false };
        self.by_node.remove(&node);
        if let Some(mut tunnel) = self.tunnels[index as usize].take() {
            if let (Some(secure), Some(_)) = (&mut self.secure, &tunnel.mux) {
                secure.lives_since = self.now;
            }
            tunnel.close_s1(&mut self.secure);
            self.timers.remove(&mut tunnel.registered);
        }
        self.free_tunnels.push(index);
        true
    }

    /// Answers [`Event::LookupPeer`]: what is known of the peer, or `None` to refuse it.
    pub fn resolve_peer(&mut self, now: Instant, node: NodeId, peer: Option<PeerConfig>) {
        let pending = self.lookups.remove(&node);
        let Some(peer) = peer else {
            self.stats.drop_bad_key_exchange += 1;
            return;
        };
        if let Err(error) = self.add_peer(now, peer) {
            self.stats.refused += 1;
            self.events.push_back(Event::TunnelDown { peer: node, reason: error });
            return;
        }
        let Some(&index) = self.by_node.get(&node) else { return };
        if let Some(pending) = pending {
            self.take_held(now, index, pending);
        }
        self.mark_dirty(index, now);
    }

    /// What waited for the key of its sender comes to its tunnel, S1 first.
    fn take_held(&mut self, now: Instant, index: u32, pending: PendingLookup) {
        let PendingLookup { pila, initiation, bare, .. } = pending;
        let nothing = pila.is_none() && initiation.is_none();
        if let Some(Kept { frame, route, len }) = initiation {
            self.take_incoming(now, index, route, len, frame);
        }
        if let Some(Kept { frame, route, len }) = pila
            && let (Ok(Frame::Pila(pila)), Some((tunnel, mut cx))) =
                (frame::decode(&frame), split!(self, index, now))
        {
            tunnel.on_received(route, len, now);
            let fate = tunnel.on_pila(&pila, route, &mut cx);
            self.count_fate(fate);
        }
        if let Some(Kept { route, len, .. }) = bare.filter(|_| nothing)
            && let Some((tunnel, mut cx)) = split!(self, index, now)
        {
            tunnel.on_received(route, len, now);
            tunnel.on_frame_without_keys(route, &mut cx);
        }
    }

    /// Remembers a stranger's frame and asks the caller for its key.
    pub(super) fn request_lookup(
        &mut self,
        now: Instant,
        node: NodeId,
        presented_key: [u8; 32],
        route: Route,
        held: Held,
        len: usize,
    ) {
        if let Some(pending) = self.lookups.get_mut(&node) {
            pending.keep(held, route, len);
            return;
        }
        let full = fault::point!("proto.endpoint.lookups_full");
        if full || self.lookups.len() >= LOOKUPS_MAX || self.closing {
            self.stats.drop_rate_limited += 1;
            return;
        }
        let mut pending = PendingLookup { pila: None, initiation: None, bare: None, since: now };
        pending.keep(held, route, len);
        self.lookups.insert(node, pending);
        self.events.push_back(Event::LookupPeer { node, presented_key, from: route.remote() });
    }

    pub(super) fn expire_lookups(&mut self, now: Instant) {
        self.lookups.retain(|_, p| now.saturating_duration_since(p.since) < LOOKUP_KEPT);
    }

    /// What is known of one peer.
    pub fn peer(&self, node: NodeId) -> Option<TunnelInfo> {
        self.tunnel(*self.by_node.get(&node)?).map(Tunnel::info)
    }

    /// What is known of all peers, by node id. We are none ourselves.
    pub fn peers(&self) -> Vec<TunnelInfo> {
        let mut all: Vec<_> = self
            .by_node
            .iter()
            .filter(|(node, _)| !self.is_own(**node))
            .filter_map(|(_, i)| self.tunnel(*i).map(Tunnel::info))
            .collect();
        all.sort_by_key(|t| t.peer);
        all
    }

    /// Tells that a datagram of `size` bytes did not leave because it is larger than the interface takes.
    pub fn on_message_too_big(&mut self, _now: Instant, destination: SocketAddr, size: usize) {
        for tunnel in self.tunnels.iter_mut().flatten() {
            if tunnel.path.route.is_some_and(|r| r.remote() == destination) {
                tunnel.on_too_big(size);
            }
        }
    }

    /// Asks the beacon to make both sides punch, when a peer is to be reached. It tells the peer our address.
    pub(super) fn ask_to_punch(&mut self, now: Instant, node: NodeId) {
        if self.policy_for(node) == PathPolicy::RelayOnly {
            return;
        }
        self.beacon.punch_request(node, now);
    }

    /// Sends an echo request inside the tunnel and returns its token; [`Event::Pong`] follows if it is answered.
    ///
    /// # Errors
    ///
    /// [`ConnectError::UnknownPeer`] if the peer was not introduced.
    pub fn ping(&mut self, now: Instant, peer: Address) -> Result<u64, ConnectError> {
        if self.closing {
            return Err(ConnectError::Closing);
        }
        let &index = self.by_node.get(&peer.node).ok_or(ConnectError::UnknownPeer)?;
        let token = self.next_token;
        self.next_token += 1;
        let tunnel = self.tunnel_mut(index).ok_or(ConnectError::UnknownPeer)?;
        tunnel.queue_ping(token);
        tunnel.warm(now);
        if !tunnel.can_send() {
            self.ask_to_punch(now, peer.node);
        }
        self.mark_dirty(index, now);
        Ok(token)
    }
}
