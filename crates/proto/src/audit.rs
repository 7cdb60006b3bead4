//! What a simulator needs to see of the inside: which (key, nonce) pairs seal frames; and how often payload is copied.
//!
//! Nothing is noted without debug assertions, nor in threads that did not ask for it. The key itself never leaves:
//! observers see 128 bits of a hash of it.

use std::cell::{Cell, RefCell};

/// One frame that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sealed {
    /// Names the key without telling it.
    pub key: u128,
    /// First part of the nonce: differs between the two directions.
    pub prefix: [u8; 4],
    /// Second part of the nonce.
    pub counter: u64,
}

thread_local! {
    static SEALED: RefCell<Option<Vec<Sealed>>> = const { RefCell::new(None) };
    static COPIED: Cell<u64> = const { Cell::new(0) };
}

/// Payload bytes that this thread has copied so far, once for each copy of a byte.
pub fn copied() -> u64 {
    COPIED.get()
}

/// Counts a copy of payload. Whoever copies some calls it.
#[cfg(debug_assertions)]
pub(crate) fn count_copy(len: usize) {
    COPIED.set(COPIED.get() + len as u64);
}

/// From now on sealed frames of this thread are noted.
pub fn start() {
    SEALED.with_borrow_mut(|list| *list = Some(Vec::new()));
}

/// What was sealed since the last call; empty if nobody called [`start`].
pub fn take(into: &mut Vec<Sealed>) {
    SEALED.with_borrow_mut(|list| {
        if let Some(list) = list {
            into.append(list);
        }
    });
}

/// Notes a frame.
#[cfg(debug_assertions)]
pub(crate) fn note(sealed: Sealed) {
    SEALED.with_borrow_mut(|list| {
        if let Some(list) = list {
            list.push(sealed);
        }
    });
}

/// The name of a key.
#[cfg(debug_assertions)]
pub(crate) fn name(key: &[u8; 32]) -> u128 {
    let hash = blake3::derive_key("pilotage simulator: name of a session key", key);
    let mut name = [0; 16];
    name.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(name)
}
