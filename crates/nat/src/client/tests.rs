//! When the client speaks, and whom it believes.

use proptest::prelude::*;

use super::*;
use crate::{BeaconConfig, BeaconEngine, clock_start};

const OWN: NodeId = NodeId(7);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn beacon() -> SocketAddr {
    addr("203.0.113.9:9001")
}

fn client(now: Instant) -> BeaconClient {
    let mut client = BeaconClient::new();
    client.set_beacon(Some(beacon()), now);
    client.set_node(OWN, now);
    client
}

fn reply() -> Message<'static> {
    Message::DiscoverReply { addr: "198.51.100.7:4000".parse().unwrap() }
}

fn command(to: &str) -> Message<'static> {
    Message::PunchCommand { addr: addr(to) }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Times, in ms after `start`, of the discovers sent up to `until`.
fn discovers(client: &mut BeaconClient, start: Instant, until: u64) -> Vec<u64> {
    let mut times = vec![];
    while let Some(due) = client.poll_timeout().filter(|&due| due <= start + millis(until)) {
        let (to, message) = client.poll_transmit(due).unwrap();
        assert_eq!((to, message[0]), (client.beacon().unwrap(), 1));
        times.push((due - start).as_millis() as u64);
    }
    times
}

#[test]
fn without_a_beacon_nothing_is_sent_or_believed() {
    let now = clock_start();
    let mut client = BeaconClient::new();
    client.set_node(OWN, now);
    assert!(!client.punch_request(NodeId(8), now));
    assert_eq!((client.poll_transmit(now), client.poll_timeout()), (None, None));
    assert_eq!(client.handle(beacon(), &reply(), now), ClientEvent::Ignored);
}

#[test]
fn asks_with_0_before_the_id_is_known_and_again_with_it() {
    let now = clock_start();
    let mut client = BeaconClient::new();
    client.set_beacon(Some(beacon()), now);
    assert_eq!(&*client.poll_transmit(now).unwrap().1, [1, 0, 0, 0, 0]);
    assert_eq!(client.poll_transmit(now), None);
    assert_eq!(client.handle(beacon(), &reply(), now), ClientEvent::Observed(addr("198.51.100.7:4000")));
    assert_eq!(client.observed(), Some(addr("198.51.100.7:4000")));
    client.set_node(OWN, now);
    assert_eq!(&*client.poll_transmit(now).unwrap().1, [1, 0, 0, 0, 7]);
    assert_eq!(client.poll_transmit(now), None);
}

#[test]
fn repeats_until_answered_then_refreshes_each_25_seconds() {
    let start = clock_start();
    let mut client = client(start);
    assert_eq!(discovers(&mut client, start, 70_000), [0, 500, 1_500, 3_500, 7_500, 15_500, 31_500, 56_500]);
    assert_eq!(client.unanswered(), 8);
    let at = start + millis(57_000);
    assert!(matches!(client.handle(beacon(), &reply(), at), ClientEvent::Observed(_)));
    assert_eq!(client.unanswered(), 0);
    assert_eq!(client.poll_timeout(), Some(at + millis(25_000)));
}

#[test]
fn a_late_answer_to_the_question_without_id_does_not_count_for_the_registration() {
    let now = clock_start();
    let mut client = BeaconClient::new();
    client.set_beacon(Some(beacon()), now);
    client.poll_transmit(now);
    client.set_node(OWN, now);
    client.poll_transmit(now);
    client.handle(beacon(), &reply(), now);
    assert_eq!(client.poll_timeout(), Some(now + millis(500)));
    client.handle(beacon(), &reply(), now);
    assert_eq!(client.poll_timeout(), Some(now + millis(25_000)));
}

