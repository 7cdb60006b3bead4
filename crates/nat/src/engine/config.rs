//! Limits of a beacon, and what it counts.

use std::net::SocketAddr;
use std::time::Duration;

use crate::budget::Rate;

/// Checks an Ed25519 signature: public key, message, signature.
pub type Verify = fn(&[u8; 32], &[u8], &[u8; 64]) -> bool;

/// Limits of a [`BeaconEngine`](super::BeaconEngine).
#[derive(Debug, Clone)]
pub struct BeaconConfig {
    /// Most registered nodes. When full, new ones are refused and old ones go on working.
    pub max_nodes: usize,
    /// Most of them that have not proved a key: forged senders leave room for the others.
    pub max_unproven: usize,
    /// Most registered nodes per source prefix (IPv4 /32, IPv6 /64); proven and other ones are counted apart.
    pub max_nodes_per_prefix: u16,
    /// How long a registration lasts without a sign of life. Nodes refresh each 25 to 30 s.
    pub registration_ttl: Duration,
    /// How long a node must be silent before another IP address may take its id over without proof. A new port of
    /// the same IP address may at once, which is what a restart or a new NAT mapping looks like.
    pub takeover_after: Duration,
    /// Discovers, punch requests, hellos, proofs and probes per source prefix.
    pub messages_per_prefix: Rate,
    /// The same in all.
    pub messages_total: Rate,
    /// Signatures checked per source prefix.
    pub proofs_per_prefix: Rate,
    /// Signatures checked in all: each costs some 50 µs.
    pub proofs_total: Rate,
    /// Punch commands to one node on the request of others.
    pub punch_per_target: Rate,
    /// Relayed bytes from one node, and to one node.
    pub relay_bytes_per_node: Rate,
    /// Relayed bytes from one source prefix.
    pub relay_bytes_per_prefix: Rate,
    /// Relayed bytes in all.
    pub relay_bytes_total: Rate,
    /// How signatures are checked. Without it the beacon knows no proofs, as deployed ones.
    pub verify: Option<Verify>,
    /// Registers only nodes that prove a key: those of the reference cannot use this beacon.
    pub require_proof: bool,
    /// After how long a node must prove its key again. Its NAT may have given its address to another by then.
    pub proof_ttl: Duration,
    /// Under which addresses nodes know the beacon. A proof that was made for another one is refused. Empty: where
    /// the datagram says to which local address it came, that one, else any.
    pub names: Vec<SocketAddr>,
    /// Ports of the first and the second socket; the second is 0 if there is none.
    pub ports: [u16; 2],
    /// Other beacons that share [`Self::peer_key`]; at most 16 count.
    pub peers: Vec<SocketAddr>,
    /// What the beacons have in common. Without it `peers` is not looked at.
    pub peer_key: Option<[u8; 32]>,
    /// Number of this run, above those of earlier ones: the time.
    pub boot: u64,
    /// Most nodes of other beacons that are known.
    pub max_remote: usize,
}

impl Default for BeaconConfig {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            max_nodes: 100_000,
            max_unproven: 75_000,
            max_nodes_per_prefix: 4_096,
            registration_ttl: Duration::from_secs(120),
            takeover_after: Duration::from_secs(35),
            messages_per_prefix: Rate { per_second: 200, burst: 1_000 },
            messages_total: Rate { per_second: 50_000, burst: 50_000 },
            proofs_per_prefix: Rate { per_second: 20, burst: 200 },
            proofs_total: Rate { per_second: 2_000, burst: 4_000 },
            punch_per_target: Rate { per_second: 5, burst: 5 },
            relay_bytes_per_node: Rate { per_second: 32 * MIB, burst: 4 * MIB },
            relay_bytes_per_prefix: Rate { per_second: 128 * MIB, burst: 16 * MIB },
            relay_bytes_total: Rate { per_second: 256 * MIB, burst: 32 * MIB },
            verify: None,
            require_proof: false,
            proof_ttl: Duration::from_secs(300),
            names: Vec::new(),
            ports: [0; 2],
            peers: Vec::new(),
            peer_key: None,
            boot: 1,
            max_remote: 400_000,
        }
    }
}

/// What a beacon has done since it started. Every received datagram ends in exactly one of the counters
/// from `discovers` on ([`BeaconStats::ends`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BeaconStats {
    /// Nodes registered now, some of which may have run out since the last sweep.
    pub registered: u64,
    /// Those of them that proved their key.
    pub proven: u64,
    /// Nodes known at other beacons.
    pub remote: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// UDP payload bytes received.
    pub bytes_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// UDP payload bytes sent.
    pub bytes_out: u64,
    /// Replies to discovers, commands to requesters and to targets that were left out because the bytes
    /// received did not pay for them.
    pub unpaid: u64,
    /// Registrations refused because the table or the share of the source prefix was full.
    pub table_full: u64,
    /// Registrations refused because the id is in use from another IP address, or by a key.
    pub takeovers_refused: u64,
    /// Registrations without proof that gave way to one with.
    pub displaced: u64,
    /// Frames handed to another beacon; each is one of `relays`.
    pub handed_over: u64,

    /// Discovers handled, answered or not.
    pub discovers: u64,
    /// Hellos handled.
    pub hellos: u64,
    /// Proofs that bound an id.
    pub proofs: u64,
    /// Proofs that did not.
    pub proofs_refused: u64,
    /// Probes handled.
    pub probes: u64,
    /// Punch requests that led to at least one command.
    pub punches: u64,
    /// Frames relayed.
    pub relays: u64,
    /// Frames of other beacons' nodes delivered.
    pub carried: u64,
    /// Messages of other beacons about their nodes.
    pub syncs: u64,
    /// Dropped: no beacon message, or one with nothing in it to relay.
    pub malformed: u64,
    /// Dropped: a message that beacons send, or gossip, which nothing authenticates.
    pub not_for_beacons: u64,
    /// Dropped: from an address that is no single host.
    pub bad_source: u64,
    /// Dropped: over a message or byte budget.
    pub over_budget: u64,
    /// Dropped: the sender is not registered at the address the message came from.
    pub not_registered: u64,
    /// Dropped: the other node is not registered, is the sender itself or shares no IP version with it.
    pub unreachable: u64,
    /// Dropped: the receiver did not agree to hear from the sender.
    pub not_permitted: u64,
    /// Dropped: in the name of another beacon, but not from it, or not of its present run.
    pub bad_beacon: u64,
}

impl BeaconStats {
    /// The sum of the ends: equals `datagrams_in`.
    pub fn ends(&self) -> u64 {
        self.discovers
            + self.hellos
            + self.proofs
            + self.proofs_refused
            + self.probes
            + self.punches
            + self.relays
            + self.carried
            + self.syncs
            + self.malformed
            + self.not_for_beacons
            + self.bad_source
            + self.over_budget
            + self.not_registered
            + self.unreachable
            + self.not_permitted
            + self.bad_beacon
    }
}
