//! Faults that the simulator found: batches, dialect, addresses, exchanges that were joined late, forgotten peers, crowds.

use pilotage_wire::frame::PILA_LEN;

use super::*;
use crate::connection::DIALECT_MARK;
use crate::event::{ConnectError, Event, ReadError};

fn port_80(two: &Two) -> SocketAddress {
    SocketAddress { address: two.hosts[1].0.local_address(), port: 80 }
}

fn pongs(endpoint: &mut Endpoint) -> usize {
    std::iter::from_fn(|| endpoint.poll_event()).filter(|e| matches!(e, Event::Pong { .. })).count()
}

/// Every datagram that a host sends now, one after the other.
fn leaving(two: &mut Two, host: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut buf = TransmitBuf::new(64);
    let mut out = Vec::new();
    while let Some(t) = two.hosts[host].0.poll_transmit(two.now, &mut buf) {
        let segment = t.segment_size.unwrap_or(t.size);
        out.extend(buf.bytes(t.size).chunks(segment).map(|bytes| (t.destination, bytes.to_vec())));
    }
    out
}

/// A host receives a datagram from anywhere.
fn hand(two: &mut Two, host: usize, from: SocketAddr, bytes: &[u8]) {
    let meta = RecvMeta { remote: from, local_ip: None };
    two.hosts[host].0.handle_datagram(two.now, &meta, &mut bytes.to_vec());
}

fn pass(two: &mut Two, time: Duration) {
    let end = two.now + time;
    while two.now < end {
        two.now = (two.now + Duration::from_millis(100)).min(end);
        for (host, _) in &mut two.hosts {
            host.handle_timeout(two.now);
        }
        two.settle();
    }
}

#[test]
fn no_datagram_of_a_batch_is_longer_than_its_segment_size() {
    let mut two = Two::connected();
    let _ = (pongs(&mut two.hosts[0].0), pongs(&mut two.hosts[1].0));
    // The answer to a short echo is the first of the batch, and a ping is longer.
    let echo = Header { dst_port: 0, ..two.header(Protocol::Control, Flags::EMPTY) };
    two.deliver(echo, b"short", |_| {});
    let peer = two.hosts[0].0.local_address();
    two.hosts[1].0.ping(two.now, peer).expect("known");
    let mut buf = TransmitBuf::new(64);
    let mut sizes = Vec::new();
    while let Some(t) = two.hosts[1].0.poll_transmit(two.now, &mut buf) {
        let segment = t.segment_size.unwrap_or(t.size);
        sizes.extend(buf.bytes(t.size).chunks(segment).map(<[u8]>::len));
        for datagram in buf.bytes(t.size).chunks(segment) {
            let meta = RecvMeta { remote: two.hosts[1].1, local_ip: None };
            two.hosts[0].0.handle_datagram(two.now, &meta, &mut datagram.to_vec());
        }
    }
    assert_eq!(sizes, [75, 86]);
    let stats = two.hosts[0].0.stats();
    assert_eq!((stats.drop_unauthentic, stats.drop_malformed), (0, 0), "none was cut in two");
    two.settle();
    assert_eq!(pongs(&mut two.hosts[1].0), 1);
}

/// Two hosts that exchanged keys while somebody on the way cut the trailer off.
fn stripped() -> Two {
    let mut two = two();
    let peer = two.hosts[1].0.local_address();
    two.hosts[0].0.ping(two.now, peer).expect("known");
    for _ in 0..20 {
        for i in 0..2 {
            let from = two.hosts[i].1;
            for (_, mut bytes) in leaving(&mut two, i) {
                if bytes.starts_with(b"PILA") {
                    bytes.truncate(PILA_LEN);
                }
                hand(&mut two, 1 - i, from, &bytes);
            }
        }
        two.now += Duration::from_millis(5);
    }
    assert!(two.hosts.iter().all(|(h, _)| h.peers()[0].established && !h.peers()[0].pilotage));
    two
}

#[test]
fn a_mark_that_is_cut_off_on_the_way_costs_no_half_close() {
    let mut two = stripped();
    two.hosts[1].0.listen(80).expect("free");
    let ours = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    let (theirs, _) = two.hosts[1].0.accept(80).expect("connected");
    assert!(two.hosts.iter().all(|(h, _)| h.peers()[0].pilotage), "the handshake showed it, sealed");
    two.hosts[0].0.shutdown(two.now, ours).expect("open");
    two.settle();
    assert_eq!(two.hosts[1].0.read(two.now, theirs, &mut [0; 8]), Ok(0));
    assert_eq!(two.hosts[1].0.write(two.now, theirs, b"still talking"), Ok(13));
    two.settle();
    assert_eq!(two.hosts[0].0.readable(ours), 13);
}

