//! Several beacons, and NATs of all kinds before the node.

use std::collections::{BTreeMap, BTreeSet};

use pilotage_wire::addressing::derive_node_id;

use super::*;
use crate::{Arrival, Port};

const KEY: [u8; 32] = [3; 32];

/// A signature scheme for tests: who knows the message can sign it, which is enough here.
struct Toy;

impl Signer for Toy {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(blake3::hash(message).as_bytes());
        signature
    }
}

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    *key == KEY && Toy.sign(message) == *signature
}

/// What the NAT between the node and the beacons does.
#[derive(Debug, Clone, Copy)]
struct Kind {
    mapping: Dependence,
    filtering: Dependence,
    hairpin: bool,
    keeps_port: bool,
}

/// What a mapping or a filter looks at.
fn part(of: SocketAddr, dependence: Dependence) -> Option<SocketAddr> {
    match dependence {
        Dependence::EndpointIndependent => None,
        Dependence::AddressDependent => Some(SocketAddr::new(of.ip(), 0)),
        Dependence::AddressAndPortDependent => Some(of),
    }
}

/// A node behind a NAT and two beacons with two ports each. Round trips take 100 ms.
struct World {
    kind: Kind,
    outer: SocketAddr,
    mappings: BTreeMap<Option<SocketAddr>, u16>,
    /// Mapping and whom it lets in.
    filters: BTreeSet<(u16, Option<SocketAddr>)>,
    next_port: u16,
    beacons: Vec<(SocketAddr, BeaconEngine)>,
    dead: BTreeSet<SocketAddr>,
    client: BeaconClient,
    now: Instant,
    /// To the node: when, from where, what.
    flights: Vec<(Instant, SocketAddr, Vec<u8>)>,
    frames: usize,
}

impl World {
    fn new(kind: Kind, beacons: &[&str]) -> Self {
        let now = clock_start();
        let beacons: Vec<(SocketAddr, BeaconEngine)> = beacons
            .iter()
            .map(|at| {
                let at = addr(at);
                let ports = [at.port(), at.port() + 1];
                let config = BeaconConfig { verify: Some(verify), ports, ..BeaconConfig::default() };
                (at, BeaconEngine::new(config, 9))
            })
            .collect();
        let mut client = BeaconClient::new();
        client.set_seed(99);
        client.set_node(derive_node_id(&KEY, 0).unwrap(), now);
        client.set_key(KEY, now);
        client.set_local_port(4000);
        client.set_beacons(&beacons.iter().map(|(at, _)| *at).collect::<Vec<_>>(), now);
        Self {
            kind,
            outer: addr("198.51.100.7:4000"),
            mappings: BTreeMap::new(),
            filters: BTreeSet::new(),
            next_port: 50_000,
            beacons,
            dead: BTreeSet::new(),
            client,
            now,
            flights: Vec::new(),
            frames: 0,
        }
    }

    /// A datagram from the node through the NAT.
    fn send(&mut self, to: SocketAddr, data: &[u8]) {
        let next = &mut self.next_port;
        let first = self.mappings.is_empty() && self.kind.keeps_port;
        let port = *self.mappings.entry(part(to, self.kind.mapping)).or_insert_with(|| {
            *next += 1;
            if first { 4000 } else { *next }
        });
        self.filters.insert((port, part(to, self.kind.filtering)));
        let source = SocketAddr::new(self.outer.ip(), port);
        if to.ip() == self.outer.ip() {
            if self.kind.hairpin {
                self.arrive(source, to, data.to_vec());
            }
            return;
        }
        let mut out = vec![];
        for (at, engine) in &mut self.beacons {
            if at.ip() != to.ip() || self.dead.contains(at) {
                continue;
            }
            let port = if to.port() == at.port() { Port::Main } else { Port::Other };
            let arrival = Arrival { from: source, port, to: Some(to) };
            engine.handle(self.now, &arrival, data, &mut |port, to, data: &[u8]| {
                let from = SocketAddr::new(at.ip(), at.port() + u16::from(port == Port::Other));
                out.push((from, to, data.to_vec()));
            });
        }
        for (from, to, data) in out {
            self.arrive(from, to, data);
        }
    }

