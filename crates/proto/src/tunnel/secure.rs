//! S1 under a tunnel: when it begins, when it takes over from the draft's keys, when it is renewed (spec/secure.md §12).
//!
//! While the draft's keys are in use [`Tunnel::current`] holds them. When S1 takes over they move to `previous`, where
//! they only open what was under way, and `current` stays empty: what asks `current` first costs tunnels of the draft
//! nothing.

use std::time::{Duration, Instant};

use pilotage_nat::agent::PathEventKind;
use pilotage_wire::s1::Kind;
use pilotage_wire::s1::data::{HEADER_LEN as S1_HEADER_LEN, OVERHEAD as S1_OVERHEAD};
use pilotage_wire::s1::frames::{Frame, LEGACY};
use pilotage_wire::s1::handshake::RESPONSE_LEN;

use super::early::Brought;
use super::exchange::ExchangeFrame;
use super::{PREVIOUS_KEPT, Path, Route, Tunnel, TunnelCx, early};
use crate::config::Config;
use crate::connection::{Connection, Dialect};
use crate::event::Event;
use crate::s1::{
    Accepted, Association, Begin, Cx, EarlyData, Incoming, Node, OpenError, Opened, PeerPrekey, Refusal,
    Secret, Timeout,
};
use crate::secure::{Mode, Secure};

/// What an S1 datagram has before a packet of the draft: header, and the type of LEGACY.
pub(super) const HEAD_LEN: usize = S1_HEADER_LEN + 1;
/// Bytes around a payload in S1: 60, ten fewer than in the draft's frames.
const OVERHEAD_S1: usize = S1_OVERHEAD + 1 + pilotage_wire::packet::HEADER_LEN;
/// How long a peer that may speak S1 has before it is asked for the draft's keys as well (spec/secure.md §12.3).
const HEAD_START: Duration = Duration::from_millis(250);
/// Wait before the side that was asked for the draft's keys tries S1.
const UPGRADE_SECOND: Duration = Duration::from_secs(2);
/// First wait before it is looked again whether the peer is one of ours; doubles.
const UPGRADE_AGAIN: Duration = Duration::from_millis(50);
/// How often that is done.
const UPGRADE_LOOKS: u32 = 10;
/// Tries in a tunnel that works anyway, and the pause after them.
const UPGRADE_TRIES: u32 = 4;
const UPGRADE_REST: Duration = Duration::from_secs(900);
/// From this try on the application is asked whether it knows a newer address.
const WANT_ADDRESS_FROM: u32 = 2;
/// A session must be so old before the peer's word renews it.
const RENEW_PAUSE: Duration = Duration::from_secs(10);
/// The network's secret, where there is none.
const NO_PSK: [u8; 32] = [0; 32];

/// What a tunnel has of S1.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(super) assoc: Association,
    /// A packet of the peer has opened under the session that sends.
    pub(super) heard: bool,
    /// The index under which the endpoint finds this tunnel when the peer says that it has forgotten us.
    remote: Option<u32>,
    /// The PILI under way, to be sent to an address that comes to be known, and the ways by which it followed PILN.
    pub(super) initiation: Vec<u8>,
    pub(super) followed: Vec<Route>,
    began: Option<Instant>,
    /// Until when connections that said nothing yet wait for its streams.
    pub(super) hold_until: Option<Instant>,
    /// When to try S1 in a tunnel that has the draft's keys.
    upgrade_at: Option<Instant>,
    looks: u32,
    /// S1 was tried in vain: it is not tried again before there is some use for it.
    pub(super) rested: bool,
    /// The peer said that it knows nothing of the session that we had.
    forgotten: bool,
    /// The prekey that the application was told of, by its number.
    told: Option<u64>,
    /// Where early data came from that was taken.
    pub(super) answer_to: Option<Route>,
}

impl Secured {
    fn new(assoc: Association) -> Box<Self> {
        Box::new(Self {
            assoc,
            heard: false,
            remote: None,
            initiation: Vec::new(),
            followed: Vec::new(),
            began: None,
            hold_until: None,
            upgrade_at: None,
            looks: 0,
            rested: false,
            forgotten: false,
            told: None,
            answer_to: None,
        })
    }
}

impl Tunnel {
    /// S1 has keys to send with.
    pub(crate) fn in_s1(&self) -> bool {
        self.secure.as_ref().is_some_and(|s| s.assoc.current().is_some())
    }

