//! Who was heard of when: soft state, in memory only. Sans-IO. `spec/replica.md §5`.
//!
//! An agent that has a record here asks for a slot and gets a token, sealed for it. A heartbeat is a datagram of
//! [`HEARTBEAT_LEN`] bytes with a MAC under that token; the token follows from the node's secret and the agent, so nothing
//! but 48 bytes per agent is kept. Counters grow, so that a heartbeat counts once.

use crate::book::message::{Hello, OwnerKey, Welcome};
use chacha20poly1305::aead::{Aead as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Bytes of a heartbeat: magic (4), slot (4), counter (8), MAC (16).
pub const HEARTBEAT_LEN: usize = 32;
/// Bytes of the answer to a heartbeat whose slot is not known: magic (4), slot (4).
pub const UNKNOWN_LEN: usize = 8;
/// An agent counts as alive for so many intervals after its last heartbeat.
pub const INTERVALS: u32 = 3;
/// A slot of an agent that was not heard of for so long may be given to another one. Seconds.
pub const FORGET: u32 = 3_600;

const BEAT: &[u8; 4] = b"PHB1";
const UNKNOWN: &[u8; 4] = b"PHB0";
const HELLO_CONTEXT: &[u8] = b"pilotage-presence-v1\0";
const WELCOME_CONTEXT: &[u8] = b"pilotage-presence-token-v1\0";
const SEAL_CONTEXT: &str = "pilotage 2026 presence seal v1";
const TOKEN_CONTEXT: &str = "pilotage 2026 presence token v1";
/// Slots looked at for one that may be given away.
const LOOKS: usize = 64;

/// Slots of agents.
#[derive(Debug)]
pub struct Presence {
    secret: Zeroizing<[u8; 32]>,
    tokens: Zeroizing<[u8; 32]>,
    slots: Vec<Slot>,
    /// From the last 8 bytes of a hash of the owner: owners with equal ones follow each other through `Slot::next`.
    index: HashMap<u64, u32, AsIs>,
    limit: usize,
    hand: usize,
}

#[derive(Debug, Clone)]
struct Slot {
    owner: OwnerKey,
    /// Of the last heartbeat; 0: there was none.
    counter: u64,
    /// When that was, or when the slot was given.
    seen: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct AsIs;

impl BuildHasher for AsIs {
    type Hasher = First;

    fn build_hasher(&self) -> First {
        First(0)
    }
}

struct First(u64);

impl Hasher for First {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The agent is alive.
    Alive,
    /// Its slot is not known: this is to be sent back. The agent asks for a slot again.
    Unknown([u8; UNKNOWN_LEN]),
    /// Old, forged, or no heartbeat.
    Ignored,
}

impl Presence {
    /// At most `limit` agents. `secret`: 32 unpredictable bytes, new with each start.
    #[must_use]
    pub fn new(secret: [u8; 32], limit: usize) -> Self {
        let limit = limit.clamp(1, u32::MAX as usize);
        Self {
            tokens: Zeroizing::new(blake3::derive_key(TOKEN_CONTEXT, &secret)),
            secret: Zeroizing::new(secret),
            slots: Vec::new(),
            index: HashMap::default(),
            limit,
            hand: 0,
        }
    }

    /// Agents that have a slot.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nobody has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Agents that were heard of at most `interval` × [`INTERVALS`] seconds ago.
    #[must_use]
    pub fn alive(&self, now: u32, interval: u32) -> usize {
        let life = interval.saturating_mul(INTERVALS);
        self.slots.iter().filter(|slot| slot.counter > 0 && now.saturating_sub(slot.seen) <= life).count()
    }

    /// The agent's slot and token; `None` if all slots are in use.
    pub fn admit(&mut self, now: u32, owner: &OwnerKey) -> Option<(u32, [u8; 32])> {
        if let Some(slot) = self.find(owner) {
            return Some((slot, self.token(slot, owner)));
        }
        let at = self.room(now)?;
        let fresh = Slot { owner: *owner, counter: 0, seen: now };
        match self.slots.get_mut(at) {
            Some(slot) => *slot = fresh,
            None => self.slots.push(fresh),
        }
        let at = at as u32;
        self.index.insert(self.hash(owner), at);
        Some((at, self.token(at, owner)))
    }

    /// Takes a datagram; `now` is in seconds of a clock that does not go back.
    pub fn beat(&mut self, now: u32, datagram: &[u8]) -> Beat {
        let Some((slot, counter)) = read(datagram) else { return Beat::Ignored };
        let Some(entry) = self.slots.get(slot as usize) else { return unknown(slot) };
        if counter <= entry.counter {
            return Beat::Ignored;
        }
        let owner = entry.owner;
        let token = self.token(slot, &owner);
        if !same(&mac(&token, &datagram[..16]), &datagram[16..]) {
            // Whose slot was given to another one, or whose node has started again, asks again.
            return unknown(slot);
        }
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            (entry.counter, entry.seen) = (counter, now);
        }
        Beat::Alive
    }

    /// Seconds since the agent's last heartbeat; `None` if there was none.
    #[must_use]
    pub fn seen(&self, now: u32, owner: &OwnerKey) -> Option<u32> {
        let slot = &self.slots[self.find(owner)? as usize];
        (slot.counter > 0).then(|| now.saturating_sub(slot.seen))
    }

    fn find(&self, owner: &OwnerKey) -> Option<u32> {
        let slot = *self.index.get(&self.hash(owner))?;
        (self.slots.get(slot as usize)?.owner == *owner).then_some(slot)
    }

    /// Keyed: nobody can choose agents that share a place.
    fn hash(&self, owner: &OwnerKey) -> u64 {
        let hash = blake3::keyed_hash(&self.secret, owner);
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    fn token(&self, slot: u32, owner: &OwnerKey) -> [u8; 32] {
        let mut message = [0; 38];
        message[..4].copy_from_slice(&slot.to_be_bytes());
        message[4..].copy_from_slice(owner);
        *blake3::keyed_hash(&self.tokens, &message).as_bytes()
    }

    /// A new slot, or one of somebody who is long gone.
    fn room(&mut self, now: u32) -> Option<usize> {
        if self.slots.len() < self.limit {
            return Some(self.slots.len());
        }
        for _ in 0..LOOKS.min(self.slots.len()) {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[self.hand];
            if now.saturating_sub(slot.seen) > FORGET {
                let hash = self.hash(&slot.owner);
                self.index.remove(&hash);
                return Some(self.hand);
            }
        }
        None
    }
}

fn unknown(slot: u32) -> Beat {
    let mut reply = [0; UNKNOWN_LEN];
    reply[..4].copy_from_slice(UNKNOWN);
    reply[4..].copy_from_slice(&slot.to_be_bytes());
    Beat::Unknown(reply)
}

fn read(datagram: &[u8]) -> Option<(u32, u64)> {
    let rest = datagram.strip_prefix(BEAT).filter(|_| datagram.len() == HEARTBEAT_LEN)?;
    let (slot, rest) = rest.split_first_chunk()?;
    let (counter, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*slot), u64::from_be_bytes(*counter)))
}

