//! What a simulated link does to datagrams.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// Properties of one direction of a link. Probabilities are per datagram, 0 to 1.
#[derive(Debug, Clone)]
pub struct Link {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much is added to the delay, evenly distributed: more than the gap between datagrams reorders them.
    pub jitter: Duration,
    /// Lost.
    pub loss: f64,
    /// Delivered twice.
    pub duplicate: f64,
    /// Delivered with some bytes changed, or cut short.
    pub corrupt: f64,
    /// Held back by up to four delays.
    pub reorder: f64,
    /// Longer datagrams vanish.
    pub mtu: usize,
    /// Bytes per second; `None` is unlimited.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate before more are dropped.
    pub queue: usize,
    /// Nothing passes.
    pub down: bool,
}

impl Default for Link {
    /// 10 ms one way, nothing else.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            mtu: 65_507,
            rate: None,
            queue: 256 * 1024,
            down: false,
        }
    }
}

/// When the bottleneck of one direction is free again.
#[derive(Debug, Default)]
pub(crate) struct Bottleneck {
    free_at: Option<Instant>,
}

/// One arrival of a datagram at the far end.
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) bytes: Vec<u8>,
}

impl Link {
    /// What arrives, and when, of a datagram sent now.
    pub(crate) fn carry(
        &self,
        now: Instant,
        bytes: &[u8],
        bottleneck: &mut Bottleneck,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Arrival> {
        if self.down || bytes.len() > self.mtu {
            return Vec::new();
        }
        let mut leaves = now;
        if let Some(rate) = self.rate {
            let free = bottleneck.free_at.unwrap_or(now).max(now);
            let backlog = free.duration_since(now).as_secs_f64() * rate as f64;
            if backlog > self.queue as f64 {
                return Vec::new();
            }
            leaves = free + Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
            bottleneck.free_at = Some(leaves);
        }
        if chance(rng, self.loss) {
            return Vec::new();
        }
        let copies = if chance(rng, self.duplicate) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let mut at = leaves + self.delay + self.jitter.mul_f64(fraction(rng));
                if chance(rng, self.reorder) {
                    at += self.delay.mul_f64(4.0 * fraction(rng));
                }
                let mut bytes = bytes.to_vec();
                if chance(rng, self.corrupt) {
                    damage(&mut bytes, rng);
                }
                Arrival { at, bytes }
            })
            .collect()
    }
}

fn damage(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        return;
    }
    if chance(rng, 0.2) {
        let keep = rng.next_u32() as usize % bytes.len();
        bytes.truncate(keep);
        return;
    }
    for _ in 0..=rng.next_u32() % 4 {
        let at = rng.next_u32() as usize % bytes.len();
        bytes[at] ^= 1 << (rng.next_u32() % 8);
    }
}

pub(crate) fn fraction(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

pub(crate) fn chance(rng: &mut ChaCha8Rng, p: f64) -> bool {
    p > 0.0 && fraction(rng) < p
}
