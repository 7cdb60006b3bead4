//! A byte ring addressed by absolute stream offset, which grows when it must and gives memory back.
//!
//! One copy in ([`write_at`](ByteRing::write_at)), one copy out (from [`slices`](ByteRing::slices)). The
//! capacity is a power of two, so that an offset's place is a mask away.
//!
//! An empty ring begins again at its first byte: whoever is read as fast as it is written uses the same few cache lines
//! again and again, however large the ring once grew.

use std::ops::Range;

/// Bytes from `base` on, at most `max` of them.
///
/// The ring does not know which of its bytes were ever written: its owner does.
#[derive(Debug)]
pub struct ByteRing {
    /// Length is zero or a power of two.
    buf: Vec<u8>,
    base: u64,
    /// The offset whose place is the first: the base when the ring was last empty.
    origin: u64,
    /// End of the highest byte written since the ring was last empty.
    end: u64,
    max: usize,
    /// Highest fill since [`trim`](ByteRing::trim) last looked.
    peak: usize,
}

impl ByteRing {
    /// An empty ring at offset 0 for at most `max` bytes. Allocates nothing yet.
    pub fn new(max: usize) -> Self {
        Self { buf: Vec::new(), base: 0, origin: 0, end: 0, max, peak: 0 }
    }

    /// The lowest offset that the ring holds.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bound of the bytes held, from the base on.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Changes the bound. What is held already stays, also beyond a lower bound.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Bytes of memory in use.
    pub fn capacity(&self) -> usize {
        self.buf.len()
    }

    /// Copies `data` to its place. The caller guarantees that it lies in `[base, base + max)`: what does not
    /// is left out.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) {
        debug_assert!(offset >= self.base, "write below the ring");
        debug_assert!(
            offset.saturating_add(data.len() as u64) <= self.base.saturating_add(self.max as u64),
            "write beyond the ring's bound"
        );
        let Some(skip) = offset.checked_sub(self.base).and_then(|s| usize::try_from(s).ok()) else { return };
        if skip >= self.max || data.is_empty() {
            return;
        }
        let data = &data[..data.len().min(self.max - skip)];
        let fill = skip + data.len();
        if fill > self.buf.len() {
            self.grow(fill);
        }
        self.peak = self.peak.max(fill);
        self.end = self.end.max(offset + data.len() as u64);
        copy_in(&mut self.buf, offset - self.origin, data);
    }

    /// The bytes of `range`, in two parts where they wrap around. Empty where the range is outside of what the ring
    /// holds.
    pub fn slices(&self, range: Range<u64>) -> (&[u8], &[u8]) {
        debug_assert!(range.start >= self.base && range.end <= self.end, "read outside the ring");
        let start = range.start.max(self.base);
        let end = range.end.min(self.end);
        if start >= end {
            return (&[], &[]);
        }
        let len = (end - start) as usize;
        let at = place(start - self.origin, self.buf.len());
        let first = len.min(self.buf.len() - at);
        (&self.buf[at..at + first], &self.buf[..len - first])
    }

    /// Drops the bytes below `base`. A lower base than the present one is ignored.
    pub fn advance_to(&mut self, base: u64) {
        if base <= self.base {
            return;
        }
        self.base = base;
        if base < self.end {
            return;
        }
        self.end = base;
        self.origin = base;
    }

    /// Frees the memory of an empty ring that is larger than eight times what it held at most since the last call. To be
    /// called now and then, so that neither a stream of bulk data loses what it needs again at once, nor a connection
    /// that once had a burst keeps its memory for ever.
    pub fn trim(&mut self) {
        if self.buf.len() > SMALL && self.peak <= self.buf.len() / 8 {
            self.release();
        }
        self.peak = (self.end - self.base) as usize;
    }

    /// Frees all memory if the ring is empty. For connections that fell idle.
    pub fn release(&mut self) {
        if self.base >= self.end {
            self.buf = Vec::new();
        }
    }

    fn grow(&mut self, fill: usize) {
        // `fill <= max`, so the bound is the next power of two of `max`.
        let capacity = fill.max(MIN_CAPACITY).next_power_of_two();
        let mut grown = vec![0; capacity];
        if self.base < self.end {
            let (a, b) = self.slices(self.base..self.end);
            copy_in(&mut grown, self.base - self.origin, a);
            copy_in(&mut grown, self.base - self.origin + a.len() as u64, b);
        }
        self.buf = grown;
    }
}

/// Copies `data`, which is no longer than `buf`, to the place of the offset that is so far behind the origin.
fn copy_in(buf: &mut [u8], offset: u64, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    #[cfg(debug_assertions)]
    crate::audit::count_copy(data.len());
    let at = place(offset, buf.len());
    let first = data.len().min(buf.len() - at);
    buf[at..at + first].copy_from_slice(&data[..first]);
    buf[..data.len() - first].copy_from_slice(&data[first..]);
}

fn place(offset: u64, capacity: usize) -> usize {
    // The mask fits usize, so the cast cannot lose anything that counts.
    (offset as usize) & (capacity - 1)
}

