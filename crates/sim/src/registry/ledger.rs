//! What a registry has promised, kept beside it, and the comparison with what it does.

use std::collections::BTreeMap;

use pilotage_registry::engine::Record;
use pilotage_wire::NodeId;
use pilotage_wire::registry::Reply;

type Table = BTreeMap<NodeId, Record>;

/// The promises of one registry over its whole life.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Content of the store for certain: all that was committed, in the order of commits.
    durable: Table,
    /// The batch in progress: every version of each node in it, the durable one first.
    batch: BTreeMap<NodeId, Vec<Record>>,
    /// A batch that failed or was cut off: the store has all of it or nothing.
    unsure: Table,
    /// Acknowledged claims.
    owner: BTreeMap<NodeId, [u8; 32]>,
    address: BTreeMap<[u8; 32], NodeId>,
    /// Batches committed.
    generation: u64,
    broken: Option<String>,
}

impl Ledger {
    /// The first broken promise.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    pub(super) fn break_with(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// What must be in the store.
    pub(super) fn durable(&self) -> &Table {
        &self.durable
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// A request staged this version of a node.
    pub(super) fn staged(&mut self, id: NodeId, record: &Record) {
        let durable = self.durable.get(&id);
        let versions = self.batch.entry(id).or_insert_with(|| durable.cloned().into_iter().collect());
        if versions.last() != Some(record) {
            versions.push(record.clone());
        }
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// The batch is durable; its versions may be seen in its replies.
    pub(super) fn committed(&mut self) {
        self.generation += 1;
        for (id, versions) in &self.batch {
            if let Some(last) = versions.last() {
                self.durable.insert(*id, last.clone());
            }
        }
    }

    /// The batch was undone: its replies may not show it, but the disk may have it until the store has recovered.
    pub(super) fn failed(&mut self) {
        self.unsure.extend(newest(&self.batch));
        self.batch.clear();
    }

    /// The replies of the batch are out.
    pub(super) fn released(&mut self) {
        self.batch.clear();
    }

    /// The store works again, and says what the engine says.
    pub(super) fn recovered(&mut self) {
        self.unsure.clear();
    }

    /// The process died.
    pub(super) fn crashed(&mut self) {
        self.failed();
    }

    /// What a new process found. `kept`: on the same disk.
    pub(super) fn loaded(&mut self, found: Table, kept: bool) {
        if kept {
            let mut unsure = self.durable.clone();
            unsure.extend(std::mem::take(&mut self.unsure));
            if found != self.durable && found != unsure {
                self.break_with(self.difference(&found, &unsure));
            }
        } else {
            self.owner = found.iter().map(|(id, record)| (*id, record.public_key)).collect();
            self.address = found.iter().map(|(id, record)| (record.public_key, *id)).collect();
        }
        self.unsure.clear();
        self.durable = found;
    }

    fn difference(&self, found: &Table, unsure: &Table) -> String {
        for (id, record) in &self.durable {
            match found.get(id) {
                None => return format!("registration of node {id} was acknowledged and is forgotten"),
                Some(now) if now != record && unsure.get(id) != Some(now) => {
                    return format!(
                        "record of node {id} is older than acknowledged: {now:?}, was {record:?}"
                    );
                }
                Some(_) => {}
            }
        }
        let stranger = found.keys().find(|id| !unsure.contains_key(id));
        match stranger {
            Some(id) => format!("node {id} is in the store and nobody registered it"),
            None => "a batch was stored in part".to_owned(),
        }
    }

    /// A reply that goes out now.
    pub(super) fn replied(&mut self, reply: &Reply) {
        if let Err(what) = self.check_reply(reply) {
            self.break_with(what);
        }
    }

    fn check_reply(&mut self, reply: &Reply) -> Result<(), String> {
        match reply {
            Reply::Registered(done) => {
                self.claim(done.node_id, done.public_key.0)?;
                let known =
                    self.durable.get(&done.node_id).is_some_and(|r| r.public_key == done.public_key.0);
                ensure(known, || {
                    format!("registration of node {} is acknowledged but not durable", done.node_id)
                })?;
                let endpoint = |r: &Record| r.endpoint.is_some_and(|e| e.to_string() == done.observed_addr);
                self.shown(done.node_id, "endpoint", endpoint)?;
                done.hostname.as_deref().map_or(Ok(()), |name| self.named(done.node_id, Some(name)))
            }
            Reply::SetHostname { node_id, hostname } => {
                self.named(*node_id, Some(hostname.as_str()).filter(|name| !name.is_empty()))
            }
            Reply::Hostname(info) => self.named(info.node_id, Some(&info.hostname)),
            Reply::Lookup(info) => {
                let key = info.public_key.map(|key| key.0);
                self.shown(info.node_id, "key", |record| Some(record.public_key) == key)
            }
            Reply::Resolved(found) => self.shown(found.node_id, "endpoint", |record| {
                record.endpoint.is_some_and(|endpoint| endpoint.to_string() == found.real_addr)
            }),
            _ => Ok(()),
        }
    }

    /// One owner per address and one address per key, for ever.
    fn claim(&mut self, id: NodeId, key: [u8; 32]) -> Result<(), String> {
        let owner = *self.owner.entry(id).or_insert(key);
        let address = *self.address.entry(key).or_insert(id);
        ensure(owner == key, || format!("node {id} was given to two keys"))?;
        ensure(address == id, || format!("one key was given two addresses: {address} and {id}"))
    }

    fn named(&self, id: NodeId, name: Option<&str>) -> Result<(), String> {
        self.shown(id, "name", |record| record.hostname.as_deref() == name)
    }

    /// A reply shows a version that is durable by now, and none older than the batch met.
    fn shown(&self, id: NodeId, what: &str, fits: impl Fn(&Record) -> bool) -> Result<(), String> {
        let seen = match self.batch.get(&id) {
            Some(versions) => versions.iter().any(fits),
            None => self.durable.get(&id).is_some_and(fits),
        };
        ensure(seen, || format!("a reply shows a {what} of node {id} that it does not have"))
    }

    /// The durable state in itself.
    pub(super) fn check_table(&self) -> Result<(), String> {
        let mut names = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for (id, record) in &self.durable {
            if let Some(other) = keys.insert(record.public_key, id) {
                return Err(format!("nodes {other} and {id} have one key"));
            }
            let taken = record.hostname.as_deref().and_then(|name| names.insert(name, id));
            if let Some(other) = taken {
                return Err(format!("nodes {other} and {id} have one name"));
            }
        }
        let lost =
            self.owner.iter().find(|(id, key)| self.durable.get(id).is_none_or(|r| r.public_key != **key));
        lost.map_or(Ok(()), |(id, _)| Err(format!("the claim of node {id} is forgotten")))
    }
}

fn newest(batch: &BTreeMap<NodeId, Vec<Record>>) -> impl Iterator<Item = (NodeId, Record)> {
    batch.iter().filter_map(|(id, versions)| versions.last().map(|last| (*id, last.clone())))
}

fn ensure(holds: bool, otherwise: impl Fn() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

#[cfg(test)]
mod tests {
    use pilotage_registry::engine::Proof;

    use super::*;

    fn record(key: u8, name: &str) -> Record {
        Record {
            public_key: [key; 32],
            salt: 0,
            proof: Proof::Fresh,
            public: true,
            hostname: Some(name.into()),
            endpoint: None,
            lan_addrs: Vec::new(),
            created: 1,
            profile: Default::default(),
        }
    }

    fn table(records: &[(u32, Record)]) -> Table {
        records.iter().map(|(id, record)| (NodeId(*id), record.clone())).collect()
    }

    fn ledger(records: &[(u32, Record)]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.loaded(table(records), false);
        ledger
    }

    fn broken(ledger: &Ledger, words: &str) {
        let what = ledger.verdict().expect_err("must be noticed");
        assert!(what.contains(words), "{what}");
    }

    #[test]
    fn a_batch_that_was_cut_off_is_there_entirely_or_not_at_all() {
        let (old, new) = ([(1, record(1, "a"))], [(1, record(1, "b")), (2, record(2, "c"))]);
        let part = [(1, record(1, "b"))];
        for (found, fine) in [(&old[..], true), (&new[..], true), (&part[..], false)] {
            let mut ledger = ledger(&old);
            new.iter().for_each(|(id, record)| ledger.staged(NodeId(*id), record));
            ledger.crashed();
            ledger.loaded(table(found), true);
            assert_eq!(ledger.verdict().is_ok(), fine, "{:?}", ledger.verdict());
            if !fine {
                broken(&ledger, "stored in part");
            }
        }
    }

    #[test]
    fn after_a_recovery_a_failed_batch_is_gone() {
        let mut ledger = ledger(&[(1, record(1, "a"))]);
        ledger.staged(NodeId(1), &record(1, "b"));
        ledger.failed();
        ledger.recovered();
        ledger.loaded(table(&[(1, record(1, "b"))]), true);
        broken(&ledger, "older than acknowledged");
    }

    #[test]
    fn strangers_in_the_store_are_noticed() {
        let mut ledger = ledger(&[]);
        ledger.loaded(table(&[(1, record(1, "a"))]), true);
        broken(&ledger, "nobody registered it");
    }

    #[test]
    fn a_name_or_key_with_two_owners_is_noticed() {
        let names = ledger(&[(1, record(1, "a")), (2, record(2, "a"))]);
        assert!(names.check_table().expect_err("one name").contains("one name"));
        let keys = ledger(&[(1, record(1, "a")), (2, record(1, "b"))]);
        assert!(keys.check_table().expect_err("one key").contains("one key"));
    }

    #[test]
    fn a_claim_whose_record_is_gone_is_noticed() {
        let mut ledger = ledger(&[(1, record(1, "a"))]);
        ledger.durable.clear();
        assert!(ledger.check_table().expect_err("forgotten").contains("claim of node"));
    }
}
