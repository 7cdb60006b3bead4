//! Proofs, permissions, probes and beacons among themselves.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::beacon::{Accept, MAX_PERMITTED, NodeList, Rank, Refusal};

use super::*;
use crate::{BeaconClient, ClientEvent, Signer};

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(key)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// A node with a key, as the client half plays it.
pub(super) struct Node {
    key: SigningKey,
    pub(super) id: NodeId,
    at: SocketAddr,
}

impl Signer for Node {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

pub(super) const BEACON: &str = "192.0.2.9:9001";

impl Node {
    pub(super) fn new(number: u8, at: &str) -> Self {
        let key = SigningKey::from_bytes(&[number; 32]);
        let id = derive_node_id(&key.verifying_key().to_bytes(), 0).unwrap();
        Self { key, id, at: addr(at) }
    }

    /// The same under an id that is not derived from its key.
    pub(super) fn called(self, id: u32) -> Self {
        Self { id: NodeId(id), ..self }
    }

    fn client(&self, now: Instant) -> BeaconClient {
        let mut client = BeaconClient::new();
        client.set_seed(7);
        client.set_node(self.id, now);
        client.set_key(self.key.verifying_key().to_bytes(), now);
        client.set_beacon(Some(addr(BEACON)), now);
        client
    }

    /// Registers with proof; how that went.
    fn register(&self, beacon: &mut Beacon, accept: Accept, permitted: &[NodeId]) -> Result<Rank, Refusal> {
        let mut client = self.client(beacon.now);
        client.set_accept(accept, permitted, beacon.now);
        exchange(beacon, &mut client, self);
        let status = client.beacons().next().unwrap();
        status.rank.ok_or(status.refused.unwrap_or(Refusal::Other(99)))
    }

    fn relay(&self, beacon: &mut Beacon, dst: NodeId) -> Sent {
        beacon.receive(self.at, &encode(relay(self.id.0, dst.0, b"PILSx")))
    }
}

/// Carries messages to and fro until both have said everything.
fn exchange(beacon: &mut Beacon, client: &mut BeaconClient, node: &Node) -> usize {
    let mut count = 0;
    while let Some((_, message)) = client.poll_transmit_with(beacon.now, node) {
        count += 1;
        for (to, bytes) in beacon.receive(node.at, &message) {
            assert_eq!(to, node.at);
            client.handle(addr(BEACON), &Message::decode(&bytes).unwrap(), beacon.now);
        }
    }
    count
}

pub(super) fn config() -> BeaconConfig {
    BeaconConfig { verify: Some(verify), names: vec![addr(BEACON)], ..BeaconConfig::default() }
}

pub(super) fn hello(node: NodeId) -> Message<'static> {
    Message::Extension(Extension::Hello { renew: false, node, nonce: 5 })
}

/// A proof for a challenge, made by hand.
pub(super) fn proof(node: &Node, cookie: &[u8; 24], meant: SocketAddr, observed: SocketAddr) -> Vec<u8> {
    let key = node.key.verifying_key().to_bytes();
    let list = NodeList::<{ 4 * MAX_PERMITTED }>::new([]);
    let message = |signature: &[u8; 64]| {
        encode(Message::Extension(Extension::Prove {
            node: node.id,
            salt: 0,
            nonce: 5,
            cookie,
            key: &key,
            beacon: meant,
            accept: Accept::Anybody,
            permitted: list.ids(),
            signature,
        }))
    };
    let mut text = [0; pilotage_wire::beacon::MAX_PROOF_TEXT];
    let len = pilotage_wire::beacon::proof_text(&message(&[0; 64]), observed, &mut text).unwrap();
    message(&node.sign(&text[..len]))
}

fn challenge(beacon: &mut Beacon, node: NodeId, at: SocketAddr) -> [u8; 24] {
    let mut data = encode(hello(node));
    data.resize(53, 0);
    let sent = beacon.receive(at, &data);
    match Message::decode(&sent[0].1) {
        Ok(Message::Extension(Extension::Challenge { cookie, .. })) => *cookie,
        other => panic!("{other:?}"),
    }
}

