//! One direction of an emulated link, without clock, thread or device: `now` comes in, packets come out.
//!
//! ```text
//! offer ─▶ MTU ─▶ queue (drop-tail, CoDel) ─▶ rate ─▶ loss, bursts ─▶ delay + jitter, reordering, duplication ─▶ poll
//! ```
//!
//! Everything is reckoned in the link's own time: a caller that polls late gets packets late, but the rate, the
//! queue's state and the drops are those of a link that was never late. What is lost on the way has used the rate.
//! The same seed, settings and arrivals give the same fate to every packet.

mod codel;
mod config;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

pub use config::{Bursts, CoDelConfig, LinkConfig, Queue};

/// An Ethernet packet, which a queue may always hold.
const FULL_PACKET: usize = 1_500;
/// Most packets under way at once, whatever the settings: more are dropped as if the queue were full.
pub const MAX_UNDER_WAY: usize = 262_144;
/// A packet delivered later than this is counted as late.
pub const LATE: Duration = Duration::from_millis(1);

/// What one direction did so far. Bytes are those of whole IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets that were sent into the link.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets that arrived, duplicates included.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Lost, each for itself.
    pub lost: u64,
    /// Lost in bursts.
    pub burst_lost: u64,
    /// Dropped at the queue's bound.
    pub queue_full: u64,
    /// Dropped by CoDel.
    pub codel_dropped: u64,
    /// Longer than the MTU.
    pub too_large: u64,
    /// Held back to be overtaken.
    pub reordered: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Largest number of bytes that waited.
    pub peak_queue: u64,
    /// Packets delivered more than [`LATE`] after their time.
    pub late: u64,
    /// The latest of all, in microseconds.
    pub latest_us: u64,
    /// Packets for an address that no namespace has (filled in by the lab).
    pub stray: u64,
    /// Packets that the kernel dropped because the emulator was too slow (filled in by the lab).
    pub overrun: u64,
}

impl Counters {
    /// What was counted since `before`; the largest values stay those of the whole time.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            offered: self.offered - before.offered,
            offered_bytes: self.offered_bytes - before.offered_bytes,
            delivered: self.delivered - before.delivered,
            delivered_bytes: self.delivered_bytes - before.delivered_bytes,
            lost: self.lost - before.lost,
            burst_lost: self.burst_lost - before.burst_lost,
            queue_full: self.queue_full - before.queue_full,
            codel_dropped: self.codel_dropped - before.codel_dropped,
            too_large: self.too_large - before.too_large,
            reordered: self.reordered - before.reordered,
            duplicated: self.duplicated - before.duplicated,
            late: self.late - before.late,
            stray: self.stray - before.stray,
            overrun: self.overrun.saturating_sub(before.overrun),
            ..*self
        }
    }
}

#[derive(Debug)]
struct Waiting {
    packet: Vec<u8>,
    since: Instant,
}

#[derive(Debug)]
struct InTransmission {
    packet: Vec<u8>,
    ends: Instant,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    at: Instant,
    number: u64,
    packet: Vec<u8>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    lead: Duration,
    rng: ChaCha8Rng,
    in_burst: bool,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    codel: codel::CoDel,
    transmitting: Option<InTransmission>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    /// Arrival of the last packet that kept its place: jitter does not overtake.
    last_arrival: Option<Instant>,
    number: u64,
    spare: Vec<Vec<u8>>,
    counters: Counters,
}

impl Link {
    /// A link in this state of rest.
    #[must_use]
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            lead: Duration::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            in_burst: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            codel: codel::CoDel::default(),
            transmitting: None,
            under_way: BinaryHeap::new(),
            last_arrival: None,
            number: 0,
            spare: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Shortens the delay by what the caller itself needs to move a packet (a delay never falls below zero).
    #[must_use]
    pub fn with_lead(self, lead: Duration) -> Self {
        Self { lead, ..self }
    }

    /// What it is set to.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes that wait for the rate.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Takes a packet that reaches the link now. Times must not go backwards.
    pub fn offer(&mut self, now: Instant, packet: &[u8]) {
        self.counters.offered += 1;
        self.counters.offered_bytes += packet.len() as u64;
        self.advance(now);
        if packet.len() > self.config.mtu {
            self.counters.too_large += 1;
            return;
        }
        let (bytes, packets) = self.config.queue_bounds();
        let room = self.waiting_bytes + packet.len() <= bytes && self.waiting.len() < packets;
        let idle = self.transmitting.is_none();
        if (!idle && !room) || self.waiting.len() + self.under_way.len() >= MAX_UNDER_WAY {
            self.counters.queue_full += 1;
            return;
        }
        let packet = self.copy(packet);
        let Some(rate) = self.config.rate else { return self.launch(now, packet) };
        if idle {
            self.transmitting = Some(InTransmission { ends: now + on_the_wire(packet.len(), rate), packet });
            return;
        }
        self.waiting_bytes += packet.len();
        self.counters.peak_queue = self.counters.peak_queue.max(self.waiting_bytes as u64);
        self.waiting.push_back(Waiting { packet, since: now });
    }

