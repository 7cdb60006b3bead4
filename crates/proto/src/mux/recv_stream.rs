//! The receiving half of a stream: reassembly, its window, its end.

use std::time::{Duration, Instant};

use super::flow::Window;
use super::send_stream::Ending;
use super::{FINAL_SIZE, FLOW_CONTROL};
use crate::assembler::Assembler;

/// The receiving half.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    pub(crate) asm: Assembler,
    pub(crate) window: Window,
    /// Highest offset that came.
    pub(crate) highest: u64,
    pub(crate) final_size: Option<u64>,
    /// The peer gave it up, for this reason.
    pub(crate) reset: Option<u64>,
    /// What we tell a peer whose bytes nobody wants.
    pub(crate) stop: Ending,
    /// Nobody will read it: what comes is counted and thrown away.
    pub(crate) discarding: bool,
    pub(crate) eof_read: bool,
    /// A new limit is to be told.
    pub(crate) max_due: bool,
}

/// What a piece did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// By so much the highest offset grew.
    pub(crate) growth: u64,
    /// Something can be read that could not before: bytes, or the end.
    pub(crate) readable: bool,
    /// It was not stored: the packet must not be acknowledged.
    pub(crate) refused: bool,
    /// Bytes that were thrown away, never to be read.
    pub(crate) dropped: u64,
}

impl RecvHalf {
    pub(crate) fn new(size: u64, max: usize) -> Self {
        Self {
            asm: Assembler::new(size as usize),
            window: Window::new(size, max as u64),
            highest: 0,
            final_size: None,
            reset: None,
            stop: Ending::None,
            discarding: false,
            eof_read: false,
            max_due: false,
        }
    }

    /// Whether a piece that ends at `end` is allowed: its growth, or the code of CLOSE.
    pub(crate) fn check(&self, end: u64, fin: bool) -> Result<u64, u64> {
        match self.final_size {
            Some(size) if end > size || (fin && end != size) => return Err(FINAL_SIZE),
            None if fin && end < self.highest => return Err(FINAL_SIZE),
            _ => {}
        }
        if end > self.window.told { Err(FLOW_CONTROL) } else { Ok(end.saturating_sub(self.highest)) }
    }

    /// Takes a piece that [`Self::check`] has allowed.
    pub(crate) fn on_piece(&mut self, offset: u64, data: &[u8], fin: bool) -> Taken {
        let end = offset + data.len() as u64;
        let growth = end.saturating_sub(self.highest);
        self.highest = self.highest.max(end);
        let mut taken = Taken { growth, readable: false, refused: false, dropped: 0 };
        let was_at_end = self.is_at_end();
        if self.reset.is_some() || self.discarding {
            taken.dropped = growth;
        } else if !data.is_empty() {
            let inserted = self.asm.insert(offset, data);
            taken.refused = inserted.refused;
            taken.readable = inserted.advanced;
        }
        if fin && !taken.refused {
            self.final_size = Some(end);
        }
        taken.readable |= self.is_at_end() && !was_at_end;
        taken
    }

    /// The peer gave the stream up. Returns growth of the highest offset and bytes that nobody will read.
    pub(crate) fn on_reset(&mut self, code: u64, size: u64) -> Result<(u64, u64), u64> {
        if self.final_size.is_some_and(|known| known != size) || size < self.highest {
            return Err(FINAL_SIZE);
        }
        if size > self.window.told {
            return Err(FLOW_CONTROL);
        }
        let growth = size - self.highest;
        if self.reset.is_some() || self.is_at_end() {
            return Ok((0, 0)); // all had come
        }
        let behind = if self.discarding { 0 } else { self.highest - self.asm.next() };
        (self.highest, self.final_size, self.reset) = (size, Some(size), Some(code));
        Ok((growth, growth + behind))
    }

    /// Everything up to the end has come.
    pub(crate) fn is_at_end(&self) -> bool {
        self.reset.is_none()
            && self
                .final_size
                .is_some_and(|size| self.asm.next() == size || (self.discarding && self.highest == size))
    }