fn answer(sent: &Sent) -> Result<Rank, Refusal> {
    match Message::decode(&sent[0].1) {
        Ok(Message::Extension(Extension::Registered { rank, .. })) => Ok(rank),
        Ok(Message::Extension(Extension::Refused { reason, .. })) => Err(reason),
        other => panic!("{other:?}"),
    }
}

mod proofs {
    use super::*;

    #[test]
    fn a_derived_id_is_bound_and_nobody_moves_it_without_the_key() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        assert_eq!(node.register(&mut beacon, Accept::Anybody, &[]), Ok(Rank::Derived));
        assert_eq!((beacon.stats().registered, beacon.stats().proven), (1, 1));
        // Not from the same IP address, and not after a silence that is long enough for others.
        for (wait, from) in [(0, "203.0.113.1:5000"), (60_000, "203.0.113.1:5000"), (40_000, C)] {
            beacon.wait(wait);
            beacon.send(from, discover(node.id.0));
            let known = beacon.engine.table.node_mut(node.id).unwrap();
            assert_eq!((known.address, known.is_proven()), (addr(A), true), "{wait} {from}");
        }
        assert_eq!(beacon.stats().takeovers_refused, 3);
        // With the key it moves at once.
        let moved = Node::new(1, C);
        assert_eq!(moved.register(&mut beacon, Accept::Anybody, &[]), Ok(Rank::Derived));
        assert_eq!(beacon.engine.table.node_mut(node.id).unwrap().address, addr(C));
        // A registration that ran out is nobody's.
        beacon.wait(120_000);
        beacon.send(B, discover(node.id.0));
        assert!(!beacon.engine.table.node_mut(node.id).unwrap().is_proven());
        assert_eq!((beacon.stats().registered, beacon.stats().proven), (1, 0));
    }

    #[test]
    fn a_proof_displaces_who_only_named_the_id() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        beacon.send(C, discover(node.id.0));
        assert_eq!(node.register(&mut beacon, Accept::Anybody, &[]), Ok(Rank::Derived));
        assert_eq!(beacon.engine.table.node_mut(node.id).unwrap().address, addr(A));
        assert_eq!(beacon.stats().displaced, 1);
        // The stranger's relay messages go nowhere now.
        beacon.register(2, B);
        assert_eq!(beacon.send(C, relay(node.id.0, 2, b"PILS")), []);
    }

    #[test]
    fn an_assigned_id_is_the_first_keys_until_somebody_has_a_better_claim() {
        let mut beacon = Beacon::with(config());
        let first = Node::new(1, A).called(77);
        assert_eq!(first.register(&mut beacon, Accept::Anybody, &[]), Ok(Rank::Claimed));
        let second = Node::new(2, B).called(77);
        assert_eq!(second.register(&mut beacon, Accept::Anybody, &[]), Err(Refusal::OtherKey));
        // The registry says whose it is.
        let owner = second.key.verifying_key().to_bytes();
        beacon.engine.set_key_source(Arc::new(move |node| (node == NodeId(77)).then_some(owner)));
        assert_eq!(second.register(&mut beacon, Accept::Anybody, &[]), Ok(Rank::Confirmed));
        assert_eq!(first.register(&mut beacon, Accept::Anybody, &[]), Err(Refusal::OtherKey));
        assert_eq!(beacon.engine.table.node_mut(NodeId(77)).unwrap().address, addr(B));
    }

    #[test]
    fn strangers_cost_no_state_and_get_no_more_than_they_gave() {
        let mut beacon = Beacon::with(config());
        for n in 0..200u32 {
            let from = addr(&format!("198.51.100.{}:{}", n % 250 + 1, 1_000 + n));
            let bare = beacon.receive(from, &encode(hello(NodeId(n + 100))));
            assert_eq!(bare, [], "15 bytes do not pay for 41");
            challenge(&mut beacon, NodeId(n + 100), from);
        }
        assert_eq!((beacon.stats().registered, beacon.engine.table.places()), (0, 0));
    }

    #[test]
    fn a_proof_is_good_for_one_address_one_id_one_beacon_and_ten_seconds() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        let cookie = challenge(&mut beacon, node.id, node.at);
        let (good, here) = (addr(BEACON), addr(A));
        let other = Node::new(2, A);
        for (name, from, bytes) in [
            ("from elsewhere", addr(B), proof(&node, &cookie, good, addr(B))),
            ("signed for elsewhere", here, proof(&node, &cookie, good, addr(B))),
            ("for another beacon", here, proof(&node, &cookie, addr("192.0.2.8:9001"), here)),
            ("for another port", here, proof(&node, &cookie, addr("192.0.2.9:9000"), here)),
            ("of another id", here, proof(&other, &cookie, good, here)),
        ] {
            assert_eq!(answer(&beacon.receive(from, &bytes)), Err(Refusal::BadProof), "{name}");
        }
        // Any flipped byte.
        let bytes = proof(&node, &cookie, good, here);
        for i in 2..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            for (_, reply) in beacon.receive(here, &bad) {
                let reply = Message::decode(&reply).unwrap();
                assert!(!matches!(reply, Message::Extension(Extension::Registered { .. })), "byte {i}");
            }
            beacon.wait(20);
        }
        assert_eq!(beacon.stats().registered, 0);
        // Bytes behind it are legal. Through NAT64 the beacon has another name.
        let nat64 = addr("[64:ff9b::192.0.2.9]:9001");
        let mut padded = proof(&node, &cookie, nat64, here);
        padded.push(7);
        assert_eq!(answer(&beacon.receive(here, &padded)), Ok(Rank::Derived));
        beacon.wait(10_000);
        assert_eq!(answer(&beacon.receive(here, &bytes)), Err(Refusal::BadProof), "ran out");
    }

    #[test]
    fn a_recorded_proof_does_not_move_a_node_back() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        let cookie = challenge(&mut beacon, node.id, node.at);
        let recorded = proof(&node, &cookie, addr(BEACON), addr(A));
        assert_eq!(answer(&beacon.receive(addr(A), &recorded)), Ok(Rank::Derived));
        beacon.wait(1);
        let moved = Node::new(1, C);
        moved.register(&mut beacon, Accept::Anybody, &[]).unwrap();
        assert_eq!(answer(&beacon.receive(addr(A), &recorded)), Err(Refusal::BadProof));
        assert_eq!(beacon.engine.table.node_mut(node.id).unwrap().address, addr(C));
        // But a repeated one, whose answer was lost, is answered again.
        let cookie = challenge(&mut beacon, Node::new(3, B).id, addr(B));
        let again = proof(&Node::new(3, B), &cookie, addr(BEACON), addr(B));
        for _ in 0..2 {
            assert_eq!(answer(&beacon.receive(addr(B), &again)), Ok(Rank::Derived));
        }
    }

    #[test]
    fn signatures_are_checked_within_a_budget_only() {
        let rate = Rate { per_second: 0, burst: 3 };
        for config in [
            BeaconConfig { proofs_per_prefix: rate, ..config() },
            BeaconConfig { proofs_total: rate, ..config() },
        ] {
            let mut beacon = Beacon::with(config);
            let bound = (1..10u8)
                .filter(|&n| Node::new(n, A).register(&mut beacon, Accept::Anybody, &[]).is_ok())
                .count();
            assert_eq!((bound, beacon.stats().over_budget), (3, 6));
        }
    }

    #[test]
    fn a_beacon_that_wants_proofs_registers_nobody_else() {
        let mut beacon = Beacon::with(BeaconConfig { require_proof: true, ..config() });
        beacon.register(9, B);
        assert_eq!(beacon.stats().registered, 0);
        let node = Node::new(1, A);
        node.register(&mut beacon, Accept::Anybody, &[]).unwrap();
        assert_eq!(beacon.send(B, relay(9, node.id.0, b"PILS")), []);
    }

    #[test]
    fn unproven_nodes_leave_room_for_proven_ones() {
        let mut beacon = Beacon::with(BeaconConfig { max_nodes: 10, max_unproven: 6, ..config() });
        for n in 1..=20u32 {
            beacon.register(100 + n, &format!("10.0.0.{n}:1"));
        }
        assert_eq!(beacon.stats().registered, 6);
        let bound = (1..=20u8)
            .filter(|&n| {
                let at = format!("10.0.1.{n}:1");
                Node::new(n, &at).register(&mut beacon, Accept::Anybody, &[]).is_ok()
            })
            .count();
        assert_eq!((bound, beacon.stats().registered, beacon.stats().proven), (4, 10, 4));
    }

    #[test]
    fn a_refresh_keeps_a_proof_for_five_minutes() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        let mut client = node.client(beacon.now);
        exchange(&mut beacon, &mut client, &node);
        let first = beacon.stats();
        while beacon.stats().proofs == first.proofs {
            beacon.now = client.poll_timeout().unwrap();
            exchange(&mut beacon, &mut client, &node);
        }
        // Hellos each 25 s, no discovers, then the next proof.
        let stats = beacon.stats();
        assert_eq!((stats.hellos - first.hellos, stats.discovers - first.discovers), (12, 0));
        assert!(stats.registered == 1 && client.beacons().next().unwrap().rank == Some(Rank::Derived));
    }
}

