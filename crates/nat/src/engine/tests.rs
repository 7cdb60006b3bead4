//! What the beacon does, what it refuses, and that it never amplifies.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{Rate, clock_start};

const A: &str = "203.0.113.1:4000";
const B: &str = "203.0.113.2:4000";
const C: &str = "198.51.100.3:5000";

struct Beacon {
    engine: BeaconEngine,
    now: Instant,
}

type Sent = Vec<(SocketAddr, Vec<u8>)>;

impl Beacon {
    fn new() -> Self {
        Self::with(BeaconConfig::default())
    }

    fn with(config: BeaconConfig) -> Self {
        Self { engine: BeaconEngine::new(config, 42), now: clock_start() }
    }

    fn receive(&mut self, from: SocketAddr, data: &[u8]) -> Sent {
        let mut sent = Vec::new();
        self.engine
            .handle_datagram(self.now, from, data, &mut |to, data: &[u8]| sent.push((to, data.to_vec())));
        sent
    }

    fn send(&mut self, from: &str, message: Message<'_>) -> Sent {
        self.receive(addr(from), &encode(message))
    }

    fn send_padded(&mut self, from: &str, message: Message<'_>, len: usize) -> Sent {
        let mut data = encode(message);
        data.resize(len, 0);
        self.receive(addr(from), &data)
    }

    fn register(&mut self, node: u32, from: &str) {
        assert_eq!(self.send(from, discover(node)), [(addr(from), reply(from))]);
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn stats(&self) -> BeaconStats {
        self.engine.stats()
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn encode(message: Message<'_>) -> Vec<u8> {
    let mut buf = vec![0; message.encoded_len()];
    message.encode(&mut buf).unwrap();
    buf
}

fn discover(node: u32) -> Message<'static> {
    Message::Discover { node: NodeId(node) }
}

fn punch(node: u32, target: u32) -> Message<'static> {
    Message::PunchRequest { node: NodeId(node), target: NodeId(target) }
}

fn relay(src: u32, dst: u32, frame: &[u8]) -> Message<'_> {
    Message::Relay { src: NodeId(src), dst: NodeId(dst), frame }
}

fn reply(to: &str) -> Vec<u8> {
    encode(Message::DiscoverReply { addr: addr(to) })
}

fn command(to: &str) -> Vec<u8> {
    encode(Message::PunchCommand { addr: addr(to) })
}

mod vectors {
    use super::*;

    /// Every message of the reference goes in as it was captured; what comes out is compared with the
    /// captured answer where there is one.
    #[test]
    fn beacon_vectors() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../../spec/vectors/beacon.json")).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 15);
        let named = |name: &str| {
            let case = cases.iter().find(|case| case["name"].as_str().unwrap().starts_with(name)).unwrap();
            hex::decode(case["hex"].as_str().unwrap()).unwrap()
        };
        let (a, v6) = (addr("203.0.113.9:4000"), addr("[2001:db8::1]:4000"));
        let mut beacon = Beacon::new();
        assert_eq!(beacon.receive(a, &named("discover, unregistered")), [(a, named("discover reply v4"))]);
        assert_eq!(beacon.receive(a, &named("discover")), [(a, named("discover reply v4"))]);
        let mut padded = named("discover");
        padded.resize(20, 0);
        assert_eq!(beacon.receive(v6, &padded), [(v6, named("discover reply v6"))]);

        let (one, two) = (addr("203.0.113.9:65535"), addr("198.51.100.2:2"));
        beacon.receive(one, &encode(discover(1)));
        beacon.receive(two, &encode(discover(2)));
        assert_eq!(beacon.receive(one, &named("punch request")), [(two, named("punch command v4"))]);
        assert_eq!(beacon.receive(one, &named("relay")), [(two, named("relay deliver"))]);

