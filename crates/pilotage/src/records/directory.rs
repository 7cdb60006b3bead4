//! A directory that everybody can read and write, as the last place to look (spec/replica.md §9).
//!
//! What it is made of is its own affair; pilotage-mainline is one. Nothing that comes from it is believed: an agent is found
//! there by those who know its key beforehand, and its own signature says that the record is the agent's.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use pilotage_registry::book::message::Query;
use pilotage_registry::replica::cache::Known;
use pilotage_registry::replica::public::{self, NotPublic, Public, Refused, Tally};
use pilotage_wire::{NetworkId, addressing};

use super::publish::{LIFE, SALTS, endpoints, sign};
use super::{Inner, lock, spawn, unix};
use crate::node::Node;

/// What was looked for is not looked for again before this has passed.
const AGAIN: Duration = Duration::from_secs(60);
/// Whether an agent that is remembered has moved is not looked up again before this has passed.
const AFRESH: Duration = Duration::from_secs(600);
/// Questions that are remembered as asked.
const MAX_ASKED: usize = 256;
/// Agents that are looked up afresh at a time.
const MAX_AFRESH: usize = 2;

/// Signs with the node's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// A place that everybody can read and write. All calls may come from several threads.
pub trait Directory: fmt::Debug + Send + Sync {
    /// One word, as `trace` shows it.
    fn name(&self) -> &'static str;
    /// From now on this record is to be found there, until another one of its key is given. Must not block.
    fn publish(&self, record: Public, sign: Sign);
    /// What lies there under a key: nobody has verified it. A handful at most; blocks for seconds at most.
    fn find(&self, key: &[u8; 32], network: NetworkId) -> Vec<Vec<u8>>;
    /// How it stands.
    fn status(&self) -> DirectoryStatus;
}

/// How a directory stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectoryStatus {
    /// Times that the record was stored there.
    pub published: u64,
    /// Nodes that took it the last time.
    pub stored_at: u32,
    /// Look-ups.
    pub asked: u64,
    /// Answers that the directory itself did not believe.
    pub refused: u64,
    /// The last thing that went wrong, until the next success.
    pub last_error: Option<String>,
}

/// A directory, and what became of what was found there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectoryUse {
    /// Which one.
    pub name: &'static str,
    /// How it stands.
    pub status: DirectoryStatus,
    /// What was found, and refused.
    pub tally: Tally,
}

/// What was asked lately, and when.
#[derive(Debug, Default)]
pub(super) struct Asked(VecDeque<(Query, Instant)>);

impl Asked {
    /// Whether this is the first time for so long.
    fn is_first(&mut self, query: &Query, now: Instant, again: Duration) -> bool {
        self.0.retain(|(_, at)| now.saturating_duration_since(*at) < AFRESH);
        let recent =
            |(asked, at): &(Query, Instant)| asked == query && now.saturating_duration_since(*at) < again;
        if self.0.iter().any(recent) {
            return false;
        }
        self.0.retain(|(asked, _)| asked != query);
        if self.0.len() >= MAX_ASKED {
            self.0.pop_front();
        }
        self.0.push_back((query.clone(), now));
        true
    }
}

/// How the directory is used, for the status.
pub(super) fn status(inner: &Inner) -> Option<DirectoryUse> {
    let directory = inner.config.directory.as_ref()?;
    let tally = lock(&inner.tally).clone();
    Some(DirectoryUse { name: directory.name(), status: directory.status(), tally })
}

/// Puts a record there, unless the agent is private.
pub(super) fn show(inner: &Inner, node: &Node, record: &[u8]) {
    let Some(directory) = &inner.config.directory else { return };
    match Public::new(record) {
        Ok(record) => {
            let identity = node.inner.identity.clone();
            directory.publish(record, Arc::new(move |message| identity.sign(message)));
        }
        Err(NotPublic::Private) => tracing::debug!("a private agent is not shown to everybody"),
        Err(error) => tracing::warn!(%error, "record not shown to everybody"),
    }
}

