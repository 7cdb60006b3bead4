//! The gate: who is asked about, what waits, what is dropped, and that nothing is answered meanwhile.

use super::super::gate::{HELD_BYTES, HELD_PER_PEER};
use super::*;

/// Two endpoints with a tunnel; the second one has closed its gate and listens on 80 and 444.
fn gated() -> Two {
    let mut two = Two::connected();
    let host = &mut two.hosts[1].0;
    host.set_gate(true);
    host.listen(80).expect("free");
    host.listen(444).expect("free");
    host.bind_datagram(80).expect("free");
    while host.poll_event().is_some() {}
    two
}

fn caller(two: &Two) -> NodeId {
    two.hosts[0].0.local_address().node
}

fn knocks(two: &mut Two) -> usize {
    let host = &mut two.hosts[1].0;
    std::iter::from_fn(|| host.poll_event()).filter(|e| matches!(e, Event::Knock { .. })).count()
}

fn call(two: &mut Two, port: u16) -> ConnectionId {
    let to = SocketAddress { address: two.hosts[1].0.local_address(), port };
    let id = two.hosts[0].0.connect(two.now, to).expect("known");
    two.settle();
    id
}

#[test]
fn a_call_waits_for_the_verdict_and_then_goes_on() {
    let mut two = gated();
    let id = call(&mut two, 80);
    assert!(!two.hosts[0].0.is_open(id));
    assert_eq!(knocks(&mut two), 1);
    assert_eq!(two.hosts[1].0.accept(80), None);
    let (now, until) = (two.now, two.now + Duration::from_secs(10));
    let node = caller(&two);
    two.hosts[1].0.admit(now, node, Some(until));
    two.settle();
    assert!(two.hosts[0].0.is_open(id), "without a second SYN");
    let second = call(&mut two, 80);
    assert!(two.hosts[0].0.is_open(second), "the verdict holds for a while");
    assert_eq!(knocks(&mut two), 0);
    two.now = until;
    let late = call(&mut two, 80);
    assert!(!two.hosts[0].0.is_open(late));
    assert_eq!(knocks(&mut two), 1, "asked again");
}

#[test]
fn who_is_turned_away_hears_nothing() {
    let mut two = gated();
    let id = call(&mut two, 81); // nobody listens there: even that is not told
    let datagram = two.header(Protocol::Datagram, Flags::EMPTY);
    two.deliver(datagram, b"hello", |_| {});
    assert_eq!(knocks(&mut two), 1);
    let sent = two.hosts[1].0.stats().datagrams_sent;
    let (now, node) = (two.now, caller(&two));
    two.hosts[1].0.admit(now, node, None);
    two.settle();
    let stats = two.hosts[1].0.stats();
    assert_eq!((stats.drop_not_admitted, stats.datagrams_sent), (2, sent));
    assert_eq!(two.hosts[0].0.connect_error(id), None, "still trying");
    assert_eq!(two.hosts[1].0.recv_datagram(80), None);
}

#[test]
fn the_trust_port_and_echo_requests_are_open_to_all() {
    let mut two = gated();
    let id = call(&mut two, 444);
    assert!(two.hosts[0].0.is_open(id));
    let to = two.hosts[1].0.local_address();
    let token = two.hosts[0].0.ping(two.now, to).expect("known");
    two.settle();
    let host = &mut two.hosts[0].0;
    let ponged = std::iter::from_fn(|| host.poll_event())
        .any(|event| matches!(event, Event::Pong { token: t, .. } if t == token));
    assert!(ponged);
    assert_eq!(knocks(&mut two), 0);
}

#[test]
fn what_waits_is_bounded_and_a_lost_question_is_asked_again() {
    let mut two = gated();
    let header = two.header(Protocol::Datagram, Flags::EMPTY);
    for i in 0..HELD_PER_PEER + 3 {
        two.deliver(Header { src_port: 50_000 + i as u16, ..header }, b"12345", |_| {});
    }
    assert_eq!(two.hosts[1].0.stats().drop_not_admitted, 3);
    assert_eq!(two.hosts[1].0.memory().before_the_gate, 5 * HELD_PER_PEER);
    assert_eq!(knocks(&mut two), 1);
    two.now += Duration::from_secs(5);
    two.deliver(header, &[7; 100], |_| {});
    assert_eq!(knocks(&mut two), 1, "the first question got no answer");
    assert_eq!(two.hosts[1].0.memory().before_the_gate, 100);
    two.hosts[1].0.set_gate(false);
    assert_eq!(two.hosts[1].0.memory().before_the_gate, 0);
    const { assert!(HELD_PER_PEER * 65_536 <= HELD_BYTES, "one peer alone cannot fill the place") };
}

#[test]
fn dismissing_ends_connections_and_takes_the_verdict_back() {
    let mut two = gated();
    let (now, node) = (two.now, caller(&two));
    two.hosts[1].0.admit(now, node, Some(now + Duration::from_secs(10)));
    let id = call(&mut two, 80);
    assert!(two.hosts[0].0.is_open(id));
    let now = two.now;
    two.hosts[1].0.dismiss(now, node);
    two.settle();
    assert!(!two.hosts[0].0.is_open(id));
    let again = call(&mut two, 80);
    assert!(!two.hosts[0].0.is_open(again));
    assert_eq!(knocks(&mut two), 1);
}
