//! The secure association with one peer node: key exchange, sealed frames, paths, connections inside.
//!
//! Flow in: [`Tunnel::on_key_exchange`] and [`Tunnel::open`] take frames, [`Tunnel::on_packet`] the
//! authenticated packets. Flow out: [`Tunnel::poll_transmit`] fills one batch. Time:
//! [`Tunnel::deadline`] and [`Tunnel::on_timeout`].
//!
//! Rules C1–C16 are those of spec/tunnel.md §6 (hardened draft mode).

mod control;
mod exchange;
pub(crate) mod order;
mod packets;
pub(crate) mod path;
mod proof;
mod session;
mod slots;
mod transmit;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::frame::{PILS_HEADER_LEN, TAG_LEN};
use pilotage_wire::packet::HEADER_LEN;
use pilotage_wire::{Address, NodeId};
use rand_chacha::ChaCha20Rng;

use crate::config::{Config, PeerConfig, PeerPolicy};
use crate::connection::{Connection, Cx, Dialect};
use crate::crypto::Identity;
use crate::event::{ConnectError, EndpointStats, Event, TunnelInfo};
use crate::timer_table::Registered;

pub(crate) use control::PendingPing;
pub(crate) use exchange::{Candidate, ExchangeFate, KeyExchange};
pub(crate) use packets::Inner;
pub(crate) use path::{Path, Route};
pub(crate) use session::{OpenError, Session};
pub(crate) use slots::Slots;

/// Bytes around a payload in a sealed datagram: frame header, packet header, tag (70 in all).
pub(crate) const OVERHEAD: usize = PILS_HEADER_LEN + HEADER_LEN + TAG_LEN;
/// How long frames under replaced keys are still opened (rule C8).
const PREVIOUS_KEPT: Duration = Duration::from_secs(30);
/// How long keys that the peer has not shown wait for confirmation (rule C2).
const CANDIDATE_KEPT: Duration = Duration::from_secs(10);
/// First wait before a relayed tunnel in use tries the direct route; doubles up to [`UPGRADE_MAX`].
const UPGRADE_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two such tries.
const UPGRADE_MAX: Duration = Duration::from_secs(30);
/// First wait before something is sent only for the credit that it gives us; doubles.
const PROVE_FIRST: Duration = Duration::from_millis(500);
/// How often that is done.
const PROVES_MAX: u32 = 6;
/// Outgoing datagrams that wait, in packets.
const DATAGRAMS_OUT: usize = 256;

/// What the endpoint lends to a tunnel for one call.
pub(crate) struct TunnelCx<'a> {
    pub(crate) now: Instant,
    pub(crate) cfg: &'a Config,
    pub(crate) identity: &'a Identity,
    pub(crate) local: Address,
    pub(crate) rng: &'a mut ChaCha20Rng,
    pub(crate) relay: Option<SocketAddr>,
    pub(crate) stats: &'a mut EndpointStats,
    pub(crate) events: &'a mut VecDeque<Event>,
}

