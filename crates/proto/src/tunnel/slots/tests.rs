//! The table of connections, and what it remembers of closed ones.

use std::time::Duration;

use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};
use pilotage_wire::{Address, SocketAddress};

use super::*;
use crate::config::Config;
use crate::connection::{Cx, Dialect, SegmentOut};
use crate::event::ConnectionId;

fn connection(local: u16, remote: u16, now: Instant) -> Box<Connection> {
    let at = |node, port| SocketAddress { address: Address::new(0, node), port };
    let id = ConnectionId { index: 0, generation: 0 };
    Box::new(Connection::connect(id, at(1, local), at(2, remote), 7, now, &Config::default()))
}

#[allow(clippy::disallowed_methods)] // a base for virtual time
fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_port_pair_names_one_connection_and_after_its_end_none() {
    let (mut slots, now) = (Slots::default(), now());
    let first = slots.insert(connection(1, 80, now)).expect("free");
    let second = slots.insert(connection(2, 80, now)).expect("free");
    assert_eq!(slots.insert(connection(1, 80, now)), None, "taken");
    assert_eq!(
        (slots.find((1, 80)), slots.find((2, 80)), slots.find((80, 1))),
        (Some(first), Some(second), None)
    );
    assert_eq!(slots.find((1, 80)), Some(first));
    assert!(slots.remove(first).is_some());
    assert!(slots.remove(first).is_none());
    // The last answer was about the one that is gone.
    assert_eq!((slots.find((1, 80)), slots.len(), slots.contains((1, 80))), (None, 1, false));
    // Its place is used again, for other ports.
    assert_eq!(slots.insert(connection(3, 80, now)), Some(first));
    assert_eq!((slots.find((3, 80)), slots.find((1, 80))), (Some(first), None));
    assert!(slots.get(99).is_none() && slots.get_mut(99).is_none());
}

#[test]
fn everybody_in_the_round_has_its_turn_and_nobody_two_places() {
    let (mut slots, now) = (Slots::default(), now());
    let all: Vec<u32> = (0..3).filter_map(|port| slots.insert(connection(port, 80, now))).collect();
    for _ in 0..2 {
        all.iter().for_each(|slot| slots.mark_ready(*slot));
    }
    assert_eq!(slots.ready_len(), 3);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(slots.front_ready());
        slots.rotate();
    }
    assert_eq!(order, [all[0], all[1], all[2], all[0]]);
    slots.drop_front();
    slots.mark_ready(all[1]);
    assert_eq!((slots.ready_len(), slots.any_ready()), (3, true), "at the end again");
    slots.clear_ready();
    assert!(!slots.any_ready());
    slots.mark_ready(all[2]);
    assert_eq!(slots.front_ready(), Some(all[2]));
}

#[test]
fn touched_connections_are_given_out_once() {
    let (mut slots, now) = (Slots::default(), now());
    for port in 0..3 {
        slots.insert(connection(port, 80, now));
    }
    slots.touch(1);
    slots.touch(1);
    slots.touch(77);
    assert_eq!((slots.take_touched(), slots.take_touched()), (Some(1), None));
    slots.touch_all();
    assert_eq!(std::iter::from_fn(|| slots.take_touched()).count(), 3);
}

#[test]
fn a_fin_is_answered_four_times_until_the_entry_expires_or_the_ports_are_used_again() {
    let (mut slots, now) = (Slots::default(), now());
    let later = |s| now + Duration::from_secs(s);
    slots.remember((1, 80), (11, 22), later(10));
    assert!(slots.is_time_wait((1, 80)) && slots.contains((1, 80)) && !slots.is_time_wait((2, 80)));
    assert!(slots.answer_time_wait((2, 80)).is_none());
    for _ in 0..4 {
        let entry = slots.answer_time_wait((1, 80)).flatten().expect("an answer is left");
        assert_eq!((entry.seq, entry.ack), (11, 22));
    }
    assert!(slots.answer_time_wait((1, 80)).is_some_and(|answer| answer.is_none()), "silence");
    assert_eq!(slots.next_time_wait(), Some(later(10)));
    slots.expire_time_wait(later(9));
    assert!(slots.is_time_wait((1, 80)));
    // Remembered anew meanwhile: the old date does not end the new entry.
    slots.remember((1, 80), (33, 44), later(15));
    slots.expire_time_wait(later(10));
    assert!(slots.is_time_wait((1, 80)));
    slots.insert(connection(1, 80, now)).expect("a new connection may come at once");
    assert!(!slots.is_time_wait((1, 80)));
    slots.expire_time_wait(later(15));
    assert_eq!(slots.next_time_wait(), None);
}

