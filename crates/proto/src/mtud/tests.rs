//! The search against simulated paths.

// A test needs a clock to begin with.
#![allow(clippy::disallowed_methods)]

use proptest::prelude::*;

use super::*;

/// A path with a true MTU, one round trip per step, other traffic always acknowledged while it is up.
struct Path {
    mtu: usize,
    /// Probes lost although they would fit: each n-th.
    lose_each: usize,
    sent: usize,
    /// Size of the datagrams that are acknowledged besides probes.
    data_size: usize,
    now: Instant,
    rtt: Duration,
}

impl Path {
    fn new(mtu: usize) -> Self {
        Self {
            mtu,
            lose_each: usize::MAX,
            sent: 0,
            data_size: 1000,
            now: Instant::now(),
            rtt: Duration::from_millis(40),
        }
    }

    /// One probe and what becomes of it. Returns false when the search is over.
    fn step(&mut self, mtud: &mut MtuDiscovery) -> bool {
        mtud.set_rtt(self.rtt);
        let Some(size) = mtud.poll_probe(self.now) else {
            return !mtud.is_complete();
        };
        assert_eq!(mtud.poll_probe(self.now), None, "one probe at a time");
        self.sent += 1;
        self.now += self.rtt;
        mtud.on_acked(self.data_size.min(mtud.current()));
        if size <= self.mtu && !self.sent.is_multiple_of(self.lose_each) {
            mtud.on_probe_acked(size, self.now);
        } else {
            self.now = mtud.timeout().expect("a probe is out").max(self.now);
            mtud.handle_timeout(self.now);
        }
        true
    }

    fn search(&mut self, mtud: &mut MtuDiscovery) {
        for _ in 0..500 {
            if !self.step(mtud) {
                return;
            }
        }
        panic!("the search does not end");
    }
}

#[test]
fn loopback_is_found_in_one_round_trip() {
    let mut mtud = MtuDiscovery::new(1200, 65_507, true);
    let mut path = Path::new(65_507);
    assert!(path.step(&mut mtud));
    assert_eq!(mtud.current(), 65_507);
    assert!(!path.step(&mut mtud));
    assert_eq!((path.sent, mtud.timeout()), (1, None));
}

#[test]
fn jumbo_frames_are_found_within_ten_round_trips() {
    let mut mtud = MtuDiscovery::new(1200, 65_507, true);
    let mut path = Path::new(8972);
    let begin = path.now;
    while mtud.current() < 8952 {
        assert!(path.step(&mut mtud));
    }
    assert!(path.now - begin <= path.rtt * 10, "{:?}", path.now - begin);
    path.search(&mut mtud);
    assert!((8972 - STEP..=8972).contains(&mtud.current()), "{}", mtud.current());
}

#[test]
fn an_interface_that_refuses_large_datagrams_costs_no_time() {
    let mut mtud = MtuDiscovery::new(1200, 65_507, true);
    let now = Instant::now();
    while let Some(size) = mtud.poll_probe(now) {
        if size > 1472 { mtud.on_too_big(size) } else { mtud.on_probe_acked(size, now) }
    }
    assert!(mtud.is_complete());
    assert!((1472 - STEP..=1472).contains(&mtud.current()));
}

#[test]
fn one_lost_probe_is_no_failure_but_three_are() {
    let mut mtud = MtuDiscovery::new(1200, 1400, true);
    let mut now = Instant::now();
    let mut sizes = Vec::new();
    for _ in 0..5 {
        sizes.push(mtud.poll_probe(now).unwrap());
        mtud.on_acked(1200);
        now = mtud.timeout().unwrap();
        mtud.handle_timeout(now);
    }
    // The optimistic one, three at the first size of the table, then between.
    assert_eq!(sizes, [1400, 1280, 1280, 1280, 1240]);
    assert_eq!(mtud.current(), 1200);
}

#[test]
fn a_silent_path_proves_nothing_and_is_asked_ever_more_rarely() {
    let mut mtud = MtuDiscovery::new(1200, 9000, true);
    let begin = Instant::now();
    let mut now = begin;
    let mut probes = 0;
    while now < begin + Duration::from_secs(600) {
        if let Some(size) = mtud.poll_probe(now) {
            assert_eq!(size, 9000);
            probes += 1;
        }
        now = mtud.timeout().expect("the search goes on");
        mtud.handle_timeout(now);
    }
    assert!(probes <= 16, "{probes}");
    // The path comes back.
    let mut path = Path { now, ..Path::new(9000) };
    path.search(&mut mtud);
    assert_eq!(mtud.current(), 9000);
}

