//! A peer that does what it must not: the session ends with the code that says why, and nothing else happens.

use super::*;

/// Frames of a peer, in a packet of their own after its life was told.
fn taken(frames: &[Frame<'_>]) -> Result<(), u64> {
    let mut pair = Pair::new(1, CLEAN);
    hostile(&mut pair, frames)
}

fn hostile(pair: &mut Pair, frames: &[Frame<'_>]) -> Result<(), u64> {
    let mut bytes = vec![0; 4_096];
    let mut at = Frame::Life { own: 222, peer: 0, age: 0 }.encode(&mut bytes).expect("fits");
    for frame in frames {
        at += frame.encode(&mut bytes[at..]).expect("fits");
    }
    let before = pair.errors.len();
    let number = 1_000 + pair.order;
    pair.order += 1;
    let flight = Flight { at: pair.now, order: 0, session: 0, number, frames: bytes[..at].to_vec() };
    pair.deliver(0, &flight);
    pair.errors.get(before).map_or(Ok(()), |code| Err(*code))
}

/// A piece of a stream that the side with the greater identity opens.
fn piece(count: u64, offset: u64, data: &[u8], fin: bool) -> Frame<'_> {
    let ports = Some((50_000, 7));
    Frame::Stream(Piece { id: count << 2 | 1, ports, offset, fin, data, to_end: false })
}

#[test]
fn flow_control() {
    assert_eq!(taken(&[piece(0, STREAM_WINDOW - 1, &[1], false)]), Ok(()));
    assert_eq!(taken(&[piece(0, STREAM_WINDOW, &[1], false)]), Err(FLOW_CONTROL), "of a stream");
    let streams = u64::from(parameters(&Config::default()).streams);
    assert_eq!(taken(&[piece(streams - 1, 0, &[1], false)]), Ok(()));
    assert_eq!(taken(&[piece(streams, 0, &[1], false)]), Err(FLOW_CONTROL), "number of streams");
    let all: Vec<_> = (0..5).map(|n| piece(n, STREAM_WINDOW - 1, &[1], false)).collect();
    assert_eq!(taken(&all[..4]), Ok(()));
    assert_eq!(taken(&all), Err(FLOW_CONTROL), "of all streams");
    let one_way =
        Frame::Stream(Piece { id: 3, ports: Some((1, 2)), offset: 0, fin: true, data: &[], to_end: false });
    assert_eq!(taken(&[one_way]), Err(FLOW_CONTROL), "none of these was allowed");
    let reset = |n: u64, size| Frame::ResetStream { stream: n << 2 | 1, code: 0, final_size: size };
    assert_eq!(taken(&[reset(0, STREAM_WINDOW)]), Ok(()), "of a stream whose opening was lost");
    assert_eq!(taken(&[reset(0, STREAM_WINDOW + 1)]), Err(FLOW_CONTROL));
    assert_eq!(taken(&[reset(streams, 0)]), Err(FLOW_CONTROL));
}

#[test]
fn final_size() {
    assert_eq!(taken(&[piece(0, 0, b"abc", true), piece(0, 0, b"abcd", false)]), Err(FINAL_SIZE));
    assert_eq!(taken(&[piece(0, 0, b"abc", true), piece(0, 0, b"ab", true)]), Err(FINAL_SIZE));
    assert_eq!(taken(&[piece(0, 5, b"abc", false), piece(0, 0, b"ab", true)]), Err(FINAL_SIZE));
    let reset = |size| Frame::ResetStream { stream: 1, code: 0, final_size: size };
    assert_eq!(taken(&[piece(0, 0, b"abc", false), reset(2)]), Err(FINAL_SIZE));
    assert_eq!(taken(&[piece(0, 0, b"abc", true), reset(4)]), Err(FINAL_SIZE));
    assert_eq!(taken(&[piece(0, 0, b"abc", true), reset(3)]), Ok(()));
}

#[test]
fn acknowledgements_of_what_was_not_sent() {
    let mut pair = Pair::new(1, CLEAN);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    pair.ends[0].mux.write(slot, b"x").expect("room");
    pair.run(100 * MS, |_| false);
    let sealed = pair.ends[0].sealed[0];
    let ack = |pair: &mut Pair, index, largest| {
        let mut buf = [0; 64];
        let len = pilotage_wire::s1::ack::encode_ack(index, 0, std::iter::once(0..=largest), &mut buf);
        let frame = Frames::new(&buf[..len.expect("fits")]).next().expect("one").expect("good");
        hostile(pair, &[frame])
    };
    assert_eq!(ack(&mut pair, None, sealed - 1), Ok(()));
    assert_eq!(ack(&mut pair, None, sealed), Err(ACKNOWLEDGEMENT));
    assert_eq!(ack(&mut pair, Some(100), sealed), Err(ACKNOWLEDGEMENT));
    assert_eq!(ack(&mut pair, Some(9_999), 5), Ok(()), "of a session that nobody remembers");
}

#[test]
fn streams_that_never_were() {
    let bare = Frame::Stream(Piece { id: 1, ports: None, offset: 0, fin: false, data: b"x", to_end: false });
    assert_eq!(taken(&[bare]), Err(MALFORMED), "no ports");
    for frame in [
        Frame::Stream(Piece { id: 0, ports: Some((1, 2)), offset: 0, fin: false, data: b"x", to_end: false }),
        Frame::ResetStream { stream: 0, code: 0, final_size: 0 },
        Frame::StopSending { stream: 4, code: 0 },
        Frame::MaxStreamData { stream: 8, max: 1 },
    ] {
        assert_eq!(taken(&[frame]), Err(MALFORMED), "{frame:?}: ours, and not opened");
    }
}

#[test]
fn frames_of_a_stream_that_is_over_are_ignored() {
    let mut pair = Pair::new(1, CLEAN);
    assert_eq!(hostile(&mut pair, &[piece(0, 0, b"abc", true)]), Ok(()));
    let far = pair.ends[0].incoming[0];
    pair.ends[0].mux.reset(far);
    pair.run(100 * MS, |_| false);
    pair.ends[0].mux.remove(far);
    for frame in [
        piece(0, 0, b"abc", true),
        Frame::ResetStream { stream: 1, code: 0, final_size: 9 },
        Frame::StopSending { stream: 1, code: 0 },
        Frame::MaxStreamData { stream: 1, max: 1 << 40 },
    ] {
        assert_eq!(hostile(&mut pair, &[frame]), Ok(()));
    }
    assert_eq!(pair.ends[0].mux.streams.len(), 0);
}

#[test]
fn a_life_that_changes_within_a_session() {
    assert_eq!(taken(&[Frame::Life { own: 222, peer: 111, age: 0 }]), Ok(()));
    assert_eq!(taken(&[Frame::Life { own: 223, peer: 111, age: 0 }]), Err(MALFORMED));
}

/// What is meant for a former process of ours is left alone, and its sender learns that.
#[test]
fn nothing_for_a_former_life_of_ours_counts() {
    let mut pair = Pair::new(1, CLEAN);
    pair.flush();
    let frames = [Frame::Life { own: 222, peer: 110, age: 0 }, piece(0, 0, b"abc", false)];
    let mut bytes = [0; 100];
    let mut at = 0;
    for frame in frames {
        at += frame.encode(&mut bytes[at..]).expect("fits");
    }
    let flight = Flight { at: pair.now, order: 0, session: 0, number: 0, frames: bytes[..at].to_vec() };
    pair.deliver(0, &flight);
    assert!(pair.ends[0].incoming.is_empty() && pair.errors.is_empty());
    assert!(!pair.ends[0].mux.received.has_news(), "not acknowledged");
    let before = pair.packets[0];
    pair.flush();
    assert_eq!(pair.packets[0], before + 1, "it is told who we are");
    assert_eq!(hostile(&mut pair, &[piece(0, 0, b"abc", false)]), Ok(()));
    assert_eq!(pair.ends[0].incoming.len(), 1);
}

/// Late packets of a former life do nothing, and are not acknowledged.
#[test]
fn nothing_of_a_former_life_counts() {
    let mut pair = Pair::new(1, CLEAN);
    assert_eq!(hostile(&mut pair, &[piece(0, 0, b"old", false)]), Ok(()));
    let mut bytes = vec![0; 100];
    let mut at = Frame::Life { own: 999, peer: 111, age: 0 }.encode(&mut bytes).expect("fits");
    at += piece(0, 0, b"new", false).encode(&mut bytes[at..]).expect("fits");
    let flight = Flight { at: pair.now, order: 0, session: 1, number: 0, frames: bytes[..at].to_vec() };
    pair.deliver(0, &flight);
    let incoming = pair.ends[0].incoming.clone();
    assert_eq!(incoming.len(), 2);
    assert_eq!(hostile(&mut pair, &[piece(0, 3, b"old", true)]), Ok(()));
    assert_eq!(pair.ends[0].stream(incoming[1]).recv.highest, 3);
    let (now, mut got) = (pair.now, Vec::new());
    assert!(!pair.ends[0].drain(now, incoming[1], &mut got));
    assert_eq!(got, b"new");
    assert_eq!(pair.ends[0].read(now, incoming[0], &mut [0; 3]), Ok(3), "what had come may be read");
    assert_eq!(pair.ends[0].read(now, incoming[0], &mut [0; 3]), Err(ReadError::Reset));
}

/// Streams that were dropped and are gone do not wait for their time to be forgotten.
#[test]
fn streams_that_come_and_go_leave_nothing() {
    let mut pair = Pair::new(1, CLEAN);
    let now = pair.now;
    let kept = pair.ends[0].open(now, 7);
    for _ in 0..10_000 {
        let slot = pair.ends[0].open(now, 8);
        let mux = &mut pair.ends[0].mux;
        mux.detach(slot, now);
        mux.reset(slot);
        mux.remove(slot);
        assert!(mux.lingers.len() <= 80, "{}", mux.lingers.len());
    }
    pair.ends[0].mux.detach(kept, now);
    assert!(
        pair.ends[0].mux.lingers.iter().any(|(_, slot, _)| *slot == kept),
        "who is there is not forgotten"
    );
}

/// A peer that reads nothing, and one that leaves a hole in each stream, cost no more than the windows.
#[test]
fn holes_cost_no_more_than_the_window() {
    let mut pair = Pair::new(1, CLEAN);
    let mut refused = 0;
    for n in 1..2_000u64 {
        let flights = pair.ends[0].mux.received.has_news();
        assert_eq!(hostile(&mut pair, &[piece(0, n * 200, &[1; 100], false)]), Ok(()));
        refused += usize::from(!flights);
    }
    let far = pair.ends[0].incoming[0];
    assert!(pair.ends[0].stream(far).recv.asm.holes() <= crate::assembler::MAX_RANGES);
    assert!(refused > 0);
}
