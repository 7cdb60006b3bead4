//! Fields of requests and replies about networks.

use super::Signature;
use super::json::{as_optional_u32, as_u32, null_is_empty};
use crate::NodeId;
use serde::{Deserialize, Serialize};

/// `list_nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListNodes {
    /// Whose members; 0 = all nodes, for the hub's admin.
    pub network_id: u16,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Only ids above this one (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
}

/// `create_network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNetwork {
    /// The owner.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// "open", "token" or "invite". Empty is "open".
    #[serde(default)]
    pub join_rule: String,
    /// Who knows it may join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The hub's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Roles and policies; here only repeated.
    #[serde(default)]
    pub enterprise: bool,
    /// A token that does for this network what the hub's does for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_admin_token: Option<String>,
}

/// `join_network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinNetwork {
    /// Who joins.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Which.
    pub network_id: u16,
    /// For the rule "token".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Not looked at: invitations are kept by the registry.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub inviter_id: Option<NodeId>,
    /// The hub's or the network's; replaces signature and rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `leave_network`, `delete_network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAction {
    /// Who acts; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Which.
    pub network_id: u16,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `invite_to_network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteToNetwork {
    /// Where to.
    pub network_id: u16,
    /// Who invites; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub inviter_id: Option<NodeId>,
    /// Whom.
    #[serde(with = "as_u32")]
    pub target_node_id: NodeId,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `respond_invite`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespondInvite {
    /// Who answers.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Which invitation.
    pub network_id: u16,
    /// Yes or no.
    pub accept: bool,
    /// Over the string of spec/registry.md §5.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `kick_member`, `promote_member`, `demote_member`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAction {
    /// Which.
    pub network_id: u16,
    /// Who acts; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// On whom.
    #[serde(with = "as_u32")]
    pub target_node_id: NodeId,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over [`super::Request::proof_message`] (ours; the reference signs nothing here).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `transfer_ownership`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOwnership {
    /// Which.
    pub network_id: u16,
    /// Who acts; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The next owner, a member.
    #[serde(with = "as_u32")]
    pub new_owner_id: NodeId,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `rename_network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameNetwork {
    /// Which.
    pub network_id: u16,
    /// Who acts; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The new name.
    pub name: String,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `set_network_policy`. What is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNetworkPolicy {
    /// Which.
    pub network_id: u16,
    /// Who acts; nobody, if an admin token does.
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Most members; 0 = the registry's own bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_members: Option<u32>,
    /// Ports that members may call; empty = all. For the nodes: the registry sees no traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ports: Option<Vec<u16>>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The hub's or the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// Over [`super::Request::proof_message`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `get_network_policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkQuery {
    /// Which.
    pub network_id: u16,
}

/// `get_member_role`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberQuery {
    /// Where.
    pub network_id: u16,
    /// Who.
    #[serde(with = "as_u32")]
    pub target_node_id: NodeId,
}

/// One entry of `list_networks_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Number.
    pub id: u16,
    /// Name.
    pub name: String,
    /// How many.
    #[serde(default)]
    pub members: u64,
    /// "open", "token" or "invite".
    #[serde(default)]
    pub join_rule: String,
    /// As created.
    #[serde(default)]
    pub enterprise: bool,
    /// When, Unix seconds.
    #[serde(default)]
    pub created: u64,
}

/// One entry of `list_nodes_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Who.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in that network.
    #[serde(default)]
    pub address: String,
    /// Visibility.
    #[serde(default)]
    pub public: bool,
    /// Score.
    #[serde(default)]
    pub polo_score: i64,
    /// "owner", "admin" or "member".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// It takes tasks.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub task_exec: bool,
    /// What it calls itself.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where it is; only for public nodes on line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_addr: Option<String>,
    /// Last sign of life, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// Silent too long.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub offline: bool,
}

/// `promote_member_ok`, `demote_member_ok`, `get_member_role_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRole {
    /// Where.
    pub network_id: u16,
    /// Who.
    #[serde(with = "as_u32")]
    pub target_node_id: NodeId,
    /// "owner", "admin" or "member".
    pub role: String,
}

/// `set_network_policy_ok`, `get_network_policy_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Which.
    pub network_id: u16,
    /// Most members; 0 = the registry's own bound.
    #[serde(default)]
    pub max_members: u32,
    /// Ports that members may call; empty = all.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub allowed_ports: Vec<u16>,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// One entry of `poll_invites_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteInfo {
    /// Where to.
    pub network_id: u16,
    /// Who invites; 0 = an admin.
    #[serde(with = "as_u32")]
    pub inviter_id: NodeId,
    /// When, Unix seconds.
    #[serde(default)]
    pub timestamp: u64,
}
