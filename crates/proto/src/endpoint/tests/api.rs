//! What the application's calls answer, above all where they refuse.

use super::*;
use crate::event::{ConnectError, ReadError, SendDatagramError, WriteError};

fn port_80(two: &Two) -> SocketAddress {
    SocketAddress { address: two.hosts[1].0.local_address(), port: 80 }
}

/// Both ends of a connection from the first host to port 80 of the second.
fn joined(two: &mut Two) -> [ConnectionId; 2] {
    let _ = two.hosts[1].0.listen(80);
    let dialled = two.hosts[0].0.connect(two.now, port_80(two)).expect("room");
    two.settle();
    [dialled, two.hosts[1].0.accept(80).expect("connected").0]
}

fn events(endpoint: &mut Endpoint) -> Vec<Event> {
    std::iter::from_fn(|| endpoint.poll_event()).collect()
}

#[test]
fn calls_about_a_connection_that_is_gone_say_so() {
    let mut two = Two::connected();
    let [ours, theirs] = joined(&mut two);
    let now = two.now;
    for (host, id) in [(0, ours), (1, theirs)] {
        two.hosts[host].0.close(now, id);
        two.settle();
    }
    let endpoint = &mut two.hosts[0].0;
    assert_eq!(endpoint.read(now, ours, &mut [0; 8]), Err(ReadError::Unknown));
    assert_eq!(endpoint.write(now, ours, b"x"), Err(WriteError::Unknown));
    assert_eq!(endpoint.shutdown(now, ours), Err(WriteError::Unknown));
    assert_eq!((endpoint.readable(ours), endpoint.writable(ours)), (0, 0));
    assert!(endpoint.is_flushed(ours) && !endpoint.is_open(ours));
    assert_eq!(endpoint.connection_stats(ours), None);
    assert_eq!(endpoint.connection_path(ours), None);
    assert_eq!(endpoint.connection_peer(ours), None);
    assert_eq!((endpoint.local_port(ours), endpoint.connect_error(ours)), (None, None));
    // The next connection may take its place in the table, but not its name.
    let [next, _] = joined(&mut two);
    assert_eq!(next.index, ours.index);
    assert_eq!(two.hosts[0].0.write(two.now, ours, b"x"), Err(WriteError::Unknown));
    assert_eq!(two.hosts[0].0.write(two.now, next, b"x"), Ok(1));
}

#[test]
fn what_is_known_of_a_connection_agrees_on_both_sides() {
    let mut two = Two::connected();
    let [ours, theirs] = joined(&mut two);
    let now = two.now;
    assert_eq!(two.hosts[0].0.write(now, ours, b"hello"), Ok(5));
    assert!(!two.hosts[0].0.is_flushed(ours));
    two.settle();
    two.now += Duration::from_millis(50);
    two.hosts[1].0.handle_timeout(two.now);
    two.settle();
    let (a, b) = (&two.hosts[0].0, &two.hosts[1].0);
    assert!(a.is_flushed(ours) && a.is_open(ours) && b.is_open(theirs));
    assert_eq!(b.readable(theirs), 5);
    let from = b.connection_peer(theirs).expect("open");
    assert_eq!((Some(from.port), from.address), (a.local_port(ours), a.local_address()));
    let (sent, got) = (a.connection_stats(ours).expect("open"), b.connection_stats(theirs).expect("open"));
    assert_eq!((sent.bytes_acked, got.bytes_received, got.segments_received), (5, 5, 1));
    let path = a.connection_path(ours).expect("direct");
    assert_eq!(path.remote, two.hosts[1].1);
    assert!(path.rtt > Duration::ZERO && path.in_flight == 0);
}

