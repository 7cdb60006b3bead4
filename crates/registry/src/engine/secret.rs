//! Tokens of operators and networks, kept as hashes.

use std::fmt;

/// So that the hash is of no use anywhere else.
const CONTEXT: &str = "pilotage 2026-11 registry token";

/// A token that can be compared and not read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Keeps the hash of a token. A token that can be guessed can be found from the hash, too.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(blake3::derive_key(CONTEXT, token.as_bytes()))
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        // The comparison of hashes is constant in time, and the hash says nothing about a common beginning.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(Self::new(token).0)
    }

    pub(crate) fn from_stored(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    pub(crate) fn stored(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
