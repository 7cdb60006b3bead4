//! Who belongs to the cluster: founding, joining, becoming a voter, leaving.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use openraft::{ChangeMembers, RaftMetrics, ServerState};
use pilotage::Peer;
use subtle::ConstantTimeEq as _;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::{ClusterError, Inner, MAX_MEMBERS, MAX_VOTERS, greeting};
use crate::frame::{Join, proof};
use crate::machine::Machine;
use crate::net::message::{self, Reply, Request, Welcome};
use crate::net::{PORT, read_reply};
use crate::status::{id_text, matched};
use crate::types::{Member, RaftId};

/// Longest wait for a change of members.
const CHANGE: Duration = Duration::from_secs(10);
/// How often the leader looks whether learners have caught up.
const LOOK: Duration = Duration::from_millis(500);
/// A learner that lacks fewer entries has caught up.
const CAUGHT_UP: u64 = 1_000;

impl<M: Machine> Inner<M> {
    /// A new cluster with this node alone.
    pub(super) async fn found(&self) -> Result<(), ClusterError> {
        let mut cluster = [0; 16];
        getrandom::fill(&mut cluster).map_err(|error| ClusterError::System(error.to_string()))?;
        // First the membership: a crash in between leaves a node that is asked again and knows that it has a log.
        let alone = BTreeMap::from([(self.net.me, self.member)]);
        if let Err(error) = self.raft.initialize(alone).await
            && self.members().is_empty()
        {
            return Err(ClusterError::State(error.to_string()));
        }
        self.belongs(cluster, &[])
    }

    fn belongs(&self, cluster: [u8; 16], members: &[(RaftId, Member)]) -> Result<(), ClusterError> {
        self.store.set_cluster(cluster, members).map_err(|error| ClusterError::State(error.to_string()))?;
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = members.to_vec();
        let _ = self.net.cluster.set(cluster);
        Ok(())
    }