#[test]
fn a_port_that_nobody_listens_on_any_more_resets_who_waits_and_refuses_who_comes() {
    let mut two = Two::connected();
    two.hosts[1].0.listen(80).expect("free");
    assert_eq!(two.hosts[1].0.listen(80), Err(ConnectError::LimitReached));
    let waiting = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    assert!(two.hosts[0].0.is_open(waiting));
    two.hosts[1].0.unlisten(two.now, 80);
    two.settle();
    assert_eq!(two.hosts[0].0.read(two.now, waiting, &mut [0; 8]), Err(ReadError::Reset));
    assert_eq!(two.hosts[0].0.write(two.now, waiting, b"x"), Err(WriteError::Reset));
    assert_eq!(two.hosts[0].0.shutdown(two.now, waiting), Err(WriteError::Reset));
    assert_eq!(two.hosts[1].0.open_connections, 0);
    assert_eq!(two.hosts[1].0.accept(80), None);
    let refused = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    let refusal = ConnectError::Refused;
    assert_eq!(two.hosts[0].0.connect_error(refused), Some(refusal));
    assert_eq!(two.hosts[0].0.read(two.now, refused, &mut [0; 8]), Err(ReadError::Connect(refusal)));
    assert_eq!(two.hosts[0].0.write(two.now, refused, b"x"), Err(WriteError::Connect(refusal)));
    assert_eq!(two.hosts[0].0.shutdown(two.now, refused), Err(WriteError::Connect(refusal)));
    assert!(events(&mut two.hosts[0].0).contains(&Event::Closed(refused)));
    // An accepted connection does not need the listener.
    let [ours, theirs] = joined(&mut two);
    two.hosts[1].0.unlisten(two.now, 80);
    assert_eq!(two.hosts[0].0.write(two.now, ours, b"still"), Ok(5));
    two.settle();
    assert_eq!(two.hosts[1].0.readable(theirs), 5);
}

#[test]
fn connections_are_refused_for_a_reason() {
    let mut two = two();
    let now = two.now;
    let endpoint = &mut two.hosts[0].0;
    let to = |node, port| SocketAddress { address: Address::new(0, node), port };
    assert_eq!(endpoint.connect(now, to(0x999, 80)), Err(ConnectError::UnknownPeer));
    assert_eq!(endpoint.ping(now, Address::new(0, 0x999)), Err(ConnectError::UnknownPeer));
    let nowhere = PeerConfig {
        address: Address::new(0, 0x300),
        key: Some([7; 32]),
        endpoint: None,
        policy: PeerPolicy::default(),
        prekey: None,
    };
    endpoint.add_peer(now, nowhere).expect("room");
    assert_eq!(endpoint.connect(now, to(0x300, 80)), Err(ConnectError::NoPath));
    endpoint.cfg.max_connections_per_peer = 2;
    assert!(endpoint.connect(now, to(0x200, 80)).is_ok() && endpoint.connect(now, to(0x200, 80)).is_ok());
    assert_eq!(endpoint.connect(now, to(0x200, 80)), Err(ConnectError::LimitReached));
    endpoint.cfg.max_connections_per_peer = 9;
    endpoint.cfg.max_connections = 2;
    assert_eq!(endpoint.connect(now, to(0x200, 80)), Err(ConnectError::LimitReached));
    // Another peer has ports of its own; the same one never gets a port pair twice.
    let ports: Vec<_> =
        (0..2).filter_map(|i| endpoint.local_port(ConnectionId { index: i, generation: 0 })).collect();
    assert!(ports.len() == 2 && ports[0] != ports[1]);
    assert!(!endpoint.set_local_address(now, Address::new(0, 0x111)), "peers know us by the old one");
    assert!(endpoint.set_local_address(now, Address::new(0, 0x100)), "no change");
    endpoint.close_all(now);
    assert_eq!(endpoint.connect(now, to(0x200, 80)), Err(ConnectError::Closing));
    assert_eq!(endpoint.ping(now, Address::new(0, 0x200)), Err(ConnectError::Closing));
    let late = endpoint.send_datagram(now, to(0x200, 80), 1, b"x");
    assert_eq!(late, Err(SendDatagramError::Connect(ConnectError::Closing)));
}

#[test]
fn an_address_is_taken_over_before_the_first_peer_only() {
    let two = two();
    let mut fresh =
        Endpoint::new(Config::default(), Identity::from_seed([5; 32]), Address::new(0, 1), [5; 32], two.now);
    assert!(fresh.set_local_address(two.now, Address::new(0, 0x500)));
    assert_eq!(fresh.local_address(), Address::new(0, 0x500));
    assert_eq!(fresh.public_key(), Identity::from_seed([5; 32]).public_key());
}

