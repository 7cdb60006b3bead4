//! Noise_IKpsk2_25519_ChaChaPoly_SHA256 (The Noise Protocol Framework, revision 34), both roles.
//!
//! ```text
//! <- s
//! ...
//! -> e, es, s, ss
//! <- e, ee, se, psk
//! ```
//!
//! Only what this one pattern needs. `snow` is held against it in tests, message by message and key by key.

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::dh::DhKey;

const NAME: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_SHA256";
const TAG_LEN: usize = 16;

/// Noise's SymmetricState, with the CipherState in it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Symmetric {
    chaining: [u8; 32],
    hash: [u8; 32],
    key: [u8; 32],
    nonce: u64,
}

impl Symmetric {
    /// After the premessage: the responder's static key.
    fn new(prologue: &[u8], responder: &[u8; 32]) -> Self {
        let hash: [u8; 32] = Sha256::digest(NAME).into();
        let mut this = Self { chaining: hash, hash, key: [0; 32], nonce: 0 };
        this.mix_hash(prologue);
        this.mix_hash(responder);
        this
    }

    fn mix_hash(&mut self, data: &[u8]) {
        let mut hasher = Sha256::new();
        hasher.update(self.hash);
        hasher.update(data);
        self.hash = hasher.finalize().into();
    }

    fn mix_key(&mut self, input: &[u8]) {
        let mut out = Zeroizing::new([0; 64]);
        hkdf(&self.chaining, input, out.as_mut());
        self.chaining.copy_from_slice(&out[..32]);
        self.key.copy_from_slice(&out[32..]);
        self.nonce = 0;
    }

    fn mix_key_and_hash(&mut self, input: &[u8]) {
        let mut out = Zeroizing::new([0; 96]);
        hkdf(&self.chaining, input, out.as_mut());
        self.chaining.copy_from_slice(&out[..32]);
        self.mix_hash(&out[32..64]);
        self.key.copy_from_slice(&out[64..]);
        self.nonce = 0;
    }

    /// In the modes with a psk an ephemeral key is mixed into the key too.
    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_hash(public);
        self.mix_key(public);
    }

    fn mix_agreed(&mut self, own: &DhKey, other: &[u8; 32]) -> Option<()> {
        let shared = own.agree(other)?;
        self.mix_key(shared.as_ref());
        Some(())
    }

    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        nonce
    }

    /// Appends the sealed bytes and their tag.
    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(plain);
        let nonce = self.next_nonce();
        let cipher = ChaCha20Poly1305::new((&self.key).into());
        let tag = cipher
            .encrypt_inout_detached((&nonce).into(), &self.hash, (&mut out[start..]).into())
            .expect("a handshake payload is below the cipher's 256 GiB");
        out.extend_from_slice(&tag);
        self.mix_hash(&out[start..]);
    }

    fn open(&mut self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (body, tag) = sealed.split_last_chunk::<TAG_LEN>()?;
        let mut plain = Zeroizing::new(body.to_vec());
        let nonce = self.next_nonce();
        let cipher = ChaCha20Poly1305::new((&self.key).into());
        let tag = (*tag).into();
        cipher.decrypt_inout_detached((&nonce).into(), &self.hash, plain.as_mut_slice().into(), &tag).ok()?;
        self.mix_hash(sealed);
        Some(plain)
    }

    fn split(&self) -> Split {
        let mut out = Zeroizing::new([0; 64]);
        hkdf(&self.chaining, &[], out.as_mut());
        let mut split = Split { to_responder: [0; 32], to_initiator: [0; 32], hash: self.hash };
        split.to_responder.copy_from_slice(&out[..32]);
        split.to_initiator.copy_from_slice(&out[32..]);
        split
    }
}

/// Noise's HKDF with two or three outputs: RFC 5869 with the chaining key as salt and no info.
#[inline(never)]
fn hkdf(chaining: &[u8; 32], input: &[u8], out: &mut [u8]) {
    hkdf_only(chaining, input, out);
    crate::crypto::burn();
}

