//! All replies.

use super::json::{as_u32, encode, null_is_empty, parse};
use super::{
    Beacon, FrameError, HandshakeRequest, HandshakeResponse, HostnameInfo, InviteInfo, Key, KeyInfo,
    MemberInfo, MemberRole, MessageError, NetworkInfo, NetworkPolicy, NodeInfo, PoloScore, PunchAddresses,
    Registered, Resolved,
};
use crate::NodeId;
use core::fmt;
use serde::{Deserialize, Serialize};

/// A reply of the registry (spec/registry.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Reply {
    /// To `challenge` (ours).
    #[serde(rename = "challenge_ok")]
    Challenge {
        /// To be signed on this connection, once, within a minute.
        nonce: Key,
    },
    /// To `register`.
    #[serde(rename = "register_ok")]
    Registered(Registered),
    /// To `heartbeat`.
    #[serde(rename = "heartbeat_ok")]
    Heartbeat {
        /// Registry's clock, Unix seconds.
        time: u64,
        /// The key ends within a week.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        key_expiry_warning: bool,
    },
    /// To `lookup`.
    #[serde(rename = "lookup_ok")]
    Lookup(NodeInfo),
    /// To `resolve`.
    #[serde(rename = "resolve_ok")]
    Resolved(Resolved),
    /// To `resolve_hostname`.
    #[serde(rename = "resolve_hostname_ok")]
    Hostname(HostnameInfo),
    /// To `set_hostname`.
    #[serde(rename = "set_hostname_ok")]
    SetHostname {
        /// Whose name.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// The name as stored.
        #[serde(default)]
        hostname: String,
    },
    /// To `set_visibility`.
    #[serde(rename = "set_visibility_ok")]
    SetVisibility {
        /// Whose visibility.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// "public" or "private".
        visibility: String,
    },
    /// To `deregister`.
    #[serde(rename = "deregister_ok")]
    Deregistered,
    /// To `beacon_register`.
    #[serde(rename = "beacon_register_ok")]
    BeaconRegistered {
        /// As asked.
        beacon_id: u32,
    },
    /// To `beacon_list`.
    #[serde(rename = "beacon_list_ok")]
    BeaconList {
        /// Known beacons.
        #[serde(default, deserialize_with = "null_is_empty")]
        beacons: Vec<Beacon>,
    },
    /// To `set_tags`.
    #[serde(rename = "set_tags_ok")]
    SetTags {
        /// Whose tags.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// As stored.
        #[serde(default, deserialize_with = "null_is_empty")]
        tags: Vec<String>,
    },
    /// To `set_task_exec`.
    #[serde(rename = "set_task_exec_ok")]
    SetTaskExec {
        /// Who.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// As stored.
        task_exec: bool,
    },
    /// To `rotate_key`.
    #[serde(rename = "rotate_key_ok")]
    KeyRotated {
        /// Whose key.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// Unchanged.
        address: String,
        /// The new key.
        public_key: Key,
    },
    /// To `set_key_expiry`.
    #[serde(rename = "set_key_expiry_ok")]
    KeyExpirySet {
        /// Whose key.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// RFC 3339, or "never".
        expires_at: String,
    },
    /// To `get_key_info`.
    #[serde(rename = "get_key_info_ok")]
    KeyInfo(KeyInfo),
    /// To `get_polo_score`.
    #[serde(rename = "get_polo_score_ok")]
    PoloScore(PoloScore),
    /// To `update_polo_score`.
    #[serde(rename = "update_polo_score_ok")]
    PoloScoreUpdated(PoloScore),
    /// To `set_polo_score`.
    #[serde(rename = "set_polo_score_ok")]
    PoloScoreSet(PoloScore),
    /// To `punch`.
    #[serde(rename = "punch_ok")]
    Punch(PunchAddresses),
    /// To `report_trust`.
    #[serde(rename = "report_trust_ok")]
    TrustReported,
    /// To `revoke_trust`.
    #[serde(rename = "revoke_trust_ok")]
    TrustRevoked,
    /// To `check_trust`.
    #[serde(rename = "check_trust_ok")]
    Trust {
        /// Both trust each other.
        trusted: bool,
    },
    /// To `request_handshake`.
    #[serde(rename = "request_handshake_ok")]
    HandshakeRequested {
        /// "delivered": it waits in the peer's inbox.
        status: String,
    },
    /// To `poll_handshakes`.
    #[serde(rename = "poll_handshakes_ok")]
    Handshakes {
        /// Who asks.
        #[serde(default, deserialize_with = "null_is_empty")]
        requests: Vec<HandshakeRequest>,
        /// Who answered.
        #[serde(default, deserialize_with = "null_is_empty")]
        responses: Vec<HandshakeResponse>,
    },
    /// To `respond_handshake`.
    #[serde(rename = "respond_handshake_ok")]
    HandshakeAnswered {
        /// As asked.
        accept: bool,
        /// Who gets the answer.
        #[serde(with = "as_u32")]
        peer_id: NodeId,
    },
    /// To `list_networks`.
    #[serde(rename = "list_networks_ok")]
    Networks {
        /// In the order of ids.
        #[serde(default, deserialize_with = "null_is_empty")]
        networks: Vec<NetworkInfo>,
    },
    /// To `list_nodes`.
    #[serde(rename = "list_nodes_ok")]
    Nodes {
        /// In the order of ids.
        #[serde(default, deserialize_with = "null_is_empty")]
        nodes: Vec<MemberInfo>,
        /// There are more: ask again with this as `after` (ours).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u32>,
    },
    /// To `create_network`.
    #[serde(rename = "create_network_ok")]
    NetworkCreated {
        /// The new network.
        network_id: u16,
        /// Its name.
        name: String,
        /// As asked.
        #[serde(default)]
        enterprise: bool,
    },
    /// To `join_network`.
    #[serde(rename = "join_network_ok")]
    Joined {
        /// Which.
        network_id: u16,
        /// The node's address there.
        address: String,
    },
    /// To `leave_network`.
    #[serde(rename = "leave_network_ok")]
    Left {
        /// Which.
        network_id: u16,
    },
    /// To `invite_to_network`.
    #[serde(rename = "invite_to_network_ok")]
    Invited {
        /// Where to.
        network_id: u16,
        /// Whom.
        #[serde(with = "as_u32")]
        target_node_id: NodeId,
    },
    /// To `poll_invites`.
    #[serde(rename = "poll_invites_ok")]
    Invites {
        /// They stay until they are answered.
        #[serde(default, deserialize_with = "null_is_empty")]
        invites: Vec<InviteInfo>,
    },
    /// To `respond_invite`.
    #[serde(rename = "respond_invite_ok")]
    InviteAnswered {
        /// As asked.
        accepted: bool,
        /// Which.
        network_id: u16,
    },
    /// To `kick_member`.
    #[serde(rename = "kick_member_ok")]
    Kicked {
        /// Which.
        network_id: u16,
        /// Whom.
        #[serde(with = "as_u32")]
        target_node_id: NodeId,
    },
    /// To `promote_member`.
    #[serde(rename = "promote_member_ok")]
    Promoted(MemberRole),
    /// To `demote_member`.
    #[serde(rename = "demote_member_ok")]
    Demoted(MemberRole),
    /// To `get_member_role`.
    #[serde(rename = "get_member_role_ok")]
    Role(MemberRole),
    /// To `transfer_ownership`.
    #[serde(rename = "transfer_ownership_ok")]
    OwnershipTransferred {
        /// Which.
        network_id: u16,
        /// To whom.
        #[serde(with = "as_u32")]
        new_owner_id: NodeId,
    },
    /// To `rename_network`.
    #[serde(rename = "rename_network_ok")]
    NetworkRenamed {
        /// Which.
        network_id: u16,
        /// The new name.
        name: String,
    },
    /// To `delete_network`.
    #[serde(rename = "delete_network_ok")]
    NetworkDeleted {
        /// Which.
        network_id: u16,
    },
    /// To `set_network_policy`.
    #[serde(rename = "set_network_policy_ok")]
    NetworkPolicySet(NetworkPolicy),
    /// To `get_network_policy`.
    #[serde(rename = "get_network_policy_ok")]
    NetworkPolicy(NetworkPolicy),
    /// To any request that was refused.
    #[serde(rename = "error")]
    Error {
        /// Reason and, if there is one, the next step.
        error: String,
        /// Machine-readable reason. Ours, and only in replies to `challenge`: it tells a registry that knows challenges
        /// but cannot give one now from a registry that does not know them (spec/registry.md §4.4).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
}

