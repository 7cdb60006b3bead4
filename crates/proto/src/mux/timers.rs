//! Probes, silence, and what is given up (spec/secure.md §11.10).

use std::time::{Duration, Instant};

use super::{Cx, Mux};
use crate::config::Config;
use crate::congestion::Controller;
use crate::connection::Failure;
use crate::tunnel::path::Path;

/// Shortest probe timeout: below it the scheduler of a busy machine looks like loss.
const PTO_MIN: Duration = Duration::from_millis(10);
/// Probe timeout before anything was measured.
const PTO_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two probes.
const PTO_MAX: Duration = Duration::from_secs(10);
/// Packets of one probe.
const PROBES: u8 = 2;
/// So many probes in vain, and everything under way is taken for lost (RFC 9002 §7.6).
const PERSISTENT: u32 = 3;

/// What a timeout brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing that others should know.
    Nothing,
    /// The peer did not answer in time, and is probed.
    Probe,
    /// It did not for so long that all streams were given up: the session should end with them.
    GaveUp,
}

impl Mux {
    /// When [`Self::on_timeout`] has something to do, or an acknowledgement is due.
    pub(crate) fn deadline(&self, now: Instant, cx: (&Path, &Config)) -> Option<Instant> {
        let (path, cfg) = cx;
        // What is due is sent as soon as it can be; a timer would only call for it again.
        let ack = self.received.deadline().filter(|t| *t > now);
        let opens = self.opens.front().map(|(at, _)| *at);
        let lingers = self.lingers.front().map(|(at, ..)| *at);
        [ack, self.sent.loss_deadline(), self.probe_deadline(path), opens, lingers, self.keepalive(cfg)]
            .into_iter()
            .flatten()
            .min()
    }

    fn probe_deadline(&self, path: &Path) -> Option<Instant> {
        let sent = self.eliciting_at.filter(|_| self.sent.is_waiting())?;
        Some(sent + (self.pto(path) * (1 << self.backoff.min(8))).min(PTO_MAX))
    }

    /// RFC 9002 §6.2.1.
    fn pto(&self, path: &Path) -> Duration {
        if !path.rtt.has_sample() {
            return PTO_FIRST;
        }
        let spread = (path.rtt.variance() * 4).max(Duration::from_millis(1));
        (path.rtt.smoothed() + spread + self.peer_ack_delay).max(PTO_MIN)
    }

    /// Streams are open, nothing is under way, and nothing has come for long.
    fn keepalive(&self, cfg: &Config) -> Option<Instant> {
        let quiet = self.streams.len() > 0 && !self.sent.is_waiting() && !self.ping_due;
        let since = self.heard.max(self.eliciting_at)?;
        quiet.then_some(since + cfg.keepalive)
    }

    /// Does what is due.
    pub(crate) fn on_timeout(&mut self, cx: &mut Cx<'_>) -> Due {
        let now = cx.now;
        if self.sent.loss_deadline().is_some_and(|t| t <= now) {
            self.detect_losses(cx);
        }
        self.open_late(now);
        while let Some(&(at, slot, id)) = self.lingers.front() {
            if at > now {
                break;
            }
            self.lingers.pop_front();
            if self.streams.get(slot).is_some_and(|s| s.id == id) {
                self.give_up(slot);
            }
        }
        if self.keepalive(cx.cfg).is_some_and(|t| t <= now) {
            self.ping_due = true;
        }
        if self.probe_deadline(cx.path).is_some_and(|t| t <= now) {
            return self.on_probe_timeout(cx);
        }
        Due::Nothing
    }

    /// Streams that waited in vain for data to open with.
    fn open_late(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.opens.front() {
            if at > now {
                break;
            }
            self.opens.pop_front();
            if let Some(stream) = self.streams.get_mut(slot)
                && stream.send.opening
                && stream.first_sent.is_none()
            {
                stream.send.open_due = true;
                self.streams.mark(slot);
            }
        }
    }

    /// Nobody holds the stream, and the peer does not end it.
    fn give_up(&mut self, slot: u32) {
        if self.streams.get(slot).is_some_and(|s| s.detached || s.gated) {
            self.refuse(slot, super::NO_ERROR);
        }
    }

    fn on_probe_timeout(&mut self, cx: &mut Cx<'_>) -> Due {
        let since = |t: Option<Instant>| t.map_or(Duration::MAX, |t| cx.now.saturating_duration_since(t));
        let (stalled, silent) = (since(self.stalled_at), since(self.heard));
        let limit = cx.cfg.user_timeout;
        if stalled != Duration::MAX && stalled >= limit && (silent >= limit || stalled >= limit * 4) {
            self.give_up_life(cx);
            return Due::GaveUp;
        }
        self.backoff += 1;
        self.probes = PROBES;
        self.eliciting_at = Some(cx.now);
        if self.backoff == PERSISTENT {
            let (before, in_flight) = (self.sent.in_flight, cx.path.in_flight);
            let lost = self.sent.lose_all();
            self.sync_in_flight(before, cx.path);
            cx.path.controller.on_rto(cx.now, in_flight);
            if lost.largest_size + cx.path.prefix() > cx.path.mtu.base() {
                cx.path.mtu.on_rto();
                cx.path.update_mss();
            }
            // That its answer is waited for keeps the timer running.
            self.ping_due = true;
        } else if cx.path.in_flight > cx.path.controller.window() + 2 * cx.path.datagram_size() as u64 {
            // Probes whose answers came and said nothing of what is under way: no more is put on the path than is taken from it.
            let before = self.sent.in_flight;
            self.sent.lose_oldest(usize::from(PROBES));
            self.sync_in_flight(before, cx.path);
        } else {
            self.sent.repeat_oldest(usize::from(PROBES));
        }
        self.take_lost();
        Due::Probe
    }

    /// The peer is silent. What never left of streams goes on waiting: it may be the first that hears of it again.
    fn give_up_life(&mut self, cx: &mut Cx<'_>) {
        let waits = |s: &super::Stream| s.first_sent.is_none() && s.failure.is_none() && !s.incoming;
        let slots = self.streams.slots().into_iter();
        let waiting: Vec<u32> = slots.filter(|slot| self.streams.get(*slot).is_some_and(waits)).collect();
        self.end_life_but(Failure::TimedOut, &waiting, cx);
    }

    /// Our own address has changed. Acknowledgements that were sent from the old one may be lost, and a sender that waits for
    /// them has stopped: what is oldest leaves at once, whatever the window says, and the peer hears where we are.
    pub(crate) fn on_moved(&mut self, now: Instant, most: usize) {
        self.received.hurry(now);
        if self.repeat(most) {
            self.backoff = 0;
            self.eliciting_at = Some(now);
        }
    }

    /// The oldest of what is under way goes once more, about `most` bytes of it, in packets of which one waits for no window.
    /// Whether anything is.
    pub(crate) fn repeat(&mut self, most: usize) -> bool {
        let any = self.sent.repeat_bytes(most);
        if any {
            self.probes = self.probes.max(1);
            self.take_lost();
        }
        any
    }

    /// What is under way went where the peer is no longer: it goes again, and the new path is not blamed.
    pub(crate) fn on_path_gone(&mut self, now: Instant, path: &mut Path) {
        let before = self.sent.in_flight;
        if self.sent.lose_all().bytes > 0 {
            self.ping_due = true;
        }
        self.sync_in_flight(before, path);
        self.take_lost();
        self.backoff = 0;
        self.received.hurry(now);
    }
}
