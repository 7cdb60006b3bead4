//! Round-trip time: smoothing, variance, minimum, and the timeouts that follow from them.
//!
//! Normative text: `spec/recovery.md` section 2 (RFC 6298 with the draft's granularity and clamps) and
//! section 4.4 (probe timeout, RFC 8985 section 7.2).

use std::time::Duration;

/// Smoothed round-trip time of one path or connection (RFC 6298).
///
/// Samples come from segments that were sent once only (Karn's rule); the
/// [`Scoreboard`](crate::scoreboard::Scoreboard) sees to that.
#[derive(Debug, Clone)]
pub struct RttEstimator {
    /// Stands in for the smoothed value until the first sample.
    initial: Duration,
    latest: Duration,
    smoothed: Option<Duration>,
    variance: Duration,
    min: Duration,
}

/// Bounds of the retransmission timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtoClamp {
    /// Used until there is a sample (RFC 6298 rule 2.1).
    pub initial: Duration,
    /// Lower bound (draft-01: 200 ms; RFC 6298 asks for 1 s, see `spec/recovery.md` R2.5).
    pub min: Duration,
    /// Upper bound (draft-01: 10 s).
    pub max: Duration,
}

impl Default for RtoClamp {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            min: Duration::from_millis(200),
            max: Duration::from_secs(10),
        }
    }
}

impl RttEstimator {
    /// `initial` is what [`smoothed`](Self::smoothed) answers before the first sample.
    pub fn new(initial: Duration) -> Self {
        Self {
            initial: initial.min(MAX_SAMPLE),
            latest: Duration::ZERO,
            smoothed: None,
            variance: Duration::ZERO,
            min: Duration::ZERO,
        }
    }

