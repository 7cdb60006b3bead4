//! Every limit of the wire in one place: what the protocol fixes, and apart from it what we chose. `spec/wire.md §8`.

// --- Fixed by the protocol -----------------------------------------------------------------------------------------

/// Bytes of a packet header.
pub const HEADER_LEN: usize = 34;
/// Longest payload that the 16-bit length field of a packet can say, bytes.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;
/// Longest payload of one UDP datagram over IPv4 (65,535 − 20 − 8), bytes; hence the longest frame.
pub const MAX_DATAGRAM: usize = 65_507;
/// Bytes before the ciphertext of a PILS frame: magic, sender, nonce.
pub const PILS_HEADER_LEN: usize = 20;
/// Bytes of the AEAD tag that ends a PILS frame.
pub const TAG_LEN: usize = 16;
/// What PILS adds to a packet, bytes.
pub const PILS_OVERHEAD: usize = PILS_HEADER_LEN + TAG_LEN;
/// Most SACK blocks in one payload.
pub const MAX_SACK_BLOCKS: usize = 4;
/// Longest SACK payload, bytes.
pub const MAX_SACK_LEN: usize = 5 + 8 * MAX_SACK_BLOCKS;
#[cfg(feature = "registry")]
pub use crate::registry::MAX_MESSAGE as MAX_REGISTRY_MESSAGE;

// --- Our own choices -----------------------------------------------------------------------------------------------

/// Longest PILA trailer that we write, bytes: two 64-bit varints and our five-byte mark.
pub const MAX_PILA_TRAILER: usize = 10 + 10 + 5;
