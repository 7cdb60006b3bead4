//! The beacons of a node: one relays for us, the others keep our registration (spec/nat.md §5, §7).

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_nat::{BeaconStatus, NatBehaviour, Signer};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Accept;

use super::Endpoint;
use crate::crypto::Identity;

impl Signer for Identity {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        Identity::sign(self, message)
    }
}

/// Secret randomness of its own for the beacon client: what the endpoint draws does not depend on beacons.
pub(super) fn nonce_seed(seed: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key("pilotage 2026 beacon nonces v1", seed);
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Endpoint {
    /// Sets or removes the beacon: it tells our public address, asks peers to punch, and relays.
    /// Beacon messages from any other address are dropped (rule C15).
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.set_beacons(now, beacon.as_slice());
    }

    /// Sets the beacons, at most eight. The first that answers relays for us and asks peers to punch; the others keep
    /// our registration, and one of them takes its place within 2 s when it falls silent while it is in use.
    pub fn set_beacons(&mut self, now: Instant, beacons: &[SocketAddr]) {
        self.beacon.set_beacons(beacons, now);
        self.follow_beacon(now);
        self.on_observed();
    }

    /// How we stand with each beacon, in the order in which they were set.
    pub fn beacons(&self) -> Vec<BeaconStatus> {
        self.beacon.beacons().collect()
    }

    /// Whether it is the address of one of our beacons.
    pub fn is_beacon(&self, address: SocketAddr) -> bool {
        self.beacon.is_beacon(address)
    }

    /// How the NAT between us and the beacons behaves, once it was found out. Needs a beacon of ours.
    pub fn nat_behaviour(&self) -> Option<NatBehaviour> {
        self.beacon.nat_behaviour()
    }

    /// The UDP port that we are bound to, to see whether a NAT keeps it.
    pub fn set_local_port(&mut self, port: u16) {
        self.beacon.set_local_port(port);
    }

    /// From whom beacons of ours let relayed frames and introductions through to us; `permitted` is for
    /// [`Accept::Named`]. Default: from every registered node.
    pub fn set_relay_accept(&mut self, now: Instant, accept: Accept, permitted: &[NodeId]) {
        self.beacon.set_accept(accept, permitted, now);
    }

    /// Our address as the beacon saw it, once it answered.
    pub fn observed_address(&self) -> Option<SocketAddr> {
        self.beacon.observed()
    }

    /// Our addresses as the beacons saw them, each once.
    pub fn reflexive_addresses(&self) -> Vec<SocketAddr> {
        self.beacon.reflexive()
    }

    /// Lets the relayed tunnels follow the primary beacon. For them the relay is one way, wherever it leads.
    pub(super) fn follow_beacon(&mut self, now: Instant) {
        self.set_relay(now, self.beacon.beacon());
    }
}
