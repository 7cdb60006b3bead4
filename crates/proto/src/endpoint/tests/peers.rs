//! Who may have a tunnel: strangers, look-ups, pins, bounds, and what the operator allows in the clear.

use pilotage_wire::frame::{self, Pila};

use super::*;
use crate::event::ConnectError;

const STRANGER: u32 = 0x300;

/// A third endpoint, which knows the second one and is unknown to it.
fn stranger(two: &Two) -> (Endpoint, SocketAddr) {
    let socket = SocketAddr::from(([192, 0, 2, 3], 3));
    let identity = Identity::from_seed([3; 32]);
    let mut endpoint =
        Endpoint::new(Config::default(), identity, Address::new(0, STRANGER), [3; 32], two.now);
    let (host, at) = &two.hosts[1];
    let peer = peer_config(host.local_address(), Some(host.public_key()), Some(*at));
    endpoint.add_peer(two.now, peer).expect("fresh");
    (endpoint, socket)
}

fn peer_config(address: Address, key: Option<[u8; 32]>, endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig { address, key, endpoint, policy: PeerPolicy::default(), prekey: None }
}

/// The first host gives its place to a stranger of the second one, which then pings.
fn with_stranger() -> Two {
    let mut two = two();
    two.hosts[0] = stranger(&two);
    let to = two.hosts[1].0.local_address();
    two.hosts[0].0.ping(two.now, to).expect("known");
    two.settle();
    two
}

fn look_ups(endpoint: &mut Endpoint) -> Vec<Event> {
    std::iter::from_fn(|| endpoint.poll_event()).filter(|e| matches!(e, Event::LookupPeer { .. })).collect()
}

/// A frame to the second host from anywhere.
fn hand(two: &mut Two, from: SocketAddr, bytes: &mut [u8]) {
    two.hosts[1].0.handle_datagram(two.now, &RecvMeta { remote: from, local_ip: None }, bytes);
}

fn pila_of(identity: &Identity, node: NodeId, x25519: [u8; 32], trailer: &[u8]) -> Vec<u8> {
    let signature = identity.sign(&frame::pila_signed_message(node, &x25519));
    let pila = Pila { sender: node, x25519, ed25519: identity.public_key(), signature, trailer };
    let mut bytes = vec![0; frame::PILA_LEN + trailer.len()];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    bytes
}

#[test]
fn a_stranger_is_looked_up_once_and_let_in_when_its_key_is_confirmed() {
    let mut two = with_stranger();
    let from = two.hosts[0].1;
    let key = two.hosts[0].0.public_key();
    let asked = look_ups(&mut two.hosts[1].0);
    assert_eq!(asked, [Event::LookupPeer { node: NodeId(STRANGER), presented_key: key, from }]);
    assert!(two.hosts[1].0.peer(NodeId(STRANGER)).is_none(), "not before the answer");
    // It repeats itself, which is no new question.
    two.now += Duration::from_secs(1);
    two.hosts[0].0.handle_timeout(two.now);
    two.settle();
    assert_eq!(look_ups(&mut two.hosts[1].0), []);
    let found = peer_config(Address::new(0, STRANGER), Some(key), None);
    two.hosts[1].0.resolve_peer(two.now, NodeId(STRANGER), Some(found));
    two.settle();
    let info = two.hosts[1].0.peer(NodeId(STRANGER)).expect("introduced");
    assert!(info.established && info.authenticated && info.pilotage);
    assert_eq!(info.path.map(|p| p.remote), Some(from), "where its frame came from");
    let pong = std::iter::from_fn(|| two.hosts[0].0.poll_event()).any(|e| matches!(e, Event::Pong { .. }));
    assert!(pong, "the frame that was kept is answered: nothing is lost by the look-up");
}

