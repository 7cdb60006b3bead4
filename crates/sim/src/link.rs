//! What a simulated link does to datagrams.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// Most datagrams that a held link keeps for later; more are lost, as in any queue.
const HELD_MAX: usize = 4_096;

/// Properties of one direction of a link. Probabilities are per datagram, 0 to 1.
#[derive(Debug, Clone)]
pub struct Link {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much is added to the delay, evenly distributed: more than the gap between datagrams reorders them.
    pub jitter: Duration,
    /// Lost, each datagram for itself.
    pub loss: f64,
    /// Lost in bursts, besides [`Link::loss`].
    pub bursts: Option<Bursts>,
    /// Delivered twice.
    pub duplicate: f64,
    /// Delivered with some bytes changed, or cut short.
    pub corrupt: f64,
    /// Delivered as the beginning of the datagram before and the end of this one.
    pub splice: f64,
    /// Held back by up to four delays.
    pub reorder: f64,
    /// Longer datagrams vanish.
    pub mtu: usize,
    /// Whether the sender is told of datagrams that are too long (as by ICMP) or not (a black hole).
    pub icmp: bool,
    /// Bytes per second; `None` is unlimited.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate before more are dropped.
    pub queue: usize,
    /// Nothing passes.
    pub down: bool,
    /// Clogged: what is sent before this time leaves at this time, all at once.
    pub held_until: Option<Instant>,
}

/// The loss model of Gilbert and Elliott: two states, good and bad, that datagrams see in turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Chance to go from good to bad, before each datagram.
    pub enter: f64,
    /// Chance to go from bad to good; its inverse is the mean burst length in datagrams.
    pub leave: f64,
    /// Loss in the bad state. In the good state nothing is lost.
    pub loss: f64,
}

impl Bursts {
    /// Bursts of `length` datagrams on average, all of which are lost, that make up `share` of all datagrams.
    #[must_use]
    pub fn new(share: f64, length: f64) -> Self {
        let leave = 1.0 / length.max(1.0);
        Self { enter: leave * share / (1.0 - share).max(1e-9), leave, loss: 1.0 }
    }
}

impl Default for Link {
    /// 10 ms one way, nothing else.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            duplicate: 0.0,
            corrupt: 0.0,
            splice: 0.0,
            reorder: 0.0,
            mtu: 65_507,
            icmp: false,
            rate: None,
            queue: 256 * 1024,
            down: false,
            held_until: None,
        }
    }
}

/// What one direction of a link remembers.
#[derive(Debug, Default)]
pub struct LinkState {
    /// When the bottleneck is free again.
    pub(crate) free_at: Option<Instant>,
    /// The rate at which that was reckoned.
    rate: Option<u64>,
    in_burst: bool,
    held: usize,
    before: Vec<u8>,
}

/// What became of a datagram on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Arrives (perhaps damaged, perhaps more than once).
    Passed,
    /// The link is down.
    Down,
    /// Longer than the MTU.
    TooBig,
    /// The queue is full.
    Queue,
    /// Lost at random.
    Lost,
    /// Lost in a burst.
    Burst,
}

/// One arrival of a datagram at the far end.
#[derive(Debug)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// What; differs from what was sent if it was damaged.
    pub bytes: Vec<u8>,
    /// Whether it was damaged.
    pub damaged: bool,
}

impl Link {
    /// What arrives, and when, of a datagram sent now, appended to `out`.
    pub fn carry(
        &self,
        now: Instant,
        bytes: &[u8],
        state: &mut LinkState,
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Arrival>,
    ) -> Fate {
        if self.down {
            return Fate::Down;
        }
        if bytes.len() > self.mtu {
            return Fate::TooBig;
        }
        let mut leaves = now;
        if let Some(until) = self.held_until.filter(|t| *t > now) {
            state.held += 1;
            if state.held > HELD_MAX {
                return Fate::Queue;
            }
            leaves = until;
        } else {
            state.held = 0;
        }
        if let Some(rate) = self.rate {
            match self.queue_up(leaves, bytes.len(), rate, state) {
                Some(at) => leaves = at,
                None => return Fate::Queue,
            }
        }
        if chance(rng, self.loss) {
            return Fate::Lost;
        }
        if let Some(bursts) = self.bursts {
            let turn = if state.in_burst { bursts.leave } else { bursts.enter };
            state.in_burst ^= chance(rng, turn);
            if state.in_burst && chance(rng, bursts.loss) {
                return Fate::Burst;
            }
        }
        let copies = if chance(rng, self.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = leaves + self.delay;
            if !self.jitter.is_zero() {
                at += self.jitter.mul_f64(fraction(rng));
            }
            if chance(rng, self.reorder) {
                at += self.delay.mul_f64(4.0 * fraction(rng));
            }
            let mut arrival = Arrival { at, bytes: bytes.to_vec(), damaged: false };
            if chance(rng, self.corrupt) {
                arrival.damaged = true;
                damage(&mut arrival.bytes, rng);
            }
            if chance(rng, self.splice) && !state.before.is_empty() {
                arrival.damaged = true;
                arrival.bytes = spliced(&state.before, bytes, rng);
            }
            out.push(arrival);
        }
        if self.splice > 0.0 {
            state.before.clear();
            state.before.extend_from_slice(bytes);
        }
        Fate::Passed
    }

