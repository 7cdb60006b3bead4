//! Addresses at which a node may be reached, and in which order they are worth trying (RFC 8445 §5.1).

use std::net::{IpAddr, SocketAddr};

use crate::scope::{Scope, canonical, is_unicast};

/// Most candidates of one side, in a message and in a list of the application.
pub const CANDIDATES_MAX: usize = 16;

/// How an address was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// Of an interface of the host.
    Host,
    /// A port that the NAT forwards because it was asked to.
    Mapped,
    /// As a beacon sees us.
    Reflexive,
    /// As a peer sees us: the source of an authentic frame.
    PeerReflexive,
    /// Through a relay.
    Relayed,
}

impl CandidateKind {
    /// The type preference of RFC 8445 §5.1.2.2. A mapped port is a reflexive address that nobody else's packets
    /// can take away, so it stands above one.
    pub fn preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::Mapped => 115,
            Self::PeerReflexive => 110,
            Self::Reflexive => 100,
            Self::Relayed => 0,
        }
    }

    /// The byte in a message.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Host => 0,
            Self::Mapped => 1,
            Self::Reflexive => 2,
            Self::PeerReflexive => 3,
            Self::Relayed => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Host, Self::Mapped, Self::Reflexive, Self::PeerReflexive, Self::Relayed]
            .get(usize::from(code))
            .copied()
    }
}

/// An address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Where.
    pub addr: SocketAddr,
    /// How it was found.
    pub kind: CandidateKind,
}

impl Candidate {
    /// The priority of RFC 8445 §5.1.2.1: kind, then family and scope, then the place in the list (0 first). All
    /// candidates are of component 1.
    pub fn priority(&self, place: usize) -> u32 {
        let family: u32 = match self.addr.ip().to_canonical() {
            // RFC 8421: IPv6 first, global before unique local.
            IpAddr::V6(_) => 0x8000,
            IpAddr::V4(_) => 0x4000,
        };
        // Near addresses first: they fail fast and cost nobody else anything.
        let scope: u32 = match Scope::of(self.addr.ip()) {
            Scope::Loopback => 0x3000,
            Scope::Link => 0x2000,
            Scope::Site => 0x1000,
            Scope::Global => 0,
        };
        let local = family + scope + (0xFFF - place.min(0xFFF) as u32);
        (self.kind.preference() << 24) + (local << 8) + 255
    }
}

/// The priority of a pair (RFC 8445 §6.1.2.3): `controlling` and `controlled` are those of the two candidates.
pub fn pair_priority(controlling: u32, controlled: u32) -> u64 {
    let (g, d) = (u64::from(controlling), u64::from(controlled));
    (g.min(d) << 32) + 2 * g.max(d) + u64::from(g > d)
}

/// What a pair of addresses is about: whether a candidate of a peer may be tried at all.
///
/// Refused are addresses that are no single host or link-local, those of the beacons and our own, those of a family of
/// which we have no address, and loopback unless we are reached on loopback ourselves.
pub(super) fn may_try(addr: SocketAddr, own: &[Candidate], forbidden: &[SocketAddr]) -> bool {
    let addr = canonical(addr);
    let is = |other: SocketAddr| canonical(other) == addr;
    let loopback = Scope::of(addr.ip()) == Scope::Loopback;
    let family = own.is_empty() || own.iter().any(|c| canonical(c.addr).is_ipv4() == addr.is_ipv4());
    let near = !loopback || own.iter().any(|c| Scope::of(c.addr.ip()) == Scope::Loopback);
    is_unicast(addr)
        && !crate::side::is_inner(addr)
        && Scope::of(addr.ip()) != Scope::Link
        && near
        && family
        && !forbidden.iter().any(|a| is(*a))
        && !own.iter().any(|c| is(c.addr))
}
