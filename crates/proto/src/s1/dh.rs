//! X25519 (RFC 7748) for S1: prekeys and ephemeral keys.

use std::fmt;

use zeroize::Zeroizing;

#[cfg(not(feature = "fuzzing"))]
use crate::crypto::x25519;

/// The result of a key agreement, wiped on drop.
pub(crate) type Shared = Zeroizing<[u8; 32]>;

/// An X25519 key pair, wiped on drop.
#[derive(Clone)]
pub struct DhKey {
    #[cfg(not(feature = "fuzzing"))]
    secret: x25519::Key,
    #[cfg(feature = "fuzzing")]
    secret: u64,
    public: [u8; 32],
}

#[cfg(not(feature = "fuzzing"))]
impl DhKey {
    /// The key pair of 32 random bytes; clamping is done here (RFC 7748 section 5).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let (secret, public) = x25519::Key::pair(&Zeroizing::new(bytes));
        Self { secret, public }
    }

    /// What both owners compute; `None` if it is all zero, since then the other key has small order.
    pub(crate) fn agree(&self, public: &[u8; 32]) -> Option<Shared> {
        self.secret.agree(public, |shared| Zeroizing::new(*shared))
    }
}

/// A toy of the same form: powers of 37 modulo 2^61 - 1. A handshake then costs a fuzzer no more than other steps.
#[cfg(feature = "fuzzing")]
impl DhKey {
    /// The key pair of 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[..8]);
        let secret = u64::from_le_bytes(first) | 1;
        let mut public = [0; 32];
        public[..8].copy_from_slice(&power(37, secret).to_le_bytes());
        Self { secret, public }
    }

    pub(crate) fn agree(&self, public: &[u8; 32]) -> Option<Shared> {
        let mut first = [0; 8];
        first.copy_from_slice(&public[..8]);
        let base = u64::from_le_bytes(first);
        if base < 2 || base >= (1 << 61) - 1 || public[8..].iter().any(|byte| *byte != 0) {
            return None;
        }
        let mut shared = Zeroizing::new([0; 32]);
        shared[..8].copy_from_slice(&power(base, self.secret).to_le_bytes());
        Some(shared)
    }
}

#[cfg(feature = "fuzzing")]
fn power(base: u64, mut exponent: u64) -> u64 {
    const P: u128 = (1 << 61) - 1;
    let (mut result, mut base) = (1u128, u128::from(base));
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % P;
        }
        base = base * base % P;
        exponent >>= 1;
    }
    result as u64
}

impl DhKey {
    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }
}

impl fmt::Debug for DhKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DhKey").field("public", &self.public).finish_non_exhaustive()
    }
}
