//! Fields of requests and replies about trust, keys, tags and scores.

use super::json::{as_u32, null_is_empty};
use super::{Key, Signature};
use crate::NodeId;
use serde::{Deserialize, Serialize};

/// `poll_handshakes`, `poll_invites`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSigned {
    /// Who asks.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `report_trust`, `revoke_trust`, `check_trust` (the last is not signed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustPair {
    /// Who trusts.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Whom.
    #[serde(with = "as_u32")]
    pub peer_id: NodeId,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `request_handshake`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHandshake {
    /// Who asks.
    #[serde(with = "as_u32")]
    pub from_node_id: NodeId,
    /// Whom.
    #[serde(with = "as_u32")]
    pub to_node_id: NodeId,
    /// Why, for people.
    #[serde(default)]
    pub justification: String,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `respond_handshake`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespondHandshake {
    /// Who answers.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Whom.
    #[serde(with = "as_u32")]
    pub peer_id: NodeId,
    /// Yes or no.
    pub accept: bool,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// One entry of `poll_handshakes_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// Who asks.
    #[serde(with = "as_u32")]
    pub from_node_id: NodeId,
    /// Why.
    #[serde(default)]
    pub justification: String,
    /// When, Unix seconds.
    #[serde(default)]
    pub timestamp: u64,
}

/// One entry of `poll_handshakes_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeResponse {
    /// Who answers.
    #[serde(with = "as_u32")]
    pub from_node_id: NodeId,
    /// Yes or no.
    pub accept: bool,
    /// When, Unix seconds.
    #[serde(default)]
    pub timestamp: u64,
}

/// `punch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Punch {
    /// Who asks.
    #[serde(with = "as_u32")]
    pub requester_id: NodeId,
    /// One of the two.
    #[serde(with = "as_u32")]
    pub node_a: NodeId,
    /// The other one.
    #[serde(with = "as_u32")]
    pub node_b: NodeId,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// `punch_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PunchAddresses {
    /// One of the two.
    #[serde(with = "as_u32")]
    pub node_a: NodeId,
    /// "ip:port".
    pub node_a_addr: String,
    /// The other one.
    #[serde(with = "as_u32")]
    pub node_b: NodeId,
    /// "ip:port".
    pub node_b_addr: String,
}

/// `set_tags`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTags {
    /// Whose tags.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// All of them; see [`super::normalize_tags`].
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tags: Vec<String>,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `set_task_exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTaskExec {
    /// Who.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Takes tasks.
    pub enabled: bool,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `rotate_key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateKey {
    /// Whose key.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// The key from now on.
    pub new_public_key: Key,
    /// By the old key, over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// By the old key, over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
    /// By the new key, over the same (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_proof: Option<Signature>,
}

/// `set_key_expiry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetKeyExpiry {
    /// Whose key.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// RFC 3339, or "never".
    pub expires_at: String,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `get_key_info_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Whose key.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Since when it is the node's key, RFC 3339.
    pub created_at: String,
    /// The same in days.
    #[serde(default)]
    pub key_age_days: u64,
    /// How often the node changed its key.
    #[serde(default)]
    pub rotate_count: u32,
    /// When it ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// `update_polo_score`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePoloScore {
    /// Whose score.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// To be added.
    pub delta: i64,
    /// The hub's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
}

/// `set_polo_score`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPoloScore {
    /// Whose score.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// The new one.
    pub polo_score: i64,
    /// The hub's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
}

/// `get_polo_score_ok`, `update_polo_score_ok`, `set_polo_score_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoloScore {
    /// Whose score.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in network 0.
    pub address: String,
    /// The score.
    pub polo_score: i64,
}
