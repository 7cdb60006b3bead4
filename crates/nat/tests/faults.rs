//! A node and its beacon under every fault point of this crate, then in peace: they must find each other again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::{BeaconClient, BeaconConfig, BeaconEngine, ClientEvent, Signer};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;

struct Site {
    client: BeaconClient,
    addr: SocketAddr,
    node: NodeId,
    relayed: usize,
    punched: usize,
}

/// Stands for a signature: what is tested is who repairs what.
struct Toy;

impl Signer for Toy {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(blake3::hash(message).as_bytes());
        signature
    }
}

fn verify(_: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    Toy.sign(message) == *signature
}

struct Network {
    beacon: BeaconEngine,
    addr: SocketAddr,
    sites: Vec<Site>,
    now: Instant,
}

impl Network {
    #[allow(clippy::disallowed_methods, reason = "an Instant has no other source; all else counts from it")]
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let addr = "198.51.100.1:9001".parse().expect("address");
        let sites = (0..2u32)
            .map(|n| {
                let (mut client, node) = (BeaconClient::new(), NodeId(100 + n));
                client.set_beacon(Some(addr), now);
                client.set_node(node, now);
                client.set_key([n as u8; 32], now);
                let addr = SocketAddr::from(([192, 0, 2, 1 + n as u8], 4_000));
                Site { client, addr, node, relayed: 0, punched: 0 }
            })
            .collect();
        let config = BeaconConfig { verify: Some(verify), ..BeaconConfig::default() };
        Self { beacon: BeaconEngine::new(config, seed), addr, sites, now }
    }

    fn send_up(&mut self, from: SocketAddr, bytes: &[u8]) {
        let mut answers = Vec::new();
        self.beacon
            .handle_datagram(self.now, from, bytes, &mut |to, bytes| answers.push((to, bytes.to_vec())));
        for (to, bytes) in answers {
            let Some(site) = self.sites.iter_mut().find(|site| site.addr == to) else { continue };
            let message = Message::decode(&bytes).expect("the beacon's own");
            match site.client.handle(self.addr, &message, self.now) {
                ClientEvent::Punch(_) => site.punched += 1,
                ClientEvent::Relayed { .. } => site.relayed += 1,
                _ => {}
            }
        }
    }

    /// A second in which both ask for each other and send each other a frame.
    fn second(&mut self) {
        self.now += Duration::from_secs(1);
        self.beacon.handle_timeout(self.now);
        for n in 0..2 {
            let (own, other) = (self.sites[n].node, self.sites[1 - n].node);
            let (now, from) = (self.now, self.sites[n].addr);
            self.sites[n].client.punch_request(other, now);
            for _ in 0..8 {
                let Some((_, message)) = self.sites[n].client.poll_transmit_with(now, &Toy) else { break };
                self.send_up(from, &message);
            }
            let mut bytes = [0; 64];
            let relay = Message::Relay { src: own, dst: other, frame: b"PILS and more" };
            let len = relay.encode(&mut bytes).expect("fits");
            self.send_up(from, &bytes[..len]);
        }
    }

    /// Another IP address.
    fn roam(&mut self, to: u8) {
        self.sites[0].addr = SocketAddr::from(([192, 0, 2, 100 + to % 100], 4_000));
    }
}

#[test]
fn whatever_fails_they_find_each_other_again() {
    pilotage_fault::reset_report();
    for seed in 0..60 {
        let mut network = Network::new(seed);
        pilotage_fault::install(seed, 300);
        for second in 0..300u32 {
            network.second();
            if second % 100 == 99 {
                network.roam((second / 100) as u8);
            }
        }
        pilotage_fault::clear();
        // A beacon that answered none of some hellos is asked again after 200 s.
        (0..220).for_each(|_| network.second());
        let before: Vec<_> = network.sites.iter().map(|site| (site.relayed, site.punched)).collect();
        (0..10).for_each(|_| network.second());
        for (site, (relayed, punched)) in network.sites.iter().zip(before) {
            assert_eq!(site.client.observed(), Some(site.addr), "seed {seed}");
            assert!(site.relayed >= relayed + 9, "seed {seed}: {} of 10 relayed", site.relayed - relayed);
            assert!(site.punched > punched, "seed {seed}: no introduction");
            let proven = site.client.beacons().all(|beacon| beacon.rank.is_some());
            assert!(proven, "seed {seed}: not registered with proof");
        }
    }
    let report = pilotage_fault::report();
    let fired: BTreeSet<_> =
        report.iter().filter(|(_, count)| count.fired > 0).map(|(name, _)| *name).collect();
    if cfg!(debug_assertions) {
        let wanted = [
            "nat.beacon.cookie_too_old",
            "nat.beacon.forget_node",
            "nat.beacon.lose_challenge",
            "nat.beacon.lose_registered",
            "nat.beacon.lose_reply",
            "nat.beacon.no_room_for_proof",
            "nat.beacon.over_budget",
            "nat.beacon.relay_exhausted",
            "nat.beacon.slow_sweep",
            "nat.beacon.table_full",
            "nat.beacon.takeover_refused",
            "nat.beacon.target_busy",
            "nat.client.late_answer",
            "nat.client.late_reply",
            "nat.client.lose_request",
            "nat.client.probe_lost",
            "nat.client.punches_used_up",
            "nat.client.queue_full",
            "nat.client.rediscover",
        ];
        assert_eq!(fired.into_iter().collect::<Vec<_>>(), wanted);
    }
}
