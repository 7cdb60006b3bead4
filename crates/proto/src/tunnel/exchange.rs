//! Key exchange with one peer: PILA out, PILA in, re-keying, healing after a restart (spec/tunnel.md §3, §6).
//!
//! 1. The side that wants keys sends PILA with the *request* flag, and repeats it.
//! 2. The other derives a session, answers with PILA and the *answer* flag.
//! 3. First contact: both send under the session at once. Otherwise the session is a *candidate* (rule C2)
//!    until a frame opens under it; the side that asked sends an echo request under it, which makes the
//!    other's first frame.
//!
//! An answer is never answered, so two sides cannot keep each other busy.

use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_nat::agent::PathEventKind;
use pilotage_wire::frame::{self, PILA_LEN, Pila, PilaTrailer};
use rand_core::Rng;

use super::answers::Answers;
use super::{CANDIDATE_KEPT, PREVIOUS_KEPT, Route, Session, Tunnel, TunnelCx};
use crate::connection::{Connection, Dialect};
use crate::crypto::{self, EphemeralKey};
use crate::event::{ConnectError, Event};

/// Version of our dialect, carried in the trailer of PILA (spec/tunnel.md §3.4).
const DIALECT_VERSION: u8 = 1;
/// Bytes of our trailer: capabilities, flags, mark and version.
const PILA_TRAILER_LEN: usize = 7;
/// First wait for an answer; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// From this try on the relay is used beside the direct route.
const RELAY_FROM: u32 = 1;
/// From this try on the application is asked whether it knows a newer address.
const WANT_ADDRESS_FROM: u32 = 2;
/// Key exchange frames that wait to be sent, and those of the draft among them: a first call asks in both modes at once.
const OUTBOX_MAX: usize = 16;
const PILA_MAX: usize = 8;
/// From this try on each one carries a fresh key: a reference peer that already has a session with us
/// answers only when the key changed (draft-01 facts §5, point 3).
const FRESH_KEY_FROM: u32 = 3;
/// Keys of the peer that were replaced while we kept ours (rule C1). Half of that many make us renew ours, which
/// makes the list needless.
const RETIRED_MAX: usize = 64;
/// Keys that wait to be shown by the peer, at one time: with old frames of ours replayed as fast as the limits of rule
/// C10 allow, the peer's present ones stay long enough to be shown.
const CANDIDATES_MAX: usize = 8;
/// When keys that were shown are shown again.
const CONFIRM_AGAIN: Duration = Duration::from_millis(500);
/// Time without a valid frame after which one that does not open makes us ask for keys, and time between two such
/// requests.
const UNOPENED_AFTER: Duration = Duration::from_secs(2);
/// Unanswered requests for new keys in a tunnel in which nothing waits, after which we rest.
const RENEWALS_MAX: u32 = 30;
/// Longest wait between two tries to revive a silent peer (rule C9).
pub(super) const REVIVE_MAX: Duration = Duration::from_secs(4);

/// A key exchange frame ready to send.
#[derive(Debug)]
pub(crate) struct ExchangeFrame {
    pub(crate) route: Route,
    pub(crate) bytes: Vec<u8>,
}

/// Keys agreed by a verified frame that no frame of the peer has opened under yet (rule C2).
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) session: Session,
    /// Where the key exchange frame came from: the confirmation goes there.
    pub(crate) route: Route,
    pub(crate) until: Instant,
    /// To be shown to the peer with the next frame.
    pub(crate) show: bool,
}

/// What is under way with one peer.
#[derive(Debug, Default)]
pub(crate) struct KeyExchange {
    /// Our key pair for this peer: fresh for the peer and the process (rule C5).
    local: Option<EphemeralKey>,
    /// A newer pair that the peer has been told of but has not used yet.
    rekey: Option<EphemeralKey>,
    /// Keys of the peer that were in use together with `local` and were replaced: a replayed frame with one of
    /// them would give an old session again, with an empty replay window.
    retired: Vec<[u8; 32]>,
    /// When we began to want keys, and until when we try.
    started: Option<Instant>,
    give_up_at: Option<Instant>,
    attempt: u32,
    retry_at: Option<Instant>,
    /// For the direct way and the relay.
    answers: [Answers; 2],
    /// We asked and the session that comes of it has to be confirmed by us.
    asked: bool,
    /// A frame under another identity came from where the peer should be.
    wrong_key: bool,
    outbox: Vec<ExchangeFrame>,
    /// When we last asked because of a frame that did not open.
    pub(super) unopened: Option<Instant>,
}

