//! The sending half of a stream: what goes out next, what was lost, what arrived.

use std::ops::Range;

use super::ranges::RangeSet;
use crate::send_buffer::SendBuffer;

/// Ranges that arrived behind one that did not. Beyond the bound one is simply sent again.
const ACKED_MAX: usize = 2_048;
/// Ranges to be sent again. Beyond the bound two become one, with what lies between.
const LOST_MAX: usize = 1_024;

/// Where a reset of ours stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// None is wanted.
    None,
    /// To be sent, with this code.
    Due(u64),
    /// Sent, not acknowledged.
    Sent(u64),
    /// Acknowledged.
    Done,
}

impl Ending {
    /// It was wanted, and the peer may not know yet.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Due(_) | Self::Sent(_))
    }

    pub(crate) fn lose(&mut self) {
        if let Self::Sent(code) = *self {
            *self = Self::Due(code);
        }
    }
}

/// Bytes for one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) range: Range<u64>,
    pub(crate) fin: bool,
    /// Of these so many bytes were never sent.
    pub(crate) fresh: u64,
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendHalf {
    pub(crate) buf: SendBuffer,
    acked: RangeSet,
    lost: RangeSet,
    /// The peer's limit.
    pub(crate) max: u64,
    /// The application ended this direction.
    pub(crate) fin_queued: bool,
    fin_sent: bool,
    fin_lost: bool,
    pub(crate) fin_acked: bool,
    /// We open the stream, and the peer has not shown that it knows it.
    pub(crate) opening: bool,
    /// A frame with the ports must leave even without data.
    pub(crate) open_due: bool,
    pub(crate) reset: Ending,
    pub(crate) write_blocked: bool,
}

impl SendHalf {
    pub(crate) fn new(buf: SendBuffer, opening: bool) -> Self {
        Self {
            buf,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
            max: 0,
            fin_queued: false,
            fin_sent: false,
            fin_lost: false,
            fin_acked: false,
            opening,
            open_due: false,
            reset: Ending::None,
            write_blocked: false,
        }
    }

