//! The stored form of one node.
//!
//! ```text
//! version 1 = 1 | flags 1 (bit 0 public) | proof 1 | salt 2 | public key 32 | created 8
//! | name: len 1, bytes | endpoint: 0, or 4|6 then ip, port 2 | LAN: count 1, endpoints     (integers big-endian)
//! ```
//! A reader refuses other versions and trailing bytes: a newer registry's file is not opened by an older one.

use pilotage_wire::NodeId;
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::registry::{MAX_HOSTNAME, check_hostname};
use std::net::{IpAddr, SocketAddr};

/// Most LAN addresses kept of a node; further ones are ignored.
pub const MAX_LAN_ADDRS: usize = 16;

const VERSION: u8 = 1;
const FLAG_PUBLIC: u8 = 1;

/// How a key has shown that its owner acts. A registration below the level on record is refused (spec/registry.md §5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proof {
    /// Not at all (the reference's daemons).
    None,
    /// By a signature that anybody who saw it can repeat (later reference clients).
    Replayable,
    /// By a signature over a fresh challenge and all arguments.
    Fresh,
}

/// What is kept of a node for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Ed25519 public key; the owner of this record.
    pub public_key: [u8; 32],
    /// Salt with which the key gives the node id (spec/addressing.md).
    pub salt: u16,
    /// Best proof seen.
    pub proof: Proof,
    /// Visibility.
    pub public: bool,
    /// Claimed name.
    pub hostname: Option<Box<str>>,
    /// Last known UDP address; `None` after `deregister`.
    pub endpoint: Option<SocketAddr>,
    /// Addresses for peers on the same LAN, at most [`MAX_LAN_ADDRS`].
    pub lan_addrs: Vec<SocketAddr>,
    /// First registration, Unix seconds.
    pub created: u64,
}

/// Why a stored record is refused. All of these mean that the file was damaged or written by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer version.
    #[error("record version {0} is not known to this version")]
    Version(u8),
    /// Too short, too long, or not in the format.
    #[error("record of node {0} is malformed")]
    Malformed(NodeId),
    /// The key and salt do not give the node id.
    #[error("record of node {0} does not belong to its key")]
    WrongId(NodeId),
    /// Two records for one key.
    #[error("nodes {0} and {1} have the same key")]
    DuplicateKey(NodeId, NodeId),
    /// Two records for one name.
    #[error("nodes {0} and {1} have the same hostname")]
    DuplicateName(NodeId, NodeId),
}

