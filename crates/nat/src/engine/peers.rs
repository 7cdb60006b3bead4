//! Beacons that know of each other. `spec/nat.md §9`.
//!
//! Beacons that share a key tell each other which nodes they have, and hand frames over to each other. Every message
//! bears a code made with the key. A message about nodes counts only if it names the present run of its receiver, and
//! is later than those before it; so nothing that was recorded can be played again, in this run or after a restart.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::NodeId;
use pilotage_wire::beacon::{Extension, MAX_SYNC_NODES, NodeIds, NodeList, TAG_LEN};

use super::BeaconConfig;
use super::table::{Seeded, Table};
use crate::scope::canonical;

/// Another beacon.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    /// Its present run, once a message has proved it; else 0.
    boot: u64,
    /// The run that it last named, proved or not: what our next message echoes.
    named: u64,
    /// Highest number of a message of this run.
    last: u64,
    heard: Option<Instant>,
    /// For the frames that we hand over and are handed.
    keys: Option<[[u8; 32]; 2]>,
}

/// A node of another beacon.
#[derive(Debug, Clone, Copy)]
struct Remote {
    peer: u16,
    proven: bool,
    until: Instant,
}

/// The parts of a sync message.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) boot: u64,
    pub(super) echo: u64,
    pub(super) number: u64,
    pub(super) proven: bool,
    pub(super) nodes: NodeIds<'a>,
    pub(super) tag: &'a [u8; TAG_LEN],
}

/// All other beacons.
#[derive(Debug)]
pub(super) struct Peers {
    key: Option<[u8; 32]>,
    boot: u64,
    list: Vec<Peer>,
    remote: HashMap<NodeId, Remote, Seeded>,
    max_remote: usize,
    /// Registered since the last message.
    fresh: VecDeque<NodeId>,
    number: u64,
    /// Where the round through our table goes on.
    round: usize,
    next_round: Option<Instant>,
    next_fresh: Option<Instant>,
    next_purge: Option<Instant>,
}

impl Peers {
    pub(super) fn new(config: &BeaconConfig, seed: u64) -> Self {
        let addresses = if config.peer_key.is_some() { &config.peers[..] } else { &[] };
        let list = addresses.iter().take(MAX_PEERS).map(|&address| Peer {
            address: canonical(address),
            boot: 0,
            named: 0,
            last: 0,
            heard: None,
            keys: None,
        });
        Self {
            key: config.peer_key,
            boot: config.boot,
            list: list.collect(),
            remote: HashMap::with_hasher(Seeded(seed)),
            max_remote: config.max_remote,
            fresh: VecDeque::new(),
            number: 0,
            round: 0,
            next_round: None,
            next_fresh: None,
            next_purge: None,
        }
    }

    pub(super) fn remote(&self) -> usize {
        self.remote.len()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        [self.next_round, self.next_fresh].into_iter().flatten().min()
    }

    pub(super) fn heard(&self, now: Instant) -> Vec<(SocketAddr, Option<Duration>)> {
        let since = |at| now.saturating_duration_since(at);
        self.list.iter().map(|peer| (peer.address, peer.heard.map(since))).collect()
    }

    /// A node has registered here; the others hear of it soon.
    pub(super) fn note_new(&mut self, node: NodeId, now: Instant) {
        if self.list.is_empty() || self.fresh.len() >= MAX_FRESH {
            return; // the round tells it
        }
        self.fresh.push_back(node);
        self.next_fresh.get_or_insert(now + FRESH_DELAY);
        self.next_round.get_or_insert(now);
    }

    /// Which beacon has a node.
    pub(super) fn whose(&self, now: Instant, node: NodeId) -> Option<usize> {
        let remote = self.remote.get(&node).filter(|remote| now < remote.until)?;
        Some(usize::from(remote.peer))
    }

