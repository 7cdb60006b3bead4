//! The keys of one handshake at work: sealing, opening, replay window, key phases, limits (spec/secure.md §8, §9).

use std::time::{Duration, Instant};

use pilotage_wire::s1::TOKEN_LEN;
use pilotage_wire::s1::data::{self, HEADER_LEN, Header, OVERHEAD, SAMPLE_LEN};
use pilotage_wire::s1::frames::Upgrade as Step;
use pilotage_wire::s1::payload::TransportParameters;
use subtle::ConstantTimeEq;

use super::aead::{HeaderKey, Suite};
use super::keys::{self, Phase, Schedule, Secret};
use super::noise::Split;
use super::upgrade::{Then, Upgrade};
use super::window::{Place, Window};

/// Indices of the peer that wait to be used, at one time.
pub const SPARES_MAX: usize = 8;
/// How long packets of the phase before are opened.
const PREVIOUS_KEPT: Duration = Duration::from_secs(30);

/// When keys are changed and when they end. The defaults are the specification's; tests take smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Packets of one phase after which the next begins.
    pub update_packets: u64,
    /// Bytes of one phase after which the next begins.
    pub update_bytes: u64,
    /// Time after which the next begins.
    pub update_after: Duration,
    /// Packets that one phase seals at most (RFC 9001 §6.6: 2^23).
    pub phase_packets: u64,
    /// Age of a session at which its initiator wants a new handshake; the responder waits a tenth longer.
    pub rekey_after: Duration,
    /// Packets after which a new handshake is wanted.
    pub rekey_packets: u64,
    /// Age at which nothing more is sealed.
    pub refuse_after: Duration,
    /// Packets that are sealed at most in each direction; not above 2^32.
    pub refuse_packets: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            update_packets: 1 << 22,
            update_bytes: 64 << 30,
            update_after: Duration::from_secs(60),
            phase_packets: 1 << 23,
            rekey_after: Duration::from_secs(180),
            rekey_packets: 1 << 31,
            refuse_after: Duration::from_secs(360),
            refuse_packets: 1 << 32,
        }
    }
}

/// Which side of the handshake we were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// We sent PILI.
    Initiator,
    /// We sent PILR.
    Responder,
}

/// Why nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SealError {
    /// There are no keys to send with.
    #[error("s1: no session to send with; begin a handshake")]
    NoSession,
    /// The peer has not shown that it holds the keys.
    #[error("s1: the initiator has not confirmed the session")]
    Unconfirmed,
    /// Too old, too many packets, or the peer does not follow key updates.
    #[error("s1: the session's keys are used up; begin a handshake")]
    Exhausted,
    /// The buffer does not hold header, frames and tag.
    #[error("s1: the buffer is too small for the packet")]
    NoRoom,
}

/// Why a datagram was not opened. None of these changes any state that the peer could notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// Not the form of a data frame, or no frames in it.
    #[error("s1: not a data frame")]
    Malformed,
    /// No session listens to its index.
    #[error("s1: unknown index")]
    UnknownIndex,
    /// Received before, or too old to tell.
    #[error("s1: replayed or too old")]
    Replay,
    /// The tag does not verify.
    #[error("s1: the tag does not verify")]
    Unauthentic,
    /// The session is too old, or too many forgeries came.
    #[error("s1: the session's keys are used up")]
    Exhausted,
}

/// An opened packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Where its frames begin in the datagram.
    pub start: usize,
    /// Where they end.
    pub end: usize,
    /// Its number, to be acknowledged.
    pub number: u32,
    /// The index that it named, to be put into acknowledgements that leave in another session.
    pub index: u32,
    /// [`Session::id`] of the session that opened it.
    pub session: u32,
    /// No packet with a higher number came before it: only such ones may move the path.
    pub newest: bool,
    /// It is the first of the session: the peer holds the keys.
    pub confirms: bool,
}