#[test]
fn a_mark_that_is_added_on_the_way_does_not_outweigh_what_a_handshake_showed() {
    let mut two = Two::connected();
    two.hosts[1].0.listen(80).expect("free");
    assert!(two.hosts[1].0.peers()[0].pilotage, "a hint, while there is nothing better");
    let syn = two.header(Protocol::Stream, Flags::SYN);
    two.deliver(syn, b"", |_| {});
    assert!(!two.hosts[1].0.peers()[0].pilotage, "a sealed SYN without the mark");
    // A genuine frame of that peer, with a trailer that is not.
    let identity = Identity::from_seed([1; 32]);
    let node = two.hosts[0].0.local_address().node;
    let x25519 = [3; 32];
    let signature = identity.sign(&frame::pila_signed_message(node, &x25519));
    let mut trailer = [0; 32];
    let len = frame::PilaTrailer { capabilities: 0, flags: 1, pilotage: Some(1) }.encode(&mut trailer);
    let trailer = &trailer[..len];
    let pila = frame::Pila { sender: node, x25519, ed25519: identity.public_key(), signature, trailer };
    let mut bytes = vec![0; PILA_LEN + len];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    let from = two.hosts[0].1;
    hand(&mut two, 1, from, &bytes);
    assert!(!two.hosts[1].0.peers()[0].pilotage);
    // And the other way round.
    let marked = Header { src_port: 50_001, ..syn };
    two.deliver(marked, &DIALECT_MARK, |_| {});
    assert!(two.hosts[1].0.peers()[0].pilotage);
}

#[test]
fn the_path_follows_to_a_new_address_only_when_its_token_has_come_back() {
    let mut two = Two::connected();
    let (old, new) = (two.hosts[0].1, SocketAddr::from(([198, 51, 100, 7], 7)));
    let at = two.hosts[1].1;
    let path = |two: &Two| two.hosts[1].0.peers()[0].path.map(|p| p.remote);
    assert_eq!(path(&two), Some(old));
    // A genuine frame, by a way that anybody can have sent it.
    let peer = two.hosts[1].0.local_address();
    two.hosts[0].0.ping(two.now, peer).expect("known");
    let frames = leaving(&mut two, 0);
    assert_eq!(frames.len(), 1);
    hand(&mut two, 1, new, &frames[0].1);
    assert_eq!(path(&two), Some(old), "not yet");
    let answers = leaving(&mut two, 1);
    let (to_new, to_old): (Vec<_>, Vec<_>) = answers.iter().partition(|(to, _)| *to == new);
    assert_eq!(
        (to_new.len(), to_old.len()),
        (1, 1),
        "the question for the token; the echo goes where the peer was"
    );
    assert!(to_new[0].1.len() <= frames[0].1.len(), "no more than came from there");
    // Asked once in a while, however many frames come.
    for _ in 0..3 {
        two.hosts[0].0.ping(two.now, peer).expect("known");
        let more = leaving(&mut two, 0);
        hand(&mut two, 1, new, &more[0].1);
        assert!(leaving(&mut two, 1).iter().all(|(to, _)| *to == old));
    }
    // The token from another address proves nothing, and the real answer from the new one does.
    hand(&mut two, 0, at, &to_new[0].1);
    let answer = leaving(&mut two, 0);
    assert_eq!(answer.len(), 1);
    hand(&mut two, 1, SocketAddr::from(([198, 51, 100, 8], 8)), &answer[0].1);
    assert_eq!(path(&two), Some(old));
    two.now += Duration::from_millis(300);
    two.hosts[0].0.ping(two.now, peer).expect("known");
    let again = leaving(&mut two, 0);
    hand(&mut two, 1, new, &again[0].1);
    let asked: Vec<_> = leaving(&mut two, 1).into_iter().filter(|(to, _)| *to == new).collect();
    assert_eq!(asked.len(), 1, "asked again after a quarter of a second");
    hand(&mut two, 0, at, &asked[0].1);
    let answer = leaving(&mut two, 0);
    hand(&mut two, 1, new, &answer[0].1);
    assert_eq!(path(&two), Some(new));
}

