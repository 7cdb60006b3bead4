//! Fields of requests and replies about single nodes and beacons.

use super::json::{as_optional_u32, as_u32, empty_key_is_none, null_is_empty};
use super::{Key, Signature};
use crate::NodeId;
use serde::{Deserialize, Serialize};

/// `register`. `owner`, `identity_token` and other fields of the reference are ignored: an owner string never gives
/// a claim to a node (spec/registry.md §5.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// "host:port" of the node's UDP socket; the registry keeps only the port.
    pub listen_addr: String,
    /// Ed25519 public key.
    pub public_key: Key,
    /// Name to claim. Empty is the same as absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Addresses for peers on the same LAN.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub lan_addrs: Vec<String>,
    /// Visibility wanted (ours; the reference uses `set_visibility`). Absent: unchanged, private for a new node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// Signature over [`register_string`](super::register_string), as later reference clients send it. Not fresh: see spec/registry.md §5.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Signature over [`register_proof`](super::register_proof) with the nonce of this connection (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who is alive.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// New "host:port", sent by later reference clients; the signed string then contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_addr: Option<String>,
    /// Over [`heartbeat_string`](super::heartbeat_string) or [`heartbeat_addr_string`](super::heartbeat_addr_string).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// `lookup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// Whom to describe.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
}

/// `resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// Whom to locate.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Who asks.
    #[serde(with = "as_u32")]
    pub requester_id: NodeId,
    /// Over [`resolve_string`](super::resolve_string), by the requester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// `resolve_hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveHostname {
    /// Name to find.
    pub hostname: String,
    /// Who asks (unsigned in the reference's protocol, so it proves nothing).
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub requester_id: Option<NodeId>,
}

/// `set_hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetHostname {
    /// Whose name.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// New name; empty gives the name up.
    pub hostname: String,
    /// Over [`set_hostname_string`](super::set_hostname_string).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`set_hostname_proof`](super::set_hostname_proof) (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `set_visibility`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetVisibility {
    /// Whose visibility.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// True: any registered node may resolve it.
    pub public: bool,
    /// Over [`set_visibility_string`](super::set_visibility_string).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`set_visibility_proof`](super::set_visibility_proof) (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `deregister`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregister {
    /// Who leaves.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Over [`deregister_string`](super::deregister_string).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`deregister_proof`](super::deregister_proof) (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `beacon_register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeaconRegister {
    /// Number chosen by the operator.
    pub beacon_id: u32,
    /// "host:port" of its UDP socket.
    pub addr: String,
}

/// `register_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The node's id.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// The same as address text in network 0.
    pub address: String,
    /// Always 0.
    #[serde(default)]
    pub network_id: u16,
    /// The key as registered.
    pub public_key: Key,
    /// Where peers will be told to find the node.
    #[serde(default)]
    pub observed_addr: String,
    /// [`PROTOCOL_VERSION`](super::PROTOCOL_VERSION).
    #[serde(default)]
    pub protocol_version: u32,
    /// The node's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Why the wanted name was not given; the registration itself succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_error: Option<String>,
}

/// `lookup_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Whom this describes.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in network 0.
    pub address: String,
    /// Networks it belongs to.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub networks: Vec<u16>,
    /// Ed25519 public key; a foreign registry may not know it.
    #[serde(default, deserialize_with = "empty_key_is_none", skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Key>,
    /// Visibility.
    #[serde(default)]
    pub public: bool,
    /// Score (spec/registry.md §13.5).
    #[serde(default)]
    pub polo_score: i64,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What it calls itself.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// It takes tasks.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub task_exec: bool,
    /// Where it is; only for public nodes that are on line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_addr: Option<String>,
}

/// `resolve_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Whom this locates.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// "ip:port".
    pub real_addr: String,
    /// For peers on the same LAN.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub lan_addrs: Vec<String>,
    /// Days since the key was first registered.
    #[serde(default)]
    pub key_age_days: u64,
}

/// `resolve_hostname_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostnameInfo {
    /// Who has the name.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in network 0.
    pub address: String,
    /// Visibility.
    #[serde(default)]
    pub public: bool,
    /// The name.
    pub hostname: String,
}

/// One entry of `beacon_list_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Number.
    pub id: u32,
    /// "host:port".
    pub addr: String,
}