impl KeyExchange {
    pub(crate) fn stop(&mut self) {
        self.started = None;
        self.give_up_at = None;
        self.retry_at = None;
        self.attempt = 0;
        self.outbox.clear();
    }

    /// There is a new address to ask at: at once, if we are asking.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if self.started.is_some() && self.retry_at.is_some() {
            self.retry_at = Some(now);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.retry_at, self.give_up_at].into_iter().flatten().min()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.started.is_some()
    }

    /// Another frame may wait.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_MAX
    }

    /// A frame that is ready to be sent, of whatever mode.
    pub(crate) fn push(&mut self, frame: ExchangeFrame) {
        if self.has_room() {
            self.outbox.push(frame);
        }
    }

    /// Other keys than the draft's are in use: nothing is asked or owed any more.
    pub(crate) fn end(&mut self) {
        self.stop();
        self.rekey = None;
        self.asked = false;
    }

    pub(crate) fn has_frame(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub(crate) fn next_frame(&mut self) -> Option<ExchangeFrame> {
        if self.outbox.is_empty() { None } else { Some(self.outbox.remove(0)) }
    }

    /// Whether a frame of the peer that came by this way may be answered now. The two kinds of way have budgets of their
    /// own: answers through a relay that loses them must not use up those that would arrive.
    fn may_answer(&mut self, route: Route, now: Instant) -> bool {
        if fault::point!("proto.exchange.answers_used_up") {
            return false;
        }
        self.answers[usize::from(matches!(route, Route::Relay(_)))].take(now)
    }
}

/// What became of a key exchange frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExchangeFate {
    Accepted,
    BadKey,
    BadSignature,
    NotAllowed,
}

impl Tunnel {
    /// Something waits and there are no keys: begins the exchange unless it is under way.
    pub(crate) fn want_keys(&mut self, cx: &mut TunnelCx<'_>) {
        if self.can_send() || self.exchange.started.is_some() {
            return;
        }
        self.exchange.started = Some(cx.now);
        if let Some(endpoint) = self.introduced {
            self.addresses.introduce(endpoint, cx.now); // the application wants it anew
        }
        self.exchange.give_up_at = Some(cx.now + cx.cfg.connect_timeout);
        self.exchange.attempt = 0;
        match self.begin_s1_first(cx) {
            Some(Duration::ZERO) => {
                self.ask(cx);
                self.ask_prekey_too(cx);
            }
            Some(head_start) => self.exchange.retry_at = Some(cx.now + head_start),
            None if self.is_asking_s1() => {}
            None => self.fail(ConnectError::ModeRefused, cx),
        }
    }

    /// Somebody new waits for keys: an exchange that is under way gets the full time again.
    pub(crate) fn prolong_exchange(&mut self, until: Instant) {
        if let Some(at) = &mut self.exchange.give_up_at {
            *at = until.max(*at);
        }
    }

    /// Sends the request and plans the next one.
    fn ask(&mut self, cx: &mut TunnelCx<'_>) {
        let attempt = self.exchange.attempt;
        if attempt >= FRESH_KEY_FROM && self.dialect == Dialect::Draft {
            let fresh = new_key(cx);
            if self.current.is_some() {
                self.exchange.rekey = Some(fresh);
            } else {
                self.exchange.set_local(fresh);
            }
        }
        self.exchange.asked = true;
        if attempt == 0 {
            self.agent.note(cx.now, PathEventKind::Begun);
        }
        self.ask_everywhere(attempt, cx);
        if attempt >= WANT_ADDRESS_FROM {
            self.want_address(cx);
        }
        self.exchange.attempt += 1;
        let wait = (RETRY_FIRST * (1 << attempt.min(8))).min(RETRY_MAX);
        // Spread by up to a quarter: those who began at the same moment must not meet in the same queue at each try.
        self.exchange.retry_at = Some(cx.now + wait - wait / 1_024 * u32::from(random4(cx)[0]));
    }

