//! Behaviour by name, then everything against a model that scans all segments every time.

// A test needs a clock to begin with.
#![allow(clippy::disallowed_methods)]

use proptest::prelude::*;

use super::*;

mod model;
mod reordering;

const MS: Duration = Duration::from_millis(1);

/// A scoreboard with segments of 100 bytes, sent one millisecond apart, and a path of 40 ms.
struct Sender {
    board: Scoreboard,
    rtt: RttEstimator,
    now: Instant,
}

impl Sender {
    fn new() -> Self {
        Self { board: Scoreboard::new(), rtt: RttEstimator::new(100 * MS), now: Instant::now() }
    }

    /// One with a round-trip sample of 40 ms and `n` segments in flight behind it, sent 1 ms apart. They are named
    /// 0 to n - 1 below, whatever their offsets.
    fn with_segments(n: u64) -> Self {
        let mut sender = Self::new();
        sender.board.on_sent(sender.now, 0..100, false, false);
        sender.now += 40 * MS;
        let outcome = sender.board.on_ack(sender.now, 100, &[], &mut sender.rtt);
        assert_eq!(outcome.rtt_sample, Some(40 * MS));
        sender.send(n);
        sender
    }

    fn send(&mut self, n: u64) {
        for _ in 0..n {
            let nxt = self.board.nxt();
            self.board.on_sent(self.now, nxt..nxt + 100, false, false);
            self.now += MS;
        }
    }

    /// Everything before segment `cumulative` and the segments of `blocks` (inclusive) are acknowledged.
    fn ack(&mut self, cumulative: u64, blocks: &[(u64, u64)]) -> AckOutcome {
        let blocks: Vec<_> = blocks.iter().map(|&(a, b)| (at(a), at(b + 1))).collect();
        self.board.on_ack(self.now, at(cumulative), &blocks, &mut self.rtt)
    }

    /// Sends all lost segments again and returns which.
    fn retransmit(&mut self) -> Vec<u64> {
        let mut out = Vec::new();
        while let Some(segment) = self.board.next_lost() {
            out.push(segment.range.start / 100 - 1);
            self.board.on_retransmitted(self.now, segment.range.start);
            self.now += MS;
        }
        out
    }
}

fn at(segment: u64) -> u64 {
    (segment + 1) * 100
}

#[test]
fn a_cumulative_ack_reports_bytes_and_a_sample_of_the_newest_segment() {
    let mut s = Sender::with_segments(5);
    s.now += 35 * MS;
    let outcome = s.ack(3, &[]);
    assert_eq!((outcome.acked_bytes, outcome.cumulative_bytes, outcome.advanced), (300, 300, true));
    assert_eq!(outcome.rtt_sample, Some(38 * MS));
    assert_eq!((s.board.in_flight(), s.board.una(), s.board.len()), (200, at(3), 2));
    assert_eq!(s.ack(3, &[]), AckOutcome::default());
}

#[test]
fn an_ack_of_what_was_never_sent_changes_nothing() {
    let mut s = Sender::with_segments(2);
    let outcome = s.board.on_ack(s.now, at(2) + 1, &[(at(0), at(1))], &mut s.rtt);
    assert!(outcome.invalid && outcome.acked_bytes == 0);
    assert_eq!((s.board.in_flight(), s.board.una()), (200, at(0)));
}

#[test]
fn blocks_outside_of_what_is_outstanding_are_ignored() {
    let mut s = Sender::with_segments(3);
    let (una, nxt) = (at(0), at(3));
    for block in [
        (0, 50),
        (una, at(1)),
        (0, at(1)),
        (at(1), nxt + 1),
        (nxt, nxt + 100),
        (at(2), at(1)),
        (at(1), at(1)),
        (u64::MAX - 1, u64::MAX),
    ] {
        assert_eq!(s.board.on_ack(s.now, una, &[block], &mut s.rtt), AckOutcome::default(), "{block:?}");
    }
    assert_eq!(s.board.in_flight(), 300);
}

