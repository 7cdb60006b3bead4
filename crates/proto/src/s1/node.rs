//! What one endpoint has once: identity, prekeys, admission of initiations, indices (spec/secure.md §4 to §6).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::s1::frames::Frames;
use pilotage_wire::s1::handshake::{
    CookieReply, Initiation, NewPrekey, RESET_CAUSE_MIN, RESPONSE_LEN, Reset, response_header,
};
use pilotage_wire::s1::payload::{Observed, Payload1, Payload2, SuiteList, TransportParameters};
use pilotage_wire::s1::{Kind, Malformed, TOKEN_LEN};
use pilotage_wire::{Address, NetworkId};
use zeroize::{Zeroize, Zeroizing};

use super::aead::Suite;
use super::cookie::{self, Jar, PublicKeys, Source};
use super::dh::DhKey;
use super::keys::Secret;
use super::limit::{BUSY_UNCONFIRMED, Load, Rates, Returning, Strikes, TABLE_MAX, Table};
use super::noise::Responder;
use super::prekey::{PeerPrekey, Prekey, Prekeys};
use super::session::{Limits, Parts, Role, Session};
use super::upgrade::PostQuantum;
use super::{Cx, Refusal};
use crate::crypto::Identity;

/// Sessions that no frame of their initiator has confirmed, at one time.
pub const UNCONFIRMED_MAX: usize = 4_096;
/// How long such a session is kept.
pub(crate) const UNCONFIRMED_KEPT: Duration = Duration::from_secs(5);
/// Indices in use at one time.
pub const INDICES_MAX: usize = 1 << 20;
/// Largest difference of clocks with which early data is taken, ms.
const EARLY_SKEW_MS: u64 = 10_000;
/// Early data must be this much younger than our process, ms.
const EARLY_AFTER_BOOT_MS: u64 = 20_000;
/// Starts the Noise prologue.
const PROLOGUE: &[u8; 11] = b"pilotage/s1";

/// What an endpoint is made of.
#[derive(Debug)]
pub struct NodeConfig {
    /// Our identity.
    pub identity: Identity,
    /// Our address; peers take it from our initiations.
    pub address: Address,
    /// How our node id was derived.
    pub salt: u16,
    /// Capabilities, as in our record.
    pub caps: u64,
    /// `seq` of our record; of the first prekey too.
    pub seq: u64,
    /// Suites that we have, best first.
    pub suites: SuiteList,
    /// What we are ready to receive.
    pub transport: TransportParameters,
    /// Kept over restarts: makes reset tokens.
    pub device: Secret,
    /// Life of keys.
    pub limits: Limits,
    /// The upgrade of sessions.
    pub post_quantum: PostQuantum,
    /// Secrets of networks: who does not have that of the initiator's network has no session with it.
    pub psks: Vec<(NetworkId, Secret)>,
}

/// What is common to all associations of one endpoint.
#[derive(Debug)]
pub struct Node {
    pub(super) identity: Identity,
    pub(super) identity_key: [u8; 32],
    pub(super) address: Address,
    pub(super) salt: u16,
    pub(super) suites: SuiteList,
    pub(super) transport: TransportParameters,
    pub(super) limits: Limits,
    pub(super) post_quantum: PostQuantum,
    psks: Vec<(NetworkId, Secret)>,
    pub(super) prekeys: Prekeys,
    caps: u64,
    reset_key: Secret,
    macs: PublicKeys,
    jar: Jar,
    load: Load,
    rates: Rates,
    /// The same, of sources that showed a cookie.
    proven: Rates,
    told: Rates,
    cookies: Rates,
    returning: Returning,
    seen: Table<[u8; 32], (u64, u32)>,
    verified: Table<[u8; 32], ()>,
    strikes: Strikes,
    boot: Instant,
    boot_unix_ms: u64,
    slept_ms: u64,
    last_time: (u64, u32),
    indices: HashMap<u32, Entry>,
    unconfirmed: VecDeque<(Instant, u32)>,
    unconfirmed_count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: u32,
    unconfirmed: bool,
}

/// What is to be done with a PILI.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing: drop it.
    Refused(Refusal),
    /// Send this back, PILC or PILN: no state was made.
    Answer(Vec<u8>),
    /// A peer that proved its identity would like a session: decide, and [`Node::accept`] or drop it.
    Incoming(Box<Incoming>),
}