#[derive(Debug)]
struct Sender {
    header: HeaderKey,
    phase: Phase,
    phase_number: u64,
    phase_began: Option<Instant>,
    phase_packets: u64,
    phase_bytes: u64,
    next: u64,
}

#[derive(Debug)]
struct Receiver {
    header: HeaderKey,
    phase: Phase,
    phase_number: u64,
    /// Lowest number of the phase so far.
    first: u64,
    /// A packet of the phase has been opened.
    opened: bool,
    /// What was opened of it.
    phase_packets: u64,
    phase_bytes: u64,
    previous: Option<(Phase, Instant)>,
    /// Made when a packet of the other phase bit first comes.
    next: Option<Box<Phase>>,
    window: Window,
    failed: u64,
}

/// The keys of one handshake, both directions.
#[derive(Debug)]
pub struct Session {
    /// Our index of the handshake, also when it is used no more.
    id: u32,
    suite: Suite,
    role: Role,
    /// Indices that frames to us name, with their numbers; the first is the handshake's until it is retired.
    locals: Vec<(u64, u32)>,
    next_local: u64,
    remote: u32,
    created: Instant,
    limits: Limits,
    send: Sender,
    receive: Receiver,
    exporter: Secret,
    confirmed: bool,
    reset_token: Option<[u8; TOKEN_LEN]>,
    transport: TransportParameters,
    spares: Vec<(u64, u32, [u8; TOKEN_LEN])>,
    remote_seq: u64,
    /// There is no phase 1 without it, where the two sides agreed on one.
    upgrade: Option<Box<Upgrade>>,
}

/// What a session is made of.
pub(crate) struct Parts {
    pub(crate) suite: Suite,
    pub(crate) role: Role,
    pub(crate) local: u32,
    pub(crate) remote: u32,
    pub(crate) reset_token: Option<[u8; TOKEN_LEN]>,
    pub(crate) transport: TransportParameters,
    pub(crate) limits: Limits,
}

impl Session {
    pub(crate) fn new(split: &Split, parts: Parts, now: Instant) -> Self {
        let Parts { suite, role, local, remote, reset_token, transport, limits } = parts;
        let Schedule { exporter, from_initiator, from_responder } = Schedule::new(split, suite);
        let (ours, theirs) = match role {
            Role::Initiator => (from_initiator, from_responder),
            Role::Responder => (from_responder, from_initiator),
        };
        let send = Sender {
            header: keys::header_key(&ours, suite),
            phase: Phase::new(ours, suite),
            phase_number: 0,
            phase_began: None,
            phase_packets: 0,
            phase_bytes: 0,
            next: 0,
        };
        let receive = Receiver {
            header: keys::header_key(&theirs, suite),
            phase: Phase::new(theirs, suite),
            phase_number: 0,
            first: 0,
            opened: false,
            phase_packets: 0,
            phase_bytes: 0,
            previous: None,
            next: None,
            window: Window::new(),
            failed: 0,
        };
        Self {
            id: local,
            suite,
            role,
            locals: vec![(0, local)],
            next_local: 1,
            remote,
            created: now,
            limits,
            send,
            receive,
            exporter,
            // PILR has shown the initiator that the responder holds the keys.
            confirmed: role == Role::Initiator,
            reset_token,
            transport,
            spares: Vec::new(),
            remote_seq: 0,
            upgrade: None,
        }
    }

    // --- the post-quantum upgrade (spec/secure.md §9.5) ---

    /// Both sides agreed on the upgrade.
    pub(super) fn agree_on_upgrade(&mut self, random: &mut dyn FnMut(&mut [u8])) {
        self.upgrade = Upgrade::new(self.role, random).map(Box::new);
    }

    /// The initiator's first step is due now.
    pub fn begin_upgrade(&mut self, now: Instant, rtt: Option<Duration>) {
        if let Some(upgrade) = self.upgrade.as_mut().filter(|_| self.role == Role::Initiator) {
            upgrade.begin(now, rtt);
        }
    }

