//! From a [`Peer`] as a caller names it to a peer that the endpoint can open a tunnel with.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use pilotage_proto::PeerConfig;
use pilotage_wire::{Address, NodeId};

use crate::error::{ConnectFailure, FailureCause, Stage};
use crate::hub::{Endpoints, Hub, HubError};
use crate::lan::{LanPeer, NotFound};
use crate::node::NodeInner;
use crate::peer::Peer;
use crate::shared::Phase;
use crate::state::Pin;

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPeer {
    /// Its address.
    pub address: Address,
    /// Its Ed25519 key, if the hub, a pin or a tunnel names it.
    pub key: Option<[u8; 32]>,
    /// Its UDP endpoint; `None` where only the relay can reach it.
    pub endpoint: Option<SocketAddr>,
    /// The name it was found by.
    pub name: Option<String>,
    /// Who told.
    pub source: Source,
}

/// Who told where a peer is, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The caller.
    Given,
    /// There is a tunnel, or the operator introduced the peer.
    Tunnel,
    /// The hub.
    Hub,
    /// The peer itself, on the local network.
    Lan,
    /// A record that was verified before.
    Remembered,
    /// A friend (spec/replica.md §8.3).
    Friend,
    /// A directory that everybody can read (spec/replica.md §9): its name.
    Directory(&'static str),
    /// Nobody: it is tried where it was when it was last reached.
    LastReached,
}

impl Source {
    /// One word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Tunnel => "tunnel",
            Self::Hub => "hub",
            Self::Lan => "lan",
            Self::Remembered => "remembered",
            Self::Friend => "friend",
            Self::Directory(name) => name,
            Self::LastReached => "last-reached",
        }
    }
}

impl NodeInner {
    /// Finds a peer without contacting it. Blocks while the hub is asked (each question at most 5 s).
    pub(crate) fn resolve(&self, peer: &Peer) -> Result<ResolvedPeer, ConnectFailure> {
        match peer {
            Peer::Name(name) => {
                let address = match self.resolve_name(name) {
                    Ok(address) => address,
                    // The hub's word comes first; the network's only counts where there is none.
                    Err(failure) => {
                        let found = self.name_on_lan(name).unwrap_or(Err(failure));
                        return found.or_else(|failure| self.name_of_old(name, failure));
                    }
                };
                let ourselves = address.node == self.shared.lock().endpoint.local_address().node;
                // The hub is asked anyway, and it may know that the peer has moved.
                let found = match self.known_to_endpoint(address).filter(|_| ourselves) {
                    Some(us) => us,
                    None => self.resolve_afresh(address)?,
                };
                Ok(ResolvedPeer { name: Some(name.clone()), ..found })
            }
            Peer::Address(address) => match self.known_to_endpoint(*address) {
                Some(known) => Ok(known),
                None => self.resolve_afresh(*address),
            },
            Peer::At(address, endpoint) => Ok(ResolvedPeer {
                address: *address,
                key: self.pin(address.node).map(|pin| pin.key),
                endpoint: Some(*endpoint),
                name: None,
                source: Source::Given,
            }),
        }
    }

    /// Whether [`NodeInner::resolve`] would have to ask the hub, and thus might block.
    pub(crate) fn needs_hub(&self, peer: &Peer) -> bool {
        (self.hub.is_some() || self.lan.is_some())
            && match peer {
                Peer::Name(_) => true,
                Peer::Address(address) => self.known_to_endpoint(*address).is_none(),
                Peer::At(..) => false,
            }
    }