/// Smallest allocation: a few small messages. Both directions of a connection keep it until the connection is idle.
const MIN_CAPACITY: usize = 512;
/// Rings of this size are never worth shrinking while their connection is in use.
const SMALL: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(ring: &ByteRing, range: Range<u64>) -> Vec<u8> {
        let (a, b) = ring.slices(range);
        [a, b].concat()
    }

    #[test]
    fn a_new_ring_holds_no_memory_and_grows_as_needed() {
        let mut ring = ByteRing::new(1 << 20);
        assert_eq!(ring.capacity(), 0);
        ring.write_at(0, b"hello");
        assert_eq!(ring.capacity(), MIN_CAPACITY);
        ring.write_at(5, &[7; 5000]);
        assert_eq!(ring.capacity(), 8192);
        assert_eq!(read(&ring, 0..7), b"hello\x07\x07");
    }

    #[test]
    fn growth_keeps_what_wrapped_around() {
        let mut ring = ByteRing::new(1 << 20);
        ring.write_at(0, &[0; 2000]);
        ring.advance_to(1990);
        let data: Vec<u8> = (0..200u8).collect();
        ring.write_at(2000, &data);
        ring.write_at(2200, &[1; 4000]);
        assert_eq!(read(&ring, 2000..2200), data);
        assert_eq!(read(&ring, 2200..6200), [1; 4000]);
    }

    #[test]
    fn capacity_never_exceeds_the_next_power_of_two_of_the_bound() {
        let mut ring = ByteRing::new(100_000);
        for i in 0..100u64 {
            ring.advance_to(i * 1000);
            ring.write_at(i * 1000, &vec![i as u8; 100_000]);
        }
        assert_eq!(ring.capacity(), 131_072);
    }

    #[test]
    fn a_large_ring_survives_bulk_use_and_is_given_back_after_small_use() {
        let mut ring = ByteRing::new(1 << 20);
        let mut at = 0;
        let mut use_it = |ring: &mut ByteRing, len: usize| {
            ring.write_at(at, &vec![1; len]);
            at += len as u64;
            ring.advance_to(at);
        };
        for _ in 0..100 {
            use_it(&mut ring, 500_000);
            use_it(&mut ring, 5);
            ring.trim();
            assert_eq!(ring.capacity(), 1 << 19);
        }
        use_it(&mut ring, 5);
        ring.trim();
        assert_eq!(ring.capacity(), 0);
        ring.write_at(at, b"again");
        assert_eq!(read(&ring, at..at + 5), b"again");
    }

    #[test]
    fn trimming_keeps_what_is_held_and_what_is_small() {
        let mut ring = ByteRing::new(1 << 20);
        ring.write_at(0, &[1; 500_000]);
        ring.advance_to(499_990);
        ring.trim();
        ring.trim();
        assert_eq!((ring.capacity(), read(&ring, 499_990..500_000)), (1 << 19, vec![1; 10]));
        let mut small = ByteRing::new(1 << 20);
        small.write_at(0, &[1; SMALL]);
        small.advance_to(SMALL as u64);
        small.trim();
        small.trim();
        assert_eq!(small.capacity(), SMALL);
    }

    #[test]
    fn an_empty_ring_begins_again_at_its_first_byte() {
        let mut ring = ByteRing::new(1 << 20);
        ring.write_at(0, &[0; 4_000]);
        for round in 1..50u64 {
            let at = round * 4_000;
            ring.advance_to(at);
            // Behind a gap first, as segments come.
            ring.write_at(at + 2_000, &[round as u8; 2_000]);
            ring.write_at(at, &[round as u8 + 1; 2_000]);
            let (first, second) = ring.slices(at..at + 4_000);
            assert_eq!((first.len(), second.len()), (4_000, 0), "in one piece");
            assert_eq!((first[0], first[3_999]), (round as u8 + 1, round as u8));
        }
    }

    #[test]
    fn release_frees_an_empty_ring_only() {
        let mut ring = ByteRing::new(1 << 20);
        ring.write_at(0, b"x");
        ring.release();
        assert_eq!(read(&ring, 0..1), b"x");
        ring.advance_to(1);
        ring.release();
        assert_eq!(ring.capacity(), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_one_long_vector(ops in prop::collection::vec((0u64..3000, 0usize..3000, 0u64..3000), 1..60)) {
            const MAX: usize = 5000;
            let mut ring = ByteRing::new(MAX);
            let mut model: Vec<u8> = Vec::new();
            for (i, (ahead, len, advance)) in ops.into_iter().enumerate() {
                // Leave no gap: the ring does not know about gaps.
                let at = (ring.base() + ahead).min(model.len() as u64).max(ring.base());
                let len = len.min(MAX - (at - ring.base()) as usize);
                let data = vec![i as u8; len];
                model.resize(model.len().max(at as usize + len), 0);
                model[at as usize..at as usize + len].copy_from_slice(&data);
                ring.write_at(at, &data);
                ring.advance_to((ring.base() + advance).min(model.len() as u64));
                let held = ring.base()..model.len() as u64;
                prop_assert_eq!(read(&ring, held.clone()), &model[held.start as usize..]);
                prop_assert!(ring.capacity() <= MAX.next_power_of_two());
            }
        }
    }
}
