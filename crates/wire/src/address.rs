//! 48-bit addresses: a network and a node, in six bytes or in text. `spec/wire.md §2`.
//!
//! ```text
//!  0        2                4               6          N : NNNN . HHHH . LLLL
//! +--------+--------+--------+--------+--------+--------+   |   |      |      |
//! | network (u16)   | node id (u32)                     |   |   |      +------+-- node id, 8 hex digits
//! +--------+--------+--------+--------+--------+--------+   |   +-- the network again, 4 hex digits
//!                  big-endian                               +-- network in decimal
//! ```
//!
//! The draft's prose lets all three groups carry the node id (`1:00A3.F291.0004`). No implementation accepts
//! that form, and 48 bits of hex for a 32-bit id cannot be right: it is refused here with
//! [`AddressError::NetworkMismatch`], which says so.

use core::fmt;
use core::str::FromStr;

/// A network: 0 is the backbone that every node belongs to, 1..=65534 are networks of the registry,
/// 65535 is reserved by the draft but parses. `spec/wire.md §2.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NetworkId(pub u16);

impl NetworkId {
    /// Network 0, in which every node has an address.
    pub const BACKBONE: Self = Self(0);
}

/// Decimal, as in the first field of an address.
impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<u16> for NetworkId {
    fn from(id: u16) -> Self {
        Self(id)
    }
}

/// A node, the same in all of its networks. 0 = "not registered yet", all ones = every node of a network.
/// `spec/wire.md §2.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u32);

impl NodeId {
    /// Named by a node that has no id yet (first beacon discover).
    pub const UNREGISTERED: Self = Self(0);
    /// Stands for all nodes of a network; never the id of a node.
    pub const BROADCAST: Self = Self(u32::MAX);
}

/// Eight hex digits as they stand in an address: `HHHH.LLLL`.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}.{:04X}", self.0 >> 16, self.0 & 0xFFFF)
    }
}

impl From<u32> for NodeId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

/// A node in a network. Text form `N:NNNN.HHHH.LLLL`, for example `1:0001.F291.0004`. `spec/wire.md §2`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub node: NodeId,
}

impl Address {
    /// Length on the wire, bytes.
    pub const LEN: usize = 6;

    /// The address of `node` in `network`.
    #[inline]
    pub const fn new(network: u16, node: u32) -> Self {
        Self { network: NetworkId(network), node: NodeId(node) }
    }

    /// Network u16, then node u32, both big-endian. `spec/wire.md §2.2`.
    #[inline]
    pub const fn to_bytes(self) -> [u8; 6] {
        let [n0, n1] = self.network.0.to_be_bytes();
        let [i0, i1, i2, i3] = self.node.0.to_be_bytes();
        [n0, n1, i0, i1, i2, i3]
    }

    /// The reverse of [`Address::to_bytes`]; every six bytes are an address.
    #[inline]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        let [n0, n1, i0, i1, i2, i3] = bytes;
        Self::new(u16::from_be_bytes([n0, n1]), u32::from_be_bytes([i0, i1, i2, i3]))
    }

    /// The address that stands for every node of `network`. `spec/wire.md §2.1`.
    #[inline]
    pub const fn broadcast(network: NetworkId) -> Self {
        Self { network, node: NodeId::BROADCAST }
    }

    /// Whether the node id is all ones, in any network.
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        self.node.0 == NodeId::BROADCAST.0
    }

    /// Whether all 48 bits are zero: no address at all.
    #[inline]
    pub const fn is_zero(self) -> bool {
        self.network.0 == 0 && self.node.0 == 0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.network.0;
        write!(f, "{network}:{network:04X}.{}", self.node)
    }
}

/// The text form, so that logs and assertion messages read like the user's own words.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// `spec/wire.md §2.3`. No trimming; hex digits in any case; leading zeros of the decimal network are tolerated.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (network, groups) = text.split_once(':').ok_or(AddressError::MissingColon)?;
        let network = decimal_u16(network).map_err(|error| match error {
            DecimalError::NotDigits => AddressError::Network,
            DecimalError::TooLarge => AddressError::NetworkTooLarge,
        })?;
        let mut groups = groups.split('.');
        let (Some(first), Some(high), Some(low), None) =
            (groups.next(), groups.next(), groups.next(), groups.next())
        else {
            return Err(AddressError::GroupCount);
        };
        if [first, high, low].iter().any(|group| group.len() != 4) {
            return Err(AddressError::GroupLength);
        }
        let first = hex_group(first)?;
        let high = hex_group(high)?;
        let low = hex_group(low)?;
        if first != network {
            return Err(AddressError::NetworkMismatch { network: NetworkId(network), group: first });
        }
        Ok(Self::new(network, u32::from(high) << 16 | u32::from(low)))
    }
}

/// An address and a port. Text form `N:NNNN.HHHH.LLLL:PORT`. `spec/wire.md §2.4`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SocketAddress {
    /// The node.
    pub address: Address,
    /// The port on it, 0..=65535.
    pub port: u16,
}

impl SocketAddress {
    /// `port` at `address`.
    #[inline]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SocketAddress {
    type Err = AddressError;

    /// The port is what follows the last colon.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, port) = text.rsplit_once(':').ok_or(AddressError::MissingColon)?;
        let port = decimal_u16(port).map_err(|error| match error {
            DecimalError::NotDigits => AddressError::Port,
            DecimalError::TooLarge => AddressError::PortTooLarge,
        })?;
        Ok(Self { address: address.parse()?, port })
    }
}

