//! Reaching a peer through the beacon's relay, and leaving the relay again (spec/nat.md, spec/tunnel.md §6).

use std::time::Duration;

use pilotage_proto::PathKind;
use pilotage_sim::{Link, Pair, Side, pattern};

#[test]
fn the_beacon_tells_a_node_its_address() {
    let mut pair = Pair::new(1, Link::default());
    pair.add_beacon();
    pair.run_for(Duration::from_secs(2));
    let expected = pair.host(Side::A).addr;
    assert_eq!(pair.endpoint(Side::A).observed_address(), Some(expected));
}

#[test]
fn a_peer_behind_a_wall_is_reached_through_the_relay_at_once() {
    let mut pair = Pair::new(2, Link::default());
    pair.add_beacon();
    pair.direct_blocked = true;
    pair.run_for(Duration::from_secs(2));
    let start = pair.now;
    let (a, b) = pair.connect(7).expect("through the relay");
    assert!(
        pair.now.duration_since(start) < Duration::from_millis(1500),
        "{:?}",
        pair.now.duration_since(start)
    );
    for (side, id) in [(Side::A, a), (Side::B, b)] {
        assert_eq!(pair.endpoint(side).connection_path(id).expect("path").kind, PathKind::Relay);
    }
    let data = pattern(1 << 20, 1);
    assert!(pair.transfer(&data).received == data);
}

#[test]
fn a_direct_way_that_opens_is_taken() {
    let mut pair = Pair::new(3, Link::default());
    pair.add_beacon();
    pair.direct_blocked = true;
    pair.run_for(Duration::from_secs(2));
    let (a, _) = pair.connect(7).expect("through the relay");
    pair.direct_blocked = false;
    let upgraded = pair.run_until(Duration::from_secs(30), |p| {
        p.endpoint(Side::A).connection_path(a).is_some_and(|path| path.kind == PathKind::Direct)
    });
    assert!(upgraded, "still {:?}", pair.endpoint(Side::A).connection_path(a));
    let data = pattern(1 << 20, 2);
    assert!(pair.transfer(&data).received == data);
}

#[test]
fn a_direct_way_that_closes_is_replaced_by_the_relay() {
    let mut pair = Pair::new(4, Link::default());
    pair.add_beacon();
    pair.run_for(Duration::from_secs(2));
    let (a, _) = pair.connect(7).expect("direct");
    assert_eq!(pair.endpoint(Side::A).connection_path(a).expect("path").kind, PathKind::Direct);
    pair.direct_blocked = true;
    let data = pattern(1 << 20, 3);
    assert!(pair.transfer(&data).received == data);
    assert_eq!(pair.endpoint(Side::A).connection_path(a).expect("path").kind, PathKind::Relay);
}