fn mac(token: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let mut mac = [0; 16];
    mac.copy_from_slice(&blake3::keyed_hash(token, message).as_bytes()[..16]);
    mac
}

/// In a time that does not depend on where they differ.
fn same(a: &[u8; 16], b: &[u8]) -> bool {
    b.len() == a.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// An agent's heartbeat. Counters have to grow: Unix milliseconds do, if they are not used twice.
#[must_use]
pub fn heartbeat(slot: u32, counter: u64, token: &[u8; 32]) -> [u8; HEARTBEAT_LEN] {
    let mut out = [0; HEARTBEAT_LEN];
    out[..4].copy_from_slice(BEAT);
    out[4..8].copy_from_slice(&slot.to_be_bytes());
    out[8..16].copy_from_slice(&counter.to_be_bytes());
    let mac = mac(token, &out[..16]);
    out[16..].copy_from_slice(&mac);
    out
}

/// Whether a datagram says that the slot is not known. Anybody can send one: it only makes the agent ask again.
#[must_use]
pub fn is_unknown(datagram: &[u8], slot: u32) -> bool {
    datagram.strip_prefix(UNKNOWN).is_some_and(|rest| rest == slot.to_be_bytes())
}

/// What the agent signs in a [`Hello`] to this node.
#[must_use]
pub fn hello_signed(node: &[u8; 32], hello: &Hello) -> Vec<u8> {
    let mut out = HELLO_CONTEXT.to_vec();
    out.extend(node);
    out.extend(hello.key);
    out.extend(hello.network.0.to_be_bytes());
    out.extend(hello.ephemeral);
    out.extend(hello.time.to_be_bytes());
    out
}

/// What the node signs in its [`Welcome`].
#[must_use]
pub fn welcome_signed(hello: &Hello, welcome: &Welcome) -> Vec<u8> {
    let mut out = WELCOME_CONTEXT.to_vec();
    out.extend(hello.signature);
    out.extend(welcome.slot.to_be_bytes());
    out.extend(welcome.port.to_be_bytes());
    out.extend(welcome.interval.to_be_bytes());
    out.extend(welcome.ephemeral);
    out.extend(welcome.sealed);
    out
}

fn cipher(
    secret: &[u8; 32],
    other: &[u8; 32],
    agent: &[u8; 32],
    node: &[u8; 32],
) -> Option<ChaCha20Poly1305> {
    let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*other));
    if !shared.was_contributory() {
        return None;
    }
    let material = Zeroizing::new([shared.as_bytes().as_slice(), agent, node].concat());
    let key = Zeroizing::new(blake3::derive_key(SEAL_CONTEXT, &material));
    Some(ChaCha20Poly1305::new(&Key::from(*key)))
}

/// The X25519 key that belongs to a secret.
#[must_use]
pub fn public(secret: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
}