    /// Which protection packets get now.
    pub(crate) fn mode(&self) -> Mode {
        if self.current.is_none() && self.in_s1() { Mode::S1 } else { Mode::Draft }
    }

    /// Whether frames of the draft may be sent and believed.
    pub(crate) fn allows_draft(&self) -> bool {
        self.floor < Mode::S1 && !self.in_s1()
    }

    /// The draft's keys have been replaced by those of S1, and still open what was under way.
    pub(crate) fn reads_draft(&self) -> bool {
        self.previous.is_some() && self.in_s1()
    }

    /// There are keys, of either mode.
    pub(super) fn keyed(&self) -> bool {
        self.current.is_some() || self.in_s1()
    }

    /// There are keys, and the peer has shown that it holds them.
    pub(super) fn confirmed(&self) -> bool {
        match &self.current {
            Some(session) => session.confirmed,
            None => self.in_s1() && self.secure.as_ref().is_some_and(|s| s.heard),
        }
    }

    /// Bytes that stand before a packet in its datagram.
    pub(super) fn head_len(&self) -> usize {
        if self.mode() == Mode::S1 { HEAD_LEN } else { pilotage_wire::frame::PILS_HEADER_LEN }
    }

    /// A path of this tunnel on which nothing is known yet.
    pub(super) fn fresh_path(&self, route: Option<Route>, cfg: &Config) -> Path {
        let mut path = Path::new(route, cfg);
        if self.mode() == Mode::S1 {
            path.set_overhead(OVERHEAD_S1);
        }
        path
    }

    /// Seals the packet at `frame[HEAD_LEN..]`. `None` if S1 has no keys.
    pub(super) fn seal_s1(&mut self, frame: &mut [u8], len: usize, now: Instant) -> Option<usize> {
        let assoc = &mut self.secure.as_mut()?.assoc;
        *frame.get_mut(S1_HEADER_LEN)? = LEGACY;
        assoc.seal(frame, len + 1, now).ok().map(|(total, _)| total)
    }

    /// The same, before the initiator whose early data we took has confirmed the session.
    pub(super) fn seal_s1_answer(&mut self, frame: &mut [u8], len: usize, now: Instant) -> Option<usize> {
        let assoc = &mut self.secure.as_mut()?.assoc;
        *frame.get_mut(S1_HEADER_LEN)? = LEGACY;
        assoc.seal_answer(frame, len + 1, now).ok().map(|(total, _)| total)
    }

    // ------------------------------------------------------------------ beginning

