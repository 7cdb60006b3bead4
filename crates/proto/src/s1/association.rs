//! What we have with one peer: handshakes under way, and which session sends (spec/secure.md §6).

use std::time::{Duration, Instant};

use pilotage_wire::s1::frames::Upgrade;
use pilotage_wire::s1::handshake::{CookieReply, EARLY_MAX, Flags, NewPrekey, Reset, Response};
use pilotage_wire::s1::payload::{Observed, PrekeyCertificate};
use pilotage_wire::s1::{Malformed, TOKEN_LEN};

use super::cookie::{COOKIE_LIFE, PublicKeys};
use super::initiation::Initiation;
use super::keys::Secret;
use super::node::{Node, UNCONFIRMED_KEPT, check_early};
use super::prekey::PeerPrekey;
use super::session::{OpenError, Opened, Role, SealError, Session};
use super::upgrade::PostQuantum;
use super::{Cx, Refusal};

/// How long packets of the session before are opened.
const PREVIOUS_KEPT: Duration = Duration::from_secs(30);
/// Unconfirmed sessions of one peer.
const NEXT_MAX: usize = 3;
/// Initiations whose answer is still read: on a slow path the answer to the first comes after the second was sent.
const PENDING_MAX: usize = 2;
/// First wait for an answer, if no round trip is known; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Shortest first wait.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries. Short, since without a prekey four datagrams in a row must arrive; with [`PENDING_MAX`] it
/// still reaches peers twice as far away.
const RETRY_MAX: Duration = Duration::from_secs(4);
/// The same with all that chance may add.
pub(super) const RETRY_LONGEST: Duration = Duration::from_secs(5);
const _: () = assert!(RETRY_LONGEST.as_millis() >= RETRY_MAX.as_millis() * 5 / 4);
/// How long we try.
const GIVE_UP: Duration = Duration::from_secs(90);
/// Tries of our own after which the peer's initiation is answered although ours has precedence.
const YIELD_AFTER: u32 = 3;

/// Frames that may be delivered twice, or to a peer whose prekey is stolen later (spec/secure.md §6.4).
///
/// What became of them says [`Up::early_accepted`]; if the peer's own handshake comes first ([`Opened::confirms`]), no `Up`
/// comes, and they count as not taken.
#[derive(Debug, Clone, Copy)]
pub struct EarlyData<'a>(&'a [u8]);

impl<'a> EarlyData<'a> {
    /// The caller states that acting twice on `frames` is the same as acting once.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if they are longer than [`EARLY_MAX`], or contain frames other than PADDING, PING, DATAGRAM, LEGACY
    /// and STREAM.
    pub fn idempotent(frames: &'a [u8]) -> Result<Self, Malformed> {
        if frames.len() > EARLY_MAX {
            return Err(Malformed::TooLong);
        }
        check_early(frames)?;
        Ok(Self(frames))
    }
}

/// How to begin a handshake.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begin<'a> {
    /// Early data; goes with the first try only.
    pub early: Option<EarlyData<'a>>,
    /// The datagram goes by a relay.
    pub relayed: bool,
    /// Round trip, if known.
    pub rtt: Option<Duration>,
}

/// A handshake that we began is complete: data may be sent. Something MUST be sent soon, if only a PING: the responder
/// sends nothing before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Up {
    /// What became of early data, if the PILI had any. If it was not taken, send it now.
    pub early_accepted: Option<bool>,
    /// Where the peer saw us.
    pub observed: Observed,
    /// The peer's wall clock, Unix ms.
    pub time_ms: u64,
    /// The number of the peer's present record.
    pub record_seq: u64,
}

/// What a timeout brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeout {
    /// Nothing to be sent.
    Nothing,
    /// A PILI.
    Send(Vec<u8>),
    /// Nobody answered for 90 s.
    GaveUp,
}

/// A session that its initiator, the peer, has not confirmed.
#[derive(Debug)]
struct Next {
    session: Box<Session>,
    until: Instant,
    /// We had begun a handshake ourselves when it was made.
    contested: bool,
    /// Its initiation brought early data that we took.
    early: bool,
}

