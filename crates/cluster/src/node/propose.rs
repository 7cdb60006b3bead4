//! Commands and reads, wherever the leader is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use crate::MAX_COMMAND;
use crate::machine::Machine;
use crate::net::message::{Reply, Request};
use crate::net::{CallError, Link, Net};
use crate::types::{Command, Member, RaftId};

/// Most idle streams to one member that are kept.
const POOL: usize = 16;
/// Longest wait for a leader that another node names: it may be dead.
const ATTEMPT: Duration = Duration::from_millis(1_000);
/// Longest wait of a node that lags behind what it has just been told.
const SEEN: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// No majority, no leader, or no answer in time.
    #[error(
        "no answer from a majority of the cluster within {waited:?} ({last}); it may still happen, asking again is safe"
    )]
    Unavailable {
        /// How long.
        waited: Duration,
        /// What the last attempt said.
        last: String,
    },
    /// This node left consensus.
    #[error("consensus stopped on this node: {0}; repair the cause and start it again")]
    Stopped(String),
    /// Cut it.
    #[error("a command of {0} bytes is too long")]
    TooLong(usize),
}

/// Idle streams to members.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<RaftId, Vec<Link>>>);

impl Pool {
    fn take(&self, net: &Arc<Net>, id: RaftId, member: Member) -> Link {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(&id).and_then(Vec::pop).unwrap_or_else(|| Link::new(net.clone(), id, member))
    }

