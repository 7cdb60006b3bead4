//! Why the registry says no.

use pilotage_wire::NodeId;
use std::time::Duration;

#[cfg(doc)]
use super::SocialLimits;

/// Why a request is refused. The text goes to the peer; where existence is a secret, unknown and forbidden share one
/// value (spec/registry.md §7.3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over a rate limit.
    #[error("too many {what} requests from your network address; retry in {} s", retry.as_secs() + 1)]
    RateLimited {
        /// Which limit.
        what: &'static str,
        /// Until one request is allowed again.
        retry: Duration,
    },
    /// No such node, or not one that may be shown.
    #[error("node {0} is unknown or not visible to you")]
    NotVisible(NodeId),
    /// No such name, or not one that may be shown.
    #[error("hostname is unknown or not visible to you")]
    NameNotVisible,
    /// A public node that has been silent too long.
    #[error("node {0} is not on line: no heartbeat for {1} s")]
    Offline(NodeId, u64),
    /// The acting node is not registered.
    #[error("node {0} is not registered here; register first")]
    NotRegistered(NodeId),
    /// Missing or wrong signature of the acting node.
    #[error("signature is missing or does not match the key of node {0}")]
    Signature(NodeId),
    /// The key has proved possession before, so everything less is refused.
    #[error("this key is registered with proof of possession; ask for a challenge and send a proof")]
    ProofNeeded,
    /// A proof without a fresh challenge on this connection.
    #[error("no unused challenge on this connection; ask for one and sign it within {0} s")]
    NoChallenge(u64),
    /// The proof does not verify.
    #[error("proof does not match the public key, the challenge and the arguments")]
    BadProof,
    /// The `signature` of a registration does not verify.
    #[error("registration signature does not match the public key")]
    BadRegisterSignature,
    /// Registration without proof is switched off.
    #[error(
        "this registry registers only with proof of possession; ask for a challenge (or let the operator allow unsigned registration)"
    )]
    UnsignedDisabled,
    /// An unsigned registration would move a node that is on line elsewhere.
    #[error(
        "this key is on line at another network address; without proof it can move only after {0} s of silence"
    )]
    OnlineElsewhere(u64),
    /// Not a usable Ed25519 key.
    #[error("public_key is not a valid Ed25519 key")]
    BadKey,
    /// No usable port.
    #[error("listen_addr must be \"host:port\" with a port from 1 to 65535")]
    BadListenAddr,
    /// Name rule broken.
    #[error("{0}")]
    Hostname(#[from] pilotage_wire::registry::HostnameError),
    /// Name belongs to another key.
    #[error("hostname is taken by another node; choose another one")]
    NameTaken,
    /// The node table is full.
    #[error("registry is full ({0} nodes)")]
    Full(usize),
    /// Writes are suspended.
    #[error("{0}")]
    ReadOnly(String),
    /// Beacon registration is switched off or the table is full.
    #[error("beacon registration is {0}")]
    Beacon(&'static str),
    /// The key has ended.
    #[error("the key of node {0} has ended; change it with rotate_key")]
    KeyExpired(NodeId),
    /// The new key belongs to a node already.
    #[error("the new key belongs to a node already; make another one")]
    KeyTaken,
    /// The time is no time, or over.
    #[error("expires_at must be \"never\" or a time to come, such as 2030-01-31T00:00:00Z")]
    BadExpiry,
    /// A heartbeat from elsewhere than the registration of a node that cannot prove itself.
    #[error("node {0} is registered from another network address; register again from this one")]
    Elsewhere(NodeId),
    /// Tags.
    #[error("{0}")]
    Tags(#[from] pilotage_wire::registry::TagError),
    /// An operator's request without the operator's token.
    #[error("this needs the hub's admin token (pilotage hub --admin-token-file){0}")]
    TokenNeeded(&'static str),
    /// A token that is none.
    #[error("the token is not the right one")]
    BadToken,
    /// Nobody acts.
    #[error("the request names no node that acts; add it, or an admin token")]
    NoActor,
    /// Two nodes that must be different are not.
    #[error("a node cannot do that with itself")]
    Oneself,
    /// No such network.
    #[error("network {0} does not exist; list_networks shows those that do")]
    NoNetwork(u16),
    /// No such member.
    #[error("node {0} is not a member of network {1}")]
    NotMember(NodeId, u16),
    /// Is one already.
    #[error("node {0} is a member of network {1} already")]
    IsMember(NodeId, u16),
    /// Not enough rights.
    #[error("network {network}: this needs the role {needed}")]
    Role {
        /// Where.
        network: u16,
        /// At least that.
        needed: &'static str,
    },
    /// What the owner cannot do, or what cannot be done to it.
    #[error("the owner of network {0} stays: transfer the ownership first, or delete the network")]
    Owner(u16),
    /// The rule says no.
    #[error("network {0} is entered by invitation only; ask one of its admins")]
    NotInvited(u16),
    /// No such invitation.
    #[error("there is no invitation to network {0}")]
    NoInvite(u16),
    /// An argument outside its rule.
    #[error("{0}")]
    BadArgument(&'static str),
    /// A bound of [`SocialLimits`].
    #[error("{0}")]
    TooMany(&'static str),
    /// It waits already.
    #[error("a handshake request to node {0} is waiting already; it is delivered when that node asks for it")]
    AskedAlready(NodeId),
    /// Nothing to revoke.
    #[error("there is no trust between nodes {0} and {1}")]
    NoTrust(NodeId, NodeId),
    /// The operating system gave no random bytes.
    #[error("registry has no random numbers at the moment; retry later")]
    NoRandom,
}