    /// Queues the request for every way that may lead to the peer.
    fn ask_everywhere(&mut self, attempt: u32, cx: &mut TunnelCx<'_>) {
        let direct = match self.path.route {
            Some(Route::Direct(a)) => Some(a),
            _ => self.introduced,
        };
        if let Some(to) = direct {
            self.queue_pila(Route::Direct(to), PilaTrailer::REQUEST, cx);
        }
        // The peer may have come back elsewhere, and the caller may have been told where.
        if let Some(to) = self.introduced.filter(|to| direct.is_some_and(|d| d != *to)) {
            self.queue_pila(Route::Direct(to), PilaTrailer::REQUEST, cx);
        }
        let named: Vec<_> = self.first_named().into_iter().filter(|a| Some(*a) != direct).collect();
        // A reference peer that hears us by the relay first answers by the relay for ever: where the peer may be one, the
        // direct way has a head start.
        let pilotage = !named.is_empty() || self.dialect == Dialect::Pilotage;
        let at_once = direct.is_none() || pilotage || cx.locals.udp_blocked;
        for to in named {
            self.addresses.name(to, cx.now);
            self.queue_pila(Route::Direct(to), PilaTrailer::REQUEST, cx);
        }
        if let (Some(route), true) = (self.relay_for(cx.relay), at_once || attempt >= RELAY_FROM) {
            self.queue_pila(route, PilaTrailer::REQUEST, cx);
        }
    }

    /// The present keys are those that we asked for.
    pub(super) fn exchange_asked(&self) -> bool {
        self.exchange.asked
    }

    /// The key pair that new sessions are derived from: the newest that the peer was told of.
    fn exchange_key(&mut self, cx: &mut TunnelCx<'_>) -> &EphemeralKey {
        if self.exchange.rekey.is_none() && self.exchange.local.is_none() {
            self.exchange.local = Some(new_key(cx));
        }
        match (&self.exchange.rekey, &self.exchange.local) {
            (Some(k), _) | (None, Some(k)) => k,
            (None, None) => unreachable!("a key was just made"),
        }
    }

    fn queue_pila(&mut self, route: Route, flags: u64, cx: &mut TunnelCx<'_>) {
        if !self.allows_draft()
            || !self.permits(route)
            || self.exchange.outbox.len() >= PILA_MAX
            || fault::point!("proto.exchange.lose_frame")
        {
            return;
        }
        self.addresses.refill(cx.now);
        // Without our mark the frame is as short as any, so an answer never exceeds the question (rule C16).
        let stranger = match route {
            Route::Direct(addr) if !self.trusts(route) => Some(self.addresses.allowance(addr)),
            _ => None,
        };
        let full = PILA_LEN + PILA_TRAILER_LEN;
        if stranger.is_some_and(|allowed| allowed < PILA_LEN) {
            return;
        }
        let bare = stranger.is_some_and(|allowed| allowed < full);
        let x25519 = self.exchange_key(cx).public();
        let sender = cx.local.node;
        let signature = cx.identity.sign(&frame::pila_signed_message(sender, &x25519));
        let mut trailer = [0u8; 32];
        let trailer_len = if bare {
            0
        } else {
            PilaTrailer { capabilities: 0, flags, pilotage: Some(DIALECT_VERSION) }.encode(&mut trailer)
        };
        debug_assert!(trailer_len <= PILA_TRAILER_LEN);
        let pila = Pila {
            sender,
            x25519,
            ed25519: cx.identity.public_key(),
            signature,
            trailer: &trailer[..trailer_len],
        };
        let mut bytes = vec![0; PILA_LEN + trailer_len];
        if let Ok(len) = frame::encode_pila(&pila, &mut bytes) {
            bytes.truncate(len);
            if !self.pay(route, len) {
                return;
            }
            self.exchange.outbox.push(ExchangeFrame { route, bytes });
        }
    }