#[test]
fn a_repeat_that_nobody_polls_for_runs_no_timer() {
    let mut mtud = MtuDiscovery::new(1200, 9000, true);
    let now = Instant::now();
    mtud.poll_probe(now);
    mtud.handle_timeout(mtud.timeout().unwrap());
    let at = mtud.timeout().unwrap();
    assert_eq!(mtud.poll_probe(at - Duration::from_nanos(1)), None);
    mtud.handle_timeout(at);
    assert_eq!(mtud.timeout(), None);
    assert_eq!(mtud.poll_probe(at), Some(9000));
}

#[test]
fn disabled_discovery_stays_at_the_base() {
    let mut mtud = MtuDiscovery::new(1200, 9000, false);
    let now = Instant::now();
    assert_eq!((mtud.poll_probe(now), mtud.timeout()), (None, None));
    mtud.on_probe_acked(9000, now);
    mtud.on_too_big(1300);
    mtud.on_lost(now, 1200);
    mtud.on_rto();
    assert_eq!((mtud.current(), mtud.poll_probe(now)), (1200, None));
}

#[test]
fn the_raise_timer_finds_a_path_that_has_become_wider() {
    let mut mtud = MtuDiscovery::new(1200, 9000, true);
    let mut path = Path::new(1452);
    path.search(&mut mtud);
    let narrow = mtud.current();
    assert!((1452 - STEP..=1452).contains(&narrow));
    let raise_at = mtud.timeout().unwrap();
    assert!(raise_at - path.now >= RAISE_TIMER - path.rtt);
    path.mtu = 9000;
    path.now = raise_at;
    mtud.handle_timeout(raise_at);
    path.search(&mut mtud);
    assert_eq!(mtud.current(), 9000);
}

fn searched(mtu: usize) -> (MtuDiscovery, Path) {
    let mut mtud = MtuDiscovery::new(1200, 9000, true);
    let mut path = Path::new(mtu);
    path.search(&mut mtud);
    (mtud, path)
}

#[test]
fn losses_of_full_datagrams_alone_make_a_black_hole() {
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..BLACK_HOLE_LOSSES {
        assert_eq!(mtud.current(), 9000);
        path.now += path.rtt;
        mtud.on_acked(1100);
        mtud.on_lost(path.now, 9000);
        // The same event.
        mtud.on_lost(path.now, 9000);
    }
    assert_eq!(mtud.current(), 1200);
    path.mtu = 1452;
    path.search(&mut mtud);
    assert!((1452 - STEP..=1452).contains(&mtud.current()));
}

#[test]
fn losses_of_a_segment_between_base_and_present_size_make_a_black_hole_too() {
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..BLACK_HOLE_LOSSES {
        assert_eq!(mtud.current(), 9000);
        path.now += path.rtt;
        mtud.on_acked(1399);
        mtud.on_lost(path.now, 1400);
    }
    assert_eq!(mtud.current(), 1200);
    // One as large that arrives shows that such a size passes; one of the base size proves nothing by its loss.
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..100 {
        path.now += path.rtt;
        mtud.on_lost(path.now, 1400);
        mtud.on_lost(path.now + path.rtt / 2, 5000);
        mtud.on_acked(1400);
        mtud.on_lost(path.now + path.rtt / 3, 1200);
    }
    assert_eq!(mtud.current(), 9000);
}

#[test]
fn no_probe_exceeds_the_limit_and_the_search_goes_on_when_that_grows() {
    let mut mtud = MtuDiscovery::new(1200, 65_507, true);
    let now = Instant::now();
    assert_eq!(mtud.poll_probe_within(now, 1279), None, "the smallest step is too large");
    assert!(!mtud.is_complete());
    assert_eq!(mtud.poll_probe_within(now, 12_000), Some(1280), "not the optimistic one");
    mtud.on_probe_acked(1280, now);
    // Each comes as soon as it may, and the repetition of a lost one keeps to the limit, too.
    assert_eq!(mtud.poll_probe_within(now, 1372), Some(1372));
    mtud.on_acked(1280);
    let later = mtud.timeout().unwrap();
    mtud.handle_timeout(later);
    assert_eq!(mtud.poll_probe_within(later, 1371), None, "the window has shrunk");
    assert_eq!(mtud.poll_probe_within(later, 1372), Some(1372));
    mtud.on_probe_acked(1372, later);
    assert_eq!(mtud.poll_probe_within(later, 70_000), Some(65_507), "now the optimistic one");
}

