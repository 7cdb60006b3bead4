//! Who is known without the hub: whoever keeps records of peers tells a node here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use pilotage_proto::Mode;
use pilotage_wire::Address;

use crate::node::Node;
use crate::resolve::{ResolvedPeer, Source};

/// Knows agents that were met before. All calls may come from several threads, and block for seconds at most.
pub trait Acquaintances: std::fmt::Debug + Send + Sync {
    /// Who has this name; only asked where the hub does not answer.
    fn by_name(&self, name: &str) -> Option<Acquaintance>;
    /// Who has this address; only asked where the hub does not answer.
    fn by_address(&self, address: Address) -> Option<Acquaintance>;
    /// Who has this address, for judging a stranger who calls from there: as [`Acquaintances::by_address`], but nobody far
    /// away is asked because somebody called.
    fn caller(&self, address: Address) -> Option<Acquaintance> {
        self.by_address(address)
    }
    /// The hub told us of this peer, which is about to be met. Must not block.
    fn met(&self, address: Address);
    /// The least mode that the agent with this address and key demands by its signed record, if one is remembered
    /// (spec/secure.md §12.1). Asks nobody.
    fn least(&self, address: Address, key: &[u8; 32]) -> Mode {
        let _ = (address, key);
        Mode::Draft
    }
}

/// An agent, by its own signed word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquaintance {
    /// Its address.
    pub address: Address,
    /// Its Ed25519 key.
    pub key: [u8; 32],
    /// Where it listens, the preferred one first.
    pub endpoints: Vec<SocketAddr>,
    /// Who told.
    pub source: Source,
}

impl Acquaintance {
    /// As a peer that can be tried: with an endpoint of the family of our socket.
    pub(crate) fn peer(self, local: SocketAddr) -> ResolvedPeer {
        let endpoint = self.endpoints.iter().find(|at| at.is_ipv4() || local.is_ipv6()).copied();
        let (address, key, source) = (self.address, Some(self.key), self.source);
        ResolvedPeer { address, key, endpoint, name: None, source }
    }
}

impl Node {
    /// From now on peers that the hub does not answer about are looked for here. Only the first call counts.
    pub fn set_acquaintances(&self, acquaintances: Arc<dyn Acquaintances>) {
        let _ = self.inner.shared.acquaintances.set(acquaintances);
    }

    /// The agent with this key demands no lesser mode than this (spec/secure.md §12.1): its tunnel, if there is one, goes over to it.
    pub(crate) fn demand_mode(&self, address: Address, key: &[u8; 32], least: Mode) {
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        core.endpoint.demand_mode(Instant::now(), address.node, key, least);
        shared.finish(core);
    }
}
