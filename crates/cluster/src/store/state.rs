//! The state machine in memory and its snapshots on disk.

use std::io::Cursor;
use std::sync::PoisonError;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, StorageIOError,
};

use super::{SharedMachine, Store, blocking, failed};
use crate::MAX_SNAPSHOT;
use crate::machine::Machine;
use crate::types::{Answer, Entry, LogId, Member, Membership, RaftId, SnapshotMeta, StorageError, Types};

/// The machine as openraft sees it.
pub(crate) struct StateStore<M> {
    pub(crate) store: Store,
    pub(crate) shared: SharedMachine<M>,
}

impl<M> Clone for StateStore<M> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), shared: self.shared.clone() }
    }
}

impl<M: Machine> StateStore<M> {
    /// Under the lock only as long as the machine needs to write itself down.
    fn take(&self) -> (SnapshotMeta, Vec<u8>) {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        let snapshot_id = match shared.last {
            Some(last) => format!("{}-{}-{}", last.leader_id.term, last.leader_id.node_id, last.index),
            None => "empty".to_owned(),
        };
        let about = SnapshotMeta {
            last_log_id: shared.last,
            last_membership: shared.membership.clone(),
            snapshot_id,
        };
        (about, shared.machine.snapshot())
    }
}

impl<M: Machine> RaftSnapshotBuilder<Types> for StateStore<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (meta, bytes) = blocking(|| self.take());
        if bytes.len() > MAX_SNAPSHOT {
            let text = format!("the state has {} bytes, more than {MAX_SNAPSHOT}", bytes.len());
            return Err(refused(&meta, ErrorVerb::Write, text));
        }
        blocking(|| self.store.set_snapshot(&meta, &bytes))
            .map_err(|error| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl<M: Machine> RaftStateMachine<Types> for StateStore<M> {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        Ok((shared.last, shared.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let answers = blocking(|| {
            let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            let mut answers = Vec::new();
            for entry in entries {
                shared.last = Some(entry.log_id);
                answers.push(match entry.payload {
                    EntryPayload::Blank => Answer::default(),
                    EntryPayload::Normal(command) => Answer(shared.machine.apply(&command.0)),
                    EntryPayload::Membership(members) => {
                        shared.membership = Membership::new(Some(entry.log_id), members);
                        Answer::default()
                    }
                });
            }
            answers
        });
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &openraft::SnapshotMeta<RaftId, Member>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        blocking(|| {
            let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            shared.machine.install(&bytes)?;
            shared.last = meta.last_log_id;
            shared.membership = meta.last_membership.clone();
            Ok(())
        })
        .map_err(|text| refused(meta, ErrorVerb::Read, text))?;
        blocking(|| self.store.set_snapshot(meta, &bytes))
            .map_err(|error| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let stored = blocking(|| self.store.snapshot())
            .map_err(|error| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, error))?;
        Ok(stored.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }))
    }
}

fn refused(meta: &SnapshotMeta, verb: ErrorVerb, text: String) -> StorageError {
    StorageIOError::new(ErrorSubject::Snapshot(Some(meta.signature())), verb, AnyError::error(text)).into()
}
