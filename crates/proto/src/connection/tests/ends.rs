//! Where a stream ends, and what comes after.

use super::*;
use crate::event::WriteError;

/// Both directions are over.
fn done(dialect: Dialect) -> Side {
    let mut side = Side::connected(dialect);
    side.conn.shutdown().expect("open");
    side.wait(5_000);
    assert_eq!(side.sent().len(), 1, "FIN");
    let fin = header(Flags::FIN | Flags::ACK, PEER_ISN + 1, OUR_ISN + 2);
    side.takes(&fin, b"");
    assert_eq!(side.conn.state, State::Done);
    assert_eq!(side.sent().len(), 1, "and its acknowledgement");
    side
}

#[test]
fn a_connection_that_is_done_answers_fin_and_nothing_else() {
    for dialect in BOTH {
        let mut side = done(dialect);
        let fin = header(Flags::FIN | Flags::ACK, PEER_ISN + 1, OUR_ISN + 2);
        for _ in 0..3 {
            assert_eq!(side.takes(&fin, b""), SegmentFate::Accepted);
            let answer = side.sent();
            assert_eq!(answer.len(), 1, "its first answer may have been lost");
            assert_eq!((answer[0].0.flags, answer[0].0.ack), (Flags::ACK, PEER_ISN + 2));
        }
        for flags in [Flags::ACK, Flags::RST, Flags::SYN, Flags::FIN | Flags::RST] {
            assert_eq!(side.takes(&header(flags, PEER_ISN + 1, OUR_ISN + 2), b"late"), SegmentFate::Dropped);
            assert!(side.sent().is_empty());
        }
        assert_eq!(side.conn.write(b"x"), Err(WriteError::Finished));
        assert_eq!(side.with(|c, cx| c.read(&mut [0; 4], cx)), Ok(0));
        assert!(side.conn.is_over() && side.conn.shutdown().is_ok());
        assert_eq!(side.conn.final_numbers(), (OUR_ISN + 2, PEER_ISN + 2));
    }
}

#[test]
fn nothing_is_read_behind_the_end_of_the_stream() {
    let mut side = Side::connected(Dialect::Pilotage);
    // The end is at ten, and the first ten bytes are still missing.
    side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1 + 10, OUR_ISN + 1), b"");
    side.takes_data(0, 0, &[7; 20]);
    assert_eq!(side.conn.readable(), 0, "it tells another story than the FIN did");
    side.takes_data(5, 0, &[7; 6]);
    assert_eq!(side.conn.held(), 0);
    side.takes_data(0, 0, &[7; 10]);
    let mut got = [0; 64];
    assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(10));
    assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(0));
}

#[test]
fn a_fin_from_outside_of_the_window_or_at_a_second_place_is_not_the_end() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.takes_data(0, 0, b"abc");
        side.wait(10);
        let beyond = side.cfg.recv_buffer as u32 + 100;
        for seq in [PEER_ISN + 1 + beyond, PEER_ISN + 1 + 1, PEER_ISN.wrapping_sub(9_000)] {
            side.takes(&header(Flags::FIN | Flags::ACK, seq, OUR_ISN + 1), b"");
            let answer = side.sent();
            assert!(
                !answer.is_empty() && answer.iter().all(|(h, _)| h.ack == PEER_ISN + 4),
                "{dialect:?} {seq}"
            );
        }
        side.takes_data(3, 0, b"def");
        side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1 + 6, OUR_ISN + 1), b"");
        // The place is fixed now.
        side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1 + 9, OUR_ISN + 1), b"");
        let mut got = [0; 64];
        assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(6));
        assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(0), "{dialect:?}");
        assert_eq!(side.sent().last().map(|(h, _)| h.ack), Some(PEER_ISN + 8));
    }
}

#[test]
fn one_direction_may_end_long_before_the_other() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1, OUR_ISN + 1), b"");
    assert_eq!(side.with(|c, cx| c.read(&mut [0; 4], cx)), Ok(0));
    assert_eq!(side.conn.state, State::Established);
    side.writes(b"still talking");
    assert_eq!(payload_bytes(&side.sent()), 13);
    side.takes(&header(Flags::ACK, PEER_ISN + 2, OUR_ISN + 14), b"");
    assert!(side.conn.is_flushed() && side.conn.state == State::Established);
    side.conn.shutdown().expect("open");
    assert!(!side.conn.is_flushed(), "not before FIN is acknowledged");
    assert_eq!(side.conn.write(b"x"), Err(WriteError::Finished));
    assert_eq!(side.sent().len(), 1);
    side.takes(&header(Flags::ACK, PEER_ISN + 2, OUR_ISN + 15), b"");
    assert_eq!(side.conn.state, State::Done);
}

