//! Ed25519 keys as points.

use ed25519_dalek::VerifyingKey;

/// A key as a point, if it is one and no weak one.
pub(crate) fn usable(key: &[u8; 32]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(key).ok().filter(|key| !key.is_weak())
}