#[test]
fn a_block_that_covers_a_segment_in_part_does_not_count() {
    let mut s = Sender::with_segments(3);
    let outcome = s.board.on_ack(s.now, at(0), &[(at(1) + 1, at(3) - 1)], &mut s.rtt);
    assert_eq!(outcome.acked_bytes, 0);
    let outcome = s.board.on_ack(s.now, at(0), &[(at(1) + 1, at(3))], &mut s.rtt);
    assert_eq!(outcome.acked_bytes, 100);
}

#[test]
fn each_byte_is_reported_once_however_often_it_is_sacked() {
    let mut s = Sender::with_segments(10);
    assert_eq!(s.ack(0, &[(2, 3)]).acked_bytes, 200);
    assert_eq!(s.ack(0, &[(2, 5)]).acked_bytes, 200);
    assert_eq!(s.ack(0, &[(1, 8), (2, 5)]).acked_bytes, 400);
    assert_eq!(s.ack(10, &[]).acked_bytes, 200);
    assert!(s.board.is_empty() && s.board.in_flight() == 0);
}

#[test]
fn a_partial_ack_takes_the_beginning_of_a_segment() {
    let mut s = Sender::with_segments(2);
    let outcome = s.board.on_ack(s.now, at(0) + 30, &[], &mut s.rtt);
    assert_eq!((outcome.acked_bytes, outcome.cumulative_bytes, outcome.rtt_sample), (30, 30, None));
    assert!(outcome.newest_acked_sent.is_some());
    assert_eq!((s.board.in_flight(), s.board.una(), s.board.len()), (170, at(0) + 30, 2));
    s.board.on_rto(s.now);
    assert_eq!(s.board.next_lost().unwrap().range, at(0) + 30..at(1));
    s.board.on_ack(s.now, at(0) + 60, &[], &mut s.rtt);
    assert_eq!(s.board.next_lost().unwrap().range, at(0) + 60..at(1));
}

#[test]
fn the_fin_occupies_one_offset_and_its_ack_is_reported() {
    let mut s = Sender::with_segments(1);
    let nxt = s.board.nxt();
    s.board.on_sent(s.now, nxt..nxt + 11, true, false);
    assert!(!s.board.on_ack(s.now, nxt + 10, &[], &mut s.rtt).fin_acked);
    let outcome = s.board.on_ack(s.now, nxt + 11, &[], &mut s.rtt);
    assert!(outcome.fin_acked && s.board.is_empty());
    assert_eq!(outcome.acked_bytes, 1);
}

#[test]
fn a_sacked_fin_is_acknowledged_only_cumulatively() {
    let mut s = Sender::with_segments(1);
    let nxt = s.board.nxt();
    s.board.on_sent(s.now, nxt..nxt + 1, true, false);
    assert!(!s.board.on_ack(s.now, at(0), &[(nxt, nxt + 1)], &mut s.rtt).fin_acked);
    assert!(s.board.on_ack(s.now, nxt + 1, &[], &mut s.rtt).fin_acked);
}

#[test]
fn a_retransmitted_segment_gives_no_sample() {
    let mut s = Sender::with_segments(1);
    s.board.on_rto(s.now);
    s.retransmit();
    s.now += 40 * MS;
    let outcome = s.ack(1, &[]);
    assert_eq!((outcome.acked_bytes, outcome.rtt_sample, outcome.spurious_bytes), (100, None, 0));
}

#[test]
fn what_a_filled_gap_uncovers_gives_no_sample() {
    // The peer does not SACK: the ack of the retransmission covers segments that arrived long ago.
    let mut s = Sender::with_segments(5);
    s.now += 200 * MS;
    s.board.on_rto(s.now);
    let first = s.board.next_lost().unwrap().range.start;
    s.board.on_retransmitted(s.now, first);
    s.now += 40 * MS;
    assert_eq!(s.ack(5, &[]).rtt_sample, None);
}

