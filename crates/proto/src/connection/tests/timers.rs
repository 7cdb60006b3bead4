//! What happens when nothing comes: back-off, giving up, keepalives.

use super::*;
use crate::event::WriteError;

impl Side {
    fn deadline(&mut self) -> Option<Duration> {
        self.with(|c, cx| c.deadline(cx.path, cx.cfg)).map(|t| t.saturating_duration_since(self.now))
    }

    /// Waits for the next deadline; `false` if there is none.
    fn next(&mut self) -> bool {
        let Some(wait) = self.deadline() else { return false };
        self.now += wait;
        self.wait(0);
        true
    }
}

#[test]
fn timeouts_double_up_to_their_bound_and_then_the_connection_is_given_up() {
    let mut side = Side::connected(Dialect::Pilotage);
    let begin = side.now;
    side.writes(&[1; 500]);
    side.sent();
    let mut times = Vec::new();
    while side.conn.state == State::Established {
        assert!(side.next() && times.len() < 100);
        if payload_bytes(&side.sent()) > 0 {
            times.push((side.now - begin).as_millis());
        }
    }
    let gaps: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
    // First a probe, then 200 ms doubled each time, but eight tries within the 30 s of the user time-out.
    assert_eq!(gaps[..6], [200, 400, 800, 1_600, 3_200, 3_750]);
    assert!(gaps[6..].iter().all(|gap| *gap == 3_750), "{gaps:?}");
    assert_eq!(side.conn.state, State::Failed(Failure::TimedOut));
    assert!((30_000..34_000).contains(&(side.now - begin).as_millis()));
    assert_eq!(side.conn.write(b"x"), Err(WriteError::TimedOut));
    assert_eq!(side.conn.shutdown(), Err(WriteError::TimedOut));
    assert_eq!(side.with(|c, cx| c.read(&mut [0; 4], cx)), Err(ReadError::TimedOut));
    assert_eq!(side.deadline(), None, "nothing more to wait for");
    let stats = side.conn.stats();
    assert_eq!((stats.tail_loss_probes, stats.segments_sent), (1, 1 + times.len() as u64));
}

#[test]
fn progress_ends_the_back_off_and_restarts_the_timer() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[1; 500]);
    side.sent();
    while side.conn.stats().timeouts < 3 {
        assert!(side.next());
        side.sent();
    }
    assert!(side.conn.suspects_silence());
    side.takes_data(0, 500, b"");
    assert!(!side.conn.suspects_silence());
    side.writes(&[1; 3 * MSS]);
    assert_eq!(side.sent().len(), 1, "the timeouts left a window of one segment");
    let fresh = side.deadline().expect("outstanding");
    assert!(fresh < Duration::from_millis(400), "{fresh:?}: no trace of the three timeouts");
    // What is sent into an empty path starts the timer anew.
    side.wait(fresh.as_millis() as u64 - 1);
    side.takes_data(0, 500 + MSS as u32, b"");
    assert_eq!(side.sent().len(), 2);
    assert!(side.deadline().expect("outstanding") > Duration::from_millis(4));
}

#[test]
fn a_peer_that_talks_but_never_acknowledges_is_given_up_in_the_end() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[1; 500]);
    for second in 0..400 {
        side.sent();
        side.wait(1_000);
        if side.conn.state != State::Established {
            assert!((115..=125).contains(&second), "four user time-outs, at {second} s");
            assert_eq!(side.conn.state, State::Failed(Failure::TimedOut));
            assert!(side.sent()[0].0.flags.contains(Flags::RST));
            return;
        }
        side.takes_data(second, 0, b".");
    }
    panic!("waits for ever");
}

#[test]
fn an_attempt_that_nobody_answers_is_repeated_and_given_up() {
    for (mut side, incoming) in
        [(Side::dialling(Dialect::Pilotage), false), (Side::accepting(Dialect::Pilotage), true)]
    {
        let begin = side.now;
        let mut sent = side.sent().len();
        assert_eq!(sent, 1);
        assert!(side.conn.awaits_peer() && !side.conn.suspects_silence());
        while !matches!(side.conn.state, State::Failed(_)) {
            assert!(side.next() && sent < 100);
            sent += side.sent().iter().filter(|(h, _)| h.flags.contains(Flags::SYN)).count();
        }
        assert_eq!(side.conn.connect_error(), Some(ConnectError::Timeout));
        let took = (side.now - begin).as_secs();
        assert_eq!(took, if incoming { 30 } else { 15 });
        // Every 0.75 to 1 s, the first wait 1 to 1.25 s.
        assert!(if incoming { 30..=40 } else { 15..=20 }.contains(&sent), "{sent}");
        assert!(!side.conn.awaits_peer() && side.deadline().is_none());
        assert_eq!(side.conn.write(b"x"), Err(WriteError::Connect(ConnectError::Timeout)));
        assert_eq!(
            side.with(|c, cx| c.read(&mut [0; 4], cx)),
            Err(ReadError::Connect(ConnectError::Timeout))
        );
    }
}

