//! One direction of an emulated link: what happens to a packet, decided without any clock or socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// Bytes of IPv4 and UDP headers: sizes, rates and MTU count whole IP packets.
pub(crate) const IP_OVERHEAD: usize = 28;

/// Packets that may be under way at once; more are dropped as if the queue were full.
const MAX_IN_FLIGHT: usize = 65_536;

/// Packets hit by a fault: a share of all, in bursts.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Bursts {
    /// Share of all packets, in percent.
    pub(crate) percent: u8,
    /// A burst has 1 to this many packets in a row, each length as likely as any other. At least one packet
    /// passes between two bursts.
    pub(crate) longest: u8,
}

/// What one direction does to packets.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Impairment {
    /// One way, without queueing.
    pub(crate) delay_ms: u32,
    /// Bits of IP packets per second; none = no limit.
    pub(crate) rate_bps: Option<u64>,
    /// Packets that may wait for the link.
    pub(crate) queue: usize,
    /// Longest IP packet; longer ones vanish.
    pub(crate) mtu: usize,
    /// From this many milliseconds on another MTU.
    pub(crate) mtu_later: Option<(u32, usize)>,
    /// Packets that vanish.
    pub(crate) loss: Option<Bursts>,
    /// Packets of which one byte is changed.
    pub(crate) corruption: Option<Bursts>,
    /// The link works this many milliseconds, then is dead for that many, and so on.
    pub(crate) blackhole: Option<(u32, u32)>,
}

impl Impairment {
    /// The link of the QUIC interop runner: 10 Mbit/s, 15 ms one way, 25 packets of queue, Ethernet MTU.
    pub(crate) const LINK: Self = Self {
        delay_ms: 15,
        rate_bps: Some(10_000_000),
        queue: 25,
        mtu: 1500,
        mtu_later: None,
        loss: None,
        corruption: None,
        blackhole: None,
    };

    /// As loopback: no delay, no limit.
    pub(crate) const NONE: Self =
        Self { delay_ms: 0, rate_bps: None, queue: MAX_IN_FLIGHT, mtu: 65_535, ..Self::LINK };

    /// 25 ms one way and this loss. A full segment of the reference just fits: it would else arrive in fragments, which
    /// are not emulated.
    pub(crate) fn far_losing(percent: u8) -> Self {
        let loss = Some(Bursts { percent, longest: 1 });
        Self { delay_ms: 25, mtu: 4_200, loss, ..Self::NONE }
    }

    /// The same with loss.
    pub(crate) fn losing(percent: u8, longest: u8) -> Self {
        Self { loss: Some(Bursts { percent, longest }), ..Self::LINK }
    }

    /// The same with corruption.
    pub(crate) fn corrupting(percent: u8, longest: u8) -> Self {
        Self { corruption: Some(Bursts { percent, longest }), ..Self::LINK }
    }
}

/// Why a packet did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    Loss,
    Queue,
    TooLarge,
    Blackhole,
}

/// What a link did so far.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) offered: u64,
    pub(crate) delivered: u64,
    /// UDP payload bytes of the delivered.
    pub(crate) delivered_bytes: u64,
    pub(crate) lost: u64,
    pub(crate) longest_loss: u64,
    pub(crate) queue_full: u64,
    pub(crate) too_large: u64,
    pub(crate) blackholed: u64,
    /// Dead times of the link in which at least one packet vanished.
    pub(crate) blackholes_felt: u64,
    pub(crate) corrupted: u64,
    /// Largest UDP payload delivered before and after the MTU changed.
    pub(crate) largest_before: usize,
    pub(crate) largest_after: usize,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Link {
    config: Impairment,
    rng: ChaCha8Rng,
    loss: BurstState,
    corruption: BurstState,
    /// When the packets that wait for the link will have left it.
    departures: VecDeque<Instant>,
    /// Number of the dead time in which the last packet vanished.
    last_blackhole: Option<u64>,
    lost_in_a_row: u64,
    pub(crate) counts: Counts,
}

impl Link {
    pub(crate) fn new(config: Impairment, seed: u64) -> Self {
        Self {
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
            loss: BurstState::new(config.loss),
            corruption: BurstState::new(config.corruption),
            departures: VecDeque::new(),
            last_blackhole: None,
            lost_in_a_row: 0,
            counts: Counts::default(),
        }
    }

