//! The state of RACK (RFC 8985 section 5.2) and its reordering window.

use std::time::{Duration, Instant};

use super::Segment;
use crate::rtt::RttEstimator;

/// What the newest delivered segment tells, and how much reordering to forgive.
#[derive(Debug, Default)]
pub(super) struct Rack {
    /// Send time and end of the most recently sent segment that was delivered (RACK.xmit_ts, RACK.end_seq).
    pub(super) newest: Option<(Instant, u64)>,
    /// Round-trip time of the newest segment that the last acknowledgement delivered (RACK.rtt).
    pub(super) rtt: Duration,
    /// Highest offset known to be delivered (RACK.fack).
    pub(super) fack: u64,
    reordering_seen: bool,
    /// What other connections of the path have seen: reordering, and how many spurious losses widen the window.
    pub(super) elsewhere: Option<u32>,
    /// Spurious losses that still widen the window: it is `1 + widened` quarters of the minimum round trip.
    widened: u32,
    /// The window is widened at most once per round trip: not before `una` is here.
    widen_after: u64,
    /// Recoveries without a spurious loss after which the window is normal again (RACK.reo_wnd_persist).
    persist: u32,
}

impl Rack {
    /// R4.9, RFC 8985 section 6.2 step 3. `fack` is the highest offset delivered *before* this acknowledgement: one that
    /// reports several gaps at once is no sign of reordering.
    pub(super) fn on_delivered(&mut self, segment: &Segment, fack: u64) {
        if segment.end > self.fack {
            self.fack = segment.end;
        }
        if segment.end < fack && segment.transmissions == 1 {
            self.reordering_seen = true;
        }
    }

    /// RFC 8985 section 6.2 step 2.
    pub(super) fn advance(&mut self, now: Instant, sent: Instant, end: u64) {
        self.rtt = now.saturating_duration_since(sent);
        self.newest = self.newest.max(Some((sent, end)));
    }

    /// R4.10: RFC 8985 section 6.2 step 4 widens on D-SACK. No Pilot peer sends D-SACK, but the scoreboard sees most
    /// of what it would tell: an acknowledgement that can only be the original's.
    pub(super) fn on_spurious_loss(&mut self, una: u64, nxt: u64) {
        self.reordering_seen = true;
        self.persist = PERSIST_RECOVERIES;
        if una >= self.widen_after {
            self.widened = (self.widened + 1).min(MAX_WIDENED);
            self.widen_after = nxt;
        }
    }

    pub(super) fn on_recovery_end(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.widened = 0;
        }
    }

    /// R4.8: how long after the newest delivered segment an older one may still arrive. `hasty`: in recovery, or three
    /// segments are SACKed; then nothing is forgiven until reordering was seen.
    pub(super) fn reorder_window(&self, rtt: &RttEstimator, hasty: bool) -> Duration {
        if !self.reordering_seen && self.elsewhere.is_none() && hasty {
            return Duration::ZERO;
        }
        let widened = self.widened.max(self.elsewhere.unwrap_or(0));
        (rtt.min() / 4 * (1 + widened)).min(rtt.smoothed())
    }
}

/// RFC 8985 section 5.3.
const PERSIST_RECOVERIES: u32 = 16;
/// The window is never above one smoothed round trip; more than this could not matter.
const MAX_WIDENED: u32 = 15;