    /// A datagram to the NAT's outer side.
    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, data: Vec<u8>) {
        if self.filters.contains(&(to.port(), part(from, self.kind.filtering))) {
            self.flights.push((self.now + millis(100), from, data));
        }
    }

    fn run(&mut self, duration: u64) {
        let end = self.now + millis(duration);
        loop {
            while let Some((to, message)) = self.client.poll_transmit_with(self.now, &Toy) {
                self.send(to, &message);
            }
            let next = self.flights.iter().map(|flight| flight.0).chain(self.client.poll_timeout()).min();
            let Some(next) = next.filter(|&next| next <= end) else { break };
            self.now = self.now.max(next);
            let due: Vec<_> = self.flights.extract_if(.., |flight| flight.0 <= next).collect();
            for (_, from, data) in due {
                let message = Message::decode(&data).unwrap();
                if let ClientEvent::Relayed { .. } = self.client.handle(from, &message, self.now) {
                    self.frames += 1;
                }
            }
        }
        self.now = end;
    }
}

const X: &str = "203.0.113.1:9001";
const Y: &str = "203.0.113.2:9001";
const PLAIN: Kind = Kind {
    mapping: Dependence::EndpointIndependent,
    filtering: Dependence::EndpointIndependent,
    hairpin: false,
    keeps_port: true,
};

#[test]
fn every_kind_of_nat_is_recognised() {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let all = [EndpointIndependent, AddressDependent, AddressAndPortDependent];
    for mapping in all {
        for filtering in all {
            for (hairpin, keeps_port) in [(false, false), (true, true), (false, true)] {
                let kind = Kind { mapping, filtering, hairpin, keeps_port };
                let mut world = World::new(kind, &[X, Y]);
                world.run(8_000);
                let found = world.client.nat_behaviour().unwrap_or_else(|| panic!("{kind:?}"));
                assert_eq!(found.mapping, mapping, "{kind:?}");
                assert!(found.compared_addresses);
                // From one address "address-dependent" and "less" look the same.
                assert_eq!(found.filtering, Some(filtering.max(AddressDependent)), "{kind:?}");
                // A NAT whose filter looks at the source may not let our own message back in.
                let lets_in = filtering == EndpointIndependent || mapping == EndpointIndependent;
                assert_eq!(found.hairpin, Some(hairpin && lets_in), "{kind:?}");
                assert_eq!(found.preserves_port, Some(keeps_port), "{kind:?}");
            }
        }
    }
}

/// Nothing answers the last question, so no message tells that the discovery is over; and the mapping is known before.
#[test]
fn the_mapping_is_known_early_and_what_silence_tells_is_news() {
    let hard = Dependence::AddressAndPortDependent;
    let kind = Kind { mapping: hard, filtering: hard, ..PLAIN };
    let mut world = World::new(kind, &[X]);
    assert!(!world.client.take_nat_news());
    world.run(2_000);
    assert_eq!((world.client.nat_mapping(), world.client.nat_behaviour()), (Some(hard), None));
    assert!(world.client.take_nat_news() && !world.client.take_nat_news());
    world.run(2_000);
    assert_eq!(world.client.nat_behaviour().unwrap().hairpin, Some(false));
    assert!(world.client.take_nat_news() && !world.client.take_nat_news());
}

#[test]
fn one_beacon_cannot_tell_all_kinds_apart_and_says_so() {
    let kind = Kind { mapping: Dependence::AddressDependent, ..PLAIN };
    let mut world = World::new(kind, &[X]);
    world.run(8_000);
    let found = world.client.nat_behaviour().unwrap();
    assert_eq!((found.mapping, found.compared_addresses), (Dependence::EndpointIndependent, false));
    // Asked again after a change of network, it does not take the filter that it opened itself for an open NAT.
    let kind = Kind { filtering: Dependence::AddressAndPortDependent, ..PLAIN };
    let mut world = World::new(kind, &[X]);
    world.run(8_000);
    world.client.rediscover(world.now);
    assert_eq!(world.client.nat_behaviour(), None);
    world.run(15_000);
    let found = world.client.nat_behaviour().unwrap();
    assert_eq!(found.filtering, Some(Dependence::AddressAndPortDependent));
}

