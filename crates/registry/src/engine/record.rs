//! The stored form of one node.
//!
//! ```text
//! version 1 = 1 | flags 1 (bit 0 public) | proof 1 | salt 2 | public key 32 | created 8
//! | name: len 1, bytes | endpoint: 0, or 4|6 then ip, port 2 | LAN: count 1, endpoints     (integers big-endian)
//! version 2: as version 1, then what differs from the beginnings of every node:
//! | flags 1 (1 takes tasks, 2 first key, 4 expiry) | changes of key 4 | present key since 8 | score 8
//! | [first key 32] | [expiry 8] | tags: count 1, (len 1, bytes) each
//! ```
//! A node without any of that has version 1, so that one record has one form.
//!
//! A reader refuses other versions and trailing bytes: a newer registry's file is not opened by an older one.

use pilotage_wire::NodeId;
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::registry::{MAX_HOSTNAME, MAX_TAGS, check_hostname, normalize_tags};
use std::net::{IpAddr, SocketAddr};

/// Most LAN addresses kept of a node; further ones are ignored.
pub const MAX_LAN_ADDRS: usize = 16;

const PLAIN: u8 = 1;
const WITH_PROFILE: u8 = 2;
const FLAG_PUBLIC: u8 = 1;
const FLAG_TASKS: u8 = 1;
const FLAG_FIRST_KEY: u8 = 2;
const FLAG_EXPIRY: u8 = 4;

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
    /// What most nodes have not.
    pub profile: Profile,
}

/// What a node says about itself, and the history of its key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Of a node that has changed its key: the key that its id is derived from.
    pub first_key: Option<[u8; 32]>,
    /// How often it has changed its key.
    pub rotations: u32,
    /// Since when it has its present key, Unix seconds; 0 = since its first registration.
    pub key_since: u64,
    /// When its key ends, Unix seconds.
    pub key_expires: Option<u64>,
    /// At most [`MAX_TAGS`], normalised.
    pub tags: Vec<Box<str>>,
    /// It takes tasks.
    pub task_exec: bool,
    /// Its score.
    pub polo_score: i64,
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
        let plain = self.profile == Profile::default();
        let version = if plain { PLAIN } else { WITH_PROFILE };
        out.extend_from_slice(&[version, u8::from(self.public) * FLAG_PUBLIC, proof]);
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
        if !plain {
            self.profile.encode(out);
        }
    }

    /// The key that the node id is derived from.
    #[must_use]
    pub fn first_key(&self) -> &[u8; 32] {
        self.profile.first_key.as_ref().unwrap_or(&self.public_key)
    }

    /// Since when the node has its present key, Unix seconds.
    #[must_use]
    pub fn key_since(&self) -> u64 {
        if self.profile.key_since == 0 { self.created } else { self.profile.key_since }
    }

    /// Reads the stored form of node `id` and checks that it belongs to its key.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(id: NodeId, bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let record = (|| {
            let version = reader.u8()?;
            if !(PLAIN..=WITH_PROFILE).contains(&version) {
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
            let profile = match version {
                PLAIN => Profile::default(),
                _ => Profile::decode(&mut reader, &public_key)?,
            };
            reader.0.is_empty().then(|| Self {
                public_key,
                salt,
                proof,
                public: flags & FLAG_PUBLIC != 0,
                hostname: (!name.is_empty()).then(|| name.into()),
                endpoint,
                lan_addrs,
                created,
                profile,
            })
        })();
        match (record, bytes.first()) {
            (Some(record), _) if derive_node_id(record.first_key(), record.salt) == Some(id) => Ok(record),
            (Some(_), _) => Err(RecordError::WrongId(id)),
            (None, Some(&version)) if !(PLAIN..=WITH_PROFILE).contains(&version) => {
                Err(RecordError::Version(version))
            }
            (None, _) => Err(RecordError::Malformed(id)),
        }
    }
}