/// An unsealed packet to send besides the connections' own.
#[derive(Debug)]
pub(crate) struct DatagramOut {
    pub(crate) to: Address,
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    pub(crate) data: Vec<u8>,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) node: NodeId,
    pub(crate) address: Address,
    /// Ed25519 key of the peer, checked in every PILA.
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) policy: PeerPolicy,
    /// Until when its SYN and datagrams pass the gate.
    pub(crate) admitted_until: Option<Instant>,
    pub(crate) dialect: Dialect,
    /// The dialect was learnt from a handshake, which is sealed: the unsigned mark says nothing any more.
    pub(crate) dialect_shown: bool,
    pub(crate) authenticated: bool,
    pub(crate) path: Path,
    /// Which addresses have shown that the peer is there (rule C16).
    pub(crate) addresses: proof::Addresses,
    /// An unproven address that the newest frame came from, to be asked for its token.
    pub(crate) ask_token: Option<SocketAddr>,
    /// When to send something only for the credit that it gives us at the peer, and how often that was done.
    prove_at: Option<Instant>,
    proves: u32,
    /// Where the newest frame came from, if that address is not proven yet.
    pub(crate) newest_route: Option<Route>,
    /// By which way the packet came that is being handled.
    arrived: Option<Route>,
    /// The address that the caller gave, tried first.
    pub(crate) introduced: Option<SocketAddr>,
    pub(crate) exchange: KeyExchange,
    /// Keys for sending and receiving.
    pub(crate) current: Option<Session>,
    /// Replaced keys, for receiving only.
    pub(crate) previous: Option<(Session, Instant)>,
    /// Keys that the peer has not shown yet (rule C2).
    pub(crate) candidates: Vec<Candidate>,
    /// Another route to try with one echo request: if the peer's answer comes by it, the path follows (rule C3).
    pub(crate) try_route: Option<Route>,
    /// When to try the direct route again while the relay is in use, and how long to wait after that.
    upgrade_at: Option<Instant>,
    upgrade_wait: Duration,
    pub(crate) slots: Slots,
    pub(crate) pings: VecDeque<PendingPing>,
    pub(crate) control: control::ControlQueue,
    pub(crate) datagrams: VecDeque<DatagramOut>,
    /// When the last frame of the peer opened.
    pub(crate) last_valid: Option<Instant>,
    /// When the last frame opened under the present keys, not those that they replaced.
    last_current: Option<Instant>,
    /// Next try to revive a silent peer (rule C9), and how many were made.
    pub(crate) revive_at: Option<Instant>,
    pub(crate) revivals: u32,
    /// Data waits for the path.
    pub(crate) blocked: bool,
    /// In the endpoint's round of tunnels that may have something to send.
    pub(crate) in_ready: bool,
    /// In the endpoint's list of tunnels to settle.
    pub(crate) dirty: bool,
    /// The deadline that the endpoint's timer table holds for this tunnel.
    pub(crate) registered: Option<Registered>,
    mtu_probe: Option<control::MtuProbe>,
    /// Scratch for trying several keys on one frame (opening destroys what does not verify).
    trial: Vec<u8>,
}

impl Tunnel {
    pub(crate) fn new(peer: &PeerConfig, cfg: &Config, relay: Option<SocketAddr>, now: Instant) -> Self {
        let mut addresses = proof::Addresses::default();
        if let Some(endpoint) = peer.endpoint {
            addresses.introduce(endpoint, now);
        }
        let route = peer.endpoint.map(Route::Direct).or(relay.map(Route::Relay));
        Self {
            node: peer.address.node,
            address: peer.address,
            key: peer.key,
            policy: peer.policy,
            admitted_until: None,
            dialect: Dialect::Draft,
            dialect_shown: false,
            authenticated: false,
            path: Path::new(route, cfg),
            addresses,
            prove_at: None,
            proves: 0,
            ask_token: None,
            newest_route: None,
            arrived: None,
            introduced: peer.endpoint,
            exchange: KeyExchange::default(),
            current: None,
            previous: None,
            candidates: Vec::new(),
            try_route: None,
            upgrade_at: None,
            upgrade_wait: UPGRADE_FIRST,
            slots: Slots::default(),
            pings: VecDeque::new(),
            control: control::ControlQueue::default(),
            datagrams: VecDeque::new(),
            last_valid: None,
            last_current: None,
            revive_at: None,
            revivals: 0,
            blocked: false,
            in_ready: false,
            dirty: false,
            registered: None,
            mtu_probe: None,
            trial: Vec::new(),
        }
    }