/// All `type` values that [`Reply::parse`] knows.
pub const REPLY_TYPES: [&str; 44] = [
    "challenge_ok",
    "register_ok",
    "heartbeat_ok",
    "lookup_ok",
    "resolve_ok",
    "resolve_hostname_ok",
    "set_hostname_ok",
    "set_visibility_ok",
    "deregister_ok",
    "beacon_register_ok",
    "beacon_list_ok",
    "set_tags_ok",
    "set_task_exec_ok",
    "rotate_key_ok",
    "set_key_expiry_ok",
    "get_key_info_ok",
    "get_polo_score_ok",
    "update_polo_score_ok",
    "set_polo_score_ok",
    "punch_ok",
    "report_trust_ok",
    "revoke_trust_ok",
    "check_trust_ok",
    "request_handshake_ok",
    "poll_handshakes_ok",
    "respond_handshake_ok",
    "list_networks_ok",
    "list_nodes_ok",
    "create_network_ok",
    "join_network_ok",
    "leave_network_ok",
    "invite_to_network_ok",
    "poll_invites_ok",
    "respond_invite_ok",
    "kick_member_ok",
    "promote_member_ok",
    "demote_member_ok",
    "transfer_ownership_ok",
    "rename_network_ok",
    "delete_network_ok",
    "set_network_policy_ok",
    "get_network_policy_ok",
    "get_member_role_ok",
    "error",
];

impl Reply {
    /// Reads the JSON text of one message.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(json: &[u8]) -> Result<Self, MessageError> {
        parse(json, &REPLY_TYPES)
    }

    /// Appends the framed message to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        encode(self, out)
    }

    /// An error reply.
    pub fn error(text: impl fmt::Display) -> Self {
        Self::Error { error: text.to_string(), code: None }
    }
}