        // Newer peers: the destination is named in the delivery.
        beacon.receive(two, &named("discover-ex"));
        let to_42 = encode(relay(1, 42, &named("relay")[9..]));
        assert_eq!(beacon.receive(one, &to_42), [(two, named("relay deliver with destination"))]);

        let before = beacon.stats();
        for name in [
            "discover reply v4",
            "punch command v4",
            "relay deliver",
            "relay deliver with",
            "gossip sync, empty",
            "gossip sync",
        ] {
            assert_eq!(beacon.receive(one, &named(name)), []);
        }
        for name in ["punch frame as the reference", "punch frame as the draft"] {
            assert_eq!(beacon.receive(one, &named(name)), []);
        }
        assert_eq!(beacon.stats().not_for_beacons - before.not_for_beacons, 6);
        assert_eq!(beacon.stats().malformed - before.malformed, 2);
    }
}

mod discovery {
    use super::*;

    #[test]
    fn everybody_is_told_their_address_and_only_names_are_registered() {
        let mut beacon = Beacon::new();
        for node in [0, u32::MAX, 7] {
            assert_eq!(beacon.send(A, discover(node)), [(addr(A), reply(A))]);
        }
        assert_eq!(beacon.stats().registered, 1);
        let mapped = addr("[::ffff:203.0.113.1]:4000");
        assert_eq!(beacon.receive(mapped, &encode(discover(0))), [(mapped, reply(A))]);
    }

    #[test]
    fn a_bare_discover_over_ipv6_is_answered_once_two_have_paid() {
        let mut beacon = Beacon::new();
        let v6 = "[2001:db8::7]:4000";
        assert_eq!(beacon.send(v6, discover(7)), []);
        assert_eq!(beacon.send(v6, discover(7)), [(addr(v6), reply(v6))]);
        assert_eq!(beacon.send_padded(v6, discover(0), 20), [(addr(v6), reply(v6))]);
        assert_eq!(beacon.send_padded(v6, discover(0), 19), []);
        assert_eq!(beacon.stats().unpaid, 2);
    }

    #[test]
    fn sources_that_are_no_host_are_dropped() {
        let mut beacon = Beacon::new();
        for from in ["224.0.0.1:9", "255.255.255.255:9", "0.0.0.0:9", "[ff02::1]:9", "203.0.113.1:0"] {
            assert_eq!(beacon.send_padded(from, discover(7), 64), []);
        }
        assert_eq!((beacon.stats().bad_source, beacon.stats().registered), (5, 0));
    }

    #[test]
    fn a_registration_runs_out_and_is_swept() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        assert!(beacon.engine.next_timeout().is_some());
        beacon.wait(119_999);
        assert_eq!(beacon.send(A, relay(1, 2, b"PILS")).len(), 1);
        beacon.wait(1);
        assert_eq!(beacon.send(A, relay(1, 2, b"PILS")), []);
        assert_eq!(beacon.stats().unreachable, 1);
        beacon.engine.handle_timeout(beacon.now);
        // The relayed frame was a sign of life of node 1.
        assert_eq!(beacon.stats().registered, 1);
        beacon.wait(120_000);
        beacon.engine.handle_timeout(beacon.now);
        assert_eq!((beacon.stats().registered, beacon.engine.next_timeout()), (0, None));
        assert!(beacon.engine.table.is_uncounted());
    }

    #[test]
    fn an_id_in_use_is_taken_over_from_the_same_ip_only() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        // A stranger's discover is answered, but moves nothing.
        assert_eq!(beacon.send(C, discover(1)), [(addr(C), reply(C))]);
        assert_eq!(beacon.send(B, relay(2, 1, b"PILS"))[0].0, addr(A));
        assert_eq!(beacon.stats().takeovers_refused, 1);
        // A restarted node has a new port.
        beacon.register(1, "203.0.113.1:4999");
        assert_eq!(beacon.send(B, relay(2, 1, b"PILS"))[0].0, addr("203.0.113.1:4999"));
        // A node that moved to another network has been silent at the old address.
        beacon.wait(35_000);
        beacon.register(1, C);
        beacon.register(2, B);
        assert_eq!(beacon.send(B, relay(2, 1, b"PILS"))[0].0, addr(C));
    }
}

