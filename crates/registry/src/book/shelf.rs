//! What a [`Book`](super::server::Book) serves: a claim log, and the records that belong to its claims.

use crate::claims::local::{Done, LocalLog, Reader, Write, Written};
use crate::claims::{ClaimLog, LogError, Outcome, Subject};
use pilotage_wire::NetworkId;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// Claims and records, wherever they are kept.
pub trait Shelf: Debug + Send + Sync {
    /// The claims.
    fn log(&self) -> &dyn ClaimLog;

    /// Claims first, then the record. What is in the write must be checked and verified.
    ///
    /// # Errors
    /// [`LogError::Busy`] if too much waits; `done` is not called then.
    fn submit(&self, write: Write, done: Done) -> Result<(), LogError>;

    /// Records stored here.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn records(&self) -> Result<u64, LogError>;

    /// This registry's clock, Unix seconds.
    fn now(&self) -> u64;

    /// The state as it is now, for many questions.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn look(&self) -> Result<Box<dyn Look + '_>, LogError>;
}

/// Answers from the state at one moment. Not to be held for long.
pub trait Look {
    /// Leaf and bytes of the claim that holds a subject while its lease lasts.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn claim(&self, subject: &Subject) -> Result<Option<(u64, Vec<u8>)>, LogError>;

    /// The record of an agent in a network as it was published, also an expired one.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn record(&self, agent_id: &[u8; 32], network: NetworkId) -> Result<Option<Vec<u8>>, LogError>;

    /// At most `most` records behind this key (agent id and network), in the order of their keys.
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn records_after(&self, key: &[u8; 34], most: usize) -> Result<Vec<Vec<u8>>, LogError>;
}

impl Shelf for LocalLog {
    fn log(&self) -> &dyn ClaimLog {
        self
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), LogError> {
        self.submit(write, done)
    }

    fn records(&self) -> Result<u64, LogError> {
        self.records()
    }

    fn now(&self) -> u64 {
        self.now()
    }

    fn look(&self) -> Result<Box<dyn Look + '_>, LogError> {
        Ok(Box::new(self.reader()?))
    }
}

impl Look for Reader {
    fn records_after(&self, key: &[u8; 34], most: usize) -> Result<Vec<Vec<u8>>, LogError> {
        self.records_after(key, most)
    }

    fn claim(&self, subject: &Subject) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        self.claim(subject)
    }

    fn record(&self, agent_id: &[u8; 32], network: NetworkId) -> Result<Option<Vec<u8>>, LogError> {
        self.record(agent_id, network)
    }
}

/// Claims of a log that many nodes share, records in a file of this one. Its [`LocalLog`] must have been opened with the
/// same log as `LocalConfig::holders`.
#[derive(Debug, Clone)]
pub struct SharedShelf {
    claims: Arc<dyn ClaimLog>,
    records: Arc<LocalLog>,
}

impl SharedShelf {
    /// Both together.
    #[must_use]
    pub fn new(claims: Arc<dyn ClaimLog>, records: Arc<LocalLog>) -> Self {
        Self { claims, records }
    }
}

impl Shelf for SharedShelf {
    fn log(&self) -> &dyn ClaimLog {
        &*self.claims
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), LogError> {
        let Write { claims, record } = write;
        if claims.is_empty() {
            return self.records.submit(Write { claims, record }, done);
        }
        let records = self.records.clone();
        let decided = move |outcomes: Result<Vec<Outcome>, LogError>| match (outcomes, record) {
            (Err(error), _) => done(Err(error)),
            (Ok(outcomes), None) => done(Ok(Written { outcomes, record: None })),
            (Ok(outcomes), Some(record)) => {
                // Called by whoever takes it first: the writer, or we if the writer has no room.
                let done = Arc::new(Mutex::new(Some(done)));
                let take =
                    |done: &Mutex<Option<Done>>| done.lock().unwrap_or_else(PoisonError::into_inner).take();
                let last = done.clone();
                let stored = move |written: Result<Written, LogError>| {
                    if let Some(done) = take(&last) {
                        done(written.map(|written| Written { outcomes, record: written.record }));
                    }
                };
                let write = Write { claims: Vec::new(), record: Some(record) };
                if let Err(error) = records.submit(write, Box::new(stored))
                    && let Some(done) = take(&done)
                {
                    done(Err(error));
                }
            }
        };
        self.claims.submit_claims(claims, Box::new(decided))
    }

    fn records(&self) -> Result<u64, LogError> {
        self.records.records()
    }

    fn now(&self) -> u64 {
        self.records.now()
    }

    fn look(&self) -> Result<Box<dyn Look + '_>, LogError> {
        let records = self.records.reader()?;
        // A lease ends by the log's time or the clock, whichever is later.
        let time = self.claims.head(0).time.max(self.now());
        Ok(Box::new(SharedLook { claims: &*self.claims, records, time }))
    }
}

struct SharedLook<'a> {
    claims: &'a dyn ClaimLog,
    records: Reader,
    time: u64,
}

impl Look for SharedLook<'_> {
    fn records_after(&self, key: &[u8; 34], most: usize) -> Result<Vec<Vec<u8>>, LogError> {
        self.records.records_after(key, most)
    }

    fn claim(&self, subject: &Subject) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let held = self.claims.holder(subject)?.filter(|held| held.until > self.time);
        Ok(held.map(|held| (held.index, held.claim.encode())))
    }

    fn record(&self, agent_id: &[u8; 32], network: NetworkId) -> Result<Option<Vec<u8>>, LogError> {
        self.records.record(agent_id, network)
    }
}
