//! Both controllers against a small path: rate, delay, a queue.

// A test needs a clock to begin with.
#![allow(clippy::disallowed_methods)]

use proptest::prelude::*;

use super::*;

mod bounds;
mod model;

const MSS: u64 = 1000;
const RTT: Duration = Duration::from_millis(50);
const KINDS: [ControllerKind; 2] = [ControllerKind::NewReno, ControllerKind::Cubic];

/// A controller that is told, round by round, that all or a part of its window was delivered.
struct Flow {
    controller: AnyController,
    rtt: RttEstimator,
    now: Instant,
}

impl Flow {
    fn new(kind: ControllerKind) -> Self {
        let mut rtt = RttEstimator::new(RTT);
        rtt.update(RTT);
        Self {
            controller: AnyController::new(kind, MSS, initial_window(MSS), 1 << 30),
            rtt,
            now: Instant::now(),
        }
    }

    /// Sends `bytes`, waits a round trip and acknowledges them in pairs of segments.
    fn round_of(&mut self, bytes: u64, app_limited: bool) {
        let sent = self.now;
        self.controller.on_sent(sent, bytes, bytes);
        self.now += RTT;
        let mut left = bytes;
        while left > 0 {
            let acked = left.min(2 * MSS);
            let ack = AckEvent { bytes: acked, newest_sent: sent, app_limited, in_flight_before: left };
            self.rtt.update(RTT);
            self.controller.on_ack(self.now, &ack, &self.rtt);
            left -= acked;
        }
    }

    fn round(&mut self) {
        self.round_of(self.controller.window(), false);
    }

    /// One segment of a full window is lost; the next round ends the recovery.
    fn loss(&mut self) {
        let window = self.controller.window();
        self.controller.on_sent(self.now, window, window);
        let sent = self.now;
        self.now += RTT;
        self.controller.on_loss(self.now, sent, MSS, window - MSS);
        self.now += Duration::from_millis(1);
        self.round();
        assert!(!self.controller.in_recovery());
    }

    fn window(&self) -> u64 {
        self.controller.window()
    }
}

#[test]
fn the_initial_window_is_ten_segments_within_bounds() {
    assert_eq!(initial_window(1200), 12_000);
    assert_eq!(initial_window(1472), 14_720);
    assert_eq!(initial_window(4096), 14_720);
    assert_eq!(initial_window(65_507), 131_014);
}

#[test]
fn slow_start_doubles_each_round() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        for round in 0..8 {
            assert_eq!(flow.window(), 10_000 << round, "{kind:?}");
            flow.round();
        }
        assert_eq!(flow.controller.ssthresh(), None);
    }
}

#[test]
fn a_loss_reduces_once_per_round_trip() {
    for (kind, expected) in [(ControllerKind::NewReno, 40_000), (ControllerKind::Cubic, 56_000)] {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        assert_eq!(flow.window(), 80_000);
        flow.controller.on_sent(flow.now, 80_000, 80_000);
        let sent = flow.now;
        flow.now += RTT;
        flow.controller.on_loss(flow.now, sent, 5000, 75_000);
        assert_eq!((flow.window(), flow.controller.ssthresh()), (expected, Some(expected)));
        assert!(flow.controller.in_recovery());
        // More of the same flight.
        flow.controller.on_loss(flow.now, sent, 5000, 70_000);
        flow.controller.on_loss(flow.now + RTT, flow.now, 5000, 65_000);
        assert_eq!(flow.window(), expected);
        // What was sent during the recovery is lost as well: congestion goes on.
        let later = flow.now + Duration::from_millis(1);
        flow.controller.on_loss(flow.now + RTT, later, 5000, 65_000);
        assert!(flow.window() < expected);
    }
}

#[test]
fn recovery_sends_by_prr_and_ends_with_an_ack_of_what_was_sent_in_it() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        flow.controller.on_sent(flow.now, 80_000, 80_000);
        let sent = flow.now;
        flow.now += RTT;
        flow.controller.on_loss(flow.now, sent, MSS, 79_000);
        assert_eq!(flow.controller.send_allowance(79_000), MSS);
        flow.controller.on_sent(flow.now, MSS, 80_000);
        assert_eq!(flow.controller.send_allowance(80_000), 0);
        let retransmitted = flow.now;
        let old = AckEvent { bytes: 10_000, newest_sent: sent, app_limited: false, in_flight_before: 80_000 };
        flow.controller.on_ack(flow.now, &old, &flow.rtt);
        let share = flow.controller.send_allowance(70_000);
        assert!(share > 3000 && share < 7000, "{kind:?}: {share}");
        flow.now += RTT;
        let new = AckEvent {
            newest_sent: retransmitted + Duration::from_millis(1),
            in_flight_before: 50_000,
            ..old
        };
        flow.controller.on_ack(flow.now, &new, &flow.rtt);
        assert!(!flow.controller.in_recovery());
        let window = flow.window();
        assert_eq!(flow.controller.send_allowance(1000), window - 1000);
        assert_eq!(flow.controller.send_allowance(window + 1), 0);
    }
}