    /// The next packet that has arrived at the far end by now. Give it back with [`Link::recycle`] if you can.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.advance(now);
        if self.under_way.peek().is_none_or(|first| first.0.at > now) {
            return None;
        }
        let Reverse(first) = self.under_way.pop()?;
        let late = now.duration_since(first.at);
        self.counters.late += u64::from(late > LATE);
        self.counters.latest_us = self.counters.latest_us.max(late.as_micros() as u64);
        self.counters.delivered += 1;
        self.counters.delivered_bytes += first.packet.len() as u64;
        Some(first.packet)
    }

    /// Takes a buffer back, so that in the steady state no memory is asked for.
    pub fn recycle(&mut self, packet: Vec<u8>) {
        if self.spare.len() < 4_096 {
            self.spare.push(packet);
        }
    }

    /// No packet arrives before this time, unless more is offered; `None` while there is none.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        let first = self.under_way.peek().map(|first| first.0.at);
        let ends = self.transmitting.as_ref().map(|sending| sending.ends + self.delay());
        match (first, ends) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Changes the settings. What waits leaves at the new rate; what is under way arrives as it would have.
    pub fn reconfigure(&mut self, now: Instant, config: LinkConfig) {
        self.advance(now);
        let before = std::mem::replace(&mut self.config, config);
        match (before.rate, self.config.rate) {
            (Some(old), Some(new)) => {
                if let Some(sending) = &mut self.transmitting {
                    let left = sending.ends.saturating_duration_since(now);
                    sending.ends = now + left.mul_f64(old as f64 / new as f64);
                }
            }
            (Some(_), None) => {
                let sending = self.transmitting.take().map(|sending| sending.packet);
                let waiting: Vec<_> = self.waiting.drain(..).map(|waiting| waiting.packet).collect();
                self.waiting_bytes = 0;
                for packet in sending.into_iter().chain(waiting) {
                    self.launch(now, packet);
                }
            }
            (None, _) => {}
        }
    }

    fn copy(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(packet);
        copy
    }

    /// Lets the rate work up to now.
    fn advance(&mut self, now: Instant) {
        while let Some(sending) = self.transmitting.take_if(|sending| sending.ends <= now) {
            let ends = sending.ends;
            self.launch(ends, sending.packet);
            let (Some(packet), Some(rate)) = (self.dequeue(ends), self.config.rate) else { return };
            self.transmitting = Some(InTransmission { ends: ends + on_the_wire(packet.len(), rate), packet });
        }
    }

    /// The next packet to transmit, after CoDel has had its say.
    fn dequeue(&mut self, now: Instant) -> Option<Vec<u8>> {
        let mut first = true;
        loop {
            let next = self.waiting.pop_front();
            self.waiting_bytes -= next.as_ref().map_or(0, |next| next.packet.len());
            let Some(config) = self.config.codel else { return next.map(|next| next.packet) };
            let head = next.as_ref().map(|next| codel::Head {
                sojourn: now.saturating_duration_since(next.since),
                behind: self.waiting_bytes,
            });
            let drops = self.codel.drops(now, head, config, first);
            let next = next?;
            if !drops {
                return Some(next.packet);
            }
            self.counters.codel_dropped += 1;
            self.recycle(next.packet);
            first = false;
        }
    }

    /// A packet leaves the bottleneck.
    fn launch(&mut self, now: Instant, packet: Vec<u8>) {
        if self.chance(self.config.loss) {
            self.counters.lost += 1;
            return self.recycle(packet);
        }
        if self.falls_into_burst() {
            self.counters.burst_lost += 1;
            return self.recycle(packet);
        }
        if self.chance(self.config.duplicate) {
            self.counters.duplicated += 1;
            let copy = self.copy(&packet);
            self.send_on(now, copy);
        }
        self.send_on(now, packet);
    }

    fn send_on(&mut self, now: Instant, packet: Vec<u8>) {
        let mut at = now + self.delay();
        if !self.config.jitter.is_zero() {
            at += self.config.jitter.mul_f64(fraction(&mut self.rng));
        }
        if self.chance(self.config.reorder) {
            self.counters.reordered += 1;
            at += self.config.reorder_by;
        } else {
            at = self.last_arrival.map_or(at, |last| last.max(at));
            self.last_arrival = Some(at);
        }
        self.number += 1;
        self.under_way.push(Reverse(UnderWay { at, number: self.number, packet }));
    }

    fn delay(&self) -> Duration {
        self.config.delay.saturating_sub(self.lead)
    }

    fn falls_into_burst(&mut self) -> bool {
        let Some(bursts) = self.config.bursts else { return false };
        let turn = if self.in_burst { bursts.leave } else { bursts.enter };
        self.in_burst ^= self.chance(turn);
        self.in_burst && self.chance(bursts.loss)
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && fraction(&mut self.rng) < p
    }
}

/// From 0 to below 1.
fn fraction(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

fn on_the_wire(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos(
        (bytes as u128 * 8 * 1_000_000_000 / u128::from(rate.max(1))).min(u128::from(u64::MAX)) as u64,
    )
}
