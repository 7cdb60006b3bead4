//! What others can do to the choice of a path, and what a peer can make us send (spec/nat.md §10.6).

use std::net::SocketAddr;
use std::time::Duration;

use pilotage_nat::agent::{Candidate, CandidateKind, PathPolicy};
use pilotage_proto::{Event, PathKind};
use pilotage_sim::nat::{NatKind, NatWorld};
use pilotage_sim::{Link, pattern};

fn access() -> Link {
    Link {
        delay: Duration::from_millis(25),
        rate: Some(4_000_000),
        queue: 64 << 10,
        mtu: 1_452,
        ..Link::default()
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn pair(seed: u64, a: NatKind, b: NatKind) -> NatWorld {
    pair_of(NatWorld::new(seed, 1), a, b)
}

fn pair_of(mut world: NatWorld, a: NatKind, b: NatKind) -> NatWorld {
    world.add_host(a, access(), None);
    world.add_host(b, access(), None);
    world.run_for(seconds(2));
    world
}

fn attacker() -> SocketAddr {
    "203.0.113.200:666".parse().expect("an address")
}

/// A fast attacker copies every datagram and sends it from its own address, so that the copy wins; a slow one lets it
/// come late; a third keeps the original back until the copy of a later one has come. No path moves, everything arrives,
/// and the attacker is sent no more than it sent.
#[test]
fn copied_delayed_and_raced_packets_never_move_a_path() {
    copies(false);
}

/// The same with streams of S1, where the attacker is sent copies of what leaves while it seems to be the peer that moved: no
/// byte more than it sent, and what it gets it has paid for.
#[test]
fn with_streams_whoever_feigns_a_move_is_sent_no_more_than_it_sent() {
    assert!(copies(true) > 10_000, "copies are sent");
}

/// The most that the attacker was sent, bytes.
fn copies(s1: bool) -> u64 {
    let mut most = 0;
    for (name, every, delay) in [("race", 1, 0), ("race some", 3, 0), ("late", 1, 80), ("late some", 2, 300)]
    {
        let mut world = NatWorld::new(1, 1);
        if s1 {
            world.speak_s1(true);
        }
        let mut world = pair_of(world, NatKind::None, NatKind::None);
        let (a, b, _) = world.connect(0, 1, seconds(5)).expect("connects");
        assert!(world.run_until(seconds(5), |w| w.is_direct(0, 1)));
        world.run_for(seconds(2));
        let paths = [0, 1].map(|i| {
            let id = if i == 0 { a } else { b };
            world.hosts[i].endpoint.connection_path(id).expect("path").remote
        });
        world.hosts.iter_mut().for_each(|h| h.events.clear());
        world.recorded = Some(Vec::new());
        let data = pattern(2 << 20, 1);
        let (mut written, mut read, mut count, mut injected) = (0, 0, 0usize, 0u64);
        let mut late: Vec<(std::time::Instant, SocketAddr, Vec<u8>)> = Vec::new();
        let done = world.run_until(seconds(60), |w| {
            let now = w.now;
            while let Ok(n) = w.hosts[0].endpoint.write(now, a, &data[written..]) {
                written += n;
                if n == 0 {
                    break;
                }
            }
            let mut buf = [0; 4096];
            while let Ok(n) = w.hosts[1].endpoint.read(now, b, &mut buf) {
                assert_eq!(buf[..n], data[read..read + n]);
                read += n;
            }
            w.flush();
            for (_, to, bytes) in w.recorded.replace(Vec::new()).unwrap_or_default() {
                count += 1;
                if count % every == 0 && paths.contains(&to) {
                    late.push((now + Duration::from_millis(delay), to, bytes));
                }
            }
            late.retain(|(at, to, bytes)| {
                if *at <= now {
                    injected += bytes.len() as u64 + 28;
                    w.inject(attacker(), *to, bytes);
                }
                *at > now
            });
            for (i, id) in [(0, a), (1, b)] {
                assert_eq!(w.hosts[i].endpoint.connection_path(id).expect("path").remote, paths[i], "{name}");
            }
            let sent = w.sent_to.get(&attacker()).map_or(0, |s| s.1);
            assert!(sent <= injected, "{name}: amplified, {sent} for {injected}");
            most = most.max(sent);
            read == data.len()
        });
        assert!(done, "{name}: {read} of {}", data.len());
        let moves =
            world.hosts.iter().flat_map(|h| &h.events).filter(|e| matches!(e, Event::PathChanged { .. }));
        assert_eq!(moves.count(), 0, "{name}");
        println!("{name}: {count} datagrams, {injected} bytes injected, {most} sent");
    }
    most
}

/// A peer names addresses of a victim, others again and again, for a minute: what the victim gets is bounded, whatever
/// the peer does, and much less than what an introduction is worth.
#[test]
fn a_peer_that_names_a_victim_makes_us_send_it_little() {
    for s1 in [false, true] {
        let mut world = NatWorld::new(2, 1);
        if s1 {
            world.speak_s1(true);
        }
        let (bytes, own) = names_a_victim(pair_of(world, NatKind::None, NatKind::PortRestricted));
        println!("s1 {s1}: the victim got {bytes} bytes in a minute, the peer sent {own}");
        // What it sends itself to name them is more.
        assert!(bytes <= NAMED_UNPAID + own, "s1 {s1}: {bytes}");
        assert!(bytes > NAMED_UNPAID, "s1 {s1}: what the peer sends itself counts: {bytes}");
    }
}

/// What candidates are sent in a minute for which nobody paid (C17).
const NAMED_UNPAID: u64 = (4 << 10) + 61 * 128;

/// What the victim was sent, and what the peer sent that named it: bytes.
fn names_a_victim(mut world: NatWorld) -> (u64, u64) {
    world.connect(0, 1, seconds(5)).expect("connects");
    let victim = |port: u16| SocketAddr::from(([203, 0, 113, 222], port));
    for round in 0..600u16 {
        let names: Vec<_> = (0..15)
            .map(|i| Candidate { addr: victim(1_024 + round * 16 + i), kind: CandidateKind::Host })
            .collect();
        let now = world.now;
        world.hosts[1].endpoint.set_local_candidates(now, &names);
        world.run_for(Duration::from_millis(100));
    }
    let sent = world.sent_to.iter().filter(|(addr, _)| addr.ip() == victim(1).ip());
    (sent.map(|(_, (_, bytes))| *bytes).sum(), world.sent_by[1].1)
}

/// Relay only: not one datagram leaves for any address but the beacon's, and the peer learns no address of ours.
#[test]
fn relay_only_shows_the_peer_no_address() {
    for side in [0, 1] {
        let mut world = pair(3, NatKind::None, NatKind::None);
        let beacon = world.beacon_addr(0, NatKind::None);
        let now = world.now;
        world.hosts[side].endpoint.set_path_policy(now, None, PathPolicy::RelayOnly);
        world.recorded = Some(Vec::new());
        let (a, b, _) = world.connect(0, 1, seconds(5)).expect("by the relay");
        world.run_for(seconds(40));
        for (sender, to, bytes) in world.recorded.take().unwrap_or_default() {
            // Punches on the beacon's command are the beacon's doing, and say nothing.
            assert!(sender != side || to == beacon || bytes == b"PILP", "{to} {:?}", &bytes[..4]);
        }
        for (i, id) in [(0, a), (1, b)] {
            let path = world.hosts[i].endpoint.connection_path(id).expect("path");
            assert_eq!(path.kind, PathKind::Relay);
        }
        assert_eq!(world.reason(side, 1 - side), "relay-policy");
    }
}

/// Direct only: nothing of a tunnel goes through the beacon, and where no direct way is there is no connection.
#[test]
fn direct_only_uses_no_relay() {
    for (b, works) in [(NatKind::FullCone, true), (NatKind::UdpBlocked, false)] {
        let mut world = pair(4, NatKind::None, b);
        let beacon = world.beacon_addr(0, NatKind::None);
        let now = world.now;
        let node = world.node(1);
        world.hosts[0].endpoint.set_path_policy(now, Some(node), PathPolicy::DirectOnly);
        world.recorded = Some(Vec::new());
        if !works {
            let peer = world.introduction(1);
            world.hosts[0].endpoint.add_peer(now, peer.clone()).expect("room");
            let to = pilotage_wire::SocketAddress { address: peer.address, port: 7 };
            assert_eq!(world.hosts[0].endpoint.connect(now, to), Err(pilotage_proto::ConnectError::NoPath));
            continue;
        }
        world.connect(0, 1, seconds(5)).expect("directly");
        world.run_for(seconds(10));
        let relayed = world.recorded.take().unwrap_or_default();
        let relayed = relayed.iter().filter(|(from, to, bytes)| *from == 0 && *to == beacon && bytes[0] == 5);
        assert_eq!(relayed.count(), 0);
        assert!(world.is_direct(0, 1));
    }
}

/// Two nodes that no direct way joins and whose operator changes the policy while they speak.
#[test]
fn a_policy_may_change_while_a_stream_is_open() {
    let mut world = pair(5, NatKind::FullCone, NatKind::FullCone);
    let (a, b, _) = world.connect(0, 1, seconds(5)).expect("connects");
    assert!(world.run_until(seconds(5), |w| w.is_direct(0, 1)));
    for (policy, kind) in [
        (PathPolicy::RelayOnly, PathKind::Relay),
        (PathPolicy::Auto, PathKind::Direct),
        (PathPolicy::RelayOnly, PathKind::Relay),
        (PathPolicy::DirectOnly, PathKind::Direct),
    ] {
        let now = world.now;
        world.hosts[0].endpoint.set_path_policy(now, None, policy);
        let data = pattern(300_000, 3);
        let (mut written, mut read) = (0, 0);
        let done = world.run_until(seconds(20), |w| {
            let now = w.now;
            if written < data.len() {
                written += w.hosts[0].endpoint.write(now, a, &data[written..]).unwrap_or(0);
            }
            let mut buf = [0; 4096];
            while let Ok(n) = w.hosts[1].endpoint.read(now, b, &mut buf) {
                assert_eq!(buf[..n], data[read..read + n]);
                read += n;
            }
            let path = w.hosts[0].endpoint.connection_path(a);
            read == data.len() && path.is_some_and(|p| p.kind == kind)
        });
        assert!(done, "{policy:?}: {read} {:?}", world.hosts[0].endpoint.connection_path(a));
    }
}
