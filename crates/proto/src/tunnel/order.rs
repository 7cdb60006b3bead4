//! What the acknowledgements of all connections tell about the order of delivery on their path (spec/recovery.md §4.7).
//!
//! Each connection's own RACK knows only what was sent later in that connection. Here is what was delivered last of all that
//! left by the path; each connection compares the send time of its oldest segment with it, by a timer of its own. So an
//! acknowledgement costs the same however many connections there are, and nobody is looked for.

use std::time::{Duration, Instant};

use crate::config::{MAX_ACK_DELAY, OWN_ACK_DELAY};
use crate::rtt::RttEstimator;

/// The newest segment of the path that was delivered, and how long it took to hear of it.
#[derive(Debug, Clone, Copy)]
struct Delivered {
    sent: Instant,
    rtt: Duration,
}

/// Order of delivery on one path to a Pilotage peer.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Reported by a bare acknowledgement, with which all others that were held back have left.
    complete: Option<Delivered>,
    /// Reported by whatever packet.
    any: Option<Delivered>,
    /// Spurious losses that still widen the window, each by a quarter of the lowest round trip.
    widened: u32,
    /// The window is widened at most once per round trip.
    widen_after: Option<Instant>,
    /// The losses of a round trip are one repair.
    repaired_until: Option<Instant>,
    /// Repairs without a spurious loss after which the window is normal again.
    persist: u32,
}

impl Order {
    /// A segment that was sent at `sent` was delivered, as an acknowledgement says that came at `now`. `complete`: it is one
    /// with which everything leaves that the peer held back (spec/stream.md §5.2b).
    pub(crate) fn on_delivered(&mut self, now: Instant, sent: Instant, complete: bool) {
        let news = Delivered { sent, rtt: now.saturating_duration_since(sent) };
        let newer = |old: &Option<Delivered>| old.is_none_or(|d| d.sent < sent);
        if newer(&self.any) {
            self.any = Some(news);
        }
        if complete && newer(&self.complete) {
            self.complete = Some(news);
        }
    }

    /// R4.21: something had been taken for lost and was delivered all the same.
    pub(crate) fn on_spurious(&mut self, now: Instant, rtt: &RttEstimator) {
        self.persist = PERSIST_REPAIRS;
        if self.widen_after.is_none_or(|at| at <= now) {
            self.widened = (self.widened + 1).min(MAX_WIDENED);
            self.widen_after = Some(now + rtt.smoothed());
        }
    }

    /// Whether segments overtake each other on this path, and how many spurious losses widen the window.
    pub(crate) fn reordering(&self) -> Option<u32> {
        (self.persist > 0).then_some(self.widened)
    }

    /// Losses were found, here or by a connection itself.
    pub(crate) fn on_repair(&mut self, now: Instant, rtt: &RttEstimator) {
        if self.persist > 0 && self.repaired_until.is_none_or(|at| at <= now) {
            self.repaired_until = Some(now + rtt.smoothed());
            self.persist -= 1;
            if self.persist == 0 {
                self.widened = 0;
            }
        }
    }

    /// Whether anything is known: the peer is one of ours and has acknowledged something.
    pub(crate) fn is_known(&self) -> bool {
        self.any.is_some()
    }

    /// How long the peer may hold an acknowledgement back.
    pub(crate) fn ack_delay(&self) -> Duration {
        if self.is_known() { OWN_ACK_DELAY + TIMER_LATE } else { MAX_ACK_DELAY }
    }

    /// How much later than one that was sent after it a segment may be reported.
    fn window(&self, rtt: &RttEstimator) -> Duration {
        (rtt.min() / 4 * (1 + self.widened)).min(rtt.smoothed()).max(WINDOW_MIN)
    }

    /// When a segment that was sent at `sent` is to be taken for lost; `None` while nothing that left later was delivered.
    /// `repairs`: how often something of that connection was without any progress since. `prompt`: it is answered at once.
    pub(crate) fn due(
        &self,
        sent: Instant,
        repairs: u8,
        prompt: bool,
        rtt: &RttEstimator,
    ) -> Option<Instant> {
        let held = if prompt { Duration::ZERO } else { self.ack_delay() };
        [(self.complete, Duration::ZERO), (self.any, held)]
            .into_iter()
            .filter_map(|(delivered, held)| {
                let newer = delivered.filter(|d| sent < d.sent)?;
                let patience = newer.rtt.max(rtt.smoothed()) + self.window(rtt) + held;
                sent.checked_add(patience * (1 << repairs.saturating_sub(QUICK_REPAIRS).min(BACKOFF_MAX)))
            })
            .min()
    }

    /// When it is first worth asking whether anything later was delivered.
    pub(crate) fn first_look(&self, sent: Instant, rtt: &RttEstimator) -> Option<Instant> {
        sent.checked_add((rtt.smoothed() + self.window(rtt)).max(FIRST_LOOK))
    }

    /// When to ask again what was asked in vain at `now`: at most some twenty times before the retransmission timer fires.
    pub(crate) fn next_look(sent: Instant, now: Instant) -> Instant {
        now + (now.saturating_duration_since(sent) / 4).max(LOOK_MIN)
    }
}

/// Shortest window: acknowledgements that left together are read in more than one batch (RFC 9002 section 6.1.2).
const WINDOW_MIN: Duration = Duration::from_millis(1);
/// How much later than it was set a timer of the peer may fire.
const TIMER_LATE: Duration = Duration::from_millis(5);
/// Shortest wait before the first look: where round trips are short each request would cost a timer.
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Shortest wait between two looks.
const LOOK_MIN: Duration = Duration::from_millis(2);
/// Repairs of a connection without progress before the patience doubles with each.
const QUICK_REPAIRS: u8 = 3;
/// Bound of the exponent.
const BACKOFF_MAX: u8 = 8;
/// As in `scoreboard::rack`.
const PERSIST_REPAIRS: u32 = 16;
const MAX_WIDENED: u32 = 15;

#[cfg(test)]
mod tests;