#[test]
fn a_reference_fin_ends_our_direction_too() {
    let mut side = Side::connected(Dialect::Draft);
    side.takes(&header(Flags::FIN, PEER_ISN + 1, 0), b"");
    assert_eq!(side.conn.write(b"x"), Err(WriteError::Finished));
    let sent = side.sent();
    assert!(sent.iter().any(|(h, _)| h.flags == Flags::FIN), "{sent:?}");
}

#[test]
fn what_a_reference_peer_left_unacknowledged_at_its_fin_is_not_sent_again() {
    // Its application ended before the delayed acknowledgement left: it answers nothing any more, not even FIN.
    let mut side = Side::connected(Dialect::Draft);
    side.writes(b"answer");
    assert_eq!(payload_bytes(&side.sent()), 6);
    side.writes(&[1; 100]); // held back by Nagle
    side.takes(&header(Flags::FIN, PEER_ISN + 1, 0), b"");
    side.wait(90);
    let sent = side.sent();
    assert!(sent.iter().all(|(h, data)| h.flags == Flags::ACK && data.is_empty()), "{sent:?}");
    side.wait(10);
    let sent = side.sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].0.flags, sent[0].0.seq, sent[0].1.len()), (Flags::FIN, OUR_ISN + 7, 0));
    assert_eq!((side.conn.state, side.path.in_flight), (State::Done, 0));
    assert!(!side.conn.suspects_silence() && !side.conn.awaits_peer());
    assert!(!side.conn.is_flushed(), "nobody knows whether it was read");
    assert_eq!(side.conn.write(b""), Err(WriteError::Reset));
    side.wait(60_000);
    assert!(side.sent().is_empty());
}

#[test]
fn the_acknowledgement_behind_a_reference_fin_still_counts() {
    let mut side = Side::connected(Dialect::Draft);
    side.writes(b"answer");
    side.sent();
    side.takes(&header(Flags::FIN, PEER_ISN + 1, 0), b"");
    assert!(side.sent().iter().all(|(h, _)| h.flags == Flags::ACK));
    side.takes(&header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 7), b"");
    let sent = side.sent();
    assert_eq!(sent.iter().filter(|(h, _)| h.flags == Flags::FIN).count(), 1, "at once");
    assert!(side.conn.is_flushed() && side.conn.state == State::Done);
    // Its answer to our FIN is FIN with ACK: a bare acknowledgement is the last word.
    side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1, OUR_ISN + 8), b"");
    assert_eq!(side.sent().iter().map(|(h, _)| h.flags).collect::<Vec<_>>(), [Flags::ACK]);
}

#[test]
fn fins_that_cross_end_the_connection() {
    let mut side = Side::connected(Dialect::Draft);
    side.conn.shutdown().expect("open");
    side.wait(5_000);
    let ours = side.sent();
    assert_eq!((ours.len(), ours[0].0.flags, ours[0].0.seq), (1, Flags::FIN, OUR_ISN + 1));
    side.takes(&header(Flags::FIN, PEER_ISN + 1, 0), b"");
    let again = side.sent();
    assert!(
        again.iter().filter(|(h, _)| h.flags == Flags::FIN).all(|(h, _)| h.seq == OUR_ISN + 1),
        "{again:?}"
    );
    assert_eq!((side.conn.state, side.path.in_flight), (State::Done, 0));
}

#[test]
fn a_reference_dialler_sees_itself_connected_before_it_sees_the_end() {
    let mut side = Side::accepting(Dialect::Draft);
    side.sent();
    side.takes(&header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1), b"");
    side.writes(b"time of day");
    side.with(|c, cx| c.detach(cx.now));
    assert_eq!(payload_bytes(&side.sent()), 11);
    side.takes(&header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 12), b"");
    side.wait(39);
    assert!(side.sent().is_empty(), "its next look at the connection may be 10 ms away");
    side.wait(1);
    assert_eq!(side.sent().iter().map(|(h, _)| h.flags).collect::<Vec<_>>(), [Flags::FIN]);
}

#[test]
fn a_half_close_does_not_cut_off_what_a_reference_peer_still_says() {
    let mut side = Side::connected(Dialect::Draft);
    side.conn.shutdown().expect("open");
    for part in 0..4 {
        assert!(side.sent().iter().all(|(h, _)| h.flags == Flags::ACK), "it would end both directions");
        side.wait(4_900);
        side.takes_data(4 * part, 0, b"word");
    }
    let mut got = [0; 64];
    assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(16));
    side.sent();
    side.wait(40);
    assert_eq!(side.sent().iter().map(|(h, _)| h.ack).collect::<Vec<_>>(), [PEER_ISN + 17]);
    side.wait(4_959);
    assert!(side.sent().is_empty());
    side.wait(1);
    assert_eq!(side.sent().iter().map(|(h, _)| h.flags).collect::<Vec<_>>(), [Flags::FIN]);
    // Who no longer reads has nothing to wait for.
    let mut side = Side::connected(Dialect::Draft);
    side.with(|c, cx| c.detach(cx.now));
    assert_eq!(side.sent().iter().map(|(h, _)| h.flags).collect::<Vec<_>>(), [Flags::FIN]);
}