#[test]
fn ordinary_loss_makes_no_black_hole() {
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..1000 {
        path.now += path.rtt;
        mtud.on_lost(path.now, 9000);
        mtud.on_lost(path.now + path.rtt / 2, 8990);
        mtud.on_lost(path.now, 500);
        mtud.on_acked(8990);
    }
    assert_eq!(mtud.current(), 9000);
}

#[test]
fn two_timeouts_in_a_row_make_a_black_hole_and_an_outage_is_mended_soon_after() {
    let (mut mtud, mut path) = searched(9000);
    mtud.on_rto();
    mtud.on_acked(9000);
    mtud.on_rto();
    assert_eq!(mtud.current(), 9000);
    mtud.on_rto();
    assert_eq!(mtud.current(), 1200);
    path.step(&mut mtud);
    assert_eq!(mtud.current(), 9000);
}

#[test]
fn a_size_at_which_only_probes_pass_is_given_up_after_three_black_holes() {
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..MAX_FALLBACKS {
        assert_eq!(mtud.current(), 9000);
        mtud.on_rto();
        mtud.on_rto();
        assert_eq!(mtud.current(), 1200);
        path.search(&mut mtud);
    }
    assert!(mtud.current() < 9000 && mtud.current() >= 9000 - STEP, "{}", mtud.current());
}

#[test]
fn outages_however_many_do_not_cost_the_size() {
    let (mut mtud, mut path) = searched(9000);
    for _ in 0..10 {
        mtud.on_rto();
        mtud.on_rto();
        path.search(&mut mtud);
        mtud.on_acked(9000);
        assert_eq!(mtud.current(), 9000);
    }
}

#[test]
fn a_refusal_below_the_present_size_takes_effect_at_once() {
    let (mut mtud, mut path) = searched(9000);
    mtud.on_too_big(1400);
    assert_eq!(mtud.current(), 1200);
    path.mtu = 1399;
    path.search(&mut mtud);
    assert!((1399 - STEP..=1399).contains(&mtud.current()));
    // Not below what must always pass.
    mtud.on_too_big(600);
    assert!(mtud.current() >= 1200);
}

#[test]
fn a_late_acknowledgement_counts_and_a_forged_size_does_not() {
    let mut mtud = MtuDiscovery::new(1200, 9000, true);
    let now = Instant::now();
    mtud.on_probe_acked(9001, now);
    mtud.on_probe_acked(100, now);
    assert_eq!(mtud.current(), 1200);
    assert_eq!(mtud.poll_probe(now), Some(9000));
    mtud.on_acked(1200);
    mtud.handle_timeout(mtud.timeout().unwrap());
    mtud.on_probe_acked(9000, now);
    assert_eq!(mtud.current(), 9000);
}

proptest! {
    #[test]
    fn converges_to_the_largest_size_that_passes(mtu in 1200usize..70_000, max in 1200usize..=65_507, lose_each in 4usize..40) {
        let mut mtud = MtuDiscovery::new(1200, max, true);
        let mut path = Path { lose_each, ..Path::new(mtu) };
        path.search(&mut mtud);
        let best = mtu.min(max);
        prop_assert!(mtud.current() <= best);
        prop_assert!(mtud.current() + STEP >= best, "found {} of {best}", mtud.current());
        prop_assert!(path.sent <= 80, "{} probes", path.sent);
    }

    #[test]
    fn any_order_of_events_keeps_the_bounds(events in prop::collection::vec((0u8..8, 0usize..12_000, 0u64..3000), 1..300)) {
        let mut mtud = MtuDiscovery::new(1200, 9000, true);
        let mut now = Instant::now();
        for (kind, size, ms) in events {
            now += Duration::from_millis(ms);
            match kind {
                0 | 1 => { mtud.poll_probe(now); }
                2 => mtud.on_probe_acked(size, now),
                3 => mtud.handle_timeout(now),
                4 => mtud.on_too_big(size),
                5 => mtud.on_acked(size),
                6 => mtud.on_lost(now, size),
                _ => mtud.on_rto(),
            }
            prop_assert!((1200..=9000).contains(&mtud.current()));
            if let Some(at) = mtud.timeout() {
                mtud.handle_timeout(at);
                // Whatever it was, it is not due twice.
                prop_assert!(mtud.timeout().is_none_or(|next| next > at));
            }
        }
    }
}
