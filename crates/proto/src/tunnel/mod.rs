//! The secure association with one peer node: key exchange, sealed frames, paths, connections inside.
//!
//! Flow in: [`Tunnel::on_key_exchange`] and [`Tunnel::open`] take frames, [`Tunnel::on_packet`] the
//! authenticated packets. Flow out: [`Tunnel::poll_transmit`] fills one batch. Time:
//! [`Tunnel::deadline`] and [`Tunnel::on_timeout`].
//!
//! Rules C1–C16 are those of spec/tunnel.md §6 (hardened draft mode).

mod answers;
mod control;
mod early;
mod exchange;
mod first;
mod follow;
mod least;
mod mux;
mod offer;
pub(crate) mod order;
mod packets;
pub(crate) mod path;
mod proof;
mod secure;
mod session;
mod slots;
mod transmit;
mod upgrade;
mod ways;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_nat::agent::{Agent, Locals};
use pilotage_wire::frame::{PILS_HEADER_LEN, TAG_LEN};
use pilotage_wire::packet::HEADER_LEN;
use pilotage_wire::{Address, NodeId};
use rand_chacha::ChaCha20Rng;

use crate::config::{Config, PeerConfig, PeerPolicy};
use crate::connection::{Connection, Cx, Dialect};
use crate::crypto::Identity;
use crate::event::{ConnectError, EndpointStats, Event, TunnelInfo};
use crate::mux::Mux;
use crate::secure::{Mode, Secure};
use crate::timer_table::Registered;

pub(crate) use control::PendingPing;
pub(crate) use early::Brought;
pub use early::EARLY_DATAGRAM_MAX;
pub(crate) use exchange::{Candidate, ExchangeFate, KeyExchange};
pub(crate) use packets::Inner;
pub(crate) use path::{Path, Route};
pub(crate) use secure::Secured;
pub(crate) use session::{OpenError, Session};
pub(crate) use slots::Slots;