#[test]
fn a_silent_idle_peer_is_asked_and_then_given_up() {
    for (dialect, limit) in [(Dialect::Draft, 120), (Dialect::Pilotage, 60)] {
        let mut side = Side::connected(dialect);
        let begin = side.now;
        let mut asked = 0;
        while side.conn.state == State::Established {
            assert!(side.next() && asked < 50);
            asked += side.sent().len();
        }
        assert_eq!((side.now - begin).as_secs(), limit, "{dialect:?}");
        assert_eq!(side.conn.state, State::Failed(Failure::TimedOut));
        assert!((3..=5).contains(&asked), "{dialect:?}: {asked}");
        // One that answers stays.
        let mut side = Side::connected(dialect);
        for _ in 0..20 {
            assert!(side.next());
            if !side.sent().is_empty() {
                side.takes_data(0, 0, b"");
            }
        }
        assert_eq!(side.conn.state, State::Established);
    }
}

#[test]
fn a_dropped_handle_does_not_keep_the_connection_for_ever() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.with(|c, cx| c.detach(cx.now));
    side.sent();
    side.takes_data(0, 1, b"");
    let begin = side.now;
    while side.conn.state == State::Established {
        assert!(side.next() && side.now - begin < Duration::from_secs(100));
        for (hdr, _) in side.sent() {
            if hdr.flags == Flags::ACK {
                side.takes_data(0, 1, b""); // it lives, but does not end its direction
            }
        }
    }
    assert_eq!((side.now - begin).as_secs(), 60);
    assert_eq!(side.conn.state, State::Failed(Failure::TimedOut));
}

#[test]
fn what_is_sent_after_a_long_pause_has_all_the_time_there_is() {
    let mut side = Side::connected(Dialect::Pilotage);
    for _ in 0..10 {
        side.wait(20_000);
        side.takes(&header(Flags::ACK, PEER_ISN, OUR_ISN + 1), b""); // a keepalive
        side.sent();
    }
    side.writes(b"after the pause");
    assert_eq!(payload_bytes(&side.sent()), 15);
    // The first copies are lost.
    for _ in 0..3 {
        assert!(side.next());
        assert_eq!(side.conn.state, State::Established);
        side.sent();
    }
    assert!(side.conn.stats().segments_retransmitted > 0);
}

#[test]
fn a_lost_fin_is_sent_again_as_a_fin_at_the_same_place() {
    for data in [&b""[..], b"last words"] {
        let mut side = Side::connected(Dialect::Pilotage);
        side.writes(data);
        side.conn.shutdown().expect("open");
        let place = |sent: &[Sent]| {
            let fins: Vec<_> = sent.iter().filter(|(h, _)| h.flags.contains(Flags::FIN)).collect();
            assert!(fins.len() <= 1);
            fins.first().map(|(h, payload)| h.seq.wrapping_add(payload.len() as u32))
        };
        let end = OUR_ISN + 1 + data.len() as u32;
        assert_eq!(place(&side.sent()), Some(end));
        let mut again = 0;
        while side.conn.stats().timeouts < 4 {
            assert!(side.next());
            let sent = side.sent();
            if let Some(at) = place(&sent) {
                assert_eq!(at, end);
                again += 1;
            }
            assert!(sent.iter().all(|(h, payload)| h.seq.wrapping_add(payload.len() as u32) <= end));
        }
        assert!(again >= 4, "by the probe and by each timeout: {again}");
        side.takes_data(0, data.len() as u32 + 1, b"");
        assert!(side.conn.is_flushed());
    }
}

#[test]
fn a_handshake_that_needed_two_tries_measures_no_round_trip() {
    let mut side = Side::dialling(Dialect::Pilotage);
    assert_eq!(side.sent().len(), 1);
    side.wait(999);
    assert_eq!(side.sent().len(), 0, "not before 1 s (RFC 6298 §2.1)");
    side.wait(251);
    assert_eq!(side.sent().len(), 1, "again");
    side.wait(10);
    // Which of the two it answers nobody knows (Karn).
    side.takes(&header(Flags::SYN | Flags::ACK, PEER_ISN, OUR_ISN + 1), b"");
    assert_eq!(side.conn.state, State::Established);
    assert!(!side.path.rtt.has_sample());
}

