//! SACK blocks: the payload of an acknowledgment while data is missing. `spec/wire.md §5`.
//!
//! ```text
//! +------+------+------+------+-------+----------------+-----------------+
//! | 'S'  | 'A'  | 'C'  | 'K'  | count | left edge u32  | right edge u32  |  × count, 1..=4
//! +------+------+------+------+-------+----------------+-----------------+
//! ```
//!
//! A block `(left, right)` says that the bytes from `left` up to, but without, `right` have arrived. The payload is
//! told from data only by its look, so data that looks alike must be cut by its sender ([`looks_like_sack`]), and a
//! receiver must also check that every block lies in what it has outstanding.

pub use crate::limits::{MAX_SACK_BLOCKS as MAX_BLOCKS, MAX_SACK_LEN as MAX_LEN};

/// Starts a SACK payload.
pub const MAGIC: [u8; 4] = *b"SACK";
/// Bytes before the first block: magic and count.
pub const PREFIX_LEN: usize = 5;
/// Bytes of a block.
pub const BLOCK_LEN: usize = 8;

/// Up to [`MAX_BLOCKS`] blocks `(left, right)`, right exclusive, without allocation. Derefs to a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Blocks {
    // Entries from `len` on stay (0, 0), so that the derived equality is that of the slices.
    blocks: [(u32, u32); MAX_BLOCKS],
    len: usize,
}

impl Blocks {
    /// No block.
    pub const EMPTY: Self = Self { blocks: [(0, 0); MAX_BLOCKS], len: 0 };

