//! Flow control at its edges, and which acknowledgements leave at once.

use super::*;

#[test]
fn the_window_is_used_to_its_last_byte_and_not_one_further() {
    let mut side = Side::connected_with(Dialect::Pilotage, 1);
    side.writes(&[3; 10_000]);
    let whole = payload_bytes(&side.sent());
    assert_eq!(whole, WINDOW_UNIT as usize / MSS * MSS, "no small segment while others are under way");
    side.wait(10);
    let mut ack = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1 + whole as u32);
    ack.window = 0;
    side.takes(&ack, b"");
    assert_eq!(payload_bytes(&side.sent()), WINDOW_UNIT as usize - whole);
    side.wait(10);
    ack.ack = OUR_ISN + 1 + WINDOW_UNIT as u32;
    side.takes(&ack, b"");
    assert_eq!(payload_bytes(&side.sent()), 0, "closed");
}

#[test]
fn a_late_acknowledgement_takes_back_no_room() {
    let mut side = Side::connected_with(Dialect::Pilotage, 4);
    side.writes(&[3; 100_000]);
    let first = payload_bytes(&side.sent()) as u32;
    side.wait(10);
    let mut ack = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1 + first);
    ack.window = 8;
    side.takes(&ack, b"");
    // Sent before it, arriving after it.
    let mut late = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1);
    late.window = 1;
    side.takes(&late, b"");
    assert!(payload_bytes(&side.sent()) > 0, "eight units were granted");
}

#[test]
fn a_closed_window_is_probed_with_one_byte_until_it_opens() {
    let mut side = Side::connected_with(Dialect::Pilotage, 1);
    side.writes(&[3; 10_000]);
    let mut acked = 0;
    let mut ack = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1);
    ack.window = 0;
    while acked < WINDOW_UNIT as u32 {
        acked += payload_bytes(&side.sent()) as u32;
        side.wait(10);
        ack.ack = OUR_ISN + 1 + acked;
        side.takes(&ack, b"");
    }
    assert!(side.sent().is_empty());
    side.with(|c, cx| c.arm_persist(cx));
    let due = side.with(|c, cx| c.deadline(cx.path, cx.cfg)).expect("the persist timer");
    assert!(due - side.now <= Duration::from_secs(1), "{:?}", due - side.now);
    side.now = due;
    side.wait(0);
    let probe = side.sent();
    assert_eq!((probe.len(), probe[0].1.len(), probe[0].0.seq), (1, 1, OUR_ISN + 1 + acked));
    // Still closed: the peer lives, and the probe stays outstanding.
    side.wait(10);
    side.takes(&ack, b"");
    assert!(side.sent().is_empty());
    ack.window = 10;
    side.takes(&ack, b"");
    let sent = side.sent();
    assert_eq!(
        (sent[0].1.len(), sent[0].0.seq),
        (1, OUR_ISN + 1 + acked),
        "open: the probe's byte again, at once"
    );
    assert_eq!(payload_bytes(&sent), 1 + 5 * MSS, "and all full segments");
}

#[test]
fn reading_half_of_a_full_buffer_is_told_at_once() {
    let mut side = Side::connected(Dialect::Pilotage);
    let buffer = side.cfg.recv_buffer;
    let chunk = vec![1; 65_536];
    for offset in (0..buffer as u32).step_by(chunk.len()) {
        side.takes_data(offset, 0, &chunk);
    }
    assert_eq!(side.sent().last().expect("an ACK").0.window, 0);
    let mut sink = vec![0; buffer / 2];
    assert_eq!(side.with(|c, cx| c.read(&mut sink[..100], cx)), Ok(100));
    assert!(side.sent().is_empty(), "hundred bytes are not worth a packet (RFC 9293: silly window)");
    assert_eq!(side.with(|c, cx| c.read(&mut sink, cx)), Ok(buffer / 2));
    let update = side.sent();
    assert_eq!(update.len(), 1);
    assert_eq!(u64::from(update[0].0.window), (buffer as u64 / 2 + 100) / WINDOW_UNIT);
}

#[test]
fn the_second_segment_and_a_filled_hole_are_acknowledged_at_once_and_a_lone_one_after_its_time() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.takes_data(0, 0, &[1; 100]);
        assert!(side.sent().is_empty());
        side.takes_data(100, 0, &[1; 100]);
        if dialect == Dialect::Draft {
            assert!(side.sent().is_empty(), "a little later");
            side.wait(3);
            assert_eq!(side.sent().len(), 1);
            side.wait(3);
        }
        let sent = side.sent();
        assert_eq!((sent.len(), sent[0].0.ack), (1, PEER_ISN + 201));
        side.takes_data(200, 0, &[1; 100]);
        side.wait(if dialect == Dialect::Draft { 39 } else { 9 });
        assert!(side.sent().is_empty());
        side.wait(1);
        let sent = side.sent();
        assert_eq!((sent.len(), sent[0].0.ack), (1, PEER_ISN + 301));
        // A hole, and what fills it.
        side.takes_data(400, 0, &[1; 100]);
        side.sent();
        side.takes_data(300, 0, &[1; 100]);
        let sent = side.sent();
        assert_eq!((sent.len(), sent[0].0.ack), (1, PEER_ISN + 501), "{dialect:?}");
        side.takes_data(500, 0, &[1; 100]);
        assert!(side.sent().is_empty(), "back to normal");
        // What was received before is answered at once: our acknowledgement was lost.
        side.takes_data(0, 0, &[1; 100]);
        assert_eq!(side.sent().len(), 1);
        assert_eq!(side.conn.stats().duplicates_received, 1);
    }
}

