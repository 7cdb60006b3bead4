//! Looking for records at the nodes of a map. `spec/replica.md §7`.
//!
//! Two nodes are asked at a time, in the order of the record's key; dead ones are passed over and remembered for a while.
//! What does not verify counts as no answer, and is evidence. Blocking; may be used by several threads.

use super::evidence::{Answer, Evidence, Fault, GRACE, fits};
use super::owner_of;
use crate::book::client::{BookClient, BookError};
use crate::book::message::{Ask, OwnerKey, RecordAnswer, Reply, Request, Told};
use crate::placement::{Map, MapError, MapKeeper, MapNode, SignedMap};
use crate::record::{self, check_time};
use pilotage_wire::record::{Rank, Record};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Nodes asked at once.
const TOGETHER: usize = 2;
/// Idle connections kept per node.
const MAX_IDLE: usize = 8;
/// Entries of the memory of dead nodes.
const MAX_MUTED: usize = crate::placement::MAX_NODES;

/// A record that was found and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The record.
    pub record: Record,
    /// As it was signed.
    pub bytes: Vec<u8>,
    /// The claim of its address, as the node gave it: not verified.
    pub claim: Vec<u8>,
    /// Seconds since the agent's last heartbeat, as a node says: nobody signed that.
    pub seen: Option<u32>,
    /// Who gave it.
    pub node: [u8; 32],
}

/// What a search came to.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// The record with the greatest rank.
    pub best: Option<Sighting>,
    /// Nodes that answered with a true record, or that they have none.
    pub answered: Vec<[u8; 32]>,
    /// Nodes that did not, and why.
    pub failed: Vec<([u8; 32], String)>,
    /// What shows that a node lied.
    pub evidence: Vec<Evidence>,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The node that was to tell it.
    #[error(transparent)]
    Book(#[from] BookError),
    /// It is not believed.
    #[error("{0}; ask the operators for a map that a majority of its nodes have signed")]
    Map(#[from] MapError),
}

/// Knows the map, and who does not answer.
#[derive(Debug)]
pub struct Finder {
    keeper: RwLock<MapKeeper>,
    timeout: Duration,
    mute: Duration,
    idle: Mutex<HashMap<[u8; 32], Vec<BookClient>>>,
    muted: Mutex<HashMap<[u8; 32], Instant>>,
}

#[allow(
    clippy::disallowed_methods,
    reason = "a client is at the IO edge: it remembers for how long a node is dead"
)]
fn now() -> Instant {
    Instant::now()
}

impl Finder {
    /// With a map that is believed. A node that does not answer within `timeout` is asked last for `mute`.
    #[must_use]
    pub fn new(keeper: MapKeeper, timeout: Duration, mute: Duration) -> Self {
        Self { keeper: RwLock::new(keeper), timeout, mute, idle: Mutex::default(), muted: Mutex::default() }
    }

    /// The map in use.
    #[must_use]
    pub fn map(&self) -> Map {
        self.keeper.read().unwrap_or_else(PoisonError::into_inner).current().clone()
    }

    /// Takes a newer map, if those of the known one vouch for it.
    ///
    /// # Errors
    /// [`MapError`]; the known one stays.
    pub fn offer(&self, map: SignedMap) -> Result<bool, MapError> {
        self.keeper.write().unwrap_or_else(PoisonError::into_inner).offer(map)
    }