    /// New knowledge about the peer. A different key than the pinned one is refused.
    pub(crate) fn update(
        &mut self,
        peer: &PeerConfig,
        cfg: &Config,
        relay: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(), ConnectError> {
        match (self.key, peer.key) {
            (Some(old), Some(new)) if old != new => return Err(ConnectError::PinMismatch),
            (None, Some(new)) => self.key = Some(new),
            _ => {}
        }
        self.policy = peer.policy;
        self.address = peer.address;
        if let Some(endpoint) = peer.endpoint {
            self.introduced = Some(endpoint);
            self.addresses.introduce(endpoint, now);
        }
        // A path that carried a valid frame is better than what anybody tells us (rule C3).
        let heard = self.current.as_ref().is_some_and(|s| s.confirmed);
        if !heard {
            let route = self.introduced.map(Route::Direct).or(relay.map(Route::Relay));
            if route != self.path.route {
                self.path = Path::new(route, cfg);
            }
        } else if self.path.route.is_none() {
            self.path.route = relay.map(Route::Relay);
        }
        Ok(())
    }

    /// Whether an address may be sent anything: it proved itself (rule C16). The relay is the caller's own.
    pub(crate) fn trusts(&self, route: Route) -> bool {
        match route {
            Route::Relay(_) => true,
            Route::Direct(addr) => self.addresses.is_proven(addr),
        }
    }

    /// A datagram of this peer, genuine or not, came by a way.
    pub(crate) fn on_received(&mut self, route: Route, len: usize, now: Instant) {
        if let (Route::Direct(addr), false) = (route, self.trusts(route)) {
            self.addresses.on_received(addr, len, now);
        }
    }

    /// The unproven address that we use, or would like to use, whose token is to be asked for again first, and when.
    fn next_token(&self) -> Option<(Instant, SocketAddr)> {
        if self.current.is_none() || self.ask_token.is_some() {
            return None;
        }
        [self.newest_route, self.path.route]
            .into_iter()
            .flatten()
            .filter(|route| !self.trusts(*route))
            .filter_map(|route| {
                Some((self.addresses.ask_deadline(route.remote(), OVERHEAD)?, route.remote()))
            })
            .min_by_key(|(at, _)| *at)
    }

    fn on_proof_timeout(&mut self, now: Instant) {
        self.addresses.refill(now);
        if let Some((at, addr)) = self.next_token()
            && at <= now
        {
            self.ask_token = Some(addr);
        }
        if self.prove_at.is_some_and(|t| t <= now) {
            self.prove_at = (self.proves < PROVES_MAX).then(|| now + PROVE_FIRST * (1 << self.proves.min(8)));
            self.proves += 1;
            if self.slots.len() > 0 {
                self.control.give_credit();
            }
        }
    }

    /// New keys, and we asked for them: until the peer asks for the token of our address it may have no credit left to
    /// do so, and we nothing to send (RFC 9002 §6.2.2.1). So we send a little now and then.
    fn plan_proof(&mut self, now: Instant) {
        self.proves = 0;
        self.prove_at = Some(now + PROVE_FIRST);
    }

    /// The peer has asked for our token, or showed that it need not.
    pub(crate) fn proof_given(&mut self) {
        self.prove_at = None;
    }

    /// Counts a datagram that is to leave by a way; `false` if it must not.
    pub(crate) fn pay(&mut self, route: Route, len: usize) -> bool {
        match route {
            Route::Direct(addr) if !self.trusts(route) => self.addresses.pay(addr, len),
            _ => true,
        }
    }

    /// Gives back memory that only connections in use need. For a tunnel that has none left.
    pub(crate) fn release(&mut self) {
        self.path.release();
        if self.datagrams.is_empty() {
            self.datagrams = VecDeque::new();
        }
    }

    /// Whether packets can leave now: keys, or the permission to do without.
    pub(crate) fn can_send(&self) -> bool {
        self.current.is_some() || self.policy.allow_plaintext
    }

    /// A key exchange may be begun: none is under way.
    pub(crate) fn may_begin(&self) -> bool {
        !self.exchange.is_running()
    }

    /// Something waits for keys.
    pub(crate) fn has_work(&self) -> bool {
        self.slots.any_ready()
            || !self.datagrams.is_empty()
            || self.control.has_work()
            || self.pings.iter().any(|p| p.sent.is_none())
    }

    /// Tells everything that waits for this tunnel that it failed.
    pub(crate) fn fail(&mut self, error: ConnectError, cx: &mut TunnelCx<'_>) {
        self.exchange.stop();
        self.current = None;
        self.candidates.clear();
        self.revive_at = None;
        self.pings.clear();
        self.datagrams.clear();
        self.control.clear();
        let path = &mut self.path;
        self.slots.for_each(|c| c.on_tunnel_failed(error, path));
        // Else what failed would count as waiting for keys, and the next exchange would begin at once.
        self.slots.clear_ready();
        self.slots.touch_all();
        cx.events.push_back(Event::TunnelDown { peer: self.node, reason: error });
    }

    /// The next time at which [`Self::on_timeout`] has something to do, connections excluded.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let candidate = self.candidates.iter().map(|c| c.until).min();
        let previous = self.previous.as_ref().map(|(_, until)| *until);
        [
            candidate,
            previous,
            self.exchange.deadline(),
            self.revive_at,
            self.upgrade_at,
            self.control.confirm_at,
            self.prove_at,
            self.next_token().map(|(at, _)| at),
            self.path.paced_until,
            self.path.mtu.timeout(),
            self.slots.next_time_wait(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due. Connections have their own deadlines.
    pub(crate) fn on_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        let now = cx.now;
        self.candidates.retain(|c| c.until > now);
        self.on_proof_timeout(now);
        if self.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.previous = None;
        }
        if self.previous.is_none() && self.candidates.is_empty() {
            self.trial = Vec::new();
        }
        if self.path.paced_until.is_some_and(|t| t <= now) {
            self.path.paced_until = None;
            self.blocked = false;
        }
        self.slots.expire_time_wait(now);
        self.on_exchange_timeout(cx);
        if self.revive_at.is_some_and(|t| t <= now) {
            self.revive(cx);
        }
        if self.upgrade_at.is_some_and(|t| t <= now) {
            self.upgrade_at = None;
            if let (Some(Route::Relay(_)), Some(to), true) =
                (self.path.route, self.introduced, self.slots.len() > 0)
            {
                self.try_route = Some(Route::Direct(to));
            }
        }
        self.on_control_timeout(cx);
    }

    /// A relayed tunnel that is in use tries the direct route now and then.
    fn plan_upgrade(&mut self, now: Instant) {
        match self.path.route {
            Some(Route::Relay(_)) if self.introduced.is_some() && self.slots.len() > 0 => {
                if self.upgrade_at.is_none() {
                    self.upgrade_at = Some(now + self.upgrade_wait);
                    self.upgrade_wait = (self.upgrade_wait * 2).min(UPGRADE_MAX);
                }
            }
            Some(Route::Relay(_)) => {}
            _ => self.upgrade_wait = UPGRADE_FIRST,
        }
    }

    /// Runs `f` on a connection together with what it may touch.
    pub(crate) fn with_connection<R>(
        &mut self,
        slot: u32,
        cfg: &Config,
        now: Instant,
        f: impl FnOnce(&mut Connection, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let conn = self.slots.get_mut(slot)?;
        let mut cx = Cx { now, path: &mut self.path, dialect: self.dialect, cfg };
        Some(f(conn, &mut cx))
    }

    pub(crate) fn info(&self) -> TunnelInfo {
        TunnelInfo {
            peer: self.address,
            key: self.key,
            established: self.current.is_some(),
            authenticated: self.authenticated,
            pilotage: self.dialect == Dialect::Pilotage,
            frames_sealed: self.current.as_ref().map_or(0, |s| s.counter),
            path: self.path.info(),
            connections: self.slots.len(),
        }
    }

    /// Takes an outgoing datagram; `false` if the queue is full.
    pub(crate) fn queue_datagram(&mut self, datagram: DatagramOut) -> bool {
        if self.datagrams.len() >= DATAGRAMS_OUT || fault::point!("proto.tunnel.datagrams_full") {
            return false;
        }
        self.datagrams.push_back(datagram);
        true
    }
}
