//! The send side of a stream: bytes that the application wrote and the peer has not acknowledged.
//!
//! Bytes are copied in once and copied out into each packet that carries them. Normative text:
//! `spec/recovery.md` section 3.

use std::ops::Range;

use crate::ring::ByteRing;

/// Most bytes of one stream that wait to be sent for the first time. What is written further ahead only grows old, in memory
/// that no cache holds any more when it is sent.
pub const UNSENT_MAX: usize = 512 << 10;

/// The same of all streams of a tunnel that have something to send: they share it.
const UNSENT_TOTAL: usize = 16 << 20;

/// What each may write ahead however many there are: a few full batches, so that a writer is not woken for each segment.
const UNSENT_MIN: usize = 64 << 10;

/// How far a stream may write ahead beside `others` that have something to send, bytes.
pub(crate) fn ahead_beside(others: usize) -> usize {
    (UNSENT_TOTAL / (others + 1)).clamp(UNSENT_MIN, UNSENT_MAX)
}

/// Written bytes between the cumulative acknowledgement and the end of what was written.
///
/// Three offsets in order: [`acked`](Self::acked) ≤ [`next`](Self::next) (first never sent) ≤
/// [`end`](Self::end). A FIN's offset is not part of it.
#[derive(Debug)]
pub struct SendBuffer {
    ring: ByteRing,
    next: u64,
    end: u64,
    /// Bytes that may wait to be sent for the first time, as of the last write.
    ahead: usize,
}

impl SendBuffer {
    /// An empty buffer at offset 0 for at most `max` unacknowledged bytes. Allocates nothing yet.
    pub fn new(max: usize) -> Self {
        Self { ring: ByteRing::new(max), next: 0, end: 0, ahead: UNSENT_MAX }
    }