#[test]
fn newreno_grows_by_one_segment_per_round() {
    let mut flow = Flow::new(ControllerKind::NewReno);
    (0..3).for_each(|_| flow.round());
    flow.loss();
    let window = flow.window();
    for round in 1..=10 {
        flow.round();
        let expected = window + round * MSS;
        assert!(flow.window().abs_diff(expected) <= MSS, "round {round}: {}", flow.window());
    }
}

#[test]
fn cubic_returns_to_the_old_window_in_k_seconds_and_then_passes_it() {
    let mut flow = Flow::new(ControllerKind::Cubic);
    (0..8).for_each(|_| flow.round());
    let before = flow.window();
    assert_eq!(before, 2_560_000);
    flow.loss();
    assert!(flow.window().abs_diff(1_792_000) < MSS);
    // K = cbrt(768 / 0.4) = 12.43 s
    let begin = flow.now;
    while flow.now - begin < Duration::from_millis(6200) {
        flow.round();
    }
    // Half way in time it has made seven eighths of the way: concave.
    let half = 2_560_000 - 768_000 / 8;
    assert!(flow.window().abs_diff(half) < 20_000, "{}", flow.window());
    while flow.now - begin < Duration::from_millis(12_430) {
        flow.round();
    }
    assert!(flow.window().abs_diff(before) < 20_000, "{}", flow.window());
    while flow.now - begin < Duration::from_millis(20_000) {
        flow.round();
    }
    // 0.4 * 7.57^3 segments above.
    assert!(flow.window().abs_diff(before + 173_500) < 20_000, "{}", flow.window());
}

#[test]
fn cubic_is_as_fast_as_newreno_on_a_short_path() {
    let mut cubic = Flow::new(ControllerKind::Cubic);
    let mut reno = Flow::new(ControllerKind::NewReno);
    for flow in [&mut cubic, &mut reno] {
        (0..2).for_each(|_| flow.round());
        flow.loss();
        (0..60).for_each(|_| flow.round());
    }
    // It reduces less, grows by 0.53 segments per round up to the old window and by one from there: nearly the same.
    let (cubic, reno) = (cubic.window(), reno.window());
    assert!(cubic > reno * 95 / 100 && cubic < reno * 105 / 100, "{cubic} {reno}");
}

#[test]
fn fast_convergence_aims_lower_when_the_window_shrinks() {
    let mut steady = Flow::new(ControllerKind::Cubic);
    (0..7).for_each(|_| steady.round());
    let mut shrinking =
        Flow { controller: steady.controller.clone(), rtt: steady.rtt.clone(), now: steady.now };
    shrinking.loss();
    // A second loss below the old maximum: the aim is (1 + 0.7) / 2 of the window, not the window.
    let before = shrinking.window();
    shrinking.loss();
    let begin = shrinking.now;
    while shrinking.now - begin < Duration::from_secs(5) {
        shrinking.round();
    }
    assert!(shrinking.window() < before, "{} {before}", shrinking.window());
}

#[test]
fn a_pause_of_the_application_does_not_make_cubic_jump() {
    let mut flow = Flow::new(ControllerKind::Cubic);
    (0..8).for_each(|_| flow.round());
    flow.loss();
    (0..20).for_each(|_| flow.round());
    let window = flow.window();
    // Once idle, once sending a little.
    flow.now += Duration::from_secs(60);
    flow.round();
    assert!(flow.window() < window + 30 * MSS, "{} {window}", flow.window());
    let window = flow.window();
    for _ in 0..1000 {
        flow.round_of(3 * MSS, true);
    }
    assert_eq!(flow.window(), window);
    flow.round();
    assert!(flow.window() < window + 30 * MSS, "{} {window}", flow.window());
}