mod punching {
    use super::*;

    #[test]
    fn both_sides_are_told_when_the_request_pays_for_both() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        assert_eq!(beacon.send_padded(A, punch(1, 2), 64), [(addr(B), command(A)), (addr(A), command(B))]);
        assert_eq!(beacon.send_padded(A, punch(1, 2), 63), [(addr(B), command(A))]);
        // One byte short: saved for the next request, which needs one byte more than the bare minimum.
        assert_eq!(beacon.send_padded(A, punch(1, 2), 19), [(addr(B), command(A)), (addr(A), command(B))]);
        assert_eq!(beacon.send(A, punch(1, 2)), [(addr(B), command(A))]);
    }

    #[test]
    fn both_sides_over_ipv6() {
        let (a, b) = ("[2001:db8::1]:1", "[2001:db8::2]:2");
        let mut beacon = Beacon::new();
        for (node, at) in [(1, a), (2, b)] {
            beacon.send_padded(at, discover(node), 20);
        }
        assert_eq!(beacon.send_padded(a, punch(1, 2), 88), [(addr(b), command(a)), (addr(a), command(b))]);
        assert_eq!(beacon.send(a, punch(1, 2)), [], "57 bytes do not pay for 68");
        assert_eq!(beacon.send(a, punch(1, 2)), [(addr(b), command(a))]);
    }

    #[test]
    fn strangers_learn_no_address_and_send_no_command() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        assert_eq!(beacon.send_padded(C, punch(3, 2), 500), [], "not registered");
        assert_eq!(beacon.send_padded(C, punch(1, 2), 500), [], "registered elsewhere");
        assert_eq!(beacon.send_padded(A, punch(1, 9), 500), [], "nobody there");
        assert_eq!(beacon.send_padded(A, punch(1, 1), 500), [], "itself");
        beacon.register(5, A);
        assert_eq!(beacon.send_padded(A, punch(1, 5), 500), [], "itself by another name");
        beacon.send_padded("[2001:db8::6]:1", discover(6), 20);
        assert_eq!(beacon.send_padded(A, punch(1, 6), 500), [], "cannot reach each other");
        let stats = beacon.stats();
        assert_eq!((stats.not_registered, stats.unreachable, stats.punches), (2, 4, 0));
    }

    #[test]
    fn a_target_gets_five_commands_per_second() {
        let mut beacon = Beacon::new();
        beacon.register(2, B);
        let mut commands = 0;
        for node in 100..200 {
            let from = format!("198.51.100.{node}:1");
            beacon.register(node, &from);
            commands += beacon.send(&from, punch(node, 2)).iter().filter(|(to, _)| *to == addr(B)).count();
        }
        assert_eq!(commands, 5);
        beacon.wait(1_000);
        let late = (100..200).flat_map(|node| beacon.send(&format!("198.51.100.{node}:1"), punch(node, 2)));
        assert_eq!(late.filter(|(to, _)| *to == addr(B)).count(), 5);
        assert_eq!(beacon.stats().over_budget, 190);
    }
}

mod relaying {
    use super::*;