    /// Finds a peer and introduces it to the endpoint.
    pub(crate) fn introduce(&self, peer: &Peer) -> Result<Address, ConnectFailure> {
        let resolved = self.resolve(peer)?;
        let address = resolved.address;
        let mut policy = self.policies.get(&address.node).copied().unwrap_or_default();
        if let (Some(key), Some(acquaintances)) = (&resolved.key, self.shared.acquaintances.get()) {
            policy.least = policy.least.max(acquaintances.least(address, key));
        }
        let mut core = self.shared.lock();
        if core.phase != Phase::Open {
            return Err(self.failure(pilotage_proto::ConnectError::Closing, peer));
        }
        let by_hand = matches!(peer, Peer::At(..));
        let known = core.endpoint.peer(address.node).and_then(|tunnel| tunnel.key);
        let config = PeerConfig {
            address,
            key: resolved.key.or(known),
            endpoint: resolved.endpoint,
            policy,
            prekey: None,
        };
        let config = crate::secure::remembered(&core.endpoint, &self.shared.book(), config);
        if let Err(error) = core.endpoint.add_peer(Instant::now(), config) {
            drop(core);
            return Err(self.failure(error, peer));
        }
        if by_hand {
            core.introduced.insert(address.node);
        }
        Ok(address)
    }

    /// A node of the local network, by what it says of itself. Its key exchange proves the id.
    fn on_lan(&self, peer: LanPeer) -> ResolvedPeer {
        let LanPeer { address, name, endpoints, .. } = peer;
        let local = self.shared.local;
        let reachable = |at: &&SocketAddr| at.is_ipv4() || local.is_ipv6();
        let endpoint = endpoints.iter().find(reachable).copied();
        let key = self.pin(address.node).map(|pin| pin.key);
        ResolvedPeer { address, key, endpoint, name, source: Source::Lan }
    }

    /// The node with this name on the local network; `None` if nobody says to be that.
    fn name_on_lan(&self, name: &str) -> Option<Result<ResolvedPeer, ConnectFailure>> {
        match self.lan.as_ref()?.by_name(name) {
            Ok(peer) => Some(Ok(self.on_lan(peer))),
            Err(NotFound::Nobody) => None,
            Err(NotFound::Ambiguous) => Some(Err(ConnectFailure::new(
                Stage::Resolve,
                FailureCause::System(format!("several nodes of this network call themselves {name:?}")),
                "use the address of the one that you mean",
            ))),
        }
    }

    /// Whoever had this name when the hub last answered, by the agent's signed record.
    fn name_of_old(&self, name: &str, failure: ConnectFailure) -> Result<ResolvedPeer, ConnectFailure> {
        let known = silent(&failure).then(|| self.shared.acquaintances.get()?.by_name(name)).flatten();
        match known {
            Some(known) if self.pin(known.address.node).is_none_or(|pin| pin.key == known.key) => {
                Ok(ResolvedPeer { name: Some(name.to_owned()), ..known.peer(self.shared.local) })
            }
            _ => Err(failure),
        }
    }

    fn resolve_name(&self, name: &str) -> Result<Address, ConnectFailure> {
        let Some(hub) = &self.hub else {
            return Err(ConnectFailure::new(
                Stage::Resolve,
                FailureCause::NoHub(name.to_owned()),
                "configure a hub, or give the peer as ADDRESS@IP:PORT",
            ));
        };
        let us = self.shared.lock().endpoint.local_address().node;
        hub.ask(|directory| directory.resolve_name(name, us)).map_err(|error| hub_failure(hub, error))
    }

    fn resolve_afresh(&self, address: Address) -> Result<ResolvedPeer, ConnectFailure> {
        let pin = self.pin(address.node);
        let found = match &self.hub {
            Some(hub) => self.ask_hub(hub, address, pin.as_ref()),
            None => Err(self.failure(pilotage_proto::ConnectError::UnknownPeer, &Peer::Address(address))),
        };
        let found = found.or_else(|failure| match &self.lan {
            Some(lan) if !matches!(failure.cause, FailureCause::PinMismatch { .. }) => {
                lan.by_node(address.node).map(|peer| self.on_lan(peer)).ok_or(failure)
            }
            _ => Err(failure),
        });
        if found.is_ok()
            && let Some(acquaintances) = self.shared.acquaintances.get()
        {
            acquaintances.met(address);
        }
        let found = found.or_else(|failure| self.address_of_old(address, pin.as_ref(), failure));
        match (found, pin) {
            // A peer that we met before is tried where it was, whatever the hub does not know.
            (Err(failure), Some(Pin { key, endpoint: Some(endpoint), .. }))
                if !matches!(failure.cause, FailureCause::PinMismatch { .. }) =>
            {
                let (key, endpoint, source) = (Some(key), Some(endpoint), Source::LastReached);
                Ok(ResolvedPeer { address, key, endpoint, name: None, source })
            }
            (found, _) => found,
        }
    }