#[test]
fn only_the_configured_beacon_is_believed_and_only_when_asked() {
    let now = clock_start();
    let mut client = client(now);
    assert_eq!(client.handle(beacon(), &reply(), now), ClientEvent::Ignored, "not asked yet");
    client.poll_transmit(now);
    let frame = Message::Deliver { src: NodeId(8), frame: b"PILS" };
    for stranger in ["203.0.113.9:9002", "203.0.113.8:9001"] {
        for message in [reply(), command("198.51.100.1:1"), frame] {
            assert_eq!(client.handle(addr(stranger), &message, now), ClientEvent::Ignored);
        }
    }
    assert_eq!(client.handle(beacon(), &reply(), now + millis(10_000)), ClientEvent::Ignored, "too late");
    // The same beacon seen through a dual-stack socket.
    let mapped = addr("[::ffff:203.0.113.9]:9001");
    assert!(matches!(client.handle(mapped, &reply(), now), ClientEvent::Observed(_)));
    // Messages that only beacons take.
    for message in
        [Message::Discover { node: OWN }, Message::Relay { src: NodeId(8), dst: OWN, frame: b"PILS" }]
    {
        assert_eq!(client.handle(beacon(), &message, now), ClientEvent::Ignored);
    }
}

#[test]
fn relayed_frames_lie_where_the_event_says() {
    let now = clock_start();
    let client = &mut client(now);
    for message in [
        Message::Deliver { src: NodeId(8), frame: b"PILS-frame" },
        Message::DeliverEx { src: NodeId(8), dst: OWN, frame: b"PILS-frame" },
    ] {
        let mut datagram = [0; 64];
        let len = message.encode(&mut datagram).unwrap();
        match client.handle(beacon(), &Message::decode(&datagram[..len]).unwrap(), now) {
            ClientEvent::Relayed { src: NodeId(8), frame } => assert_eq!(&datagram[frame], b"PILS-frame"),
            other => panic!("{other:?}"),
        }
    }
    for message in [
        Message::DeliverEx { src: NodeId(8), dst: NodeId(9), frame: b"PILS" },
        Message::Deliver { src: OWN, frame: b"PILS" },
        Message::Deliver { src: NodeId(0), frame: b"PILS" },
        Message::Deliver { src: NodeId(8), frame: b"" },
        Message::Deliver { src: NodeId(8), frame: &[4, 4, 1, 2, 3, 4, 0, 1] },
    ] {
        assert_eq!(client.handle(beacon(), &message, now), ClientEvent::Ignored);
    }
}

#[test]
fn punches_never_point_inwards() {
    let now = clock_start();
    // (beacon, may point to, must not point to)
    let cases: [(&str, &[&str], &[&str]); 4] = [
        (
            "203.0.113.9:9001",
            &["198.51.100.1:1", "[2001:db8::1]:1"],
            &[
                "127.0.0.1:1",
                "10.0.0.1:1",
                "192.168.1.1:53",
                "169.254.0.1:1",
                "100.64.0.1:1",
                "[::1]:1",
                "[fd00::1]:1",
            ],
        ),
        (
            "10.0.0.9:9001",
            &["10.0.0.1:1", "198.51.100.1:1"],
            &["127.0.0.1:1", "169.254.0.1:1", "[fe80::1]:1"],
        ),
        ("127.0.0.1:9001", &["127.0.0.1:1", "10.0.0.1:1", "198.51.100.1:1"], &["0.0.0.0:1"]),
        (
            "[2001:db8::9]:9001",
            &["[2001:db8::1]:1"],
            &["[::1]:1", "[fe80::1]:1", "[ff02::1]:1", "127.0.0.1:9"],
        ),
    ];
    for (at, good, bad) in cases {
        let mut client = client(now);
        client.set_beacon(Some(addr(at)), now);
        for to in good {
            assert_eq!(client.handle(addr(at), &command(to), now), ClientEvent::Punch(addr(to)), "{at} {to}");
        }
        let never = ["224.0.0.1:1", "255.255.255.255:1", "198.51.100.1:0", "[::]:1", at];
        for to in bad.iter().chain(&never) {
            assert_eq!(client.handle(addr(at), &command(to), now), ClientEvent::Ignored, "{at} {to}");
        }
    }
}

