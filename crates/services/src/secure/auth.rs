//! Who is at the other end of a channel.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilotage_proto::crypto::{Identity, verify};
use pilotage_wire::NodeId;

use super::wire::Auth;

/// How long the random values of accepted proofs are remembered.
const REMEMBER: Duration = Duration::from_secs(3600);

/// Random values remembered at a time; with more, new proofs are refused until old ones end.
pub const MAX_REMEMBERED: usize = 65_536;

/// Finds the Ed25519 key of a node: at the registry, or among pinned ones. `None`: not known, so not believed.
pub type Known = Arc<dyn Fn(NodeId) -> Option<[u8; 32]> + Send + Sync>;

/// Random values of accepted proofs, shared by all channels of a program.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    by_age: VecDeque<(Instant, [u8; 16])>,
    values: HashSet<[u8; 16]>,
}

impl Seen {
    /// Notes a value; `false` if it was there, or there is no room.
    pub(super) fn note(&self, random: [u8; 16], now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, old)) = seen.by_age.front().copied()
            && now.saturating_duration_since(at) >= REMEMBER
        {
            seen.by_age.pop_front();
            seen.values.remove(&old);
        }
        if seen.by_age.len() >= MAX_REMEMBERED || !seen.values.insert(random) {
            return false;
        }
        seen.by_age.push_back((now, random));
        true
    }
}

/// How the two ends prove who they are.
#[derive(Clone)]
pub struct Proof {
    /// Our node id.
    pub node: NodeId,
    /// Our key.
    pub identity: Identity,
    /// The keys of others.
    pub known: Known,
    /// Proofs seen before.
    pub seen: Seen,
    /// How far the clocks may differ. The reference allows 5 s, which fails in practice.
    pub skew: Duration,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("node", &self.node).field("skew", &self.skew).finish_non_exhaustive()
    }
}

impl Proof {
    /// With a skew of 30 s and nothing seen yet.
    #[must_use]
    pub fn new(node: NodeId, identity: Identity, known: Known) -> Self {
        Self { node, identity, known, seen: Seen::default(), skew: Duration::from_secs(30) }
    }

    /// What we say about ourselves on a channel where our X25519 key is `own_key`. `time` in seconds since 1970.
    pub(super) fn statement(&self, own_key: &[u8; 32], time: u64, random: [u8; 16]) -> Auth {
        let mut auth = Auth { node: self.node.0, time, random, signature: [0; 64] };
        auth.signature = self.identity.sign(&auth.signed(own_key));
        auth
    }

    /// Checks what the other end says, whose X25519 key is `peer_key`.
    pub(super) fn check(
        &self,
        auth: &Auth,
        peer_key: &[u8; 32],
        time: u64,
        now: Instant,
    ) -> Result<NodeId, &'static str> {
        if auth.time.abs_diff(time) > self.skew.as_secs() {
            return Err("its clock differs too much from ours");
        }
        let key = (self.known)(NodeId(auth.node)).ok_or("its node id is not known")?;
        if !verify(&key, &auth.signed(peer_key), &auth.signature) {
            return Err("its signature is wrong");
        }
        // After the signature: strangers must not fill the memory.
        if !self.seen.note(auth.random, now) {
            return Err("its proof was used before");
        }
        Ok(NodeId(auth.node))
    }
}