#[test]
fn a_trickle_of_the_application_does_not_make_cubic_jump() {
    let mut flow = Flow::new(ControllerKind::Cubic);
    (0..8).for_each(|_| flow.round());
    flow.loss();
    (0..20).for_each(|_| flow.round());
    let window = flow.window();
    // Never idle: there are always three segments in flight.
    for _ in 0..1000 {
        let sent = flow.now;
        flow.controller.on_sent(sent, MSS, 3 * MSS);
        flow.now += RTT;
        let ack = AckEvent { bytes: MSS, newest_sent: sent, app_limited: true, in_flight_before: 3 * MSS };
        flow.controller.on_ack(flow.now, &ack, &flow.rtt);
    }
    // Then all at once, on top of what is in flight.
    let sent = flow.now;
    flow.controller.on_sent(sent, window - 3 * MSS, window);
    flow.now += RTT;
    for _ in 0..window / (2 * MSS) {
        let ack =
            AckEvent { bytes: 2 * MSS, newest_sent: sent, app_limited: false, in_flight_before: window };
        flow.controller.on_ack(flow.now, &ack, &flow.rtt);
    }
    assert!(flow.window() < window + 30 * MSS, "{} {window}", flow.window());
}

#[test]
fn growth_of_less_than_a_byte_per_ack_adds_up() {
    let mut coarse = Flow::new(ControllerKind::Cubic);
    (0..8).for_each(|_| coarse.round());
    coarse.loss();
    let mut fine = Flow { controller: coarse.controller.clone(), rtt: coarse.rtt.clone(), now: coarse.now };
    for _ in 0..10 {
        coarse.round();
        let (sent, window) = (fine.now, fine.window());
        fine.controller.on_sent(sent, window, window);
        fine.now += RTT;
        for _ in 0..window / 100 {
            let ack =
                AckEvent { bytes: 100, newest_sent: sent, app_limited: false, in_flight_before: window };
            fine.controller.on_ack(fine.now, &ack, &fine.rtt);
        }
    }
    assert!(fine.window().abs_diff(coarse.window()) < 2 * MSS, "{} {}", fine.window(), coarse.window());
}

#[test]
fn the_last_acks_of_a_full_window_still_count_as_full_use() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        let window = flow.window();
        let sent = flow.now;
        flow.controller.on_sent(sent, window, window);
        flow.now += RTT;
        let ack = AckEvent { bytes: MSS, newest_sent: sent, app_limited: false, in_flight_before: 2 * MSS };
        flow.controller.on_ack(flow.now, &ack, &flow.rtt);
        assert_eq!(flow.window(), window + MSS);
    }
}

#[test]
fn an_unused_window_does_not_grow() {
    for kind in KINDS {
        for limited in [true, false] {
            let mut flow = Flow::new(kind);
            (0..3).for_each(|_| flow.round());
            let window = flow.window();
            // One round trip of full use still counts.
            flow.round_of(4 * MSS, limited);
            let settled = flow.window().max(window);
            for _ in 0..100 {
                flow.round_of(4 * MSS, limited);
            }
            assert!(flow.window() <= settled + 8 * MSS, "{kind:?} {limited} {}", flow.window());
            let still = flow.window();
            (0..100).for_each(|_| flow.round_of(4 * MSS, limited));
            assert_eq!(flow.window(), still);
        }
    }
}

#[test]
fn a_timeout_leaves_one_segment_and_repeated_ones_keep_the_threshold() {
    for (kind, threshold) in [(ControllerKind::NewReno, 40_000), (ControllerKind::Cubic, 56_000)] {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        flow.controller.on_sent(flow.now, 80_000, 80_000);
        flow.now += Duration::from_secs(1);
        flow.controller.on_rto(flow.now, 80_000);
        assert_eq!((flow.window(), flow.controller.ssthresh()), (MSS, Some(threshold)));
        flow.now += Duration::from_secs(2);
        flow.controller.on_rto(flow.now, 1000);
        assert_eq!((flow.window(), flow.controller.ssthresh()), (MSS, Some(threshold)));
        assert!(!flow.controller.in_recovery());
        // Losses of what was sent before belong to the same event.
        flow.controller.on_loss(flow.now, flow.now - RTT, MSS, 0);
        assert_eq!(flow.window(), MSS);
        // Slow start up to the threshold, not beyond.
        let mut rounds = 0;
        while flow.window() < threshold {
            flow.now += Duration::from_millis(1);
            flow.round();
            rounds += 1;
            assert!(rounds < 10);
        }
        assert!(flow.window() <= threshold + 2 * MSS, "{kind:?} {}", flow.window());
    }
}