    /// Takes as many bytes as there is room for and returns how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let len = data.len().min(self.free());
        self.ring.write_at(self.end, &data[..len]);
        self.end += len as u64;
        len
    }

    /// The lowest offset held: everything before it is acknowledged.
    pub fn acked(&self) -> u64 {
        self.ring.base()
    }

    /// The first offset that was never sent.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The offset after the last byte written.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that were never sent.
    pub fn unsent(&self) -> u64 {
        self.end - self.next
    }

    /// Bytes that can be written: within the bound, and at most [`UNSENT_MAX`] ahead of what was sent (less if
    /// [`set_ahead`](Self::set_ahead) says so).
    pub fn free(&self) -> usize {
        let room = self.ring.max().saturating_sub((self.end - self.ring.base()) as usize);
        room.min(self.ahead.saturating_sub(self.unsent() as usize))
    }

    /// How far may be written ahead of what was sent, bytes: from 1 to [`UNSENT_MAX`].
    pub fn set_ahead(&mut self, bytes: usize) {
        self.ahead = bytes.clamp(1, UNSENT_MAX);
    }

    /// Whether there is room that is worth waking a writer for: waking it for each segment would cost a switch each.
    pub(crate) fn has_worthy_room(&self) -> bool {
        self.free() >= (self.ring.max() / 4).clamp(1, self.ahead.div_ceil(2))
    }

    /// Changes the bound. What was written stays.
    pub fn set_max(&mut self, max: usize) {
        let held = (self.end - self.ring.base()) as usize;
        self.ring.set_max(max.max(held));
    }

    /// Everything before `to` was sent at least once. Never goes back, never past the end.
    pub fn mark_sent(&mut self, to: u64) {
        self.next = self.next.max(to.min(self.end));
    }

    /// Everything before `to` is acknowledged; its memory can be used again. An offset past the end (a FIN's) counts
    /// as the end.
    pub fn on_acked(&mut self, to: u64) {
        let to = to.min(self.end);
        self.ring.advance_to(to);
        self.next = self.next.max(to);
    }

    /// The bytes of `range`, in two parts where the ring wraps around. What is not held is left out.
    pub fn slices(&self, range: Range<u64>) -> (&[u8], &[u8]) {
        let start = range.start.max(self.acked());
        let end = range.end.min(self.end);
        if start >= end {
            return (&[], &[]);
        }
        self.ring.slices(start..end)
    }

    /// Copies the bytes of `range` to the beginning of `dst`. The range must be held, and `dst` long enough: what does
    /// not fit is left out.
    pub fn copy_to(&self, range: Range<u64>, dst: &mut [u8]) {
        debug_assert!(
            range.start >= self.acked() && range.end <= self.end,
            "copy of bytes that are not held"
        );
        let (a, b) = self.slices(range);
        #[cfg(debug_assertions)]
        crate::audit::count_copy(a.len() + b.len());
        let first = a.len().min(dst.len());
        dst[..first].copy_from_slice(&a[..first]);
        let second = b.len().min(dst.len() - first);
        dst[first..first + second].copy_from_slice(&b[..second]);
    }

    /// Whether everything written is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.acked() == self.end
    }

    /// Frees memory that was not needed since the last call, if everything written is acknowledged.
    pub fn trim(&mut self) {
        self.ring.trim();
    }

    /// Frees memory if everything written is acknowledged. For connections that fell idle.
    pub fn release(&mut self) {
        self.ring.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_no_more_than_its_bound_and_has_room_again_after_an_ack() {
        let mut buffer = SendBuffer::new(10);
        assert_eq!(buffer.write(b"0123456789abc"), 10);
        assert_eq!((buffer.write(b"x"), buffer.free()), (0, 0));
        buffer.mark_sent(4);
        buffer.on_acked(3);
        assert_eq!((buffer.acked(), buffer.next(), buffer.end(), buffer.unsent()), (3, 4, 10, 6));
        assert_eq!(buffer.write(b"abcdef"), 3);
        let mut out = [0; 10];
        buffer.copy_to(3..13, &mut out);
        assert_eq!(&out, b"3456789abc");
    }

    #[test]
    fn many_streams_share_what_may_be_written_ahead() {
        assert_eq!(ahead_beside(0), UNSENT_MAX);
        assert!(
            (0..10_000)
                .all(|others| ahead_beside(others) * (others + 1)
                    <= UNSENT_TOTAL.max(UNSENT_MIN * (others + 1)))
        );
        let mut buffer = SendBuffer::new(4 << 20);
        buffer.set_ahead(ahead_beside(99));
        let ahead = buffer.write(&vec![1; 1 << 20]);
        assert_eq!((ahead, buffer.free()), (UNSENT_TOTAL / 100, 0));
        buffer.mark_sent(ahead as u64 / 2 - 1);
        assert!(!buffer.has_worthy_room());
        buffer.mark_sent(ahead as u64 / 2 + 1);
        assert!(buffer.has_worthy_room());
        // Alone again.
        buffer.set_ahead(ahead_beside(0));
        buffer.write(&vec![1; 1 << 20]);
        assert_eq!((buffer.unsent() as usize, buffer.free()), (UNSENT_MAX, 0));
    }

    #[test]
    fn an_ack_of_the_fin_empties_it_and_is_no_overrun() {
        let mut buffer = SendBuffer::new(10);
        buffer.write(b"abc");
        buffer.mark_sent(4);
        assert_eq!(buffer.next(), 3);
        buffer.on_acked(4);
        assert!(buffer.is_empty());
        assert_eq!((buffer.acked(), buffer.free()), (3, 10));
    }

    #[test]
    fn stale_marks_and_acks_change_nothing() {
        let mut buffer = SendBuffer::new(10);
        buffer.write(b"abcdef");
        buffer.mark_sent(5);
        buffer.mark_sent(2);
        buffer.on_acked(4);
        buffer.on_acked(1);
        assert_eq!((buffer.acked(), buffer.next()), (4, 5));
    }

    #[test]
    fn what_is_acknowledged_counts_as_sent() {
        let mut buffer = SendBuffer::new(10);
        buffer.write(b"abcdef");
        buffer.on_acked(4);
        assert_eq!((buffer.next(), buffer.unsent()), (4, 2));
    }

    #[test]
    fn a_lower_bound_keeps_what_was_written() {
        let mut buffer = SendBuffer::new(100);
        buffer.write(&[1; 50]);
        buffer.set_max(10);
        assert_eq!((buffer.free(), buffer.write(b"x")), (0, 0));
        buffer.on_acked(50);
        assert_eq!(buffer.free(), 50);
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(ops in prop::collection::vec((0usize..4, 0u64..5000), 1..200)) {
            const MAX: usize = 6000;
            let mut buffer = SendBuffer::new(MAX);
            let (mut model, mut acked, mut next): (Vec<u8>, u64, u64) = (Vec::new(), 0, 0);
            for (op, n) in ops {
                let end = model.len() as u64;
                match op {
                    0 | 1 => {
                        let data: Vec<u8> = (0..n).map(|i| ((end + i) % 251) as u8).collect();
                        let room = MAX - (end - acked) as usize;
                        let taken = buffer.write(&data);
                        prop_assert_eq!(taken, data.len().min(room));
                        model.extend(&data[..taken]);
                    }
                    2 => {
                        next = (next + n).min(end);
                        buffer.mark_sent(next);
                    }
                    _ => {
                        acked = (acked + n).min(next);
                        buffer.on_acked(acked);
                    }
                }
                let end = model.len() as u64;
                prop_assert_eq!((buffer.acked(), buffer.next(), buffer.end()), (acked, next, end));
                prop_assert_eq!(buffer.free(), MAX - (end - acked) as usize);
                prop_assert_eq!(buffer.is_empty(), acked == end);
                let mut out = vec![0; (end - acked) as usize];
                buffer.copy_to(acked..end, &mut out);
                prop_assert_eq!(&out[..], &model[acked as usize..]);
                let (a, b) = buffer.slices(next..end);
                prop_assert_eq!([a, b].concat(), &model[next as usize..]);
            }
        }
    }
}
