//! What a node says about itself.

use serde::{Deserialize, Serialize};

use crate::types::{Member, RaftId};

/// How a node is. Ids are written as 16 hex digits, keys as 64.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's id.
    pub cluster: String,
    /// This node's id.
    pub id: String,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: String,
    /// Why consensus stopped on this node; look-ups go on.
    pub fault: Option<String>,
    /// The term.
    pub term: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<String>,
    /// Last entry of the log.
    pub last_log: u64,
    /// Last entry that was applied.
    pub applied: u64,
    /// Last entry in the snapshot.
    pub snapshot: u64,
    /// Last entry that was purged.
    pub purged: u64,
    /// On a leader: milliseconds since a majority answered.
    pub quorum_ms: Option<u64>,
    /// Voters come or go: for a moment a majority of the old ones and one of the new ones are needed, as far as this node
    /// knows.
    #[serde(default)]
    pub changing: bool,
    /// All members.
    pub members: Vec<MemberStatus>,
}

/// A member in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its cluster port.
    pub endpoint: String,
    /// Its share of records.
    pub weight: u16,
    /// Whether it votes; learners only listen.
    pub voter: bool,
    /// On a leader: the last entry that it has stored.
    pub matched: Option<u64>,
}

/// An id as people see it.
#[must_use]
pub fn id_text(id: RaftId) -> String {
    format!("{id:016x}")
}

/// What [`id_text`] wrote.
#[must_use]
pub fn parse_id(text: &str) -> Option<RaftId> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn status(metrics: &openraft::RaftMetrics<RaftId, Member>, cluster: [u8; 16]) -> Status {
    let index = |id: Option<openraft::LogId<RaftId>>| id.map_or(0, |id| id.index);
    let membership = metrics.membership_config.membership();
    let voters: Vec<RaftId> = membership.voter_ids().collect();
    let member = |(id, member): (&RaftId, &Member)| MemberStatus {
        id: id_text(*id),
        key: hex(&member.key),
        endpoint: member.endpoint.to_string(),
        weight: member.weight,
        voter: voters.contains(id),
        matched: matched(metrics, *id),
    };
    let fault = metrics.running_state.as_ref().err().map(ToString::to_string);
    Status {
        cluster: hex(&cluster),
        id: id_text(metrics.id),
        role: if fault.is_some() { "stopped".into() } else { format!("{:?}", metrics.state).to_lowercase() },
        fault,
        term: metrics.current_term,
        leader: metrics.current_leader.map(id_text),
        last_log: metrics.last_log_index.unwrap_or(0),
        applied: index(metrics.last_applied),
        snapshot: index(metrics.snapshot),
        purged: index(metrics.purged),
        quorum_ms: metrics.millis_since_quorum_ack,
        changing: membership.get_joint_config().len() > 1,
        members: membership.nodes().map(member).collect(),
    }
}

/// On a leader: what a member is known to have.
pub(crate) fn matched(metrics: &openraft::RaftMetrics<RaftId, Member>, id: RaftId) -> Option<u64> {
    if metrics.id == id {
        return metrics.last_log_index;
    }
    metrics.replication.as_ref()?.get(&id).copied().flatten().map(|log| log.index)
}