#[test]
fn a_key_exchange_answer_is_no_longer_than_the_question() {
    for (trailer, expected) in [(0, PILA_LEN), (6, PILA_LEN), (7, PILA_LEN + 7)] {
        let mut two = two();
        let identity = Identity::from_seed([1; 32]);
        let node = two.hosts[0].0.local_address().node;
        let signature = identity.sign(&frame::pila_signed_message(node, &[3; 32]));
        let surplus = vec![0; trailer];
        let pila = frame::Pila {
            sender: node,
            x25519: [3; 32],
            ed25519: identity.public_key(),
            signature,
            trailer: &surplus,
        };
        let mut bytes = vec![0; PILA_LEN + trailer];
        frame::encode_pila(&pila, &mut bytes).expect("fits");
        let stranger = SocketAddr::from(([198, 51, 100, 7], 7));
        hand(&mut two, 1, stranger, &bytes);
        let answers = leaving(&mut two, 1);
        assert_eq!(answers.iter().map(|(to, b)| (*to, b.len())).collect::<Vec<_>>(), [(stranger, expected)]);
        // From where the peer was introduced it is answered in full.
        let from = two.hosts[0].1;
        hand(&mut two, 1, from, &bytes);
        assert!(leaving(&mut two, 1).iter().any(|(to, b)| *to == from && b.len() == PILA_LEN + 7));
    }
}

#[test]
fn a_call_that_joins_an_old_key_exchange_gets_its_full_time() {
    let mut two = two();
    let first = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    let lose = |two: &mut Two, seconds: u64| {
        for _ in 0..seconds * 10 {
            two.now += Duration::from_millis(100);
            two.hosts[0].0.handle_timeout(two.now);
            leaving(two, 0);
        }
    };
    lose(&mut two, 14);
    let second = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    lose(&mut two, 4);
    assert_eq!(two.hosts[0].0.connect_error(first), Some(ConnectError::HandshakeTimeout), "had its time");
    assert_eq!(two.hosts[0].0.connect_error(second), None);
    two.hosts[1].0.listen(80).expect("free");
    pass(&mut two, Duration::from_secs(4));
    assert!(two.hosts[0].0.is_open(second), "fourteen seconds were left");
}

#[test]
fn a_restarted_dialler_on_its_old_port_is_connected_soon() {
    let mut two = Two::connected();
    two.hosts[1].0.listen(80).expect("free");
    let old = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    let port = two.hosts[0].0.local_port(old).expect("open");
    let (remembered, _) = two.hosts[1].0.accept(80).expect("connected");
    // A new process, which draws the same port.
    let (identity, address) = (Identity::from_seed([1; 32]), two.hosts[0].0.local_address());
    let known = PeerConfig {
        address: two.hosts[1].0.local_address(),
        key: Some(two.hosts[1].0.public_key()),
        endpoint: Some(two.hosts[1].1),
        policy: PeerPolicy::default(),
        prekey: None,
    };
    two.hosts[0].0 = Endpoint::new(Config::default(), identity, address, [77; 32], two.now);
    two.hosts[0].0.add_peer(two.now, known).expect("fresh");
    two.hosts[0].0.next_port = port;
    let new = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    assert_eq!(two.hosts[0].0.local_port(new), Some(port));
    pass(&mut two, Duration::from_secs(4));
    assert_eq!(two.hosts[0].0.connect_error(new), None);
    let (accepted, from) = two.hosts[1].0.accept(80).expect("the new one");
    assert_eq!(from.port, port);
    // Though the application never looked at the old one.
    assert_eq!(two.hosts[1].0.read(two.now, remembered, &mut [0; 8]), Err(ReadError::Reset));
    two.hosts[1].0.close(two.now, remembered);
    two.settle();
    assert_eq!(two.hosts[1].0.open_connections, 1);
    assert_eq!(two.hosts[0].0.write(two.now, new, b"hello"), Ok(5));
    two.settle();
    assert_eq!(two.hosts[1].0.readable(accepted), 5);
}

