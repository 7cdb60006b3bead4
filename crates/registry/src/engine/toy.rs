//! Stand-ins for Ed25519 while fuzzing: a signature check then costs what any other step costs, and proves nothing.
//!
//! What remains is that a signature fits one key and one message. Only with the feature `fuzzing`, and only with debug
//! assertions: it can never be part of a release build.

use pilotage_wire::registry::{Base64, Signature};

use super::Refusal;

#[cfg(not(debug_assertions))]
compile_error!("the feature `fuzzing` replaces the signatures by a toy: it needs debug assertions");

/// Stands for a decoded Ed25519 public key.
pub(super) struct VerifyingKey([u8; 32]);

/// Keys that begin with 0 stand for those that are none.
pub(super) fn verifying_key(public_key: &[u8; 32]) -> Result<VerifyingKey, Refusal> {
    if public_key[0] == 0 { Err(Refusal::BadKey) } else { Ok(VerifyingKey(*public_key)) }
}

/// Every toy key has one encoding.
pub(super) fn is_canonical(key: &VerifyingKey, public_key: &[u8; 32]) -> bool {
    key.0 == *public_key
}

pub(super) fn verifies(key: &VerifyingKey, message: &[u8], signature: &Signature) -> bool {
    // Both are mixed once more, so that a fuzzer which watches comparisons cannot copy a signature from them.
    mix(absorb(7, &sign(&key.0, message).0)) == mix(absorb(7, &signature.0))
}

/// What the holder of `public_key` would sign.
pub fn sign(public_key: &[u8; 32], message: &[u8]) -> Signature {
    let state = absorb(absorb(1, public_key), message);
    let mut signature = [0; 64];
    for (i, chunk) in (0u64..).zip(signature.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&mix(state.wrapping_add(i)).to_le_bytes());
    }
    Base64(signature)
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn absorb(state: u64, bytes: &[u8]) -> u64 {
    let words =
        bytes.chunks(8).map(|chunk| chunk.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte)));
    words
        .chain([bytes.len() as u64])
        .fold(state, |state, word| (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}