mod permissions {
    use super::*;

    #[test]
    fn frames_and_introductions_only_from_whom_the_receiver_accepts() {
        for (accept, named, expected) in [
            (Accept::Anybody, false, [true, true, true]),
            (Accept::Proven, false, [false, true, true]),
            (Accept::Named, true, [false, false, true]),
            (Accept::Named, false, [false, false, false]),
        ] {
            let mut beacon = Beacon::with(config());
            let (stranger, friend) = (Node::new(2, B), Node::new(3, C));
            let unproven = Node::new(4, "198.51.100.9:9").called(500);
            let node = Node::new(1, A);
            let list: &[NodeId] = if named { &[friend.id, NodeId(500)] } else { &[] };
            node.register(&mut beacon, accept, list).unwrap();
            stranger.register(&mut beacon, Accept::Anybody, &[]).unwrap();
            friend.register(&mut beacon, Accept::Anybody, &[]).unwrap();
            beacon.register(500, "198.51.100.9:9");
            for (sender, through) in [&unproven, &stranger, &friend].into_iter().zip(expected) {
                let what = format!("{accept:?} {}", sender.id);
                assert_eq!(sender.relay(&mut beacon, node.id).len() == 1, through, "{what}");
                let request = encode(punch(sender.id.0, node.id.0));
                let told = beacon.receive(sender.at, &request).iter().any(|(to, _)| *to == node.at);
                assert_eq!(told, through, "{what}");
            }
            assert_eq!(beacon.stats().not_permitted, 2 * expected.iter().filter(|ok| !**ok).count() as u64);
        }
    }

