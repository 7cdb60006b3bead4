//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, before the queue overflows.

use std::time::{Duration, Instant};

/// Watches the round trips of slow start. Rounds are told apart by send times, as everything per path is.
#[derive(Debug, Clone, Default)]
pub(super) struct HyStart {
    round_start: Option<Instant>,
    last_round_min: Option<Duration>,
    round_min: Option<Duration>,
    samples: u32,
    /// In conservative slow start: the round trip that made us doubt, and the rounds left.
    doubt: Option<(Duration, u32)>,
}

/// What to do with the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Grow by the bytes delivered, divided by this.
    Grow(u64),
    /// The queue has been building up for five rounds: end slow start here.
    Stop,
}

impl HyStart {
    /// To be called for every acknowledgement in slow start, with the round trip that it measured.
    pub(super) fn on_ack(&mut self, now: Instant, newest_sent: Instant, rtt: Duration) -> Advice {
        if self.round_start.is_none_or(|start| newest_sent >= start) {
            self.round_start = Some(now);
            self.last_round_min = self.round_min.take();
            self.samples = 0;
            if let Some((_, rounds)) = &mut self.doubt {
                *rounds -= 1;
                if *rounds == 0 {
                    return Advice::Stop;
                }
            }
        }
        let round_min = self.round_min.map_or(rtt, |m| m.min(rtt));
        self.round_min = Some(round_min);
        self.samples += 1;
        if self.samples >= N_RTT_SAMPLE {
            match (self.doubt, self.last_round_min) {
                // The growth was a whim of the path.
                (Some((baseline, _)), _) if round_min < baseline => self.doubt = None,
                (None, Some(last))
                    if round_min >= last + (last / 8).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH) =>
                {
                    self.doubt = Some((round_min, CSS_ROUNDS + 1));
                }
                _ => {}
            }
        }
        Advice::Grow(if self.doubt.is_some() { CSS_GROWTH_DIVISOR } else { 1 })
    }
}

// RFC 9406 section 4.3
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u32 = 5;

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test needs a clock to begin with
mod tests {
    use super::*;

    /// Ten acknowledgements per round, with the round trips (ms) given per round. Returns the advice of each round's end.
    fn run(rtts: &[u64]) -> Vec<Advice> {
        let mut hystart = HyStart::default();
        let mut now = Instant::now();
        let mut out = Vec::new();
        for &ms in rtts {
            let sent = now;
            now += Duration::from_millis(ms);
            let mut last = Advice::Grow(1);
            for _ in 0..10 {
                last = hystart.on_ack(now, sent, Duration::from_millis(ms));
                if last == Advice::Stop {
                    break;
                }
            }
            out.push(last);
            if last == Advice::Stop {
                break;
            }
        }
        out
    }

    #[test]
    fn a_steady_round_trip_keeps_slow_start() {
        assert!(run(&[50; 30]).iter().all(|a| *a == Advice::Grow(1)));
    }

    #[test]
    fn a_growing_round_trip_slows_down_and_then_stops() {
        let advice = run(&[50, 50, 60, 70, 80, 90, 100, 110, 120]);
        assert_eq!(advice[1], Advice::Grow(1));
        assert_eq!(advice[2], Advice::Grow(4));
        assert_eq!(*advice.last().unwrap(), Advice::Stop);
        assert_eq!(advice.len(), 2 + 1 + CSS_ROUNDS as usize + 1);
    }

    #[test]
    fn a_passing_bump_resumes_slow_start() {
        let advice = run(&[50, 50, 60, 50, 50, 50, 50, 50, 50, 50]);
        assert_eq!(advice[2], Advice::Grow(4));
        assert!(advice[3..].iter().all(|a| *a == Advice::Grow(1)), "{advice:?}");
    }

    #[test]
    fn microseconds_of_jitter_on_loopback_are_no_queue() {
        let mut hystart = HyStart::default();
        let mut now = Instant::now();
        for round in 0..50u64 {
            let sent = now;
            let rtt = Duration::from_micros(50 + (round * 37) % 900);
            now += rtt;
            for _ in 0..10 {
                assert_eq!(hystart.on_ack(now, sent, rtt), Advice::Grow(1));
            }
        }
    }
}