    /// A PILA of this peer arrived. The caller has checked rate limits (rule C10).
    pub(crate) fn on_pila(&mut self, pila: &Pila<'_>, route: Route, cx: &mut TunnelCx<'_>) -> ExchangeFate {
        match self.key {
            Some(key) if key != pila.ed25519 => {
                // Whoever sits there is not the peer. Said when we give up, because anybody can send this.
                self.exchange.wrong_key |= self.introduced == Some(route.remote());
                return ExchangeFate::BadKey;
            }
            Some(_) => {}
            None => return ExchangeFate::NotAllowed, // the endpoint looks the key up first
        }
        if !self.allows_draft() {
            self.on_draft_refused(route, cx);
            return ExchangeFate::NotAllowed;
        }
        let trailer = PilaTrailer::decode(pila.trailer);
        let wants_answer = trailer.flags & PilaTrailer::ANSWER == 0;
        let known = self.current.as_ref().is_some_and(|s| s.peer_public == pila.x25519);
        if known && self.exchange.rekey.is_none() {
            // Rule C1: nothing changes; the peer may have missed our frame. If we were looking for it, the route
            // by which it came may be one that works.
            if self.revive_at.is_some() && self.path.route != Some(route) {
                self.try_route = Some(route);
            }
            if wants_answer {
                self.answer_exchange(route, PilaTrailer::ANSWER, cx);
            }
            return ExchangeFate::Accepted;
        }
        if self.exchange.rekey.is_none() && self.exchange.is_retired(&pila.x25519) {
            cx.stats.drop_replay += 1;
            return self.on_retired_key(pila, cx);
        }
        let message = frame::pila_signed_message(pila.sender, &pila.x25519);
        if !crypto::verify(&pila.ed25519, &message, &pila.signature) {
            return ExchangeFate::BadSignature;
        }
        if trailer.pilotage.is_some() && !self.dialect_shown {
            self.dialect = Dialect::Pilotage;
        }
        self.authenticated = true;
        self.adopt_key(pila.x25519, route, wants_answer, cx);
        ExchangeFate::Accepted
    }

    /// A key that we replaced came again. It is a replay as long as frames open under the present one. After a silence the
    /// peer may mean it: frames of two exchanges that overtook each other can leave the two sides with different keys. It
    /// cannot come back, so ours changes, at most once in [`UNOPENED_AFTER`].
    fn on_retired_key(&mut self, pila: &Pila<'_>, cx: &mut TunnelCx<'_>) -> ExchangeFate {
        // Frames under the replaced keys are no sign that the present ones are shared.
        if !self.may_suspect_keys(self.last_current, cx.now) {
            return ExchangeFate::Accepted;
        }
        let message = frame::pila_signed_message(pila.sender, &pila.x25519);
        if !crypto::verify(&pila.ed25519, &message, &pila.signature) {
            return ExchangeFate::BadSignature;
        }
        self.exchange.unopened = Some(cx.now);
        self.renew(cx);
        ExchangeFate::Accepted
    }

    /// Nothing valid has come since `heard`, for a while, and we have not asked because of that: the two sides may hold different keys.
    pub(super) fn may_suspect_keys(&self, heard: Option<Instant>, now: Instant) -> bool {
        let elapsed = |t: Option<Instant>| t.map(|t| now.saturating_duration_since(t));
        let heard = elapsed(heard).is_some_and(|t| t < UNOPENED_AFTER);
        let asked = elapsed(self.exchange.unopened).is_some_and(|t| t < UNOPENED_AFTER);
        !heard && !asked
    }

    /// An anonymous PILK arrived: only by explicit permission, and never once a key is known (rule C6).
    pub(crate) fn on_pilk(&mut self, x25519: [u8; 32], route: Route, cx: &mut TunnelCx<'_>) -> ExchangeFate {
        if !self.policy.allow_unauthenticated || self.key.is_some() || !self.allows_draft() {
            return ExchangeFate::NotAllowed;
        }
        let known = self.current.as_ref().is_some_and(|s| s.peer_public == x25519);
        if !known {
            self.adopt_key(x25519, route, true, cx);
        }
        ExchangeFate::Accepted
    }