    #[test]
    fn whom_the_node_wrote_to_may_answer_for_five_minutes() {
        let mut beacon = Beacon::with(config());
        let (node, other) = (Node::new(1, A), Node::new(2, B));
        node.register(&mut beacon, Accept::Named, &[]).unwrap();
        other.register(&mut beacon, Accept::Anybody, &[]).unwrap();
        assert_eq!(other.relay(&mut beacon, node.id), []);
        assert_eq!(node.relay(&mut beacon, other.id).len(), 1);
        assert_eq!(other.relay(&mut beacon, node.id).len(), 1);
        // A new proof with the same key forgets nothing.
        beacon.wait(1);
        node.register(&mut beacon, Accept::Named, &[]).unwrap();
        assert_eq!(other.relay(&mut beacon, node.id).len(), 1);
        for _ in 0..3 {
            beacon.wait(100_000);
            node.register(&mut beacon, Accept::Named, &[]).unwrap();
            other.register(&mut beacon, Accept::Anybody, &[]).unwrap();
        }
        assert_eq!(other.relay(&mut beacon, node.id), []);
    }

    #[test]
    fn whom_a_node_wrote_to_is_remembered_for_sixteen_only() {
        let mut beacon = Beacon::with(config());
        let node = Node::new(1, A);
        node.register(&mut beacon, Accept::Named, &[]).unwrap();
        for dst in 0..100 {
            beacon.wait(1);
            node.relay(&mut beacon, NodeId(1_000 + dst));
        }
        let now = beacon.now;
        let known = beacon.engine.table.node_mut(node.id).unwrap();
        let open = (0..100).filter(|&dst| known.accepts(now, NodeId(1_000 + dst), false)).collect::<Vec<_>>();
        assert_eq!(open, (84..100).collect::<Vec<_>>());
    }
}