    /// Takes a packet, `age` after the link's first. `overhead` is added to its length to get that of the IP
    /// packet; it is negative where the payload itself wraps another packet. Gives the time of its arrival.
    pub(crate) fn offer(
        &mut self,
        now: Instant,
        age: Duration,
        packet: &mut [u8],
        overhead: isize,
    ) -> Result<Instant, Dropped> {
        self.counts.offered += 1;
        let outcome = self.decide(now, age, packet, overhead);
        match outcome {
            Ok(_) => {
                self.counts.delivered += 1;
                self.counts.delivered_bytes += packet.len() as u64;
                let changed = self.config.mtu_later.is_some_and(|(at, _)| millis(age) >= u64::from(at));
                let largest =
                    if changed { &mut self.counts.largest_after } else { &mut self.counts.largest_before };
                *largest = packet.len().max(*largest);
            }
            Err(Dropped::Loss) => self.counts.lost += 1,
            Err(Dropped::Queue) => self.counts.queue_full += 1,
            Err(Dropped::TooLarge) => self.counts.too_large += 1,
            Err(Dropped::Blackhole) => self.counts.blackholed += 1,
        }
        outcome
    }

    fn decide(
        &mut self,
        now: Instant,
        age: Duration,
        packet: &mut [u8],
        overhead: isize,
    ) -> Result<Instant, Dropped> {
        let size = packet.len().saturating_add_signed(overhead);
        if size > self.mtu(age) {
            return Err(Dropped::TooLarge);
        }
        if let Some(number) = self.dead_time(age) {
            if self.last_blackhole != Some(number) {
                self.last_blackhole = Some(number);
                self.counts.blackholes_felt += 1;
            }
            return Err(Dropped::Blackhole);
        }
        if self.loss.hits(&mut self.rng) {
            self.lost_in_a_row += 1;
            self.counts.longest_loss = self.counts.longest_loss.max(self.lost_in_a_row);
            return Err(Dropped::Loss);
        }
        self.lost_in_a_row = 0;
        while self.departures.front().is_some_and(|at| *at <= now) {
            self.departures.pop_front();
        }
        // The first in the list is on the link, the others wait.
        let waiting = self.departures.len().saturating_sub(1);
        if self.departures.len() >= MAX_IN_FLIGHT
            || (self.config.rate_bps.is_some() && waiting >= self.config.queue)
        {
            return Err(Dropped::Queue);
        }
        if self.corruption.hits(&mut self.rng) && !packet.is_empty() {
            let at = self.rng.next_u32() as usize % packet.len();
            packet[at] ^= 1 + (self.rng.next_u32() % 255) as u8;
            self.counts.corrupted += 1;
        }
        let delay = Duration::from_millis(u64::from(self.config.delay_ms));
        let Some(rate) = self.config.rate_bps else { return Ok(now + delay) };
        let begin = self.departures.back().copied().unwrap_or(now).max(now);
        let leaves = begin + Duration::from_nanos(size as u64 * 8 * 1_000_000_000 / rate.max(1));
        self.departures.push_back(leaves);
        Ok(leaves + delay)
    }

    fn mtu(&self, age: Duration) -> usize {
        match self.config.mtu_later {
            Some((at, mtu)) if millis(age) >= u64::from(at) => mtu,
            _ => self.config.mtu,
        }
    }

