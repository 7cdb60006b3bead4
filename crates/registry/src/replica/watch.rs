//! The latest changes of records, for those who follow them. Sans-IO. `spec/replica.md §6`.
//!
//! A history has a number of its own, made when the node starts, and revisions that grow. Of each record only the latest
//! change is kept. What is older than the bound is forgotten; who asks from there on is told to list everything again.

use crate::book::message::{MAX_EVENTS, OwnerKey, Told, Whose};
use std::collections::{BTreeMap, HashMap};

/// Most changes kept.
pub const MAX_CHANGES: usize = 16_384;
/// Most bytes of records kept.
pub const MAX_BYTES: usize = 8 << 20;

/// Changes since a while.
#[derive(Debug)]
pub struct History {
    number: u64,
    last: u64,
    /// Changes up to here are forgotten.
    floor: u64,
    changes: BTreeMap<u64, (OwnerKey, Vec<u8>)>,
    latest: HashMap<OwnerKey, u64>,
    bytes: usize,
    limits: (usize, usize),
}

impl History {
    /// An empty one. `number`: unpredictable, not 0; another one with each start.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self::with_limits(number, MAX_CHANGES, MAX_BYTES)
    }

    /// As [`History::new`] with bounds of its own.
    #[must_use]
    pub fn with_limits(number: u64, changes: usize, bytes: usize) -> Self {
        Self {
            number: number.max(1),
            last: 0,
            floor: 0,
            changes: BTreeMap::new(),
            latest: HashMap::new(),
            bytes: 0,
            limits: (changes.max(1), bytes),
        }
    }

    /// Its number and its last revision.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.number, self.last)
    }

    /// A record has changed. False if it is the one that is known.
    pub fn push(&mut self, owner: &OwnerKey, record: &[u8]) -> bool {
        if let Some(before) = self.latest.get(owner) {
            if self.changes.get(before).is_some_and(|(_, known)| known == record) {
                return false;
            }
            if let Some((_, old)) = self.changes.remove(before) {
                self.bytes -= old.len();
            }
        }
        self.last += 1;
        self.bytes += record.len();
        self.changes.insert(self.last, (*owner, record.to_vec()));
        self.latest.insert(*owner, self.last);
        while self.changes.len() > self.limits.0 || (self.bytes > self.limits.1 && self.changes.len() > 1) {
            let Some((revision, (owner, record))) = self.changes.pop_first() else { break };
            self.bytes -= record.len();
            self.latest.remove(&owner);
            self.floor = revision;
        }
        true
    }

    /// What has changed since; `None` if nothing has. From revision 0 of history 0 on, the answer is where the history is
    /// now, without changes.
    #[must_use]
    pub fn since(&self, whose: &Whose, history: u64, from: u64) -> Option<Told> {
        let at = |upto, resync, records| Some(Told::Events { history: self.number, upto, resync, records });
        if history != self.number {
            return at(self.last, history != 0, Vec::new());
        }
        if from < self.floor || from > self.last {
            return at(self.last, true, Vec::new());
        }
        let mut records = Vec::new();
        let mut upto = self.last;
        match whose {
            // One agent's latest change is all there is to say.
            Whose::Of(owner) => {
                let revision = self.latest.get(owner).filter(|revision| **revision > from)?;
                records.push(self.changes.get(revision)?.1.clone());
            }
            Whose::All => {
                for (revision, (_, record)) in self.changes.range(from + 1..) {
                    if super::is_private(record) {
                        continue;
                    }
                    records.push(record.clone());
                    if records.len() == MAX_EVENTS {
                        upto = *revision;
                        break;
                    }
                }
            }
        }
        if records.is_empty() { None } else { at(upto, false, records) }
    }

    /// An answer that says that nothing has changed.
    #[must_use]
    pub fn nothing(&self, from: u64) -> Told {
        let resync = from < self.floor;
        Told::Events { history: self.number, upto: self.last, resync, records: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u8) -> OwnerKey {
        [number; 34]
    }

    fn record(number: u8, version: u8) -> Vec<u8> {
        let mut record = vec![0; 20];
        (record[0], record[1]) = (number, version);
        record
    }

    fn events(told: Option<Told>) -> (u64, bool, Vec<Vec<u8>>) {
        match told {
            Some(Told::Events { upto, resync, records, .. }) => (upto, resync, records),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_follows_misses_no_latest_change() {
        let mut history = History::new(7);
        assert_eq!(events(history.since(&Whose::All, 0, 0)), (0, false, vec![]));
        assert!(history.push(&owner(1), &record(1, 1)));
        assert!(!history.push(&owner(1), &record(1, 1)), "nothing has changed");
        history.push(&owner(2), &record(2, 1));
        history.push(&owner(1), &record(1, 2));
        assert_eq!(events(history.since(&Whose::All, 7, 0)), (3, false, vec![record(2, 1), record(1, 2)]));
        assert_eq!(events(history.since(&Whose::All, 7, 2)), (3, false, vec![record(1, 2)]));
        assert_eq!(history.since(&Whose::All, 7, 3), None);
        assert_eq!(events(history.since(&Whose::Of(owner(2)), 7, 1)), (3, false, vec![record(2, 1)]));
        assert_eq!(history.since(&Whose::Of(owner(2)), 7, 2), None);
    }

    #[test]
    fn who_is_too_far_behind_is_told() {
        let mut history = History::with_limits(7, 10, 1 << 20);
        for number in 0..30 {
            history.push(&owner(number), &record(number, 1));
        }
        assert_eq!(events(history.since(&Whose::All, 7, 19)), (30, true, vec![]));
        assert_eq!(events(history.since(&Whose::All, 7, 20)).2.len(), 10);
        assert!(events(history.since(&Whose::All, 7, 31)).1, "a revision that never was");
        assert!(events(history.since(&Whose::All, 6, 20)).1, "another history");
        let mut small = History::with_limits(7, 1_000, 100);
        for number in 0..30 {
            small.push(&owner(number), &record(number, 1));
            assert!(small.bytes <= 100 && small.latest.len() == small.changes.len());
        }
        assert!(events(small.since(&Whose::All, 7, 24)).1);
        assert!(!events(small.since(&Whose::All, 7, 25)).1);
    }

    #[test]
    fn answers_are_bounded_and_private_agents_stay_private() {
        let mut history = History::new(7);
        for number in 0..200 {
            history.push(&owner(number), &record(number, 1));
        }
        let mut private = record(201, 1);
        private[14] = 1;
        private[15] = 1;
        history.push(&owner(201), &private);
        let (mut from, mut seen) = (0, 0);
        while let Some(told) = history.since(&Whose::All, 7, from) {
            let (upto, _, records) = events(Some(told));
            assert!(records.len() <= MAX_EVENTS && upto > from);
            (from, seen) = (upto, seen + records.len());
        }
        assert_eq!(seen, 200);
        assert_eq!(events(history.since(&Whose::Of(owner(201)), 7, 0)).2, vec![private]);
    }
}