    /// Makes the association if there is none. `None` if we do not speak S1, or the peer's identity is not known.
    pub(super) fn ready_secure<'a>(
        &mut self,
        cx: &'a mut Option<Box<Secure>>,
        now: Instant,
    ) -> Option<(&mut Secured, &'a mut Node, Cx<'a>)> {
        let (node, mut s1) = cx.as_deref_mut()?.parts(now);
        if self.secure.is_none() {
            // Where our network has a secret, the node knows it.
            let psk = Secret::new(NO_PSK);
            let assoc = Association::unknown(self.index, self.key?, psk, &mut s1);
            self.secure = Some(Secured::new(assoc));
        }
        Some((self.secure.as_deref_mut()?, node, s1))
    }

    /// The application, or the peer's record, tells the peer's prekey. One of another identity is ignored.
    pub(crate) fn introduce_prekey(&mut self, prekey: PeerPrekey, cx: &mut TunnelCx<'_>) {
        if self.key != Some(prekey.identity) {
            return;
        }
        let Some((secured, node, mut s1)) = self.ready_secure(cx.secure, cx.now) else { return };
        if secured.assoc.set_prekey(node, prekey, &mut s1).is_err() {
            cx.stats.drop_bad_key_exchange += 1;
        }
    }

    /// Keys are wanted. Begins S1 where that comes first; says whether the draft's exchange is to begin as well, and when.
    pub(super) fn begin_s1_first(&mut self, cx: &mut TunnelCx<'_>) -> Option<Duration> {
        let only = self.floor == Mode::S1;
        if cx.secure.is_none() {
            return (!only).then_some(Duration::ZERO);
        }
        let known = self.secure.as_ref().is_some_and(|s| s.assoc.knows_prekey());
        let began = (only || known) && self.begin_s1(None, cx);
        match (only, began) {
            (true, _) => None,
            (false, true) => Some(HEAD_START),
            (false, false) => Some(Duration::ZERO),
        }
    }

    /// A handshake of ours is under way.
    pub(super) fn is_asking_s1(&self) -> bool {
        self.secure.as_ref().is_some_and(|s| s.assoc.is_connecting())
    }

    /// Begins a handshake, or goes on with the one under way. `also`: a way to send to besides those known.
    pub(super) fn begin_s1(&mut self, also: Option<Route>, cx: &mut TunnelCx<'_>) -> bool {
        let rtt = self.path.rtt.has_sample().then(|| self.path.rtt.smoothed());
        if self.is_asking_s1() {
            return true;
        }
        let frames = self.early_frames(cx);
        let early = EarlyData::idempotent(&frames).ok().filter(|_| !frames.is_empty());
        let Some((secured, node, mut s1)) = self.ready_secure(cx.secure, cx.now) else { return false };
        let begin = Begin { early, relayed: false, rtt };
        let mut made = secured.assoc.connect(node, begin, &mut s1);
        let refused = made.is_err();
        if matches!(made, Err(Refusal::Certificate | Refusal::Expired)) {
            secured.assoc.forget_prekey(&mut s1);
            made = secured.assoc.connect(node, Begin { early: None, ..begin }, &mut s1);
        }
        secured.began = Some(cx.now);
        if refused && early.is_some() {
            self.early_not_sent(cx);
        }
        let Ok(Some(datagram)) = made else { return false };
        self.send_initiation(datagram, also, cx);
        true
    }

    /// Queues a PILI for every way that may lead to the peer. Which of several comes first does not matter.
    fn send_initiation(&mut self, datagram: Vec<u8>, also: Option<Route>, cx: &mut TunnelCx<'_>) {
        let direct = match self.path.route {
            Some(Route::Direct(a)) => Some(a),
            _ => self.introduced,
        };
        let mut ways: Vec<Route> = Vec::new();
        let named: Vec<_> = if self.keyed() { Vec::new() } else { self.first_named() };
        for addr in direct.into_iter().chain(self.introduced).chain(named.iter().copied()) {
            ways.push(Route::Direct(addr));
        }
        ways.extend(also);
        ways.extend(self.relay_for(cx.relay));
        for addr in named {
            self.addresses.name(addr, cx.now);
        }
        for (i, way) in ways.iter().enumerate() {
            if !ways[..i].contains(way) {
                self.queue_handshake(*way, datagram.clone(), cx.now);
            }
        }
        if let Some(secured) = &mut self.secure {
            secured.initiation = datagram;
        }
    }

    /// Queues bytes for one way, as far as its credit goes (rule C16).
    fn queue_handshake(&mut self, route: Route, bytes: Vec<u8>, now: Instant) {
        self.addresses.refill(now);
        if self.permits(route) && self.exchange.has_room() && self.pay(route, bytes.len()) {
            self.exchange.push(ExchangeFrame { route, bytes });
        }
    }

    /// There is a new address to ask at.
    pub(crate) fn hurry_s1(&mut self, cx: &mut TunnelCx<'_>) {
        let keyed = self.keyed();
        if let Some(secured) = self.secure.as_mut().filter(|s| s.assoc.is_connecting() && !keyed) {
            secured.assoc.sent_again();
            let datagram = std::mem::take(&mut secured.initiation);
            self.send_initiation(datagram, None, cx);
        }
    }

    // ------------------------------------------------------------------ handshake frames of the peer

    /// A PILR, PILC or PILN that names an index of ours.
    pub(crate) fn on_s1_answer(
        &mut self,
        kind: Kind,
        datagram: &[u8],
        route: Route,
        cx: &mut TunnelCx<'_>,
    ) -> Result<(), Refusal> {
        let Some((secured, node, mut s1)) = self.ready_secure(cx.secure, cx.now) else {
            return Err(Refusal::Unexpected);
        };
        let news = secured.is_news(kind);
        let next = match kind {
            Kind::Response => {
                let up = secured.assoc.handle_response(node, datagram, &mut s1)?;
                self.early.on_answer(up.early_accepted, cx.stats);
                self.on_s1_up(route, true, cx);
                return Ok(());
            }
            Kind::Cookie => secured.assoc.handle_cookie(datagram, &mut s1)?,
            _ => {
                let next = secured.assoc.handle_new_prekey(node, datagram, &mut s1)?;
                secured.or_again(next, route)
            }
        };
        if let Some(datagram) = next {
            secured.initiation.clone_from(&datagram);
            self.queue_handshake(route, datagram, cx.now);
            self.wait_for_response(news, cx.now);
        }
        Ok(())
    }

    /// A peer that proved its identity, which is the one of this tunnel, would like a session.
    pub(crate) fn on_s1_incoming(
        &mut self,
        incoming: Incoming,
        route: Route,
        cx: &mut TunnelCx<'_>,
    ) -> Result<Brought, Refusal> {
        let prekey = incoming.prekey();
        let slot = self.index;
        let takes_early = cx.secure.as_ref().is_some_and(|secure| secure.early);
        let take_early = takes_early && incoming.early().is_some_and(early::is_taken);
        let Some((secured, node, mut s1)) = self.ready_secure(cx.secure, cx.now) else {
            return Err(Refusal::Unexpected);
        };
        secured.assoc.set_prekey(node, prekey, &mut s1)?;
        if !secured.assoc.yields_to_peer(node) {
            return Ok(Brought::default());
        }
        let psk = node.psk(incoming.address().network).cloned().unwrap_or_else(|| Secret::new(NO_PSK));
        let Accepted { datagram, session, early, displaced } =
            node.accept(incoming, slot, &psk, take_early, &mut s1)?;
        debug_assert_eq!(datagram.len(), RESPONSE_LEN);
        if early.is_some() {
            secured.answer_to = Some(route);
        }
        secured.assoc.adopt(node, session, early.is_some(), cx.now);
        self.queue_handshake(route, datagram, cx.now);
        Ok(Brought { displaced, early })
    }

    /// An unconfirmed session had to make room.
    pub(crate) fn drop_unconfirmed(&mut self, index: u32) {
        if let Some(secured) = &mut self.secure {
            secured.assoc.drop_unconfirmed(index);
        }
    }

    /// A frame of the draft came that may not be believed. If nothing else comes, the peer may have forgotten that it spoke S1 with us, and how
    /// to call us: then we call it. That costs whoever only feigns it as much as us, and is done seldom.
    pub(super) fn on_draft_refused(&mut self, route: Route, cx: &mut TunnelCx<'_>) {
        let trusted = self.path.route == Some(route) || self.introduced == Some(route.remote());
        if self.may_suspect_keys(self.last_valid, cx.now) {
            self.exchange.unopened = Some(cx.now);
            let also = (!trusted).then_some(route);
            if !self.is_asking_s1() {
                self.begin_s1(also, cx);
            } else if let Some(secured) = &mut self.secure {
                // The next try of ours may be far away.
                secured.assoc.hurry(cx.now);
                let datagram = secured.initiation.clone();
                if let Some(also) = also {
                    secured.assoc.sent_again();
                    self.queue_handshake(also, datagram, cx.now);
                }
            }
        }
    }

    // ------------------------------------------------------------------ up and down

    /// S1 has keys: packets leave under them from now on, and those of the draft only open what is under way.
    fn on_s1_up(&mut self, route: Route, initiator: bool, cx: &mut TunnelCx<'_>) {
        if let Some(old) = self.current.take() {
            self.previous = Some((old, cx.now + PREVIOUS_KEPT));
        }
        let known_before = self.authenticated && self.last_valid.is_some();
        // An answer of the draft that it overtook is no sign that the peer has forgotten us.
        self.last_valid = Some(cx.now);
        self.candidates.clear();
        self.exchange.end();
        self.revive_at = None;
        self.authenticated = true;
        (self.dialect, self.dialect_shown) = (Dialect::Pilotage, true);
        self.control.confirm_at = initiator.then(|| cx.now + Duration::from_millis(100));
        self.control.confirm_tries = 0;
        self.last_current = None;
        let Some(secured) = &mut self.secure else { return };
        secured.heard = !initiator;
        let forgotten = std::mem::take(&mut secured.forgotten);
        (secured.upgrade_at, secured.hold_until) = (None, None);
        (secured.initiation, secured.followed) = (Vec::new(), Vec::new());
        let took = secured.began.take().map_or(Duration::ZERO, |t| cx.now.saturating_duration_since(t));
        let handshake = if initiator { took } else { Duration::ZERO };
        self.register_remote(cx);
        self.take_route(route, cx);
        self.take_measured();
        self.path.set_overhead(OVERHEAD_S1);
        self.begin_streams(initiator, cx);
        self.agent.note(cx.now, PathEventKind::Keys(super::ways::way_of(route)));
        if initiator {
            self.plan_proof(cx.now);
            self.tell_token(route, cx);
            self.begin_upgrade(route, cx);
        }
        if forgotten || (known_before && !initiator) {
            // A restarted peer answers with RST, which ends streams of its former life at once.
            self.slots.for_each(Connection::probe_liveness);
            self.slots.touch_all();
        }
        cx.stats.handshakes += 1;
        cx.events.push_back(Event::TunnelUp { peer: self.node, handshake });
        if !initiator {
            self.on_s1_heard(cx);
        }
    }

    /// The way by which keys came is one that works; but a direct one that works too is better.
    fn take_route(&mut self, route: Route, cx: &TunnelCx<'_>) {
        if self.path.route.is_none() || (self.path.route != Some(route) && self.path.bytes_sent == 0) {
            let relayed = matches!(route, Route::Relay(_));
            let direct_heard = self.path.direct_heard.is_some();
            if !(relayed && direct_heard) && self.permits(route) {
                self.path = self.fresh_path(Some(route), cx.cfg);
            }
        }
        if matches!(route, Route::Direct(_)) {
            self.path.direct_heard = Some(cx.now);
        }
        self.sync_way(cx.now);
    }

    /// So that the endpoint finds us by what a PILX names.
    fn register_remote(&mut self, cx: &mut TunnelCx<'_>) {
        let (Some(secured), Some(secure)) = (&mut self.secure, cx.secure.as_deref_mut()) else { return };
        let index = secured.assoc.current().map(crate::s1::Session::remote_index);
        if let Some(old) = std::mem::replace(&mut secured.remote, index)
            && secure.remotes.get(&old) == Some(&self.index)
        {
            secure.remotes.remove(&old);
        }
        if let Some(index) = index {
            secure.remotes.insert(index, self.index);
        }
    }

    /// The first packet of a session that we began: the token with which we would say that we have forgotten it. That it opens confirms
    /// the session at the peer.
    fn tell_token(&mut self, route: Route, cx: &mut TunnelCx<'_>) {
        let Some(session) = self.secure.as_ref().and_then(|s| s.assoc.current()) else { return };
        let Some(&(seq, index)) = session.local_indices().first() else { return };
        let Some(secure) = cx.secure.as_deref() else { return };
        let token = secure.node.reset_token(index);
        self.queue_frame(route, &Frame::NewIndex { seq, retire: 0, index, token }, cx.now);
    }

    /// Seals one frame into a datagram of its own, for one way. At most 64 bytes.
    pub(crate) fn queue_frame(&mut self, route: Route, frame: &Frame<'_>, now: Instant) {
        let mut bytes = vec![0; S1_OVERHEAD + 64];
        let Ok(len) = frame.encode(&mut bytes[S1_HEADER_LEN..S1_HEADER_LEN + 64]) else { return };
        self.queue_sealed(route, bytes, len, now);
    }

    /// The frame of so many bytes stands where it belongs.
    pub(super) fn queue_sealed(&mut self, route: Route, mut bytes: Vec<u8>, len: usize, now: Instant) {
        let Some(secured) = &mut self.secure else { return };
        if !self.exchange.has_room() {
            return;
        }
        if let Ok((total, _)) = secured.assoc.seal(&mut bytes, len, now) {
            bytes.truncate(total);
            self.queue_handshake(route, bytes, now);
        }
    }

    /// The peer has sent under the keys that we send with: both sides have them. From now on S1 is the least.
    fn on_s1_heard(&mut self, cx: &mut TunnelCx<'_>) {
        let Some(secured) = &mut self.secure else { return };
        secured.heard = true;
        self.floor = Mode::S1;
        let prekey = *secured.assoc.peer();
        if secured.assoc.knows_prekey() && secured.told != Some(prekey.certificate.seq) {
            secured.told = Some(prekey.certificate.seq);
            cx.events.push_back(Event::PeerSecured { peer: self.node, prekey: Box::new(prekey) });
        }
    }

    /// Opens a data frame of the peer in place; what is in it is for the endpoint to read. Tells also whether it came under the keys in use.
    pub(crate) fn open_s1(
        &mut self,
        datagram: &mut [u8],
        route: Route,
        cx: &mut TunnelCx<'_>,
    ) -> Result<(Opened, bool), OpenError> {
        let (Some(secured), Some(secure)) = (&mut self.secure, cx.secure.as_deref_mut()) else {
            return Err(OpenError::UnknownIndex);
        };
        let opened = secured.assoc.open(&mut secure.node, datagram, cx.now)?;
        let current = secured.assoc.current().is_some_and(|s| s.listens_to(opened.index));
        let heard = secured.heard;
        self.last_valid = Some(cx.now);
        self.arrived = Some(route);
        if current {
            if opened.confirms {
                self.on_s1_up(route, false, cx);
            } else if !heard {
                self.on_s1_heard(cx);
            }
            self.last_current = Some(cx.now);
            self.on_authentic(route, cx.now);
            if opened.newest {
                self.on_valid_route(route, cx);
            }
        }
        Ok((opened, current))
    }

    /// A PILX that may be about the session in use. If it is genuine the peer has forgotten us, and is called again.
    pub(crate) fn on_s1_reset(&mut self, datagram: &[u8], cx: &mut TunnelCx<'_>) -> bool {
        let Some((secured, node, _)) = self.ready_secure(cx.secure, cx.now) else { return false };
        if !secured.assoc.handle_reset(node, datagram) {
            return false;
        }
        // What is left, if anything, is older still: who forgot this one has forgotten that.
        secured.assoc.drop_current(node);
        secured.heard = false;
        secured.forgotten = true;
        self.register_remote(cx);
        if self.open_count() > 0 || self.has_work() {
            self.want_keys(cx);
        }
        true
    }

    /// The session is over: by the peer's word, by ours, or because it is used up.
    pub(crate) fn end_s1(&mut self, cx: &mut TunnelCx<'_>) {
        if let Some((secured, node, _)) = self.ready_secure(cx.secure, cx.now) {
            secured.assoc.drop_current(node);
            secured.heard = false;
        }
        self.register_remote(cx);
    }

    /// What the peer sent is against the protocol: tells it why, and ends the session.
    pub(crate) fn refuse_s1(&mut self, code: u64, cx: &mut TunnelCx<'_>) {
        cx.stats.drop_malformed += 1;
        if let Some(route) = self.path.route {
            self.queue_frame(route, &Frame::Close { code, reason: "" }, cx.now);
        }
        self.close_streams(cx);
        self.end_s1(cx);
    }

    /// Everything of S1 is over, and the indices are free for others. What is known of the peer stays.
    pub(crate) fn close_s1(&mut self, secure: &mut Option<Box<Secure>>) {
        let (Some(secured), Some(secure)) = (&mut self.secure, secure.as_deref_mut()) else { return };
        secured.assoc.close(&mut secure.node);
        secured.heard = false;
        secured.upgrade_at = None;
        if let Some(old) = secured.remote.take()
            && secure.remotes.get(&old) == Some(&self.index)
        {
            secure.remotes.remove(&old);
        }
    }

    /// NEW_INDEX of the peer. `false` if it must not say so.
    pub(crate) fn on_new_index(
        &mut self,
        (seq, retire, index): (u64, u64, u32),
        token: [u8; 16],
        route: Route,
        cx: &mut TunnelCx<'_>,
    ) -> bool {
        let Some(session) = self.secure.as_mut().and_then(|s| s.assoc.current_mut()) else { return true };
        if !session.on_new_index(seq, index, token) {
            return false;
        }
        for retired in session.retire_before(retire) {
            self.queue_frame(route, &Frame::RetireIndex(retired), cx.now);
        }
        self.register_remote(cx);
        true
    }

    /// RETIRE_INDEX of the peer.
    pub(crate) fn on_retire_index(&mut self, seq: u64, cx: &mut TunnelCx<'_>) {
        if let Some((secured, node, _)) = self.ready_secure(cx.secure, cx.now) {
            secured.assoc.retire_index(node, seq);
        }
    }

    // ------------------------------------------------------------------ time

    pub(super) fn s1_deadline(&self) -> Option<Instant> {
        let secured = self.secure.as_ref()?;
        [secured.assoc.deadline(), secured.upgrade_at, secured.hold_until].into_iter().flatten().min()
    }

    pub(super) fn on_s1_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        if self.secure.is_none() {
            return;
        }
        let now = cx.now;
        let works = self.current.is_some() && self.floor < Mode::S1;
        let Some((secured, node, mut s1)) = self.ready_secure(cx.secure, now) else { return };
        let (attempts, had) = (secured.assoc.attempts(), secured.assoc.current().is_some());
        let due = secured.assoc.deadline().is_some_and(|t| t <= now);
        let out = if due { secured.assoc.handle_timeout(node, &mut s1) } else { Timeout::Nothing };
        let lost = had && secured.assoc.current().is_none();
        // Whoever does not answer while the draft's keys work is left in peace for a while.
        let vain = works && attempts >= UPGRADE_TRIES;
        match out {
            Timeout::Send(_) if vain => {
                secured.assoc.abandon(node);
                secured.upgrade_at = Some(now + UPGRADE_REST);
                secured.rested = true;
            }
            Timeout::Send(datagram) => {
                self.send_initiation(datagram, None, cx);
                if attempts >= WANT_ADDRESS_FROM {
                    self.want_address(cx);
                }
            }
            Timeout::GaveUp | Timeout::Nothing => {}
        }
        if lost {
            self.end_s1(cx);
        }
        self.repeat_upgrade(now);
        if self.secure.as_ref().is_some_and(|s| s.upgrade_at.is_some_and(|t| t <= now)) {
            self.try_upgrade(cx);
        }
    }

    /// The draft's keys are agreed: S1 is tried soon, by the side that asked for them (if both did, by both, §6.6).
    pub(super) fn plan_upgrade(&mut self, cx: &mut TunnelCx<'_>) {
        let wait = if self.exchange_asked() { Duration::ZERO } else { UPGRADE_SECOND };
        if self.key.is_some()
            && let Some((secured, ..)) = self.ready_secure(cx.secure, cx.now)
        {
            secured.upgrade_at = Some(cx.now + wait);
            secured.looks = 0;
            secured.rested = false;
        }
    }

    fn try_upgrade(&mut self, cx: &mut TunnelCx<'_>) {
        let ours = self.dialect == Dialect::Pilotage && self.current.as_ref().is_some_and(|s| s.confirmed);
        let draft = self.current.is_some();
        let idle = self.is_idle() && self.warm_until.is_none();
        let Some(secured) = &mut self.secure else { return };
        secured.upgrade_at = None;
        if !draft {
            return;
        }
        // Also where nothing is open any more: one short stream is all that some tunnels carry, and what was not tried then
        // would not be remembered for the next.
        if idle && secured.rested {
            secured.upgrade_at = Some(cx.now + UPGRADE_REST);
            return;
        }
        if ours {
            self.begin_s1(None, cx);
        } else if secured.looks < UPGRADE_LOOKS {
            secured.upgrade_at = Some(cx.now + UPGRADE_AGAIN * (1 << secured.looks));
            secured.looks += 1;
        }
    }

    /// The peer would like a new handshake.
    pub(crate) fn renew_s1(&mut self, cx: &mut TunnelCx<'_>) {
        let young = |s: &crate::s1::Session| s.age(cx.now) < RENEW_PAUSE;
        if !self.secure.as_ref().and_then(|s| s.assoc.current()).is_some_and(young) {
            self.begin_s1(None, cx);
        }
    }

    /// Before a packet leaves under S1: whether the keys are still good, and whether new ones are due. `false` if nothing may leave.
    pub(super) fn keep_s1(&mut self, cx: &mut TunnelCx<'_>) -> bool {
        let Some(session) = self.secure.as_ref().and_then(|s| s.assoc.current()) else { return true };
        if session.is_exhausted(cx.now) {
            self.end_s1(cx);
            return false;
        }
        if session.wants_rekey(cx.now) {
            self.begin_s1(None, cx);
        }
        !self.waits_for_upgrade(cx)
    }

    /// As rule C9: we have data under way and hear nothing under the keys in use. A new handshake disturbs nothing.
    pub(super) fn suspect_s1_silence(&mut self, cx: &mut TunnelCx<'_>) {
        let Some(session) = self.secure.as_ref().and_then(|s| s.assoc.current()) else { return };
        let age = session.age(cx.now);
        let silent = self.last_current.map_or(age, |t| cx.now.saturating_duration_since(t));
        if silent >= self.path.silence_bound().min(super::exchange::REVIVE_MAX) {
            self.begin_s1(None, cx);
        }
    }
}
