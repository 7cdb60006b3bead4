//! The model-based controller against a path of a given rate, delay and loss.

use super::*;

/// 10 MB/s and 50 ms: 500 segments fit.
const RATE: u64 = 10_000_000;
const FITS: u64 = RATE / 20;
/// Longest wait for a second segment before the first is acknowledged.
const DELAYED_ACK: Duration = Duration::from_millis(40);

/// A path that carries `rate`, has a queue of `queue` bytes and loses each `every`th segment. Every second segment is
/// acknowledged.
struct Line {
    rate: u64,
    rtt_min: Duration,
    mss: u64,
    controller: AnyController,
    rtt: RttEstimator,
    pacer: pacer::Pacer,
    now: Instant,
    /// When each segment arrives, is acknowledged or known to be lost; when it was sent; whether it was lost.
    flying: std::collections::VecDeque<(Instant, Instant, bool)>,
    free_at: Instant,
    queue: u64,
    every: u64,
    sent: u64,
    delivered: u64,
    dropped: u64,
    peak_queue: Duration,
}

impl Line {
    fn new(queue: u64, every: u64) -> Self {
        Self::with(RATE, RTT, MSS, queue, every)
    }

    fn with(rate: u64, rtt_min: Duration, mss: u64, queue: u64, every: u64) -> Self {
        let now = Instant::now();
        Self {
            rate,
            rtt_min,
            mss,
            controller: AnyController::new(ControllerKind::Bbr, mss, initial_window(mss), 1 << 30),
            rtt: RttEstimator::new(rtt_min),
            pacer: pacer::Pacer::new(mss),
            now,
            flying: std::collections::VecDeque::new(),
            free_at: now,
            queue,
            every,
            sent: 0,
            delivered: 0,
            dropped: 0,
            peak_queue: Duration::ZERO,
        }
    }

    fn in_flight(&self) -> u64 {
        self.flying.len() as u64 * self.mss
    }

