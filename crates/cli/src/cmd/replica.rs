//! Records at the registry's nodes, what is remembered of them, and evidence against nodes that lie.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pilotage_registry::book::client::{BookError, Found};
use pilotage_registry::book::message::Query;
use pilotage_registry::claims::SignedHead;
use pilotage_registry::placement::{MapKeeper, SignedMap};
use pilotage_registry::replica::cache::{Cache, Known};
use pilotage_registry::replica::evidence::{Evidence, Fault};
use pilotage_registry::replica::find::{Finder, Search, fetch_map};
use pilotage_registry::replica::{owner_key, owner_of};
use pilotage_wire::record::Rank;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Within one command a node that did not answer is not waited for again.
const MUTE: Duration = Duration::from_secs(60);
/// Files of evidence that are kept.
const MAX_EVIDENCE: usize = 256;
/// Largest map that is read, bytes.
const MAX_MAP: u64 = 64 << 10;
const MAP: &str = "registry.map";

/// An agent that was found, and how.
pub(super) struct Looked {
    pub(super) found: Found,
    /// `log`, `replica`, `remembered` or `mainline`.
    source: &'static str,
    /// Seconds since its last heartbeat, as a node says.
    seen: Option<u32>,
    /// Registry nodes that answered, and that did not.
    asked: (usize, usize),
    evidence: Vec<PathBuf>,
}

impl Looked {
    /// What the Mainline DHT has, which is newer than what was found before.
    pub(super) fn by_mainline(known: Option<Self>, record: Known) -> Self {
        let found =
            Found { record: record.record, bytes: record.bytes, claim: None, head: None, proof: None };
        let (asked, evidence) = known.map_or(((0, 0), Vec::new()), |known| (known.asked, known.evidence));
        Self { found, source: "mainline", seen: None, asked, evidence }
    }

    /// For `--json`.
    pub(super) fn add(&self, value: &mut Value) {
        value["source"] = self.source.into();
        value["seen_seconds_ago"] = self.seen.into();
        value["nodes_answered"] = self.asked.0.into();
        value["nodes_silent"] = self.asked.1.into();
        value["evidence"] =
            self.evidence.iter().map(|file| Value::from(file.display().to_string())).collect();
    }

    /// For people: lines behind the others.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(seen) = self.seen {
            text.push_str(&format!("\nlast seen    {seen} s ago"));
        }
        if self.source == "remembered" {
            text.push_str("\nno hub answers: this is what was remembered");
        }
        if self.source == "mainline" {
            text.push_str("\nno hub answers: this is what the agent has put on the Mainline DHT");
        }
        for file in &self.evidence {
            text.push_str(&format!("\na registry node gave a wrong answer; evidence: {}", file.display()));
        }
        text
    }
}

/// What the log's node said, and what the replicas say; the newer record counts.
pub(super) fn look(
    state: &Path,
    registry: &str,
    node: [u8; 32],
    query: &Query,
    result: Result<Found, BookError>,
    now: u64,
) -> Result<Looked, BookError> {
    let owner = match (&result, query) {
        (Ok(found), _) => owner_key(&found.record.agent_id(), found.record.network),
        (Err(BookError::NotFound { .. }), Query::Agent { id, network }) => owner_key(id, *network),
        _ => return result.map(|found| remembered(state, node, found, None, now)),
    };
    let search = finder(state, registry, node).map(|finder| finder.resolve(&owner, now));
    match (result, search) {
        (Ok(found), search) => Ok(remembered(state, node, found, search, now)),
        (Err(_), Some(Search { best: Some(best), answered, failed, evidence, .. })) => {
            let found =
                Found { record: best.record, bytes: best.bytes, claim: None, head: None, proof: None };
            let files = evidence.iter().map(|evidence| write(state, evidence)).collect();
            let asked = (answered.len(), failed.len());
            Ok(Looked { found, source: "replica", seen: best.seen, asked, evidence: files })
        }
        (Err(error), _) => Err(error),
    }
}

fn remembered(state: &Path, node: [u8; 32], mut found: Found, search: Option<Search>, now: u64) -> Looked {
    let (mut source, mut seen, mut asked, mut evidence) = ("log", None, (0, 0), Vec::new());
    if let Some(search) = search {
        asked = (search.answered.len(), search.failed.len());
        evidence = search.evidence.iter().map(|evidence| write(state, evidence)).collect();
        if let Some(best) = search.best {
            seen = best.seen;
            if Rank::of(&best.bytes) > Rank::of(&found.bytes) {
                (found.record, found.bytes, source) = (best.record, best.bytes, "replica");
            }
        }
    }
    // For the day when no hub answers.
    if let Ok(mut cache) = Cache::open(&state.join("records"), vec![node], now) {
        cache.put(&found, wall());
    }
    Looked { found, source, seen, asked, evidence }
}

/// The nodes that hold records; a registry without a map is one node.
fn finder(state: &Path, registry: &str, node: [u8; 32]) -> Option<Finder> {
    let keeper = match fetch_map(registry, TIMEOUT) {
        Ok(Some(map)) => MapKeeper::trust(map, &[node]),
        Ok(None) => {
            use std::net::ToSocketAddrs as _;
            let endpoints = registry.to_socket_addrs().ok()?.take(4).collect();
            MapKeeper::alone(pilotage_registry::placement::MapNode { key: node, weight: 1, endpoints })
        }
        Err(error) => {
            tracing::warn!(%error, "the registry's map is not used");
            return None;
        }
    };
    match keeper {
        Ok(keeper) => {
            if !keeper.signed().signatures.is_empty() {
                keep_map(state, keeper.signed());
            }
            Some(Finder::new(keeper, TIMEOUT, MUTE))
        }
        Err(error) => {
            tracing::warn!(%error, "the registry's map is not believed");
            None
        }
    }
}