    #[test]
    fn between_registered_nodes_only() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        let delivered = encode(Message::Deliver { src: NodeId(1), frame: b"PILSx" });
        assert_eq!(beacon.send(A, relay(1, 2, b"PILSx")), [(addr(B), delivered)]);
        for (from, src, dst) in [(C, 1, 2), (C, 3, 2), (A, 2, 1), (A, 1, 9), (A, 1, 1)] {
            assert_eq!(beacon.send(from, relay(src, dst, b"PILSx")), [], "{from} {src} {dst}");
        }
        // The same socket under a second id.
        beacon.register(5, A);
        assert_eq!(beacon.send(A, relay(1, 5, b"PILSx")), []);
        let stats = beacon.stats();
        assert_eq!((stats.relays, stats.not_registered, stats.unreachable), (1, 3, 3));
    }

    #[test]
    fn empty_frames_and_nested_beacon_messages_are_dropped() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.register(2, B);
        let nested = encode(relay(2, 1, b"PILS"));
        for frame in [&b""[..], &nested] {
            assert_eq!(beacon.send(A, relay(1, 2, frame)), []);
        }
        assert_eq!(beacon.stats().malformed, 2);
    }

    #[test]
    fn the_largest_datagram_fits() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        beacon.send(B, Message::DiscoverEx { node: NodeId(2) });
        let frame = vec![b'P'; MAX_DATAGRAM - 9];
        let sent = beacon.send(A, relay(1, 2, &frame));
        assert_eq!(
            sent,
            [(addr(B), encode(Message::DeliverEx { src: NodeId(1), dst: NodeId(2), frame: &frame }))]
        );
    }

    #[test]
    fn a_sender_stays_within_its_byte_budget_and_others_do_not_pay_for_it() {
        let rate = Rate { per_second: 10_000, burst: 10_000 };
        let mut beacon = Beacon::with(BeaconConfig { relay_bytes_per_node: rate, ..BeaconConfig::default() });
        for (node, at) in [(1, A), (2, B), (3, C), (4, "192.0.2.4:1")] {
            beacon.register(node, at);
        }
        let frame = vec![b'P'; 1_000];
        let from_1 = (0..50).filter(|_| !beacon.send(A, relay(1, 2, &frame)).is_empty()).count();
        assert_eq!((from_1, beacon.stats().over_budget), (10, 40));
        // What node 2 receives is limited too, but 3 and 4 are free.
        assert_eq!(beacon.send(C, relay(3, 2, &frame)), []);
        assert_eq!(beacon.send(C, relay(3, 4, &frame)).len(), 1);
        beacon.wait(1_000);
        assert_eq!((0..50).filter(|_| !beacon.send(A, relay(1, 2, &frame)).is_empty()).count(), 10);
    }

    #[test]
    fn the_total_byte_budget_holds() {
        let rate = Rate { per_second: 0, burst: 3_000 };
        let mut beacon = Beacon::with(BeaconConfig { relay_bytes_total: rate, ..BeaconConfig::default() });
        beacon.register(1, A);
        beacon.register(2, B);
        let frame = vec![b'P'; 1_000];
        assert_eq!((0..9).filter(|_| !beacon.send(A, relay(1, 2, &frame)).is_empty()).count(), 3);
    }
}

mod bounds {
    use super::*;

    #[test]
    fn a_full_table_refuses_new_nodes_and_keeps_old_ones() {
        let mut beacon = Beacon::with(BeaconConfig { max_nodes: 100, ..BeaconConfig::default() });
        for node in 1..=200u32 {
            beacon.register(node, &format!("10.0.{}.{}:1", node / 100, node % 100));
        }
        assert_eq!((beacon.stats().registered, beacon.stats().table_full), (100, 100));
        assert_eq!(beacon.send("10.0.0.1:1", relay(1, 100, b"PILS")).len(), 1);
        // Room is made as soon as registrations have run out, even without a timer.
        beacon.wait(120_000);
        beacon.register(999, A);
        assert_eq!(beacon.stats().table_full, 100);
        assert!(beacon.stats().registered <= 100);
    }

