//! The log: entries and vote.

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, RaftLogId as _, RaftLogReader};
use redb::{Durability, ReadableDatabase as _, ReadableTable as _};

use super::{
    COMMITTED, LOG, META, PURGED, READ_BYTES, Store, VOTE, blocking, decode, encode, failed, put, read_vote,
};
use crate::types::{Entry, LogId, StorageError, Types, Vote};

/// The log of one node; clones read the same file.
#[derive(Clone, Debug)]
pub(crate) struct LogStore(pub(crate) Store);

impl LogStore {
    fn read(&self, range: impl RangeBounds<u64>, bytes: usize) -> Result<Vec<Entry>, redb::Error> {
        let transaction = self.0.db.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let (mut entries, mut total) = (Vec::new(), 0);
        for row in table.range(range)? {
            let (_, value) = row?;
            total += value.value().len();
            if total > bytes && !entries.is_empty() {
                break;
            }
            entries.push(decode(value.value())?);
        }
        Ok(entries)
    }

    fn state(&self) -> Result<LogState<Types>, redb::Error> {
        let last_purged_log_id: Option<LogId> = self.0.meta(PURGED)?;
        let transaction = self.0.db.begin_read()?;
        let table = transaction.open_table(LOG)?;
        let last = match table.last()? {
            Some((_, value)) => Some(*decode::<Entry>(value.value())?.get_log_id()),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id: last })
    }

    #[cfg(test)]
    pub(super) fn read_all(&self) -> Result<Vec<Entry>, redb::Error> {
        self.read(.., usize::MAX)
    }

    pub(super) fn write(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(), redb::Error> {
        let transaction = self.0.db.begin_write()?;
        {
            let mut table = transaction.open_table(LOG)?;
            for entry in entries {
                table.insert(entry.log_id.index, encode(&entry)?.as_slice())?;
            }
            // Saves a sync of its own; it may lag, since what is not known to be committed is committed again.
            if let Some(committed) = self.0.volatile().committed {
                put(&mut transaction.open_table(META)?, COMMITTED, &committed)?;
            }
        }
        // Durability::Immediate is the default: returns after fsync.
        transaction.commit()?;
        Ok(())
    }

    /// Removes entries; `purged` is the last of them, if they are the oldest ones.
    pub(super) fn remove(
        &self,
        range: impl RangeBounds<u64>,
        purged: Option<LogId>,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.0.db.begin_write()?;
        if purged.is_some() {
            // Old entries that come back after a crash do no harm.
            transaction.set_durability(Durability::None)?;
        }
        {
            let mut table = transaction.open_table(LOG)?;
            table.retain_in(range, |_, _| false)?;
            if let Some(purged) = purged {
                put(&mut transaction.open_table(META)?, PURGED, &purged)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn write_vote(&self, vote: &Vote) -> Result<(), redb::Error> {
        let transaction = self.0.db.begin_write()?;
        put(&mut transaction.open_table(META)?, VOTE, vote)?;
        transaction.commit()?;
        Ok(())
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        blocking(|| self.read((range.start_bound().cloned(), range.end_bound().cloned()), usize::MAX))
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, error))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        blocking(|| self.read(start..end, READ_BYTES))
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        blocking(|| self.state()).map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, error))
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        blocking(|| self.write_vote(vote))
            .map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        blocking(|| read_vote(&self.0)).map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Read, error))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.0.volatile().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let known = self.0.volatile().committed;
        if known.is_some() {
            return Ok(known);
        }
        blocking(|| self.0.meta(COMMITTED))
            .map_err(|error| failed(ErrorSubject::Store, ErrorVerb::Read, error))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let written = blocking(|| self.write(entries));
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the log cannot be written: this node leaves consensus");
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(failed(ErrorSubject::Logs, ErrorVerb::Write, error))
            }
        }
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        blocking(|| self.remove(from.index.., None))
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Delete, error))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        blocking(|| self.remove(..=upto.index, Some(upto)))
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Delete, error))
    }
}