#[test]
fn a_stretched_ack_after_a_timeout_opens_the_window_by_two_segments_only() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        (0..4).for_each(|_| flow.round());
        flow.controller.on_rto(flow.now, 160_000);
        flow.controller.on_sent(flow.now, MSS, MSS);
        let ack =
            AckEvent { bytes: 160_000, newest_sent: flow.now, app_limited: false, in_flight_before: MSS };
        flow.now += RTT;
        flow.controller.on_ack(flow.now, &ack, &flow.rtt);
        assert_eq!(flow.window(), 3 * MSS);
    }
}

#[test]
fn an_episode_of_spurious_losses_only_is_undone() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        let before = flow.window();
        let sent = flow.now;
        flow.now += RTT;
        flow.controller.on_loss(flow.now, sent, 3000, before - 3000);
        flow.controller.on_loss(flow.now, sent, 1000, before - 4000);
        flow.controller.on_spurious_bytes(3000);
        assert!(flow.window() < before, "one of four was lost indeed");
        flow.controller.on_spurious_bytes(1000);
        assert_eq!((flow.window(), flow.controller.ssthresh()), (before, None), "{kind:?}");
        assert!(!flow.controller.in_recovery());
        // Not twice.
        flow.controller.on_loss(flow.now, sent, 1000, before);
        flow.controller.on_spurious_bytes(1_000_000);
        flow.controller.on_spurious_loss();
        assert_eq!(flow.window(), before);
    }
}

#[test]
fn a_spurious_timeout_is_undone() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        (0..3).for_each(|_| flow.round());
        let before = flow.window();
        flow.controller.on_rto(flow.now, 80_000);
        assert_eq!(flow.window(), MSS);
        flow.controller.on_spurious_loss();
        assert_eq!((flow.window(), flow.controller.ssthresh()), (before, None));
    }
}

#[test]
fn a_larger_segment_size_raises_the_window_and_a_smaller_one_keeps_it() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        flow.controller.set_mss(65_000);
        assert_eq!(flow.window(), 130_000);
        flow.controller.set_mss(1000);
        assert_eq!(flow.window(), 130_000);
        let mut reduced = Flow::new(kind);
        (0..10).for_each(|_| reduced.loss());
        assert_eq!(reduced.window(), 2 * MSS);
        reduced.controller.set_mss(9000);
        assert_eq!((reduced.window(), reduced.controller.ssthresh()), (18_000, Some(18_000)));
        let mut timed_out = Flow::new(kind);
        timed_out.controller.on_rto(timed_out.now, 10_000);
        timed_out.controller.set_mss(9000);
        assert_eq!(timed_out.window(), 9000);
    }
}

#[test]
fn the_window_never_exceeds_its_bound() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        flow.controller = AnyController::new(kind, MSS, initial_window(MSS), 100_000);
        (0..20).for_each(|_| flow.round());
        assert_eq!(flow.window(), 100_000);
        flow.loss();
        (0..2000).for_each(|_| flow.round());
        assert_eq!(flow.window(), 100_000);
    }
}

#[test]
fn the_pace_is_the_window_per_round_trip_with_a_margin() {
    for kind in KINDS {
        let mut flow = Flow::new(kind);
        assert_eq!(flow.controller.pacing_rate(&RttEstimator::new(RTT)), None);
        assert_eq!(flow.controller.pacing_rate(&flow.rtt), Some(400_000));
        flow.loss();
        let expected = flow.window() * 25;
        assert_eq!(flow.controller.pacing_rate(&flow.rtt), Some(expected));
        let mut instant = RttEstimator::new(RTT);
        instant.update(Duration::ZERO);
        assert!(flow.controller.pacing_rate(&instant).is_some());
    }
}

/// A bottleneck of 100 segments per round trip with a queue of as many: the usual sawtooth.
fn utilisation(kind: ControllerKind, rounds: u32) -> f64 {
    let mut flow = Flow::new(kind);
    let (capacity, queue) = (100 * MSS, 100 * MSS);
    let mut delivered = 0;
    for _ in 0..rounds {
        let window = flow.window();
        let sent = flow.now;
        flow.controller.on_sent(sent, window, window);
        // What exceeds the pipe waits in the queue and lengthens the round.
        let stretch = window.min(capacity + queue).max(capacity);
        let rtt = RTT * u32::try_from(stretch / MSS).unwrap() / 100;
        flow.now += rtt;
        flow.rtt.update(rtt);
        let lost = window.saturating_sub(capacity + queue);
        delivered += (window - lost) * 1000 / rtt.as_millis() as u64;
        let ack = AckEvent {
            bytes: window - lost,
            newest_sent: sent,
            app_limited: false,
            in_flight_before: window,
        };
        flow.controller.on_ack(flow.now, &ack, &flow.rtt);
        if lost > 0 {
            flow.controller.on_loss(flow.now, sent, lost, 0);
        }
        flow.now += Duration::from_micros(1);
    }
    delivered as f64 / f64::from(rounds) / (capacity * 20) as f64
}

