//! Stand-ins for the cryptography while fuzzing: the same interface, a thousandth of the cost, no security at all.
//!
//! Real signatures and key agreements would leave the fuzzer a few hundred handshakes a second. What counts there is
//! that whoever does not hold a key can neither seal nor sign, that a changed byte does not verify, and that both
//! sides agree on a key; all of that holds here as long as nobody attacks the mixing on purpose. Comparisons are made
//! on mixed values, so that a fuzzer which watches comparisons cannot copy a tag from them.
//!
//! On top the AEAD does what no real one can: it remembers every (key, nonce) pair that sealed since [`forget`] and
//! panics when one comes twice (rules C1, C5).
//!
//! Only with the feature `fuzzing`, and only with debug assertions: it can never be part of a release build.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use super::aead::{KEY_LEN, NONCE_LEN, PacketAead, TAG_LEN};

#[cfg(not(debug_assertions))]
compile_error!("the feature `fuzzing` replaces the cryptography by a toy: it needs debug assertions");

/// HKDF `info` of tunnel keys; unused here.
pub const INFO_TUNNEL: &[u8] = b"toy-tunnel";
/// HKDF `info` of the secure channel; unused here.
pub const INFO_SECURE: &[u8] = b"toy-secure";

thread_local! {
    static SEALED: RefCell<HashSet<[u64; 3], BuildHasherDefault<Folded>>> = RefCell::default();
}

/// Takes the numbers as they are: they are mixed already.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = absorb(self.0, bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// Forgets the (key, nonce) pairs of this thread: call it at the beginning of an execution.
pub(crate) fn forget() {
    SEALED.with_borrow_mut(HashSet::clear);
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Takes `bytes` and their length into the state.
fn absorb(mut state: u64, bytes: &[u8]) -> u64 {
    let mut step = |word: u64| state = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let chunks = bytes.chunks_exact(8);
    let mut last = [0u8; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    for chunk in chunks {
        step(chunk.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)));
    }
    step(u64::from_le_bytes(last));
    step(bytes.len() as u64);
    state
}

/// `N` bytes that depend on all of `parts`.
fn digest<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let state = parts.iter().fold(parts.len() as u64, |state, part| absorb(state, part));
    let mut out = [0; N];
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        let word = mix(state.wrapping_add(i as u64)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    out
}

/// Equality that shows nothing of either side to whoever watches comparisons.
fn same(a: &[u8], b: &[u8]) -> bool {
    mix(absorb(7, a)) == mix(absorb(7, b))
}

/// Stands for an Ed25519 key pair.
#[derive(Debug, Clone)]
pub struct Identity {
    seed: [u8; 32],
    public: [u8; 32],
}

impl Identity {
    /// The identity of a seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed, public: digest(&[b"public", &seed]) }
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        digest(&[b"sign", &self.public, message])
    }

    /// The seed.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }
}

/// Whether `signature` over `message` was made by the holder of `public_key`.
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let expected: [u8; 64] = digest(&[b"sign", public_key, message]);
    same(&expected, signature)
}

/// Stands for an X25519 key pair.
#[derive(Debug)]
pub struct EphemeralKey {
    public: [u8; 32],
}

impl EphemeralKey {
    /// The key pair of 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self { public: digest(&[b"ephemeral", &bytes]) }
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The session key shared with the owner of `peer_public`; `None` for the one point of small order.
    pub fn tunnel_key(&self, peer_public: &[u8; 32]) -> Option<TunnelKey> {
        self.shared_key(peer_public, INFO_TUNNEL)
    }

    /// Like [`tunnel_key`](Self::tunnel_key), for another protocol.
    pub fn shared_key(&self, peer_public: &[u8; 32], info: &[u8]) -> Option<TunnelKey> {
        let low = self.public.min(*peer_public);
        let high = self.public.max(*peer_public);
        (*peer_public != [0; 32]).then(|| TunnelKey { bytes: digest(&[info, &low, &high]) })
    }
}

/// Stands for HKDF-SHA256.
pub fn derive(shared: &[u8; 32], info: &[u8]) -> TunnelKey {
    TunnelKey { bytes: digest(&[info, shared]) }
}

/// A symmetric key.
#[derive(Debug)]
pub struct TunnelKey {
    bytes: [u8; 32],
}

impl TunnelKey {
    /// The key bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The packet protection under this key.
    pub fn aead(&self) -> SessionAead {
        SessionAead::new(&self.bytes)
    }
}

/// Stands for AES-256-GCM: leaves the plaintext readable, but nobody without the key can make the tag.
#[derive(Debug)]
pub struct SessionAead {
    key: u64,
}

impl SessionAead {
    /// Takes a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self { key: absorb(1, key) }
    }

    fn tag(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &[u8]) -> [u8; TAG_LEN] {
        let state = absorb(absorb(absorb(self.key, nonce), aad), text);
        let mut tag = [0; TAG_LEN];
        tag[..8].copy_from_slice(&mix(state).to_le_bytes());
        tag[8..].copy_from_slice(&mix(!state).to_le_bytes());
        tag
    }

    /// Seals without remembering the nonce: for a harness that plays a peer whose nonces may repeat.
    pub fn seal_forgetfully(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        if let Some((text, tag)) = buf.split_last_chunk_mut::<TAG_LEN>() {
            *tag = self.tag(nonce, aad, text);
        }
    }
}

impl PacketAead for SessionAead {
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        let mut padded = [0; 16];
        padded[..NONCE_LEN].copy_from_slice(nonce);
        let nonce_value = u128::from_le_bytes(padded);
        let pair = [self.key, nonce_value as u64, (nonce_value >> 64) as u64];
        let new = SEALED.with_borrow_mut(|sealed| sealed.insert(pair));
        assert!(new, "(key, nonce) sealed twice: nonce {nonce:02x?}");
        self.seal_forgetfully(nonce, aad, buf);
    }

    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let (text, tag) = buf.split_last_chunk_mut::<TAG_LEN>()?;
        if !same(tag, &self.tag(nonce, aad, text)) {
            text.fill(0xDD); // as a real one may: whoever goes on with it is caught
            return None;
        }
        Some(text)
    }

    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let Some((text, tag)) = sealed.split_last_chunk::<TAG_LEN>() else { return false };
        out.copy_from_slice(text);
        same(tag, &self.tag(nonce, aad, text))
    }
}
