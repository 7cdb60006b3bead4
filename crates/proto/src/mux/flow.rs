//! How many bytes may be under way: windows that grow with what is read (spec/secure.md §11.5).

use std::time::{Duration, Instant};

/// What we let the peer send: of one stream, or of all.
#[derive(Debug)]
pub(crate) struct Window {
    /// Offset that we told.
    pub(crate) told: u64,
    size: u64,
    max: u64,
    /// When it was last told.
    at: Option<Instant>,
}

impl Window {
    /// `size` bytes at first, told by the handshake; at most `max` in the end.
    pub(crate) fn new(size: u64, max: u64) -> Self {
        Self { told: size, size, max: max.max(size), at: None }
    }

    /// Whether the peer should be told of more, now that `read` bytes in all were taken from it: a quarter of the window.
    pub(crate) fn is_due(&self, read: u64) -> bool {
        read + self.size >= self.told + self.size / 4
    }

    /// The offset to tell now. A window that was used up within two round trips is doubled, unless memory is short.
    pub(crate) fn tell(&mut self, read: u64, now: Instant, rtt: Duration, squeezed: bool) -> u64 {
        let quick = self.at.is_some_and(|at| now.saturating_duration_since(at) < 2 * rtt);
        if quick && !squeezed {
            self.size = (self.size * 2).min(self.max);
        }
        self.at = Some(now);
        self.told = self.told.max(read + self.size);
        self.told
    }

    /// Bytes that the window holds.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

/// Both directions of all streams together.
#[derive(Debug)]
pub(crate) struct Flow {
    /// What the peer lets us send, and what we sent: the sum of the highest offsets.
    pub(crate) max: u64,
    pub(crate) sent: u64,
    /// What we let it send.
    pub(crate) window: Window,
    /// The sum of the highest offsets that came.
    pub(crate) received: u64,
    /// Bytes that were read or thrown away.
    pub(crate) read: u64,
}

impl Flow {
    pub(crate) fn new(size: u64, max: u64) -> Self {
        Self { max: 0, sent: 0, window: Window::new(size, max), received: 0, read: 0 }
    }

    /// Bytes that we may send for the first time.
    pub(crate) fn credit(&self) -> u64 {
        self.max.saturating_sub(self.sent)
    }

    /// The highest offset of a stream grew by so much. `false` if that is more than we allowed.
    pub(crate) fn on_growth(&mut self, bytes: u64) -> bool {
        self.received = self.received.saturating_add(bytes);
        self.received <= self.window.told
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;

    #[test]
    fn a_window_is_told_by_quarters_and_doubles_only_for_who_uses_it() {
        let (start, rtt) = (Instant::now(), Duration::from_millis(10));
        let mut window = Window::new(1_000, 3_000);
        assert!(!window.is_due(249));
        assert!(window.is_due(250));
        assert_eq!(window.tell(250, start, rtt, false), 1_250, "the first says nothing about the pace");
        assert_eq!(window.tell(500, start + rtt, rtt, false), 2_500);
        assert_eq!(window.tell(1_500, start + 2 * rtt, rtt, true), 3_500, "short of memory");
        assert_eq!(window.tell(2_000, start + 3 * rtt, rtt, false), 5_000, "at its bound");
        assert_eq!(window.tell(2_100, start + 30 * rtt, rtt, false), 5_100);
        assert_eq!(window.size(), 3_000);
    }

    #[test]
    fn more_than_was_allowed_is_noticed() {
        let mut flow = Flow::new(100, 100);
        assert!(flow.on_growth(60) && flow.on_growth(40));
        assert!(!flow.on_growth(1));
        assert_eq!(flow.credit(), 0, "nothing was allowed to us");
    }
}