#[test]
fn the_probe_waits_two_round_trips_and_for_the_delayed_acknowledgement_of_a_lone_segment() {
    let ms = Duration::from_millis;
    // The handshake took 10 ms.
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[1; MSS]);
    assert_eq!(side.sent().len(), 1);
    assert_eq!(side.deadline(), Some(ms(20 + 40)));
    side.writes(&[1; 2 * MSS]);
    assert_eq!(side.sent().len(), 2);
    assert_eq!(side.deadline(), Some(ms(20)), "the second segment is acknowledged at once");
    // An acknowledgement of a part starts it anew (RFC 6298 rule 5.3).
    side.wait(15);
    side.takes_data(0, MSS as u32, b"");
    side.wait(19);
    assert!(side.sent().is_empty());
}

#[test]
fn a_gap_is_repaired_when_reordering_has_had_its_time() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[1; 3 * MSS]);
    assert_eq!(side.sent().len(), 3);
    side.wait(10);
    let mut look = vec![0; 64];
    let len = sack::encode(&[(OUR_ISN + 1 + MSS as u32, OUR_ISN + 1 + 2 * MSS as u32)], &mut look);
    side.takes_data(0, 0, &look[..len]);
    assert!(side.sent().is_empty(), "one segment that overtook another is no loss yet");
    // A quarter of a round trip, long before any probe.
    side.now += Duration::from_micros(2_499);
    side.wait(0);
    assert!(side.sent().is_empty());
    side.now += Duration::from_micros(1);
    side.wait(0);
    let sent = side.sent();
    assert_eq!((sent.len(), sent[0].0.seq, sent[0].1.len()), (1, OUR_ISN + 1, MSS));
}

#[test]
fn a_keepalive_to_a_reference_peer_carries_a_byte_that_it_knows() {
    for sent in [0, 500] {
        let mut side = Side::connected(Dialect::Draft);
        if sent > 0 {
            side.writes(&[1; 500]);
            side.sent();
            side.takes_data(0, 500, b"");
        }
        let mut alive = 0;
        for _ in 0..40 {
            side.wait(10_000);
            for (hdr, payload) in side.sent() {
                assert_eq!(
                    (hdr.flags, hdr.seq, payload.len()),
                    (Flags::ACK, OUR_ISN + sent, 1),
                    "below what it expects"
                );
                side.takes_data(0, sent, b""); // so it acknowledges at once
                alive += 1;
            }
        }
        assert!((8..=14).contains(&alive), "{alive} in 400 s");
        assert_eq!(side.conn.state, State::Established);
    }
    // A byte that the peer may not have yet would become part of the stream there.
    let mut side = Side::connected(Dialect::Draft);
    side.writes(&[1; 500]);
    side.sent();
    side.conn.probe_liveness();
    let (hdr, payload) = side.sent().pop().expect("a keepalive");
    assert_eq!((hdr.seq, payload.len()), (OUR_ISN, 1));
}

#[test]
fn a_keepalive_never_brings_a_reference_peer_a_byte_behind_the_end() {
    // FIN takes a number of its own: where it was lost, a byte with that number would be read as data.
    let mut side = Side::connected(Dialect::Draft);
    side.writes(&[1; 500]);
    side.sent();
    side.conn.probe_liveness();
    side.takes(&header(Flags::FIN, PEER_ISN + 1, 0), b"");
    side.wait(200); // our last word, with 500 bytes given up
    for (hdr, payload) in side.sent() {
        assert!(payload.is_empty() || hdr.seq == OUR_ISN, "{hdr:?} {payload:?}");
    }
    assert_eq!(side.conn.state, State::Done);
    assert!(side.sent().is_empty() && !side.conn.wants_to_send(), "silence after the end");
    // FIN is out and acknowledged, the peer goes on: what it knows for sure is the last byte in front of FIN.
    let mut side = Side::connected(Dialect::Draft);
    side.writes(&[1; 500]);
    side.sent();
    side.takes_data(0, 500, b"");
    side.conn.shutdown().expect("open");
    side.wait(6_000);
    side.sent();
    side.takes_data(0, 501, b"");
    side.conn.probe_liveness();
    let (hdr, payload) = side.sent().pop().expect("a keepalive");
    assert_eq!((hdr.seq, payload.len()), (OUR_ISN + 500, 1));
}