#[test]
fn a_stranger_that_nobody_knows_or_that_shows_another_key_stays_outside() {
    let mut two = with_stranger();
    two.hosts[1].0.resolve_peer(two.now, NodeId(STRANGER), None);
    assert_eq!(two.hosts[1].0.stats().drop_bad_key_exchange, 1);
    assert!(two.hosts[1].0.peer(NodeId(STRANGER)).is_none());

    let mut two = with_stranger();
    let found = peer_config(Address::new(0, STRANGER), Some([7; 32]), None);
    two.hosts[1].0.resolve_peer(two.now, NodeId(STRANGER), Some(found));
    two.settle();
    assert_eq!(two.hosts[1].0.stats().drop_bad_key_exchange, 1, "its frame is checked against the key found");
    let info = two.hosts[1].0.peer(NodeId(STRANGER)).expect("introduced");
    assert!(!info.established && !info.authenticated);
    // An answer that nobody asked for, and one for a peer without a key.
    let other = NodeId(0x999);
    two.hosts[1].0.resolve_peer(two.now, other, Some(peer_config(Address::new(0, 0x999), None, None)));
    assert!(!two.hosts[1].0.peer(other).expect("introduced").established);
}

#[test]
fn a_look_up_without_an_answer_is_forgotten_and_asked_again() {
    let mut two = with_stranger();
    assert_eq!(look_ups(&mut two.hosts[1].0).len(), 1);
    two.now += Duration::from_millis(9_900);
    two.hosts[1].0.handle_timeout(two.now);
    assert_eq!(two.hosts[1].0.lookups.len(), 1);
    two.now += Duration::from_millis(200);
    two.hosts[1].0.handle_timeout(two.now);
    assert_eq!(two.hosts[1].0.lookups.len(), 0);
    two.hosts[0].0.handle_timeout(two.now);
    two.settle();
    assert_eq!(look_ups(&mut two.hosts[1].0).len(), 1);
}

#[test]
fn a_sealed_frame_of_a_forgotten_peer_leads_to_new_keys() {
    let mut two = Two::connected();
    let (key, from) = (two.hosts[0].0.public_key(), two.hosts[0].1);
    let address = two.hosts[0].0.local_address();
    // The second host comes back and knows nobody.
    let identity = Identity::from_seed([2; 32]);
    let local = two.hosts[1].0.local_address();
    two.hosts[1].0 = Endpoint::new(Config::default(), identity, local, [9; 32], two.now);
    two.hosts[0].0.ping(two.now, local).expect("known");
    two.settle();
    let asked = look_ups(&mut two.hosts[1].0);
    assert_eq!(asked, [Event::LookupPeer { node: address.node, presented_key: [0; 32], from }]);
    assert_eq!(two.hosts[1].0.stats().drop_no_session, 1);
    // The look-up tells its address too: an unproven one is sent no more than came from it.
    two.hosts[1].0.resolve_peer(two.now, address.node, Some(peer_config(address, Some(key), Some(from))));
    two.settle();
    // One short frame may not be worth a key exchange frame to an address that has proven nothing (rule C16); two are.
    two.hosts[0].0.ping(two.now, local).expect("known");
    two.settle();
    assert!(two.hosts[1].0.peers()[0].established, "it asked for keys by itself");
    two.hosts[0].0.ping(two.now, local).expect("known");
    two.settle();
    assert!(std::iter::from_fn(|| two.hosts[0].0.poll_event()).any(|e| matches!(e, Event::Pong { .. })));
}

#[test]
fn a_sealed_frame_of_a_known_peer_without_keys_is_answered_with_ours() {
    let mut two = Two::connected();
    let identity = Identity::from_seed([2; 32]);
    let (local, socket) = (two.hosts[1].0.local_address(), two.hosts[1].1);
    let peer =
        peer_config(two.hosts[0].0.local_address(), Some(two.hosts[0].0.public_key()), Some(two.hosts[0].1));
    two.hosts[1] = (Endpoint::new(Config::default(), identity, local, [9; 32], two.now), socket);
    two.hosts[1].0.add_peer(two.now, peer).expect("fresh");
    two.hosts[0].0.ping(two.now, local).expect("known");
    two.settle();
    assert_eq!(two.hosts[1].0.stats().drop_no_session, 1);
    assert!(two.hosts[1].0.peers()[0].established);
}