#[test]
fn datagrams_are_refused_where_they_cannot_arrive_whole() {
    let mut two = Two::connected();
    let (now, to) = (two.now, port_80(&two));
    let endpoint = &mut two.hosts[0].0;
    assert_eq!(endpoint.send_datagram(now, to, 1, b""), Err(SendDatagramError::Empty));
    let stranger = SocketAddress { address: Address::new(0, 0x999), port: 80 };
    let unknown = endpoint.send_datagram(now, stranger, 1, b"x");
    assert_eq!(unknown, Err(SendDatagramError::Connect(ConnectError::UnknownPeer)));
    let Err(SendDatagramError::TooLarge { max }) = endpoint.send_datagram(now, to, 1, &[0; 60_000]) else {
        panic!("no path carries that");
    };
    assert!(max > 1_000);
    assert_eq!(
        endpoint.send_datagram(now, to, 1, &vec![0; max + 1]),
        Err(SendDatagramError::TooLarge { max })
    );
    let mut taken = 0;
    let full = loop {
        match endpoint.send_datagram(now, to, 1, &vec![7; max]) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100_000, "the queue has a bound");
    };
    assert_eq!(full, SendDatagramError::QueueFull);
    two.hosts[1].0.bind_datagram(80).expect("free");
    two.settle();
    let got = std::iter::from_fn(|| two.hosts[1].0.recv_datagram(80)).map(|d| d.data.len());
    assert!(got.take(10).all(|len| len == max));
}

#[test]
fn closing_resets_everything_and_answers_nobody_after() {
    let mut two = Two::connected();
    let [ours, theirs] = joined(&mut two);
    two.hosts[1].0.close_all(two.now);
    two.settle();
    assert_eq!(two.hosts[0].0.read(two.now, ours, &mut [0; 8]), Err(ReadError::Reset));
    assert_eq!(two.hosts[1].0.read(two.now, theirs, &mut [0; 8]), Err(ReadError::Reset));
    let late = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    assert_eq!(two.hosts[0].0.connect_error(late), Some(ConnectError::Refused));
    assert_eq!(two.hosts[1].0.open_connections, 1, "only the one that the application still holds");
}

#[test]
fn the_end_of_the_key_exchange_fails_what_waited_for_it() {
    let mut two = two();
    let now = two.now;
    let id = two.hosts[0].0.connect(now, port_80(&two)).expect("room");
    two.hosts[0].0.send_datagram(now, port_80(&two), 1, b"waits").expect("room");
    // Nobody answers: all that is sent is lost.
    let endpoint = &mut two.hosts[0].0;
    let mut buf = TransmitBuf::new(1);
    let mut sent = 0;
    while endpoint.poll_transmit(now, &mut buf).is_some() {
        sent += 1;
    }
    let mut at = now;
    while let Some(next) = endpoint.poll_timeout() {
        if next > now + Duration::from_secs(60) {
            break;
        }
        at = at.max(next);
        endpoint.handle_timeout(at);
        while endpoint.poll_transmit(at, &mut buf).is_some() {
            sent += 1;
        }
    }
    assert_eq!(endpoint.connect_error(id), Some(ConnectError::HandshakeTimeout));
    let failed = events(endpoint);
    let reason = ConnectError::HandshakeTimeout;
    assert!(failed.contains(&Event::TunnelDown { peer: NodeId(0x200), reason }));
    assert!(failed.contains(&Event::Closed(id)));
    // At once, after 0.25 s, then every 0.375 to 0.5 s for 15 s.
    assert!((29..=42).contains(&sent), "{sent} tries");
    endpoint.close(at, id);
    assert_eq!(endpoint.poll_timeout().filter(|t| *t < at + Duration::from_secs(60)), None, "silence");
}

#[test]
fn a_smaller_batch_is_kept_to() {
    let mut two = Two::connected();
    let [ours, _] = joined(&mut two);
    two.hosts[0].0.write(two.now, ours, &[7; 9_000]).expect("room");
    let mut buf = TransmitBuf::new(8);
    buf.set_max_segments(2);
    assert_eq!(buf.max_segments(), 2);
    let mut batches = 0;
    while let Some(out) = two.hosts[0].0.poll_transmit(two.now, &mut buf) {
        let segments = out.segment_size.map_or(1, |s| out.size.div_ceil(s));
        assert!(segments <= 2);
        batches += 1;
    }
    assert!(batches >= 4, "{batches}");
    buf.set_max_segments(0);
    assert_eq!(buf.max_segments(), 1, "none at all would stop everything");
}