#[test]
fn strangers_cannot_answer_for_the_beacon() {
    let mut world = World::new(PLAIN, &[X]);
    let now = world.now;
    for nonce in 0..1_000 {
        let reply = Extension::ProbeReply { nonce, other_port: 7, addr: addr("192.0.2.66:6") };
        world.client.handle(addr("192.0.2.66:6"), &Message::Extension(reply), now);
        world.client.handle(addr(X), &Message::Extension(Extension::Hairpin { nonce }), now);
        for message in [
            Extension::Registered {
                nonce,
                rank: Rank::Derived,
                lifetime: 9,
                other_port: 7,
                addr: addr("192.0.2.66:6"),
            },
            Extension::Challenge { nonce, cookie: &[0; 24], addr: addr("192.0.2.66:6") },
        ] {
            let event = world.client.handle(addr(X), &Message::Extension(message), now);
            assert_eq!(event, ClientEvent::Ignored);
        }
    }
    assert_eq!((world.client.observed(), world.client.nat_behaviour()), (None, None));
}

#[test]
fn the_first_that_answers_is_primary_and_all_keep_the_registration() {
    let mut world = World::new(PLAIN, &[X, Y]);
    world.dead.insert(addr(X));
    world.run(3_000);
    assert_eq!(world.client.beacon(), Some(addr(Y)));
    world.dead.clear();
    world.run(60_000);
    assert_eq!(world.client.beacon(), Some(addr(Y)), "no change without need");
    let proven: Vec<u64> = world.beacons.iter().map(|(_, engine)| engine.stats().proven).collect();
    assert_eq!(proven, [1, 1]);
    assert_eq!(world.client.reflexive().len(), 1);
}

#[test]
fn a_primary_in_use_that_falls_silent_is_replaced_within_two_seconds() {
    let mut world = World::new(PLAIN, &[X, Y]);
    world.run(5_000);
    assert_eq!(world.client.beacon(), Some(addr(X)));
    // In use and answering: nothing changes.
    for _ in 0..50 {
        world.client.on_relaying(world.now);
        world.run(100);
    }
    assert_eq!(world.client.beacon(), Some(addr(X)));
    world.dead.insert(addr(X));
    let died = world.now;
    while world.client.beacon() == Some(addr(X)) {
        world.client.on_relaying(world.now);
        world.run(20);
        assert!(world.now < died + millis(2_000), "still the dead one");
    }
    assert_eq!(world.client.observed(), Some(addr("198.51.100.7:4000")));
    // Both dead: it stays, and asks on, but not without bound.
    world.dead.insert(addr(Y));
    let before = world.client.counter;
    for _ in 0..100 {
        world.client.on_relaying(world.now);
        world.run(100);
    }
    assert!(world.client.counter - before < 120, "{}", world.client.counter - before);
    world.dead.clear();
    world.client.on_relaying(world.now);
    world.run(2_000);
    assert!(world.client.beacons().any(|beacon| beacon.primary && beacon.answers));
}

#[test]
fn an_idle_primary_that_falls_silent_is_replaced_at_the_next_refresh() {
    let mut world = World::new(PLAIN, &[X, Y]);
    world.run(5_000);
    world.dead.insert(addr(X));
    world.run(35_000);
    assert_eq!(world.client.beacon(), Some(addr(Y)));
}

#[test]
fn a_nat_that_forgot_us_is_noticed_while_the_relay_is_in_use() {
    let mut world = World::new(PLAIN, &[X]);
    world.run(5_000);
    // The NAT restarts: another outer port, and nothing gets in.
    world.mappings.clear();
    world.filters.clear();
    world.mappings.insert(None, 61_000);
    let lost = world.now;
    while world.client.observed() != Some(addr("198.51.100.7:61000")) {
        world.client.on_relaying(world.now);
        world.run(50);
        assert!(world.now < lost + millis(3_000));
    }
    world.run(500);
    let status = world.client.beacons().next().unwrap();
    assert_eq!(status.rank, Some(Rank::Derived), "proved again at the new address");
}

#[test]
fn beacons_are_bounded_and_those_that_stay_are_remembered() {
    let mut world = World::new(PLAIN, &[X, Y]);
    world.run(5_000);
    let many: Vec<SocketAddr> = (1..100).map(|n| addr(&format!("203.0.113.{n}:9001"))).collect();
    world.client.set_beacons(&many, world.now);
    assert_eq!(world.client.beacons().count(), BeaconClient::MAX_BEACONS);
    assert_eq!(world.client.beacon(), Some(addr(X)));
    assert!(world.client.beacons().next().unwrap().rank.is_some());
    world.client.set_beacons(&[addr(Y)], world.now);
    assert_eq!(world.client.beacon(), Some(addr(Y)));
    assert!(world.client.observed().is_some(), "known from before");
    world.client.set_beacons(&[], world.now);
    assert_eq!((world.client.beacon(), world.client.poll_timeout()), (None, None));
}