    #[test]
    fn one_prefix_cannot_fill_the_table() {
        let config = BeaconConfig { max_nodes_per_prefix: 10, ..BeaconConfig::default() };
        let mut beacon = Beacon::with(config);
        for node in 1..=50u16 {
            beacon.register(node.into(), &format!("203.0.113.1:{node}"));
        }
        assert_eq!(beacon.stats().registered, 10);
        beacon.register(99, B);
        // Neither by moving there.
        beacon.wait(40_000);
        assert_eq!(beacon.send(A, discover(99)).len(), 1);
        assert_eq!(beacon.send("203.0.113.1:1", relay(1, 99, b"PILS"))[0].0, addr(B));
    }

    #[test]
    fn messages_are_limited_per_prefix_and_in_all() {
        let rate = Rate { per_second: 0, burst: 5 };
        let mut beacon = Beacon::with(BeaconConfig { messages_per_prefix: rate, ..BeaconConfig::default() });
        assert_eq!((0..50).filter(|_| !beacon.send(A, discover(0)).is_empty()).count(), 5);
        assert_eq!(beacon.send(B, discover(0)).len(), 1);
        let mut beacon = Beacon::with(BeaconConfig { messages_total: rate, ..BeaconConfig::default() });
        assert_eq!(
            (0..50).filter(|i| !beacon.send(&format!("10.0.0.{}:1", i + 1), discover(0)).is_empty()).count(),
            5
        );
    }

    #[test]
    fn savings_are_bounded() {
        let mut beacon = Beacon::new();
        beacon.register(1, A);
        for _ in 0..100 {
            beacon.send_padded(A, punch(1, 9), 1_000);
        }
        assert_eq!(beacon.engine.table.node_mut(NodeId(1)).unwrap().savings, MAX_SAVINGS);
        assert!(size_of::<Registration>() < 256);
    }

    #[test]
    fn a_sweep_looks_at_a_bounded_number_and_gets_around() {
        let mut beacon = Beacon::with(BeaconConfig {
            messages_total: Rate { per_second: 0, burst: 20_000 },
            ..BeaconConfig::default()
        });
        for node in 1..=10_000u32 {
            beacon.register(node, &format!("10.{}.{}.1:1", node / 256, node % 256));
        }
        beacon.wait(120_000);
        let mut left = vec![];
        while let Some(due) = beacon.engine.next_timeout() {
            beacon.now = beacon.now.max(due);
            beacon.engine.handle_timeout(beacon.now);
            left.push(beacon.stats().registered);
        }
        assert_eq!(left, [10_000 - 4_096, 10_000 - 8_192, 0]);
    }
}

/// Random traffic from a few sources that forge each other's addresses and ids at will.
mod amplification {
    use super::*;

    const SOURCES: [&str; 8] = [
        A,
        B,
        C,
        "203.0.113.1:4001",
        "[2001:db8::1]:1",
        "[2001:db8::2]:2",
        "[::ffff:192.0.2.1]:3",
        "127.0.0.1:9",
    ];

    #[derive(Debug, Clone)]
    struct Step {
        wait_millis: u64,
        from: usize,
        data: Vec<u8>,
    }

    fn step() -> impl Strategy<Value = Step> {
        let node = || 0..6u32;
        let message = prop_oneof![
            4 => node().prop_map(|n| encode(discover(n))),
            1 => node().prop_map(|n| encode(Message::DiscoverEx { node: NodeId(n) })),
            6 => (node(), node()).prop_map(|(n, t)| encode(punch(n, t))),
            4 => (node(), node(), prop::collection::vec(any::<u8>(), 0..80))
                .prop_map(|(s, d, tail)| encode(relay(s, d, &[b"PILS", &tail[..]].concat()))),
            3 => node().prop_map(|n| encode(own::hello(NodeId(n)))),
            // Stands for a proof, if the source was challenged under this id.
            4 => node().prop_map(|n| vec![0xFF, n as u8]),
            2 => any::<bool>().prop_map(|from_other_port| {
                encode(Message::Extension(Extension::Probe { from_other_port, nonce: 1 }))
            }),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ];
        let padding = prop_oneof![3 => Just(0usize), 2 => 0..120usize];
        let wait = prop_oneof![8 => 0..200u64, 1 => 0..60_000u64];
        (wait, 0..SOURCES.len(), message, padding).prop_map(|(wait_millis, from, mut data, padding)| {
            data.extend(std::iter::repeat_n(0, padding));
            Step { wait_millis, from, data }
        })
    }

