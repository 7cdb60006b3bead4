//! How a caller names a peer.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use pilotage_wire::Address;
use pilotage_wire::registry::{HostnameError, check_hostname};

/// A peer as a caller names it.
///
/// Parses from `bob`, `0:0000.ABCD.1234` and `0:0000.ABCD.1234@192.0.2.7:4000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A name that the hub knows.
    Name(String),
    /// An address that the hub, a pin or a static introduction knows.
    Address(Address),
    /// An address at a known UDP endpoint; no hub is asked.
    At(Address, SocketAddr),
}

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerParseError {
    /// The Pilot address is malformed.
    #[error("peer address {text:?}: {reason}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The part after `@` is no `IP:PORT`.
    #[error("peer endpoint {0:?}: expected IP:PORT, as in 192.0.2.7:4000 or [2001:db8::7]:4000")]
    Endpoint(String),
    /// Neither an address nor a possible name.
    #[error("peer name {text:?}: {reason}")]
    Name {
        /// What was given.
        text: String,
        /// Which rule is broken.
        reason: HostnameError,
    },
}

impl FromStr for Peer {
    type Err = PeerParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((address, endpoint)) = text.split_once('@') {
            let address = parse_address(address)?;
            let endpoint = endpoint.parse().map_err(|_| PeerParseError::Endpoint(endpoint.to_owned()))?;
            return Ok(Self::At(address, endpoint));
        }
        if text.contains(':') {
            return Ok(Self::Address(parse_address(text)?));
        }
        match check_hostname(text) {
            Ok(()) => Ok(Self::Name(text.to_owned())),
            Err(reason) => Err(PeerParseError::Name { text: text.to_owned(), reason }),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
            Self::At(address, endpoint) => write!(f, "{address}@{endpoint}"),
        }
    }
}

impl From<Address> for Peer {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<(Address, SocketAddr)> for Peer {
    fn from((address, endpoint): (Address, SocketAddr)) -> Self {
        Self::At(address, endpoint)
    }
}

impl From<&Peer> for Peer {
    fn from(peer: &Peer) -> Self {
        peer.clone()
    }
}

fn parse_address(text: &str) -> Result<Address, PeerParseError> {
    text.parse().map_err(|error: pilotage_wire::AddressError| PeerParseError::Address {
        text: text.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_parse_and_display_round_trip() {
        for text in [
            "bob",
            "agent-7",
            "0:0000.ABCD.1234",
            "0:0000.ABCD.1234@127.0.0.1:4000",
            "0:0000.ABCD.1234@[::1]:9",
        ] {
            let peer: Peer = text.parse().expect(text);
            assert_eq!(peer.to_string(), text);
        }
        assert!(matches!("0:0000.ABCD.1234@127.0.0.1:4000".parse(), Ok(Peer::At(_, _))));
    }

    #[test]
    fn errors_say_which_part_is_wrong() {
        assert!(matches!("Bob!".parse::<Peer>(), Err(PeerParseError::Name { .. })));
        assert!(matches!("-bob".parse::<Peer>(), Err(PeerParseError::Name { .. })));
        assert!(matches!("".parse::<Peer>(), Err(PeerParseError::Name { .. })));
        assert!(matches!("a".repeat(64).parse::<Peer>(), Err(PeerParseError::Name { .. })));
        assert!(matches!("0:zz".parse::<Peer>(), Err(PeerParseError::Address { .. })));
        assert!(matches!("0:0000.ABCD.1234@host:1".parse::<Peer>(), Err(PeerParseError::Endpoint(_))));
    }
}
