//! All requests.

use super::json::{encode, parse};
use super::{
    BeaconRegister, CreateNetwork, Deregister, FrameError, Heartbeat, InviteToNetwork, JoinNetwork,
    ListNodes, Lookup, MemberAction, MemberQuery, MessageError, NetworkAction, NetworkQuery, NodeSigned,
    Punch, Register, RenameNetwork, RequestHandshake, Resolve, ResolveHostname, RespondHandshake,
    RespondInvite, RotateKey, SetHostname, SetKeyExpiry, SetNetworkPolicy, SetPoloScore, SetTags,
    SetTaskExec, SetVisibility, TransferOwnership, TrustPair, UpdatePoloScore,
};
use serde::{Deserialize, Serialize};

/// A request to the registry (spec/registry.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Asks for a nonce to sign (ours).
    Challenge,
    /// Claims or renews an address.
    Register(Register),
    /// "Still here".
    Heartbeat(Heartbeat),
    /// Who is node N?
    Lookup(Lookup),
    /// Where is node N?
    Resolve(Resolve),
    /// Which node has this name?
    ResolveHostname(ResolveHostname),
    /// Claims, changes or (empty) gives up a name.
    SetHostname(SetHostname),
    /// Public or private.
    SetVisibility(SetVisibility),
    /// Leaves; the address stays reserved for the key.
    Deregister(Deregister),
    /// A beacon announces itself.
    BeaconRegister(BeaconRegister),
    /// Known beacons.
    BeaconList,
    /// Changes what the node calls itself.
    SetTags(SetTags),
    /// Takes tasks, or does not.
    SetTaskExec(SetTaskExec),
    /// Puts a new key in the place of the present one.
    RotateKey(RotateKey),
    /// Sets when the key ends.
    SetKeyExpiry(SetKeyExpiry),
    /// How old is the key of node N?
    GetKeyInfo(Lookup),
    /// What is the score of node N?
    GetPoloScore(Lookup),
    /// Adds to a score.
    UpdatePoloScore(UpdatePoloScore),
    /// Sets a score.
    SetPoloScore(SetPoloScore),
    /// Where are these two, one of them me?
    Punch(Punch),
    /// Trusts a peer.
    ReportTrust(TrustPair),
    /// Ends trust, both ways.
    RevokeTrust(TrustPair),
    /// Do these two trust each other?
    CheckTrust(TrustPair),
    /// Asks a peer for trust.
    RequestHandshake(RequestHandshake),
    /// Takes what waits in the inbox.
    PollHandshakes(NodeSigned),
    /// Answers a peer that asked for trust.
    RespondHandshake(RespondHandshake),
    /// Which networks are there?
    ListNetworks,
    /// Who is in a network?
    ListNodes(ListNodes),
    /// Makes a network.
    CreateNetwork(CreateNetwork),
    /// Enters a network.
    JoinNetwork(JoinNetwork),
    /// Leaves a network.
    LeaveNetwork(NetworkAction),
    /// Lets a node enter.
    InviteToNetwork(InviteToNetwork),
    /// Which invitations wait?
    PollInvites(NodeSigned),
    /// Takes or declines an invitation.
    RespondInvite(RespondInvite),
    /// Removes a member.
    KickMember(MemberAction),
    /// Makes a member an admin.
    PromoteMember(MemberAction),
    /// Makes an admin a member.
    DemoteMember(MemberAction),
    /// Gives a network to another member.
    TransferOwnership(TransferOwnership),
    /// Changes the name of a network.
    RenameNetwork(RenameNetwork),
    /// Ends a network.
    DeleteNetwork(NetworkAction),
    /// Changes the rules of a network.
    SetNetworkPolicy(SetNetworkPolicy),
    /// What are the rules of a network?
    GetNetworkPolicy(NetworkQuery),
    /// What is a node in a network?
    GetMemberRole(MemberQuery),
}

/// All `type` values that [`Request::parse`] knows.
pub const REQUEST_TYPES: [&str; 43] = [
    "challenge",
    "register",
    "heartbeat",
    "lookup",
    "resolve",
    "resolve_hostname",
    "set_hostname",
    "set_visibility",
    "deregister",
    "beacon_register",
    "beacon_list",
    "set_tags",
    "set_task_exec",
    "rotate_key",
    "set_key_expiry",
    "get_key_info",
    "get_polo_score",
    "update_polo_score",
    "set_polo_score",
    "punch",
    "report_trust",
    "revoke_trust",
    "check_trust",
    "request_handshake",
    "poll_handshakes",
    "respond_handshake",
    "list_networks",
    "list_nodes",
    "create_network",
    "join_network",
    "leave_network",
    "invite_to_network",
    "poll_invites",
    "respond_invite",
    "kick_member",
    "promote_member",
    "demote_member",
    "transfer_ownership",
    "rename_network",
    "delete_network",
    "set_network_policy",
    "get_network_policy",
    "get_member_role",
];

impl Request {
    /// Reads the JSON text of one message.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(json: &[u8]) -> Result<Self, MessageError> {
        parse(json, &REQUEST_TYPES)
    }

    /// Appends the framed message to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        encode(self, out)
    }

    /// The `type` value.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::Register(_) => "register",
            Self::Heartbeat(_) => "heartbeat",
            Self::Lookup(_) => "lookup",
            Self::Resolve(_) => "resolve",
            Self::ResolveHostname(_) => "resolve_hostname",
            Self::SetHostname(_) => "set_hostname",
            Self::SetVisibility(_) => "set_visibility",
            Self::Deregister(_) => "deregister",
            Self::BeaconRegister(_) => "beacon_register",
            Self::BeaconList => "beacon_list",
            Self::SetTags(_) => "set_tags",
            Self::SetTaskExec(_) => "set_task_exec",
            Self::RotateKey(_) => "rotate_key",
            Self::SetKeyExpiry(_) => "set_key_expiry",
            Self::GetKeyInfo(_) => "get_key_info",
            Self::GetPoloScore(_) => "get_polo_score",
            Self::UpdatePoloScore(_) => "update_polo_score",
            Self::SetPoloScore(_) => "set_polo_score",
            Self::Punch(_) => "punch",
            Self::ReportTrust(_) => "report_trust",
            Self::RevokeTrust(_) => "revoke_trust",
            Self::CheckTrust(_) => "check_trust",
            Self::RequestHandshake(_) => "request_handshake",
            Self::PollHandshakes(_) => "poll_handshakes",
            Self::RespondHandshake(_) => "respond_handshake",
            Self::ListNetworks => "list_networks",
            Self::ListNodes(_) => "list_nodes",
            Self::CreateNetwork(_) => "create_network",
            Self::JoinNetwork(_) => "join_network",
            Self::LeaveNetwork(_) => "leave_network",
            Self::InviteToNetwork(_) => "invite_to_network",
            Self::PollInvites(_) => "poll_invites",
            Self::RespondInvite(_) => "respond_invite",
            Self::KickMember(_) => "kick_member",
            Self::PromoteMember(_) => "promote_member",
            Self::DemoteMember(_) => "demote_member",
            Self::TransferOwnership(_) => "transfer_ownership",
            Self::RenameNetwork(_) => "rename_network",
            Self::DeleteNetwork(_) => "delete_network",
            Self::SetNetworkPolicy(_) => "set_network_policy",
            Self::GetNetworkPolicy(_) => "get_network_policy",
            Self::GetMemberRole(_) => "get_member_role",
        }
    }
}
