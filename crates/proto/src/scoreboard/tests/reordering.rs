//! What counts as reordering, and how much of it is forgiven.

use super::*;

#[test]
fn a_repaired_loss_is_no_sign_of_reordering() {
    let mut s = Sender::with_segments(5);
    s.now += 35 * MS;
    assert_eq!(s.ack(0, &[(1, 3)]).lost_bytes, 100);
    assert_eq!(s.retransmit(), [0]);
    s.now += 40 * MS;
    let outcome = s.ack(5, &[]);
    assert_eq!((outcome.spurious_bytes, s.board.in_recovery()), (0, false));
    // The retransmission arrived behind what was sent after it, which is what retransmissions do: three SACKed
    // segments still make a gap lost at once.
    s.send(5);
    s.now += 35 * MS;
    assert_eq!(s.ack(5, &[(6, 8)]).lost_bytes, 100);
}

#[test]
fn patience_grows_by_one_quarter_per_round_trip_however_many_losses_were_spurious_in_it() {
    let mut s = Sender::with_segments(30);
    s.now += 31 * MS;
    assert_eq!(s.ack(0, &[(3, 6)]).lost_bytes, 300);
    for una in 1..=3 {
        assert_eq!(s.ack(una, &[]).spurious_bytes, 100, "delivered after all, one by one");
    }
    s.ack(7, &[(9, 9)]);
    let oldest = s.board.oldest_sent().unwrap();
    let patience = s.board.loss_deadline().unwrap() - oldest;
    assert_eq!(patience, s.board.rack.rtt + s.rtt.min() / 4 * 2, "two quarters, not four");
}