    /// Asks a node of the map for a newer one.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn renew(&self, node: &MapNode) -> Result<bool, FindError> {
        let Ok(Told::Map(bytes)) = self.ask(node, &Ask::Map) else { return Ok(false) };
        if bytes.is_empty() {
            return Ok(false);
        }
        let known = self.map();
        let offered = SignedMap::decode(&bytes)?;
        if offered.map.epoch <= known.epoch {
            return Ok(false);
        }
        Ok(self.offer(gather(offered, self.timeout, &known))?)
    }

    /// Looks for a record. `unix`: the time, seconds.
    pub fn resolve(&self, owner: &OwnerKey, unix: u64) -> Search {
        let (id, _) = owner_of(owner);
        let (nodes, replicas) = self.order(&id);
        let mut search = Search::default();
        let mut rest = nodes.as_slice();
        let mut answers: Vec<(MapNode, Vec<u8>)> = Vec::new();
        while !rest.is_empty() && !enough(&search, replicas) {
            let count = TOGETHER.saturating_sub(search.answered.len()).clamp(1, rest.len());
            let (wave, tail) = rest.split_at(count);
            rest = tail;
            for (node, told) in self.ask_all(wave, &Ask::Get { owner: *owner, nonce: None }) {
                self.judge(&mut search, &mut answers, owner, node, told, unix);
            }
        }
        self.compare(&mut search, &answers, owner, unix);
        search
    }

    /// The nodes for a key; those that were dead lately last.
    fn order(&self, id: &[u8; 32]) -> (Vec<MapNode>, usize) {
        let keeper = self.keeper.read().unwrap_or_else(PoisonError::into_inner);
        let mut nodes: Vec<MapNode> = keeper.sources(id).into_iter().cloned().collect();
        let replicas = usize::from(keeper.current().replicas);
        drop(keeper);
        let muted = lock(&self.muted);
        nodes.sort_by_key(|node| muted.get(&node.key).is_some_and(|until| *until > now()));
        (nodes, replicas)
    }

    fn ask_all(&self, nodes: &[MapNode], ask: &Ask) -> Vec<(MapNode, Result<Told, String>)> {
        if let [node] = nodes {
            return vec![(node.clone(), self.ask(node, ask))];
        }
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                nodes.iter().map(|node| (node, scope.spawn(move || self.ask(node, ask)))).collect();
            let joined = asked.into_iter().map(|(node, thread)| {
                (node.clone(), thread.join().unwrap_or_else(|_| Err("a thread ended".into())))
            });
            joined.collect()
        })
    }

    fn judge(
        &self,
        search: &mut Search,
        answers: &mut Vec<(MapNode, Vec<u8>)>,
        owner: &OwnerKey,
        node: MapNode,
        told: Result<Told, String>,
        unix: u64,
    ) {
        let (bytes, claim, seen) = match told {
            Ok(Told::Held { record, claim, seen, .. }) => (record, claim, seen),
            Ok(_) => return search.failed.push((node.key, "it answered something else".into())),
            Err(why) => return search.failed.push((node.key, why)),
        };
        if bytes.is_empty() {
            search.answered.push(node.key);
            answers.push((node, bytes));
            return;
        }
        if !fits(&bytes, owner) {
            search.failed.push((node.key, "it gave a record that the agent did not sign".into()));
            let answer = self.attested(&node, owner);
            // What it signs is what counts, if it is a lie as well.
            let answer = answer.filter(|answer| !answer.record.is_empty() && !fits(&answer.record, owner));
            search.evidence.push(evidence(Fault::Forged, &node, owner, bytes, answer, None, unix));
            return;
        }
        search.answered.push(node.key);
        let record = record::verify(&bytes).ok().filter(|record| check_time(record, unix).is_ok());
        if let Some(record) = record {
            let seen = least(search.best.as_ref().and_then(|best| best.seen), seen);
            let better = search.best.as_ref().is_none_or(|best| Rank::of(&bytes) > Rank::of(&best.bytes));
            if better {
                search.best = Some(Sighting { record, bytes: bytes.clone(), claim, seen, node: node.key });
            } else if let Some(best) = &mut search.best {
                best.seen = seen;
            }
        }
        answers.push((node, bytes));
    }

    /// Holds the answers against the best one.
    fn compare(&self, search: &mut Search, answers: &[(MapNode, Vec<u8>)], owner: &OwnerKey, unix: u64) {
        let Some(best) = &search.best else { return };
        if u64::from(best.record.issued).saturating_add(GRACE) >= unix {
            return;
        }
        let worse = |bytes: &[u8]| Rank::of(bytes) < Rank::of(&best.bytes);
        let mut found = Vec::new();
        for (node, bytes) in answers.iter().filter(|(_, bytes)| worse(bytes)) {
            // Only who holds it by the map has to have it.
            let (id, _) = owner_of(owner);
            if !self.map().holders(&id, |_| true).iter().any(|holder| holder.key == node.key) {
                continue;
            }
            let answer = self.attested(node, owner).filter(|answer| worse(&answer.record));
            let fault = if bytes.is_empty() { Fault::Withheld } else { Fault::Old };
            let better = Some(best.bytes.clone());
            found.push(evidence(fault, node, owner, bytes.clone(), answer, better, unix));
        }
        search.evidence.extend(found);
    }

    /// The same question again, with a signature wanted.
    fn attested(&self, node: &MapNode, owner: &OwnerKey) -> Option<Answer> {
        // Not a secret: it has to be new, so that an old answer does not fit.
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&blake3::hash(format!("{:?}{owner:?}", now()).as_bytes()).as_bytes()[..16]);
        match self.ask(node, &Ask::Get { owner: *owner, nonce: Some(nonce) }) {
            Ok(Told::Held { record, attest: Some(attest), .. }) => {
                Some(Answer { nonce, record, attest }).filter(|answer| answer.is_of(&node.key, owner))
            }
            _ => None,
        }
    }

    /// Puts a record at a node.
    ///
    /// # Errors
    /// Why it did not answer.
    pub fn put(&self, node: &MapNode, claim: &[u8], record: &[u8]) -> Result<RecordAnswer, String> {
        match self.ask(node, &Ask::Put { claim: claim.to_vec(), record: record.to_vec() })? {
            Told::Put(answer) => Ok(answer),
            _ => Err("it answered something else".into()),
        }
    }

    /// Asks a node anything.
    ///
    /// # Errors
    /// Why it did not answer.
    pub fn ask(&self, node: &MapNode, ask: &Ask) -> Result<Told, String> {
        let idle = lock(&self.idle).get_mut(&node.key).and_then(Vec::pop);
        // A connection that waited for long may be gone; a new one tells whether the node is.
        let first = idle.and_then(|client| self.ask_on(client, node, ask).ok());
        let result = match first {
            Some(told) => Ok(told),
            None => self.connect(node).and_then(|client| self.ask_on(client, node, ask)),
        };
        let mut muted = lock(&self.muted);
        match &result {
            Ok(_) => {
                muted.remove(&node.key);
            }
            Err(_) if muted.len() < MAX_MUTED || muted.contains_key(&node.key) => {
                muted.insert(node.key, now() + self.mute);
            }
            Err(_) => muted.retain(|_, until| *until > now()),
        }
        result?
    }

    /// The outer error: no answer; the inner: a refusal.
    #[allow(clippy::type_complexity, reason = "two kinds of failure, one place")]
    fn ask_on(
        &self,
        mut client: BookClient,
        node: &MapNode,
        ask: &Ask,
    ) -> Result<Result<Told, String>, String> {
        match client.call(&Request::Replica(ask.clone())).map_err(|error| error.to_string())? {
            Reply::Replica(told) => {
                let mut idle = lock(&self.idle);
                let of = idle.entry(node.key).or_default();
                if of.len() < MAX_IDLE {
                    of.push(client);
                }
                Ok(Ok(told))
            }
            Reply::Error { text, .. } => Ok(Err(text)),
            _ => Ok(Err("it answered something else".into())),
        }
    }

    fn connect(&self, node: &MapNode) -> Result<BookClient, String> {
        let mut last = "it has no endpoint".to_owned();
        for endpoint in &node.endpoints {
            match BookClient::connect(&endpoint.to_string(), self.timeout, vec![node.key]) {
                Ok(client) => return Ok(client),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

fn enough(search: &Search, replicas: usize) -> bool {
    let answered = search.answered.len();
    answered >= replicas || (answered >= TOGETHER && search.best.is_some())
}

fn least(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    one.into_iter().chain(other).min()
}

fn evidence(
    fault: Fault,
    node: &MapNode,
    owner: &OwnerKey,
    record: Vec<u8>,
    answer: Option<Answer>,
    better: Option<Vec<u8>>,
    seen: u64,
) -> Evidence {
    Evidence { fault, node: node.key, owner: *owner, record, answer, better, heads: None, seen }
}

/// The map that a node tells, with the signatures of its nodes that could be had; `None` if it has none.
///
/// # Errors
/// [`FindError`]; the map is not judged yet.
pub fn fetch_map(registry: &str, timeout: Duration) -> Result<Option<SignedMap>, FindError> {
    let mut client = BookClient::connect(registry, timeout, Vec::new())?;
    match client.call(&Request::Replica(Ask::Map))? {
        Reply::Replica(Told::Map(bytes)) if !bytes.is_empty() => {
            let map = SignedMap::decode(&bytes)?;
            let known = map.map.clone();
            Ok(Some(gather(map, timeout, &known)))
        }
        // Older hubs know nothing of maps.
        _ => Ok(None),
    }
}

/// Asks nodes for their signatures until a majority of the nodes of `of` has signed.
fn gather(mut signed: SignedMap, timeout: Duration, of: &Map) -> SignedMap {
    let keys: Vec<[u8; 32]> = of.nodes.iter().map(|node| node.key).collect();
    let nodes = signed.map.nodes.clone();
    for node in nodes {
        if signed.signed_by(&keys) > keys.len() / 2 {
            break;
        }
        if signed.signatures.iter().any(|one| one.key == node.key) {
            continue;
        }
        let ask = |endpoint: &std::net::SocketAddr| {
            let mut client = BookClient::connect(&endpoint.to_string(), timeout, Vec::new()).ok()?;
            match client.call(&Request::Replica(Ask::Map)).ok()? {
                Reply::Replica(Told::Map(bytes)) => SignedMap::decode(&bytes).ok(),
                _ => None,
            }
        };
        let Some(other) = node.endpoints.iter().find_map(ask) else { continue };
        if other.map == signed.map {
            let new = other.signatures.into_iter().filter(|one| one.key == node.key);
            signed.signatures.extend(new);
        }
    }
    signed
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