    /// Whether [`Self::next`] has something, were there credit for it.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.reset == Ending::None
            && (self.must_open() || self.has_lost() || self.fin_is_due() || self.sendable() > 0)
    }

    /// Something is to be sent again.
    pub(crate) fn has_lost(&self) -> bool {
        self.reset == Ending::None && (!self.lost.is_empty() || self.fin_lost)
    }

    /// An empty piece leaves, for its ports: once the peer knows the stream it would say nothing.
    fn must_open(&self) -> bool {
        self.open_due && self.opening
    }

    fn fin_is_due(&self) -> bool {
        self.fin_queued && (!self.fin_sent || self.fin_lost) && self.buf.unsent() == 0
    }

    /// Bytes that were never sent and are within the peer's limit for the stream.
    fn sendable(&self) -> u64 {
        self.buf.unsent().min(self.max.saturating_sub(self.buf.next()))
    }

    /// The next bytes: at most `room`, and at most `credit` that were never sent. `None` if nothing may leave.
    pub(crate) fn next(&self, room: usize, credit: u64) -> Option<Chunk> {
        if self.reset != Ending::None {
            return None;
        }
        let end = self.buf.end();
        if let Some(lost) = self.lost.first() {
            let to = lost.end.min(lost.start + room as u64);
            if to == lost.start {
                return None;
            }
            return Some(Chunk { fin: self.fin_sent && to == end, range: lost.start..to, fresh: 0 });
        }
        let start = self.buf.next();
        let len = self.sendable().min(room as u64).min(credit);
        let fin = self.fin_queued && start + len == end && (!self.fin_sent || self.fin_lost);
        if len == 0 && !fin && !self.must_open() {
            return None;
        }
        Some(Chunk { range: start..start + len, fin, fresh: len })
    }

    /// Where the next chunk begins.
    pub(crate) fn next_offset(&self) -> u64 {
        self.lost.first().map_or(self.buf.next(), |lost| lost.start)
    }

    /// A chunk left.
    pub(crate) fn on_sent(&mut self, chunk: &Chunk) {
        self.open_due = false;
        if chunk.fresh > 0 {
            self.buf.mark_sent(chunk.range.end);
        } else {
            self.lost.remove(chunk.range.clone());
        }
        if chunk.fin {
            self.fin_sent = true;
            self.fin_lost = false;
        }
    }

    /// A piece arrived. Whether more is acknowledged than before.
    pub(crate) fn on_acked(&mut self, offset: u64, len: u64, fin: bool) -> bool {
        self.opening = false;
        self.open_due = false;
        if fin && self.fin_sent {
            self.fin_acked = true;
            self.fin_lost = false;
        }
        let (start, end) = (offset.max(self.buf.acked()), offset + len);
        if start >= end {
            return fin;
        }
        self.lost.remove(start..end);
        if start == self.buf.acked() {
            let mut to = end;
            while let Some(first) = self.acked.first().filter(|r| r.start <= to) {
                to = to.max(first.end);
                self.acked.remove(first);
            }
            self.buf.on_acked(to);
        } else if self.acked.len() < ACKED_MAX {
            self.acked.insert(start..end);
        } else {
            self.add_lost(start..end);
        }
        true
    }

    /// A piece was lost.
    pub(crate) fn on_lost(&mut self, offset: u64, len: u64, fin: bool) {
        if self.reset != Ending::None {
            return;
        }
        if fin && !self.fin_acked {
            self.fin_lost = true;
        }
        if len == 0 && self.opening && !fin {
            self.open_due = true;
        }
        let range = offset.max(self.buf.acked())..offset + len;
        if range.start < range.end {
            self.add_lost(range.clone());
            self.drop_acked_from_lost(range);
        }
    }

    fn add_lost(&mut self, range: Range<u64>) {
        self.lost.insert(range);
        if self.lost.len() > LOST_MAX {
            self.lost.coarsen();
        }
    }

    /// Sent twice, one copy arrived, the other is lost: nothing is to be done about what arrived.
    fn drop_acked_from_lost(&mut self, range: Range<u64>) {
        if self.acked.is_empty() {
            return;
        }
        for held in self.acked.overlapping(&range) {
            self.lost.remove(held);
        }
    }

    /// Everything that was sent is to be sent again, to a peer that never had it.
    pub(crate) fn restart(&mut self) {
        let sent = self.buf.next();
        self.lost.clear();
        self.acked.clear();
        self.lost.insert(self.buf.acked()..sent);
        self.fin_lost |= self.fin_sent;
        self.open_due = true;
    }

    /// Nothing was ever acknowledged.
    pub(crate) fn is_untouched(&self) -> bool {
        self.opening && self.buf.acked() == 0
    }

    /// The peer has everything, or knows that nothing more comes.
    pub(crate) fn is_over(&self) -> bool {
        match self.reset {
            Ending::None => self.fin_acked && self.buf.is_empty(),
            ending => ending == Ending::Done,
        }
    }

    /// Whether everything written, and the end if there is one, was acknowledged.
    pub(crate) fn is_flushed(&self) -> bool {
        self.buf.is_empty() && (!self.fin_queued || self.fin_acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(data: &[u8]) -> SendHalf {
        let mut half = SendHalf::new(SendBuffer::new(10_000), true);
        half.max = 10_000;
        half.buf.write(data);
        half
    }

    fn send(half: &mut SendHalf, room: usize) -> Option<Chunk> {
        let chunk = half.next(room, u64::MAX)?;
        half.on_sent(&chunk);
        Some(chunk)
    }

    #[test]
    fn what_was_lost_goes_first_and_what_arrived_never_again() {
        let mut half = half(&[7; 100]);
        for at in 0..5u64 {
            assert_eq!(send(&mut half, 20).map(|c| c.range), Some(at * 20..at * 20 + 20));
        }
        half.fin_queued = true;
        assert_eq!(send(&mut half, 20), Some(Chunk { range: 100..100, fin: true, fresh: 0 }));
        half.on_acked(20, 20, false);
        half.on_lost(0, 60, false);
        assert_eq!(send(&mut half, 50).map(|c| c.range), Some(0..20));
        assert_eq!(send(&mut half, 50).map(|c| c.range), Some(40..60));
        assert_eq!(send(&mut half, 50), None);
        half.on_lost(100, 0, true);
        assert_eq!(send(&mut half, 50).map(|c| c.fin), Some(true));
        assert!(half.on_acked(0, 20, false) && half.on_acked(40, 60, false) && !half.is_over());
        half.on_acked(100, 0, true);
        assert!(half.is_over() && half.is_flushed());
    }

    #[test]
    fn limits_hold_back_what_is_new_and_nothing_else() {
        let mut half = half(&[7; 100]);
        half.max = 30;
        assert_eq!(half.next(50, 10).map(|c| c.range), Some(0..10));
        assert_eq!(send(&mut half, 50).map(|c| c.range), Some(0..30));
        assert!(!half.wants_to_send());
        half.on_lost(0, 30, false);
        assert_eq!(half.next(50, 0).map(|c| (c.range, c.fresh)), Some((0..30, 0)));
    }

    #[test]
    fn a_bare_opening_is_sent_until_it_arrives() {
        let mut half = half(&[]);
        assert_eq!(half.next(9, 9), None);
        half.open_due = true;
        assert_eq!(send(&mut half, 9), Some(Chunk { range: 0..0, fin: false, fresh: 0 }));
        half.on_lost(0, 0, false);
        assert!(half.wants_to_send());
        half.on_acked(0, 0, false);
        assert!(!half.wants_to_send() && !half.opening);
    }

    #[test]
    fn a_peer_that_acknowledges_every_second_piece_fills_no_memory() {
        let mut half = SendHalf::new(SendBuffer::new(1 << 20), false);
        half.max = u64::MAX;
        while half.buf.end() < 100_000 {
            half.buf.write(&[1; 10_000]);
            while send(&mut half, 10).is_some() {}
        }
        for at in (1..10_000u64).step_by(2) {
            half.on_acked(at * 10, 10, false);
        }
        assert_eq!(half.acked.len(), ACKED_MAX);
        assert!(half.lost.len() <= LOST_MAX);
        for at in (0..10_000u64).step_by(2) {
            half.on_lost(at * 10, 10, false);
        }
        assert!(half.lost.len() <= LOST_MAX);
        while let Some(chunk) = send(&mut half, 1_000) {
            half.on_acked(chunk.range.start, chunk.range.end - chunk.range.start, false);
        }
        assert!(half.buf.is_empty(), "all the same everything arrives");
    }
}