fn keep_map(state: &Path, map: &SignedMap) {
    let path = state.join(MAP);
    let part = path.with_extension("new");
    let dir = super::create_private_dir(state);
    if let Err(error) =
        dir.and_then(|()| fs::write(&part, map.encode())).and_then(|()| fs::rename(&part, &path))
    {
        tracing::warn!(%error, file = %path.display(), "cannot remember the registry's map");
    }
}

/// From the other nodes of the map that we have, and from records that were verified before.
pub(super) fn without_hub(state: &Path, trusted: &[[u8; 32]], query: &Query, now: u64) -> Option<Looked> {
    let map = kept_map(state);
    let cache = cache(state, trusted, now)?;
    let known = cache.get(query, now);
    let owner = match (query, &known) {
        (Query::Agent { id, network }, _) => Some(owner_key(id, *network)),
        (_, Some(known)) => Some(owner_key(&known.record.agent_id(), known.record.network)),
        _ => None,
    }?;
    let search = map.map(|keeper| Finder::new(keeper, TIMEOUT, MUTE).resolve(&owner, now));
    let (mut seen, mut asked, mut evidence) = (None, (0, 0), Vec::new());
    let mut found = known.map(|known| (known.record, known.bytes, "remembered"));
    if let Some(search) = search {
        asked = (search.answered.len(), search.failed.len());
        evidence = search.evidence.iter().map(|evidence| write(state, evidence)).collect();
        if let Some(best) = search.best {
            seen = best.seen;
            let newer = found.as_ref().is_none_or(|(_, bytes, _)| Rank::of(&best.bytes) > Rank::of(bytes));
            if newer {
                found = Some((best.record, best.bytes, "replica"));
            }
        }
    }
    let (record, bytes, source) = found?;
    let found = Found { record, bytes, claim: None, head: None, proof: None };
    Some(Looked { found, source, seen, asked, evidence })
}

/// What was verified before, by the keys that were believed.
pub(super) fn cache(state: &Path, trusted: &[[u8; 32]], now: u64) -> Option<Cache> {
    let mut nodes: Vec<[u8; 32]> = trusted.to_vec();
    if let Some(keeper) = kept_map(state) {
        nodes.extend(keeper.current().nodes.iter().map(|node| node.key));
    }
    nodes.extend(believed_keys(state));
    Cache::open(&state.join("records"), nodes, now).ok()
}

fn kept_map(state: &Path) -> Option<MapKeeper> {
    let path = state.join(MAP);
    let small = fs::metadata(&path).ok()?.len() <= MAX_MAP;
    let map = SignedMap::decode(&fs::read(&path).ok().filter(|_| small)?).ok()?;
    // It was believed when it was kept; that a majority signed it is looked at again.
    let keys: Vec<[u8; 32]> = map.map.nodes.iter().map(|node| node.key).collect();
    MapKeeper::trust(map, &keys).ok()
}

/// Keys of hubs that were believed, and of the nodes of their clusters: as in the files of their heads.
fn believed_keys(state: &Path) -> Vec<[u8; 32]> {
    let files = fs::read_dir(state).into_iter().flatten().flatten().map(|file| file.path());
    let heads = files.filter(|path| path.extension().is_some_and(|extension| extension == "heads")).take(16);
    heads.filter_map(|path| Some(super::record::read_heads(&path).ok()?.0)).flatten().collect()
}

/// Two logs of one size.
pub(super) fn two_heads(
    state: &Path,
    node: [u8; 32],
    heads: &(SignedHead, SignedHead),
    seen: u64,
) -> PathBuf {
    let heads = Some(Box::new(heads.clone()));
    let (fault, record) = (Fault::TwoHeads, Vec::new());
    let owner = [0; 34];
    write(state, &Evidence { fault, node, owner, record, answer: None, better: None, heads, seen })
}

/// Writes evidence to a file of its own, which is given.
fn write(state: &Path, evidence: &Evidence) -> PathBuf {
    let dir = state.join("evidence");
    let (agent, network) = owner_of(&evidence.owner);
    let value = json!({
        "fault": evidence.fault.name(),
        "node": hex::encode(evidence.node),
        "seen": evidence.seen,
        "agent": hex::encode(agent),
        "network": network.0,
        "anybody_can_check_it": evidence.is_portable(),
        "record_given": hex::encode(&evidence.record),
        "signed_answer": evidence.answer.as_ref().map(|answer| json!({
            "nonce": hex::encode(answer.nonce),
            "record": hex::encode(&answer.record),
            "time": answer.attest.time,
            "signature": hex::encode(answer.attest.signature),
        })),
        "better_record": evidence.better.as_ref().map(hex::encode),
        "heads": evidence.heads.as_ref().map(|heads| [hex::encode(heads.0.encode()), hex::encode(heads.1.encode())]),
        "how_to_check": "spec/replica.md 7",
    });
    let name =
        format!("{}-{}-{}.json", evidence.seen, evidence.fault.name(), hex::encode(&evidence.node[..4]));
    let path = dir.join(name);
    let full = fs::read_dir(&dir).is_ok_and(|files| files.count() >= MAX_EVIDENCE);
    if full {
        tracing::warn!(dir = %dir.display(), "no more evidence is kept there; look at it and remove it");
        return path;
    }
    let made = super::create_private_dir(&dir).and_then(|()| fs::write(&path, format!("{value:#}\n")));
    if let Err(error) = made {
        tracing::warn!(%error, file = %path.display(), "cannot write the evidence");
    }
    path
}

#[allow(clippy::disallowed_methods, reason = "a command line tool reads the clock")]
fn wall() -> SystemTime {
    SystemTime::now()
}
