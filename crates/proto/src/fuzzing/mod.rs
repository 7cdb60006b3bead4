//! Harnesses of the fuzz targets in `fuzz/` that need the inside of this crate.
//!
//! Each harness turns its input into operations and panics if an invariant does not hold; what it promises to check
//! stands at its function. No harness reads a clock: the caller brings the instant at which virtual time begins, and
//! nothing depends on which one it is. Equal inputs make equal runs.
//!
//! With the feature `fuzzing` the cryptography is a toy (`crypto::toy`), so that a key exchange costs what any other
//! operation costs.

use std::time::{Duration, Instant};

mod blocks;
mod connection;
mod mux;
mod net;
mod pair;
mod stream;
mod tunnel;

pub use blocks::{assembler, replay, scoreboard, send_buffer};
pub use connection::connection;
pub use mux::s1_mux;
pub use pair::pair;
pub use stream::stream;
pub use tunnel::tunnel;

/// Three nodes that speak S1, and every order, loss, copy and change of their datagrams: nothing is delivered twice or
/// to another, and no key and nonce seal twice. Four bytes of input make a step.
pub fn s1(base: Instant, data: &[u8]) {
    crate::s1::model::run(base, data);
}

/// Reads numbers from the input; zeros behind its end.
#[derive(Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// The next operation; `None` at the end of the input.
    pub(crate) fn op(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.op().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    /// A length: mostly below 128, now and then up to `max`.
    pub(crate) fn len(&mut self, max: usize) -> usize {
        let first = usize::from(self.u8());
        let len = if first < 128 { first } else { (first - 128) << 8 | usize::from(self.u8()) };
        len.min(max)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.u8()) % bound
    }

    /// Something near zero, positive or negative; now and then far away.
    pub(crate) fn delta(&mut self) -> i64 {
        match self.u8() {
            0xFF => i64::from(self.u32() as i32),
            0xFE => i64::from(self.u16() as i16),
            byte => i64::from(byte as i8),
        }
    }

    /// A time: mostly some milliseconds, at most about six minutes.
    pub(crate) fn time(&mut self) -> Duration {
        let byte = u64::from(self.u8());
        match byte >> 6 {
            0 => Duration::from_micros(byte * 50),
            1 => Duration::from_millis(byte & 63),
            2 => Duration::from_millis((byte & 63) * 50),
            _ => Duration::from_secs(((byte & 63) * (byte & 63)) / 11),
        }
    }

    /// At most `max` bytes of the input as they are.
    pub(crate) fn bytes(&mut self, max: usize) -> &'a [u8] {
        let len = self.len(max).min(self.0.len());
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }
}

/// The byte that a stream named `name` carries at `offset`: whatever is delivered shows where it belongs.
#[inline]
pub(crate) fn pattern(name: u64, offset: u64) -> u8 {
    let word = (offset ^ name).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word >> 56) as u8
}

/// A piece of the stream `name`.
pub(crate) fn fill(name: u64, offset: u64, buf: &mut [u8]) {
    for (i, byte) in (0..).zip(buf) {
        *byte = pattern(name, offset.wrapping_add(i));
    }
}

/// Panics unless `bytes` are what the stream `name` carries from `offset` on.
pub(crate) fn check(name: u64, offset: u64, bytes: &[u8]) {
    for (i, byte) in (0..).zip(bytes) {
        let at = offset.wrapping_add(i);
        assert_eq!(*byte, pattern(name, at), "stream {name:x}: wrong byte at {at}");
    }
}

/// Virtual time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    /// Calls at one and the same instant that only serve to reach the next deadline.
    still: u32,
}

/// So often may something want to be called at one instant; more is a busy loop.
const STILL_MAX: u32 = 200;

impl Clock {
    pub(crate) fn new(base: Instant) -> Self {
        Self { now: base, still: 0 }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.still = 0;
    }

    /// Goes to a deadline; one in the past counts as now. Panics if that does not lead anywhere.
    pub(crate) fn go_to(&mut self, deadline: Instant) {
        if deadline > self.now {
            self.now = deadline;
            self.still = 0;
        } else {
            self.still += 1;
            assert!(self.still < STILL_MAX, "busy loop: a deadline that does not move");
        }
    }
}