    /// The agent at this address, by its signed record, where the hub does not answer.
    fn address_of_old(
        &self,
        address: Address,
        pin: Option<&Pin>,
        failure: ConnectFailure,
    ) -> Result<ResolvedPeer, ConnectFailure> {
        let known = silent(&failure).then(|| self.shared.acquaintances.get()?.by_address(address)).flatten();
        match known {
            Some(known) if pin.is_none_or(|pin| pin.key == known.key) => Ok(known.peer(self.shared.local)),
            _ => Err(failure),
        }
    }

    /// A peer with a tunnel, or one that the operator introduced, needs no further question.
    fn known_to_endpoint(&self, address: Address) -> Option<ResolvedPeer> {
        let core = self.shared.lock();
        if address.node == core.endpoint.local_address().node {
            // Ourselves: nobody need be asked, and no way through a socket leads there.
            let key = Some(self.identity.public_key());
            return Some(ResolvedPeer { address, key, endpoint: None, name: None, source: Source::Given });
        }
        let tunnel = core.endpoint.peer(address.node)?;
        if !tunnel.established && self.hub.is_some() && !core.introduced.contains(&address.node) {
            return None;
        }
        let direct = tunnel.path.filter(|path| path.kind == pilotage_proto::PathKind::Direct);
        let endpoint = direct.map(|path| path.remote).or_else(|| self.introduced.get(&address.node).copied());
        Some(ResolvedPeer { address, key: tunnel.key, endpoint, name: None, source: Source::Tunnel })
    }

    fn ask_hub(
        &self,
        hub: &Hub,
        address: Address,
        pin: Option<&Pin>,
    ) -> Result<ResolvedPeer, ConnectFailure> {
        let us = self.shared.lock().endpoint.local_address().node;
        let found =
            hub.ask(|directory| directory.find(address.node, us)).map_err(|error| hub_failure(hub, error))?;
        let entry = found.entry.map_err(|error| hub_failure(hub, error))?;
        if let (Some(key), Some(pin)) = (entry.key, pin)
            && key != pin.key
        {
            let pins = self.shared.book().location();
            let hint = format!(
                "if {address} really has a new identity, remove its entry from {} and try again; otherwise do not trust this hub",
                pins.display()
            );
            return Err(ConnectFailure::new(
                Stage::Resolve,
                FailureCause::PinMismatch { address, pins },
                hint,
            ));
        }
        let endpoints = found.endpoints;
        if endpoints.as_ref().is_err_and(|error| !error.is_unreachable()) {
            self.shared.mailbox.doubt_hub();
        }
        let endpoints = match endpoints {
            Ok(endpoints) => endpoints,
            // A node that hides its endpoint may still be met through the relay.
            Err(error) if !error.is_unreachable() && self.shared.mailbox.has_beacon() => {
                tracing::debug!(%error, %address, "no endpoint; trying the relay");
                Endpoints::default()
            }
            Err(error) => return Err(hub_failure(hub, error)),
        };
        let observed = self.shared.lock().observed_address();
        Ok(ResolvedPeer {
            address,
            key: entry.key.or(pin.map(|pin| pin.key)),
            endpoint: choose(&endpoints, observed, &hub.lan()),
            name: entry.name,
            source: Source::Hub,
        })
    }