    /// Takes what another beacon says of its nodes; whether it is to be believed.
    pub(super) fn on_sync(&mut self, now: Instant, from: SocketAddr, data: &[u8], told: &Told<'_>) -> bool {
        let Some(key) = self.key else { return false };
        let from = canonical(from);
        let Some(index) = self.list.iter().position(|peer| peer.address == from) else { return false };
        let Extension::Sync { .. } = told.as_message() else { return false };
        let signed = told.as_message().encoded_len() - TAG_LEN;
        let good = data.get(..signed).is_some_and(|signed| same(&sync_tag(&key, signed), told.tag));
        let own_boot = self.boot;
        let peer = &mut self.list[index];
        if !good || told.boot == 0 || told.boot == own_boot || told.boot < peer.boot {
            return false;
        }
        peer.named = told.boot;
        if told.echo != own_boot {
            // It does not know our run yet: our next message tells it.
            self.next_round = Some(self.next_round.map_or(now, |due| due.min(now + FRESH_DELAY)));
            return false;
        }
        if told.boot != peer.boot {
            (peer.boot, peer.last) = (told.boot, 0);
            peer.keys = Some([carry_key(&key, own_boot, told.boot), carry_key(&key, told.boot, own_boot)]);
        }
        if told.number <= peer.last {
            return false;
        }
        peer.last = told.number;
        peer.heard = Some(now);
        for node in told.nodes.iter() {
            self.learn(now, node, index as u16, told.proven);
        }
        true
    }

    fn learn(&mut self, now: Instant, node: NodeId, peer: u16, proven: bool) {
        let remote = Remote { peer, proven, until: now + REMOTE_TTL };
        match self.remote.get_mut(&node) {
            // Who proved a key is not displaced by who did not.
            Some(known) if known.proven && !proven && now < known.until && known.peer != peer => {}
            Some(known) => *known = remote,
            None => {
                if self.remote.len() < self.max_remote {
                    self.remote.insert(node, remote);
                }
            }
        }
    }

    /// Address and code for a frame that is handed over.
    pub(super) fn carriage(
        &self,
        peer: usize,
        proven: bool,
        src: NodeId,
        dst: NodeId,
        frame: &[u8],
    ) -> Option<(SocketAddr, [u8; TAG_LEN])> {
        let peer = self.list.get(peer)?;
        let [key, _] = peer.keys.as_ref()?;
        Some((peer.address, carry_tag(key, proven, src, dst, frame)))
    }

    /// Whether a frame was handed over by another beacon, in this run of both.
    pub(super) fn is_carriage(
        &mut self,
        now: Instant,
        from: SocketAddr,
        (proven, src, dst): (bool, NodeId, NodeId),
        tag: &[u8; TAG_LEN],
        frame: &[u8],
    ) -> bool {
        let from = canonical(from);
        let Some(peer) = self.list.iter_mut().find(|peer| peer.address == from) else { return false };
        let Some([_, key]) = &peer.keys else { return false };
        let good = same(&carry_tag(key, proven, src, dst, frame), tag);
        if good {
            peer.heard = Some(now);
        }
        good
    }