/// All sessions and handshakes with one peer.
#[derive(Debug)]
pub struct Association {
    slot: u32,
    peer: PeerPrekey,
    /// Nobody has told the prekey: what stands there is random, and the answer is PILN.
    blank: bool,
    psk: Secret,
    current: Option<Box<Session>>,
    previous: Option<(Box<Session>, Instant)>,
    next: Vec<Next>,
    pending: Vec<Initiation>,
    attempt: u32,
    relayed: bool,
    first_wait: Duration,
    wait: Duration,
    retry_at: Option<Instant>,
    give_up_at: Option<Instant>,
    cookie: Option<([u8; 16], Instant)>,
    /// Index of the initiation whose PILN was followed last. Copies of it went other ways, and are answered as well.
    followed: Option<u32>,
    /// The shortest round trip that handshake frames since [`Self::connect`] have shown.
    measured: Option<Duration>,
}

impl Association {
    /// For a peer. `slot` is the caller's number, which [`Node::slot`] answers for our indices; `psk` the secret of the
    /// network, or zeros.
    pub fn new(slot: u32, peer: PeerPrekey, psk: Secret) -> Self {
        Self {
            slot,
            peer,
            blank: false,
            psk,
            current: None,
            previous: None,
            next: Vec::new(),
            pending: Vec::new(),
            attempt: 0,
            relayed: false,
            first_wait: RETRY_FIRST,
            wait: RETRY_FIRST,
            retry_at: None,
            give_up_at: None,
            cookie: None,
            followed: None,
            measured: None,
        }
    }

    /// For a peer of which only the identity is known. The first PILI asks for the prekey: it is for a random one, so nobody
    /// can read it, and a peer that speaks S1 answers with PILN (spec/secure.md §12.3).
    pub fn unknown(slot: u32, identity: [u8; 32], psk: Secret, cx: &mut Cx<'_>) -> Self {
        let certificate = PrekeyCertificate { not_after: 0, seq: 0, caps: 0, signature: [0; 64] };
        let mut unknown = Self::new(slot, PeerPrekey { identity, prekey: [0; 32], certificate }, psk);
        unknown.forget_prekey(cx);
        unknown
    }

    /// The prekey that we were told is no good: asks for another.
    pub fn forget_prekey(&mut self, cx: &mut Cx<'_>) {
        self.peer.prekey = cx.random();
        self.peer.certificate.seq = 0;
        self.blank = true;
    }

    /// Whether the peer's prekey is known; if not, the first PILI only asks for it.
    pub fn knows_prekey(&self) -> bool {
        !self.blank
    }

    /// Whether the peer has sent a cookie.
    pub fn has_cookie(&self) -> bool {
        self.cookie.is_some()
    }

    /// Initiations sent in this attempt, and cookies and prekeys not counted before it.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// The shortest round trip that the handshake has shown so far, whichever way its frames went. Answers name what they answer, so that
    /// all count but those to what was sent twice (Karn).
    pub fn measured(&self) -> Option<Duration> {
        self.measured
    }

    /// The same, for a path that has no measurement of its own. What is known then is not told again.
    pub fn take_measured(&mut self) -> Option<Duration> {
        self.measured.take()
    }

    /// The last initiation was sent once more: an answer to it measures nothing.
    pub fn sent_again(&mut self) {
        if let Some(initiation) = self.pending.last_mut() {
            initiation.sent = None;
        }
    }

    fn measure(&mut self, sent: Option<Instant>, now: Instant) {
        let sample = sent.map(|sent| now.saturating_duration_since(sent)).filter(|sample| !sample.is_zero());
        self.measured = self.measured.into_iter().chain(sample).min();
    }

    /// There is a sign of the peer: the next try is due at once, and those after it come as after the first.
    pub fn hurry(&mut self, now: Instant) {
        if self.is_connecting() {
            self.retry_at = Some(now);
            self.wait = RETRY_FIRST;
        }
    }

    /// Stops trying. Sessions stay.
    pub fn abandon(&mut self, node: &mut Node) {
        self.stop(node);
    }

