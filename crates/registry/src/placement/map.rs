//! The map of registry nodes, signed.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::score::{better, draw};

/// Most nodes of a map.
pub const MAX_NODES: usize = 64;
/// Most replicas of a record.
pub const MAX_REPLICAS: usize = 7;
/// Most endpoints of a node.
pub const MAX_ENDPOINTS: usize = 4;
/// Most operator keys.
pub const MAX_OPERATORS: usize = 8;
/// Longest encoded map with its signatures.
const MAX_BYTES: usize = 64 << 10;
const MAX_WEIGHT: u16 = 1_000;
const SIGN_CONTEXT: &[u8] = b"pilotage-registry-map-v1\0";
const MAGIC: u8 = 1;

/// A registry node in a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNode {
    /// Its Ed25519 key.
    pub key: [u8; 32],
    /// Its share of records, relative to the others'. 1 to 1,000.
    pub weight: u16,
    /// Where it is.
    pub endpoints: Vec<SocketAddr>,
}

/// All registry nodes at an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Grows with every change.
    pub epoch: u64,
    /// How many nodes hold a record: 3, or 5 for more safety.
    pub replicas: u8,
    /// By key, ascending.
    pub nodes: Vec<MapNode>,
    /// Keys of people who may replace the map alone, for when most nodes are gone. By key, ascending.
    pub operators: Vec<[u8; 32]>,
}

/// Who signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapSignature {
    /// The signer's key.
    pub key: [u8; 32],
    /// Ed25519 over the map.
    pub signature: [u8; 64],
}

/// A map with signatures of nodes or operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedMap {
    /// The map.
    pub map: Map,
    /// Different signers, at most [`MAX_NODES`] and [`MAX_OPERATORS`].
    pub signatures: Vec<MapSignature>,
}

/// Why a map is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Not a map.
    #[error("registry map: the bytes are not a map")]
    Malformed,
    /// A rule of its content.
    #[error("registry map: {0}")]
    Content(&'static str),
    /// The one we have is newer, or another one of the same epoch.
    #[error("registry map of epoch {offered} is older than or contradicts the known one of epoch {known}")]
    Stale {
        /// The epoch we have.
        known: u64,
        /// The epoch offered.
        offered: u64,
    },
    /// Too few of those who may say so have signed.
    #[error("registry map: {valid} valid signatures of {needed} that are needed")]
    Signatures {
        /// Valid signatures of those who count.
        valid: usize,
        /// How many it takes.
        needed: usize,
    },
}

impl Map {
    /// Checks every rule.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&self) -> Result<(), MapError> {
        let ascending = |keys: &mut dyn Iterator<Item = &[u8; 32]>| {
            let keys: Vec<_> = keys.collect();
            keys.windows(2).all(|pair| pair[0] < pair[1])
        };
        let rules = [
            (!self.nodes.is_empty() && self.nodes.len() <= MAX_NODES, "number of nodes"),
            ((1..=MAX_REPLICAS).contains(&usize::from(self.replicas)), "number of replicas"),
            (ascending(&mut self.nodes.iter().map(|node| &node.key)), "nodes are not in ascending order"),
            (self.operators.len() <= MAX_OPERATORS, "number of operators"),
            (ascending(&mut self.operators.iter()), "operators are not in ascending order"),
            (self.nodes.iter().all(|node| (1..=MAX_WEIGHT).contains(&node.weight)), "a weight"),
            (
                self.nodes.iter().all(|node| (1..=MAX_ENDPOINTS).contains(&node.endpoints.len())),
                "number of endpoints of a node",
            ),
        ];
        rules
            .into_iter()
            .try_for_each(|(kept, rule)| if kept { Ok(()) } else { Err(MapError::Content(rule)) })
    }

    /// All nodes in the order in which they are preferred for a key.
    #[must_use]
    pub fn ranked(&self, key: &[u8; 32]) -> Vec<&MapNode> {
        let mut drawn: Vec<_> = self.nodes.iter().map(|node| (draw(&node.key, key), node)).collect();
        drawn.sort_by(|(a, one), (b, other)| {
            better((*a, one.weight), (*b, other.weight)).then_with(|| one.key.cmp(&other.key))
        });
        drawn.into_iter().map(|(_, node)| node).collect()
    }

    /// The nodes that hold a key's record: the first [`Map::replicas`] of its order that `live` says are there.
    pub fn holders<'a>(&'a self, key: &[u8; 32], live: impl Fn(&[u8; 32]) -> bool) -> Vec<&'a MapNode> {
        let live = self.ranked(key).into_iter().filter(|node| live(&node.key));
        live.take(usize::from(self.replicas)).collect()
    }

    fn signed(&self) -> Vec<u8> {
        let mut bytes = SIGN_CONTEXT.to_vec();
        // A vector can always grow.
        bytes.extend(postcard::to_stdvec(self).unwrap_or_default());
        bytes
    }

    /// A node's or an operator's signature.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> MapSignature {
        let signature = key.sign(&self.signed()).to_bytes();
        MapSignature { key: key.verifying_key().to_bytes(), signature }
    }
}

impl Map {
    /// As [`Map::sign`], where the key is somebody else's to use.
    #[must_use]
    pub fn sign_with(&self, key: [u8; 32], sign: impl Fn(&[u8]) -> [u8; 64]) -> MapSignature {
        MapSignature { key, signature: sign(&self.signed()) }
    }
}