#[test]
fn punches_are_limited_per_address_and_in_all() {
    let start = clock_start();
    let mut client = client(start);
    let mut punches =
        |to: &str, at: Instant| client.handle(beacon(), &command(to), at) != ClientEvent::Ignored;
    assert!(punches("198.51.100.1:1", start));
    assert!(!punches("198.51.100.1:1", start + millis(999)));
    assert!(punches("198.51.100.1:1", start + millis(1_000)));
    let others =
        (0..100).filter(|port| punches(&format!("198.51.100.2:{}", port + 1), start + millis(1_000))).count();
    assert_eq!(others, 6, "eight in ten seconds");
    assert!(!punches("198.51.100.3:1", start + millis(9_999)));
    assert!(punches("198.51.100.3:1", start + millis(10_000)));
}

#[test]
fn our_own_address_is_not_punched() {
    let now = clock_start();
    let mut client = client(now);
    client.poll_transmit(now);
    client.handle(beacon(), &reply(), now);
    assert_eq!(client.handle(beacon(), &command("198.51.100.7:4000"), now), ClientEvent::Ignored);
}

#[test]
fn requests_are_limited_and_alternate_between_padded_and_bare() {
    let start = clock_start();
    let mut client = client(start);
    client.poll_transmit(start);
    let mut lens = vec![];
    for second in 0..3 {
        let now = start + millis(1_000 * second);
        client.handle(beacon(), &reply(), now);
        assert!(client.punch_request(NodeId(8), now));
        assert!(!client.punch_request(NodeId(8), now + millis(999)));
        let message =
            std::iter::from_fn(|| client.poll_transmit(now)).find(|(_, message)| message[0] == 3).unwrap().1;
        assert_eq!(message[..9], [3, 0, 0, 0, 7, 0, 0, 0, 8]);
        lens.push(message.len());
    }
    assert_eq!(lens, [64, 9, 64]);
    assert!(!client.punch_request(OWN, start), "ourselves");
    let now = start + millis(5_000);
    assert_eq!((100..200).filter(|&target| client.punch_request(NodeId(target), now)).count(), MAX_QUEUE);
}

#[test]
fn at_most_64_targets_are_remembered() {
    let start = clock_start();
    let mut client = client(start);
    let mut accepted = 0;
    for target in 100..300 {
        accepted += usize::from(client.punch_request(NodeId(target), start));
        while client.poll_transmit(start).is_some() {}
    }
    assert_eq!(accepted, MAX_REQUESTED);
    assert!(client.punch_request(NodeId(999), start + millis(1_000)));
    assert_eq!(client.requested.len(), MAX_REQUESTED);
}

#[test]
fn a_new_beacon_starts_afresh_and_none_is_silence() {
    let now = clock_start();
    let mut client = client(now);
    client.poll_transmit(now);
    client.handle(beacon(), &reply(), now);
    client.set_beacon(Some(addr("[2001:db8::9]:1")), now);
    assert_eq!(client.observed(), None);
    let (to, message) = client.poll_transmit(now).unwrap();
    assert_eq!((to, &message[..5], message.len()), (addr("[2001:db8::9]:1"), &[1, 0, 0, 0, 7][..], 20));
    // A beacon that insists on five bytes.
    assert_eq!(client.poll_transmit(now + millis(500)).unwrap().1.len(), 5);
    client.set_beacon(None, now);
    assert_eq!((client.poll_transmit(now), client.poll_timeout()), (None, None));
}