    /// When the last of so many bytes is through the bottleneck; `None` if its queue is full.
    fn queue_up(&self, from: Instant, len: usize, rate: u64, state: &mut LinkState) -> Option<Instant> {
        let mut free = state.free_at.unwrap_or(from).max(from);
        if let Some(before) = state.rate.replace(rate).filter(|before| *before != rate) {
            // What waits leaves at the new rate.
            free = from + free.duration_since(from).mul_f64(before as f64 / rate as f64);
        }
        let backlog = free.duration_since(from).as_secs_f64() * rate as f64;
        if backlog > self.queue as f64 {
            return None;
        }
        let through = free + Duration::from_secs_f64(len as f64 / rate as f64);
        state.free_at = Some(through);
        Some(through)
    }
}

/// Flips one to four bits, or cuts the end off.
pub(crate) fn damage(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        return;
    }
    if chance(rng, 0.2) {
        let keep = below(rng, bytes.len());
        bytes.truncate(keep);
        return;
    }
    for _ in 0..=rng.next_u32() % 4 {
        let at = below(rng, bytes.len());
        bytes[at] ^= 1 << (rng.next_u32() % 8);
    }
}

/// The head of one datagram and the tail of another.
pub(crate) fn spliced(head: &[u8], tail: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut joined = head[..below(rng, head.len() + 1)].to_vec();
    joined.extend_from_slice(&tail[below(rng, tail.len() + 1)..]);
    joined.truncate(65_507);
    joined
}

pub(crate) fn fraction(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

pub(crate) fn chance(rng: &mut ChaCha8Rng, p: f64) -> bool {
    p > 0.0 && fraction(rng) < p
}

/// A number below `n`, or 0. The bias of the remainder does not matter here.
pub(crate) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    if n == 0 { 0 } else { (rng.next_u64() % n as u64) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    fn send(link: &Link, count: usize) -> (Vec<Fate>, Vec<Arrival>) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut state, mut out) = (LinkState::default(), Vec::new());
        let now = crate::base_instant();
        let fates = (0..count)
            .map(|i| {
                let bytes = [i as u8; 100];
                link.carry(now + Duration::from_millis(i as u64), &bytes, &mut state, &mut rng, &mut out)
            })
            .collect();
        (fates, out)
    }

    #[test]
    fn bursts_have_the_share_and_length_that_were_asked_for() {
        let (fates, _) = send(&Link { bursts: Some(Bursts::new(0.3, 4.0)), ..Link::default() }, 100_000);
        let lost = fates.iter().filter(|f| **f == Fate::Burst).count() as f64;
        let begun = fates.windows(2).filter(|w| w[0] == Fate::Passed && w[1] == Fate::Burst).count() as f64;
        assert!((0.28..0.32).contains(&(lost / 100_000.0)), "share {}", lost / 100_000.0);
        assert!((3.7..4.3).contains(&(lost / begun)), "length {}", lost / begun);
    }

    #[test]
    fn a_clogged_link_lets_all_go_at_once() {
        let until = crate::base_instant() + Duration::from_secs(10);
        let (fates, out) = send(&Link { held_until: Some(until), ..Link::default() }, 50);
        assert!(fates.iter().all(|f| *f == Fate::Passed));
        assert!(out.iter().all(|a| a.at == out[0].at && a.at > until));
    }

    #[test]
    fn a_queue_leaves_at_the_new_rate() {
        let (mut state, mut rng) = (LinkState::default(), ChaCha8Rng::seed_from_u64(5));
        let mut out = Vec::new();
        let now = crate::base_instant();
        let mut link = Link { rate: Some(1_000), queue: 100_000, ..Link::default() };
        assert_eq!(link.carry(now, &[0; 50_000], &mut state, &mut rng, &mut out), Fate::Passed);
        link.rate = Some(50_000);
        link.queue = 60_000;
        assert_eq!(link.carry(now, &[0; 50], &mut state, &mut rng, &mut out), Fate::Passed);
        let waited = out[1].at - now - link.delay;
        assert!((1.0..1.01).contains(&waited.as_secs_f64()), "{waited:?}");
    }

    #[test]
    fn size_queue_and_damage() {
        let (fates, _) = send(&Link { mtu: 99, ..Link::default() }, 1);
        assert_eq!(fates, [Fate::TooBig]);
        // 100 bytes each millisecond into 10,000 bytes a second with room for 1,000.
        let (fates, _) = send(&Link { rate: Some(10_000), queue: 1_000, ..Link::default() }, 100);
        let passed = fates.iter().filter(|f| **f == Fate::Passed).count();
        assert!((18..25).contains(&passed), "{passed}");
        let (_, out) = send(&Link { corrupt: 0.5, splice: 0.2, ..Link::default() }, 1_000);
        let damaged = out.iter().filter(|a| a.damaged).count();
        assert!((500..700).contains(&damaged), "{damaged}");
    }
}