/// Looks there for an agent that nobody else knows where to find. `pinned`: its key, where the question is about a peer
/// that was met; else a claim in force has to name the key.
pub(super) fn ask(inner: &Inner, query: &Query, pinned: Option<[u8; 32]>) -> Option<Known> {
    inner.config.directory.as_ref()?;
    let key = pinned.or_else(|| lock(&inner.cache).key(query, unix().as_secs()))?;
    if !lock(&inner.asked).is_first(query, Instant::now(), AGAIN) {
        return None;
    }
    fetch(inner, query, &key)
}

/// Looks whether an agent that is remembered says something newer there. Nobody waits for it.
pub(super) fn ask_afresh(inner: &Arc<Inner>, query: &Query, key: [u8; 32]) {
    if inner.config.directory.is_none() || !lock(&inner.asked).is_first(query, Instant::now(), AFRESH) {
        return;
    }
    if inner.afresh.fetch_add(1, Ordering::AcqRel) >= MAX_AFRESH {
        inner.afresh.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let (of_thread, query) = (inner.clone(), query.clone());
    let run = move || {
        fetch(&of_thread, &query, &key);
        of_thread.afresh.fetch_sub(1, Ordering::AcqRel);
    };
    if spawn("pilotage-afresh", run).is_err() {
        inner.afresh.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The newest good record under this key, if it is newer than what is remembered; it is remembered.
fn fetch(inner: &Inner, query: &Query, key: &[u8; 32]) -> Option<Known> {
    let directory = inner.config.directory.as_ref()?;
    let network = query.network();
    let found = directory.find(key, network);
    let last = lock(&inner.cache).last(key, network);
    let mut tally = lock(&inner.tally);
    let found = found.iter().map(Vec::as_slice);
    let best = public::best(key, network, found, last.as_ref(), unix().as_secs(), &mut tally)?;
    if matches!(query, Query::Address { node, .. } if *node != best.record.node) {
        tally.taken -= 1;
        tally.refuse(Refused::Other);
        return None;
    }
    drop(tally);
    lock(&inner.cache).renew(&best.record, &best.bytes, SystemTime::now());
    Some(best)
}

/// What a node says of itself while no registry has answered yet: its address without a claim, and no name.
#[derive(Debug, Default)]
pub(super) struct Alone {
    said: Option<Vec<SocketAddr>>,
    issued: u64,
    seq: u64,
}

impl Alone {
    /// Signs a record and shows it, if there is a directory and something new to say.
    pub(super) fn step(&mut self, inner: &Inner, node: &Node) -> Result<(), String> {
        if inner.config.directory.is_none() || inner.config.private {
            return Ok(());
        }
        let (here, now) = (endpoints(node, false), unix());
        let old = now.as_secs().saturating_sub(self.issued) > u64::from(LIFE) / 2;
        if self.said.as_ref() == Some(&here) && !old {
            return Ok(());
        }
        let address = node.address();
        let salt = addressing::node_ids(&node.public_key()).take(SALTS).find(|(_, id)| *id == address.node);
        let (salt, _) = salt.ok_or("the node's address does not follow from its key")?;
        self.seq = (self.seq + 1).max(now.as_millis() as u64);
        let record = sign(inner, node, salt, None, &here, self.seq)?;
        show(inner, node, &record);
        (self.said, self.issued) = (Some(here), now.as_secs());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage_wire::NodeId;

    #[test]
    fn a_question_is_asked_once_in_a_while_and_few_are_remembered() {
        let query = |node| Query::Address { network: NetworkId(0), node: NodeId(node) };
        let (mut asked, begin) = (Asked::default(), Instant::now());
        assert!(asked.is_first(&query(1), begin, AGAIN));
        assert!(!asked.is_first(&query(1), begin + AGAIN / 2, AGAIN));
        assert!(!asked.is_first(&query(1), begin + AGAIN, AFRESH));
        assert!(asked.is_first(&query(1), begin + AGAIN, AGAIN));
        for node in 2..=MAX_ASKED as u32 + 1 {
            assert!(asked.is_first(&query(node), begin + AGAIN, AGAIN));
        }
        assert_eq!(asked.0.len(), MAX_ASKED);
        assert!(asked.is_first(&query(1), begin + AGAIN, AGAIN), "forgotten for the others");
        assert!(asked.is_first(&query(2), begin + 2 * AFRESH, AGAIN));
        assert_eq!(asked.0.len(), 1, "old ones go");
    }
}