/// Both halves together, as two nodes and a beacon use them, over IPv4 and IPv6.
#[test]
fn two_clients_meet_through_an_engine() {
    for [hub, a, b] in [
        ["203.0.113.9:9001", "198.51.100.1:1", "198.51.100.2:2"],
        ["[2001:db8::9]:9001", "[2001:db8::1]:1", "[2001:db8::2]:2"],
        ["127.0.0.1:9001", "127.0.0.1:1", "127.0.0.1:2"],
    ] {
        let now = clock_start();
        let mut engine = BeaconEngine::new(BeaconConfig::default(), 1);
        let mut nodes = [(addr(a), NodeId(1)), (addr(b), NodeId(2))].map(|(at, node)| {
            let mut client = BeaconClient::new();
            client.set_beacon(Some(addr(hub)), now);
            client.set_node(node, now);
            (at, client, Vec::new())
        });
        let mut run = |nodes: &mut [(SocketAddr, BeaconClient, Vec<ClientEvent>); 2]| {
            let mut wire = vec![];
            for (at, client, _) in nodes.iter_mut() {
                while let Some((_, message)) = client.poll_transmit(now) {
                    engine.handle_datagram(now, *at, &message, &mut |to, data: &[u8]| {
                        wire.push((to, data.to_vec()))
                    });
                }
            }
            for (to, data) in wire {
                let (_, client, events) = nodes.iter_mut().find(|(at, ..)| *at == to).unwrap();
                events.push(client.handle(addr(hub), &Message::decode(&data).unwrap(), now));
            }
        };
        run(&mut nodes);
        assert!(nodes[0].1.punch_request(NodeId(2), now));
        run(&mut nodes);
        let [(_, _, a_events), (_, _, b_events)] = nodes;
        assert_eq!(a_events, [ClientEvent::Observed(addr(a)), ClientEvent::Punch(addr(b))]);
        assert_eq!(b_events, [ClientEvent::Observed(addr(b)), ClientEvent::Punch(addr(a))]);
    }
}

proptest! {
    /// Whatever arrives from wherever: no panic, bounded lists, and no more than one discover in 500 ms
    /// unless we were told to.
    #[test]
    fn random_messages_do_no_harm(
        steps in prop::collection::vec((0..3_000u64, prop::collection::vec(any::<u8>(), 0..30), any::<bool>(), 1..10u8), 1..100)
    ) {
        let start = clock_start();
        let mut client = client(start);
        let mut now = start;
        let (mut discovers, mut punches) = (0, 0);
        for (wait, mut data, from_beacon, kind) in steps {
            now += millis(wait);
            if let Some(first) = data.first_mut() {
                *first = kind;
            }
            let from = if from_beacon { beacon() } else { addr("198.51.100.66:6") };
            if let Ok(message) = Message::decode(&data) {
                let event = client.handle(from, &message, now);
                prop_assert!(from_beacon || event == ClientEvent::Ignored);
                punches += u64::from(matches!(event, ClientEvent::Punch(_)));
            }
            while let Some((to, message)) = client.poll_transmit(now) {
                prop_assert_eq!(to, beacon());
                discovers += u64::from(message[0] == 1);
            }
            let elapsed = (now - start).as_millis() as u64;
            prop_assert!(discovers <= 1 + elapsed / 500);
            prop_assert!(punches <= 8 * (1 + elapsed / 10_000));
            prop_assert!(client.punched.len() <= MAX_PUNCHES);
        }
    }
}

#[test]
fn a_change_of_network_is_asked_about_at_once() {
    let start = clock_start();
    let mut without = BeaconClient::new();
    without.rediscover(start);
    assert_eq!(without.poll_timeout(), None);
    let mut client = client(start);
    assert_eq!(discovers(&mut client, start, 0), [0]);
    assert!(matches!(client.handle(beacon(), &reply(), start + millis(20)), ClientEvent::Observed(_)));
    assert_eq!(client.poll_timeout(), Some(start + millis(20) + REFRESH_INTERVAL));
    client.rediscover(start + millis(5_000));
    assert_eq!(discovers(&mut client, start, 6_000), [5_000, 5_500], "and repeated until answered");
    // The answer that comes now replaces the old mapping.
    let moved = Message::DiscoverReply { addr: addr("198.51.100.99:5") };
    client.handle(beacon(), &moved, start + millis(6_100));
    assert_eq!(client.observed(), Some(addr("198.51.100.99:5")));
}

mod nat;
