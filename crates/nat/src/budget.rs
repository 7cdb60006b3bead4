//! Token buckets: one, and a fixed table of them indexed by source prefix.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A limit: on average `per_second`, at once up to `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units (messages or bytes) per second. 0 allows the burst once and then nothing.
    pub per_second: u64,
    /// Units that may come at once after a pause.
    pub burst: u64,
}

/// How much of a [`Rate`] is left. Starts full.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TokenBucket {
    /// Units used up and not yet earned back: 0 is a full bucket.
    used: u64,
    /// Up to when the earning has been counted. `None` while nothing has ever been taken.
    counted: Option<Instant>,
}

impl TokenBucket {
    /// Whether `amount` can be taken now.
    pub(crate) fn has(&mut self, now: Instant, rate: Rate, amount: u64) -> bool {
        self.earn(now, rate);
        self.used.saturating_add(amount) <= rate.burst
    }

    /// Takes `amount` if it is there.
    pub(crate) fn take(&mut self, now: Instant, rate: Rate, amount: u64) -> bool {
        let has = self.has(now, rate, amount);
        if has {
            self.used += amount;
        }
        has
    }

    /// Takes `amount`, of which [`has`](Self::has) said that it is there.
    pub(crate) fn charge(&mut self, amount: u64) {
        self.used = self.used.saturating_add(amount);
    }

    fn earn(&mut self, now: Instant, rate: Rate) {
        let counted = *self.counted.get_or_insert(now);
        let elapsed = now.saturating_duration_since(counted).as_nanos();
        // Most calls come so soon after another that nothing is earned yet: they need no division.
        if let Ok(elapsed) = u64::try_from(elapsed)
            && elapsed.checked_mul(rate.per_second).is_some_and(|earned| u128::from(earned) < NANOS)
            && self.used > 0
        {
            return;
        }
        let earned = elapsed.saturating_mul(u128::from(rate.per_second)) / NANOS;
        if earned >= u128::from(self.used) {
            self.used = 0;
            self.counted = Some(now.max(counted));
        } else if earned > 0 {
            self.used -= earned as u64;
            // Only the time that whole units took, so that frequent calls do not lose the fractions.
            let spent = Duration::from_nanos((earned * NANOS / u128::from(rate.per_second)) as u64);
            self.counted = counted.checked_add(spent).or(Some(now));
        }
    }
}

const NANOS: u128 = 1_000_000_000;

/// A bucket per source prefix: IPv4 /32, IPv6 /64, which is what one subscriber usually holds.
///
/// The table has a fixed size and is indexed by a seeded hash, so a flood from many forged sources takes
/// no memory and evicts nobody. Prefixes that fall on one slot share its budget; without the seed nobody
/// can choose which.
#[derive(Debug)]
pub(crate) struct PrefixBuckets {
    seed: u64,
    slots: Box<[TokenBucket]>,
}

impl PrefixBuckets {
    /// Slots of the table: 24 bytes each, 384 KiB.
    pub(crate) const SLOTS: usize = 1 << 14;

    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, slots: vec![TokenBucket::default(); Self::SLOTS].into_boxed_slice() }
    }

    /// The slot of a source; below [`SLOTS`](Self::SLOTS).
    pub(crate) fn slot(&self, source: SocketAddr) -> usize {
        let prefix = match source.ip().to_canonical() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)) | 1 << 63,
            IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
        };
        (mix(mix(prefix ^ self.seed).wrapping_add(self.seed)) % Self::SLOTS as u64) as usize
    }

    pub(crate) fn take(&mut self, now: Instant, rate: Rate, source: SocketAddr) -> bool {
        let slot = self.slot(source);
        self.slots[slot].take(now, rate, 1)
    }

    /// The bucket of a slot.
    pub(crate) fn bucket(&mut self, slot: usize) -> &mut TokenBucket {
        &mut self.slots[slot % Self::SLOTS]
    }
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock_start;

    const RATE: Rate = Rate { per_second: 5, burst: 10 };

    #[test]
    fn starts_full_and_earns_back_at_the_rate() {
        let start = clock_start();
        let mut bucket = TokenBucket::default();
        assert!(bucket.take(start, RATE, 10) && !bucket.take(start, RATE, 1));
        assert!(!bucket.take(start + Duration::from_millis(199), RATE, 1));
        assert!(bucket.take(start + Duration::from_millis(200), RATE, 1));
        assert!(bucket.take(start + Duration::from_secs(60), RATE, 10));
        assert!(!bucket.take(start + Duration::from_secs(60), RATE, 1));
        assert!(!bucket.has(start + Duration::from_secs(90), RATE, 11));
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing() {
        let start = clock_start() + Duration::from_secs(100);
        let mut bucket = TokenBucket::default();
        assert!(bucket.take(start, RATE, 10));
        assert!(!bucket.take(start - Duration::from_secs(50), RATE, 1));
        assert!(!bucket.take(start, RATE, 1));
    }

    #[test]
    fn one_noisy_prefix_does_not_use_up_another() {
        let now = clock_start();
        let mut buckets = PrefixBuckets::new(7);
        let noisy = "198.51.100.1:1".parse().unwrap();
        assert_eq!((0..1000).filter(|_| buckets.take(now, RATE, noisy)).count(), 10);
        assert!(buckets.take(now, RATE, "198.51.100.2:1".parse().unwrap()));
        // Another port or another address of the same /64 is the same source.
        let [a, b] = ["[2001:db8::1]:1", "[2001:db8::ffff]:9"].map(|s| buckets.slot(s.parse().unwrap()));
        assert_eq!(a, b);
        assert_eq!(buckets.slot(noisy), buckets.slot("[::ffff:198.51.100.1]:7".parse().unwrap()));
    }

    proptest! {
        /// However the calls are spaced, no more than burst + rate × time gets through, and a patient
        /// caller gets at least the rate.
        #[test]
        fn never_more_than_the_rate(steps in prop::collection::vec((0..400u64, 1..4u64), 1..200)) {
            let start = clock_start();
            let mut bucket = TokenBucket::default();
            let (mut now, mut taken) = (start, 0);
            for (millis, amount) in steps {
                now += Duration::from_millis(millis);
                if bucket.take(now, RATE, amount) {
                    taken += amount;
                }
                let elapsed = (now - start).as_millis() as u64;
                prop_assert!(taken <= RATE.burst + elapsed * RATE.per_second / 1000);
            }
            prop_assert!(bucket.take(now + Duration::from_secs(2), RATE, RATE.burst));
        }
    }
}