impl Record {
    /// Appends the stored form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let proof = match self.proof {
            Proof::None => 0,
            Proof::Replayable => 1,
            Proof::Fresh => 2,
        };
        out.extend_from_slice(&[VERSION, u8::from(self.public) * FLAG_PUBLIC, proof]);
        out.extend_from_slice(&self.salt.to_be_bytes());
        out.extend_from_slice(&self.public_key);
        out.extend_from_slice(&self.created.to_be_bytes());
        // Names are checked when claimed (≤ 63 bytes), lists when registered (≤ 16).
        let name = self.hostname.as_deref().unwrap_or_default();
        debug_assert!(name.len() <= MAX_HOSTNAME && self.lan_addrs.len() <= MAX_LAN_ADDRS);
        out.push(u8::try_from(name.len()).unwrap_or(0));
        out.extend_from_slice(name.as_bytes());
        match self.endpoint {
            None => out.push(0),
            Some(addr) => encode_addr(addr, out),
        }
        let lan = &self.lan_addrs[..self.lan_addrs.len().min(MAX_LAN_ADDRS)];
        out.push(u8::try_from(lan.len()).unwrap_or(0));
        lan.iter().for_each(|addr| encode_addr(*addr, out));
    }

    /// Reads the stored form of node `id` and checks that it belongs to its key.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(id: NodeId, bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let record = (|| {
            if reader.u8()? != VERSION {
                return None;
            }
            let flags = reader.u8()?;
            let proof = match reader.u8()? {
                0 => Proof::None,
                1 => Proof::Replayable,
                2 => Proof::Fresh,
                _ => return None,
            };
            let salt = u16::from_be_bytes(reader.array()?);
            let public_key = reader.array()?;
            let created = u64::from_be_bytes(reader.array()?);
            let len = usize::from(reader.u8()?);
            let name = core::str::from_utf8(reader.bytes(len)?).ok()?;
            if !name.is_empty() && check_hostname(name).is_err() {
                return None;
            }
            let family = reader.u8()?;
            let endpoint = match family {
                0 => None,
                family => Some(reader.addr(family)?),
            };
            let count = usize::from(reader.u8()?);
            if count > MAX_LAN_ADDRS || flags & !FLAG_PUBLIC != 0 {
                return None;
            }
            let mut lan_addrs = Vec::with_capacity(count);
            for _ in 0..count {
                let family = reader.u8()?;
                lan_addrs.push(reader.addr(family)?);
            }
            reader.0.is_empty().then(|| Self {
                public_key,
                salt,
                proof,
                public: flags & FLAG_PUBLIC != 0,
                hostname: (!name.is_empty()).then(|| name.into()),
                endpoint,
                lan_addrs,
                created,
            })
        })();
        match (record, bytes.first()) {
            (Some(record), _) if derive_node_id(&record.public_key, record.salt) == Some(id) => Ok(record),
            (Some(_), _) => Err(RecordError::WrongId(id)),
            (None, Some(&version)) if version != VERSION => Err(RecordError::Version(version)),
            (None, _) => Err(RecordError::Malformed(id)),
        }
    }
}

fn encode_addr(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Checked reading from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn addr(&mut self, family: u8) -> Option<SocketAddr> {
        let ip = match family {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage_wire::addressing::node_ids;
    use proptest::prelude::*;

    fn addr() -> impl Strategy<Value = SocketAddr> {
        (any::<bool>(), any::<[u8; 16]>(), any::<u16>()).prop_map(|(v6, ip, port)| {
            let v4: [u8; 4] = ip[..4].try_into().unwrap();
            SocketAddr::new(if v6 { ip.into() } else { v4.into() }, port)
        })
    }

    fn record() -> impl Strategy<Value = (NodeId, Record)> {
        (
            any::<[u8; 32]>(),
            prop_oneof![Just(Proof::None), Just(Proof::Replayable), Just(Proof::Fresh)],
            any::<bool>(),
            proptest::option::of("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"),
            proptest::option::of(addr()),
            proptest::collection::vec(addr(), 0..=MAX_LAN_ADDRS),
            any::<u64>(),
        )
            .prop_map(|(public_key, proof, public, name, endpoint, lan_addrs, created)| {
                let (salt, id) = node_ids(&public_key).nth(usize::from(public_key[0])).unwrap();
                let hostname = name.filter(|n| check_hostname(n).is_ok()).map(Into::into);
                let record =
                    Record { public_key, salt, proof, public, hostname, endpoint, lan_addrs, created };
                (id, record)
            })
    }

    proptest! {
        #[test]
        fn records_round_trip_and_no_prefix_is_a_record((id, record) in record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(Record::decode(id, &bytes), Ok(record.clone()));
            for cut in 0..bytes.len() {
                prop_assert!(Record::decode(id, &bytes[..cut]).is_err());
            }
            prop_assert_eq!(Record::decode(NodeId(id.0 ^ 1), &bytes), Err(RecordError::WrongId(NodeId(id.0 ^ 1))));
            bytes.push(0);
            prop_assert_eq!(Record::decode(id, &bytes), Err(RecordError::Malformed(id)));
            bytes[0] = 2;
            prop_assert_eq!(Record::decode(id, &bytes), Err(RecordError::Version(2)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(NodeId(77), &bytes);
        }
    }
}