    /// Nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        (self.reset.is_some() || self.is_at_end() || (self.discarding && self.final_size.is_some()))
            && !matches!(self.stop, Ending::Due(_))
    }

    /// Offset up to which bytes were read or thrown away.
    pub(crate) fn read_to(&self) -> u64 {
        if self.discarding { self.highest } else { self.asm.next() - self.asm.readable() as u64 }
    }

    /// Nobody will read any more. Returns the bytes that are thrown away.
    pub(crate) fn discard(&mut self) -> u64 {
        if self.discarding {
            return 0;
        }
        let unread =
            if self.reset.is_some() { self.asm.readable() as u64 } else { self.highest - self.read_to() };
        let at_end = self.is_at_end();
        self.discarding = true;
        if at_end {
            self.highest = self.final_size.unwrap_or(self.highest);
        }
        let (window, next) = (self.asm.readable(), self.asm.next());
        self.asm.consume(window);
        debug_assert!(next <= self.highest);
        self.asm.release();
        unread
    }

    /// Whether the peer is to be told of a new limit.
    pub(crate) fn wants_window(&self) -> bool {
        self.final_size.is_none() && self.reset.is_none() && self.window.is_due(self.read_to())
    }

    /// The limit to tell now.
    pub(crate) fn tell(&mut self, now: Instant, rtt: Duration, squeezed: bool) -> u64 {
        self.max_due = false;
        let told = self.window.tell(self.read_to(), now, rtt, squeezed);
        self.asm.set_max(self.window.size() as usize);
        told
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;

    fn half() -> RecvHalf {
        RecvHalf::new(1_000, 1_000)
    }

    #[test]
    fn the_final_size_is_fixed_by_the_first_that_says_it() {
        let mut recv = half();
        recv.on_piece(10, &[0; 10], false);
        assert_eq!(recv.check(15, true), Err(FINAL_SIZE), "below what came");
        assert_eq!(recv.check(30, true), Ok(10));
        recv.on_piece(20, &[0; 10], true);
        assert_eq!(recv.check(31, false), Err(FINAL_SIZE));
        assert_eq!(recv.check(29, true), Err(FINAL_SIZE));
        assert_eq!(recv.on_reset(0, 31), Err(FINAL_SIZE));
        assert!(!recv.is_at_end());
        assert!(recv.on_piece(0, &[0; 10], false).readable);
        assert!(recv.is_at_end() && recv.is_over());
        assert_eq!(recv.on_reset(0, 30), Ok((0, 0)), "too late to matter");
        assert_eq!(recv.asm.readable(), 30);
    }

    #[test]
    fn nothing_beyond_the_window_is_allowed() {
        let mut recv = half();
        assert_eq!(recv.check(1_001, false), Err(FLOW_CONTROL));
        assert_eq!(recv.on_reset(0, 1_001), Err(FLOW_CONTROL));
        assert_eq!(recv.check(1_000, false), Ok(1_000));
        assert!(!recv.wants_window());
        recv.on_piece(0, &[0; 1_000], false);
        recv.asm.read(&mut [0; 300]);
        assert!(recv.wants_window());
        assert_eq!(recv.tell(Instant::now(), Duration::ZERO, false), 1_300);
        assert_eq!(recv.check(1_300, false), Ok(300));
    }

    #[test]
    fn what_nobody_reads_is_counted_once() {
        let mut recv = half();
        recv.on_piece(0, &[0; 100], false);
        recv.on_piece(200, &[0; 100], false);
        recv.asm.read(&mut [0; 40]);
        assert_eq!(recv.discard(), 260);
        assert_eq!(recv.discard(), 0);
        assert_eq!(recv.on_piece(100, &[0; 250], false).dropped, 50);
        assert_eq!(recv.read_to(), 350);
        recv.on_piece(350, &[], true);
        assert!(recv.is_over());
        let mut recv = half();
        recv.on_piece(0, &[0; 100], false);
        recv.on_piece(200, &[0; 100], false);
        assert_eq!(recv.on_reset(9, 400), Ok((100, 300)), "what came in order may still be read");
        assert_eq!(recv.discard(), 100);
    }
}