mod probes {
    use super::*;

    #[test]
    fn answers_come_from_the_port_that_was_asked_for() {
        let mut beacon = Beacon::with(BeaconConfig { ports: [9001, 9002], ..config() });
        for (port, from_other_port, length, expected) in [
            (Port::Main, false, 31, Some((Port::Main, 9002))),
            (Port::Main, true, 31, Some((Port::Other, 9002))),
            (Port::Other, false, 31, Some((Port::Other, 9001))),
            (Port::Other, true, 31, Some((Port::Main, 9001))),
            // 39 bytes weigh as much as the 47 of the answer: not enough.
            (Port::Main, false, 0, None),
        ] {
            let probe = Extension::Probe { from_other_port, nonce: 3 };
            let mut data = encode(Message::Extension(probe));
            data.resize(length.max(data.len()), 0);
            let mut sent = vec![];
            let arrival = Arrival { from: addr(A), port, to: None };
            beacon.engine.handle(beacon.now, &arrival, &data, &mut |port, to, data| {
                sent.push((port, to, data.to_vec()));
            });
            let reply = expected.map(|(port, other_port)| {
                let reply = Extension::ProbeReply { nonce: 3, other_port, addr: addr(A) };
                (port, addr(A), encode(Message::Extension(reply)))
            });
            assert_eq!(sent, reply.into_iter().collect::<Vec<_>>());
        }
        // All else is for the first port.
        let arrival = Arrival { from: addr(A), port: Port::Other, to: None };
        let before = beacon.stats().not_for_beacons;
        for data in [encode(discover(5)), encode(relay(1, 2, b"PILS")), encode(hello(NodeId(5)))] {
            beacon.engine.handle(beacon.now, &arrival, &data, &mut |_, _, _| panic!("answered"));
        }
        assert_eq!((beacon.stats().not_for_beacons - before, beacon.stats().registered), (3, 0));
    }

    #[test]
    fn without_a_second_port_none_is_named_or_used() {
        let mut beacon = Beacon::with(config());
        let probe = |from_other_port| {
            let mut data = encode(Message::Extension(Extension::Probe { from_other_port, nonce: 3 }));
            data.resize(31, 0);
            data
        };
        assert_eq!(beacon.receive(addr(A), &probe(true)), []);
        let reply = Extension::ProbeReply { nonce: 3, other_port: 0, addr: addr(A) };
        assert_eq!(beacon.receive(addr(A), &probe(false)), [(addr(A), encode(Message::Extension(reply)))]);
    }
}

mod beacons {
    use super::*;

    const X: &str = "192.0.2.9:9001";
    const Y: &str = "192.0.2.10:9001";
    const KEY: [u8; 32] = [9; 32];

    fn peered(own: &str, other: &str, boot: u64) -> Beacon {
        Beacon::with(BeaconConfig {
            // Our nodes call every beacon by one name.
            names: vec![addr(own), addr(BEACON)],
            peers: vec![addr(other)],
            peer_key: Some(KEY),
            boot,
            ..config()
        })
    }

    fn sent_to_beacons(beacon: &mut Beacon) -> Sent {
        let mut sent = vec![];
        beacon.engine.poll_beacons(beacon.now, &mut |to, data: &[u8]| sent.push((to, data.to_vec())));
        sent
    }

