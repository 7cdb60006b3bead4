//! Spreads what a path sends over its round trip: a token bucket that releases whole batches.
//!
//! Normative text: `spec/recovery.md` section 7.

use std::time::{Duration, Instant};

/// Token bucket of one path, kept as the time at which the bucket will be full again (the "generic cell rate
/// algorithm"): nothing to update while nothing is sent.
#[derive(Debug, Clone)]
pub struct Pacer {
    mss: u64,
    /// `None` while the bucket is full.
    full_at: Option<Instant>,
    /// The rate of the last [`allow`](Self::allow), bytes per second.
    rate: Option<u64>,
}

impl Pacer {
    /// A full bucket for segments of `mss` bytes.
    pub fn new(mss: u64) -> Self {
        Self { mss: mss.max(1), full_at: None, rate: None }
    }

    /// The segment size of the path changed.
    pub fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
    }

    /// Whether `bytes` may be sent now at `rate` bytes per second; if not, when. Without a rate everything may be sent.
    /// Any number of bytes may be sent when the bucket is full.
    pub fn allow(&mut self, now: Instant, bytes: u64, rate: Option<u64>) -> Result<(), Instant> {
        self.rate = rate;
        let Some(rate) = rate else { return Ok(()) };
        let debt = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if debt.is_zero() {
            return Ok(());
        }
        // The debt at which these bytes are covered.
        let credit = time_of(self.burst(rate).saturating_sub(bytes), rate);
        if debt <= credit { Ok(()) } else { Err(now.checked_add(debt - credit).unwrap_or(now)) }
    }

    /// `bytes` were sent.
    pub fn on_sent(&mut self, now: Instant, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let from = self.full_at.map_or(now, |at| at.max(now));
        // What is sent again does not wait for us, but counts: at a slow pace a flight of it would be a debt of minutes.
        let most = now.checked_add(LONGEST);
        self.full_at = from.checked_add(time_of(bytes, rate)).min(most);
    }

    /// R7.2: the size of the bucket, in bytes: four segments, or 1.5 ms at the given rate (the resolution of
    /// a timer), or what 5 ms bring up to one 64 KiB GSO batch. On a slow path such a batch would be a queue's worth
    /// at once, so there it does not count.
    pub fn burst(&self, rate: u64) -> u64 {
        let tick = rate / 2000 * 3;
        let batch = (rate / 200).min(GSO_BATCH);
        (4 * self.mss).max(tick).max(batch)
    }
}

/// How long `bytes` take at `rate` bytes per second; at most [`LONGEST`].
fn time_of(bytes: u64, rate: u64) -> Duration {
    // Saturates at 18 GB, which nobody sends at once.
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1)).min(LONGEST)
}

/// What one GSO call sends.
const GSO_BATCH: u64 = 64 << 10;
/// No pace is so slow that it may stop a path for longer than this.
const LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test needs a clock to begin with
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_rate_nothing_is_held_back() {
        let mut pacer = Pacer::new(1200);
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(pacer.allow(now, 65_536, None), Ok(()));
            pacer.on_sent(now, 65_536);
        }
    }

    #[test]
    fn a_fast_path_releases_whole_batches() {
        let mut pacer = Pacer::new(1452);
        let now = Instant::now();
        let rate = Some(125_000_000); // 1 Gbit/s: 1.5 ms are 187,500 bytes
        assert_eq!(pacer.burst(125_000_000), 187_500);
        for _ in 0..2 {
            assert_eq!(pacer.allow(now, 65_536, rate), Ok(()));
            pacer.on_sent(now, 65_536);
        }
        let at = pacer.allow(now, 65_536, rate).unwrap_err();
        // 196,608 - 187,500 bytes are missing.
        assert_eq!(at - now, Duration::from_nanos(72_864));
        assert_eq!(pacer.allow(at, 65_536, rate), Ok(()));
    }

    #[test]
    fn a_slow_path_sends_no_more_than_some_segments_at_once() {
        let mut pacer = Pacer::new(1200);
        let now = Instant::now();
        let rate = Some(1_250_000); // 10 Mbit/s
        let mut sent = 0;
        while pacer.allow(now, 1200, rate).is_ok() {
            pacer.on_sent(now, 1200);
            sent += 1200;
        }
        // 5 ms bring 6,250 bytes.
        assert_eq!(sent, 6_000);
    }

    #[test]
    fn an_absurdly_low_rate_stops_a_path_for_a_second_at_most() {
        let mut pacer = Pacer::new(1200);
        let now = Instant::now();
        assert_eq!(pacer.allow(now, 60_000, Some(1)), Ok(()));
        pacer.on_sent(now, 60_000);
        let at = pacer.allow(now, 60_000, Some(1)).unwrap_err();
        assert!(at - now <= LONGEST);
        assert_eq!(pacer.allow(at, 60_000, Some(1)), Ok(()));
    }

    #[test]
    fn what_was_sent_without_asking_is_forgiven_after_a_second() {
        let mut pacer = Pacer::new(1200);
        let now = Instant::now();
        for _ in 0..100 {
            let _ = pacer.allow(now, 1200, Some(1_000));
            pacer.on_sent(now, 1200);
        }
        let at = pacer.allow(now, 60_000, Some(1_000)).unwrap_err();
        assert!(at - now <= LONGEST, "{:?}", at - now);
    }

    proptest! {
        #[test]
        fn the_long_term_rate_is_kept(rate in 100_000u64..1_000_000_000, size in 1000u64..65_000, waits in prop::collection::vec(0u64..3_000_000, 50..200)) {
            let mut pacer = Pacer::new(1200);
            let begin = Instant::now();
            let mut now = begin;
            let mut sent = 0;
            for wait in waits {
                now += Duration::from_nanos(wait);
                while pacer.allow(now, size, Some(rate)).is_ok() {
                    pacer.on_sent(now, size);
                    sent += size;
                }
                let at = pacer.allow(now, size, Some(rate)).unwrap_err();
                prop_assert!(at > now);
                prop_assert!(pacer.allow(at, size, Some(rate)).is_ok());
            }
            let earned = (now - begin).as_nanos() * u128::from(rate) / 1_000_000_000;
            // Whole nanoseconds are counted per send: allow for a part in a thousand.
            let bound = earned + earned / 1000 + u128::from(pacer.burst(rate).max(size)) + 1;
            prop_assert!(u128::from(sent) <= bound, "{sent} > {bound}");
        }
    }
}
