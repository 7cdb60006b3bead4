//! What the first segments of a connection show, and what an earlier connection on the same ports does to them.

use super::*;
use crate::connection::DIALECT_MARK;

#[test]
fn a_syn_shows_the_mark_and_only_a_marked_syn_is_answered_with_it() {
    for dialect in BOTH {
        let mut side = Side::dialling(dialect);
        let syn = side.sent();
        assert_eq!((syn.len(), syn[0].0.flags, syn[0].0.ack), (1, Flags::SYN, 0));
        assert_eq!(syn[0].1, DIALECT_MARK);
        // The tunnel has read the peer's SYN before the connection answers it.
        let mut side = Side::accepting(dialect);
        let answer = side.sent();
        let expected: &[u8] = if dialect == Dialect::Pilotage { &DIALECT_MARK } else { b"" };
        assert_eq!(answer[0].0.ack, PEER_ISN + 1, "{dialect:?}");
        assert_eq!(answer[0].1, expected, "{dialect:?}: reference peers never asked for it");
    }
}

#[test]
fn the_mark_in_a_handshake_is_no_data() {
    let mut dialled = Side::dialling(Dialect::Pilotage);
    dialled.sent();
    let syn_ack = header(Flags::SYN | Flags::ACK, PEER_ISN, OUR_ISN + 1);
    assert_eq!(dialled.takes(&syn_ack, &DIALECT_MARK), SegmentFate::Accepted);
    let mut accepted = Side::accepting(Dialect::Pilotage);
    accepted.sent();
    accepted.takes(&header(Flags::SYN, PEER_ISN, 0), &DIALECT_MARK);
    for mut side in [dialled, accepted] {
        assert_eq!(side.conn.readable(), 0);
        side.takes_data(0, 0, b"first");
        let mut got = [0; 16];
        assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Ok(5));
        assert_eq!(&got[..5], b"first");
    }
}

#[test]
fn packets_that_do_not_fit_the_rest_of_a_batch_wait_for_the_next() {
    let mut space = vec![0; 2_000];
    let mut side = Side::accepting(Dialect::Pilotage);
    assert_eq!(side.with(|c, cx| c.poll_segment(cx, 3, &mut space)), SegmentOut::TooLong);
    assert_eq!(side.sent().len(), 1, "SYN-ACK with the mark");

    let mut side = Side::connected(Dialect::Pilotage);
    side.takes_data(1_000, 0, &[1; 100]);
    for limit in [0, 4, sack::encoded_len(1) - 1] {
        assert_eq!(side.with(|c, cx| c.poll_segment(cx, limit, &mut space)), SegmentOut::TooLong, "{limit}");
    }
    let sent = side.sent();
    let blocks = sack::decode(&sent[0].1).expect("SACK");
    assert_eq!(blocks.as_slice(), [(PEER_ISN + 1_001, PEER_ISN + 1_101)]);

    // More holes at once than one packet carries: those that are kept are as long.
    for hole in 2..12 {
        side.takes_data(1_000 * hole, 0, &[1; 100]);
    }
    for limit in [0, sack::encoded_len(4) - 1] {
        assert_eq!(side.with(|c, cx| c.poll_segment(cx, limit, &mut space)), SegmentOut::TooLong, "{limit}");
    }
    let told: Vec<u32> = side
        .sent()
        .iter()
        .filter_map(|(_, p)| sack::decode(p))
        .flat_map(|b| b.as_slice().to_vec())
        .map(|b| b.0)
        .collect();
    for hole in 2..12 {
        assert!(told.contains(&(PEER_ISN + 1 + 1_000 * hole)), "{hole}: {told:?}");
    }
}

#[test]
fn old_sack_of_a_pilotage_peer_is_neither_data_nor_in_the_way_of_the_rest() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.writes(&[5; 4 * MSS]);
    side.sent();
    side.wait(20);
    let at = |segment: usize| OUR_ISN + 1 + (segment * MSS) as u32;
    let mut payload = [0; 64];
    // Kept while a batch was taken in: what the first block says has been acknowledged meanwhile.
    let len = sack::encode(&[(at(0), at(1)), (at(3), at(4))], &mut payload);
    let before = side.path.in_flight;
    assert_eq!(side.takes_data(0, 2 * MSS as u32, &payload[..len]), SegmentFate::Accepted);
    assert_eq!(side.conn.readable(), 0, "a sender that never sent these bytes as data");
    assert_eq!(before - side.path.in_flight, 3 * MSS as u64, "two by the number, one by the block");
    // Nothing but old news.
    let len = sack::encode(&[(at(0), at(1))], &mut payload);
    side.takes_data(0, 2 * MSS as u32, &payload[..len]);
    assert_eq!(side.conn.readable(), 0);
    side.takes_data(0, 2 * MSS as u32, b"data");
    assert_eq!(side.conn.readable(), 4, "the place in the stream is still free");
}