#[test]
fn the_greediest_peer_gives_way_in_a_full_queue_but_not_to_its_like() {
    let mut two = Two::connected();
    let endpoint = &mut two.hosts[1].0;
    endpoint.cfg.accept_queue = 4;
    endpoint.listen(80).expect("free");
    for node in [0x300, 0x400, 0x500] {
        let at = SocketAddr::from(([192, 0, 2, 9], node as u16));
        let (address, policy) = (Address::new(0, node), PeerPolicy::default());
        let peer = PeerConfig { address, key: Some([7; 32]), endpoint: Some(at), policy, prekey: None };
        endpoint.add_peer(two.now, peer).expect("room");
    }
    let (hdr, now) = (two.header(Protocol::Stream, Flags::SYN), two.now);
    let endpoint = &mut two.hosts[1].0;
    let mut port = 50_000;
    let mut syn = |endpoint: &mut Endpoint, now, tunnel: u32| {
        port += 1;
        endpoint.on_syn(now, tunnel, &Header { src_port: port, ..hdr });
        let queue = &endpoint.listeners[&80].half_open;
        (0..4).map(|t| queue.iter().filter(|h| h.tunnel == t).count()).collect::<Vec<_>>()
    };
    let mut held = Vec::new();
    for tunnel in [0, 0, 0, 1, 2] {
        held = syn(endpoint, now, tunnel);
    }
    assert_eq!(held, [3, 1, 0, 0], "the last place of a queue is for peers that have none");
    endpoint.listeners.get_mut(&80).expect("listening").half_open.pop_front();
    assert_eq!(syn(endpoint, now, 2), [2, 1, 1, 0]);
    assert_eq!(syn(endpoint, now, 3), [2, 1, 1, 0], "they may be about to finish");
    let later = now + Duration::from_secs(1);
    assert_eq!(
        syn(endpoint, later, 1),
        [2, 1, 1, 0],
        "a second one, at the cost of one who has two: a mere exchange"
    );
    assert_eq!(syn(endpoint, later, 3), [1, 1, 1, 1]);
    assert_eq!(syn(endpoint, later, 3), [1, 1, 1, 1], "nobody has more than the others");
    assert_eq!(endpoint.listeners[&80].outside.len(), 1, "it may still come to an end");
    // More than the queue has places do not wait outside: two peers push each other out for ever.
    let endpoint = &mut two.hosts[1].0;
    for round in 2..60u64 {
        let now = now + Duration::from_secs(round);
        endpoint.listeners.get_mut(&80).expect("listening").half_open.clear();
        for tunnel in [0, 0, 0, 1, 2] {
            syn(endpoint, now, tunnel);
        }
        syn(endpoint, now + Duration::from_secs(1), 3);
        assert!(endpoint.listeners[&80].outside.len() <= 4);
    }
    assert_eq!(endpoint.listeners[&80].outside.len(), 4);
}

#[test]
fn size_probes_leave_behind_the_data_and_are_sent_in_a_transfer_that_never_pauses() {
    let mut two = Two::connected();
    two.hosts[1].0.listen(80).expect("free");
    let ours = two.hosts[0].0.connect(two.now, port_80(&two)).expect("room");
    two.settle();
    let (theirs, _) = two.hosts[1].0.accept(80).expect("connected");
    let mut sink = vec![0; 1 << 20];
    let mut largest = 0;
    for round in 0..60 {
        let _ = two.hosts[0].0.write(two.now, ours, &sink);
        let path = two.hosts[0].0.connection_path(ours).expect("open");
        let sizes: Vec<usize> = leaving(&mut two, 0)
            .into_iter()
            .map(|(_, bytes)| {
                let from = two.hosts[0].1;
                hand(&mut two, 1, from, &bytes);
                bytes.len()
            })
            .collect();
        if let Some(at) = sizes.iter().position(|len| *len > path.datagram_size) {
            assert_eq!(at + 1, sizes.len(), "round {round}: a probe before data, {sizes:?}");
            let allowed = path.congestion_window + 70;
            assert!(sizes[at] as u64 <= allowed, "round {round}: {} of {allowed}", sizes[at]);
        }
        two.now += Duration::from_millis(20);
        while two.hosts[1].0.read(two.now, theirs, &mut sink).is_ok_and(|n| n > 0) {}
        for (_, bytes) in leaving(&mut two, 1) {
            let at = two.hosts[1].1;
            hand(&mut two, 0, at, &bytes);
        }
        two.now += Duration::from_millis(20);
        for host in 0..2 {
            two.hosts[host].0.handle_timeout(two.now);
        }
        largest = two.hosts[0].0.connection_path(ours).expect("open").datagram_size;
    }
    assert_eq!(largest, 65_507);
}
