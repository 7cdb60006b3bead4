//! Keys, key agreement and packet protection of draft tunnels (spec/tunnel.md).
//!
//! * [`Identity`] and [`verify`]: Ed25519 (RFC 8032), the long-term key of a node.
//! * [`EphemeralKey`] and [`TunnelKey`]: X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869).
//! * [`PacketAead`] and [`SessionAead`]: AES-256-GCM (NIST SP 800-38D) in place.
//!
//! Nothing here takes ambient randomness: seeds and private keys come in as bytes. Secrets are wiped
//! when dropped, and no `Debug` output contains one. Nonces are the caller's duty: a (key, nonce)
//! pair must never seal twice, which for AES-GCM costs both secrecy and authenticity (rules C1, C5).

mod aead;
#[cfg(not(feature = "fuzzing"))]
mod exchange;
#[cfg(not(feature = "fuzzing"))]
mod identity;
#[cfg(feature = "post-quantum")]
pub(crate) mod kem;
#[cfg(feature = "fuzzing")]
pub(crate) mod toy;
#[cfg(not(feature = "fuzzing"))]
pub(crate) mod x25519;

#[cfg(feature = "aws-lc-rs")]
pub use aead::AwsLcAes256Gcm;
#[cfg(not(feature = "fuzzing"))]
pub use aead::SessionAead;
pub use aead::{Aes256Gcm, KEY_LEN, NONCE_LEN, PacketAead, RustCryptoAes256Gcm, TAG_LEN};
#[cfg(not(feature = "fuzzing"))]
pub use exchange::{EphemeralKey, INFO_SECURE, INFO_TUNNEL, TunnelKey, derive};
#[cfg(not(feature = "fuzzing"))]
pub use identity::{Identity, verify};
#[cfg(feature = "fuzzing")]
pub use toy::{EphemeralKey, INFO_SECURE, INFO_TUNNEL, Identity, SessionAead, TunnelKey, derive, verify};

/// Writes over what earlier calls left on the stack below the caller. Libraries of primitives do not wipe their working
/// space, and what stays there is carried on by any later value with bytes that nobody initialised.
#[inline(never)]
pub(crate) fn burn() {
    let mut area = [0; 4_096];
    zeroize::Zeroize::zeroize(&mut area[..]);
    std::hint::black_box(&area);
}

#[cfg(all(test, not(feature = "fuzzing")))]
mod tests;
