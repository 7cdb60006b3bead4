//! The registry's state machine, as a [`Machine`]: claims, and the draft's registry beside them.

use std::collections::VecDeque;

use pilotage_registry::claims::{
    Bad, Batch, Claims, Granted, Limits, LogError, MAX_BATCH, Outcome, PARTITIONS, TreeHead,
};
use pilotage_registry::ledger::{
    self as draft, Bounds, Key, MARK, MAX_TRANSACTIONS, State, Transaction, Value, Verdict, decode_verdicts,
};
use serde::{Deserialize, Serialize};

use super::draft::Inbox;
use crate::Machine;

/// What a snapshot with a draft's registry begins with; without one it is a snapshot of claims.
const BOTH: &[u8; 4] = b"PRS2";

/// Newest leaves of each partition that a node can read back. Older ones are proved by their owners.
pub const KEPT_LEAVES: usize = 4_096;

/// Claims, and the newest leaves; nodes and networks of the draft's registry.
#[derive(Debug)]
pub struct ClaimsMachine {
    claims: Claims,
    leaves: [VecDeque<Granted>; PARTITIONS],
    draft: State,
    inbox: Inbox,
}

impl ClaimsMachine {
    /// Nothing is held.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let (draft, inbox) = (State::new(Bounds::default()), Inbox::default());
        Self { claims: Claims::new(limits), leaves: Default::default(), draft, inbox }
    }

    /// Who holds what.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The draft's registry.
    #[must_use]
    pub fn draft(&self) -> &State {
        &self.draft
    }

    /// The state of a cluster that takes over what one hub has decided alone: its claims ([`Claims::snapshot`]) and the stored
    /// nodes and rows of its draft's registry. The Merkle logs go on where the hub's end.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn of_one_hub(claims: &[u8], registry: &[(Key, Value)]) -> Result<Vec<u8>, String> {
        let mut machine = Self::new(Limits::default());
        machine.claims.install(claims).map_err(|error| error.to_string())?;
        for (number, part) in (0..).zip(registry.chunks(MAX_TRANSACTIONS)) {
            let write = |(key, value): &(Key, Value)| {
                let key = key.encode();
                Transaction { checks: vec![(key.clone(), None)], writes: vec![(key, Some(value.encode()))] }
            };
            let batch = draft::Batch { proposer: 0, number, transactions: part.iter().map(write).collect() };
            let verdicts = decode_verdicts(&machine.draft.apply(&batch.encode())).unwrap_or_default();
            let bad = part.iter().zip(&verdicts).find(|(_, verdict)| **verdict != Verdict::Applied);
            if let Some(((key, _), verdict)) = bad {
                return Err(format!("{key:?} does not fit the others ({verdict:?})"));
            }
            if verdicts.len() != part.len() {
                return Err("the registry's rows cannot be written".into());
            }
        }
        let state = machine.snapshot();
        if state.len() > crate::MAX_SNAPSHOT {
            return Err(format!("a state of {} bytes is too large", state.len()));
        }
        Ok(state)
    }

    /// Claims and nodes of a state, which is checked as far as it can be without its log.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn count(state: &[u8]) -> Result<(usize, usize), String> {
        let mut machine = Self::new(Limits::default());
        machine.install(state)?;
        Ok((machine.claims.len(), machine.draft.nodes()))
    }

    pub(super) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    pub(super) fn leaves(&self, partition: u8, from: u64, limit: usize) -> Result<Vec<Granted>, LogError> {
        let kept =
            self.leaves.get(usize::from(partition)).ok_or(LogError::Store("no such partition".into()))?;
        let first = kept.front().map_or(self.claims.head(partition).size, |leaf| leaf.index);
        if from < first {
            return Err(LogError::Compacted { partition, first });
        }
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        Ok(kept.iter().skip(skip).take(limit).cloned().collect())
    }
}