#[test]
fn both_controllers_keep_a_plain_bottleneck_busy() {
    for kind in KINDS {
        let share = utilisation(kind, 2000);
        assert!(share > 0.95 && share < 1.01, "{kind:?}: {share}");
    }
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_invariants(
        kind in prop::sample::select(&KINDS[..]),
        events in prop::collection::vec((0u8..9, 1u64..200_000, 0u64..100, any::<bool>()), 1..300),
    ) {
        let max = 10_000_000;
        let mut c = AnyController::new(kind, MSS, initial_window(MSS), max);
        let mut rtt = RttEstimator::new(RTT);
        let base = Instant::now();
        let mut now = base;
        let (mut timed_out, mut acked) = (false, 0);
        for (event, bytes, ms, flag) in events {
            now += Duration::from_millis(ms);
            let sent = now.checked_sub(Duration::from_millis(bytes % 150)).unwrap_or(base);
            let before = c.window();
            match event {
                0..=2 => c.on_sent(now, bytes, bytes * 2),
                3..=5 => {
                    rtt.update(Duration::from_millis(ms));
                    let ack = AckEvent { bytes, newest_sent: sent, app_limited: flag, in_flight_before: bytes };
                    c.on_ack(now, &ack, &rtt);
                    acked += bytes;
                    prop_assert!(c.window() >= before);
                    if flag {
                        prop_assert_eq!(c.window(), before, "grew although limited by the application");
                    }
                }
                6 => {
                    c.on_loss(now, sent, bytes, bytes);
                    prop_assert!(c.window() == before || c.in_recovery());
                    if c.window() < before {
                        let least = if kind == ControllerKind::Cubic { before * 69 / 100 } else { before / 2 };
                        prop_assert!(c.window() >= least);
                        timed_out = false;
                    }
                }
                7 => {
                    c.on_rto(now, bytes);
                    prop_assert_eq!(c.window(), MSS);
                    timed_out = true;
                }
                _ => {
                    c.on_spurious_bytes(bytes);
                    prop_assert!(c.window() >= before);
                }
            }
            let floor = if timed_out { MSS } else { 2 * MSS };
            prop_assert!(c.window() >= floor);
            prop_assert!(c.window() <= max);
            prop_assert!(c.ssthresh().is_none_or(|s| s >= 2 * MSS));
            prop_assert!(c.send_allowance(u64::MAX / 4) <= MSS.max(acked));
            prop_assert!(c.send_allowance(0) <= c.window().max(MSS));
            if let Some(rate) = c.pacing_rate(&rtt) {
                prop_assert!(rate > 0);
            }
        }
    }

    #[test]
    fn prr_never_sends_more_than_was_delivered_plus_one_segment_per_ack(
        acks in prop::collection::vec((0u64..20_000, 0u64..5000), 1..100),
    ) {
        let mut flow = Flow::new(ControllerKind::NewReno);
        (0..4).for_each(|_| flow.round());
        let window = flow.window();
        flow.controller.on_sent(flow.now, window, window);
        let sent = flow.now;
        let mut in_flight = window - MSS;
        flow.controller.on_loss(flow.now, sent, MSS, in_flight);
        let (mut delivered, mut out, mut count) = (0, 0, 0);
        for (bytes, lost) in acks {
            let bytes = bytes.min(in_flight);
            if bytes > 0 {
                let ack = AckEvent { bytes, newest_sent: sent, app_limited: false, in_flight_before: in_flight };
                flow.controller.on_ack(flow.now, &ack, &flow.rtt);
                delivered += bytes;
                count += 1;
                in_flight -= bytes;
            }
            in_flight -= lost.min(in_flight);
            let allowed = flow.controller.send_allowance(in_flight);
            flow.controller.on_sent(flow.now, allowed, in_flight + allowed);
            in_flight += allowed;
            out += allowed;
            prop_assert!(out <= delivered + (count + 1) * MSS + MSS, "{out} {delivered}");
            prop_assert!(in_flight <= flow.window() || allowed == 0 || out <= delivered + MSS);
        }
    }
}