    /// Asks the hosts until one lets us in.
    pub(super) async fn join_any(&self, hosts: &[String], patience: Duration) -> Result<(), ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            let mut reasons = Vec::new();
            for host in hosts {
                match self.join_one(host).await {
                    Ok(welcome) => return self.belongs(welcome.cluster, &welcome.members),
                    Err(error) => reasons.push(format!("{host}: {error}")),
                }
            }
            if Instant::now() >= deadline {
                let why = reasons.join("; ");
                let next = "check that the host runs with --cluster, its address, and that both have the same token file";
                return Err(ClusterError::Join(format!("{why}; {next}")));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn join_one(&self, host: &str) -> Result<Welcome, String> {
        let token = self.token.as_deref().ok_or("no token")?;
        let (at, key) = greeting::ask(host).await?;
        let host = Member { key, endpoint: at, weight: 1 };
        let address = host.address().ok_or("unusable key")?;
        let connect = self.net.node.open_async(Peer::At(address, at), PORT);
        let mut stream = timeout(CHANGE, connect)
            .await
            .map_err(|_| "no stream to its UDP port")?
            .map_err(|error| error.to_string())?;
        if self.net.key_of(&stream) != Some(key) {
            return Err("another key answers at its UDP port".into());
        }
        let join = Join {
            id: self.net.me,
            key: self.member.key,
            endpoint: self.member.endpoint,
            weight: self.member.weight,
            proof: proof(token, &self.member.key, &key),
        };
        let bytes = message::join(&join).map_err(|error| error.to_string())?;
        stream.write_all(&bytes).await.map_err(|error| error.to_string())?;
        let reply = timeout(CHANGE + CHANGE, read_reply(&mut stream)).await.map_err(|_| "no answer")?;
        match reply.map_err(|error| error.to_string())? {
            Reply::Welcome(welcome) => {
                let theirs = proof(token, &key, &self.member.key);
                if !bool::from(theirs.ct_eq(&welcome.proof)) {
                    return Err("it does not know the token".into());
                }
                Ok(welcome)
            }
            Reply::Failed(text) => Err(text),
            _ => Err("an answer to another question".into()),
        }
    }

    /// A stranger asks.
    pub(super) async fn answer_join(&self, join: Join) -> Reply {
        let Some(token) = self.token.as_deref() else { return Reply::Failed("no token".into()) };
        let expected = proof(token, &join.key, &self.member.key);
        if !bool::from(expected.ct_eq(&join.proof)) {
            return Reply::Failed("wrong token".into());
        }
        let leader = self.raft.metrics().borrow().current_leader;
        let outcome = match leader {
            Some(leader) if leader == self.net.me => self.answer_admit(join).await,
            Some(leader) => match self.ask(leader, &Request::Admit(join), CHANGE + LOOK).await {
                Ok(reply) => reply,
                Err(error) => Reply::Failed(format!("the leader does not answer: {error}")),
            },
            None => Reply::Failed("the cluster has no leader now".into()),
        };
        match outcome {
            Reply::Done => Reply::Welcome(Welcome {
                cluster: self.net.cluster(),
                members: self.members(),
                proof: proof(token, &self.member.key, &join.key),
            }),
            Reply::NotLeader(_) => Reply::Failed("the leader has just changed".into()),
            other => other,
        }
    }

    /// On the leader: makes the stranger a learner.
    pub(super) async fn answer_admit(&self, join: Join) -> Reply {
        let members = self.members();
        let member = Member { key: join.key, endpoint: join.endpoint, weight: join.weight };
        if let Err(text) = acceptable(&members, join.id, &member) {
            return Reply::Failed(text);
        }
        if members.iter().any(|(id, _)| *id == join.id) {
            return Reply::Done;
        }
        match timeout(CHANGE, self.raft.add_learner(join.id, member, false)).await {
            Ok(Ok(_)) => Reply::Done,
            Ok(Err(error)) => match error.forward_to_leader::<Member>() {
                Some(forward) => Reply::NotLeader(forward.leader_id),
                None => Reply::Failed(error.to_string()),
            },
            Err(_) => Reply::Failed("no majority agrees now".into()),
        }
    }

    /// On the leader: removes a member.
    pub(super) async fn answer_remove(&self, id: RaftId) -> Reply {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        if membership.get_node(&id).is_none() {
            return Reply::Failed(format!("{} is no member", id_text(id)));
        }
        if voters.len() == 1 && voters.contains(&id) {
            return Reply::Failed("the last voter cannot leave; stop it instead".into());
        }
        let change = if voters.contains(&id) {
            ChangeMembers::RemoveVoters(BTreeSet::from([id]))
        } else {
            ChangeMembers::RemoveNodes(BTreeSet::from([id]))
        };
        match timeout(CHANGE, self.raft.change_membership(change, false)).await {
            Ok(Ok(_)) => Reply::Done,
            Ok(Err(error)) => match error.forward_to_leader::<Member>() {
                Some(forward) => Reply::NotLeader(forward.leader_id),
                None => Reply::Failed(error.to_string()),
            },
            Err(_) => Reply::Failed("no majority agrees now".into()),
        }
    }

    pub(super) async fn remove_anywhere(&self, id: RaftId) -> Result<(), ClusterError> {
        let leader = self.raft.metrics().borrow().current_leader;
        let reply = match leader {
            Some(leader) if leader == self.net.me => self.answer_remove(id).await,
            Some(leader) => self
                .ask(leader, &Request::Remove(id), CHANGE + LOOK)
                .await
                .map_err(|error| ClusterError::Change(format!("the leader does not answer: {error}")))?,
            None => return Err(ClusterError::Change("the cluster has no leader now; try again".into())),
        };
        match reply {
            Reply::Done => Ok(()),
            Reply::Failed(text) => Err(ClusterError::Change(text)),
            _ => Err(ClusterError::Change("the leader has just changed; try again".into())),
        }
    }
}

/// Whether a stranger may become a member.
fn acceptable(members: &[(RaftId, Member)], id: RaftId, member: &Member) -> Result<(), String> {
    let text = id_text(id);
    if member.address().is_none() || member.endpoint.port() == 0 || !(1..=1_000).contains(&member.weight) {
        return Err("unusable key, endpoint or weight".into());
    }
    for (other, known) in members {
        if *other == id && known.key != member.key {
            return Err(format!("the id {text} belongs to another key"));
        }
        if *other != id && known.key == member.key {
            // The old file may have voted in a term that the new one knows nothing of.
            let old = id_text(*other);
            return Err(format!("this key is a member as {old} with an earlier file; remove that one first"));
        }
        if *other != id && known.endpoint == member.endpoint {
            return Err(format!(
                "{} is the endpoint of {} already; remove that one first",
                known.endpoint,
                id_text(*other)
            ));
        }
    }
    if members.len() >= MAX_MEMBERS {
        return Err(format!("the cluster has {MAX_MEMBERS} members, which is the most"));
    }
    Ok(())
}

/// On the leader: makes voters of learners that have caught up, so that their number is odd.
pub(super) async fn promote<M: Machine>(inner: Weak<Inner<M>>) {
    loop {
        sleep(LOOK).await;
        let Some(inner) = inner.upgrade() else { return };
        let metrics = inner.raft.metrics().borrow().clone();
        if metrics.running_state.is_err() {
            return;
        }
        let ready = to_promote(&metrics);
        if ready.is_empty() {
            continue;
        }
        let change = inner.raft.change_membership(ChangeMembers::AddVoterIds(ready), true);
        if let Ok(Err(error)) = timeout(CHANGE, change).await {
            tracing::debug!(%error, "learners stay learners for now");
        }
    }
}

fn to_promote(metrics: &RaftMetrics<RaftId, Member>) -> BTreeSet<RaftId> {
    if metrics.state != ServerState::Leader {
        return BTreeSet::new();
    }
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    let last = metrics.last_log_index.unwrap_or(0);
    let caught_up = |id: &RaftId| matched(metrics, *id).is_some_and(|index| index + CAUGHT_UP >= last);
    let mut ready: Vec<RaftId> =
        membership.learner_ids().filter(|id| !voters.contains(id)).filter(caught_up).collect();
    ready.truncate(MAX_VOTERS.saturating_sub(voters.len()));
    if (voters.len() + ready.len()).is_multiple_of(2) {
        ready.pop();
    }
    ready.into_iter().collect()
}
