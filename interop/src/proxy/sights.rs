//! What passes an observer: kinds of frames, keys, sealing prefixes (layouts: spec/wire.md §4).
//!
//! Read without the codec under test, so that a fault of it cannot hide itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MAGIC: usize = 4;
const SENDER: usize = 4;
const KEY: usize = 32;
const PREFIX: usize = 4;

/// More keys or prefixes than this are not kept: a corrupted frame shows a new one each time.
const MAX_KEPT: usize = 4096;

/// What one direction carried, as it was sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sights {
    /// Key exchange frames with identity.
    pub(crate) pila: u64,
    /// Sealed frames.
    pub(crate) pils: u64,
    /// Handshake frames of S1 (layouts: spec/secure.md §4).
    pub(crate) s1_handshake: u64,
    /// Its data frames.
    pub(crate) s1_data: u64,
    /// Anything else: plaintext, anonymous exchange, beacon messages, punches.
    pub(crate) other: u64,
    /// How the first of these began.
    pub(crate) first_other: Option<Vec<u8>>,
    /// X25519 keys in key exchange frames.
    pub(crate) keys: BTreeSet<[u8; KEY]>,
    /// Frames by the prefix of their nonce: one prefix for each session.
    pub(crate) prefixes: BTreeMap<[u8; PREFIX], u64>,
    /// When the first sealed frame passed.
    pub(crate) first_sealed: Option<Duration>,
}

impl Sights {
    pub(crate) fn note(&mut self, age: Duration, datagram: &[u8]) {
        match datagram.first_chunk::<MAGIC>() {
            Some(b"PILA") => {
                self.pila += 1;
                let key = datagram.get(MAGIC + SENDER..).and_then(<[u8]>::first_chunk::<KEY>);
                if let Some(key) = key.filter(|_| self.keys.len() < MAX_KEPT) {
                    self.keys.insert(*key);
                }
            }
            Some(b"PILS") => {
                self.pils += 1;
                self.first_sealed.get_or_insert(age);
                let prefix = datagram.get(MAGIC + SENDER..).and_then(<[u8]>::first_chunk::<PREFIX>);
                if let Some(prefix) = prefix.filter(|_| self.prefixes.len() < MAX_KEPT) {
                    *self.prefixes.entry(*prefix).or_default() += 1;
                }
            }
            Some(b"PILI" | b"PILR" | b"PILC" | b"PILN" | b"PILX") => self.s1_handshake += 1,
            Some([0xB0..=0xBF, ..]) => {
                self.s1_data += 1;
                self.first_sealed.get_or_insert(age);
            }
            _ => {
                self.other += 1;
                self.first_other.get_or_insert_with(|| datagram[..datagram.len().min(16)].to_vec());
            }
        }
    }

    /// Sessions under which at least `frames` frames were sealed.
    pub(crate) fn sessions(&self, frames: u64) -> usize {
        self.prefixes.values().filter(|count| **count >= frames).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_prefixes_are_told_apart() {
        let mut sights = Sights::default();
        let frame = |magic: &[u8], fill: u8, len| [magic, &[9; 4], &vec![fill; len]].concat();
        for (magic, fill, len) in
            [(b"PILA", 1, 128), (b"PILA", 1, 128), (b"PILA", 2, 128), (b"PILS", 5, 60), (b"PILS", 6, 60)]
        {
            sights.note(Duration::from_millis(3), &frame(magic, fill, len));
        }
        sights.note(Duration::from_millis(4), &frame(b"PILS", 6, 60));
        sights.note(Duration::ZERO, b"PILT");
        sights.note(Duration::ZERO, b"");
        sights.note(Duration::ZERO, b"PILA");
        for start in [&b"PILI"[..], b"PILX", &[0xB0, 1, 2, 3], &[0xBF, 1, 2, 3, 4]] {
            sights.note(Duration::from_millis(5), start);
        }
        assert_eq!((sights.s1_handshake, sights.s1_data), (2, 2));
        assert_eq!((sights.pila, sights.pils, sights.other), (4, 3, 2));
        assert_eq!((sights.keys.len(), sights.sessions(1), sights.sessions(2)), (2, 2, 1));
        assert_eq!(sights.first_sealed, Some(Duration::from_millis(3)));
    }
}