#[test]
fn a_full_table_gives_up_the_peer_that_was_silent_longest_and_none_in_use() {
    let mut two = Two::connected();
    let now = two.now;
    let endpoint = &mut two.hosts[0].0;
    endpoint.cfg.max_peers = 3;
    let at = SocketAddr::from(([192, 0, 2, 9], 9));
    let add = |endpoint: &mut Endpoint, node: u32| {
        endpoint.add_peer(now, peer_config(Address::new(0, node), Some([7; 32]), Some(at)))
    };
    let known = |endpoint: &Endpoint| endpoint.peers().iter().map(|t| t.peer.node.0).collect::<Vec<_>>();
    assert_eq!((add(endpoint, 0x901), add(endpoint, 0x902)), (Ok(()), Ok(())));
    assert_eq!(add(endpoint, 0x903), Ok(()));
    assert_eq!(known(endpoint), [0x200, 0x902, 0x903], "the lowest of those that were never heard");
    // With a connection each nobody can be given up.
    for node in [0x200, 0x902, 0x903] {
        let to = SocketAddress { address: Address::new(0, node), port: 80 };
        endpoint.connect(now, to).expect("room");
    }
    assert_eq!(add(endpoint, 0x904), Err(ConnectError::LimitReached));
    assert_eq!(known(endpoint), [0x200, 0x902, 0x903]);
    // Neither for a stranger that was looked up.
    let found = peer_config(Address::new(0, STRANGER), Some([7; 32]), None);
    endpoint.resolve_peer(now, NodeId(STRANGER), Some(found));
    assert_eq!(endpoint.stats().refused, 1);
    let down = Event::TunnelDown { peer: NodeId(STRANGER), reason: ConnectError::LimitReached };
    assert!(std::iter::from_fn(|| endpoint.poll_event()).any(|e| e == down));
}

#[test]
fn a_pinned_key_is_not_replaced_by_a_later_introduction() {
    let mut two = two();
    let peer = Address::new(0, 0x200);
    let other = peer_config(peer, Some([7; 32]), None);
    assert_eq!(two.hosts[0].0.add_peer(two.now, other), Err(ConnectError::PinMismatch));
    let without = peer_config(peer, None, Some(SocketAddr::from(([192, 0, 2, 77], 7))));
    assert_eq!(two.hosts[0].0.add_peer(two.now, without), Ok(()));
    let info = two.hosts[0].0.peer(NodeId(0x200)).expect("known");
    assert_eq!(info.key, Some(two.hosts[1].0.public_key()));
    assert_eq!(info.path.map(|p| p.remote.port()), Some(7), "a new place is taken while nothing was heard");
    // The key may come later.
    let late = Address::new(0, 0x999);
    assert_eq!(two.hosts[0].0.add_peer(two.now, peer_config(late, None, None)), Ok(()));
    assert_eq!(two.hosts[0].0.add_peer(two.now, peer_config(late, Some([7; 32]), None)), Ok(()));
    assert_eq!(two.hosts[0].0.peer(NodeId(0x999)).expect("known").key, Some([7; 32]));
}

#[test]
fn signed_exchanges_count_only_with_the_pinned_key_and_a_true_signature() {
    let mut two = two();
    let from = two.hosts[0].1;
    let node = two.hosts[0].0.local_address().node;
    let right = Identity::from_seed([1; 32]);
    let foreign = Identity::from_seed([8; 32]);
    let mut steps: Vec<Vec<u8>> = vec![pila_of(&foreign, node, [3; 32], &[])];
    // The right key with a signature over another X25519 key.
    let mut lie = pila_of(&right, node, [3; 32], &[]);
    lie[8] ^= 1;
    steps.push(lie);
    // Signed by somebody else under the right key's name.
    let signature = foreign.sign(&frame::pila_signed_message(node, &[3; 32]));
    let pila = Pila { sender: node, x25519: [3; 32], ed25519: right.public_key(), signature, trailer: &[] };
    let mut bytes = vec![0; frame::PILA_LEN];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    steps.push(bytes);
    // Our own name.
    steps.push(pila_of(&right, two.hosts[1].0.local_address().node, [3; 32], &[]));
    for (count, step) in (1..).zip(&mut steps) {
        hand(&mut two, from, step);
        assert_eq!(two.hosts[1].0.stats().drop_bad_key_exchange, count);
        assert!(!two.hosts[1].0.peers()[0].established, "step {count}");
    }
    // A point of small order gives no key although the signature is right.
    hand(&mut two, from, &mut pila_of(&right, node, [0; 32], &[]));
    assert_eq!(two.hosts[1].0.stats().drop_bad_key_exchange, 5);
    assert!(!two.hosts[1].0.peers()[0].established);
    two.now += Duration::from_secs(1);
    hand(&mut two, from, &mut pila_of(&right, node, [3; 32], &[]));
    let info = &two.hosts[1].0.peers()[0];
    assert!(info.established && info.authenticated && !info.pilotage, "no marker: a reference peer");
}