    /// Whether both directions have keys that need the secret of ML-KEM.
    pub fn is_post_quantum(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_done())
    }

    /// When steps of the upgrade are to be sent again.
    pub(super) fn upgrade_at(&self) -> Option<Instant> {
        self.upgrade.as_ref().and_then(|upgrade| upgrade.deadline())
    }

    /// Whether they are now.
    pub fn upgrade_is_due(&mut self, now: Instant) -> bool {
        self.upgrade.as_mut().is_some_and(|upgrade| upgrade.is_due(now))
    }

    /// What is to be said about the upgrade, each in a packet of its own.
    pub fn upgrade_steps(&self) -> Vec<Step<'_>> {
        self.upgrade.as_ref().map(|upgrade| upgrade.steps(self.role)).unwrap_or_default()
    }

    /// UPGRADE came. Whether [`Self::upgrade_steps`] are to be sent now; `None` if it is against the protocol.
    pub(super) fn on_upgrade_step(
        &mut self,
        step: &Step<'_>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Option<bool> {
        match self.upgrade.as_mut()?.on_step(step, self.role, random) {
            Then::Nothing => Some(false),
            Then::Send => Some(true),
            Then::Advance => {
                // The ciphertext has come in phase 0, so the peer's phase 0 is known; and it has the secret.
                self.advance_sender();
                Some(true)
            }
            Then::Refuse => None,
        }
    }

    /// Phase 0 is not left without the secret on which the two sides agreed, nor before the initiator has it.
    fn awaits_upgrade(&self) -> bool {
        self.upgrade.is_some() && self.send.phase_number == 0
    }

    /// The suite chosen.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Tells it from the others that we have with the peer at a time.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Our role in its handshake.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The indices that frames to us name, with their numbers.
    pub fn local_indices(&self) -> &[(u64, u32)] {
        &self.locals
    }

    /// Whether frames with this index are for this session.
    pub fn listens_to(&self, index: u32) -> bool {
        self.locals.iter().any(|(_, local)| *local == index)
    }

    /// Listens to one more index. Returns its number, to be told with NEW_INDEX; `None` at [`SPARES_MAX`] spares.
    pub(crate) fn add_local(&mut self, index: u32) -> Option<u64> {
        if self.locals.len() > SPARES_MAX {
            return None;
        }
        let seq = self.next_local;
        self.next_local += 1;
        self.locals.push((seq, index));
        Some(seq)
    }

    /// RETIRE_INDEX came: no longer listens to an index, which is returned. The last one stays.
    pub(crate) fn retire_local(&mut self, seq: u64) -> Option<u32> {
        let at = self.locals.iter().position(|(number, _)| *number == seq)?;
        (self.locals.len() > 1).then(|| self.locals.remove(at).1)
    }

    /// The index that our frames name.
    pub fn remote_index(&self) -> u32 {
        self.remote
    }

    /// What the peer is ready to receive.
    pub fn transport(&self) -> &TransportParameters {
        &self.transport
    }

    /// Whether the peer has shown that it holds the keys. Until then a responder seals nothing.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// When the handshake was.
    pub fn created(&self) -> Instant {
        self.created
    }

    /// Time since the handshake.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.created)
    }

    /// Number of the phase that we send in.
    pub fn phase(&self) -> u64 {
        self.send.phase_number
    }

    /// Packets sealed so far.
    pub fn sealed(&self) -> u64 {
        self.send.next
    }

    /// Width of the replay window.
    pub fn window(&self) -> u64 {
        self.receive.window.width()
    }

    /// When nothing is opened any more, and the session may be forgotten.
    pub fn ends_at(&self) -> Instant {
        self.created + self.limits.refuse_after + self.limits.refuse_after / 12
    }

    /// When this side wants a new handshake by age.
    pub fn rekey_at(&self) -> Instant {
        self.created + self.rekey_after()
    }

    fn rekey_after(&self) -> Duration {
        match self.role {
            Role::Initiator => self.limits.rekey_after,
            Role::Responder => self.limits.rekey_after + self.limits.rekey_after / 10,
        }
    }

    /// Whether a new handshake should be begun, while this session still works.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        self.send.next >= self.limits.rekey_packets || self.age(now) >= self.rekey_after()
    }

    /// Whether nothing can be sealed any more: by age, by number, or because the peer does not follow key updates.
    pub fn is_exhausted(&self, now: Instant) -> bool {
        let send = &self.send;
        let followed = self.receive.phase_number == send.phase_number && self.receive.opened;
        let goes_on = self.role == Role::Initiator && followed && !self.awaits_upgrade();
        send.next >= self.limits.refuse_packets.min(1 << 32)
            || (send.phase_packets >= self.limits.phase_packets && !goes_on)
            || self.age(now) >= self.limits.refuse_after
    }

    /// Keying material bound to this session, for another protocol: `false` if the label is longer than 255 bytes or
    /// more than 8,160 bytes are asked for.
    pub fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> bool {
        keys::export(&self.exporter, label, context, out)
    }

    /// Seals the frames at `buf[HEADER_LEN..HEADER_LEN + len]` in place, with the header before and the tag behind them.
    /// Returns the datagram's length and the packet's number.
    ///
    /// # Errors
    ///
    /// [`SealError`]; then nothing was written and no number used.
    #[inline]
    pub fn seal(&mut self, buf: &mut [u8], len: usize, now: Instant) -> Result<(usize, u32), SealError> {
        if !self.confirmed {
            return Err(SealError::Unconfirmed);
        }
        self.seal_at_once(buf, len, now)
    }

    /// The same, before the initiator has confirmed the session: answers to early data only (spec/secure.md §6.4).
    pub(super) fn seal_at_once(
        &mut self,
        buf: &mut [u8],
        len: usize,
        now: Instant,
    ) -> Result<(usize, u32), SealError> {
        let total = len + OVERHEAD;
        let frame = buf.get_mut(..total).ok_or(SealError::NoRoom)?;
        self.maybe_update(now);
        let number = u32::try_from(self.send.next).map_err(|_| SealError::Exhausted)?;
        if self.send.next >= self.limits.refuse_packets
            || self.send.phase_packets >= self.limits.phase_packets
            || self.age(now) >= self.limits.refuse_after
        {
            return Err(SealError::Exhausted);
        }
        let send = &mut self.send;
        let header = Header { phase: send.phase_number & 1 == 1, receiver: self.remote, number };
        let mut bytes = header.to_bytes();
        let (head, body) = frame.split_at_mut(HEADER_LEN);
        send.phase.seal(number.into(), &bytes, body);
        let sample: &[u8; SAMPLE_LEN] = body.first_chunk().ok_or(SealError::NoRoom)?;
        data::mask(&mut bytes, send.header.mask(sample));
        head.copy_from_slice(&bytes);
        send.next += 1;
        send.phase_packets += 1;
        send.phase_bytes += total as u64;
        send.phase_began.get_or_insert(now);
        Ok((total, number))
    }

    /// The next phase, if this one is used up in either direction and the peer has followed into it. Only the initiator begins one: that a packet
    /// of the responder opens in a phase is proof that the responder has opened one of ours in it, whatever is lost.
    #[inline]
    fn maybe_update(&mut self, now: Instant) {
        if self.role == Role::Responder {
            return;
        }
        let (send, receive) = (&self.send, &self.receive);
        let old =
            send.phase_began.is_some_and(|t| now.saturating_duration_since(t) >= self.limits.update_after);
        let due = old
            || send.phase_packets.max(receive.phase_packets) >= self.limits.update_packets
            || send.phase_bytes.max(receive.phase_bytes) >= self.limits.update_bytes;
        let followed = receive.phase_number == send.phase_number && receive.opened;
        if due && followed && !self.awaits_upgrade() {
            self.advance_sender();
        }
    }

    #[cold]
    fn advance_sender(&mut self) {
        let send = &mut self.send;
        // Without the secret of an upgrade there is no next phase; nobody asks for it then.
        let next = next_phase(&send.phase, send.phase_number, self.upgrade.as_deref(), self.suite);
        let Some(next) = next else { return };
        send.phase = next;
        send.phase_number += 1;
        send.phase_began = None;
        send.phase_packets = 0;
        send.phase_bytes = 0;
    }

    /// Opens a data frame in place. Order: form, replay window, tag, and only then does anything change.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; the datagram's content is then unspecified.
    #[inline]
    pub fn open(&mut self, datagram: &mut [u8], now: Instant) -> Result<Opened, OpenError> {
        if datagram.len() < OVERHEAD {
            return Err(OpenError::Malformed);
        }
        if self.receive.failed >= self.suite.forgery_limit() || now >= self.ends_at() {
            return Err(OpenError::Exhausted);
        }
        let (head, body) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(OpenError::Malformed)?;
        let sample: &[u8; SAMPLE_LEN] = body.first_chunk().ok_or(OpenError::Malformed)?;
        let mut bytes = *head;
        data::mask(&mut bytes, self.receive.header.mask(sample));
        // Reserved bits that are set, and a foreign index, fail here or by the tag: nobody learns which.
        let Ok(header) = Header::from_bytes(&bytes) else {
            return Err(self.forged());
        };
        let number = u64::from(header.number);
        match self.receive.window.place(number) {
            Place::New => {}
            Place::Seen => return Err(OpenError::Replay),
            Place::TooOld => {
                self.receive.window.on_late();
                return Err(OpenError::Replay);
            }
        }
        let receive = &mut self.receive;
        let current = header.phase == (receive.phase_number & 1 == 1);
        let opened = if current {
            receive.phase.open(number, &bytes, body)
        } else {
            match receive.other_phase(number, self.suite, self.upgrade.as_deref(), now) {
                Some(phase) => phase.open(number, &bytes, body),
                None => None,
            }
        };
        let Some(len) = opened else {
            return Err(self.forged());
        };
        let newest = self.receive.window.mark(number);
        if current {
            self.receive.opened = true;
            self.receive.first = self.receive.first.min(number);
            self.receive.phase_packets += 1;
            self.receive.phase_bytes += (OVERHEAD + len) as u64;
        } else {
            self.on_other_phase(number, now);
        }
        let confirms = !std::mem::replace(&mut self.confirmed, true);
        Ok(Opened {
            start: HEADER_LEN,
            end: HEADER_LEN + len,
            number: header.number,
            index: header.receiver,
            session: self.id,
            newest,
            confirms,
        })
    }

    #[cold]
    fn forged(&mut self) -> OpenError {
        self.receive.failed += 1;
        OpenError::Unauthentic
    }

    /// A packet with the other phase bit opened: a late one of the phase before, or the first of the next.
    fn on_other_phase(&mut self, number: u64, now: Instant) {
        let receive = &mut self.receive;
        if receive.is_late(number) {
            return;
        }
        let Some(next) = receive.next.take() else {
            return;
        };
        receive.previous = Some((std::mem::replace(&mut receive.phase, *next), now));
        receive.phase_number += 1;
        receive.first = number;
        receive.opened = true;
        (receive.phase_packets, receive.phase_bytes) = (1, 0);
        if self.send.phase_number < self.receive.phase_number {
            self.advance_sender();
        }
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| !upgrade.is_done()) {
            // The peer sends in phase 1, and so do we.
            upgrade.finish();
        }
    }

    /// Whether a stateless reset with this token ends the session.
    pub fn is_reset_by(&self, index: u32, token: &[u8; TOKEN_LEN]) -> bool {
        let same = self.reset_token.is_some_and(|ours| bool::from(ours.ct_eq(token)));
        index == self.remote && same
    }

    /// NEW_INDEX came: number 0 tells the token of the present index, others are kept as spares.
    /// `false` if the peer sends more than [`SPARES_MAX`] or one number with two indices: a protocol error.
    pub fn on_new_index(&mut self, seq: u64, index: u32, token: [u8; TOKEN_LEN]) -> bool {
        if seq == self.remote_seq {
            if index == self.remote {
                self.reset_token = Some(token);
            }
            return index == self.remote;
        }
        if seq < self.remote_seq {
            return true;
        }
        if let Some(known) = self.spares.iter().find(|(number, ..)| *number == seq) {
            return known.1 == index;
        }
        if self.spares.len() >= SPARES_MAX {
            return false;
        }
        self.spares.push((seq, index, token));
        true
    }

    /// NEW_INDEX said that indices with numbers below `retire` are to be given up. Returns their numbers, for RETIRE_INDEX.
    pub fn retire_before(&mut self, retire: u64) -> Vec<u64> {
        let old = self.spares.iter().map(|(seq, ..)| *seq).filter(|seq| *seq < retire);
        let mut told: Vec<u64> = old.collect();
        self.spares.retain(|(seq, ..)| *seq >= retire);
        if self.remote_seq < retire {
            told.extend(self.use_spare());
        }
        told
    }

    /// Names another index of the peer from now on, so that frames on a new path cannot be linked with those on the old.
    /// Returns the number to be retired; `None` if there is no spare.
    pub fn use_spare(&mut self) -> Option<u64> {
        let at = (0..self.spares.len()).min_by_key(|at| self.spares[*at].0)?;
        let (seq, index, token) = self.spares.swap_remove(at);
        self.remote = index;
        self.reset_token = Some(token);
        Some(std::mem::replace(&mut self.remote_seq, seq))
    }

    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(super) fn upgrade_secret(&self) -> Option<&[u8; 32]> {
        self.upgrade.as_ref()?.secret().map(|(secret, _)| secret.as_bytes())
    }

    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(super) fn packet_keys(&self) -> [Secret; 2] {
        [self.send.phase.key_bytes(), self.receive.phase.key_bytes()]
    }

    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(super) fn secrets(&self) -> [(&[u8; 32], &[u8; 12]); 2] {
        [self.send.phase.parts(), self.receive.phase.parts()]
    }
}

