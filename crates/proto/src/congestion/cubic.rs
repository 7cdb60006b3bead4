//! CUBIC (RFC 9438), with PRR (RFC 6937) and HyStart++ (RFC 9406).
//!
//! Read RFC 9438 section 4 beside this file: names follow it, in snake case, in bytes instead of segments.
//! Only additions, multiplications and divisions of `f64` are used, so that the same events give the same window
//! on every machine; `f64::cbrt` would not.

use std::time::{Duration, Instant};

use super::episode::{Core, Growth};
use super::{AckEvent, Controller};
use crate::rtt::RttEstimator;

/// Growth as a cubic function of the time since the last reduction, never slower than NewReno would be.
#[derive(Debug, Clone)]
pub struct Cubic {
    core: Core<Curve>,
    curve: Curve,
    /// When the curve was last followed or stopped.
    last_ack: Option<Instant>,
    /// Growth below one byte.
    fraction: f64,
}

/// The curve of the present congestion avoidance stage.
#[derive(Debug, Clone, Copy, Default)]
struct Curve {
    /// Window just before the last reduction, lowered by fast convergence. Zero if the stage did not begin with a loss.
    w_max: f64,
    /// Window before the last reduction.
    cwnd_prior: f64,
    /// What NewReno would have by now.
    w_est: f64,
    /// Seconds until the curve is at `w_max` again.
    k: f64,
    /// Begin of the stage; `None` until its first acknowledgement.
    epoch_start: Option<Instant>,
}

impl Cubic {
    /// See [`AnyController::new`](super::AnyController::new).
    pub fn new(mss: u64, initial_window: u64, max_window: u64) -> Self {
        Self {
            core: Core::new(mss, initial_window, max_window),
            curve: Curve::default(),
            last_ack: None,
            fraction: 0.0,
        }
    }

    /// RFC 9438 section 4.2 to 4.5.
    fn avoid(&mut self, now: Instant, bytes: u64, srtt: Duration) {
        let cwnd = self.core.window as f64;
        let mss = self.core.mss as f64;
        if self.curve.epoch_start.is_none() {
            self.curve.begin(cwnd, mss);
        }
        let epoch_start = *self.curve.epoch_start.get_or_insert(now);
        let t = now.saturating_duration_since(epoch_start).as_secs_f64();
        let share = (bytes as f64 / cwnd).min(1.0);

        // Section 4.3: the Reno-friendly estimate.
        let alpha = if self.curve.w_est < self.curve.cwnd_prior { ALPHA } else { 1.0 };
        self.curve.w_est += alpha * share * mss;
        if self.curve.at(t, mss) < self.curve.w_est {
            if self.curve.w_est > cwnd {
                self.grow_to(self.curve.w_est);
            }
            return;
        }
        // Sections 4.4 and 4.5: towards where the curve will be one round trip from now.
        let target = self.curve.at(t + srtt.as_secs_f64(), mss).clamp(cwnd, 1.5 * cwnd);
        self.grow_to(cwnd + self.fraction + (target - cwnd) * share);
    }

    fn grow_to(&mut self, target: f64) {
        let whole = target as u64;
        self.fraction = target - whole as f64;
        self.core.grow(whole.saturating_sub(self.core.window));
    }

    /// R5.6, RFC 9438 section 5.8: time during which the window was not the limit does not count. Otherwise the window would
    /// jump after a pause.
    fn hold(&mut self, now: Instant) {
        if let (Some(start), Some(last)) = (self.curve.epoch_start, self.last_ack) {
            let later = start.checked_add(now.saturating_duration_since(last));
            self.curve.epoch_start = later.map(|at| at.min(now));
        }
        self.last_ack = Some(now);
    }

    /// RFC 9438 sections 4.6 and 4.7: remembers the window and returns the reduced one.
    fn reduced(&self) -> (Curve, u64) {
        let cwnd = self.core.window as f64;
        let w_max = if cwnd < self.curve.w_max { cwnd * (1.0 + BETA) / 2.0 } else { cwnd };
        (Curve { w_max, cwnd_prior: cwnd, ..Curve::default() }, (cwnd * BETA) as u64)
    }
}

impl Curve {
    fn begin(&mut self, cwnd: f64, mss: f64) {
        self.w_est = cwnd;
        if self.w_max <= cwnd {
            // After a timeout, or out of slow start without a loss (sections 4.8 and 4.10).
            self.w_max = cwnd;
            self.k = 0.0;
        } else {
            self.k = cube_root((self.w_max - cwnd) / mss / C);
        }
    }

