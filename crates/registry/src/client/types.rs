//! Questions and answers of the client, as Rust types.

use pilotage_wire::{Address, NodeId};
use std::net::SocketAddr;

/// How the connection to the registry is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTls {
    /// Not at all: whoever controls the path reads and changes what is said (spec/registry.md §10).
    #[default]
    Plain,
    /// TLS 1.3 to the one server whose certificate (DER, leaf) has this SHA-256. Names and issuers mean nothing.
    Pinned([u8; 32]),
}

/// What a node wants to be known as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// "host:port" of the UDP socket. Only the port matters: as a beacon saw it, if there is a NAT.
    pub listen_addr: String,
    /// "ip:port" of the UDP socket on local networks.
    pub lan_addrs: Vec<String>,
    /// Name to claim.
    pub hostname: Option<String>,
    /// Let every registered node resolve this one.
    pub public: bool,
    /// The same, at a registry of the reference.
    pub public_abroad: bool,
    /// E-mail address or other owner text. A registry of the reference gives the node of an owner to whoever names it, so
    /// every node needs its own; ours ignores it.
    pub owner: Option<String>,
}

/// What the registry made of a [`Registration`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The node's address in network 0. Assigned by the registry if it is a foreign one.
    pub address: Address,
    /// "ip:port" that peers will be given.
    pub observed_addr: String,
    /// The node's name.
    pub hostname: Option<String>,
    /// Why the wanted name was refused.
    pub hostname_error: Option<String>,
    /// True if the registry checked a fresh proof of possession.
    pub proved: bool,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// UDP address.
    pub real_addr: SocketAddr,
    /// UDP addresses on its local networks; unusable ones are left out.
    pub lan_addrs: Vec<SocketAddr>,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Address in network 0.
    pub address: Address,
    /// Ed25519 public key, if the registry knows it.
    pub public_key: Option<[u8; 32]>,
    /// Visibility.
    pub public: bool,
    /// Name.
    pub hostname: Option<String>,
    /// UDP address; only public nodes on line have one here.
    pub real_addr: Option<SocketAddr>,
}

/// Which node has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostnameReply {
    /// Its id.
    pub node: NodeId,
    /// Its address in network 0.
    pub address: Address,
    /// Visibility.
    pub public: bool,
}

/// Answers to both questions about a node, [`Client::find`](super::Client::find).
#[derive(Debug)]
pub struct Found {
    /// Who it is.
    pub info: Result<Lookup, super::ClientError>,
    /// Where it is.
    pub place: Result<Resolved, super::ClientError>,
}
