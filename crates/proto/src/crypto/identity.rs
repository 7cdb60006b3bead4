//! The long-term key of a node: Ed25519 signatures (RFC 8032).

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// An Ed25519 key pair. The private half is wiped from memory when the last copy is dropped.
///
/// `Debug` shows the public key only.
#[derive(Clone)]
pub struct Identity {
    // `SigningKey` keeps the public key beside the seed, so signing derives nothing twice, and it
    // wipes itself on drop (feature "zeroize").
    key: SigningKey,
}

impl Identity {
    /// The identity that belongs to a 32-byte secret seed (RFC 8032 section 5.1.5). Every seed is valid.
    ///
    /// The caller must take the seed from a cryptographic random source and wipe its own copy.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&seed) }
    }

    /// The public key, which is what other nodes pin.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Signs a message. Deterministic: the same message gives the same signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// The secret seed, for storing the identity. Handle it like a password.
    pub fn seed(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(")?;
        for byte in self.public_key() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// Whether `signature` over `message` was made by the holder of `public_key`.
///
/// Strict rules, so that one message has one meaning for every verifier: an encoding that is no curve
/// point, a non-canonical public key or scalar, and a key or commitment of small order are all refused.
/// (A small-order key would let one signature pass for many messages.)
pub fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    if !is_canonical(public_key) {
        return false;
    }
    let Ok(key) = VerifyingKey::from_bytes(public_key) else {
        return false;
    };
    key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
}

/// Whether the y coordinate is below p = 2^255 - 19 (RFC 8032 section 5.1.3). Decompression reduces it
/// silently, and then two byte strings would name one identity.
fn is_canonical(public_key: &[u8; 32]) -> bool {
    let [low, middle @ .., high] = public_key;
    *low < 0xED || high & 0x7F != 0x7F || middle.iter().any(|&byte| byte != 0xFF)
}