    fn pin(&self, node: NodeId) -> Option<Pin> {
        self.shared.book().get(node).cloned()
    }

    pub(crate) fn failure(&self, error: pilotage_proto::ConnectError, peer: &Peer) -> ConnectFailure {
        ConnectFailure::from_core(error, &peer.to_string(), &self.shared.book().location())
    }
}

/// The endpoint to try first. Behind one NAT with the peer, its own address is the shorter way, and
/// the only one where the NAT does not turn packets round (RFC 4787 §6, hairpinning).
pub(crate) fn choose(
    endpoints: &Endpoints,
    observed: Option<SocketAddr>,
    ours: &[SocketAddr],
) -> Option<SocketAddr> {
    let public = endpoints.public?;
    let same_nat = observed.is_some_and(|observed| observed.ip() == public.ip())
        && !public.ip().is_loopback()
        && !ours.iter().any(|own| own.ip() == public.ip());
    let near = || endpoints.lan.iter().find(|lan| ours.iter().any(|own| shares_24(own.ip(), lan.ip())));
    let lan = endpoints.lan.iter().find(|lan| lan.is_ipv4() == public.is_ipv4());
    match observed {
        _ if same_nat => near().or(lan).copied().or(Some(public)),
        // Without a beacon nobody knows which NAT we are behind: the reference's rule.
        None => near().copied().or(Some(public)),
        Some(_) => Some(public),
    }
}

/// Whether both are private IPv4 addresses of one /24.
fn shares_24(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            a.is_private() && b.is_private() && a.octets()[..3] == b.octets()[..3]
        }
        _ => false,
    }
}

/// Whether nobody answered, as opposed to somebody who said no.
fn silent(failure: &ConnectFailure) -> bool {
    match &failure.cause {
        FailureCause::Hub(error) => error.is_unreachable(),
        FailureCause::NoHub(_) => true,
        FailureCause::Core(pilotage_proto::ConnectError::UnknownPeer) => true,
        _ => false,
    }
}

fn hub_failure(hub: &Hub, error: HubError) -> ConnectFailure {
    let hint = match &error {
        HubError::Unreachable { .. } => {
            format!("check that the hub at {} runs and is reachable over TCP", hub.registry)
        }
        HubError::NotFound { .. } => {
            "check the name, and that the peer is up and registered with this hub".into()
        }
        HubError::NotConfigured => "name a registry or a hub".into(),
        _ => "ask the peer to be public, or give it as ADDRESS@IP:PORT".into(),
    };
    ConnectFailure::new(Stage::Resolve, FailureCause::Hub(error), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn behind_the_same_nat_the_local_address_is_chosen() {
        let endpoints =
            Endpoints { public: Some(addr("203.0.113.7:4000")), lan: vec![addr("192.168.1.9:4000")] };
        let ours = [addr("192.168.1.5:4001")];
        let same = Some(addr("203.0.113.7:9"));
        assert_eq!(choose(&endpoints, same, &ours), Some(addr("192.168.1.9:4000")));
        assert_eq!(choose(&endpoints, Some(addr("198.51.100.1:9")), &ours), endpoints.public);
        assert_eq!(choose(&endpoints, None, &[addr("192.168.2.5:1")]), endpoints.public);
        assert_eq!(choose(&endpoints, None, &ours), Some(addr("192.168.1.9:4000")), "one /24, no beacon");
        let two = Endpoints { lan: vec![addr("10.0.0.9:4000"), endpoints.lan[0]], ..endpoints.clone() };
        assert_eq!(choose(&two, same, &ours), Some(addr("192.168.1.9:4000")), "the one that we can reach");
        assert_eq!(choose(&endpoints, same, &[addr("203.0.113.7:1")]), endpoints.public, "no NAT at all");
        assert_eq!(choose(&Endpoints::default(), same, &ours), None);
    }
}