    /// A second in which both say what they have to say; all that was sent, with the sender.
    fn second(x: &mut Beacon, y: &mut Beacon) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = vec![];
        for _ in 0..10 {
            x.wait(100);
            y.now = x.now;
            for (_, data) in sent_to_beacons(x) {
                assert_eq!(y.receive(addr(X), &data), []);
                all.push((addr(X), data));
            }
            for (_, data) in sent_to_beacons(y) {
                assert_eq!(x.receive(addr(Y), &data), []);
                all.push((addr(Y), data));
            }
        }
        all
    }

    fn pair() -> (Beacon, Beacon) {
        let (mut x, mut y) = (peered(X, Y, 5), peered(Y, X, 6));
        y.now = x.now;
        second(&mut x, &mut y);
        second(&mut x, &mut y);
        (x, y)
    }

    #[test]
    fn a_frame_goes_from_a_node_of_one_to_a_node_of_the_other() {
        let (mut x, mut y) = pair();
        let (a, b) = (Node::new(1, A), Node::new(2, B));
        a.register(&mut x, Accept::Anybody, &[]).unwrap();
        y.register(b.id.0, B);
        assert_eq!(a.relay(&mut x, b.id), [], "not told yet");
        second(&mut x, &mut y);
        assert_eq!((x.stats().remote, y.stats().remote), (1, 1));
        let carried = a.relay(&mut x, b.id);
        assert_eq!((carried.len(), carried[0].0), (1, addr(Y)));
        assert_eq!(carried[0].1.len(), 9 + 5 + 18, "grows by 18 bytes on the way between beacons");
        let delivered = y.receive(addr(X), &carried[0].1);
        assert_eq!(delivered, [(addr(B), encode(Message::Deliver { src: a.id, frame: b"PILSx" }))]);
        assert_eq!((x.stats().handed_over, y.stats().carried), (1, 1));
        // Changed in any place, from another address or to who is not there: dropped.
        for i in 0..carried[0].1.len() {
            let mut bad = carried[0].1.clone();
            bad[i] ^= 1;
            assert_eq!(y.receive(addr(X), &bad), [], "byte {i}");
        }
        assert_eq!(y.receive(addr(C), &carried[0].1), []);
        assert_eq!(x.receive(addr(Y), &carried[0].1), [], "reflected");
        assert_eq!(y.stats().carried, 1);
    }

    #[test]
    fn the_receiver_decides_about_nodes_of_other_beacons_too() {
        let (mut x, mut y) = pair();
        let (a, b) = (Node::new(1, A), Node::new(2, B));
        x.register(300, C);
        a.register(&mut x, Accept::Anybody, &[]).unwrap();
        b.register(&mut y, Accept::Proven, &[]).unwrap();
        second(&mut x, &mut y);
        let proven = a.relay(&mut x, b.id);
        assert_eq!(y.receive(addr(X), &proven[0].1).len(), 1);
        let unproven = x.send(C, relay(300, b.id.0, b"PILS"));
        assert_eq!(y.receive(addr(X), &unproven[0].1), []);
        assert_eq!(y.stats().not_permitted, 1);
    }

    #[test]
    fn nothing_recorded_counts_again_even_after_a_restart() {
        let (mut x, mut y) = pair();
        x.register(300, C);
        let recorded = second(&mut x, &mut y);
        let of_x: Vec<_> = recorded.iter().filter(|(from, _)| *from == addr(X)).collect();
        let before = y.stats().syncs;
        for (from, data) in &of_x {
            y.receive(*from, data);
        }
        assert_eq!(y.stats().syncs, before);
        // The receiver restarts, then the sender: old runs are not believed.
        let mut again = peered(Y, X, 7);
        again.now = y.now;
        for (from, data) in &of_x {
            again.receive(*from, data);
        }
        assert_eq!((again.stats().syncs, again.stats().remote), (0, 0));
        let mut newer = peered(X, Y, 8);
        newer.now = y.now;
        second(&mut newer, &mut y);
        second(&mut newer, &mut y);
        let before = y.stats();
        for (from, data) in &of_x {
            y.receive(*from, data);
        }
        assert_eq!((y.stats().syncs, y.stats().remote), (before.syncs, before.remote));
        // The restarted pair finds together.
        newer.register(301, A);
        second(&mut newer, &mut y);
        y.register(2, B);
        second(&mut newer, &mut y);
        assert_eq!(newer.send(A, relay(301, 2, b"PILS")).len(), 1);
    }

    #[test]
    fn who_does_not_have_the_key_is_no_beacon() {
        let mut x = peered(X, Y, 5);
        let mut liar =
            Beacon::with(BeaconConfig { peers: vec![addr(X)], peer_key: Some([8; 32]), boot: 6, ..config() });
        liar.now = x.now;
        liar.register(300, C);
        second(&mut x, &mut liar);
        second(&mut x, &mut liar);
        assert_eq!((x.stats().remote, x.stats().syncs), (0, 0));
        assert!(x.stats().bad_beacon > 0);
        assert_eq!(x.engine.beacons(x.now), [(addr(Y), None)]);
    }

    #[test]
    fn nodes_that_are_not_told_of_again_are_forgotten_and_their_number_is_bounded() {
        let (mut x, mut y) = pair();
        y.engine = {
            let config = BeaconConfig {
                names: vec![addr(Y)],
                peers: vec![addr(X)],
                peer_key: Some(KEY),
                boot: 7,
                max_remote: 1_000,
                ..config()
            };
            BeaconEngine::new(config, 3)
        };
        for node in 1..=1_500u32 {
            x.register(node, &format!("10.0.{}.{}:1", node / 250, node % 250 + 1));
        }
        for _ in 0..25 {
            second(&mut x, &mut y);
        }
        assert_eq!(y.stats().remote, 1_000);
        // The first beacon falls silent.
        y.wait(61_000);
        sent_to_beacons(&mut y);
        y.wait(31_000);
        sent_to_beacons(&mut y);
        assert_eq!(y.stats().remote, 0);
    }

    #[test]
    fn a_local_node_needs_no_other_beacon() {
        let (mut x, mut y) = pair();
        y.register(2, B);
        second(&mut x, &mut y);
        x.register(1, A);
        x.register(2, C);
        let sent = x.send(A, relay(1, 2, b"PILS"));
        assert_eq!(sent[0].0, addr(C));
    }
}