#[test]
fn closed_connections_are_remembered_up_to_a_bound_and_the_oldest_goes_first() {
    let (mut slots, now) = (Slots::default(), now());
    for n in 0..TIME_WAIT_MAX as u64 + 100 {
        slots.remember((n as u16, 80), (0, 0), now + Duration::from_millis(n));
    }
    assert_eq!((slots.time_wait.len(), slots.time_wait_order.len()), (TIME_WAIT_MAX, TIME_WAIT_MAX));
    assert!(!slots.is_time_wait((99, 80)) && slots.is_time_wait((100, 80)));
}

/// An established connection to a Pilotage peer, after `then`, which also gets a header of the peer's next segment.
fn established(
    local: u16,
    now: Instant,
    then: impl FnOnce(&mut Connection, &mut Cx<'_>, &Header),
) -> Box<Connection> {
    let cfg = Config::default();
    let mut path = crate::tunnel::Path::new(None, &cfg);
    let mut cx = Cx { now, path: &mut path, dialect: Dialect::Pilotage, cfg: &cfg };
    let mut conn = connection(local, 80, now);
    sends(&mut conn, &mut cx);
    let mut hdr = Header {
        flags: Flags::SYN | Flags::ACK,
        protocol: Protocol::Stream,
        src: conn.remote.address,
        dst: conn.local.address,
        src_port: 80,
        dst_port: local,
        seq: 5,
        ack: 8,
        window: 1,
    };
    conn.on_segment(&hdr, b"PLTG", &mut cx);
    sends(&mut conn, &mut cx);
    (hdr.flags, hdr.seq) = (Flags::ACK, 6);
    then(&mut conn, &mut cx, &hdr);
    conn
}

fn sends(conn: &mut Connection, cx: &mut Cx<'_>) {
    let mut space = [0; HEADER_LEN + 64];
    assert!(matches!(conn.poll_segment(cx, 64, &mut space), SegmentOut::Packet(_)));
}

/// One that has received one segment and holds its acknowledgement back.
fn holding(local: u16, now: Instant) -> Box<Connection> {
    established(local, now, |conn, cx, hdr| {
        assert!(!conn.holds_ack());
        conn.on_segment(hdr, b"data", cx);
        assert!(conn.holds_ack() && !conn.wants_to_send());
    })
}

/// One with a segment to send again.
fn losing(local: u16, now: Instant) -> Box<Connection> {
    established(local, now, |conn, cx, _| {
        assert_eq!(conn.write(b"data"), Ok(4));
        sends(conn, cx);
        assert!(!conn.has_lost());
        conn.on_old_path_gone(cx.now, cx.path);
        assert!(conn.has_lost());
    })
}

#[test]
fn the_round_of_those_that_send_again_is_bounded() {
    let (mut slots, now) = (Slots::default(), now());
    let kept = slots.insert(losing(1, now)).expect("free");
    slots.mark_ready(kept);
    for _ in 0..100 {
        let slot = slots.insert(losing(2, now)).expect("free");
        slots.mark_ready(slot);
        slots.mark_ready(slot);
        assert!(slots.urgent.len() <= 2 * slots.slots.len() + 1, "{}", slots.urgent.len());
        assert!(slots.remove(slot).is_some());
    }
    let fresh = slots.insert(connection(3, 80, now)).expect("free");
    slots.mark_ready(fresh);
    slots.rotate();
    assert_eq!(slots.front_urgent(), Some(kept), "the only one that has something to send again");
    assert!(slots.remove(kept).is_some());
    assert_eq!((slots.front_urgent(), slots.urgent.len()), (None, 0));
}

#[test]
fn the_list_of_held_acknowledgements_is_bounded() {
    let (mut slots, now) = (Slots::default(), now());
    let kept = slots.insert(holding(1, now)).expect("free");
    slots.note_held(kept);
    // Connections come and go in one place, and nothing is ever released.
    for _ in 0..100 {
        let slot = slots.insert(holding(2, now)).expect("free");
        slots.note_held(slot);
        slots.note_held(slot);
        assert!(slots.held.len() <= 2 * slots.slots.len() + 1, "{}", slots.held.len());
        assert!(slots.remove(slot).is_some());
    }
    assert!(!slots.any_ready());
    slots.release_held();
    assert_eq!((slots.ready_len(), slots.front_ready(), slots.held.len()), (1, Some(kept), 0));
    assert!(slots.get(kept).is_some_and(|c| !c.holds_ack() && c.wants_to_send()));
}
