//! Who is registered where: a table with one look-up per message and a sweep that goes on where it stopped.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::NodeId;
use pilotage_wire::beacon::{Accept, Rank};

use crate::budget::{PrefixBuckets, TokenBucket, mix};

/// A node as the beacon knows it.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    pub(super) seen: Instant,
    /// Asked for deliveries that name their destination.
    pub(super) extended: bool,
    /// Weight of datagrams from this address that has not been spent on answers.
    pub(super) savings: usize,
    pub(super) prefix_slot: usize,
    pub(super) commands: TokenBucket,
    pub(super) relayed_from: TokenBucket,
    pub(super) relayed_to: TokenBucket,
    /// What a node with a key has proved and said.
    pub(super) proof: Option<Box<Proof>>,
}

/// A proved registration.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) key: [u8; 32],
    pub(super) rank: Rank,
    /// Of the cookie: a later proof has a higher one.
    pub(super) stamp: u64,
    pub(super) at: Instant,
    pub(super) accept: Accept,
    /// In order.
    pub(super) permitted: Box<[NodeId]>,
    /// To whom the node sent something lately: they may answer. At most [`MAX_ADDRESSED`].
    pub(super) addressed: Vec<(NodeId, Instant)>,
}

impl Registration {
    pub(super) fn new(node: NodeId, now: Instant, address: SocketAddr, prefix_slot: usize) -> Self {
        Self {
            node,
            address,
            seen: now,
            extended: false,
            savings: 0,
            prefix_slot,
            commands: TokenBucket::default(),
            relayed_from: TokenBucket::default(),
            relayed_to: TokenBucket::default(),
            proof: None,
        }
    }

    /// The same with the budgets that another one has left: moving and proving do not refill them.
    pub(super) fn with_budgets_of(self, old: &Self) -> Self {
        Self { commands: old.commands, relayed_from: old.relayed_from, relayed_to: old.relayed_to, ..self }
    }

    pub(super) fn is_live(&self, now: Instant, ttl: Duration) -> bool {
        now.saturating_duration_since(self.seen) < ttl
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proof.is_some()
    }

    /// Whether the node hears from `src`, which has proved its key or not.
    pub(super) fn accepts(&self, now: Instant, src: NodeId, proven: bool) -> bool {
        let Some(proof) = &self.proof else { return true };
        match proof.accept {
            Accept::Anybody => true,
            Accept::Proven => proven || proof.was_addressed(now, src),
            Accept::Named => {
                proven && proof.permitted.binary_search(&src).is_ok() || proof.was_addressed(now, src)
            }
        }
    }

    /// The node sent `dst` something, and so agrees to its answers.
    pub(super) fn note_addressed(&mut self, now: Instant, dst: NodeId) {
        let Some(proof) = self.proof.as_deref_mut().filter(|proof| proof.accept != Accept::Anybody) else {
            return;
        };
        if let Some(entry) = proof.addressed.iter_mut().find(|(node, _)| *node == dst) {
            entry.1 = now;
        } else if proof.addressed.len() < MAX_ADDRESSED {
            proof.addressed.push((dst, now));
        } else if let Some(oldest) = proof.addressed.iter_mut().min_by_key(|(_, at)| *at) {
            *oldest = (dst, now);
        }
    }
}

impl Proof {
    fn was_addressed(&self, now: Instant, src: NodeId) -> bool {
        self.addressed
            .iter()
            .any(|(node, at)| *node == src && now.saturating_duration_since(*at) < ADDRESSED_FOR)
    }
}

/// Most nodes that are remembered as spoken to by one node.
const MAX_ADDRESSED: usize = 16;
/// How long a node that was spoken to may answer.
const ADDRESSED_FOR: Duration = Duration::from_secs(300);

/// All registrations.
#[derive(Debug)]
pub(super) struct Table {
    // Places stay where they are, so that the sweep can go on where it stopped.
    places: Vec<Option<Registration>>,
    free: Vec<u32>,
    index: HashMap<NodeId, u32, Seeded>,
    /// By whether they proved a key, then by slot of the source prefix.
    per_prefix: [Box<[u16]>; 2],
    proven: usize,
    sweep_at: usize,
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        let counts = || vec![0; PrefixBuckets::SLOTS].into_boxed_slice();
        Self {
            places: Vec::new(),
            free: Vec::new(),
            index: HashMap::with_hasher(Seeded(seed)),
            per_prefix: [counts(), counts()],
            proven: 0,
            sweep_at: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn proven(&self) -> usize {
        self.proven
    }

    pub(super) fn find(&self, node: NodeId) -> Option<u32> {
        self.index.get(&node).copied()
    }

    pub(super) fn get(&self, place: u32) -> Option<&Registration> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Registration> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> Option<&mut Registration> {
        self.get_mut(self.find(node)?)
    }

    /// Nodes of this kind from this source prefix.
    pub(super) fn count_of_prefix(&self, proven: bool, slot: usize) -> u16 {
        self.per_prefix[usize::from(proven)][slot]
    }

    pub(super) fn insert(&mut self, registration: Registration) {
        self.count(&registration, true);
        let node = registration.node;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        });
        self.places[place as usize] = Some(registration);
        self.index.insert(node, place);
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Registration> {
        let place = self.index.remove(&node)?;
        let registration = self.places.get_mut(place as usize)?.take()?;
        self.count(&registration, false);
        self.free.push(place);
        Some(registration)
    }

    /// Forgets what is not live among the next `steps` places.
    pub(super) fn sweep(&mut self, now: Instant, ttl: Duration, steps: usize) {
        for _ in 0..steps.min(self.places.len()) {
            let dead = match self.places.get(self.sweep_at) {
                Some(Some(known)) if !known.is_live(now, ttl) => Some(known.node),
                _ => None,
            };
            if let Some(node) = dead {
                self.remove(node);
            }
            self.sweep_at = (self.sweep_at + 1) % self.places.len();
        }
    }

    /// The registration at a place, for those who go around; and how many places there are.
    pub(super) fn at(&self, place: usize) -> Option<&Registration> {
        self.places.get(place)?.as_ref()
    }

    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    fn count(&mut self, registration: &Registration, more: bool) {
        let proven = usize::from(registration.is_proven());
        let slot = &mut self.per_prefix[proven][registration.prefix_slot];
        if more {
            *slot += 1;
            self.proven += proven;
        } else {
            *slot -= 1;
            self.proven -= proven;
        }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Registration> {
        self.places.iter().flatten()
    }

    #[cfg(test)]
    pub(super) fn is_uncounted(&self) -> bool {
        self.per_prefix.iter().all(|counts| counts.iter().all(|&count| count == 0)) && self.proven == 0
    }
}

/// Hashes node ids under a secret: nobody can choose ids that fall together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeded(pub(super) u64);

impl BuildHasher for Seeded {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.0)
    }
}

#[derive(Debug)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = mix(self.0 ^ u64::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = mix(self.0 ^ u64::from(id));
    }
}