    /// The session that sends is given up, if there is one; that before it is not taken up again.
    pub fn drop_current(&mut self, node: &mut Node) {
        if let Some(old) = self.current.take() {
            release_all(node, &old);
        }
    }

    /// The session that sends.
    pub fn current(&self) -> Option<&Session> {
        self.current.as_deref()
    }

    /// The session before it, which is only read.
    pub fn previous(&self) -> Option<&Session> {
        self.previous.as_ref().map(|(session, _)| &**session)
    }

    /// The session that sends.
    pub fn current_mut(&mut self) -> Option<&mut Session> {
        self.current.as_deref_mut()
    }

    /// The peer as we know it.
    pub fn peer(&self) -> &PeerPrekey {
        &self.peer
    }

    /// A newer prekey of the same identity. Whether it was taken: older ones are not.
    pub fn set_prekey(
        &mut self,
        node: &mut Node,
        peer: PeerPrekey,
        cx: &mut Cx<'_>,
    ) -> Result<bool, Refusal> {
        if peer.identity != self.peer.identity {
            return Err(Refusal::Certificate);
        }
        if peer.certificate.seq <= self.peer.certificate.seq {
            return Ok(false);
        }
        node.verify(&peer, cx)?;
        self.peer = peer;
        self.blank = false;
        Ok(true)
    }

    /// A handshake of ours is under way.
    pub fn is_connecting(&self) -> bool {
        self.retry_at.is_some()
    }

    // --- as initiator ---

    /// Begins a handshake; returns the PILI, or `None` if one is under way.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if the peer's certificate does not hold, or there are too many indices.
    pub fn connect(
        &mut self,
        node: &mut Node,
        begin: Begin<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if self.is_connecting() {
            return Ok(None);
        }
        if !self.blank {
            node.verify(&self.peer, cx)?;
        }
        (self.attempt, self.measured) = (0, None);
        self.relayed = begin.relayed;
        self.first_wait = begin.rtt.map_or(RETRY_FIRST, |rtt| (3 * rtt).clamp(RETRY_MIN, RETRY_MAX));
        self.wait = self.first_wait;
        // What has to be under upgraded keys cannot leave before there are any.
        let allowed = begin.early.filter(|_| node.post_quantum != PostQuantum::Require);
        let early = allowed.map_or(&[][..], |early| early.0);
        let datagram = self.initiate(node, early, cx)?;
        self.give_up_at = Some(cx.now + GIVE_UP);
        Ok(Some(datagram))
    }

    fn initiate(&mut self, node: &mut Node, early: &[u8], cx: &mut Cx<'_>) -> Result<Vec<u8>, Refusal> {
        node.rotate_prekey(cx);
        let index = node.allocate(self.slot, cx)?;
        let flags = Flags {
            early: !early.is_empty(),
            relayed: self.relayed,
            post_quantum: node.post_quantum.is_on(),
        };
        let fresh = |at: &Instant| cx.now.saturating_duration_since(*at) < COOKIE_LIFE;
        let cookie = self.cookie.filter(|(_, at)| fresh(at)).map(|(cookie, _)| cookie);
        let made = Initiation::new(node, &self.peer, index, flags, early, cookie.as_ref(), cx);
        let Some(initiation) = made else {
            node.release(index);
            return Err(Refusal::Unauthentic);
        };
        let datagram = initiation.datagram().to_vec();
        if self.pending.len() >= PENDING_MAX {
            node.release(self.pending.remove(0).index);
        }
        self.pending.push(initiation);
        self.attempt += 1;
        self.wait_for_answer(cx);
        Ok(datagram)
    }