#[test]
fn more_holes_than_one_acknowledgement_names_are_reported_in_several() {
    let mut side = Side::connected(Dialect::Pilotage);
    for hole in 0..12 {
        side.takes_data(1_000 + hole * 200, 0, &[1; 100]);
    }
    let mut named = std::collections::BTreeSet::new();
    for (_, payload) in side.sent() {
        if let Some(blocks) = sack::decode(&payload) {
            named.extend(blocks.as_slice().iter().copied());
        }
    }
    assert_eq!(named.len(), 12, "each arrival is in some acknowledgement");
}

#[test]
fn an_endpoint_short_of_memory_refuses_slow_readers_and_promises_no_more() {
    let mut side = Side::connected(Dialect::Pilotage);
    let edge = |(hdr, _): &Sent| u64::from(hdr.ack - PEER_ISN - 1) + u64::from(hdr.window) * WINDOW_UNIT;
    side.takes_data(0, 0, &vec![1; 35_000]);
    side.takes_data(35_000, 0, &vec![1; 35_000]);
    let promised = edge(&side.sent()[0]);
    side.path.squeezed = true;
    side.takes_data(70_000, 0, &[2; 1_000]);
    let answer = side.sent();
    assert_eq!((answer.len(), answer[0].0.ack), (1, PEER_ISN + 70_001), "not taken");
    assert!(edge(&answer[0]) <= promised, "what was promised stays, and no more");
    side.path.squeezed = false;
    side.takes_data(70_000, 0, &[2; 1_000]);
    assert_eq!(side.conn.readable(), 71_000);
}

#[test]
fn data_outside_of_the_window_is_answered_and_not_stored() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        let far = side.cfg.recv_buffer as u32 + 5;
        side.takes_data(far, 0, b"too far");
        assert_eq!((side.sent().len(), side.conn.held()), (1, 0));
        // Long before the first byte: an offset that cannot be.
        side.takes(&header(Flags::ACK, PEER_ISN.wrapping_sub(5_000), OUR_ISN + 1), b"too old");
        assert_eq!((side.sent().len(), side.conn.held()), (1, 0));
    }
}

#[test]
fn what_names_offsets_below_the_acknowledgement_is_data_of_a_reference_peer() {
    let mut side = Side::connected(Dialect::Draft);
    side.writes(&[5; 1_000]);
    side.sent();
    side.wait(10);
    side.takes_data(0, 500, b"");
    let mut look = vec![0; 64];
    let len = sack::encode(&[(OUR_ISN + 101, OUR_ISN + 301)], &mut look);
    side.takes_data(0, 500, &look[..len]);
    assert_eq!(side.conn.readable(), len, "no SACK could say that");
}

#[test]
fn a_reference_peer_hears_of_its_bytes_only_after_it_wrote_down_that_it_sent_them() {
    let mut side = Side::connected(Dialect::Draft);
    let acks = |sent: Vec<Sent>| sent.iter().map(|(h, _)| h.ack - PEER_ISN - 1).collect::<Vec<_>>();
    side.takes_data(0, 0, &[1; 100]);
    side.wait(1);
    side.takes_data(100, 0, &[1; 100]);
    // An answer says nothing of them either.
    side.writes(b"answer");
    assert_eq!(acks(side.sent()), [0]);
    side.wait(1);
    assert!(side.sent().is_empty());
    side.wait(1);
    assert_eq!(acks(side.sent()), [100]);
    side.wait(3);
    assert_eq!(acks(side.sent()), [200]);
    side.wait(100);
    assert!(acks(side.sent()).iter().all(|ack| *ack == 200), "the answer again, and nothing else");
    let mut ours = Side::connected(Dialect::Pilotage);
    ours.takes_data(0, 0, &[1; 100]);
    ours.takes_data(100, 0, &[1; 100]);
    assert_eq!(acks(ours.sent()), [200]);
}

#[test]
fn a_steady_stream_of_a_reference_peer_is_acknowledged_within_six_milliseconds() {
    let mut side = Side::connected(Dialect::Draft);
    let mut told = 0;
    for ms in 0..500_u32 {
        side.takes_data(ms * 10, 0, &[1; 10]);
        told = side.sent().last().map_or(told, |(h, _)| h.ack - PEER_ISN - 1);
        assert!(told <= ms.saturating_sub(2) * 10, "at {ms} ms: {told}");
        assert!(told >= ms.saturating_sub(6) * 10, "at {ms} ms: {told}");
        side.wait(1);
    }
    // A single segment has the time that every single one has.
    for _ in 0..2 {
        side.wait(3);
        told = side.sent().last().map_or(told, |(h, _)| h.ack - PEER_ISN - 1);
    }
    assert_eq!(told, 5_000);
    side.takes_data(5_000, 0, &[1; 10]);
    side.wait(4);
    assert!(side.sent().is_empty());
    side.wait(side.cfg.delayed_ack.as_millis() as u64);
    assert_eq!(side.sent().last().map(|(h, _)| h.ack), Some(PEER_ISN + 1 + 5_010));
}