/// The node's side: seals a token for the agent's ephemeral key. `secret` is used once.
#[must_use]
pub fn seal_token(token: &[u8; 32], secret: &[u8; 32], agent: &[u8; 32]) -> Option<[u8; 48]> {
    let cipher = cipher(secret, agent, agent, &public(secret))?;
    // The key is good for one message: the nonce may be anything.
    cipher.encrypt(&Nonce::from([0; 12]), token.as_slice()).ok()?.try_into().ok()
}

/// The agent's side.
#[must_use]
pub fn open_token(sealed: &[u8; 48], secret: &[u8; 32], node: &[u8; 32]) -> Option<[u8; 32]> {
    let cipher = cipher(secret, node, &public(secret), node)?;
    cipher.decrypt(&Nonce::from([0; 12]), sealed.as_slice()).ok()?.try_into().ok()
}

/// One input of the fuzz target `heartbeat`.
#[doc(hidden)]
pub fn fuzz_input(data: &[u8]) {
    let mut presence = Presence::new([1; 32], 4);
    let owner = [2; 34];
    let _ = presence.admit(1, &owner);
    assert_ne!(presence.beat(2, data), Beat::Alive, "nobody without the token is believed");
    assert_eq!(presence.seen(3, &owner), None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(number: u32) -> OwnerKey {
        let mut owner = [9; 34];
        owner[..4].copy_from_slice(&number.to_be_bytes());
        owner
    }

    #[test]
    fn only_the_agent_is_alive_by_its_heartbeat() {
        let mut presence = Presence::new([1; 32], 10);
        let (slot, token) = presence.admit(100, &owner(1)).unwrap();
        assert_eq!(presence.seen(100, &owner(1)), None);
        let beat = heartbeat(slot, 5, &token);
        for bit in 0..HEARTBEAT_LEN * 8 {
            let mut altered = beat;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(presence.beat(100, &altered), Beat::Alive, "bit {bit}");
        }
        assert_eq!(presence.beat(100, &beat), Beat::Alive);
        assert_eq!(presence.beat(100, &beat), Beat::Ignored, "it counts once");
        assert_eq!(presence.beat(100, &heartbeat(slot, 4, &token)), Beat::Ignored, "an older one does not");
        assert_eq!(presence.seen(107, &owner(1)), Some(7));
        assert_eq!((presence.alive(190, 30), presence.alive(191, 30)), (1, 0));
        // Asked for again: the same token, and the counter goes on.
        assert_eq!(presence.admit(120, &owner(1)), Some((slot, token)));
        assert_eq!(presence.beat(120, &beat), Beat::Ignored);
    }

    #[test]
    fn a_node_that_started_again_asks_for_a_new_slot() {
        let mut first = Presence::new([1; 32], 10);
        let (slot, token) = first.admit(0, &owner(1)).unwrap();
        let mut second = Presence::new([2; 32], 10);
        for _ in 0..2 {
            let Beat::Unknown(reply) = second.beat(0, &heartbeat(slot, 1, &token)) else { panic!() };
            assert!(is_unknown(&reply, slot) && !is_unknown(&reply, slot + 1));
            // Now the slot is another agent's.
            second.admit(0, &owner(7)).unwrap();
        }
    }

    #[test]
    fn slots_are_bounded_and_given_away_after_an_hour() {
        let mut presence = Presence::new([1; 32], 3);
        for number in 0..3 {
            assert!(presence.admit(0, &owner(number)).is_some());
        }
        assert!(presence.admit(FORGET, &owner(9)).is_none());
        let (slot, token) = presence.admit(FORGET, &owner(1)).unwrap();
        assert_eq!(presence.beat(FORGET, &heartbeat(slot, 1, &token)), Beat::Alive);
        for number in 10..12 {
            assert!(presence.admit(FORGET + 1, &owner(number)).is_some());
        }
        assert!(presence.admit(FORGET + 1, &owner(13)).is_none(), "one is alive, two are new");
        assert_eq!((presence.len(), presence.seen(FORGET + 1, &owner(1))), (3, Some(1)));
        assert_eq!(presence.seen(FORGET + 1, &owner(0)), None);
    }

    #[test]
    fn a_token_opens_for_the_agent_only() {
        let (agent, node, token) = ([3; 32], [4; 32], [5; 32]);
        let sealed = seal_token(&token, &node, &public(&agent)).unwrap();
        assert_eq!(open_token(&sealed, &agent, &public(&node)), Some(token));
        assert_eq!(open_token(&sealed, &[6; 32], &public(&node)), None);
        let mut altered = sealed;
        altered[0] ^= 1;
        assert_eq!(open_token(&altered, &agent, &public(&node)), None);
        assert_eq!(seal_token(&token, &node, &[0; 32]), None, "a key of small order");
    }

    #[test]
    fn an_agent_costs_few_bytes() {
        assert!(std::mem::size_of::<Slot>() <= 48);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_heartbeat(data in prop::collection::vec(any::<u8>(), 0..64)) {
            fuzz_input(&data);
        }
    }
}