/// The client half against the engine.
mod client {
    use super::*;

    #[test]
    fn a_beacon_of_the_reference_is_used_as_before() {
        // Without a way to check proofs the engine answers what a beacon of the reference answers.
        let mut beacon = Beacon::new();
        let node = Node::new(1, A);
        let mut client = node.client(beacon.now);
        let start = beacon.now;
        exchange(&mut beacon, &mut client, &node);
        assert_eq!(client.observed(), Some(addr(A)));
        while beacon.now < start + Duration::from_secs(600) {
            beacon.now = client.poll_timeout().unwrap();
            exchange(&mut beacon, &mut client, &node);
        }
        let stats = beacon.stats();
        assert_eq!(stats.registered, 1);
        assert!(stats.discovers >= 24, "{stats:?}");
        assert!(stats.not_for_beacons <= 8, "hellos to a stranger: {stats:?}");
    }

    #[test]
    fn a_lost_proof_or_answer_is_repaired() {
        for lost in 0..6 {
            let mut beacon = Beacon::with(config());
            let node = Node::new(1, A);
            let mut client = node.client(beacon.now);
            let (mut count, start) = (0, beacon.now);
            while client.beacons().next().unwrap().rank.is_none() {
                while let Some((_, message)) = client.poll_transmit_with(beacon.now, &node) {
                    for (_, bytes) in beacon.receive(node.at, &message) {
                        count += 1;
                        if count - 1 != lost {
                            client.handle(addr(BEACON), &Message::decode(&bytes).unwrap(), beacon.now);
                        }
                    }
                }
                if client.beacons().next().unwrap().rank.is_none() {
                    beacon.now = client.poll_timeout().unwrap();
                }
                assert!(beacon.now < start + Duration::from_secs(5), "{lost}");
            }
        }
    }

    #[test]
    fn a_change_of_permissions_is_told_at_once() {
        let mut beacon = Beacon::with(config());
        let (node, friend) = (Node::new(1, A), Node::new(2, B));
        let mut client = node.client(beacon.now);
        exchange(&mut beacon, &mut client, &node);
        friend.register(&mut beacon, Accept::Anybody, &[]).unwrap();
        beacon.wait(10);
        client.set_accept(Accept::Named, &[], beacon.now);
        exchange(&mut beacon, &mut client, &node);
        assert_eq!(friend.relay(&mut beacon, node.id), []);
        beacon.wait(10);
        client.set_accept(Accept::Named, &[friend.id], beacon.now);
        exchange(&mut beacon, &mut client, &node);
        assert_eq!(friend.relay(&mut beacon, node.id).len(), 1);
        assert_eq!(client.handle(addr(BEACON), &hello(node.id), beacon.now), ClientEvent::Ignored);
    }
}