#[test]
fn repeated_exchange_frames_begin_no_new_session_and_cost_few_answers() {
    let mut two = two();
    let from = two.hosts[0].1;
    let node = two.hosts[0].0.local_address().node;
    let frame = pila_of(&Identity::from_seed([1; 32]), node, [3; 32], &[]);
    let mut buf = TransmitBuf::new(1);
    let mut answers = 0;
    for _ in 0..200 {
        hand(&mut two, from, &mut frame.clone());
        while let Some(out) = two.hosts[1].0.poll_transmit(two.now, &mut buf) {
            assert_eq!(out.size, frame.len() + 7, "a key exchange frame with our trailer");
            answers += 1;
        }
        two.now += Duration::from_millis(50);
    }
    // Ten seconds: a burst of four, then one a second.
    assert!((10..=15).contains(&answers), "{answers}");
    assert_eq!(two.hosts[1].0.stats().handshakes, 1);
    // An answer is never answered, so two sides cannot keep each other busy.
    let trailer = {
        let mut bytes = [0u8; 32];
        let len =
            frame::PilaTrailer { capabilities: 0, flags: frame::PilaTrailer::ANSWER, pilotage: Some(1) }
                .encode(&mut bytes);
        bytes[..len].to_vec()
    };
    two.now += Duration::from_secs(60);
    hand(&mut two, from, &mut pila_of(&Identity::from_seed([1; 32]), node, [3; 32], &trailer));
    assert_eq!(two.hosts[1].0.poll_transmit(two.now, &mut buf), None);
}

#[test]
fn an_anonymous_exchange_needs_permission_and_no_known_key() {
    let mut two = two();
    let from = SocketAddr::from(([192, 0, 2, 5], 5));
    let mut pilk = [0u8; 64];
    let len = frame::encode_pilk(NodeId(0x500), &[3; 32], &mut pilk).expect("fits");
    let add = |two: &mut Two, node: u32, key, allow| {
        let policy = PeerPolicy { allow_unauthenticated: allow, ..PeerPolicy::default() };
        let peer = PeerConfig { policy, ..peer_config(Address::new(0, node), key, Some(from)) };
        two.hosts[1].0.add_peer(two.now, peer).expect("room");
    };
    hand(&mut two, from, &mut pilk[..len].to_vec());
    assert_eq!(two.hosts[1].0.stats().drop_not_allowed, 1, "unknown");
    add(&mut two, 0x500, None, false);
    hand(&mut two, from, &mut pilk[..len].to_vec());
    assert_eq!(two.hosts[1].0.stats().drop_not_allowed, 2, "not permitted");
    add(&mut two, 0x500, None, true);
    hand(&mut two, from, &mut pilk[..len].to_vec());
    let info = two.hosts[1].0.peer(NodeId(0x500)).expect("known");
    assert!(info.established && !info.authenticated);
    let handshakes = two.hosts[1].0.stats().handshakes;
    hand(&mut two, from, &mut pilk[..len].to_vec());
    assert_eq!(two.hosts[1].0.stats().handshakes, handshakes, "the same key again changes nothing");
    // Once a key is known, permission or not: only a signature counts (rule C6).
    add(&mut two, 0x501, Some([7; 32]), true);
    let len = frame::encode_pilk(NodeId(0x501), &[4; 32], &mut pilk).expect("fits");
    two.now += Duration::from_secs(1);
    hand(&mut two, from, &mut pilk[..len].to_vec());
    assert!(!two.hosts[1].0.peer(NodeId(0x501)).expect("known").established);
    // A flood is not looked at.
    let before = two.hosts[1].0.stats().drop_rate_limited;
    for _ in 0..20 {
        hand(&mut two, from, &mut pilk[..len].to_vec());
    }
    assert!(two.hosts[1].0.stats().drop_rate_limited >= before + 10);
}

