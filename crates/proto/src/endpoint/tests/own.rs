//! A node that calls itself.

use super::*;
use crate::event::ConnectError;

/// What the endpoint has to do until nothing is due within a second; nothing may leave.
fn turn(endpoint: &mut Endpoint, now: &mut Instant) {
    let mut buf = TransmitBuf::new(8);
    for _ in 0..10_000 {
        assert!(endpoint.poll_transmit(*now, &mut buf).is_none(), "nothing leaves");
        match endpoint.poll_timeout() {
            Some(due) if due <= *now + Duration::from_secs(1) => {
                *now = due.max(*now);
                endpoint.handle_timeout(*now);
            }
            _ => return,
        }
    }
    panic!("it never rests");
}

fn alone() -> (Endpoint, Instant, SocketAddress) {
    let Two { now, hosts: [(mut endpoint, _), _] } = two();
    let address = endpoint.local_address();
    let us = PeerConfig { address, key: None, endpoint: None, policy: PeerPolicy::default(), prekey: None };
    endpoint.add_peer(now, us).expect("ourselves");
    (endpoint, now, SocketAddress { address, port: 80 })
}

#[test]
fn a_node_reaches_itself_and_nothing_leaves() {
    let (mut endpoint, mut now, to) = alone();
    // Even behind a gate, for which nobody is asked about us.
    endpoint.set_gate(true);
    endpoint.listen(80).expect("free");
    let ours = endpoint.connect(now, to).expect("ourselves");
    turn(&mut endpoint, &mut now);
    let (theirs, from) = endpoint.accept(80).expect("connected");
    assert_eq!(from.address, to.address);
    let (sent, mut got) =
        ((0..300_000_u32).map(|i| i as u8 ^ (i >> 8) as u8).collect::<Vec<_>>(), Vec::<u8>::new());
    let (mut at, mut chunk) = (0, [0; 10_000]);
    while got.len() < sent.len() {
        at += endpoint.write(now, ours, &sent[at..]).unwrap_or(0);
        turn(&mut endpoint, &mut now);
        while let Ok(len @ 1..) = endpoint.read(now, theirs, &mut chunk) {
            got.extend(&chunk[..len]);
        }
    }
    assert!(got == sent);
    // Half-closed, as between two of our nodes; then both ends go.
    endpoint.shutdown(now, ours).expect("open");
    turn(&mut endpoint, &mut now);
    assert_eq!(endpoint.read(now, theirs, &mut chunk), Ok(0));
    assert_eq!(endpoint.write(now, theirs, b"answer"), Ok(6));
    turn(&mut endpoint, &mut now);
    assert_eq!(endpoint.read(now, ours, &mut chunk), Ok(6));
    endpoint.close(now, ours);
    endpoint.close(now, theirs);
    turn(&mut endpoint, &mut now);
    assert!(!endpoint.is_open(ours) && !endpoint.is_open(theirs));
    assert!(endpoint.peers().iter().all(|peer| peer.peer != to.address), "we are no peer");
}

#[test]
fn datagrams_and_pings_to_ourselves_come_back() {
    let (mut endpoint, mut now, to) = alone();
    endpoint.bind_datagram(80).expect("free");
    endpoint.send_datagram(now, to, 81, b"note").expect("sent");
    let token = endpoint.ping(now, to.address).expect("known");
    turn(&mut endpoint, &mut now);
    let note = endpoint.recv_datagram(80).expect("arrived");
    assert_eq!((note.from.port, note.from.address, &note.data[..]), (81, to.address, &b"note"[..]));
    let ponged = |event| matches!(event, Event::Pong { token: answered, .. } if answered == token);
    assert!(std::iter::from_fn(|| endpoint.poll_event()).any(ponged));
    let nowhere = endpoint.connect(now, SocketAddress { port: 9, ..to }).expect("ourselves");
    turn(&mut endpoint, &mut now);
    assert_eq!(endpoint.connect_error(nowhere), Some(ConnectError::Refused), "nobody listens there");
}

#[test]
fn nobody_else_speaks_for_us() {
    let (mut endpoint, mut now, to) = alone();
    endpoint.listen(80).expect("free");
    endpoint.bind_datagram(80).expect("free");
    let hdr = Header {
        flags: Flags::SYN,
        protocol: Protocol::Stream,
        src: to.address,
        dst: to.address,
        src_port: 50_000,
        dst_port: 80,
        seq: 1,
        ack: 0,
        window: 100,
    };
    for (flags, protocol) in [(Flags::SYN, Protocol::Stream), (Flags::EMPTY, Protocol::Datagram)] {
        let mut frame = vec![0; 4 + HEADER_LEN];
        frame[..4].copy_from_slice(b"PILT");
        Header { flags, protocol, ..hdr }.encode(&mut frame[4..], 0).expect("fits");
        // Also with the place that our own packets go to as its source.
        for remote in [([127, 0, 0, 1], 0).into(), ([192, 0, 2, 9], 9).into()] {
            let meta = RecvMeta { remote, local_ip: None };
            endpoint.handle_datagram(now, &meta, &mut frame.clone());
        }
    }
    assert_eq!(endpoint.stats().drop_not_allowed, 4);
    let mut sealed = vec![9; PILS_HEADER_LEN + 80];
    pilotage_wire::frame::encode_pils_header(to.address.node, &[1; 12], &mut sealed).expect("fits");
    let meta = RecvMeta { remote: ([127, 0, 0, 1], 0).into(), local_ip: None };
    endpoint.handle_datagram(now, &meta, &mut sealed);
    assert_eq!(endpoint.stats().drop_unauthentic, 1);
    turn(&mut endpoint, &mut now);
    assert!(endpoint.accept(80).is_none() && endpoint.recv_datagram(80).is_none());
}

#[test]
fn who_did_not_ask_for_itself_is_unknown() {
    let Two { now, hosts: [(mut endpoint, _), _] } = two();
    let to = SocketAddress { address: endpoint.local_address(), port: 80 };
    assert_eq!(endpoint.connect(now, to), Err(ConnectError::UnknownPeer));
}

#[test]
fn what_waits_for_ourselves_is_bounded_and_what_is_lost_by_that_comes_again() {
    use crate::endpoint::own::WAITING_MAX;

    let (mut endpoint, mut now, to) = alone();
    endpoint.listen(80).expect("free");
    let ours = endpoint.connect(now, to).expect("ourselves");
    turn(&mut endpoint, &mut now);
    let (theirs, _) = endpoint.accept(80).expect("connected");
    // Nobody takes in what is sent until the queue is full.
    let mut buf = TransmitBuf::new(8);
    for _ in 0..2 * WAITING_MAX {
        endpoint.send_datagram(now, to, 9, b"one of many").expect("sent");
        assert!(endpoint.poll_transmit(now, &mut buf).is_none());
    }
    assert_eq!(endpoint.own.len(), WAITING_MAX);
    assert_eq!(endpoint.write(now, ours, b"not lost for good"), Ok(17));
    turn(&mut endpoint, &mut now);
    let mut got = [0; 64];
    assert_eq!(endpoint.read(now, theirs, &mut got), Ok(17));
}