#[inline(never)]
fn hkdf_only(chaining: &[u8; 32], input: &[u8], out: &mut [u8]) {
    let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(chaining), input);
    prk.as_mut_slice().zeroize();
    hkdf.expand(&[], out).expect("64 or 96 bytes");
}

/// What both sides know at the end.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Split {
    pub(crate) to_responder: [u8; 32],
    pub(crate) to_initiator: [u8; 32],
    /// The handshake hash. Secret as well, since the psk step mixed a secret into it.
    pub(crate) hash: [u8; 32],
}

/// The initiator between the two messages.
pub(crate) struct Initiator {
    state: Symmetric,
    ephemeral: DhKey,
    fixed: DhKey,
}

impl Initiator {
    /// Writes message 1 behind `out`: ephemeral key, sealed static key, sealed payload. `None` if the responder's key
    /// has small order.
    pub(crate) fn begin(
        prologue: &[u8],
        responder: &[u8; 32],
        fixed: &DhKey,
        ephemeral: DhKey,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Self> {
        let mut state = Symmetric::new(prologue, responder);
        let public = ephemeral.public();
        state.mix_ephemeral(&public);
        out.extend_from_slice(&public);
        state.mix_agreed(&ephemeral, responder)?;
        state.seal(&fixed.public(), out);
        state.mix_agreed(fixed, responder)?;
        state.seal(payload, out);
        Some(Self { state, ephemeral, fixed: fixed.clone() })
    }

    /// Reads message 2. `&self`: a forged answer must not end what a true one would complete.
    pub(crate) fn finish(
        &self,
        ephemeral: &[u8; 32],
        sealed_payload: &[u8],
        psk: &[u8; 32],
    ) -> Option<(Zeroizing<Vec<u8>>, Split)> {
        let mut state = self.state.clone();
        state.mix_ephemeral(ephemeral);
        state.mix_agreed(&self.ephemeral, ephemeral)?;
        state.mix_agreed(&self.fixed, ephemeral)?;
        state.mix_key_and_hash(psk);
        let payload = state.open(sealed_payload)?;
        Some((payload, state.split()))
    }
}

/// The responder between the two messages.
pub(crate) struct Responder {
    state: Symmetric,
    initiator_ephemeral: [u8; 32],
    /// The initiator's static key.
    pub(crate) initiator: [u8; 32],
}

impl Responder {
    /// Reads message 1.
    pub(crate) fn begin(
        prologue: &[u8],
        fixed: &DhKey,
        ephemeral: &[u8; 32],
        sealed_static: &[u8; 48],
        sealed_payload: &[u8],
    ) -> Option<(Self, Zeroizing<Vec<u8>>)> {
        let mut state = Symmetric::new(prologue, &fixed.public());
        state.mix_ephemeral(ephemeral);
        state.mix_agreed(fixed, ephemeral)?;
        let initiator: [u8; 32] = state.open(sealed_static)?.as_slice().try_into().ok()?;
        state.mix_agreed(fixed, &initiator)?;
        let payload = state.open(sealed_payload)?;
        Some((Self { state, initiator_ephemeral: *ephemeral, initiator }, payload))
    }

    /// Writes message 2 behind `out`: ephemeral key, sealed payload.
    pub(crate) fn finish(
        mut self,
        ephemeral: &DhKey,
        psk: &[u8; 32],
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Split> {
        let public = ephemeral.public();
        self.state.mix_ephemeral(&public);
        out.extend_from_slice(&public);
        self.state.mix_agreed(ephemeral, &self.initiator_ephemeral)?;
        self.state.mix_agreed(ephemeral, &self.initiator)?;
        self.state.mix_key_and_hash(psk);
        self.state.seal(payload, out);
        Some(self.state.split())
    }
}