    fn send(&mut self) {
        self.sent += 1;
        let waits = self.free_at.saturating_duration_since(self.now);
        self.peak_queue = self.peak_queue.max(waits);
        let full = waits.as_secs_f64() * self.rate as f64 > self.queue as f64;
        let lost = full || (self.every > 0 && self.sent.is_multiple_of(self.every));
        if !full {
            self.free_at =
                self.free_at.max(self.now) + Duration::from_nanos(self.mss * 1_000_000_000 / self.rate);
        }
        self.dropped += u64::from(full);
        let mut seen = self.free_at.max(self.now) + self.rtt_min;
        if let Some(before) = self.flying.back_mut().filter(|_| self.sent.is_multiple_of(2)) {
            before.0 = before.0.min(seen);
        }
        if !self.sent.is_multiple_of(2) {
            seen += DELAYED_ACK;
        }
        self.flying.push_back((seen, self.now, lost));
        let in_flight = self.in_flight();
        self.controller.on_sent(self.now, self.mss, in_flight);
        self.pacer.on_sent(self.now, self.mss);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let mut next = end;
            while self.controller.send_allowance(self.in_flight()) >= self.mss || self.flying.is_empty() {
                match self.pacer.allow(self.now, self.mss, self.controller.pacing_rate(&self.rtt)) {
                    Ok(()) => self.send(),
                    Err(at) => {
                        next = next.min(at.max(self.now + Duration::from_micros(1)));
                        break;
                    }
                }
            }
            if let Some((seen, ..)) = self.flying.front() {
                next = next.min(*seen);
            }
            self.now = self.now.max(next);
            while let Some((_, sent, lost)) = self.flying.front().copied().filter(|(at, ..)| *at <= self.now)
            {
                self.arrives(sent, lost);
            }
        }
    }

    fn arrives(&mut self, sent: Instant, lost: bool) {
        let before = self.in_flight();
        self.flying.pop_front();
        if lost {
            self.controller.on_loss(self.now, sent, self.mss, before - self.mss);
            return;
        }
        self.delivered += self.mss;
        self.rtt.update(self.now - sent);
        let ack =
            AckEvent { bytes: self.mss, newest_sent: sent, app_limited: false, in_flight_before: before };
        self.controller.on_ack(self.now, &ack, &self.rtt);
    }

    /// Share of the line that was used in the last `time`.
    fn used(&mut self, time: Duration) -> f64 {
        let before = self.delivered;
        self.run(time);
        (self.delivered - before) as f64 / (self.rate as f64 * time.as_secs_f64())
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_line_is_full_and_the_queue_is_not() {
    let mut line = Line::new(10 * FITS, 0);
    line.run(3 * SECOND);
    line.peak_queue = Duration::ZERO;
    let used = line.used(20 * SECOND);
    assert!(used > 0.95, "{used}");
    assert_eq!(line.dropped, 0);
    assert!(line.peak_queue < RTT, "{:?} of queue: one more round trip at most", line.peak_queue);
    assert!((FITS..4 * FITS).contains(&line.controller.window()), "{}", line.controller.window());
}

#[test]
fn random_loss_costs_what_is_lost_and_little_more() {
    for (every, least) in [(100, 0.93), (30, 0.88)] {
        let mut line = Line::new(2 * FITS, every);
        line.run(3 * SECOND);
        let used = line.used(20 * SECOND);
        assert!(used > least, "one in {every}: {used}");
    }
}

#[test]
fn a_queue_of_a_few_packets_is_respected() {
    let mut line = Line::new(FITS / 10, 0);
    line.run(5 * SECOND);
    let (sent, dropped) = (line.sent, line.dropped);
    let used = line.used(20 * SECOND);
    let share = (line.dropped - dropped) as f64 / (line.sent - sent) as f64;
    assert!(used > 0.8, "{used}");
    assert!(share < 0.0065, "{share} lost");
    assert!(dropped < 1_500, "{dropped} lost until the first bound was found");
}

#[test]
fn what_was_lost_on_the_way_before_does_not_count() {
    let mut line = Line::new(2 * FITS, 0);
    line.run(SECOND / 20);
    let before = line.now - SECOND;
    // All of a large flight was sent to where the peer is no more.
    line.controller.on_loss(line.now, before, 100 * FITS, line.in_flight());
    line.run(3 * SECOND);
    let used = line.used(5 * SECOND);
    assert!(used > 0.95, "{used}");
}

/// Inside one machine a round trip is much shorter than anything that a timer can tell apart, and a segment is longer
/// than what fits; whoever was stopped for a while must find the speed again.
#[test]
fn a_very_short_path_is_filled_again_after_a_stall() {
    for (mss, rate) in [(1_400, 500_000_000), (65_000, 1_250_000_000)] {
        let mut line = Line::with(rate, Duration::from_micros(50), mss, 4 << 20, 0);
        line.run(SECOND / 5);
        let used = line.used(SECOND / 5);
        assert!(used > 0.6, "{mss}: {used}");
        // Somebody else has the machine, with a moment for us now and then.
        for _ in 0..200 {
            line.free_at = line.now.max(line.free_at) + Duration::from_millis(4);
            line.run(Duration::from_millis(5));
        }
        line.run(SECOND / 5);
        let used = line.used(SECOND / 5);
        assert!(used > 0.6, "{mss}, after the stall: {used}");
    }
}

#[test]
fn cycles_without_a_measurement_do_not_forget_the_rate() {
    let mut line = Line::with(500_000_000, Duration::from_micros(50), 1_400, 4 << 20, 0);
    line.run(SECOND / 5);
    // Single segments of an application that has little to say, closer together than any measurement.
    let mut now = line.now;
    for _ in 0..20_000 {
        line.controller.on_sent(now, 1_400, 1_400);
        now += Duration::from_micros(10);
        line.rtt.update(Duration::from_micros(10));
        let ack = AckEvent {
            bytes: 1_400,
            newest_sent: now - Duration::from_micros(10),
            app_limited: true,
            in_flight_before: 1_400,
        };
        line.controller.on_ack(now, &ack, &line.rtt);
        let rate = line.controller.pacing_rate(&line.rtt).expect("a rate");
        assert!(rate > 1_000_000, "{rate} bytes/s");
    }
}

#[test]
fn a_timeout_leaves_one_segment_from_which_the_window_grows_back() {
    let mut line = Line::new(2 * FITS, 0);
    line.run(3 * SECOND);
    let in_flight = line.in_flight();
    line.controller.on_rto(line.now, in_flight);
    assert_eq!(line.controller.window(), MSS);
    line.flying.clear();
    line.run(2 * SECOND);
    assert!(line.used(5 * SECOND) > 0.9);
}

#[test]
fn a_slower_line_is_noticed_within_some_cycles() {
    let mut line = Line::new(4 * FITS, 0);
    line.run(5 * SECOND);
    // Somebody else takes three quarters: each segment occupies the line four times as long.
    let begin = line.now;
    while line.now - begin < 20 * SECOND {
        line.free_at = line.free_at.max(line.now) + Duration::from_micros(7_500);
        line.run(Duration::from_millis(10));
    }
    let rate = line.controller.pacing_rate(&line.rtt).expect("a rate");
    assert!(rate < RATE / 2, "{rate}");
}

#[test]
fn a_longer_way_is_noticed_by_the_second_probe() {
    let mut line = Line::new(2 * FITS, 0);
    line.run(3 * SECOND);
    // The route changes: four times the round trip, far beyond what the window leaves room for.
    line.rtt_min = 4 * RTT;
    line.run(2 * SECOND);
    assert!(line.used(2 * SECOND) < 0.8);
    line.run(25 * SECOND);
    assert!(line.used(5 * SECOND) > 0.9);
}

proptest! {
    #[test]
    fn the_window_keeps_its_bounds_whatever_happens(
        events in prop::collection::vec((0u8..6, 0u64..200_000, 0u64..50), 1..400)
    ) {
        let mut c = AnyController::new(ControllerKind::Bbr, MSS, initial_window(MSS), 50 * MSS);
        let mut rtt = RttEstimator::new(RTT);
        let mut now = Instant::now();
        let mut last = now;
        for (kind, bytes, ms) in events {
            now += Duration::from_millis(ms);
            match kind {
                0 | 1 => { c.on_sent(now, bytes, bytes + ms); last = now; }
                2 => {
                    rtt.update(Duration::from_millis(ms));
                    let ack = AckEvent { bytes, newest_sent: last, app_limited: ms % 2 == 0, in_flight_before: bytes };
                    c.on_ack(now, &ack, &rtt);
                }
                3 => c.on_loss(now, last, bytes, ms),
                4 => c.on_rto(now, bytes),
                _ => c.set_mss(MSS + ms),
            }
            prop_assert!(c.window() >= MSS && c.window() <= 60 * (MSS + 50), "{}", c.window());
            prop_assert!(c.pacing_rate(&rtt).is_none_or(|r| r > 0));
        }
    }
}