#[test]
fn tail_reordering_within_the_window_is_no_loss() {
    let mut s = Sender::with_segments(5);
    s.now += 35 * MS;
    // 4 overtook 3: one segment SACKed, less than the duplicate threshold.
    let outcome = s.ack(3, &[(4, 4)]);
    assert_eq!(outcome.lost_bytes, 0);
    // 3 was sent 1 ms before 4: it has a quarter of 36 ms minus that 1 ms.
    let due = s.board.loss_deadline().expect("waiting for segment 3");
    assert_eq!(due - s.now, 9 * MS - MS);
    s.now = due - MS;
    assert_eq!(s.board.detect_losses(s.now, &s.rtt), Losses::default());
    assert_eq!(s.ack(5, &[]).acked_bytes, 100);
    assert_eq!(s.board.loss_deadline(), None);
}

#[test]
fn what_is_overdue_when_the_deadline_passes_is_lost() {
    let mut s = Sender::with_segments(5);
    s.now += 35 * MS;
    s.ack(3, &[(4, 4)]);
    s.now = s.board.loss_deadline().unwrap();
    let losses = s.board.detect_losses(s.now, &s.rtt);
    assert_eq!(losses.bytes, 100);
    assert_eq!((s.board.in_flight(), s.board.has_lost()), (0, true));
    assert_eq!(s.retransmit(), [3]);
    assert_eq!(s.board.in_flight(), 100);
}

#[test]
fn three_sacked_segments_make_a_gap_lost_at_once() {
    let mut s = Sender::with_segments(10);
    s.now += 31 * MS;
    assert_eq!(s.ack(0, &[(1, 2)]).lost_bytes, 0);
    let outcome = s.ack(0, &[(1, 3)]);
    assert_eq!(outcome.lost_bytes, 100);
    assert!(s.board.in_recovery());
    // In recovery nothing is forgiven at all.
    assert_eq!(s.ack(0, &[(1, 3), (5, 5)]).lost_bytes, 100);
    assert_eq!(s.retransmit(), [0, 4]);
    s.now += 40 * MS;
    s.ack(10, &[]);
    assert!(!s.board.in_recovery());
}

#[test]
fn after_reordering_was_seen_three_sacked_segments_are_no_proof() {
    let mut s = Sender::with_segments(20);
    s.now += 21 * MS;
    s.ack(0, &[(1, 1)]);
    s.ack(2, &[]); // 0 comes after 1
    assert_eq!(s.ack(2, &[(3, 8)]).lost_bytes, 0);
    assert!(s.board.loss_deadline().is_some());
}

#[test]
fn several_gaps_in_one_ack_are_no_reordering() {
    let mut s = Sender::with_segments(20);
    s.now += 21 * MS;
    // Newest block first, as RFC 2018 has it.
    s.ack(0, &[(8, 8), (2, 2), (4, 4)]);
    assert!(s.board.in_recovery(), "three SACKed, no reordering: gaps are lost at once");
}

#[test]
fn a_lost_retransmission_is_detected_by_what_was_sent_after_it() {
    let mut s = Sender::with_segments(10);
    s.now += 31 * MS;
    s.ack(0, &[(1, 4)]);
    assert_eq!(s.retransmit(), [0]);
    s.send(3);
    s.now += 37 * MS;
    // New data sent after the retransmission arrives, the retransmission does not.
    let outcome = s.ack(0, &[(1, 12)]);
    assert_eq!(outcome.lost_bytes, 100);
    assert_eq!(s.board.next_lost().unwrap().transmissions, 2);
    assert_eq!(s.retransmit(), [0]);
}