#[test]
fn a_dialler_refuses_what_belongs_to_an_earlier_connection_on_its_ports() {
    for dialect in BOTH {
        let mut side = Side::dialling(dialect);
        side.sent();
        let foreign = header(Flags::ACK, 77_000, 99_000);
        assert_eq!(side.takes(&foreign, b""), SegmentFate::Refused, "{dialect:?}");
        assert_eq!(side.takes(&foreign, b"data"), SegmentFate::Refused);
        assert_eq!(side.takes(&header(Flags::ACK | Flags::FIN, 77_000, 99_000), b""), SegmentFate::Refused);
        assert_eq!(side.takes(&header(Flags::RST | Flags::ACK, 77_000, 99_000), b""), SegmentFate::Dropped);
        assert!(side.sent().is_empty() && side.conn.state == State::SynSent, "and goes on");
        side.takes(&header(Flags::SYN | Flags::ACK, PEER_ISN, OUR_ISN + 1), b"");
        assert_eq!(side.conn.state, State::Established);
    }
}

#[test]
fn a_half_open_connection_answers_another_syn_with_its_own_numbers_and_gives_way_to_the_reset() {
    for dialect in BOTH {
        let mut side = Side::accepting(dialect);
        side.sent();
        assert_eq!(side.takes(&header(Flags::SYN, PEER_ISN + 9_000, 0), b""), SegmentFate::Dropped);
        let answer = side.sent();
        assert_eq!(answer.len(), 1);
        assert_eq!((answer[0].0.seq, answer[0].0.ack), (OUR_ISN, PEER_ISN + 1), "what the dialler refuses");
        // The dialler's reset takes the acknowledgement for its number.
        assert_eq!(side.takes(&header(Flags::RST, PEER_ISN + 1, 0), b""), SegmentFate::Accepted);
        assert!(matches!(side.conn.state, State::Failed(_)));
        assert!(side.sent().is_empty());
    }
}

#[test]
fn a_segment_cut_below_the_present_size_does_not_stick_in_a_narrowed_path() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.path.mtu.on_probe_acked(9_000, side.now);
    side.path.update_mss();
    let large = side.path.mss();
    assert!(large > 8_000);
    // Above the base size, and far below the present one.
    side.writes(&[7; 1_400]);
    let first = with_limit(&mut side, large);
    assert_eq!(payload_bytes(&first), 1_400);
    // From now on only datagrams of the base size pass.
    let mut arrived = 0;
    for _ in 0..100 {
        side.wait(100);
        let sent = with_limit(&mut side, large);
        arrived += sent.iter().filter(|(_, p)| p.len() <= MSS).map(|(_, p)| p.len()).sum::<usize>();
        if arrived >= 1_400 {
            return;
        }
    }
    panic!("{arrived} bytes in ten seconds");
}

/// Everything that leaves now, in datagrams of another size than usual.
fn with_limit(side: &mut Side, limit: usize) -> Vec<Sent> {
    let mut out = Vec::new();
    let mut space = vec![0; limit + HEADER_LEN];
    while let SegmentOut::Packet(len) = side.with(|c, cx| c.poll_segment(cx, limit, &mut space)) {
        let packet = Packet::decode(&space[..len]).expect("what we write decodes");
        out.push((packet.header, packet.payload.to_vec()));
        assert!(out.len() < 1_000);
    }
    out
}

#[test]
fn a_reference_dialler_is_asked_for_its_ack_by_a_byte() {
    for dialect in BOTH {
        let mut side = Side::accepting(dialect);
        assert_eq!(side.sent().len(), 1);
        side.wait(2_000);
        let sent = side.sent();
        assert_eq!(sent[0].0.flags, Flags::SYN | Flags::ACK, "repeated in any case");
        let asked = sent.get(1).map(|(h, payload)| (h.flags, h.seq, h.ack, payload.len()));
        let expected = (Flags::ACK, OUR_ISN, PEER_ISN + 1, 1);
        assert_eq!(asked, (dialect == Dialect::Draft).then_some(expected), "below what it expects");
        side.takes_data(0, 0, b"");
        assert_eq!(side.conn.state, State::Established);
        assert!(side.sent().is_empty());
    }
}