/// A verified initiation. Dropping it leaves nothing behind.
pub struct Incoming {
    noise: Responder,
    payload: Payload1,
    early: Zeroizing<Vec<u8>>,
    early_fresh: bool,
    strike: [u8; 16],
    suite: Suite,
    /// Both sides would like the upgrade.
    upgrade: bool,
    initiator_index: u32,
    source: Source,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("payload", &self.payload).finish_non_exhaustive()
    }
}

impl Incoming {
    /// The initiator's Ed25519 key. Proven.
    pub fn identity(&self) -> &[u8; 32] {
        &self.payload.identity
    }

    /// The address that it claims. Whether it belongs to the identity is for the caller to find out.
    pub fn address(&self) -> Address {
        self.payload.address
    }

    /// The salt that its node id is derived with.
    pub fn salt(&self) -> u16 {
        self.payload.salt
    }

    /// Its capabilities.
    pub fn caps(&self) -> u64 {
        self.payload.certificate.caps
    }

    /// Its prekey and certificate, for initiations of our own.
    pub fn prekey(&self) -> PeerPrekey {
        let Payload1 { identity, certificate, .. } = self.payload;
        PeerPrekey { identity, prekey: self.noise.initiator, certificate }
    }

    /// Whether it carries early data, and nothing speaks against taking it.
    pub fn has_early(&self) -> bool {
        self.early_fresh
    }

    /// The frames of the early data, if nothing speaks against taking them.
    pub fn early(&self) -> Option<&[u8]> {
        self.early_fresh.then_some(&self.early)
    }
}

/// An accepted initiation.
#[derive(Debug)]
pub struct Accepted {
    /// PILR, to where PILI came from.
    pub datagram: Vec<u8>,
    /// The session, which may not send before the initiator has confirmed it.
    pub session: Session,
    /// Frames of the early data, if it was taken: idempotent requests only.
    pub early: Option<Vec<u8>>,
    /// An older unconfirmed session had to go: the caller's slot and the index of it.
    pub displaced: Option<(u32, u32)>,
}

impl Node {
    /// Makes an endpoint's part, with a first prekey.
    pub fn new(config: NodeConfig, cx: &mut Cx<'_>) -> Self {
        let NodeConfig {
            identity,
            address,
            salt,
            caps,
            seq,
            suites,
            transport,
            device,
            limits,
            post_quantum,
            psks,
        } = config;
        let mut secret = cx.random();
        let unix_s = cx.unix_ms / 1_000;
        let prekey = Prekey::new(&identity, secret, seq, caps, unix_s);
        secret.zeroize();
        let identity_key = identity.public_key();
        Self {
            identity,
            identity_key,
            address,
            salt,
            suites,
            transport,
            limits,
            post_quantum,
            psks,
            prekeys: Prekeys::new(prekey, unix_s),
            caps,
            reset_key: Secret::new(blake3::derive_key("pilotage 2026 reset", device.as_bytes())),
            macs: PublicKeys::of(&identity_key),
            jar: Jar::new(Secret::new(cx.random()), cx.now),
            load: Load::new(cx.now),
            rates: Rates::new(),
            proven: Rates::new(),
            told: Rates::new(),
            cookies: Rates::of_cookies(),
            returning: Returning::new(cx.now),
            seen: Table::new(TABLE_MAX),
            verified: Table::new(TABLE_MAX),
            strikes: Strikes::new(cx.now),
            boot: cx.now,
            boot_unix_ms: cx.unix_ms,
            slept_ms: 0,
            last_time: (0, 0),
            indices: HashMap::new(),
            unconfirmed: VecDeque::new(),
            unconfirmed_count: 0,
        }
    }

    /// Our newest prekey: to be published, and told to peers.
    pub fn prekey(&self) -> PeerPrekey {
        let prekey = self.prekeys.newest();
        PeerPrekey { identity: self.identity_key, prekey: prekey.public(), certificate: prekey.certificate }
    }