#[test]
fn an_ack_sooner_than_any_round_trip_after_the_retransmission_is_the_originals() {
    let mut s = Sender::with_segments(10);
    s.now += 31 * MS;
    s.ack(0, &[(1, 4)]);
    s.retransmit();
    s.now += 5 * MS;
    let outcome = s.ack(5, &[]);
    assert_eq!((outcome.acked_bytes, outcome.spurious_bytes), (100, 100));
}

#[test]
fn an_ack_before_the_retransmission_is_spurious_and_makes_rack_more_patient() {
    let mut s = Sender::with_segments(30);
    s.now += 31 * MS;
    assert_eq!(s.ack(0, &[(1, 4)]).lost_bytes, 100);
    let outcome = s.ack(5, &[]);
    assert_eq!((outcome.spurious_bytes, s.board.has_lost()), (100, false));
    assert_eq!(s.board.next_lost(), None);
    // Two quarters of the minimum round trip now.
    s.ack(5, &[(7, 7)]);
    let due = s.board.loss_deadline().unwrap();
    let min = s.rtt.min();
    assert_eq!(
        due - s.now,
        min / 4 * 2 - 2 * MS + s.board.rack.rtt + 2 * MS - (s.now - s.board.segments[0].sent)
    );
}

#[test]
fn a_timeout_loses_all_but_what_is_sacked() {
    let mut s = Sender::with_segments(6);
    s.now += 34 * MS;
    s.ack(0, &[(2, 2), (4, 4)]);
    let losses = s.board.on_rto(s.now);
    assert_eq!(losses.bytes, 400);
    assert_eq!(s.board.in_flight(), 0);
    assert_eq!(s.retransmit(), [0, 1, 3, 5]);
    assert_eq!((s.board.in_flight(), s.board.oldest_transmissions()), (400, 2));
}

#[test]
fn a_peer_that_goes_back_on_its_sacks_gets_everything_again_and_no_byte_counts_twice() {
    let mut s = Sender::with_segments(4);
    assert_eq!(s.ack(0, &[(1, 2)]).acked_bytes, 200);
    // 0 is acknowledged, 1 was SACKed and still is not acknowledged.
    assert_eq!(s.ack(1, &[]).acked_bytes, 100);
    let losses = s.board.on_rto(s.now);
    assert_eq!(losses.bytes, 100);
    assert_eq!(s.retransmit(), [1, 2, 3]);
    assert_eq!(s.board.in_flight(), 300);
    s.now += 40 * MS;
    let outcome = s.ack(4, &[]);
    assert_eq!((outcome.acked_bytes, outcome.spurious_bytes), (100, 0));
    assert_eq!(s.board.in_flight(), 0);
}

#[test]
fn the_probe_is_the_last_segment_in_flight_and_changes_no_bytes() {
    let mut s = Sender::with_segments(4);
    assert_eq!(s.board.probe_candidate().unwrap().range, at(3)..at(4));
    s.board.on_probe(s.now, at(3));
    assert_eq!(s.board.in_flight(), 400);
    assert_eq!(s.board.last_sent(), Some(s.now));
    s.now += 40 * MS;
    // The probe reveals that everything before it is lost, once the reordering window is over (RFC 8985 section 7.4).
    let outcome = s.ack(0, &[(3, 3)]);
    assert_eq!((outcome.lost_bytes, outcome.rtt_sample), (0, None));
    assert_eq!(s.board.loss_deadline(), Some(s.now + 6 * MS));
    s.now += 8 * MS;
    assert_eq!(s.board.detect_losses(s.now, &s.rtt).bytes, 300);
    assert_eq!(s.board.probe_candidate(), None);
}

