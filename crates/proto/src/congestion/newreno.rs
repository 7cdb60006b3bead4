//! NewReno: what the draft prescribes, with appropriate byte counting (RFC 5681, RFC 3465) and PRR (RFC 6937).

use std::time::Instant;

use super::episode::{Core, Growth};
use super::{AckEvent, Controller};
use crate::rtt::RttEstimator;

/// Additive increase by one segment per round trip, halving on loss.
#[derive(Debug, Clone)]
pub struct NewReno {
    core: Core<()>,
    /// Bytes acknowledged since the last increase (RFC 3465 section 2.1).
    acked: u64,
}

impl NewReno {
    /// See [`AnyController::new`](super::AnyController::new).
    pub fn new(mss: u64, initial_window: u64, max_window: u64) -> Self {
        Self { core: Core::new(mss, initial_window, max_window), acked: 0 }
    }
}

impl Controller for NewReno {
    fn on_sent(&mut self, _now: Instant, bytes: u64, in_flight: u64) {
        self.core.on_sent(bytes, in_flight);
    }

    fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) {
        if let Growth::Avoid(bytes) = self.core.on_ack(now, ack, rtt) {
            self.acked += bytes;
            if self.acked >= self.core.window {
                // One segment per window's worth; a stretched acknowledgement never gives more than one.
                self.acked = (self.acked - self.core.window).min(self.core.window);
                self.core.grow(self.core.mss);
            }
        }
    }

    fn on_loss(&mut self, now: Instant, newest_lost_sent: Instant, lost_bytes: u64, in_flight: u64) {
        let half = self.core.window / 2;
        if self.core.on_loss(now, newest_lost_sent, lost_bytes, in_flight, half, ()) {
            self.acked = 0;
        }
    }

    fn on_rto(&mut self, now: Instant, in_flight: u64) {
        let half = self.core.window / 2;
        self.core.on_rto(now, in_flight, half, ());
        self.acked = 0;
    }

    fn on_spurious_bytes(&mut self, bytes: u64) {
        self.core.on_spurious_bytes(bytes);
    }

    fn on_spurious_loss(&mut self) {
        self.core.undo();
    }

    fn window(&self) -> u64 {
        self.core.window
    }

    fn send_allowance(&self, in_flight: u64) -> u64 {
        self.core.send_allowance(in_flight)
    }

    fn ssthresh(&self) -> Option<u64> {
        self.core.ssthresh
    }

    fn in_recovery(&self) -> bool {
        self.core.in_recovery()
    }

    fn set_mss(&mut self, mss: u64) {
        self.core.set_mss(mss);
    }

    fn pacing_rate(&self, rtt: &RttEstimator) -> Option<u64> {
        self.core.pacing_rate(rtt)
    }
}
