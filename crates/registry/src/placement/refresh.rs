//! An agent's refresh: the only repair there is.

use super::{Map, MapNode};

/// Most nodes that an agent remembers as failed.
pub const MAX_SUSPECTS: usize = super::MAX_NODES;

/// When an agent writes its record again, and to whom. Times are milliseconds of any monotonic clock.
#[derive(Debug, Clone)]
pub struct Refresh {
    interval: u64,
    seed: u64,
    due: u64,
    /// Nodes that did not answer, and until when they are passed over.
    suspects: Vec<([u8; 32], u64)>,
}

impl Refresh {
    /// Every `interval` milliseconds, a tenth more or less. The first one falls anywhere in the first interval, so that
    /// agents that start together do not stay together. `seed`: any number of the agent's own, such as of its key.
    #[must_use]
    pub fn new(now: u64, interval: u64, seed: u64) -> Self {
        let interval = interval.max(1);
        let mut refresh = Self { interval, seed, due: now, suspects: Vec::new() };
        refresh.due = now.saturating_add(refresh.random() % interval);
        refresh
    }

    /// As [`Refresh::new`], with the first one at once: for an agent that has just come.
    #[must_use]
    pub fn begin_at_once(now: u64, interval: u64, seed: u64) -> Self {
        Self { due: now, ..Self::new(now, interval, seed) }
    }

    /// The next one is due now.
    pub fn hurry(&mut self, now: u64) {
        self.due = self.due.min(now);
    }

    /// When the next one is due.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due
    }

    /// If a refresh is due: the nodes to write to, in the key's order, without those that failed lately. The next one is
    /// then planned.
    pub fn poll<'a>(&mut self, now: u64, map: &'a Map, key: &[u8; 32]) -> Option<Vec<&'a MapNode>> {
        if now < self.due {
            return None;
        }
        let spread = self.interval / 5;
        let jitter = if spread == 0 { 0 } else { self.random() % spread };
        self.due = now.saturating_add(self.interval - self.interval / 10 + jitter);
        self.suspects.retain(|(_, until)| *until > now);
        Some(map.holders(key, |node| !self.suspected(node, now)))
    }

    /// A node did not answer. It is passed over for two intervals; the node to write to in its place, if there is one.
    pub fn failed<'a>(
        &mut self,
        now: u64,
        map: &'a Map,
        key: &[u8; 32],
        node: &[u8; 32],
    ) -> Option<&'a MapNode> {
        if !self.suspected(node, now) {
            if self.suspects.len() >= MAX_SUSPECTS {
                self.suspects.remove(0);
            }
            self.suspects.push((*node, now.saturating_add(2 * self.interval)));
        }
        map.holders(key, |other| !self.suspected(other, now)).last().copied()
    }

    /// A node answered.
    pub fn succeeded(&mut self, node: &[u8; 32]) {
        self.suspects.retain(|(suspect, _)| suspect != node);
    }

    fn suspected(&self, node: &[u8; 32], now: u64) -> bool {
        self.suspects.iter().any(|(suspect, until)| suspect == node && *until > now)
    }

    /// SplitMix64: spreads agents, hides nothing.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