#[test]
fn split_keeps_bytes_order_and_history() {
    let mut s = Sender::with_segments(3);
    let nxt = s.board.nxt();
    s.board.on_sent(s.now, nxt..nxt + 51, true, false);
    s.board.on_rto(s.now);
    s.board.split(at(1), at(1) + 40);
    s.board.split(nxt, nxt + 50);
    // Not possible: at the edges, elsewhere.
    s.board.split(at(0), at(0));
    s.board.split(at(0), at(1));
    s.board.split(at(0) + 1, at(0) + 2);
    assert_eq!((s.board.len(), s.board.in_flight()), (6, 0));
    let mut seen = Vec::new();
    while let Some(segment) = s.board.next_lost() {
        seen.push((segment.range.clone(), segment.fin, segment.transmissions));
        s.board.on_retransmitted(s.now, segment.range.start);
        s.now += MS;
    }
    let expected = [
        (at(0)..at(1), false, 1),
        (at(1)..at(1) + 40, false, 1),
        (at(1) + 40..at(2), false, 1),
        (at(2)..at(3), false, 1),
        (nxt..nxt + 50, false, 1),
        (nxt + 50..nxt + 51, true, 1),
    ];
    assert_eq!(seen, expected);
    assert_eq!(s.board.in_flight(), 351);
}

#[test]
fn the_segment_bound_is_reported() {
    let mut board = Scoreboard::new();
    let now = Instant::now();
    for i in 0..MAX_SEGMENTS as u64 {
        assert!(!board.is_full());
        board.on_sent(now, i..i + 1, false, false);
    }
    assert!(board.is_full());
    let mut rtt = RttEstimator::new(100 * MS);
    board.on_ack(now, 1, &[], &mut rtt);
    assert!(!board.is_full());
}

#[test]
fn release_gives_memory_back_when_nothing_is_outstanding() {
    let mut s = Sender::with_segments(1000);
    s.board.release();
    assert_eq!(s.board.len(), 1000);
    s.ack(1000, &[]);
    s.board.release();
    assert_eq!(s.board.segments.capacity(), 0);
    s.send(1);
    assert_eq!(s.board.in_flight(), 100);
}

/// The attack of CVE-2019-11477 and its kin: every other segment is SACKed, four more in each acknowledgement, and all
/// blocks are repeated. Counted in steps of the search, not in time.
#[test]
fn fifty_thousand_one_byte_gaps_are_handled_in_linear_time() {
    let mut board = Scoreboard::new();
    let mut rtt = RttEstimator::new(100 * MS);
    let mut now = Instant::now();
    const N: u64 = 50_000;
    for i in 0..N {
        board.on_sent(now, i..i + 1, false, false);
    }
    now += 40 * MS;
    let begin = Instant::now();
    let mut acked = 0;
    let mut i = 1;
    while i + 8 < N {
        let blocks = [(i, i + 1), (i + 2, i + 3), (i + 4, i + 5), (i + 6, i + 7)];
        acked += board.on_ack(now, 0, &blocks, &mut rtt).acked_bytes;
        i += 8;
    }
    // Then blocks over everything, again and again: each closes some gaps, and must not look at the rest.
    for i in 0..2000 {
        acked += board.on_ack(now, 0, &[(1, 25 + i * 24)], &mut rtt).acked_bytes;
    }
    let acked = acked + board.on_ack(now, N, &[], &mut rtt).acked_bytes;
    assert_eq!(acked, N);
    assert!(board.resent.is_empty() && board.lost.is_empty());
    // A scan of the window per acknowledgement would be 10^8 to 10^9 steps: many seconds in this build.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn a_block_that_was_seen_before_is_passed_in_one_step() {
    let mut s = Sender::with_segments(100);
    s.now += 40 * MS;
    for i in 1..99 {
        s.ack(0, &[(1, i)]);
    }
    s.ack(0, &[(1, 98), (1, 99)]);
    assert_eq!(s.board.segments[1].run, 98);
}