/// Why a text is not an address. Variants stand in the order in which they are looked for. `spec/wire.md §2.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressError {
    /// No `:` between network and groups (or before the port).
    MissingColon,
    /// The port is missing or has something else than decimal digits.
    Port,
    /// The port is above 65535.
    PortTooLarge,
    /// The network is missing or has something else than decimal digits.
    Network,
    /// The network is above 65535.
    NetworkTooLarge,
    /// Not exactly three groups separated by dots.
    GroupCount,
    /// A group that is not exactly four bytes long.
    GroupLength,
    /// A group with something else than hex digits.
    GroupDigits,
    /// The first group does not repeat the network: the form that the draft prints but nobody accepts.
    NetworkMismatch {
        /// Network from the decimal field.
        network: NetworkId,
        /// Value of the first hex group.
        group: u16,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match *self {
            Self::MissingColon => "no ':' found",
            Self::Port => "the port after the last ':' must be plain decimal digits",
            Self::PortTooLarge => "the port is above 65535",
            Self::Network => "the network before the first ':' must be plain decimal digits",
            Self::NetworkTooLarge => "the network is above 65535",
            Self::GroupCount => "exactly three groups separated by '.' must follow the ':'",
            Self::GroupLength => "every group must have exactly four characters",
            Self::GroupDigits => "every group must consist of hex digits",
            Self::NetworkMismatch { network, group } => {
                return write!(
                    f,
                    "invalid address: the first group is {group:04X} but must repeat network {network} in hex, \
                     that is {network}:{:04X}.HHHH.LLLL with the 32-bit node id in the last two groups; the form \
                     that the draft prints (1:00A3.F291.0004) is accepted by no implementation, that node is \
                     written 1:0001.F291.0004",
                    network.0
                );
            }
        };
        write!(f, "invalid address: {reason}; expected N:NNNN.HHHH.LLLL, for example 1:0001.F291.0004")
    }
}

impl core::error::Error for AddressError {}

/// Why a text is not a decimal u16.
enum DecimalError {
    /// Empty, or a byte that is not `0..=9`.
    NotDigits,
    /// Above 65535.
    TooLarge,
}

/// Digits only: `str::parse` would also take a leading `+`.
fn decimal_u16(text: &str) -> Result<u16, DecimalError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DecimalError::NotDigits);
    }
    text.bytes()
        .try_fold(0u16, |value, digit| value.checked_mul(10)?.checked_add(u16::from(digit - b'0')))
        .ok_or(DecimalError::TooLarge)
}

/// Four hex digits: `from_str_radix` would also take a leading `+`.
fn hex_group(group: &str) -> Result<u16, AddressError> {
    group
        .chars()
        .try_fold(0u16, |value, digit| Some(value << 4 | digit.to_digit(16)? as u16))
        .ok_or(AddressError::GroupDigits)
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::{String, ToString};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_and_bytes_round_trip(network: u16, node: u32, port: u16) {
            let address = Address::new(network, node);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(address.to_string().to_lowercase().parse(), Ok(address));
            prop_assert_eq!(Address::from_bytes(address.to_bytes()), address);
            let socket = SocketAddress::new(address, port);
            prop_assert_eq!(socket.to_string().parse(), Ok(socket));
        }

        /// Whatever parses is an address in all but letter case and leading zeros.
        #[test]
        fn parsing_never_panics_and_never_guesses(text in "[0-9A-Fa-f:.+ xé]{0,24}|\\PC{0,24}") {
            if let Ok(address) = text.parse::<Address>() {
                let printed = address.to_string();
                prop_assert!(text.trim_start_matches('0').to_uppercase().ends_with(printed.trim_start_matches('0')));
            }
            let _ = text.parse::<SocketAddress>();
        }

        #[test]
        fn first_group_must_repeat_the_network(network: u16, group: u16, node in "[0-9A-F]{4}\\.[0-9A-F]{4}") {
            let parsed = format!("{network}:{group:04X}.{node}").parse::<Address>();
            if network == group {
                prop_assert!(parsed.is_ok());
            } else {
                prop_assert_eq!(parsed, Err(AddressError::NetworkMismatch { network: NetworkId(network), group }));
            }
        }
    }

    #[test]
    fn the_drafts_form_is_refused_with_the_form_to_use() {
        let error = "1:00A3.F291.0004".parse::<Address>().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("first group is 00A3 but must repeat network 1"), "{text}");
        assert!(text.contains("1:0001.HHHH.LLLL"), "{text}");
        assert!(text.contains("draft prints (1:00A3.F291.0004)"), "{text}");
    }

    #[test]
    fn long_digit_runs_are_too_large_not_an_overflow() {
        let digits = String::from("9").repeat(10_000);
        assert_eq!(format!("{digits}:0000.0000.0001").parse::<Address>(), Err(AddressError::NetworkTooLarge));
        assert_eq!(
            format!("0:0000.0000.0001:{digits}").parse::<SocketAddress>(),
            Err(AddressError::PortTooLarge)
        );
    }

    #[test]
    fn broadcast_is_all_ones_in_any_network() {
        assert_eq!(Address::broadcast(NetworkId(7)).to_string(), "7:0007.FFFF.FFFF");
        assert!(Address::new(0, u32::MAX).is_broadcast());
        assert!(!Address::new(u16::MAX, u32::MAX - 1).is_broadcast());
    }

    #[test]
    fn debug_is_the_text_form() {
        assert_eq!(
            format!("{:?}", SocketAddress::new(Address::new(10, 0xDEAD_BEEF), 7)),
            "10:000A.DEAD.BEEF:7"
        );
        assert_eq!(NodeId(0x0001_F291).to_string(), "0001.F291");
    }
}
