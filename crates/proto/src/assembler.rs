//! The receive side of a stream: puts segments that arrive in any order back into a byte sequence.
//!
//! Every byte is stored at once at its own place in a [`ByteRing`], so nothing is ever sorted or copied again.
//! What lies beyond the first gap is remembered as a sorted list of ranges, at most [`MAX_RANGES`] of them:
//! a peer that sends nothing but gaps costs that much and no more (CVE-2018-5390 was a list without a bound).
//! In-order data never touches the list.
//!
//! The first copy of a byte wins, as in every TCP that does not want to be told two stories. Normative text:
//! `spec/recovery.md` section 3.

use std::ops::Range;

use crate::ring::ByteRing;

/// Reassembly buffer of one direction of a connection.
#[derive(Debug)]
pub struct Assembler {
    ring: ByteRing,
    /// The first byte that is missing.
    next: u64,
    /// Data beyond `next`: sorted, disjoint, not adjacent, not empty.
    ranges: Vec<Range<u64>>,
    /// Where the most recent changes to `ranges` were, newest first.
    recent: [u64; MAX_BLOCKS],
    recent_len: usize,
    /// Out-of-order insertions into different ranges since the last report.
    unreported: usize,
}

/// What [`Assembler::insert`] did with a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inserted {
    /// More bytes can be read than before.
    pub advanced: bool,
    /// Nothing in it was new.
    pub duplicate: bool,
    /// There are gaps below the highest byte received.
    pub out_of_order: bool,
    /// Nothing was stored: it is outside the window, or would open one gap too many.
    pub refused: bool,
    /// How many bytes were new.
    pub new_bytes: usize,
}

/// Bound of the ranges beyond the first gap.
pub const MAX_RANGES: usize = 512;
/// Most SACK blocks in one acknowledgement (draft-01).
pub const MAX_BLOCKS: usize = 4;

impl Assembler {
    /// An empty assembler at offset 0 for at most `max` bytes that are not read yet. Allocates nothing yet.
    pub fn new(max: usize) -> Self {
        Self {
            ring: ByteRing::new(max),
            next: 0,
            ranges: Vec::new(),
            recent: [0; MAX_BLOCKS],
            recent_len: 0,
            unreported: 0,
        }
    }

    /// Takes the segment `data` that begins at `offset`. What was received before, and what is beyond the window,
    /// is cut off; the rest is stored.
    pub fn insert(&mut self, offset: u64, data: &[u8]) -> Inserted {
        let window_end = self.window_end();
        let end = offset.saturating_add(data.len() as u64).min(window_end);
        if data.is_empty() || (end <= self.next && offset < window_end) {
            return Inserted { duplicate: true, out_of_order: self.has_holes(), ..Inserted::default() };
        }
        if offset >= window_end {
            return Inserted { refused: true, out_of_order: self.has_holes(), ..Inserted::default() };
        }
        let start = offset.max(self.next);
        let data = &data[(start - offset) as usize..(end - offset) as usize];
        if start > self.next {
            return self.insert_beyond_gap(start, data);
        }
        if self.ranges.first().is_none_or(|r| r.start >= end) {
            // The straight path.
            self.ring.write_at(start, data);
            self.next = end;
            self.join_first_range();
            return Inserted {
                advanced: true,
                out_of_order: self.has_holes(),
                new_bytes: data.len(),
                ..Inserted::default()
            };
        }
        let new_bytes = self.write_gaps(start, data, 0);
        let covered = self.ranges.partition_point(|r| r.end <= end);
        self.ranges.drain(..covered);
        self.next = end;
        self.join_first_range();
        Inserted { advanced: true, out_of_order: self.has_holes(), new_bytes, ..Inserted::default() }
    }

    /// The first offset that was not received: the cumulative acknowledgement.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes held in all, those behind holes included. O(ranges).
    pub fn held(&self) -> usize {
        let behind_holes: u64 = self.ranges.iter().map(|r| r.end - r.start).sum();
        self.readable() + behind_holes as usize
    }

    /// Bytes of memory in use, what is free in it included.
    pub fn allocated(&self) -> usize {
        self.ring.capacity()
    }

    /// Bytes of memory that would be in use after storing `len` bytes at `offset`, which may be refused for other
    /// reasons.
    pub fn allocated_with(&self, offset: u64, len: usize) -> usize {
        let fill = offset.saturating_add(len as u64).min(self.window_end()).saturating_sub(self.ring.base());
        self.allocated().max((fill as usize).next_power_of_two())
    }

    /// Bytes that can be read.
    pub fn readable(&self) -> usize {
        (self.next - self.ring.base()) as usize
    }