    /// Only links that have just worked come back; members that are gone are forgotten.
    fn give(&self, id: RaftId, link: Link, members: &[(RaftId, Member)]) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|known, _| members.iter().any(|(id, _)| id == known));
        let links = idle.entry(id).or_default();
        if links.len() < POOL {
            links.push(link);
        }
    }

    /// One of them has failed: the others lead to the same process, which may have been started again since.
    fn forget(&self, id: RaftId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// What somebody waits for.
#[derive(Clone, Copy)]
enum Wish<'a> {
    Command(&'a [u8]),
    Barrier,
}

/// What an attempt came to.
enum Attempt<T> {
    Done(T),
    Again(String),
    Stopped(String),
}

impl<M: Machine> Inner<M> {
    pub(super) async fn propose(&self, command: &[u8], limit: Duration) -> Result<Vec<u8>, ProposeError> {
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLong(command.len()));
        }
        self.until(limit, Wish::Command(command)).await
    }

    /// Until this node has applied what was acknowledged before.
    pub(super) async fn barrier(&self, limit: Duration) -> Result<(), ProposeError> {
        self.until(limit, Wish::Barrier).await.map(drop)
    }

    async fn attempt(&self, wish: Wish<'_>, leader: RaftId, left: Duration) -> Attempt<Vec<u8>> {
        match wish {
            Wish::Command(command) if leader == self.net.me => self.propose_here(command, left).await,
            Wish::Command(command) => {
                match self.ask(leader, &Request::Propose(command.to_vec()), left.min(ATTEMPT)).await {
                    Ok(Reply::Answer(answer)) => Attempt::Done(answer.0),
                    Ok(Reply::Ordered(answer, index)) => self.seen(answer.0, index, left).await,
                    Ok(other) => Attempt::Again(describe(&other)),
                    Err(error) => Attempt::Again(error.to_string()),
                }
            }
            Wish::Barrier => {
                let index = if leader == self.net.me {
                    self.read_index(left).await
                } else {
                    match self.ask(leader, &Request::ReadIndex, left.min(ATTEMPT)).await {
                        Ok(Reply::Index(index)) => Attempt::Done(index),
                        Ok(other) => Attempt::Again(describe(&other)),
                        Err(error) => Attempt::Again(error.to_string()),
                    }
                };
                self.wait_applied(index, left).await
            }
        }
    }

    /// Gives the answer when this node has applied the entry, too: who hears it and looks here finds what it says.
    async fn seen(&self, answer: Vec<u8>, index: u64, left: Duration) -> Attempt<Vec<u8>> {
        let wait = self.raft.wait(Some(left.min(SEEN))).applied_index_at_least(Some(index), "seen").await;
        if let Err(error) = wait {
            tracing::debug!(%error, index, "this node lags behind the answer");
        }
        Attempt::Done(answer)
    }

    async fn wait_applied(&self, index: Attempt<u64>, left: Duration) -> Attempt<Vec<u8>> {
        match index {
            Attempt::Done(index) => {
                let wait = self.raft.wait(Some(left)).applied_index_at_least(Some(index), "barrier").await;
                wait.map_or_else(|error| Attempt::Again(error.to_string()), |_| Attempt::Done(Vec::new()))
            }
            Attempt::Again(text) => Attempt::Again(text),
            Attempt::Stopped(text) => Attempt::Stopped(text),
        }
    }

    /// Attempts with whoever leads, until one works or the time is up. A change of leader ends an attempt.
    async fn until(&self, limit: Duration, wish: Wish<'_>) -> Result<Vec<u8>, ProposeError> {
        let deadline = Instant::now() + limit;
        let mut last = "no leader".to_owned();
        let mut metrics = self.raft.metrics();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProposeError::Unavailable { waited: limit, last });
            }
            let (leader, running) = {
                let metrics = metrics.borrow_and_update();
                (metrics.current_leader, metrics.running_state.clone())
            };
            if let Err(fatal) = running {
                return Err(ProposeError::Stopped(fatal.to_string()));
            }
            let Some(leader) = leader else {
                let _ = timeout(left.min(PAUSE), metrics.changed()).await;
                continue;
            };
            let moved = metrics.wait_for(|now| now.current_leader != Some(leader));
            let outcome = tokio::select! {
                outcome = self.attempt(wish, leader, left) => outcome,
                _ = moved => Attempt::Again("the leader changed".into()),
            };
            match outcome {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Stopped(text) => return Err(ProposeError::Stopped(text)),
                Attempt::Again(text) => last = text,
            }
            sleep(left.min(PAUSE)).await;
        }
    }

    async fn propose_here(&self, command: &[u8], left: Duration) -> Attempt<Vec<u8>> {
        match timeout(left, self.raft.client_write(Command(command.to_vec()))).await {
            Ok(Ok(response)) => Attempt::Done(response.data.0),
            Ok(Err(RaftError::Fatal(error))) => Attempt::Stopped(error.to_string()),
            Ok(Err(RaftError::APIError(error))) => Attempt::Again(error.to_string()),
            Err(_) => Attempt::Again("a majority does not answer".into()),
        }
    }

    async fn read_index(&self, left: Duration) -> Attempt<u64> {
        match timeout(left, self.raft.get_read_log_id()).await {
            Ok(Ok((read, _))) => Attempt::Done(read.map_or(0, |id| id.index)),
            Ok(Err(RaftError::Fatal(error))) => Attempt::Stopped(error.to_string()),
            Ok(Err(RaftError::APIError(error))) => Attempt::Again(error.to_string()),
            Err(_) => Attempt::Again("a majority does not answer".into()),
        }
    }

    /// One question to a member, over a stream that is kept for the next.
    pub(super) async fn ask(
        &self,
        id: RaftId,
        request: &Request,
        limit: Duration,
    ) -> Result<Reply, CallError> {
        let members = self.members();
        let member = members.iter().find(|(known, _)| *known == id).map(|&(_, member)| member);
        let member = member.ok_or_else(|| CallError::Unreachable("no such member".into()))?;
        let mut link = self.pool.take(&self.net, id, member);
        let reply = link.call(request, limit).await.inspect_err(|_| self.pool.forget(id))?;
        self.pool.give(id, link, &members);
        Ok(reply)
    }

    pub(super) async fn answer_propose(&self, command: Vec<u8>) -> Reply {
        match self.raft.client_write(Command(command)).await {
            Ok(response) => Reply::Ordered(response.data, response.log_id.index),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Reply::NotLeader(forward.leader_id)
            }
            Err(error) => Reply::Failed(error.to_string()),
        }
    }

    pub(super) async fn answer_read_index(&self) -> Reply {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => Reply::Index(read.map_or(0, |id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Reply::NotLeader(forward.leader_id)
            }
            Err(error) => Reply::Failed(error.to_string()),
        }
    }
}

fn describe(reply: &Reply) -> String {
    match reply {
        Reply::NotLeader(_) => "the leader changed".into(),
        Reply::Failed(text) => text.clone(),
        _ => "an answer to another question".into(),
    }
}