impl Machine for ClaimsMachine {
    fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        if command.first() == Some(&MARK) {
            return self.draft.apply(command);
        }
        let Ok(batch) = Batch::decode(command) else { return write_outcomes(&[]) };
        let applied = self.claims.apply(&batch);
        for leaf in applied.granted {
            let kept = &mut self.leaves[usize::from(leaf.claim.subject.partition()) % PARTITIONS];
            if kept.len() >= KEPT_LEAVES {
                kept.pop_front();
            }
            kept.push_back(leaf);
        }
        write_outcomes(&applied.outcomes)
    }

    fn snapshot(&self) -> Vec<u8> {
        let claims = self.claims.snapshot();
        if self.draft.is_empty() {
            return claims;
        }
        let len = (claims.len() as u64).to_be_bytes();
        [BOTH, &len[..], &claims, &self.draft.snapshot()].concat()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let (claims, draft) = match snapshot.strip_prefix(BOTH) {
            Some(rest) => split(rest).ok_or("the snapshot is cut off; take another one")?,
            None => (snapshot, None),
        };
        // Both or nothing.
        let mut new = State::new(Bounds::default());
        if let Some(draft) = draft {
            new.install(draft).map_err(|error| error.to_string())?;
        }
        self.claims.install(claims).map_err(|error| error.to_string())?;
        self.leaves = Default::default();
        self.draft.replace(new);
        Ok(())
    }

    fn notice(&self, notice: &[u8]) {
        self.inbox.put(notice);
    }

    /// Heads of a log that this state continues are signed.
    fn vouches(&self, statement: &[u8]) -> Option<Vec<u8>> {
        let head = TreeHead::decode(statement.try_into().ok()?)?;
        self.claims.had_head(&head).then(|| head.signed())
    }
}

/// The two parts behind [`BOTH`].
fn split(rest: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (len, rest) = rest.split_first_chunk::<8>()?;
    let (claims, draft) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*len)).ok()?)?;
    Some((claims, Some(draft)))
}

/// [`Outcome`] between nodes of one version. What is decided before a claim is ordered never travels.
#[derive(Debug, Serialize, Deserialize)]
enum Written {
    Granted(u64),
    TakenBy([u8; 32], u64),
    Expired,
    TooLong,
    Stale,
    NotHolder,
    NotDerived,
    Quota(u16),
    Full,
}

pub(super) fn write_outcomes(outcomes: &[Outcome]) -> Vec<u8> {
    let written: Vec<Written> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Granted { index } => Written::Granted(*index),
            Outcome::TakenBy { agent_id, index } => Written::TakenBy(*agent_id, *index),
            Outcome::Bad(Bad::Expired) => Written::Expired,
            Outcome::Bad(Bad::TooLong) => Written::TooLong,
            Outcome::Bad(Bad::Stale) => Written::Stale,
            Outcome::Bad(Bad::NotDerived) => Written::NotDerived,
            Outcome::Bad(Bad::Quota(most)) => Written::Quota(*most),
            Outcome::Bad(Bad::Full) => Written::Full,
            Outcome::Bad(_) => Written::NotHolder,
        })
        .collect();
    postcard::to_stdvec(&written).unwrap_or_default()
}

pub(super) fn read_outcomes(bytes: &[u8]) -> Option<Vec<Outcome>> {
    let written: Vec<Written> = postcard::from_bytes(bytes).ok()?;
    let outcomes = written.into_iter().map(|written| match written {
        Written::Granted(index) => Outcome::Granted { index },
        Written::TakenBy(agent_id, index) => Outcome::TakenBy { agent_id, index },
        Written::Expired => Outcome::Bad(Bad::Expired),
        Written::TooLong => Outcome::Bad(Bad::TooLong),
        Written::Stale => Outcome::Bad(Bad::Stale),
        Written::NotHolder => Outcome::Bad(Bad::NotHolder),
        Written::NotDerived => Outcome::Bad(Bad::NotDerived),
        Written::Quota(most) => Outcome::Bad(Bad::Quota(most)),
        Written::Full => Outcome::Bad(Bad::Full),
    });
    Some(outcomes.take(MAX_BATCH).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_the_way_to_another_node() {
        let outcomes = vec![
            Outcome::Granted { index: 7 },
            Outcome::TakenBy { agent_id: [3; 32], index: u64::MAX },
            Outcome::Bad(Bad::Expired),
            Outcome::Bad(Bad::TooLong),
            Outcome::Bad(Bad::Stale),
            Outcome::Bad(Bad::NotHolder),
            Outcome::Bad(Bad::NotDerived),
            Outcome::Bad(Bad::Quota(64)),
            Outcome::Bad(Bad::Full),
        ];
        assert_eq!(read_outcomes(&write_outcomes(&outcomes)), Some(outcomes));
        assert_eq!(read_outcomes(&[255; 9]), None);
    }

    #[test]
    fn a_command_that_is_no_batch_changes_nothing() {
        let mut machine = ClaimsMachine::new(Limits::default());
        let before = machine.snapshot();
        assert_eq!(read_outcomes(&machine.apply(b"nonsense")), Some(Vec::new()));
        assert_eq!(machine.snapshot(), before);
    }
}
