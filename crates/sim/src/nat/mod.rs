//! Nodes behind NATs, and beacons: the twelve kinds of site, by the names that the lab uses too.

mod boxes;
mod moving;
mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use boxes::{Filtering, Mapping, NatBox, Nature, Ports};
pub use world::{NatHost, NatWorld};

/// What stands between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// Nothing.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Endpoint-independent mapping, address-and-port-dependent filtering.
    PortRestricted,
    /// Address-and-port-dependent mapping with ports one after the other.
    SymmetricSequential,
    /// The same with random ports.
    SymmetricRandom,
    /// As port-restricted; two nodes of this kind are behind one box that hairpins, and cannot reach each other inside.
    Hairpin,
    /// Two port-restricted boxes, one behind the other.
    Double,
    /// Port-restricted, with a port that the box forwards for the node.
    Mapped,
    /// A node that has IPv6 only, where all others have IPv4 only.
    Nat64,
    /// No UDP but what is carried to the beacon in another wrapping.
    UdpBlocked,
    /// One public address for the node alone, all ports open.
    OneToOne,
}

impl NatKind {
    /// All, in the order of the table.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::SymmetricSequential,
        Self::SymmetricRandom,
        Self::Hairpin,
        Self::Double,
        Self::Mapped,
        Self::Nat64,
        Self::UdpBlocked,
        Self::OneToOne,
    ];

    /// The name that the lab's matrix has.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::Restricted => "restricted",
            Self::PortRestricted => "port-restricted",
            Self::SymmetricSequential => "symmetric-sequential",
            Self::SymmetricRandom => "symmetric-random",
            Self::Hairpin => "hairpin",
            Self::Double => "double",
            Self::Mapped => "mapped",
            Self::Nat64 => "nat64",
            Self::UdpBlocked => "udp-blocked",
            Self::OneToOne => "one-to-one",
        }
    }

    /// Whether the ports that it takes for new peers cannot be foreseen from one that was seen.
    #[must_use]
    pub fn is_hard(self) -> bool {
        matches!(self, Self::SymmetricSequential | Self::SymmetricRandom)
    }

    /// The boxes from the inside to the outside.
    fn natures(self) -> Vec<Nature> {
        use Filtering as F;
        use Mapping as M;
        let cone = |filtering| Nature {
            mapping: M::EndpointIndependent,
            filtering,
            ports: Ports::Random,
            hairpin: self == Self::Hairpin,
        };
        let hard = |ports| Nature {
            mapping: M::AddressAndPortDependent,
            filtering: F::AddressAndPortDependent,
            ports,
            hairpin: false,
        };
        match self {
            Self::None | Self::Nat64 | Self::UdpBlocked => Vec::new(),
            Self::FullCone => vec![cone(F::EndpointIndependent)],
            Self::Restricted => vec![cone(F::AddressDependent)],
            Self::PortRestricted | Self::Hairpin | Self::Mapped => vec![cone(F::AddressAndPortDependent)],
            Self::SymmetricSequential => vec![hard(Ports::Sequential)],
            Self::SymmetricRandom => vec![hard(Ports::Random)],
            Self::Double => vec![cone(F::AddressAndPortDependent), cone(F::AddressAndPortDependent)],
            Self::OneToOne => {
                vec![Nature { ports: Ports::Preserved, ..cone(F::EndpointIndependent) }]
            }
        }
    }

    /// The node's own address at the site with this number.
    fn inside(self, site: u8) -> IpAddr {
        match self {
            Self::None => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10 + site)),
            Self::Nat64 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, u16::from(site), 0, 0, 0, 0, 2)),
            _ => IpAddr::V4(Ipv4Addr::new(10, 64, site, 2)),
        }
    }
}