#[test]
fn bytes_that_a_reference_peer_repeats_for_ever_are_reported_in_a_sack_block() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.takes_data(0, 0, &[1; 100]);
        side.wait(100);
        assert_eq!(side.sent().len(), 1);
        for _ in 0..200 {
            side.takes_data(0, 0, &[1; 100]);
        }
        let sent = side.sent();
        assert!(sent.iter().all(|(h, _)| h.ack == PEER_ISN + 101) && sent.len() <= 65, "{}", sent.len());
        let blocks = sack::decode(&sent[0].1).map(|blocks| blocks.as_slice().to_vec());
        let expected = (dialect == Dialect::Draft).then(|| vec![(PEER_ISN + 1, PEER_ISN + 101)]);
        assert_eq!(blocks, expected);
    }
}

fn payloads(sent: &[Sent]) -> usize {
    sent.iter().filter(|(_, payload)| !payload.is_empty()).count()
}

#[test]
fn a_full_queue_of_a_reference_peer_is_not_filled_further() {
    let mut side = Side::connected_with(Dialect::Draft, 3);
    side.writes(&[3; 100 * MSS]);
    assert_eq!(side.sent().len(), 3);
    let mut full = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1 + 3 * MSS as u32);
    full.window = 0;
    side.takes(&full, b"");
    assert_eq!(payloads(&side.sent()), 0, "it acknowledged something: the 0 is meant");
    // Nobody tells when there is room again: a byte asks.
    side.with(|c, cx| c.arm_persist(cx));
    side.wait(1_100);
    let probe = side.sent();
    assert_eq!((probe.len(), probe[0].1.len()), (1, 1));
    full.ack += 1;
    full.window = 2;
    side.takes(&full, b"");
    assert_eq!(payloads(&side.sent()), 2);
}

#[test]
fn a_window_that_comes_with_data_of_a_reference_peer_may_be_old() {
    let mut side = Side::connected_with(Dialect::Draft, 300);
    side.writes(&[3; 600 * 100]);
    let mut hdr = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1);
    hdr.window = 260;
    side.takes(&hdr, b"echo");
    assert_eq!(side.conn.segments_allowed(Dialect::Draft), 4);
    // What it does not acknowledge anew makes nothing larger.
    hdr.window = 500;
    hdr.seq += 4;
    side.takes(&hdr, b"echo");
    assert_eq!(side.conn.segments_allowed(Dialect::Draft), 4);
    hdr.seq += 4;
    side.takes(&hdr, b"");
    assert_eq!(side.conn.segments_allowed(Dialect::Draft), 500, "an acknowledgement by itself is up to date");
}

#[test]
fn after_a_loss_a_reference_peer_gets_no_more_than_it_keeps_beyond_a_hole() {
    for dialect in BOTH {
        let mut side = Side::connected_with(dialect, 400);
        side.writes(&[3; 20 * MSS]);
        let sent = side.sent();
        assert!(sent.len() >= 6, "{}", sent.len());
        side.wait(30);
        let una = OUR_ISN + 1;
        let mut look = vec![0; 64];
        let len = sack::encode(&[(una + MSS as u32, una + 6 * MSS as u32)], &mut look);
        let mut hdr = header(Flags::ACK, PEER_ISN + 1, una);
        hdr.window = 400;
        side.takes(&hdr, &look[..len]);
        side.wait(30);
        assert!(side.sent().iter().any(|(h, _)| h.seq == una), "sent again");
        let allowed = side.conn.segments_allowed(dialect);
        assert_eq!(allowed, if dialect == Dialect::Draft { 128 } else { u64::MAX });
    }
}

#[test]
fn pieces_that_a_reference_peer_keeps_for_ever_are_still_sack() {
    let mut side = Side::connected_with(Dialect::Draft, 100);
    side.writes(&[5; 1_000]);
    side.sent();
    side.wait(10);
    side.takes_data(0, 500, b"");
    let mut look = vec![0; 64];
    let old = (OUR_ISN + 101, OUR_ISN + 301);
    let len = sack::encode(&[old], &mut look);
    side.conn.quirks.was_split = true;
    side.takes_data(0, 500, &look[..len]);
    assert_eq!(side.conn.readable(), 0);
    // Until it wraps: the same block in another place is the same block.
    side.conn.quirks.was_split = false;
    side.takes_data(0, 500, &look[..len]);
    assert_eq!(side.conn.readable(), 0);
    let len = sack::encode(&[(old.0 + 1, old.1)], &mut look);
    side.takes_data(0, 500, &look[..len]);
    assert_eq!(side.conn.readable(), len, "another one is data");
}