/// The phase after one. Phase 1 of a session with an upgrade needs the secret: `None` as long as it is not known.
fn next_phase(phase: &Phase, number: u64, upgrade: Option<&Upgrade>, suite: Suite) -> Option<Phase> {
    match upgrade {
        Some(upgrade) if number == 0 => {
            upgrade.secret().map(|(secret, transcript)| phase.upgraded(suite, secret, transcript))
        }
        _ => Some(phase.next(suite)),
    }
}

impl Receiver {
    /// A number below the lowest of the present phase belongs to the one before.
    fn is_late(&self, number: u64) -> bool {
        number < self.first && self.previous.is_some()
    }

    /// The phase of a packet whose phase bit is not the present one's.
    fn other_phase(
        &mut self,
        number: u64,
        suite: Suite,
        upgrade: Option<&Upgrade>,
        now: Instant,
    ) -> Option<&Phase> {
        if self.previous.as_ref().is_some_and(|(_, at)| now.saturating_duration_since(*at) > PREVIOUS_KEPT) {
            self.previous = None;
        }
        if self.is_late(number) {
            return self.previous.as_ref().map(|(phase, _)| phase);
        }
        if self.next.is_none() {
            self.next = next_phase(&self.phase, self.phase_number, upgrade, suite).map(Box::new);
        }
        self.next.as_deref()
    }
}