    fn adopt_key(&mut self, peer_public: [u8; 32], route: Route, answer: bool, cx: &mut TunnelCx<'_>) {
        let local_public = self.exchange_key(cx).public();
        let same = |s: &Session| s.peer_public == peer_public && s.local_public == local_public;
        let known =
            self.candidates.iter().any(|c| same(&c.session)) || self.current.as_ref().is_some_and(same);
        if !known {
            let random = random4(cx);
            let Some(session) = Session::new(self.exchange_key(cx), peer_public, random, cx.now) else {
                cx.stats.drop_bad_key_exchange += 1;
                return;
            };
            if self.current.is_some() {
                self.add_candidate(session, route, cx.now);
            } else {
                self.first_contact(session, route, answer, cx);
            }
        }
        if answer {
            self.answer_exchange(route, PilaTrailer::ANSWER, cx);
        }
        if self.exchange.asked {
            // We asked: it is on us to show the new keys first. First contact needs no extra frame where data follows
            // anyway.
            match self.candidates.iter_mut().find(|c| same(&c.session)) {
                Some(candidate) => candidate.show = true,
                None => {
                    self.control.confirm_at = Some(cx.now + Duration::from_millis(100));
                    self.control.confirm_tries = 0;
                    return;
                }
            }
            if self.control.confirm_at.is_none() {
                self.control.confirm_at = Some(cx.now + CONFIRM_AGAIN);
                self.control.confirm_tries = 1;
            }
        }
    }

    /// Keys that the peer has not shown. Which of several are the peer's present ones and which come of replayed frames
    /// only the peer can tell, so none replaces another before the bound is reached.
    fn add_candidate(&mut self, session: Session, route: Route, now: Instant) {
        if self.candidates.len() >= CANDIDATES_MAX {
            self.candidates.remove(0);
        }
        self.candidates.push(Candidate { session, route, until: now + CANDIDATE_KEPT, show: false });
    }