/// Bytes around a payload in a sealed datagram: frame header, packet header, tag (70 in all).
pub(crate) const OVERHEAD: usize = PILS_HEADER_LEN + HEADER_LEN + TAG_LEN;
/// How long frames under replaced keys are still opened (rule C8).
const PREVIOUS_KEPT: Duration = Duration::from_secs(30);
/// How long keys that the peer has not shown wait for confirmation (rule C2).
const CANDIDATE_KEPT: Duration = Duration::from_secs(10);
/// How long a tunnel without connections counts as in use after a ping or a datagram was given to it.
const WARM: Duration = Duration::from_secs(10);
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
    /// What we know of our own addresses.
    pub(crate) locals: &'a Locals,
    /// What we have of S1.
    pub(crate) secure: &'a mut Option<Box<Secure>>,
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
    /// Our number among the endpoint's tunnels.
    pub(crate) index: u32,
    /// The least mode that this peer is spoken to in.
    pub(crate) floor: Mode,
    /// S1 with this peer, once something is known or under way.
    pub(crate) secure: Option<Box<Secured>>,
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
    /// Which addresses of the peer are tried, and which way is best (spec/nat.md §10).
    pub(crate) agent: Agent,
    /// Since when data waits for an answer on the way in use while nothing comes by it.
    quiet: Option<Instant>,
    /// When stream data came last, if the way in use is to be asked should nothing follow.
    lull: Option<Instant>,
    /// Our candidates are to go by the relay as well: the direct way may not bring them.
    signal: bool,
    /// The way in use is silent, or dead: the beacon is to be asked whether it still sees us.
    pub(crate) lost_way: bool,
    /// When our own network changed last.
    moved: Option<Instant>,
    /// When the last authentic frame came.
    heard: Option<Instant>,
    /// A connection whose data came from where the peer may have moved to: what is missing is told there as well.
    ack_copy: Option<u32>,
    /// What is sent to where the peer may have moved to.
    follow: follow::Follow,
    asked_beacon: Option<Instant>,
    /// A way that we left for a better one, and until when frames that still come by it do not call us back.
    left: Option<(Route, Instant)>,
    /// Until when a ping or a datagram keeps the tunnel in use.
    warm_until: Option<Instant>,
    /// When the application was last asked for a newer address.
    wanted: Option<Instant>,
    /// There is a relay, as last seen.
    relayed: bool,
    pub(crate) slots: Slots,
    /// Streams of S1, once a session with them has begun.
    pub(crate) mux: Option<Box<Mux>>,
    /// The peer of the last session speaks them as we do.
    own_streams: bool,
    /// Connections that have not said anything yet are to become streams.
    pub(crate) convert: bool,
    pub(crate) pings: VecDeque<PendingPing>,
    pub(crate) control: control::ControlQueue,
    pub(crate) datagrams: VecDeque<DatagramOut>,
    /// Those that may leave before there are keys.
    pub(crate) early: early::EarlyOut,
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
    pub(crate) fn new(
        peer: &PeerConfig,
        cfg: &Config,
        relay: Option<SocketAddr>,
        mut agent: Agent,
        now: Instant,
    ) -> Self {
        if let Some(endpoint) = peer.endpoint {
            agent.introduce(now, endpoint);
        }
        let route = ways::first_guess(agent.policy(), peer.endpoint, relay);
        Self {
            node: peer.address.node,
            address: peer.address,
            key: peer.key,
            policy: peer.policy,
            index: u32::MAX,
            floor: peer.policy.least,
            secure: None,
            admitted_until: None,
            dialect: Dialect::Draft,
            dialect_shown: false,
            authenticated: false,
            path: Path::new(route, cfg),
            addresses: proof::Addresses::of(peer.endpoint, now),
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
            agent,
            quiet: None,
            lull: None,
            signal: false,
            lost_way: false,
            moved: None,
            heard: None,
            ack_copy: None,
            follow: follow::Follow::default(),
            asked_beacon: None,
            left: None,
            warm_until: None,
            wanted: None,
            relayed: relay.is_some(),
            slots: Slots::default(),
            mux: None,
            own_streams: false,
            convert: false,
            pings: VecDeque::new(),
            control: control::ControlQueue::default(),
            datagrams: VecDeque::new(),
            early: early::EarlyOut::default(),
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
        self.floor = self.floor.max(peer.policy.least);
        self.address = peer.address;
        if let Some(endpoint) = peer.endpoint {
            let news = self.introduced != Some(endpoint);
            self.introduced = Some(endpoint);
            self.addresses.introduce(endpoint, now);
            self.agent.introduce(now, endpoint);
            if news {
                self.exchange.hurry(now);
            }
        }
        // A path that carried a valid frame is better than what anybody tells us (rule C3).
        if !self.confirmed() {
            let route = ways::first_guess(self.agent.policy(), self.introduced, relay);
            if route != self.path.route {
                self.path = self.fresh_path(route, cfg);
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
        if !self.keyed() || self.ask_token.is_some() {
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
            if self.open_count() > 0 {
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
        self.current.is_some() || self.in_s1() || (self.policy.allow_plaintext && self.floor < Mode::S1)
    }

    /// A key exchange may be begun: none is under way.
    pub(crate) fn may_begin(&self) -> bool {
        !self.exchange.is_running()
    }

    /// Something waits for keys.
    pub(crate) fn has_work(&self) -> bool {
        self.slots.any_ready()
            || (self.own_streams && self.mux.as_ref().is_some_and(|mux| mux.has_work()))
            || !self.datagrams.is_empty()
            || !self.early.is_empty()
            || self.control.has_work()
            || self.pings.iter().any(|p| p.sent.is_none())
    }

    /// Tells everything that waits for this tunnel that it failed.
    pub(crate) fn fail(&mut self, error: ConnectError, cx: &mut TunnelCx<'_>) {
        self.exchange.stop();
        self.current = None;
        self.close_s1(cx.secure);
        self.candidates.clear();
        self.revive_at = None;
        self.pings.clear();
        self.datagrams.clear();
        self.early.clear();
        self.control.clear();
        let path = &mut self.path;
        self.slots.for_each(|c| c.on_tunnel_failed(error, path));
        // Else what failed would count as waiting for keys, and the next exchange would begin at once.
        self.slots.clear_ready();
        self.slots.touch_all();
        self.fail_streams(error, cx);
        cx.events.push_back(Event::TunnelDown { peer: self.node, reason: error });
    }

    /// The next time at which [`Self::on_timeout`] has something to do, connections excluded.
    pub(crate) fn deadline(&self, now: Instant, locals: &Locals, cfg: &Config) -> Option<Instant> {
        let candidate = self.candidates.iter().map(|c| c.until).min();
        let previous = self.previous.as_ref().map(|(_, until)| *until);
        [
            candidate,
            previous,
            self.exchange.deadline(),
            self.s1_deadline(),
            self.revive_at,
            self.warm_until,
            self.way_deadline(),
            // What is due is sent as soon as it can be; a timer would only call for it again.
            self.agent.deadline(self.used(), locals).filter(|t| *t > now),
            self.control.confirm_at,
            self.prove_at,
            self.next_token().map(|(at, _)| at),
            self.path.paced_until,
            self.path.mtu.timeout(),
            self.slots.next_time_wait(),
            self.mux.as_ref().and_then(|mux| mux.deadline(now, (&self.path, cfg))),
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
        self.on_s1_timeout(cx);
        self.end_wait(now);
        self.on_streams_timeout(cx);
        if self.revive_at.is_some_and(|t| t <= now) {
            self.revive(cx);
        }
        if self.warm_until.is_some_and(|t| t <= now) {
            self.warm_until = None;
        }
        self.on_way_timeout(cx);
        self.on_control_timeout(cx);
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
        let s1 = self.secure.as_ref().and_then(|s| s.assoc.current()).filter(|_| self.current.is_none());
        TunnelInfo {
            peer: self.address,
            key: self.key,
            established: self.keyed(),
            authenticated: self.authenticated,
            pilotage: self.dialect == Dialect::Pilotage,
            frames_sealed: s1.map_or_else(|| self.current.as_ref().map_or(0, |s| s.counter), |s| s.sealed()),
            mode: self.mode(),
            least_mode: self.floor,
            suite: s1.map(|s| s.suite()),
            keys_since: s1.map(|s| s.created()).or(self.current.as_ref().map(|s| s.created)),
            phase: s1.map_or(0, |s| s.phase()),
            post_quantum: s1.is_some_and(crate::s1::Session::is_post_quantum),
            path: self.path.info(),
            connections: self.open_count(),
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