    /// W_cubic(t), in bytes.
    fn at(&self, t: f64, mss: f64) -> f64 {
        let d = t - self.k;
        C * d * d * d * mss + self.w_max
    }
}

impl Controller for Cubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64) {
        if in_flight <= bytes {
            self.hold(now);
        }
        self.core.on_sent(bytes, in_flight);
    }

    fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) {
        match self.core.on_ack(now, ack, rtt) {
            Growth::Avoid(bytes) => {
                self.avoid(now, bytes, rtt.smoothed());
                self.last_ack = Some(now);
            }
            Growth::None => self.hold(now),
            Growth::Done => self.last_ack = Some(now),
        }
    }

    fn on_loss(&mut self, now: Instant, newest_lost_sent: Instant, lost_bytes: u64, in_flight: u64) {
        let (curve, window) = self.reduced();
        if self.core.on_loss(now, newest_lost_sent, lost_bytes, in_flight, window, self.curve) {
            self.curve = curve;
            self.fraction = 0.0;
        }
    }

    fn on_rto(&mut self, now: Instant, in_flight: u64) {
        let (curve, window) = self.reduced();
        if self.core.on_rto(now, in_flight, window, self.curve) {
            self.curve.cwnd_prior = curve.cwnd_prior;
        }
        // Section 4.8: the next stage begins flat, at whatever window slow start ends with.
        self.curve = Curve { cwnd_prior: self.curve.cwnd_prior, ..Curve::default() };
        self.fraction = 0.0;
    }

    fn on_spurious_bytes(&mut self, bytes: u64) {
        if let Some(curve) = self.core.on_spurious_bytes(bytes) {
            self.curve = curve;
        }
    }

    fn on_spurious_loss(&mut self) {
        if let Some(curve) = self.core.undo() {
            self.curve = curve;
        }
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

/// The cube root of a number that is not negative, by Newton's method from above.
fn cube_root(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // x + 1 is above the root of x. At first each step takes off a third, then the error is squared.
    let mut root = x + 1.0;
    for _ in 0..MAX_NEWTON_STEPS {
        let next = (2.0 * root + x / (root * root)) / 3.0;
        if next >= root {
            break;
        }
        root = next;
    }
    root
}

// RFC 9438 sections 4.1 and 4.6
const C: f64 = 0.4;
const BETA: f64 = 0.7;
/// Section 4.3: what makes NewReno with a reduction by [`BETA`] as fast as with one by a half.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// Enough for the largest window there can be: 1.5^100 > 2^58.
const MAX_NEWTON_STEPS: u32 = 128;

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test needs a clock to begin with
mod tests {
    use super::*;

    #[test]
    fn cube_root_is_exact_to_twelve_digits() {
        for x in [1e-9, 0.001, 0.5, 1.0, 2.0, 27.0, 1e3, 12345.678, 1e9, 1e15] {
            let root = cube_root(x);
            assert!((root * root * root - x).abs() <= x * 1e-12, "{x}: {root}");
        }
        assert_eq!(cube_root(0.0), 0.0);
        assert_eq!(cube_root(-1.0), 0.0);
    }

    #[test]
    fn fast_convergence_lowers_the_aim_of_a_shrinking_window_only() {
        let mut cubic = Cubic::new(1000, 100_000, 1 << 30);
        let now = Instant::now();
        let later = |s| now + Duration::from_secs(s);
        cubic.on_loss(later(1), now, 1000, 99_000);
        assert_eq!((cubic.curve.w_max, cubic.window()), (100_000.0, 70_000));
        cubic.on_loss(later(3), later(2), 1000, 69_000);
        assert!((cubic.curve.w_max - 70_000.0 * 0.85).abs() < 1e-6);
        assert_eq!((cubic.curve.cwnd_prior, cubic.window()), (70_000.0, 49_000));
    }

    #[test]
    fn the_curve_is_at_w_max_after_k_seconds_and_begins_at_the_reduced_window() {
        let mut curve = Curve { w_max: 100_000.0, ..Curve::default() };
        curve.begin(70_000.0, 1000.0);
        assert!((curve.k - cube_root(75.0)).abs() < 1e-9);
        assert!((curve.at(0.0, 1000.0) - 70_000.0).abs() < 1e-6);
        assert!((curve.at(curve.k, 1000.0) - 100_000.0).abs() < 1e-6);
        assert!(curve.at(curve.k + 2.0, 1000.0) > 100_000.0);
    }
}
