//! The twelve kinds of ways into the network, and what each is.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::table::{Allocation, Dependence, NatConfig};
use crate::LabError;

/// How long mappings of the user-space NATs live without a packet from inside: as in Linux.
pub const MAPPING_LIFETIME: Duration = Duration::from_secs(30);

/// What stands between a host and the public. The simulator uses the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NatKind {
    /// Nothing: a public address.
    None,
    /// One mapping for all, open to all.
    FullCone,
    /// One mapping for all, open to addresses that were sent to.
    Restricted,
    /// One mapping for all, open to ends that were sent to. Linux masquerading.
    PortRestricted,
    /// A mapping for each end, ports one after the other.
    SymmetricSequential,
    /// A mapping for each end, random ports. Linux masquerading with `fully-random`.
    SymmetricRandom,
    /// As port-restricted, and inside hosts reach each other through their outside ports.
    Hairpin,
    /// Two Linux boxes one behind the other: at home, and the carrier's.
    Double,
    /// A Linux box that makes port mappings on demand (NAT-PMP, PCP).
    Mapped,
    /// A host that has only IPv6, and a translator to IPv4.
    Nat64,
    /// A Linux box that lets out nothing but TCP to ports 80 and 443.
    UdpBlocked,
    /// A public address of its own, translated one to one.
    OneToOne,
}

/// What a kind is seen to be, from inside and from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Behaviour {
    /// Whether datagrams pass at all. If not, the rest is empty.
    pub udp: bool,
    /// When the same inside end gets the same outside end.
    pub mapping: Option<Dependence>,
    /// From whom datagrams are let in.
    pub filtering: Option<Dependence>,
    /// How outside ports are chosen.
    pub allocation: Option<Allocation>,
    /// Whether the host reaches itself through its outside end.
    pub hairpin: Option<bool>,
    /// Routers between the host and the public.
    pub hops: Option<u8>,
    /// Whether a port mapping can be had, and works.
    pub mappable: bool,
}

impl NatKind {
    /// All of them, from easy to hard.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::OneToOne,
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::Hairpin,
        Self::Mapped,
        Self::Double,
        Self::SymmetricSequential,
        Self::SymmetricRandom,
        Self::Nat64,
        Self::UdpBlocked,
    ];

    /// Its name in tables and on command lines.
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

    /// What does the work, for the table.
    #[must_use]
    pub fn made_by(self) -> &'static str {
        match self {
            Self::None => "routing",
            Self::FullCone | Self::Restricted | Self::SymmetricSequential | Self::Hairpin | Self::Nat64 => {
                "user space"
            }
            Self::PortRestricted => "kernel: masquerade",
            Self::SymmetricRandom => "kernel: masquerade random,fully-random",
            Self::Double => "kernel: masquerade, twice",
            Self::Mapped => "kernel: masquerade, dnat by NAT-PMP and PCP",
            Self::UdpBlocked => "kernel: masquerade, only TCP 80 and 443",
            Self::OneToOne => "kernel: snat and dnat",
        }
    }

    /// Whether the same outside end serves every peer.
    #[must_use]
    pub fn is_cone(self) -> bool {
        let mapping = self.behaviour().mapping;
        mapping == Some(Dependence::EndpointIndependent)
    }

    /// The user-space NAT of this kind, if it is one.
    #[must_use]
    pub fn config(self, address: Ipv4Addr, seed: u64) -> Option<NatConfig> {
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let (mapping, filtering, allocation, hairpin) = match self {
            Self::FullCone => (EndpointIndependent, EndpointIndependent, Allocation::Random, false),
            Self::Restricted => (EndpointIndependent, AddressDependent, Allocation::Sequential, false),
            Self::Hairpin => (EndpointIndependent, AddressAndPortDependent, Allocation::Preserve, true),
            Self::SymmetricSequential => {
                (AddressAndPortDependent, AddressAndPortDependent, Allocation::Sequential, false)
            }
            // RFC 6146 has translators hairpin.
            Self::Nat64 => (EndpointIndependent, AddressDependent, Allocation::Random, true),
            _ => return None,
        };
        let timeout = MAPPING_LIFETIME;
        Some(NatConfig { mapping, filtering, allocation, hairpin, timeout, address, seed })
    }

    /// What the self-test must find.
    #[must_use]
    pub fn behaviour(self) -> Behaviour {
        use Dependence::{AddressAndPortDependent, EndpointIndependent};
        let behaviour = |mapping, filtering, allocation, hairpin, hops| Behaviour {
            udp: true,
            mapping: Some(mapping),
            filtering: Some(filtering),
            allocation: Some(allocation),
            hairpin,
            hops: Some(hops),
            mappable: self == Self::Mapped,
        };
        if let Some(config) = self.config(Ipv4Addr::UNSPECIFIED, 0) {
            return behaviour(config.mapping, config.filtering, config.allocation, Some(config.hairpin), 1);
        }
        let (open, closed, kept) = (EndpointIndependent, AddressAndPortDependent, Allocation::Preserve);
        match self {
            // A public host reaches itself without leaving.
            Self::None => behaviour(open, open, kept, None, 0),
            Self::OneToOne => behaviour(open, open, kept, Some(true), 1),
            Self::Double => behaviour(open, closed, kept, Some(false), 2),
            Self::SymmetricRandom => behaviour(closed, closed, Allocation::Random, Some(false), 1),
            Self::UdpBlocked => Behaviour {
                udp: false,
                mapping: None,
                filtering: None,
                allocation: None,
                hairpin: None,
                hops: None,
                mappable: false,
            },
            _ => behaviour(open, closed, kept, Some(false), 1),
        }
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for NatKind {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl FromStr for NatKind {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            LabError::Setting(format!("no kind `{text}`; there are {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_again_and_differ() {
        for kind in NatKind::ALL {
            assert_eq!(kind.name().parse::<NatKind>().expect("name"), kind);
        }
        assert!("cone".parse::<NatKind>().is_err());
        let mut names: Vec<_> = NatKind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 12);
    }

    /// Else the self-test could take one for another.
    #[test]
    fn no_two_kinds_look_the_same() {
        for (index, kind) in NatKind::ALL.iter().enumerate() {
            for other in &NatKind::ALL[..index] {
                assert_ne!(kind.behaviour(), other.behaviour(), "{kind} and {other}");
            }
        }
    }

    #[test]
    fn only_symmetric_ones_and_the_blocked_one_are_no_cones() {
        let hard: Vec<_> = NatKind::ALL.into_iter().filter(|kind| !kind.is_cone()).collect();
        assert_eq!(hard, [NatKind::SymmetricSequential, NatKind::SymmetricRandom, NatKind::UdpBlocked]);
    }
}