    /// Makes a new prekey when half of the newest one's life is over. Whether it did: the record is then to be published.
    /// Done by itself before a handshake of either role.
    pub fn rotate_prekey(&mut self, cx: &mut Cx<'_>) -> bool {
        let unix_s = cx.unix_ms / 1_000;
        let due = self.prekeys.is_due(unix_s);
        if due {
            self.prekeys.rotate(&self.identity, self.caps, unix_s, cx.rng);
        }
        due
    }

    /// The secret of a network, if it has one that we were told.
    pub fn psk(&self, network: NetworkId) -> Option<&Secret> {
        self.psks.iter().find(|(of, _)| *of == network).map(|(_, psk)| psk)
    }

    /// The host slept so long, ms: the monotonic clock stood still.
    pub fn slept(&mut self, ms: u64) {
        self.slept_ms = self.slept_ms.saturating_add(ms);
    }

    /// Our address changed, or its salt.
    pub fn set_address(&mut self, address: Address, salt: u16) {
        (self.address, self.salt) = (address, salt);
    }

    /// The caller's queue of handshakes is too long (more than 50 ms): for a second, cookies are asked for.
    pub fn strain(&mut self, now: Instant) {
        self.load.strain(now);
    }

    /// Whether initiations are answered with cookies now.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.load.is_busy(now) || self.unconfirmed_count > BUSY_UNCONFIRMED
    }

    // --- indices ---

    /// The slot (the caller's number of an association) that an index belongs to.
    #[inline]
    pub fn slot(&self, index: u32) -> Option<u32> {
        self.indices.get(&index).map(|entry| entry.slot)
    }

    /// The slot that a PILR, PILC, PILN or data frame is for, by the index in it.
    pub fn route(&self, datagram: &[u8]) -> Option<u32> {
        let at = match Kind::of(datagram)? {
            Kind::Response => 12,
            Kind::Cookie | Kind::NewPrekey => 4,
            Kind::Data => return self.slot(pilotage_wire::s1::data::receiver(datagram)?),
            Kind::Initiation | Kind::Reset => return None,
        };
        self.slot(u32::from_be_bytes(*datagram.get(at..)?.first_chunk()?))
    }

    /// Indices in use.
    pub fn indices(&self) -> usize {
        self.indices.len()
    }

    pub(super) fn allocate(&mut self, slot: u32, cx: &mut Cx<'_>) -> Result<u32, Refusal> {
        if self.indices.len() >= INDICES_MAX {
            return Err(Refusal::Full);
        }
        // At the bound one in 4,096 numbers is taken.
        loop {
            let index = u32::from_be_bytes(cx.random());
            if index != 0 && !self.indices.contains_key(&index) {
                self.indices.insert(index, Entry { slot, unconfirmed: false });
                return Ok(index);
            }
        }
    }

    pub(super) fn release(&mut self, index: u32) {
        if self.indices.remove(&index).is_some_and(|entry| entry.unconfirmed) {
            self.unconfirmed_count -= 1;
        }
    }

    pub(super) fn confirmed(&mut self, index: u32) {
        if let Some(entry) = self.indices.get_mut(&index)
            && std::mem::replace(&mut entry.unconfirmed, false)
        {
            self.unconfirmed_count -= 1;
        }
    }

    /// Unconfirmed sessions at present.
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed_count
    }

    /// Counts an unconfirmed session; at the bound the oldest has to go.
    fn note_unconfirmed(&mut self, index: u32, now: Instant) -> Option<(u32, u32)> {
        if let Some(entry) = self.indices.get_mut(&index) {
            entry.unconfirmed = true;
            self.unconfirmed_count += 1;
        }
        self.unconfirmed.push_back((now + UNCONFIRMED_KEPT, index));
        self.expire(now);
        let mut displaced = None;
        while self.unconfirmed_count > UNCONFIRMED_MAX
            && let Some((_, index)) = self.unconfirmed.pop_front()
        {
            if let Some(entry) = self.indices.get(&index).filter(|entry| entry.unconfirmed) {
                displaced = Some((entry.slot, index));
                self.release(index);
            }
        }
        if self.unconfirmed.len() > 2 * UNCONFIRMED_MAX {
            let indices = &self.indices;
            self.unconfirmed.retain(|(_, index)| indices.get(index).is_some_and(|entry| entry.unconfirmed));
        }
        displaced
    }

    /// Forgets sessions that nobody confirmed in time, also those that the caller never adopted.
    fn expire(&mut self, now: Instant) {
        while let Some(&(until, index)) = self.unconfirmed.front() {
            let unconfirmed = self.indices.get(&index).is_some_and(|entry| entry.unconfirmed);
            if unconfirmed && until > now {
                return;
            }
            self.unconfirmed.pop_front();
            if unconfirmed {
                self.release(index);
            }
        }
    }

    // --- resets ---

    /// The token of one of our indices, to be told to the peer.
    pub fn reset_token(&self, index: u32) -> [u8; TOKEN_LEN] {
        cookie::reset_token(&self.reset_key, index)
    }

    /// The PILX for a data frame of which nobody knows the index; `None` if it is too short, its index is known, or its
    /// source had too many.
    pub fn reset(&mut self, datagram: &[u8], source: &Source, cx: &mut Cx<'_>) -> Option<Vec<u8>> {
        let index = pilotage_wire::s1::data::receiver(datagram)?;
        let random = u32::from_be_bytes(cx.random());
        if datagram.len() < RESET_CAUSE_MIN
            || self.indices.contains_key(&index)
            || !self.told.take(source, random, cx.now)
        {
            return None;
        }
        Some(Reset { index, token: self.reset_token(index) }.encode().to_vec())
    }

    // --- initiations ---

    /// Judges a PILI. The order is that of cost: form, `mac1`, cookie and rate, prekey, and only then key agreements.
    pub fn handle_initiation(&mut self, datagram: &[u8], source: &Source, cx: &mut Cx<'_>) -> Verdict {
        match self.admit(datagram, source, cx) {
            Ok(Admitted::Cleared(initiation)) => match self.read(&initiation, source, cx) {
                Ok(incoming) => Verdict::Incoming(Box::new(incoming)),
                Err(refusal) => Verdict::Refused(refusal),
            },
            Ok(Admitted::Answer(answer)) => Verdict::Answer(answer),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// All that costs next to nothing.
    fn admit<'a>(
        &mut self,
        datagram: &'a [u8],
        source: &Source,
        cx: &mut Cx<'_>,
    ) -> Result<Admitted<'a>, Refusal> {
        let initiation = Initiation::decode(datagram)?;
        // In a great flood who has not asked before gets nothing, whatever its MACs: to know that costs a fifth of looking at one. Only
        // frames with a right `mac1` make a flood great.
        let mut asked = None;
        if self.returning.is_full(cx.now) {
            let cookie = self.jar.cookie(source, cx.now);
            if !self.returning.admits(class_of(&cookie), cx.now) {
                return Err(Refusal::Rate);
            }
            asked = Some(cookie);
        }
        if !self.macs.mac1_is(initiation.before_mac1, initiation.mac1) {
            return Err(Refusal::Mac);
        }
        self.load.on_initiation(cx.now);
        self.expire(cx.now);
        self.rotate_prekey(cx);
        let proven = self.jar.accepts(source, initiation.before_mac2, initiation.mac2, cx.now);
        let random = u32::from_be_bytes(cx.random());
        // Processes of this host could use up its time anyway, and nobody else has such an address.
        let here = source.is_this_host();
        if proven {
            if !here && !self.proven.take(source, random, cx.now) {
                return Err(Refusal::Rate);
            }
        } else if self.is_busy(cx.now) || !here && !self.rates.take(source, random, cx.now) {
            // Beyond the rate too: the others that used it up may have forged the address.
            return self.cookie(&initiation, source, asked, cx).map(Admitted::Answer);
        }
        if self.prekeys.find(&initiation.prekey_id).is_none() {
            let newest = self.prekeys.newest();
            let answer = NewPrekey {
                receiver: initiation.sender,
                cause: *initiation.mac1,
                prekey: newest.public(),
                certificate: newest.certificate,
            };
            return Ok(Admitted::Answer(answer.encode().to_vec()));
        }
        Ok(Admitted::Cleared(initiation))
    }

    /// The PILC for an initiation. Under a great flood only for those who ask again, of whom `asked` is the cookie.
    fn cookie(
        &mut self,
        initiation: &Initiation<'_>,
        source: &Source,
        asked: Option<[u8; 16]>,
        cx: &mut Cx<'_>,
    ) -> Result<Vec<u8>, Refusal> {
        let cookie = asked.unwrap_or_else(|| self.jar.cookie(source, cx.now));
        let random = u32::from_be_bytes(cx.random());
        if (asked.is_none() && !self.returning.admits(class_of(&cookie), cx.now))
            || !self.cookies.take(source, random, cx.now)
        {
            return Err(Refusal::Rate);
        }
        let nonce = cx.random();
        let sealed = self.macs.seal_cookie(&nonce, &cookie, initiation.mac1);
        Ok(CookieReply { receiver: initiation.sender, nonce, sealed }.encode().to_vec())
    }

    /// All that costs key agreements.
    fn read(
        &mut self,
        initiation: &Initiation<'_>,
        source: &Source,
        cx: &mut Cx<'_>,
    ) -> Result<Incoming, Refusal> {
        let prekey = self.prekeys.find(&initiation.prekey_id).ok_or(Refusal::UnknownPrekey)?;
        let (noise, opened) = Responder::begin(
            &prologue(initiation.header, &self.identity_key),
            &prekey.key,
            initiation.ephemeral,
            initiation.sealed_static,
            initiation.sealed_payload,
        )
        .ok_or(Refusal::Unauthentic)?;
        let (payload, early) = Payload1::decode(&opened)?;
        if payload.identity == self.identity_key {
            return Err(Refusal::Own);
        }
        if !early.is_empty() {
            check_early(early)?;
        }
        let Payload1 { identity, certificate, .. } = payload;
        self.verify(&PeerPrekey { identity, prekey: noise.initiator, certificate }, cx)?;
        let suite = Suite::choose(&self.suites, &payload.suites).ok_or(Refusal::Suite)?;
        let upgrade = self.post_quantum.is_on() && initiation.flags.post_quantum;
        if self.post_quantum == PostQuantum::Require && !upgrade {
            return Err(Refusal::PostQuantum);
        }
        self.is_new(noise.initiator, (payload.time_ms, payload.counter), cx)?;
        Ok(Incoming {
            early_fresh: !early.is_empty() && self.early_is_fresh(payload.time_ms, cx.now),
            early: Zeroizing::new(early.to_vec()),
            strike: strike_id(initiation),
            noise,
            payload,
            suite,
            upgrade,
            initiator_index: initiation.sender,
            source: *source,
        })
    }

    /// Certificate and time of a peer's prekey; the signature only once.
    pub(super) fn verify(&mut self, peer: &PeerPrekey, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        let fingerprint = peer.fingerprint();
        if self.verified.get(&fingerprint).is_some() {
            return peer.check_time(cx.unix_ms);
        }
        peer.check(cx.unix_ms)?;
        let random = u32::from_be_bytes(cx.random());
        self.verified.entry(fingerprint, random, || ());
        Ok(())
    }

    /// Each initiation of a prekey must be later than the one before.
    fn is_new(&mut self, prekey: [u8; 32], time: (u64, u32), cx: &mut Cx<'_>) -> Result<(), Refusal> {
        if self.seen.get(&prekey).is_some_and(|last| *last >= time) {
            return Err(Refusal::Replay);
        }
        let random = u32::from_be_bytes(cx.random());
        *self.seen.entry(prekey, random, || time) = time;
        Ok(())
    }

    /// By a clock that was read once, at the start, and never follows steps of the wall clock.
    fn early_is_fresh(&self, time_ms: u64, now: Instant) -> bool {
        let up = now.saturating_duration_since(self.boot).as_millis() as u64;
        let ours = self.boot_unix_ms.saturating_add(up).saturating_add(self.slept_ms);
        time_ms.abs_diff(ours) <= EARLY_SKEW_MS
            && time_ms > self.boot_unix_ms.saturating_add(EARLY_AFTER_BOOT_MS)
    }

    /// Answers an initiation. `slot` is the caller's number of the association; `psk` the secret of the network in
    /// [`Incoming::address`], or zeros.
    ///
    /// # Errors
    ///
    /// [`Refusal::Full`] if there are too many indices; [`Refusal::Unauthentic`] if the initiator's keys have small
    /// order.
    pub fn accept(
        &mut self,
        incoming: Incoming,
        slot: u32,
        psk: &Secret,
        take_early: bool,
        cx: &mut Cx<'_>,
    ) -> Result<Accepted, Refusal> {
        let local = self.allocate(slot, cx)?;
        // Once more by the clock: it may have waited for a look-up, longer than the register remembers.
        let fresh = incoming.early_fresh && self.early_is_fresh(incoming.payload.time_ms, cx.now);
        // Early data is never under the upgraded keys.
        let wanted = take_early && self.post_quantum != PostQuantum::Require;
        let take_early = wanted && fresh && self.strikes.strike(incoming.strike, cx.now);
        let Incoming { noise, payload, early, suite, upgrade, initiator_index, source, .. } = incoming;
        let answer = Payload2 {
            suite: suite.id(),
            early_accepted: take_early,
            post_quantum: upgrade,
            sender: local,
            transport: self.transport,
            reset_token: self.reset_token(local),
            observed: observed(&source),
            time_ms: cx.unix_ms,
            record_seq: self.prekeys.newest().certificate.seq,
        };
        let mut datagram = response_header((take_early, upgrade), local, initiator_index).to_vec();
        datagram.reserve(RESPONSE_LEN);
        let mut secret = cx.random();
        let ephemeral = DhKey::from_bytes(secret);
        secret.zeroize();
        let Some(split) = noise.finish(&ephemeral, &psk.0, &answer.encode(), &mut datagram) else {
            self.release(local);
            return Err(Refusal::Unauthentic);
        };
        let mac1 = PublicKeys::of(&payload.identity).mac1(&datagram);
        datagram.extend_from_slice(&mac1);
        let parts = Parts {
            suite,
            role: Role::Responder,
            local,
            remote: initiator_index,
            reset_token: None,
            transport: payload.transport,
            limits: self.limits,
        };
        let mut session = Session::new(&split, parts, cx.now);
        if upgrade {
            session.agree_on_upgrade(&mut |bytes| cx.rng.fill_bytes(bytes));
        }
        let displaced = self.note_unconfirmed(local, cx.now);
        let early = take_early.then(|| early.to_vec());
        Ok(Accepted { datagram, session, early, displaced })
    }

    // --- for initiators ---

    /// Later than every time before, whatever the wall clock does.
    pub(super) fn next_time(&mut self, unix_ms: u64) -> (u64, u32) {
        self.last_time = match self.last_time {
            (last, _) if unix_ms > last => (unix_ms, 0),
            (last, u32::MAX) => (last + 1, 0),
            (last, counter) => (last, counter + 1),
        };
        self.last_time
    }

    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(super) fn forget_initiators(&mut self) {
        self.seen = Table::new(TABLE_MAX);
    }

    pub(super) fn mac1_is(&self, bytes: &[u8], mac1: &[u8; 16]) -> bool {
        self.macs.mac1_is(bytes, mac1)
    }
}