    /// A PILR that names one of our indices.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: drop it; the handshake goes on.
    pub fn handle_response(
        &mut self,
        node: &mut Node,
        datagram: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<Up, Refusal> {
        let response = Response::decode(datagram)?;
        let initiation =
            self.pending.iter().find(|i| i.index == response.receiver).ok_or(Refusal::Unexpected)?;
        if !node.mac1_is(response.before_mac1, response.mac1) {
            return Err(Refusal::Mac);
        }
        // That of the network that we said we are in.
        let psk = node.psk(initiation.network).unwrap_or(&self.psk);
        let finished = initiation.finish(&response, psk, node, cx)?;
        let up = Up {
            early_accepted: initiation.early.then_some(finished.early_accepted),
            observed: finished.observed,
            time_ms: finished.time_ms,
            record_seq: finished.record_seq,
        };
        let (index, sent) = (initiation.index, initiation.sent);
        self.measure(sent, cx.now);
        self.pending.retain(|i| i.index != index);
        self.stop(node);
        self.promote(node, Box::new(finished.session), cx.now);
        Ok(up)
    }

    /// A PILC that names one of our indices: the PILI once more, with the cookie.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: drop it.
    pub fn handle_cookie(&mut self, datagram: &[u8], cx: &mut Cx<'_>) -> Result<Option<Vec<u8>>, Refusal> {
        let reply = CookieReply::decode(datagram)?;
        let pending = self.pending.iter_mut().find(|i| i.index == reply.receiver);
        let initiation = pending.ok_or(Refusal::Unexpected)?;
        let cookie = PublicKeys::of(&self.peer.identity)
            .open_cookie(&reply.nonce, &reply.sealed, &initiation.mac1())
            .ok_or(Refusal::Unauthentic)?;
        self.cookie = Some((cookie, cx.now));
        let again = initiation.repeat(&cookie);
        if again.is_some() {
            self.wait_anew(cx);
        }
        Ok(again)
    }

    /// The peer answered, and may be so busy that it loses what we send next: that is not asked for as rarely as one who is silent.
    fn wait_anew(&mut self, cx: &mut Cx<'_>) {
        self.wait = self.first_wait;
        self.wait_for_answer(cx);
    }

    /// When the next try is due. Up to a quarter later, so that many peers of a restarted one do not come in step.
    fn wait_for_answer(&mut self, cx: &mut Cx<'_>) {
        let jitter = u32::from_be_bytes(cx.random()) % 256;
        self.retry_at = Some(cx.now + self.wait + self.wait / 4 * jitter / 256);
        self.wait = (self.wait * 2).min(RETRY_MAX);
    }

    /// A PILN that names one of our indices: a PILI for the new prekey. `None` if another answer to the same initiation was followed:
    /// one more handshake would only displace the one that is under way.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: drop it.
    pub fn handle_new_prekey(
        &mut self,
        node: &mut Node,
        datagram: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let answer = NewPrekey::decode(datagram)?;
        let pending = self.pending.iter().find(|i| i.index == answer.receiver);
        let initiation = pending.filter(|i| i.mac1() == answer.cause).ok_or(Refusal::Unexpected)?;
        if self.followed == Some(answer.receiver) {
            return Ok(None);
        }
        let told = PeerPrekey {
            identity: self.peer.identity,
            prekey: answer.prekey,
            certificate: answer.certificate,
        };
        let (used, sent) = (initiation.prekey, initiation.sent);
        let taken = self.set_prekey(node, told, cx)?;
        if !taken && self.peer.prekey == used {
            return Err(Refusal::Replay);
        }
        self.followed = Some(answer.receiver);
        self.measure(sent, cx.now);
        self.wait = self.first_wait;
        // Early data was written for another prekey's reader; it is sent when the session is up.
        self.initiate(node, &[], cx).map(Some)
    }

    fn stop(&mut self, node: &mut Node) {
        for initiation in self.pending.drain(..) {
            node.release(initiation.index);
        }
        self.retry_at = None;
        self.give_up_at = None;
    }

    // --- as responder ---

    /// Whether an initiation of this peer is to be accepted now. If both began at the same time, the one of the side with
    /// the smaller Ed25519 key counts, unless that one seems not to arrive.
    pub fn yields_to_peer(&self, node: &Node) -> bool {
        !self.is_connecting() || self.peer.identity < node.identity_key || self.attempt > YIELD_AFTER
    }

    /// Takes a session that [`Node::accept`] made. It sends nothing until a frame of the initiator opens under it, but for answers
    /// ([`Self::seal_answer`]) if its early data was taken (`early`).
    pub fn adopt(&mut self, node: &mut Node, session: Session, early: bool, now: Instant) {
        if self.next.len() >= NEXT_MAX {
            let oldest = self.next.remove(0);
            release_all(node, &oldest.session);
        }
        let contested = self.is_connecting();
        self.next.push(Next { session: Box::new(session), until: now + UNCONFIRMED_KEPT, contested, early });
    }

    /// An unconfirmed session had to make room ([`Accepted::displaced`](super::Accepted::displaced)).
    pub fn drop_unconfirmed(&mut self, index: u32) {
        self.next.retain(|next| !next.session.listens_to(index));
    }

    // --- data ---

    /// Seals with the current session: see [`Session::seal`].
    ///
    /// # Errors
    ///
    /// [`SealError`]; at [`SealError::NoSession`] and [`SealError::Exhausted`] call [`Self::connect`].
    #[inline]
    pub fn seal(&mut self, buf: &mut [u8], len: usize, now: Instant) -> Result<(usize, u32), SealError> {
        self.current.as_mut().ok_or(SealError::NoSession)?.seal(buf, len, now)
    }

    /// Early data was taken with a session that is not confirmed yet. Its initiator has none that it sends with: whoever has one sends no
    /// early data. So datagrams reach it under this one, if under any.
    #[inline]
    pub fn may_answer_early(&self, now: Instant) -> bool {
        self.next.iter().any(|next| next.early && next.until > now)
    }

    /// Seals an answer to early data, under the newest session with which any was taken. Whoever gets PILR first can open it; what
    /// was replayed is never taken, so nobody gets two answers. At most as many bytes may leave so as came.
    ///
    /// # Errors
    ///
    /// [`SealError`]; [`SealError::NoSession`] if [`Self::may_answer_early`] does not hold.
    pub fn seal_answer(
        &mut self,
        buf: &mut [u8],
        len: usize,
        now: Instant,
    ) -> Result<(usize, u32), SealError> {
        let next = self.next.iter_mut().rev().find(|next| next.early && next.until > now);
        next.ok_or(SealError::NoSession)?.session.seal_at_once(buf, len, now)
    }

    /// Opens a data frame whose index [`Node::slot`] gave to this association. What opens for the first time under an
    /// unconfirmed session makes it the current one.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: drop it.
    pub fn open(&mut self, node: &mut Node, datagram: &mut [u8], now: Instant) -> Result<Opened, OpenError> {
        let index = pilotage_wire::s1::data::receiver(datagram).ok_or(OpenError::Malformed)?;
        if let Some(current) = self.current.as_mut().filter(|session| session.listens_to(index)) {
            return current.open(datagram, now);
        }
        if let Some((previous, _)) = self.previous.as_mut().filter(|(session, _)| session.listens_to(index)) {
            return previous.open(datagram, now);
        }
        let at = self.next.iter().position(|next| next.session.listens_to(index));
        let at = at.ok_or(OpenError::UnknownIndex)?;
        let opened = self.next[at].session.open(datagram, now)?;
        let confirmed = self.next.remove(at);
        for older in self.next.drain(..at) {
            release_all(node, &older.session);
        }
        node.confirmed(index);
        // The initiator sends as soon as it has PILR, which leaves when the session is made.
        self.measure((confirmed.until - UNCONFIRMED_KEPT).into(), now);
        // Ours, if any is under way, is not needed any more.
        self.stop(node);
        let ours_counts = confirmed.contested
            && self.peer.identity > node.identity_key
            && self.current.as_ref().is_some_and(|current| current.role() == Role::Initiator);
        if ours_counts {
            // Both handshakes came through: the peer will take ours as soon as a frame of it arrives there.
            self.replace_previous(node, Some(confirmed.session), now);
        } else {
            self.promote(node, confirmed.session, now);
        }
        Ok(opened)
    }

    /// A new session sends from now on; the one before it is only read.
    fn promote(&mut self, node: &mut Node, session: Box<Session>, now: Instant) {
        let old = self.current.replace(session);
        self.replace_previous(node, old, now);
    }

    fn replace_previous(&mut self, node: &mut Node, session: Option<Box<Session>>, now: Instant) {
        if let Some((oldest, _)) = self.previous.take() {
            release_all(node, &oldest);
        }
        self.previous = session.map(|session| (session, now + PREVIOUS_KEPT));
    }

    /// One more index that our session listens to, to be told with NEW_INDEX: number, index, token. `None` if the peer
    /// has enough.
    pub fn new_index(&mut self, node: &mut Node, cx: &mut Cx<'_>) -> Option<(u64, u32, [u8; TOKEN_LEN])> {
        let current = self.current.as_mut()?;
        let index = node.allocate(self.slot, cx).ok()?;
        match current.add_local(index) {
            Some(seq) => Some((seq, index, node.reset_token(index))),
            None => {
                node.release(index);
                None
            }
        }
    }

    /// RETIRE_INDEX came in the current session.
    pub fn retire_index(&mut self, node: &mut Node, seq: u64) {
        if let Some(index) = self.current.as_mut().and_then(|session| session.retire_local(seq)) {
            node.release(index);
        }
    }

    /// A PILX from an address of the peer. If it is genuine, the session is gone; call [`Self::connect`]. Until that is
    /// done the session before sends again, if there is one.
    pub fn handle_reset(&mut self, node: &mut Node, datagram: &[u8]) -> bool {
        let Ok(reset) = Reset::decode(datagram) else {
            return false;
        };
        let ends = |session: &Session| session.is_reset_by(reset.index, &reset.token);
        if let Some((previous, _)) = self.previous.take_if(|(session, _)| ends(session)) {
            release_all(node, &previous);
            return true;
        }
        let Some(current) = self.current.take_if(|session| ends(session)) else {
            return false;
        };
        release_all(node, &current);
        self.current = self.previous.take().map(|(session, _)| session);
        true
    }

    /// Ends everything; keys are wiped.
    pub fn close(&mut self, node: &mut Node) {
        self.stop(node);
        let next = self.next.drain(..).map(|next| next.session);
        let previous = self.previous.take().map(|(session, _)| session);
        for session in next.chain(previous).chain(self.current.take()) {
            release_all(node, &session);
        }
    }

    // --- time ---

    /// When [`Self::handle_timeout`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let previous = self.previous.as_ref().map(|(_, until)| *until);
        let next = self.next.iter().map(|next| next.until).min();
        let current = self.current.as_ref().map(|session| session.ends_at());
        let upgrade = self.current.as_ref().and_then(|session| session.upgrade_at());
        [current, upgrade, previous, next, self.retry_at, self.give_up_at].into_iter().flatten().min()
    }

