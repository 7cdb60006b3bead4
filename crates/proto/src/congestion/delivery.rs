//! Delivery rate: how fast a path carries what is sent (draft-ietf-ccwg-bbr §4.1).
//!
//! The draft keeps the state of the sender at each packet. Here it is kept per send time, which is all that an
//! acknowledgement names, and send times closer than a small part of the round trip share one entry.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Send times that are remembered; the oldest are forgotten, and what they would have told is not.
const MARKS_MAX: usize = 1_024;
/// Send times within this part of the round trip share an entry.
const MARKS_PER_RTT: u32 = 64;

/// The sender's state at a send time.
#[derive(Debug, Clone, Copy)]
struct Mark {
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Bytes per second.
    pub(super) rate: u64,
    /// What had been delivered when the newest of the acknowledged data was sent.
    pub(super) delivered_then: u64,
}

/// Measures one path.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveryRate {
    delivered: u64,
    delivered_at: Option<Instant>,
    first_sent: Option<Instant>,
    marks: VecDeque<Mark>,
}

impl DeliveryRate {
    /// Bytes delivered since the path began.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Forgets the send times: nothing is in flight that they could tell about.
    pub(super) fn release(&mut self) {
        self.marks = VecDeque::new();
    }

    /// Something was sent; `idle` says that nothing was in flight before.
    pub(super) fn on_sent(&mut self, now: Instant, idle: bool, min_rtt: Option<Duration>) {
        if idle || self.delivered_at.is_none() {
            self.first_sent = Some(now);
            self.delivered_at = Some(now);
        }
        let near = min_rtt.unwrap_or(Duration::ZERO) / MARKS_PER_RTT;
        let shared =
            !idle && self.marks.back().is_some_and(|m| now.saturating_duration_since(m.sent) <= near);
        if shared {
            return;
        }
        if self.marks.len() >= MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at.unwrap_or(now),
            first_sent: self.first_sent.unwrap_or(now),
        });
    }

    /// `bytes` were delivered, the newest of them sent at `newest_sent`. A measurement over less than `min_rtt` is none:
    /// acknowledgements that came in one heap would make it arbitrarily high.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        newest_sent: Instant,
        bytes: u64,
        min_rtt: Duration,
    ) -> Option<Sample> {
        self.delivered += bytes;
        self.delivered_at = Some(now);
        while self.marks.get(1).is_some_and(|m| m.sent <= newest_sent) {
            self.marks.pop_front();
        }
        let mark = *self.marks.front().filter(|m| m.sent <= newest_sent)?;
        self.first_sent = Some(newest_sent);
        let sending = newest_sent.saturating_duration_since(mark.first_sent);
        let hearing = now.saturating_duration_since(mark.delivered_at);
        let interval = sending.max(hearing);
        if interval < min_rtt || interval.is_zero() {
            return None;
        }
        let bytes = self.delivered.saturating_sub(mark.delivered);
        let rate = u128::from(bytes) * 1_000_000_000 / interval.as_nanos();
        Some(Sample { rate: u64::try_from(rate).unwrap_or(u64::MAX), delivered_then: mark.delivered })
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test needs a clock to begin with
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_flow_is_measured_at_its_rate() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        let mut last = None;
        // 1,000 bytes each millisecond, 20 ms of round trip.
        for t in 0..200u32 {
            let now = start + MS * t;
            rate.on_sent(now, t == 0, Some(20 * MS));
            if t >= 20 {
                last = rate.on_ack(now, now - 20 * MS, 1_000, 20 * MS);
            }
        }
        let sample = last.expect("a measurement");
        assert!((950_000..=1_050_000).contains(&sample.rate), "{sample:?}");
    }

    #[test]
    fn acknowledgements_in_a_heap_are_no_speed() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        rate.on_sent(start, true, None);
        rate.on_sent(start + MS, false, None);
        assert_eq!(rate.on_ack(start + 5 * MS, start, 1_000, 20 * MS), None);
        let sample = rate.on_ack(start + 40 * MS, start + MS, 1_000, 20 * MS).expect("long enough");
        assert!(sample.rate <= 2_000 * 1_000 / 39, "{sample:?}");
    }

    #[test]
    fn the_marks_are_bounded_and_forgotten_ones_tell_nothing() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        for t in 0..5_000u32 {
            rate.on_sent(start + MS * t, t == 0, None);
        }
        assert_eq!(rate.marks.len(), MARKS_MAX);
        assert_eq!(rate.on_ack(start + 6_000 * MS, start + 10 * MS, 1_000, MS), None);
        assert!(rate.on_ack(start + 6_000 * MS, start + 4_900 * MS, 1_000, MS).is_some());
        assert!(rate.marks.len() < 200);
    }
}