#[test]
fn a_second_probe_does_not_hide_a_lost_retransmission() {
    let mut s = Sender::with_segments(10);
    s.board.on_probe(s.now, at(9));
    s.now += MS;
    s.board.on_rto(s.now);
    s.board.on_retransmitted(s.now, at(9));
    s.now += MS;
    s.board.on_retransmitted(s.now, at(0));
    s.now += MS;
    // 9 was sent before 0, and once more after it.
    s.board.on_probe(s.now, at(9));
    s.send(1);
    s.now += 60 * MS;
    let outcome = s.ack(0, &[(10, 10)]);
    assert!(outcome.lost_bytes >= 200);
    // Its newest transmission was before the delivered one as well; with a later one it is not lost.
    s.board.on_retransmitted(s.now, at(9));
    s.now += MS;
    s.board.on_retransmitted(s.now, at(0));
    s.now += MS;
    s.send(1);
    s.board.on_probe(s.now, at(9));
    s.now += 60 * MS;
    assert_eq!(s.ack(0, &[(10, 11)]).lost_bytes, 100, "0, and not 9");
}

#[test]
fn stale_entries_of_the_retransmission_queue_are_bounded() {
    let mut s = Sender::with_segments(10);
    for _ in 0..10_000 {
        s.board.on_probe(s.now, at(9));
        s.now += MS;
    }
    assert!(s.board.resent.len() <= 2 * 10 + 65, "{}", s.board.resent.len());
    for _ in 0..1000 {
        s.board.on_rto(s.now);
        s.retransmit();
    }
    assert!(s.board.resent.len() <= 10 && s.board.lost.len() <= 10);
}

#[test]
fn what_a_report_had_no_room_for_is_not_taken_for_lost() {
    let mut s = Sender::with_segments(20);
    s.now += 40 * MS;
    // 0 and 2 are missing; whether 4 and later ones arrived there was no room to tell.
    s.board.set_reported_end(Some(at(4)));
    s.ack(0, &[(1, 1), (3, 3)]);
    s.now += 20 * MS;
    assert_eq!(s.board.detect_losses(s.now, &s.rtt).bytes, 200);
    assert_eq!(s.retransmit(), [0, 2]);
    s.now += 60 * MS;
    s.board.set_reported_end(Some(at(8)));
    s.ack(4, &[(5, 7)]);
    assert_eq!(s.retransmit(), [4], "and nothing beyond 8, though it is older");
    s.now += 60 * MS;
    s.board.set_reported_end(None);
    assert_eq!(s.ack(8, &[]).lost_bytes, 1_200, "all the others");
    s.board.set_reported_end(Some(at(8)));
    s.board.on_rto(s.now);
    assert_eq!(s.retransmit().len(), 12, "the timer is not held back");
}

fn op() -> impl Strategy<Value = model::Op> {
    use model::Op;

    let block = (0u64..1020, 0u64..300).prop_map(|(a, len)| (a, a + len));
    prop_oneof![
        8 => (1u64..40, any::<bool>()).prop_map(|(len, app_limited)| Op::Send { len, app_limited }),
        8 => (prop_oneof![3 => Just(0u64), 2 => 0u64..300, 1 => 0u64..1010], prop::collection::vec(block, 0..4),
              prop::bool::weighted(0.8))
            .prop_map(|(cumulative, blocks, whole)| Op::Ack { cumulative, blocks, whole }),
        6 => (0u64..20_000).prop_map(|us| Op::Wait { us }),
        4 => (1usize..6).prop_map(|count| Op::Retransmit { count }),
        1 => Just(Op::Probe),
        1 => Just(Op::Rto),
        3 => Just(Op::Timer),
        1 => (0u64..40_000).prop_map(|ago_us| Op::Overdue { ago_us }),
        1 => (0u64..1000, 0u64..1000).prop_map(|(segment, at)| Op::Split { segment, at }),
        2 => (0u64..1200).prop_map(|up_to| Op::Told { up_to }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_model_that_scans_everything(ops in prop::collection::vec(op(), 1..150)) {
        let mut pair = model::Pair::new(Instant::now());
        for op in ops {
            pair.apply(op);
        }
        pair.finish();
    }
}
