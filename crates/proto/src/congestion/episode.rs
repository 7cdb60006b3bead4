//! What NewReno and CUBIC have in common: the window, slow start, recovery episodes, undo.

use std::time::Instant;

use super::hystart::{Advice, HyStart};
use super::prr::Prr;
use super::{AckEvent, initial_window, rate};
use crate::rtt::RttEstimator;

/// Window and episode of one path. `S` is the part of the algorithm's state that an undo restores.
#[derive(Debug, Clone)]
pub(super) struct Core<S> {
    pub(super) mss: u64,
    pub(super) window: u64,
    pub(super) ssthresh: Option<u64>,
    max_window: u64,
    hystart: HyStart,
    usage: WindowUsage,
    /// When the last reduction was. Losses of what was sent until then belong to the same congestion event.
    reduced_at: Option<Instant>,
    prr: Option<Prr>,
    /// Slow start after a timeout is careful (RFC 3465 section 2.3).
    after_rto: bool,
    /// A timeout fired and nothing was acknowledged since.
    rto_unanswered: bool,
    undo: Option<Undo<S>>,
}

#[derive(Debug, Clone)]
struct Undo<S> {
    window: u64,
    ssthresh: Option<u64>,
    state: S,
    lost_bytes: u64,
    spurious_bytes: u64,
}

/// What the algorithm may do with an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// In recovery, or the window was not used: no growth.
    None,
    /// Slow start has dealt with it.
    Done,
    /// Congestion avoidance with so many bytes.
    Avoid(u64),
}

impl<S: Clone> Core<S> {
    pub(super) fn new(mss: u64, initial_window: u64, max_window: u64) -> Self {
        let mss = mss.max(1);
        let max_window = max_window.max(2 * mss);
        Self {
            mss,
            window: initial_window.clamp(2 * mss, max_window),
            ssthresh: None,
            max_window,
            hystart: HyStart::default(),
            usage: WindowUsage::default(),
            reduced_at: None,
            prr: None,
            after_rto: false,
            rto_unanswered: false,
            undo: None,
        }
    }

    pub(super) fn in_slow_start(&self) -> bool {
        self.ssthresh.is_none_or(|s| self.window < s)
    }

    pub(super) fn in_recovery(&self) -> bool {
        self.prr.is_some()
    }

    pub(super) fn on_sent(&mut self, bytes: u64, in_flight: u64) {
        self.usage.on_sent(in_flight);
        if let Some(prr) = &mut self.prr {
            prr.on_sent(bytes);
        }
    }