    /// Adds a block; `false` (and no change) if there are already [`MAX_BLOCKS`].
    pub fn push(&mut self, left: u32, right: u32) -> bool {
        match self.blocks.get_mut(self.len) {
            Some(slot) => {
                *slot = (left, right);
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The blocks in the order of the wire.
    #[inline]
    pub fn as_slice(&self) -> &[(u32, u32)] {
        self.blocks.get(..self.len).unwrap_or(&[])
    }
}

impl core::ops::Deref for Blocks {
    type Target = [(u32, u32)];

    #[inline]
    fn deref(&self) -> &[(u32, u32)] {
        self.as_slice()
    }
}

impl<'a> IntoIterator for &'a Blocks {
    type Item = &'a (u32, u32);
    type IntoIter = core::slice::Iter<'a, (u32, u32)>;

    fn into_iter(self) -> Self::IntoIter {
        self.as_slice().iter()
    }
}

/// Bytes that [`encode`] writes for so many blocks.
pub const fn encoded_len(count: usize) -> usize {
    let count = if count < MAX_BLOCKS { count } else { MAX_BLOCKS };
    if count == 0 { 0 } else { PREFIX_LEN + BLOCK_LEN * count }
}

/// Writes the first [`MAX_BLOCKS`] of `blocks` and returns the payload's length, at most [`MAX_LEN`]. Returns 0 and
/// writes nothing if there is no block. A buffer too small for all of them gets as many as fit. `spec/wire.md §5.1`.
pub fn encode(blocks: &[(u32, u32)], buf: &mut [u8]) -> usize {
    let Some((prefix, rest)) = buf.split_first_chunk_mut::<PREFIX_LEN>() else { return 0 };
    let count = blocks.len().min(MAX_BLOCKS).min(rest.len() / BLOCK_LEN);
    if count == 0 {
        return 0;
    }
    let [s, a, c, k] = MAGIC;
    *prefix = [s, a, c, k, count as u8];
    for (out, (left, right)) in rest.chunks_exact_mut(BLOCK_LEN).zip(blocks.iter().take(count)) {
        let [l0, l1, l2, l3] = left.to_be_bytes();
        let [r0, r1, r2, r3] = right.to_be_bytes();
        out.copy_from_slice(&[l0, l1, l2, l3, r0, r1, r2, r3]);
    }
    PREFIX_LEN + BLOCK_LEN * count
}

/// Decodes a payload whose length is exactly `5 + 8 × count` with a count of 1..=4; `None` = not SACK but data.
///
/// Stricter than the reference, which tolerates bytes after the blocks and so swallows data: see [`looks_like_sack`].
/// The caller must still check that each block lies in its outstanding range. `spec/wire.md §5.2`.
#[inline]
pub fn decode(payload: &[u8]) -> Option<Blocks> {
    let count = sack_count(payload)?;
    let body = payload.get(PREFIX_LEN..)?;
    if body.len() != BLOCK_LEN * count {
        return None;
    }
    let mut blocks = Blocks::EMPTY;
    for chunk in body.chunks_exact(BLOCK_LEN) {
        let &[l0, l1, l2, l3, r0, r1, r2, r3] = chunk.first_chunk::<BLOCK_LEN>()?;
        blocks.push(u32::from_be_bytes([l0, l1, l2, l3]), u32::from_be_bytes([r0, r1, r2, r3]));
    }
    Some(blocks)
}

/// Whether the reference would take a payload for SACK, and so never deliver it if it is data: `"SACK"`, a count of
/// 1..=4 and at least `5 + 8 × count` bytes. A data segment for which this is true must be cut. `spec/wire.md §5.3`.
#[inline]
pub fn looks_like_sack(payload: &[u8]) -> bool {
    sack_count(payload).is_some_and(|count| payload.len() >= PREFIX_LEN + BLOCK_LEN * count)
}

/// The blocks for a set of out-of-order segments `(seq, len)`: ascending from `next_expected`, overlapping and
/// adjacent ones merged, the lowest [`MAX_BLOCKS`] kept, empty segments ignored. Sequence numbers wrap; all segments
/// lie within 2^31 above `next_expected`. Sorts `segments` in place. `spec/wire.md §5.1`.
pub fn merge(next_expected: u32, segments: &mut [(u32, u32)]) -> Blocks {
    segments.sort_unstable_by_key(|&(seq, _)| seq.wrapping_sub(next_expected));
    let mut blocks = Blocks::EMPTY;
    let mut open: Option<(u64, u64)> = None;
    // Offsets from `next_expected` in 64 bits: no wrap inside the loop.
    let edge = |offset: u64| next_expected.wrapping_add(offset as u32);
    for &(seq, len) in segments.iter().filter(|&&(_, len)| len > 0) {
        let start = u64::from(seq.wrapping_sub(next_expected));
        let end = start + u64::from(len);
        open = match open {
            Some((left, right)) if start <= right => Some((left, right.max(end))),
            Some((left, right)) => {
                if !blocks.push(edge(left), edge(right)) {
                    return blocks;
                }
                Some((start, end))
            }
            None => Some((start, end)),
        };
    }
    if let Some((left, right)) = open {
        blocks.push(edge(left), edge(right));
    }
    blocks
}

/// The count byte if the payload starts like SACK and the count is in range.
#[inline]
fn sack_count(payload: &[u8]) -> Option<usize> {
    match payload {
        [b'S', b'A', b'C', b'K', count @ 1..=4, ..] => Some(usize::from(*count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decode_undoes_encode(blocks in prop::collection::vec(any::<(u32, u32)>(), 0..7)) {
            let mut buf = [0xA5; 64];
            let len = encode(&blocks, &mut buf);
            let decoded = decode(&buf[..len]).unwrap_or_default();
            prop_assert_eq!(decoded.as_slice(), &blocks[..blocks.len().min(4)]);
            prop_assert_eq!(looks_like_sack(&buf[..len]), !blocks.is_empty());
            prop_assert!(buf[len..].iter().all(|&byte| byte == 0xA5));
        }

        #[test]
        fn random_payloads_never_panic(
            count in 0u8..7, blocks in 0usize..6, surplus in 0usize..8, rest in prop::collection::vec(any::<u8>(), 56),
        ) {
            let rest = &rest[..8 * blocks + surplus];
            let payload = [&MAGIC[..], &[count], rest].concat();
            let _ = decode(rest);
            let known = (1..=4).contains(&count);
            let need = 8 * usize::from(count);
            prop_assert_eq!(decode(&payload).is_some(), known && rest.len() == need);
            prop_assert_eq!(looks_like_sack(&payload), known && rest.len() >= need);
        }

        /// Against a model: the set of all bytes held, read off in runs.
        #[test]
        fn merge_names_exactly_the_lowest_runs(
            next_expected: u32, segments in prop::collection::vec((1u32..300, 0u32..40), 0..40),
        ) {
            let held: BTreeSet<u32> =
                segments.iter().flat_map(|&(offset, len)| offset..offset + len).collect();
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for byte in held {
                match runs.last_mut() {
                    Some((_, right)) if *right == byte => *right += 1,
                    _ => runs.push((byte, byte + 1)),
                }
            }
            let shift = |offset: u32| next_expected.wrapping_add(offset);
            let expected: Vec<_> = runs.iter().take(MAX_BLOCKS).map(|&(l, r)| (shift(l), shift(r))).collect();
            let mut segments: Vec<_> = segments.into_iter().map(|(offset, len)| (shift(offset), len)).collect();
            let merged = merge(next_expected, &mut segments);
            prop_assert_eq!(merged.as_slice(), expected);
        }

        #[test]
        fn merge_never_panics(next_expected: u32, mut segments: Vec<(u32, u32)>) {
            prop_assert!(merge(next_expected, &mut segments).len() <= MAX_BLOCKS);
        }
    }

    #[test]
    fn a_fifth_block_is_refused() {
        let mut blocks = Blocks::EMPTY;
        for left in 0..4 {
            assert!(blocks.push(2 * left, 2 * left + 1));
        }
        assert!(!blocks.push(8, 9));
        assert_eq!(blocks.as_slice(), [(0, 1), (2, 3), (4, 5), (6, 7)]);
        assert_eq!((&blocks).into_iter().count(), 4);
    }

    #[test]
    fn the_length_is_known_before_writing() {
        let mut buf = [0; MAX_LEN];
        let blocks = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)];
        for count in 0..=blocks.len() {
            assert_eq!(encoded_len(count), encode(&blocks[..count], &mut buf), "{count}");
        }
        assert_eq!((encoded_len(4), encoded_len(usize::MAX)), (MAX_LEN, MAX_LEN));
    }

    #[test]
    fn a_small_buffer_gets_as_many_blocks_as_fit() {
        let mut buf = [0; MAX_LEN];
        assert_eq!(encode(&[(1, 2), (3, 4)], &mut buf[..20]), 13);
        assert_eq!(decode(&buf[..13]).unwrap().as_slice(), [(1, 2)]);
        assert_eq!(encode(&[(1, 2)], &mut buf[..12]), 0);
        assert_eq!(encode(&[(1, 2)], &mut []), 0);
        assert_eq!(encode(&[], &mut buf), 0);
    }
}