    /// The number of the dead time that lasts now.
    fn dead_time(&self, age: Duration) -> Option<u64> {
        let (on, off) = self.config.blackhole?;
        let period = u64::from(on) + u64::from(off);
        (millis(age) % period >= u64::from(on)).then(|| millis(age) / period)
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Where a sequence of bursts stands.
#[derive(Debug)]
struct BurstState {
    config: Option<Bursts>,
    left: u32,
    /// A burst has just ended: the next packet passes.
    rests: bool,
}

impl BurstState {
    fn new(config: Option<Bursts>) -> Self {
        Self { config, left: 0, rests: false }
    }

    fn hits(&mut self, rng: &mut ChaCha8Rng) -> bool {
        let Some(Bursts { percent, longest }) = self.config else { return false };
        if std::mem::take(&mut self.rests) {
            return false;
        }
        if self.left == 0 {
            // With mean length m and chance p to begin, m·p of m·p + 1 packets are hit.
            let share = f64::from(percent) / 100.0;
            let mean = (1.0 + f64::from(longest)) / 2.0;
            let begin = share / (mean * (1.0 - share)).max(f64::EPSILON);
            if f64::from(rng.next_u32()) / f64::from(u32::MAX) >= begin {
                return false;
            }
            self.left = 1 + rng.next_u32() % u32::from(longest.max(1));
        }
        self.left -= 1;
        self.rests = self.left == 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAR: Impairment =
        Impairment { delay_ms: 10, rate_bps: None, queue: 25, mtu: 1500, ..Impairment::LINK };

    fn fates(config: Impairment, seed: u64, count: usize) -> (Vec<bool>, Link) {
        let mut link = Link::new(config, seed);
        let now = Instant::now();
        let fates = (0..count).map(|_| link.offer(now, Duration::ZERO, &mut [7; 100], 28).is_ok()).collect();
        (fates, link)
    }

    #[test]
    fn the_loss_has_its_rate_and_its_bursts_and_follows_the_seed() {
        for (percent, longest) in [(30, 3), (2, 3), (10, 1)] {
            let config = Impairment { loss: Some(Bursts { percent, longest }), ..CLEAR };
            let (fates_1, link) = fates(config, 1, 100_000);
            let share = link.counts.lost as f64 / 1000.0;
            assert!((share - f64::from(percent)).abs() < f64::from(percent) * 0.1, "{share} of {percent}");
            assert_eq!(link.counts.longest_loss, u64::from(longest));
            let runs = fates_1.split(|passed| *passed).map(<[bool]>::len).filter(|len| *len > 0);
            let of_one = runs.filter(|len| *len == 1).count();
            let bursts = link.counts.lost as f64 / ((1.0 + f64::from(longest)) / 2.0);
            let expected = bursts / f64::from(longest);
            assert!((of_one as f64 - expected).abs() < expected * 0.2, "{of_one} of {expected}");
            assert_eq!(fates(config, 1, 1000).0, fates_1[..1000], "same seed");
            assert_ne!(fates(config, 2, 1000).0, fates_1[..1000], "other seed");
        }
    }

    #[test]
    fn corruption_changes_one_byte_and_loses_nothing() {
        let mut link =
            Link::new(Impairment { corruption: Some(Bursts { percent: 30, longest: 3 }), ..CLEAR }, 3);
        let now = Instant::now();
        let mut changed = 0;
        for _ in 0..10_000 {
            let mut packet = [7; 50];
            assert!(link.offer(now, Duration::ZERO, &mut packet, 28).is_ok());
            let differing = packet.iter().filter(|byte| **byte != 7).count();
            assert!(differing <= 1);
            changed += differing;
        }
        assert_eq!(changed as u64, link.counts.corrupted);
        assert!((2700..3300).contains(&changed), "{changed}");
    }

    #[test]
    fn the_rate_spaces_packets_and_the_queue_is_bounded() {
        let config = Impairment { rate_bps: Some(10_000_000), ..CLEAR };
        let mut link = Link::new(config, 1);
        let now = Instant::now();
        let mut packet = [0; 1222]; // 1,250 bytes of IP: 1 ms
        let arrivals: Vec<_> =
            (0..40).filter_map(|_| link.offer(now, Duration::ZERO, &mut packet, 28).ok()).collect();
        assert_eq!(arrivals.len(), 26, "one on the link and 25 waiting");
        assert_eq!(link.counts.queue_full, 14);
        for (n, at) in arrivals.iter().enumerate() {
            assert_eq!(*at - now, Duration::from_millis(10 + n as u64 + 1));
        }
        let later = now + Duration::from_millis(2);
        assert!(link.offer(later, Duration::ZERO, &mut packet, 28).is_ok(), "two have left");
    }

    #[test]
    fn mtu_and_dead_times_follow_the_clock() {
        let config = Impairment { mtu_later: Some((1000, 1280)), blackhole: Some((5000, 2000)), ..CLEAR };
        let mut link = Link::new(config, 1);
        let now = Instant::now();
        let mut offer = |ms, len: usize| {
            let mut packet = vec![0; len];
            link.offer(now, Duration::from_millis(ms), &mut packet, 28).err()
        };
        assert_eq!(offer(0, 1472), None);
        assert_eq!(offer(0, 1473), Some(Dropped::TooLarge));
        assert_eq!(offer(1000, 1253), Some(Dropped::TooLarge));
        assert_eq!(offer(4999, 1252), None);
        assert_eq!(offer(5000, 10), Some(Dropped::Blackhole));
        assert_eq!(offer(6999, 10), Some(Dropped::Blackhole));
        assert_eq!(offer(7000, 10), None);
        assert_eq!(offer(12_000, 10), Some(Dropped::Blackhole));
        let counts = link.counts;
        assert_eq!((counts.largest_before, counts.largest_after, counts.blackholes_felt), (1472, 1252, 2));
    }
}