    /// Sends what is due.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        table: &Table,
        ttl: Duration,
        out: &mut dyn FnMut(SocketAddr, &[u8]),
    ) {
        if self.list.is_empty() {
            return;
        }
        if self.next_fresh.is_some_and(|due| due <= now) {
            self.next_fresh = None;
            for proven in [false, true] {
                let fresh = self.fresh.iter().copied().filter(|&node| {
                    table.find(node).and_then(|place| table.get(place)).map(|known| known.is_proven())
                        == Some(proven)
                });
                let fresh: Vec<NodeId> = fresh.collect();
                for nodes in fresh.chunks(MAX_SYNC_NODES) {
                    self.tell(proven, nodes, out);
                }
            }
            self.fresh.clear();
        }
        if self.next_round.is_none_or(|due| due <= now) {
            self.next_round = Some(now + ROUND_STEP);
            self.step_round(now, table, ttl, out);
        }
        if self.next_purge.is_none_or(|due| due <= now) {
            self.next_purge = Some(now + REMOTE_TTL / 2);
            self.remote.retain(|_, remote| now < remote.until);
        }
    }

    /// One step of the round through all registrations: the others forget what they do not hear again.
    fn step_round(
        &mut self,
        now: Instant,
        table: &Table,
        ttl: Duration,
        out: &mut dyn FnMut(SocketAddr, &[u8]),
    ) {
        let mut found = [Vec::new(), Vec::new()];
        let steps = table.places().div_ceil(ROUND_STEPS);
        for place in 0..steps {
            let known = table.at((self.round + place) % table.places().max(1));
            if let Some(known) = known.filter(|known| known.is_live(now, ttl)) {
                found[usize::from(known.is_proven())].push(known.node);
            }
        }
        self.round = (self.round + steps) % table.places().max(1);
        for (proven, nodes) in [false, true].into_iter().zip(&found) {
            for nodes in nodes.chunks(MAX_SYNC_NODES) {
                self.tell(proven, nodes, out);
            }
        }
        if found.iter().all(Vec::is_empty) {
            self.tell(false, &[], out);
        }
    }

    /// One message to each other beacon.
    fn tell(&mut self, proven: bool, nodes: &[NodeId], out: &mut dyn FnMut(SocketAddr, &[u8])) {
        let Some(key) = self.key else { return };
        let list = NodeList::<{ 4 * MAX_SYNC_NODES }>::new(nodes.iter().copied());
        self.number += 1;
        for peer in &self.list {
            let message = |tag| {
                let (boot, echo, number) = (self.boot, peer.named, self.number);
                Extension::Sync { boot, echo, number, proven, nodes: list.ids(), tag }
            };
            let mut buffer = [0; 1_280];
            let Ok(len) = message(&[0; TAG_LEN]).encode(&mut buffer) else { continue };
            let tag = sync_tag(&key, &buffer[..len - TAG_LEN]);
            buffer[len - TAG_LEN..len].copy_from_slice(&tag);
            out(peer.address, &buffer[..len]);
        }
    }
}

impl<'a> Told<'a> {
    fn as_message(&self) -> Extension<'a> {
        let Self { boot, echo, number, proven, nodes, tag } = *self;
        Extension::Sync { boot, echo, number, proven, nodes, tag }
    }
}

fn sync_tag(key: &[u8; 32], signed: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"sync").update(signed);
    cut(&hasher)
}

/// The key of the frames that one run of a beacon hands over to one run of another.
fn carry_key(key: &[u8; 32], from: u64, to: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"carry").update(&from.to_be_bytes()).update(&to.to_be_bytes());
    *hasher.finalize().as_bytes()
}

fn carry_tag(key: &[u8; 32], proven: bool, src: NodeId, dst: NodeId, frame: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[u8::from(proven)]).update(&src.0.to_be_bytes()).update(&dst.0.to_be_bytes());
    hasher.update(frame);
    cut(&hasher)
}

fn cut(hasher: &blake3::Hasher) -> [u8; TAG_LEN] {
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
    tag
}

/// In constant time: whoever could guess byte by byte could make codes.
fn same(a: &[u8; TAG_LEN], b: &[u8; TAG_LEN]) -> bool {
    a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// Other beacons that one knows.
const MAX_PEERS: usize = 16;
/// New nodes that wait to be told of.
const MAX_FRESH: usize = 4_096;
/// How soon the others hear of a new node.
const FRESH_DELAY: Duration = Duration::from_millis(100);
/// Between two steps of the round.
const ROUND_STEP: Duration = Duration::from_secs(1);
/// Steps of a round: each node is told of every 20 s.
const ROUND_STEPS: usize = 20;
/// How long a node of another beacon is known without being told of again.
const REMOTE_TTL: Duration = Duration::from_secs(60);