#[test]
fn a_failed_connection_leaves_no_bytes_in_flight_behind() {
    for how in 0..3 {
        let mut side = Side::connected(Dialect::Pilotage);
        side.writes(&[1; 5_000]);
        side.sent();
        assert_eq!(side.path.in_flight, 4 * MSS as u64);
        match how {
            0 => {
                side.takes(&header(Flags::RST, PEER_ISN + 1, 0), b"");
            }
            1 => side.with(|c, cx| c.reset(cx.path)),
            _ => side.with(|c, cx| c.on_tunnel_failed(ConnectError::HandshakeTimeout, cx.path)),
        }
        assert_eq!(side.path.in_flight, 0, "else the path's window is smaller for ever");
        assert!(matches!(side.conn.state, State::Failed(_)));
        // Our own reset is told, the others are not; and then nothing.
        let told: Vec<_> = side.sent().iter().map(|(h, _)| h.flags.contains(Flags::RST)).collect();
        assert_eq!(told, if how == 1 { vec![true] } else { vec![] });
        assert_eq!(side.takes_data(0, 0, b"late"), SegmentFate::Dropped);
        assert!(side.sent().is_empty() && side.conn.is_over());
        assert_eq!(side.with(|c, cx| c.read(&mut [0; 0], cx)), Ok(0), "an empty buffer asks for nothing");
    }
}

#[test]
fn what_arrived_before_a_reset_can_still_be_read() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.takes_data(0, 0, b"last words");
    side.takes(&header(Flags::RST, PEER_ISN + 11, 0), b"");
    let mut got = [0; 64];
    assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(10));
    assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Err(ReadError::Reset));
    assert_eq!(side.conn.write(b""), Err(WriteError::Reset));
}

#[test]
fn a_full_send_buffer_blocks_the_writer_until_there_is_room() {
    let mut side = Side::connected(Dialect::Pilotage);
    let ahead = crate::send_buffer::UNSENT_MAX;
    assert_eq!(side.conn.write(&vec![1; ahead + 100]), Ok(ahead), "no further ahead of what was sent");
    assert_eq!(side.conn.write(b"x"), Err(WriteError::Blocked));
    assert_eq!(side.conn.write(b""), Ok(0));
    side.conn.notify = Default::default();
    let mut acked = 0;
    let mut woken = 0;
    while acked < ahead as u32 {
        acked += payload_bytes(&side.sent()) as u32;
        woken += u32::from(std::mem::take(&mut side.conn.notify.writable));
        side.wait(20);
        let mut ack = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1 + acked);
        ack.window = 4_096;
        side.takes(&ack, b"");
        let flushed = std::mem::take(&mut side.conn.notify.writable);
        assert_eq!(flushed, side.conn.is_flushed(), "what is acknowledged was not waiting to be sent");
    }
    assert_eq!(woken, 1, "when half of it was sent");
    assert!(side.conn.is_flushed());
}

#[test]
fn the_first_reason_of_a_failure_stays() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.takes(&header(Flags::RST, PEER_ISN + 1, 0), b"");
    side.conn.notify = Default::default();
    side.with(|c, cx| c.on_tunnel_failed(ConnectError::HandshakeTimeout, cx.path));
    side.with(|c, cx| c.reset(cx.path));
    assert_eq!(side.conn.state, State::Failed(Failure::Reset));
    assert_eq!(side.conn.notify, Default::default(), "and is told once");
    assert!(side.sent().is_empty());
}

#[test]
fn a_syn_ack_that_answers_another_syn_is_refused() {
    let mut side = Side::dialling(Dialect::Pilotage);
    side.sent();
    for ack in [OUR_ISN, OUR_ISN + 2, 0] {
        let other = header(Flags::SYN | Flags::ACK, PEER_ISN, ack);
        assert_eq!(side.takes(&other, b""), SegmentFate::Refused);
    }
    // Data and acknowledgements mean nothing before it, and two calls that cross are two connections.
    assert_eq!(side.takes(&header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1), b"early"), SegmentFate::Dropped);
    assert_eq!(side.takes(&header(Flags::SYN, PEER_ISN, 0), b""), SegmentFate::Dropped);
    assert_eq!(side.conn.state, State::SynSent);
    assert!(side.sent().is_empty());
}
