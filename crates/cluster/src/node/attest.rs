//! Signatures of several members under what follows from the state of each.

use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::Inner;
use crate::machine::Machine;
use crate::net::message::{Reply, Request};
use crate::types::{Member, RaftId};

/// A member's key, and its signature under what the machine made of the statement.
pub type Signature = ([u8; 32], [u8; 64]);

/// Those who answer a moment after the last that was needed are waited for: a client may know other nodes than we asked first.
const GRACE: Duration = Duration::from_millis(20);
/// Until a member that has not yet applied enough is asked again.
const PAUSE: Duration = Duration::from_millis(15);

impl<M: Machine> Inner<M> {
    pub(super) fn voters(&self) -> Vec<(RaftId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let members = metrics.membership_config.membership();
        let voters = members.voter_ids().filter_map(|id| Some((id, *members.get_node(&id)?)));
        voters.collect()
    }

    /// Our own signature, if the statement follows from our state.
    pub(super) fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        let message = self.applied().machine.vouches(statement)?;
        Some(self.net.node.sign(&message))
    }

    async fn ask_for_signature(&self, id: RaftId, member: Member, statement: &[u8]) -> Option<Signature> {
        let request = Request::Attest(statement.to_vec());
        loop {
            match self.ask(id, &request, super::CALL).await {
                Ok(Reply::Attested(bytes)) if bytes.is_empty() => sleep(PAUSE).await,
                Ok(Reply::Attested(bytes)) => return Some((member.key, bytes.try_into().ok()?)),
                // A member of an older version, or one that is going.
                Ok(_) => return None,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// Signatures of voters, each verified, ours included: as soon as there are `need`, or after `limit`.
pub(super) async fn gather<M: Machine>(
    inner: Arc<Inner<M>>,
    statement: Vec<u8>,
    need: usize,
    limit: Duration,
) -> Vec<Signature> {
    let mut deadline = Instant::now() + limit;
    let Some(message) = inner.applied().machine.vouches(&statement) else { return Vec::new() };
    let (mut found, mut asked) = (Vec::new(), JoinSet::new());
    for (id, member) in inner.voters() {
        if id == inner.net.me {
            found.push((member.key, inner.net.node.sign(&message)));
            continue;
        }
        let (inner, statement) = (inner.clone(), statement.clone());
        asked.spawn(async move { inner.ask_for_signature(id, member, &statement).await });
    }
    let mut enough = false;
    loop {
        if found.len() >= need && !enough {
            enough = true;
            deadline = deadline.min(Instant::now() + GRACE);
        }
        match timeout_at(deadline, asked.join_next()).await {
            Ok(Some(Ok(Some(signature)))) if valid(&signature, &message) => found.push(signature),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return found,
        }
    }
}

fn valid((key, signature): &Signature, message: &[u8]) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(signature);
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
}