impl Profile {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = u8::from(self.task_exec) * FLAG_TASKS;
        flags |= u8::from(self.first_key.is_some()) * FLAG_FIRST_KEY;
        flags |= u8::from(self.key_expires.is_some()) * FLAG_EXPIRY;
        out.push(flags);
        out.extend_from_slice(&self.rotations.to_be_bytes());
        out.extend_from_slice(&self.key_since.to_be_bytes());
        out.extend_from_slice(&self.polo_score.to_be_bytes());
        self.first_key.iter().for_each(|key| out.extend_from_slice(key));
        self.key_expires.iter().for_each(|at| out.extend_from_slice(&at.to_be_bytes()));
        // Tags are checked when they are set.
        out.push(u8::try_from(self.tags.len()).unwrap_or(0));
        for tag in &self.tags {
            out.push(u8::try_from(tag.len()).unwrap_or(0));
            out.extend_from_slice(tag.as_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>, public_key: &[u8; 32]) -> Option<Self> {
        let flags = reader.u8()?;
        if flags & !(FLAG_TASKS | FLAG_FIRST_KEY | FLAG_EXPIRY) != 0 {
            return None;
        }
        let rotations = u32::from_be_bytes(reader.array()?);
        let key_since = u64::from_be_bytes(reader.array()?);
        let polo_score = i64::from_be_bytes(reader.array()?);
        let first_key = if flags & FLAG_FIRST_KEY == 0 { None } else { Some(reader.array()?) };
        let key_expires =
            if flags & FLAG_EXPIRY == 0 { None } else { Some(u64::from_be_bytes(reader.array()?)) };
        let count = usize::from(reader.u8()?);
        let mut tags: Vec<Box<str>> = Vec::with_capacity(count.min(MAX_TAGS));
        for _ in 0..count {
            let len = usize::from(reader.u8()?);
            tags.push(core::str::from_utf8(reader.bytes(len)?).ok()?.into());
        }
        let normal = normalize_tags(&tags).ok()?;
        let same = normal.len() == tags.len() && normal.iter().zip(&tags).all(|(a, b)| a.as_str() == &**b);
        let task_exec = flags & FLAG_TASKS != 0;
        let profile = Self { first_key, rotations, key_since, key_expires, tags, task_exec, polo_score };
        (same && profile != Self::default() && first_key.as_ref() != Some(public_key)).then_some(profile)
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

    fn profile() -> impl Strategy<Value = Profile> {
        let tags = proptest::collection::btree_set("[a-z0-9]{1,32}", 0..=MAX_TAGS);
        let full = (
            proptest::option::of(any::<[u8; 32]>()),
            any::<u32>(),
            any::<u64>(),
            proptest::option::of(any::<u64>()),
            tags,
            any::<bool>(),
            any::<i64>(),
        )
            .prop_map(
                |(first_key, rotations, key_since, key_expires, tags, task_exec, polo_score)| Profile {
                    first_key,
                    rotations,
                    key_since,
                    key_expires,
                    tags: tags.into_iter().map(Into::into).collect(),
                    task_exec,
                    polo_score,
                },
            );
        prop_oneof![Just(Profile::default()), full]
    }

    fn record() -> impl Strategy<Value = (NodeId, Record)> {
        (
            profile(),
            any::<[u8; 32]>(),
            prop_oneof![Just(Proof::None), Just(Proof::Replayable), Just(Proof::Fresh)],
            any::<bool>(),
            proptest::option::of("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"),
            proptest::option::of(addr()),
            proptest::collection::vec(addr(), 0..=MAX_LAN_ADDRS),
            any::<u64>(),
        )
            .prop_map(|(profile, public_key, proof, public, name, endpoint, lan_addrs, created)| {
                let first_key = profile.first_key.unwrap_or(public_key);
                let (salt, id) = node_ids(&first_key).nth(usize::from(first_key[0])).unwrap();
                let hostname = name.filter(|n| check_hostname(n).is_ok()).map(Into::into);
                let record = Record {
                    public_key,
                    salt,
                    proof,
                    public,
                    hostname,
                    endpoint,
                    lan_addrs,
                    created,
                    profile,
                };
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
            bytes[0] = 3;
            prop_assert_eq!(Record::decode(id, &bytes), Err(RecordError::Version(3)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(NodeId(77), &bytes);
        }
    }
}