enum Admitted<'a> {
    Answer(Vec<u8>),
    Cleared(Initiation<'a>),
}

/// What both sides must agree on before the first key: who is called, and all of PILI that is in clear.
pub(super) fn prologue(header: &[u8; 20], responder: &[u8; 32]) -> [u8; 63] {
    let mut out = [0; 63];
    out[..11].copy_from_slice(PROLOGUE);
    out[11..31].copy_from_slice(header);
    out[31..].copy_from_slice(responder);
    out
}

/// Early data is frames, and only some of them.
pub(super) fn check_early(frames: &[u8]) -> Result<(), Malformed> {
    Frames::check(frames)?;
    let allowed = Frames::new(frames).all(|frame| frame.is_ok_and(|frame| frame.may_be_early()));
    if allowed { Ok(()) } else { Err(Malformed::Value("early")) }
}

/// A keyed hash of the source of which this is the cookie: nobody sees it before the answer is sent.
fn class_of(cookie: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *cookie;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Names an initiation in the register of early data.
fn strike_id(initiation: &Initiation<'_>) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("pilotage 2026 early data");
    hasher.update(&initiation.prekey_id).update(initiation.ephemeral);
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

fn observed(source: &Source) -> Observed {
    match (source.relayed, source.addr) {
        (Some(node), _) => Observed::Relay(node),
        (None, SocketAddr::V4(addr)) => Observed::V4(addr.ip().octets(), addr.port()),
        (None, SocketAddr::V6(addr)) => Observed::V6(addr.ip().octets(), addr.port()),
    }
}