impl SignedMap {
    /// As it is stored and sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let map = postcard::to_stdvec(&self.map).unwrap_or_default();
        let mut out = vec![MAGIC, u8::try_from(self.signatures.len()).unwrap_or(u8::MAX)];
        for signature in self.signatures.iter().take(usize::from(u8::MAX)) {
            out.extend(signature.key);
            out.extend(signature.signature);
        }
        out.extend(map);
        out
    }

    /// Reads a map; checks its content, not its signatures.
    ///
    /// # Errors
    /// [`MapError::Malformed`] and [`MapError::Content`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let (&[magic, count], mut rest) = bytes.split_first_chunk::<2>().ok_or(MapError::Malformed)?;
        if magic != MAGIC || bytes.len() > MAX_BYTES || usize::from(count) > MAX_NODES + MAX_OPERATORS {
            return Err(MapError::Malformed);
        }
        let mut signatures = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (key, tail) = rest.split_first_chunk::<32>().ok_or(MapError::Malformed)?;
            let (signature, tail) = tail.split_first_chunk::<64>().ok_or(MapError::Malformed)?;
            signatures.push(MapSignature { key: *key, signature: *signature });
            rest = tail;
        }
        let (map, rest) = postcard::take_from_bytes::<Map>(rest).map_err(|_| MapError::Malformed)?;
        if !rest.is_empty() {
            return Err(MapError::Malformed);
        }
        map.check()?;
        let signed = Self { map, signatures };
        // One form per map: what was signed is what was sent.
        if signed.encode() == bytes { Ok(signed) } else { Err(MapError::Malformed) }
    }

    /// How many of `keys` have signed validly.
    #[must_use]
    pub fn signed_by(&self, keys: &[[u8; 32]]) -> usize {
        let signed = self.map.signed();
        let valid = |signature: &&MapSignature| {
            keys.contains(&signature.key)
                && VerifyingKey::from_bytes(&signature.key).is_ok_and(|key| {
                    key.verify_strict(&signed, &Signature::from_bytes(&signature.signature)).is_ok()
                })
        };
        self.signatures.iter().filter(valid).map(|signature| signature.key).collect::<BTreeSet<_>>().len()
    }
}

/// The newest map that a client believes, and the one before.
#[derive(Debug, Clone)]
pub struct MapKeeper {
    current: SignedMap,
    previous: Option<Map>,
}

impl MapKeeper {
    /// Begins with a map that a majority of its own nodes signed, among them one of the keys that the user trusts.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn trust(map: SignedMap, trusted: &[[u8; 32]]) -> Result<Self, MapError> {
        map.map.check()?;
        majority(&map, &map.map)?;
        if map.signed_by(trusted) == 0 {
            return Err(MapError::Signatures { valid: 0, needed: 1 });
        }
        Ok(Self { current: map, previous: None })
    }

    /// Begins with a registry of one node, which is known by its key and needs no map. Any map that this node signed
    /// replaces it.
    ///
    /// # Errors
    /// [`MapError`] if the node is none.
    pub fn alone(node: MapNode) -> Result<Self, MapError> {
        let map = Map { epoch: 0, replicas: 1, nodes: vec![node], operators: Vec::new() };
        map.check()?;
        Ok(Self { current: SignedMap { map, signatures: Vec::new() }, previous: None })
    }

    /// The newest map.
    #[must_use]
    pub fn current(&self) -> &Map {
        &self.current.map
    }

    /// The same with its signatures, to be kept.
    #[must_use]
    pub fn signed(&self) -> &SignedMap {
        &self.current
    }

    /// The map before, whose holders keep what they have for two refreshes.
    #[must_use]
    pub fn previous(&self) -> Option<&Map> {
        self.previous.as_ref()
    }

    /// Takes a newer map if a majority of the *known* nodes, or one known operator, signed it. `Ok(false)`: the one we
    /// have.
    ///
    /// # Errors
    /// [`MapError`]; the known one stays.
    pub fn offer(&mut self, offered: SignedMap) -> Result<bool, MapError> {
        offered.map.check()?;
        let (known, new) = (self.current.map.epoch, offered.map.epoch);
        if offered.map == self.current.map {
            return Ok(false);
        }
        if new <= known {
            return Err(MapError::Stale { known, offered: new });
        }
        if offered.signed_by(&self.current.map.operators) == 0 {
            majority(&offered, &self.current.map)?;
        }
        let before = std::mem::replace(&mut self.current, offered);
        self.previous = Some(before.map);
        Ok(true)
    }

    /// Whom to ask for a key, best first: its order in the new map, and where that is young, the old holders, who may
    /// have it still. Each node once.
    #[must_use]
    pub fn sources(&self, key: &[u8; 32]) -> Vec<&MapNode> {
        let replicas = usize::from(self.current.map.replicas);
        let mut sources: Vec<&MapNode> = Vec::new();
        let new = self.current.map.ranked(key);
        let (holders, others) = new.split_at(replicas.min(new.len()));
        let old =
            self.previous.iter().flat_map(|map| map.ranked(key).into_iter().take(usize::from(map.replicas)));
        for node in holders.iter().copied().chain(old).chain(others.iter().copied()) {
            if !sources.iter().any(|known| known.key == node.key) {
                sources.push(node);
            }
        }
        sources
    }
}

fn majority(offered: &SignedMap, of: &Map) -> Result<(), MapError> {
    let keys: Vec<[u8; 32]> = of.nodes.iter().map(|node| node.key).collect();
    let (valid, needed) = (offered.signed_by(&keys), keys.len() / 2 + 1);
    if valid >= needed { Ok(()) } else { Err(MapError::Signatures { valid, needed }) }
}