    /// Moves bytes to `buf`, as many as there are and fit.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        let len = self.readable().min(buf.len());
        let base = self.ring.base();
        let (a, b) = self.ring.slices(base..base + len as u64);
        #[cfg(debug_assertions)]
        crate::audit::count_copy(len);
        buf[..a.len()].copy_from_slice(a);
        buf[a.len()..len].copy_from_slice(b);
        self.ring.advance_to(base + len as u64);
        len
    }

    /// What can be read, in place; follow with [`consume`](Self::consume).
    pub fn peek(&self) -> (&[u8], &[u8]) {
        self.ring.slices(self.ring.base()..self.next)
    }

    /// Drops the first `len` readable bytes (all, if there are fewer).
    pub fn consume(&mut self, len: usize) {
        let base = self.ring.base();
        self.ring.advance_to(base + len.min(self.readable()) as u64);
    }

    /// Free room from [`next`](Self::next) on, in bytes: the window to advertise.
    pub fn window(&self) -> usize {
        (self.window_end() - self.next) as usize
    }

    /// The first offset that would be refused.
    pub fn window_end(&self) -> u64 {
        // Never below what was accepted already, also after `set_max` with a lower value.
        self.ring.base().saturating_add(self.ring.max() as u64).max(self.next)
    }

    /// Whether data was received beyond a gap.
    pub fn has_holes(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Number of gaps below the highest byte received.
    pub fn holes(&self) -> usize {
        self.ranges.len()
    }

    /// Changes the bound of unread bytes. What was received stays.
    pub fn set_max(&mut self, max: usize) {
        let held = self.ranges.last().map_or(self.next, |r| r.end) - self.ring.base();
        self.ring.set_max(max.max(held as usize));
    }

    /// (R3.4) Writes the SACK blocks to send into `out` and returns how many: first those that changed most recently,
    /// newest first (RFC 2018 section 4), then the lowest others ascending.
    pub fn sack_blocks(&self, out: &mut [(u64, u64); MAX_BLOCKS]) -> usize {
        let mut len = 0;
        for &offset in &self.recent[..self.recent_len] {
            let index = self.ranges.partition_point(|r| r.end <= offset);
            if let Some(range) = self.ranges.get(index).filter(|r| r.contains(&offset)) {
                len = push_block(out, len, range);
            }
        }
        for range in self.ranges.iter().take(2 * MAX_BLOCKS) {
            if len == MAX_BLOCKS {
                break;
            }
            len = push_block(out, len, range);
        }
        len
    }

    /// (R3.5) Out-of-order arrivals since [`mark_reported`](Self::mark_reported) that went to different ranges, at least
    /// roughly. At [`MAX_BLOCKS`] an acknowledgement should be sent at once, else some range might go unreported
    /// and the sender would take it for lost.
    pub fn unreported(&self) -> usize {
        self.unreported
    }

    /// An acknowledgement with [`sack_blocks`](Self::sack_blocks) was sent.
    pub fn mark_reported(&mut self) {
        self.unreported = 0;
    }

    /// Frees memory that was not needed since the last call, if everything received is read.
    pub fn trim(&mut self) {
        self.ring.trim();
    }

    /// Frees memory that nothing occupies. For connections that fell idle.
    pub fn release(&mut self) {
        self.ring.release();
        if self.ranges.is_empty() {
            self.ranges = Vec::new();
        }
    }

    /// Stores data that begins after `next`.
    fn insert_beyond_gap(&mut self, start: u64, data: &[u8]) -> Inserted {
        let end = start + data.len() as u64;
        // Ranges [first, last) touch the segment or are adjacent to it.
        let first = self.ranges.partition_point(|r| r.end < start);
        let last = first + self.ranges[first..].partition_point(|r| r.start <= end);
        // R3.3
        if first == last && self.ranges.len() >= MAX_RANGES {
            return Inserted { refused: true, out_of_order: true, ..Inserted::default() };
        }
        let new_bytes = self.write_gaps(start, data, first);
        if first == last {
            self.ranges.insert(first, start..end);
        } else {
            let merged = self.ranges[first].start.min(start)..self.ranges[last - 1].end.max(end);
            self.ranges[first] = merged;
            self.ranges.drain(first + 1..last);
        }
        if new_bytes > 0 {
            self.note_recent(first, start);
        }
        Inserted { duplicate: new_bytes == 0, out_of_order: true, new_bytes, ..Inserted::default() }
    }

    /// Writes those parts of `data` that no range holds yet (R3.2), looking at the ranges from index `from` on.
    fn write_gaps(&mut self, start: u64, data: &[u8], from: usize) -> usize {
        let end = start + data.len() as u64;
        let mut at = start;
        let mut written = 0;
        for range in &self.ranges[from..] {
            if range.start >= end {
                break;
            }
            if at < range.start {
                self.ring.write_at(at, &data[(at - start) as usize..(range.start - start) as usize]);
                written += (range.start - at) as usize;
            }
            at = at.max(range.end);
        }
        if at < end {
            self.ring.write_at(at, &data[(at - start) as usize..]);
            written += (end - at) as usize;
        }
        written
    }

    fn join_first_range(&mut self) {
        if self.ranges.first().is_some_and(|r| r.start <= self.next) {
            self.next = self.next.max(self.ranges.remove(0).end);
        }
        if self.ranges.is_empty() {
            self.recent_len = 0;
            self.unreported = 0;
        }
    }

    /// Notes that the range at `index` changed at `offset`.
    fn note_recent(&mut self, index: usize, offset: u64) {
        let range = &self.ranges[index];
        // Moved to the front if the range is in the list, else the oldest entry falls out.
        let known = self.recent[..self.recent_len].iter().position(|o| range.contains(o));
        if known != Some(0) || self.unreported == 0 {
            self.unreported += 1;
        }
        let shift = known.unwrap_or(self.recent_len.min(MAX_BLOCKS - 1));
        self.recent.copy_within(..shift, 1);
        self.recent[0] = offset;
        self.recent_len = self.recent_len.max(shift + 1);
    }
}

/// Adds a block if there is room and it is not there already.
fn push_block(out: &mut [(u64, u64); MAX_BLOCKS], len: usize, range: &Range<u64>) -> usize {
    let block = (range.start, range.end);
    if len == MAX_BLOCKS || out[..len].contains(&block) {
        return len;
    }
    out[len] = block;
    len + 1
}

#[cfg(test)]
mod tests;