    /// Takes one measurement. Values above one hour are taken as one hour.
    pub fn update(&mut self, sample: Duration) {
        let sample = sample.min(MAX_SAMPLE);
        self.latest = sample;
        match self.smoothed {
            // RFC 6298 (2.2)
            None => {
                self.min = sample;
                self.variance = sample / 2;
                self.smoothed = Some(sample);
            }
            // RFC 6298 (2.3): variance first, with the old mean; alpha = 1/8, beta = 1/4.
            Some(smoothed) => {
                self.min = self.min.min(sample);
                self.variance = (self.variance * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// The last sample; zero before the first.
    pub fn latest(&self) -> Duration {
        self.latest
    }

    /// The smoothed round-trip time, or the initial guess before the first sample.
    pub fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(self.initial)
    }

    /// The smoothed mean deviation; zero before the first sample.
    pub fn variance(&self) -> Duration {
        self.variance
    }

    /// The lowest sample since the estimator was made; zero before the first.
    pub fn min(&self) -> Duration {
        self.min
    }

    /// Whether there was a sample.
    pub fn has_sample(&self) -> bool {
        self.smoothed.is_some()
    }

    /// The retransmission timeout without back-off: `SRTT + max(G, 4 * RTTVAR)`, clamped.
    pub fn rto(&self, clamp: &RtoClamp) -> Duration {
        let raw = match self.smoothed {
            // RFC 6298 (2.3), with G = 10 ms from the draft.
            Some(smoothed) => smoothed + (self.variance * 4).max(GRANULARITY),
            None => clamp.initial,
        };
        // Not `Duration::clamp`: that panics when a caller sets min above max.
        raw.max(clamp.min).min(clamp.max)
    }

    /// The probe timeout of RFC 8985 section 7.2: `2 * SRTT`, plus `max_ack_delay` because the peer may
    /// hold back the acknowledgement of a lone segment. Pass zero when more than one segment is in flight.
    ///
    /// Without a sample it is one second. Never below the timer granularity of 10 ms, so that a path of
    /// some microseconds does not make probes out of scheduling noise.
    pub fn pto(&self, max_ack_delay: Duration) -> Duration {
        match self.smoothed {
            Some(smoothed) => (smoothed * 2).max(GRANULARITY).saturating_add(max_ack_delay),
            None => INITIAL_PTO,
        }
    }
}

/// G of RFC 6298, as the draft sets it.
pub const GRANULARITY: Duration = Duration::from_millis(10);
/// RFC 8985 section 7.2: PTO without a round-trip sample.
const INITIAL_PTO: Duration = Duration::from_secs(1);
/// Keeps every sum and product below far from overflow, also for delay-tolerant links.
const MAX_SAMPLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn first_sample_sets_mean_and_half_of_it_as_variance() {
        let mut rtt = RttEstimator::new(ms(333));
        assert_eq!((rtt.smoothed(), rtt.has_sample()), (ms(333), false));
        rtt.update(ms(100));
        assert_eq!(
            (rtt.smoothed(), rtt.variance(), rtt.min(), rtt.latest()),
            (ms(100), ms(50), ms(100), ms(100))
        );
    }

    #[test]
    fn later_samples_are_weighted_as_in_rfc_6298() {
        let mut rtt = RttEstimator::new(ms(333));
        rtt.update(ms(100));
        rtt.update(ms(180));
        // RTTVAR = 3/4 * 50 + 1/4 * 80; SRTT = 7/8 * 100 + 1/8 * 180
        assert_eq!(rtt.variance(), Duration::from_micros(57_500));
        assert_eq!(rtt.smoothed(), ms(110));
        assert_eq!(rtt.min(), ms(100));
        assert_eq!(rtt.rto(&RtoClamp::default()), ms(340));
    }

    #[test]
    fn rto_is_clamped_on_both_sides_and_starts_at_one_second() {
        let clamp = RtoClamp::default();
        let mut rtt = RttEstimator::new(ms(50));
        assert_eq!(rtt.rto(&clamp), ms(1000));
        rtt.update(Duration::from_micros(80));
        assert_eq!(rtt.rto(&clamp), ms(200));
        for _ in 0..100 {
            rtt.update(Duration::MAX);
        }
        assert_eq!(rtt.rto(&clamp), ms(10_000));
        assert_eq!(rtt.rto(&RtoClamp { initial: ms(1), min: ms(5), max: ms(2) }), ms(2));
    }

    #[test]
    fn rto_keeps_the_granularity_when_the_variance_is_gone() {
        let mut rtt = RttEstimator::new(ms(50));
        for _ in 0..500 {
            rtt.update(ms(400));
        }
        let rto = rtt.rto(&RtoClamp::default());
        assert!(rto >= ms(409) && rto <= ms(411), "{rto:?}");
    }

    #[test]
    fn probe_timeout_is_two_round_trips_and_waits_for_a_delayed_ack() {
        let mut rtt = RttEstimator::new(ms(50));
        assert_eq!(rtt.pto(Duration::ZERO), ms(1000));
        rtt.update(ms(100));
        assert_eq!(rtt.pto(Duration::ZERO), ms(200));
        assert_eq!(rtt.pto(ms(40)), ms(240));
        let mut local = RttEstimator::new(ms(50));
        local.update(Duration::from_micros(20));
        assert_eq!(local.pto(Duration::ZERO), GRANULARITY);
    }

    proptest! {
        #[test]
        fn mean_stays_between_the_extremes(samples in prop::collection::vec(0u64..10_000_000, 1..200)) {
            let mut rtt = RttEstimator::new(ms(333));
            for &s in &samples {
                rtt.update(Duration::from_micros(s));
            }
            let low = Duration::from_micros(*samples.iter().min().unwrap());
            let high = Duration::from_micros(*samples.iter().max().unwrap());
            prop_assert_eq!(rtt.min(), low);
            // Each step of the integer mean rounds down by less than a nanosecond.
            prop_assert!(rtt.smoothed() + Duration::from_nanos(samples.len() as u64) >= low);
            prop_assert!(rtt.smoothed() <= high);
            let clamp = RtoClamp::default();
            prop_assert!(rtt.rto(&clamp) >= clamp.min && rtt.rto(&clamp) <= clamp.max);
        }
    }
}