    /// The proof for which `data` stands, if its source was challenged.
    fn proof_for(
        data: &[u8],
        source: &str,
        cookies: &BTreeMap<(SocketAddr, u8), [u8; 24]>,
    ) -> Option<Vec<u8>> {
        let (&[0xFF, node], from) = (data.first_chunk()?, addr(source)) else { return None };
        let prover = own::Node::new(node % 3 + 1, source).called(node.into());
        Some(own::proof(&prover, cookies.get(&(from, node))?, addr(own::BEACON), from))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn every_byte_sent_was_paid_for(steps in prop::collection::vec(step(), 1..150)) {
            let mut beacon = Beacon::with(BeaconConfig { ports: [9001, 9002], ..own::config() });
            let mut cookies: BTreeMap<(SocketAddr, u8), [u8; 24]> = BTreeMap::new();
            // Weight received from and sent to each address, and where nodes have ever been registered.
            let mut received: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            let mut sent_to: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            let mut commands_to: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            let (mut control_in, mut control_out) = (0, 0);
            let mut payload_in = 0;
            let mut payload_out = 0;
            let mut was_registered = BTreeSet::new();
            let start = beacon.now;
            for Step { wait_millis, from, mut data } in steps {
                beacon.wait(wait_millis);
                let source = SOURCES[from];
                let from = addr(source);
                if let Some(proof) = proof_for(&data, source, &cookies) {
                    data = proof;
                }
                let is_relay = data.first() == Some(&5);
                let weight = wire_size(from, data.len());
                payload_in += data.len();
                *received.entry(from).or_default() += weight;
                if !is_relay {
                    control_in += weight;
                }
                let sent = beacon.receive(from, &data);
                for (_, bytes) in &sent {
                    if let Ok(Message::Extension(Extension::Challenge { cookie, .. })) = Message::decode(bytes) {
                        cookies.insert((from, data[6]), *cookie);
                    }
                }
                was_registered.extend(beacon.engine.table.all().map(|known| known.address));
                if is_relay {
                    // One datagram in, at most one out, never longer, never back.
                    prop_assert!(sent.len() <= 1);
                    for (to, out) in &sent {
                        prop_assert!(out.len() <= data.len() && *to != from);
                        prop_assert!(was_registered.contains(to));
                    }
                } else {
                    for (to, out) in &sent {
                        let weight = wire_size(*to, out.len());
                        control_out += weight;
                        if *to == from {
                            *sent_to.entry(*to).or_default() += weight;
                        } else {
                            prop_assert_eq!(out[0], 4);
                            *commands_to.entry(*to).or_default() += 1;
                        }
                    }
                }
                payload_out += sent.iter().map(|(_, out)| out.len()).sum::<usize>();
                // In all, at every moment.
                prop_assert!(control_out <= control_in);
                for (to, sent) in &sent_to {
                    prop_assert!(*sent <= received[to]);
                }
                // Commands on behalf of others: registered nodes only, five per second and id.
                let seconds = (beacon.now - start).as_secs() as usize + 1;
                for (to, commands) in &commands_to {
                    prop_assert!(was_registered.contains(to));
                    prop_assert!(*commands <= 5 * (5 + 5 * seconds));
                }
            }
            let stats = beacon.stats();
            prop_assert_eq!((stats.bytes_in as usize, stats.bytes_out as usize), (payload_in, payload_out));
            prop_assert_eq!(stats.ends(), stats.datagrams_in);
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut beacon = Beacon::new();
            beacon.register(1, A);
            beacon.receive(addr(A), &data);
        }
    }
}

mod own;
