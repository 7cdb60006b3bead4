//! Losses that other connections of the path show (spec/recovery.md §4.7).

use super::*;

const MS: Duration = Duration::from_millis(1);

impl Side {
    /// Another connection of the path hears now, in a bare acknowledgement or not, of something that it sent `after` the
    /// present segment of ours, which left `ago`.
    fn hears_elsewhere(&mut self, ago: Duration, after: Duration, bare: bool) {
        self.path.order.on_delivered(self.now, self.now - ago + after, bare);
    }
}

#[test]
fn a_lone_tail_is_sent_again_when_something_later_was_delivered() {
    for (bare, wait) in [(true, 13), (false, 28)] {
        // The handshake took 10 ms.
        let mut side = Side::connected(Dialect::Pilotage);
        side.writes(&[1; 100]);
        assert_eq!(side.sent().len(), 1);
        side.wait(11);
        side.hears_elsewhere(MS * 11, MS, bare);
        side.wait(wait - 12);
        assert!(side.sent().is_empty(), "reordered, or held back by the peer");
        let in_flight = side.path.in_flight;
        side.wait(1);
        let again = side.sent();
        assert_eq!((again.len(), again[0].0.seq, again[0].1.len()), (1, OUR_ISN + 1, 100), "{bare}");
        let stats = side.conn.stats();
        assert_eq!((stats.tail_loss_probes, stats.timeouts, stats.segments_retransmitted), (0, 0, 1));
        assert_eq!(side.path.in_flight, in_flight, "counted once");
        // The next one is judged by what was sent after it.
        side.wait(13);
        assert!(side.sent().is_empty());
    }
}

#[test]
fn what_was_sent_after_the_newest_delivered_waits_for_its_probe() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.path.order.on_delivered(side.now, side.now - MS, true);
    side.writes(&[1; 100]);
    assert_eq!(side.sent().len(), 1);
    side.wait(34);
    assert!(side.sent().is_empty());
    side.wait(1);
    assert_eq!((side.sent().len(), side.conn.stats().tail_loss_probes), (1, 1), "2 * SRTT + 15 ms");
}

#[test]
fn a_reference_peer_is_judged_by_its_own_connection_alone() {
    let mut side = Side::connected(Dialect::Draft);
    side.writes(&[1; 2 * MSS]);
    assert_eq!(side.sent().len(), 2);
    side.wait(10);
    side.takes_data(0, MSS as u32, b"");
    assert!(!side.path.order.is_known());
}

#[test]
fn repairs_that_nothing_answers_become_rare() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[1; 100]);
    side.sent();
    let mut again = 0;
    for _ in 0..2_000 {
        side.wait(1);
        // Everything else arrives, 10 ms after it was sent.
        side.path.order.on_delivered(side.now, side.now - MS * 10, true);
        again += side.sent().len();
    }
    assert!((5..16).contains(&again), "{again} in two seconds");
}

#[test]
fn a_window_probe_is_not_taken_for_lost_by_what_others_deliver() {
    let mut side = Side::connected_with(Dialect::Pilotage, 0);
    side.writes(&[1; 100]);
    assert!(side.sent().is_empty());
    side.with(|c, cx| c.arm_persist(cx));
    side.wait(200);
    assert_eq!(payload_bytes(&side.sent()), 1);
    for _ in 0..30 {
        side.wait(1);
        side.hears_elsewhere(MS * 10, MS * 5, true);
        assert!(side.sent().is_empty());
    }
}

#[test]
fn the_first_handshake_segment_is_repeated_when_something_later_was_delivered() {
    for accepting in [false, true] {
        let mut side =
            if accepting { Side::accepting(Dialect::Pilotage) } else { Side::dialling(Dialect::Pilotage) };
        side.path.rtt.update(MS * 10);
        assert_eq!(side.sent().len(), 1);
        side.wait(12);
        side.hears_elsewhere(MS * 12, MS * 2, false);
        assert!(side.sent().is_empty());
        side.wait(1);
        assert_eq!(side.sent().len(), 1, "a round trip and a quarter");
        // Only once: who answers none may have no room for us.
        for _ in 0..100 {
            side.wait(1);
            side.hears_elsewhere(MS * 10, MS * 5, true);
            assert!(side.sent().is_empty());
        }
    }
}