#[test]
fn plaintext_passes_only_where_both_operators_allowed_it() {
    for allowed in [[true, true], [true, false]] {
        let mut two = two();
        for (i, allow_plaintext) in allowed.into_iter().enumerate() {
            let policy = PeerPolicy { allow_plaintext, ..PeerPolicy::default() };
            let (other, at) = &two.hosts[1 - i];
            let peer = PeerConfig { policy, ..peer_config(other.local_address(), None, Some(*at)) };
            two.hosts[i].0.add_peer(two.now, peer).expect("known");
        }
        two.hosts[1].0.bind_datagram(80).expect("free");
        let to = SocketAddress { address: two.hosts[1].0.local_address(), port: 80 };
        two.hosts[0].0.send_datagram(two.now, to, 1, b"in the clear").expect("room");
        two.settle();
        let got = two.hosts[1].0.recv_datagram(80).map(|d| d.data);
        assert_eq!(got.is_some(), allowed[1]);
        assert_eq!(two.hosts[1].0.stats().drop_not_allowed, u64::from(!allowed[1]));
        // The same packet from elsewhere never counts.
        let hdr = two.header(Protocol::Datagram, Flags::EMPTY);
        let mut bytes = vec![0; 4 + HEADER_LEN + 5];
        frame::encode_pilt_header(&mut bytes).expect("fits");
        bytes[4 + HEADER_LEN..].copy_from_slice(b"spoof");
        hdr.encode(&mut bytes[4..], 5).expect("fits");
        hand(&mut two, SocketAddr::from(([192, 0, 2, 66], 6)), &mut bytes);
        assert_eq!(two.hosts[1].0.recv_datagram(80), None);
        // Nor does a damaged one.
        let malformed = two.hosts[1].0.stats().drop_malformed;
        let at = two.hosts[0].1;
        bytes[10] ^= 1;
        hand(&mut two, at, &mut bytes);
        assert_eq!(two.hosts[1].0.stats().drop_malformed, malformed + 1);
    }
}

#[test]
fn neither_an_empty_datagram_nor_one_for_no_port_does_anything() {
    let mut two = Two::connected();
    hand(&mut two, SocketAddr::from(([192, 0, 2, 66], 6)), &mut []);
    assert_eq!(two.hosts[1].0.stats().drop_malformed, 1);
    let hdr = two.header(Protocol::Datagram, Flags::EMPTY);
    two.deliver(hdr, b"nobody listens", |_| {});
    assert_eq!(two.hosts[1].0.stats().drop_segment, 1);
    two.hosts[1].0.bind_datagram(80).expect("free");
    assert_eq!(two.hosts[1].0.bind_datagram(80), Err(ConnectError::LimitReached));
    two.deliver(hdr, b"", |_| {});
    assert_eq!(two.hosts[1].0.recv_datagram(80), None);
    two.hosts[1].0.cfg.datagram_queue = 3;
    for _ in 0..5 {
        two.deliver(hdr, b"too many", |_| {});
    }
    assert_eq!(two.hosts[1].0.stats().drop_datagram_queue, 2);
    let announced = std::iter::from_fn(|| two.hosts[1].0.poll_event());
    assert_eq!(announced.filter(|e| matches!(e, Event::Datagram { port: 80 })).count(), 1);
    assert!(two.hosts[1].0.recv_datagram(80).is_some());
    two.hosts[1].0.unbind_datagram(80);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None);
}