    /// UPGRADE came in a packet of the session that sends. Whether the steps of [`Session::upgrade_steps`] are to be sent now; `None` if it is
    /// against the protocol.
    pub fn on_upgrade_step(&mut self, step: &Upgrade<'_>, cx: &mut Cx<'_>) -> Option<bool> {
        self.current.as_mut()?.on_upgrade_step(step, &mut |bytes| cx.rng.fill_bytes(bytes))
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, node: &mut Node, cx: &mut Cx<'_>) -> Timeout {
        let now = cx.now;
        if let Some((old, _)) = self.previous.take_if(|(_, until)| *until <= now) {
            release_all(node, &old);
        }
        if let Some(old) = self.current.take_if(|session| session.ends_at() <= now) {
            release_all(node, &old);
        }
        self.next.retain(|next| {
            if next.until <= now {
                release_all(node, &next.session);
            }
            next.until > now
        });
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.stop(node);
            return Timeout::GaveUp;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            return match self.initiate(node, &[], cx) {
                Ok(datagram) => Timeout::Send(datagram),
                Err(_) => {
                    self.retry_at = Some(now + self.wait);
                    Timeout::Nothing
                }
            };
        }
        Timeout::Nothing
    }
}

fn release_all(node: &mut Node, session: &Session) {
    for (_, index) in session.local_indices() {
        node.release(*index);
    }
}