    pub(super) fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) -> Growth {
        self.rto_unanswered = false;
        self.usage.on_ack(now, ack);
        if let Some(prr) = &mut self.prr {
            prr.on_ack(ack.bytes);
            // R5.2, RFC 9002 section 7.3.2: over when something sent during the episode is acknowledged.
            if self.reduced_at.is_some_and(|at| ack.newest_sent <= at) {
                return Growth::None;
            }
            self.prr = None;
            return Growth::None;
        }
        let slow_start = self.in_slow_start();
        if ack.app_limited || !self.usage.is_window_used(self.window, self.mss, slow_start) {
            return Growth::None;
        }
        if !slow_start {
            return Growth::Avoid(ack.bytes);
        }
        self.slow_start(now, ack, rtt)
    }

    fn slow_start(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) -> Growth {
        let mut bytes = ack.bytes;
        if self.after_rto {
            // R5.3
            bytes = bytes.min(2 * self.mss);
        } else if self.ssthresh.is_none() && rtt.has_sample() {
            match self.hystart.on_ack(now, ack.newest_sent, rtt.latest()) {
                Advice::Grow(divisor) => bytes /= divisor,
                Advice::Stop => {
                    self.ssthresh = Some(self.window);
                    return Growth::Avoid(ack.bytes);
                }
            }
        }
        let room = self.ssthresh.map_or(u64::MAX, |s| s - self.window);
        self.grow(bytes.min(room));
        if !self.in_slow_start() {
            self.after_rto = false;
        }
        if bytes > room { Growth::Avoid(bytes - room) } else { Growth::Done }
    }

    pub(super) fn grow(&mut self, bytes: u64) {
        self.window = self.window.saturating_add(bytes).min(self.max_window);
    }

    /// Begins an episode if the loss is news; `reduced` is the window that the algorithm wants then. Returns whether
    /// it began. `state` is what an undo shall restore.
    pub(super) fn on_loss(
        &mut self,
        now: Instant,
        newest_lost_sent: Instant,
        lost_bytes: u64,
        in_flight: u64,
        reduced: u64,
        state: S,
    ) -> bool {
        if self.reduced_at.is_some_and(|at| newest_lost_sent <= at) {
            if let Some(undo) = &mut self.undo {
                undo.lost_bytes = undo.lost_bytes.saturating_add(lost_bytes);
            }
            return false;
        }
        self.save(state, lost_bytes);
        self.window = reduced.max(2 * self.mss);
        self.ssthresh = Some(self.window);
        self.reduced_at = Some(now);
        self.after_rto = false;
        self.prr = Some(Prr::new(in_flight.saturating_add(lost_bytes)));
        true
    }

    /// R5.7, RFC 5681 section 3.1 equation 4. Returns whether this is the first timeout of a row: `ssthresh` stays for the
    /// others, and where the present episode has set it already.
    pub(super) fn on_rto(&mut self, now: Instant, in_flight: u64, reduced: u64, state: S) -> bool {
        let first = !self.rto_unanswered && !self.in_recovery();
        if first {
            self.save(state, in_flight);
            self.ssthresh = Some(reduced.max(2 * self.mss));
        } else if let Some(undo) = &mut self.undo {
            undo.lost_bytes = undo.lost_bytes.saturating_add(in_flight);
        }
        self.window = self.mss;
        self.reduced_at = Some(now);
        self.prr = None;
        self.after_rto = true;
        self.rto_unanswered = true;
        first
    }

    /// R5.10: returns the state to restore when all losses of the episode have turned out to be spurious.
    pub(super) fn on_spurious_bytes(&mut self, bytes: u64) -> Option<S> {
        let undo = self.undo.as_mut()?;
        undo.spurious_bytes = undo.spurious_bytes.saturating_add(bytes);
        if undo.spurious_bytes < undo.lost_bytes { None } else { self.undo() }
    }

    pub(super) fn undo(&mut self) -> Option<S> {
        let undo = self.undo.take()?;
        self.window = self.window.max(undo.window.min(self.max_window));
        self.ssthresh = undo.ssthresh;
        self.prr = None;
        self.after_rto = false;
        Some(undo.state)
    }

    fn save(&mut self, state: S, lost_bytes: u64) {
        self.undo =
            Some(Undo { window: self.window, ssthresh: self.ssthresh, state, lost_bytes, spurious_bytes: 0 });
    }

    pub(super) fn send_allowance(&self, in_flight: u64) -> u64 {
        match &self.prr {
            Some(prr) => prr.allowance(in_flight, self.window, self.mss),
            None => self.window.saturating_sub(in_flight),
        }
    }

    pub(super) fn set_mss(&mut self, mss: u64) {
        let one_segment = self.after_rto && self.window <= self.mss;
        self.mss = mss.max(1);
        self.max_window = self.max_window.max(2 * self.mss);
        // R5.1
        let floor = if one_segment {
            self.mss
        } else if self.ssthresh.is_none() {
            initial_window(self.mss)
        } else {
            2 * self.mss
        };
        self.window = self.window.max(floor).min(self.max_window);
        if let Some(ssthresh) = &mut self.ssthresh {
            *ssthresh = (*ssthresh).max(2 * self.mss);
        }
    }

    pub(super) fn pacing_rate(&self, rtt: &RttEstimator) -> Option<u64> {
        let quarters = if self.in_slow_start() { 8 } else { 5 };
        rtt.has_sample().then(|| rate(self.window, rtt.smoothed(), quarters))
    }
}

/// R5.8: whether the window is used at all; growth must be earned (RFC 7661, RFC 9002 section 7.8). What is in flight when an
/// acknowledgement is processed tells little, because a whole window of them may come in one batch; so the peak of
/// the last two rounds counts, as in Linux.
#[derive(Debug, Clone, Default)]
struct WindowUsage {
    round_start: Option<Instant>,
    peak: u64,
    last_peak: u64,
}

impl WindowUsage {
    fn on_sent(&mut self, in_flight: u64) {
        self.peak = self.peak.max(in_flight);
    }

    fn on_ack(&mut self, now: Instant, ack: &AckEvent) {
        if self.round_start.is_none_or(|start| ack.newest_sent >= start) {
            self.round_start = Some(now);
            self.last_peak = self.peak;
            self.peak = 0;
        }
        self.peak = self.peak.max(ack.in_flight_before);
    }

    fn is_window_used(&self, window: u64, mss: u64, slow_start: bool) -> bool {
        let used = self.peak.max(self.last_peak);
        if slow_start { used.saturating_mul(2) >= window } else { used + window / 8 + 2 * mss >= window }
    }
}
