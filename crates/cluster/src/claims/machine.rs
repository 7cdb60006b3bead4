//! The registry's state machine of claims, as a [`Machine`].

use std::collections::VecDeque;

use pilotage_registry::claims::{
    Bad, Batch, Claims, Granted, Limits, LogError, MAX_BATCH, Outcome, PARTITIONS, TreeHead,
};
use serde::{Deserialize, Serialize};

use crate::Machine;

/// Newest leaves of each partition that a node can read back. Older ones are proved by their owners.
pub const KEPT_LEAVES: usize = 4_096;

/// Claims, and the newest leaves.
#[derive(Debug)]
pub struct ClaimsMachine {
    claims: Claims,
    leaves: [VecDeque<Granted>; PARTITIONS],
}

impl ClaimsMachine {
    /// Nothing is held.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { claims: Claims::new(limits), leaves: Default::default() }
    }

    /// Who holds what.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
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
        self.claims.snapshot()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.claims.install(snapshot).map_err(|error| error.to_string())?;
        self.leaves = Default::default();
        Ok(())
    }

    /// Heads of a log that this state continues are signed.
    fn vouches(&self, statement: &[u8]) -> Option<Vec<u8>> {
        let head = TreeHead::decode(statement.try_into().ok()?)?;
        self.claims.had_head(&head).then(|| head.signed())
    }
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