    /// No session at all: the new keys serve at once (rule C2, "first contact"). `called`: the peer's frame does not say that it
    /// is an answer.
    fn first_contact(&mut self, session: Session, route: Route, called: bool, cx: &mut TunnelCx<'_>) {
        self.current = Some(session);
        if self.exchange.asked {
            self.plan_proof(cx.now);
        }
        if let Some(rekey) = self.exchange.rekey.take() {
            self.exchange.set_local(rekey);
        }
        if self.path.route.is_none() || (self.path.route != Some(route) && self.path.bytes_sent == 0) {
            // The answer shows which of the routes works; prefer direct if both do.
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
        self.agent.note(cx.now, PathEventKind::Keys(super::ways::way_of(route)));
        let handshake = self.exchange.started.map_or(Duration::ZERO, |t| cx.now.saturating_duration_since(t));
        let crossed = called && self.dialect == Dialect::Pilotage;
        if self.exchange.attempt == 1 && !handshake.is_zero() && !crossed {
            self.path.rtt.update(handshake); // asked once, so the answer is to that (Karn)
        }
        self.exchange.stop_asking();
        self.wait_for_streams(crossed, cx);
        self.plan_upgrade(cx);
        cx.stats.handshakes += 1;
        cx.events.push_back(Event::TunnelUp { peer: self.node, handshake });
    }

    /// A frame opened under the candidate: the peer holds the new keys.
    pub(crate) fn promote_candidate(&mut self, index: usize, cx: &mut TunnelCx<'_>) {
        if index >= self.candidates.len() {
            return;
        }
        let session = self.candidates.swap_remove(index).session;
        self.candidates.clear();
        if let Some(rekey) = self.exchange.rekey.take()
            && rekey.public() == session.local_public
        {
            self.exchange.set_local(rekey);
        }
        let key = session.peer_public;
        if let Some(old) = self.current.replace(session) {
            if old.peer_public != key {
                self.end_former_life();
            }
            self.exchange.retire(&old);
            self.previous = Some((old, cx.now + PREVIOUS_KEPT));
        }
        self.control.confirm_at = None;
        if !self.exchange.asked {
            // A restarted peer answers with RST, which ends streams of its former life at once.
            self.slots.for_each(Connection::probe_liveness);
            self.slots.touch_all();
        }
        self.exchange.stop_asking();
        self.exchange.asked = false;
        cx.stats.handshakes += 1;
        cx.events.push_back(Event::TunnelUp { peer: self.node, handshake: Duration::ZERO });
    }

    /// A reference peer makes one key per process, so another one is another process, which knows none of our streams. It
    /// would not say so, and it begins again with the same ports and numbers: any word about an old stream of ours would
    /// end its new one (spec/stream.md §5.7).
    fn end_former_life(&mut self) {
        if self.dialect == Dialect::Draft && self.dialect_shown {
            let path = &mut self.path;
            self.slots.for_each(|c| c.on_peer_reborn(path));
            self.slots.touch_all();
        }
    }

    /// Rule C8: new keys before the volume or time limit, and at once if the prefixes collide (rule C5).
    pub(crate) fn rekey_if_due(&mut self, cx: &mut TunnelCx<'_>) {
        let Some(current) = &self.current else { return };
        let old = cx.now.saturating_duration_since(current.created) >= cx.cfg.rekey_after;
        let due = current.counter >= cx.cfg.rekey_after_frames
            || old
            || current.prefix_collides()
            || fault::point!("proto.exchange.renew_early")
            || self.exchange.retired.len() >= RETIRED_MAX / 2;
        // Keys of the peer's that are on their way save us ours; but replayed frames can feign them for ever.
        let overdue = current.counter >= cx.cfg.rekey_after_frames.saturating_mul(2)
            || cx.now.saturating_duration_since(current.created) >= cx.cfg.rekey_after * 2;
        let waits = !self.candidates.is_empty() && !overdue;
        if due
            && self.exchange.rekey.is_some()
            && self.exchange.retry_at.is_none()
            && self.revive_at.is_none()
        {
            // The peer was silent and was asked in another way meanwhile (rule C9); that has ended, and the renewal is
            // still owed. Without it the tunnel would stay closed once the hard limit is reached.
            self.ask(cx);
            return;
        }
        // Keys that were used up before the peer showed them can never be confirmed: nothing more leaves under them.
        let usable = current.confirmed || self.is_exhausted(cx.cfg.rekey_after_frames);
        if !due || !usable || self.exchange.rekey.is_some() || waits {
            return;
        }
        self.renew(cx);
    }

    /// Tells the peer of a new key pair of ours.
    fn renew(&mut self, cx: &mut TunnelCx<'_>) {
        // Keys made with our old pair must not come into use beside those of the new one: the two sides could end up
        // with different ones.
        self.candidates.clear();
        self.exchange.rekey = Some(new_key(cx));
        self.exchange.attempt = 0;
        self.ask(cx);
    }

    /// Whether sealing must stop because re-keying failed for too long (hard limit behind rule C8).
    pub(crate) fn is_exhausted(&self, limit: u64) -> bool {
        self.current.as_ref().is_some_and(|s| s.counter >= limit.saturating_mul(4))
    }

    /// Rule C9: we have data under way and hear nothing valid: the peer may have restarted.
    pub(crate) fn suspect_silence(&mut self, cx: &mut TunnelCx<'_>) {
        if self.current.is_none() {
            return self.suspect_s1_silence(cx);
        }
        if self.revive_at.is_some() {
            return;
        }
        // Frames under the replaced keys do not count: who still uses them may not have the present ones.
        let since = self.last_current.or(self.current.as_ref().map(|s| s.created));
        let silent = since.is_some_and(|t| {
            cx.now.saturating_duration_since(t) >= self.path.silence_bound().min(REVIVE_MAX)
        });
        if silent {
            self.revivals = 0;
            self.revive_at = Some(cx.now);
            self.revive(cx);
        }
    }

    /// Sends our PILA again: 1, 2, 4 s apart, as long as something waits for an answer.
    pub(crate) fn revive(&mut self, cx: &mut TunnelCx<'_>) {
        if !self.awaits_peer() && !self.has_work() {
            self.revive_at = None;
            return;
        }
        self.exchange.attempt = self.revivals;
        self.ask(cx);
        self.exchange.retry_at = None;
        let wait = Duration::from_secs(1 << self.revivals.min(2)).min(REVIVE_MAX);
        self.revivals = self.revivals.saturating_add(1);
        self.revive_at = Some(cx.now + wait);
    }

    /// A sealed frame came for which we hold no keys: tell the peer ours (draft-01 facts §5, point 4).
    pub(crate) fn on_frame_without_keys(&mut self, route: Route, cx: &mut TunnelCx<'_>) {
        if self.key.is_some() {
            self.exchange.asked |= self.answer_exchange(route, PilaTrailer::REQUEST, cx);
        }
    }

    /// Answers by the way on which a frame came, as far as the budget goes. True if there was any.
    ///
    /// A reference peer that knows us takes no key exchange by the relay any more, and after one bad moment speaks by the
    /// relay for ever: it is answered directly as well, where we know how.
    fn answer_exchange(&mut self, route: Route, flags: u64, cx: &mut TunnelCx<'_>) -> bool {
        let direct = match (route, self.introduced) {
            (Route::Relay(_), Some(at)) if self.dialect == Dialect::Draft => Some(Route::Direct(at)),
            _ => None,
        };
        // Where no direct frames may leave, a direct question is answered by the relay.
        let route = if self.permits(route) { route } else { self.relay_for(cx.relay).unwrap_or(route) };
        let mut answered = false;
        for way in [Some(route), direct].into_iter().flatten() {
            if self.exchange.may_answer(way, cx.now) {
                self.queue_pila(way, flags, cx);
                answered = true;
            }
        }
        answered
    }

    /// A frame that nothing opens came from where the peer is, and nothing valid has come for a while: the two may hold
    /// different keys (rule C9). Our request costs an attacker as much as it costs us, and is sent seldom.
    pub(crate) fn on_unopened(&mut self, route: Route, cx: &mut TunnelCx<'_>) {
        if !self.may_suspect_keys(self.last_valid, cx.now)
            || self.path.route != Some(route)
            || self.key.is_none()
        {
            return;
        }
        self.exchange.unopened = Some(cx.now);
        self.exchange.asked = true;
        self.queue_pila(route, PilaTrailer::REQUEST, cx);
    }

    pub(crate) fn on_exchange_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        if self.exchange.give_up_at.is_some_and(|t| t <= cx.now) {
            let wrong = std::mem::take(&mut self.exchange.wrong_key);
            self.fail(if wrong { ConnectError::PinMismatch } else { ConnectError::HandshakeTimeout }, cx);
            return;
        }
        if self.exchange.retry_at.is_some_and(|t| t <= cx.now) {
            let rekeying = self.exchange.rekey.is_some();
            // A renewal that nobody answers and nobody needs now is owed until there is something to send.
            let idle = !self.has_work() && !self.awaits_peer();
            let vain = rekeying && idle && self.exchange.attempt >= RENEWALS_MAX;
            if self.can_send() && (!rekeying || vain) {
                self.exchange.retry_at = None;
            } else {
                self.ask(cx);
            }
        }
    }
}

impl KeyExchange {
    fn set_local(&mut self, key: EphemeralKey) {
        self.local = Some(key);
        self.retired.clear();
    }

    fn is_retired(&self, peer_public: &[u8; 32]) -> bool {
        self.retired.contains(peer_public) || self.retired.len() >= RETIRED_MAX
    }

    /// A session was replaced; its key must not come back while ours is the same.
    fn retire(&mut self, old: &Session) {
        if self.local.as_ref().is_some_and(|k| k.public() == old.local_public) {
            self.retired.push(old.peer_public);
        }
    }

    fn stop_asking(&mut self) {
        self.started = None;
        self.give_up_at = None;
        self.retry_at = None;
        self.attempt = 0;
    }
}

fn new_key(cx: &mut TunnelCx<'_>) -> EphemeralKey {
    let mut secret = [0u8; 32];
    cx.rng.fill_bytes(&mut secret);
    EphemeralKey::from_bytes(secret)
}

fn random4(cx: &mut TunnelCx<'_>) -> [u8; 4] {
    let mut bytes = [0u8; 4];
    cx.rng.fill_bytes(&mut bytes);
    bytes
}
