//! Everything durable beside the nodes: networks, trust, inboxes, invitations; with the undo journal of the batch.

use super::network::Network;
use pilotage_wire::NodeId;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Name of a row. The order groups what is asked for together: all requests to a node, all invitations of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The id of the next network: ids are never used twice.
    NextNetwork,
    /// A network.
    Network(u16),
    /// The first trusts the second, or has asked it for trust.
    Consent(NodeId, NodeId),
    /// In the inbox of the first: the second asks for trust.
    Request(NodeId, NodeId),
    /// In the inbox of the first: the second has answered.
    Response(NodeId, NodeId),
    /// The node may enter the network.
    Invite(NodeId, u16),
}

/// What a row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// To [`RowKey::NextNetwork`].
    NextNetwork(u16),
    /// To [`RowKey::Network`].
    Network(Box<Network>),
    /// To [`RowKey::Consent`].
    Consent {
        /// Given by `report_trust` or by accepting; otherwise only asked for.
        given: bool,
    },
    /// To [`RowKey::Request`].
    Request {
        /// Why.
        justification: Box<str>,
        /// Unix seconds.
        at: u64,
    },
    /// To [`RowKey::Response`].
    Response {
        /// Yes or no.
        accept: bool,
        /// Unix seconds.
        at: u64,
    },
    /// To [`RowKey::Invite`].
    Invite {
        /// Who invited; 0 = an admin.
        inviter: NodeId,
        /// Unix seconds.
        at: u64,
    },
}

/// A stored row that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row about networks or trust is malformed")]
pub struct RowError;

/// Kinds of rows that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Other,
    Network,
    Consent,
    Inbox,
    Invite,
}
const KINDS: usize = 5;

impl RowKey {
    fn kind(&self) -> Kind {
        match self {
            Self::NextNetwork => Kind::Other,
            Self::Network(_) => Kind::Network,
            Self::Consent(..) => Kind::Consent,
            Self::Request(..) | Self::Response(..) => Kind::Inbox,
            Self::Invite(..) => Kind::Invite,
        }
    }

    /// The stored form: a letter, then the ids, big-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pair = |tag, a: NodeId, b: NodeId| [&[tag][..], &a.0.to_be_bytes(), &b.0.to_be_bytes()].concat();
        match *self {
            Self::NextNetwork => vec![b'c'],
            Self::Network(id) => [&b"n"[..], &id.to_be_bytes()].concat(),
            Self::Consent(from, to) => pair(b't', from, to),
            Self::Request(to, from) => pair(b'q', to, from),
            Self::Response(to, from) => pair(b'r', to, from),
            Self::Invite(node, network) => {
                [&b"i"[..], &node.0.to_be_bytes(), &network.to_be_bytes()].concat()
            }
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`RowError`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let (tag, rest) = bytes.split_first().ok_or(RowError)?;
        let pair = || {
            let (a, b) = rest.split_first_chunk::<4>().ok_or(RowError)?;
            let b: [u8; 4] = b.try_into().map_err(|_| RowError)?;
            Ok((NodeId(u32::from_be_bytes(*a)), NodeId(u32::from_be_bytes(b))))
        };
        Ok(match tag {
            b'c' if rest.is_empty() => Self::NextNetwork,
            b'n' => Self::Network(u16::from_be_bytes(rest.try_into().map_err(|_| RowError)?)),
            b't' => pair().map(|(from, to)| Self::Consent(from, to))?,
            b'q' => pair().map(|(to, from)| Self::Request(to, from))?,
            b'r' => pair().map(|(to, from)| Self::Response(to, from))?,
            b'i' => {
                let (node, network) = rest.split_first_chunk::<4>().ok_or(RowError)?;
                let network = u16::from_be_bytes(network.try_into().map_err(|_| RowError)?);
                Self::Invite(NodeId(u32::from_be_bytes(*node)), network)
            }
            _ => return Err(RowError),
        })
    }
}

impl Row {
    /// Appends the stored form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::NextNetwork(id) => out.extend_from_slice(&id.to_be_bytes()),
            Self::Network(network) => network.encode(out),
            Self::Consent { given } => out.push(u8::from(*given)),
            Self::Request { justification, at } => {
                out.extend_from_slice(&at.to_be_bytes());
                out.extend_from_slice(justification.as_bytes());
            }
            Self::Response { accept, at } => {
                out.extend_from_slice(&at.to_be_bytes());
                out.push(u8::from(*accept));
            }
            Self::Invite { inviter, at } => {
                out.extend_from_slice(&at.to_be_bytes());
                out.extend_from_slice(&inviter.0.to_be_bytes());
            }
        }
    }

    /// Reads the stored form of the row `key`.
    ///
    /// # Errors
    /// [`RowError`] if it is none.
    pub fn decode(key: &RowKey, bytes: &[u8]) -> Result<Self, RowError> {
        let flag = |byte: u8| if byte > 1 { Err(RowError) } else { Ok(byte == 1) };
        let at = || {
            let (at, rest) = bytes.split_first_chunk::<8>().ok_or(RowError)?;
            Ok((u64::from_be_bytes(*at), rest))
        };
        Ok(match key {
            RowKey::NextNetwork => {
                Self::NextNetwork(u16::from_be_bytes(bytes.try_into().map_err(|_| RowError)?))
            }
            RowKey::Network(_) => Self::Network(Box::new(Network::decode(bytes)?)),
            RowKey::Consent(..) => match bytes {
                [byte] => Self::Consent { given: flag(*byte)? },
                _ => return Err(RowError),
            },
            RowKey::Request(..) => {
                let (at, text) = at()?;
                let justification = core::str::from_utf8(text).map_err(|_| RowError)?.into();
                Self::Request { justification, at }
            }
            RowKey::Response(..) => match at()? {
                (at, [byte]) => Self::Response { accept: flag(*byte)?, at },
                _ => return Err(RowError),
            },
            RowKey::Invite(..) => {
                let (at, inviter) = at()?;
                let inviter = NodeId(u32::from_be_bytes(inviter.try_into().map_err(|_| RowError)?));
                Self::Invite { inviter, at }
            }
        })
    }
}

/// All rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    map: BTreeMap<RowKey, Row>,
    counts: [usize; KINDS],
    /// What each change of this batch replaced, oldest first.
    journal: Vec<(RowKey, Option<Row>)>,
}

impl Rows {
    /// Adds a stored row at start.
    pub(super) fn load(&mut self, key: RowKey, row: Row) {
        self.set(key, Some(row));
    }

    /// Makes what a cluster has agreed on the state of `key`. Nothing is staged.
    pub(super) fn settle(&mut self, key: RowKey, row: Option<Row>) {
        self.set(key, row);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What each row changed since `mark` was before.
    pub(super) fn before(&self, mark: usize) -> impl Iterator<Item = (RowKey, Option<&Row>)> {
        self.journal.get(mark..).unwrap_or_default().iter().map(|(key, old)| (*key, old.as_ref()))
    }

    pub(super) fn get(&self, key: &RowKey) -> Option<&Row> {
        self.map.get(key)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.counts[kind as usize]
    }

    /// Rows from `first` to `last`, both included.
    pub(super) fn range(&self, first: RowKey, last: RowKey) -> impl Iterator<Item = (&RowKey, &Row)> {
        self.map.range((Bound::Included(first), Bound::Included(last)))
    }

    pub(super) fn put(&mut self, key: RowKey, row: Row) {
        let previous = self.set(key, Some(row));
        self.journal.push((key, previous));
    }

    /// True if there was something to remove.
    pub(super) fn remove(&mut self, key: RowKey) -> bool {
        let previous = self.set(key, None);
        let found = previous.is_some();
        if found {
            self.journal.push((key, previous));
        }
        found
    }

    fn set(&mut self, key: RowKey, row: Option<Row>) -> Option<Row> {
        let count = &mut self.counts[key.kind() as usize];
        let is = row.is_some();
        let previous = match row {
            Some(row) => self.map.insert(key, row),
            None => self.map.remove(&key),
        };
        match (previous.is_some(), is) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        }
        previous
    }

    pub(super) fn staged_len(&self) -> usize {
        self.journal.len()
    }

    /// Changed rows with their newest content; a row may be listed twice.
    pub(super) fn staged(&self) -> impl Iterator<Item = (RowKey, Option<&Row>)> {
        self.journal.iter().map(|(key, _)| (*key, self.map.get(key)))
    }

    pub(super) fn commit(&mut self) {
        self.journal.clear();
    }

    pub(super) fn rollback(&mut self) {
        while let Some((key, previous)) = self.journal.pop() {
            self.set(key, previous);
        }
    }

    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut counts = [0; KINDS];
        self.map.keys().for_each(|key| counts[key.kind() as usize] += 1);
        assert_eq!(counts, self.counts);
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> BTreeMap<RowKey, Row> {
        self.map.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::network::{JoinRule, Role};
    use crate::engine::secret::Secret;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = (RowKey, Row)> {
        let id = || any::<u32>().prop_map(NodeId);
        prop_oneof![
            any::<u16>().prop_map(|id| (RowKey::NextNetwork, Row::NextNetwork(id))),
            (id(), id(), any::<bool>())
                .prop_map(|(a, b, given)| (RowKey::Consent(a, b), Row::Consent { given })),
            (id(), id(), ".{0,40}", any::<u64>()).prop_map(|(a, b, text, at)| {
                (RowKey::Request(a, b), Row::Request { justification: text.into(), at })
            }),
            (id(), id(), any::<bool>(), any::<u64>())
                .prop_map(|(a, b, accept, at)| (RowKey::Response(a, b), Row::Response { accept, at })),
            (id(), any::<u16>(), id(), any::<u64>())
                .prop_map(|(a, n, inviter, at)| (RowKey::Invite(a, n), Row::Invite { inviter, at })),
            (any::<u16>(), network())
                .prop_map(|(n, network)| { (RowKey::Network(n), Row::Network(Box::new(network))) }),
        ]
    }

    fn network() -> impl Strategy<Value = Network> {
        let rule = prop_oneof![Just(JoinRule::Open), Just(JoinRule::Token), Just(JoinRule::Invite)];
        let role = prop_oneof![Just(Role::Member), Just(Role::Admin), Just(Role::Owner)];
        (
            "[a-z0-9]{1,63}",
            rule,
            proptest::option::of(any::<[u8; 32]>()),
            any::<bool>(),
            any::<u64>(),
            proptest::collection::btree_map(any::<u32>(), role, 0..20),
            any::<u32>(),
            proptest::collection::vec(any::<u16>(), 0..=64),
            "[ -~]{0,256}",
        )
            .prop_map(
                |(name, rule, token, enterprise, created, members, max_members, ports, text)| Network {
                    name: name.into(),
                    rule,
                    token: token.map(Secret::from_stored),
                    admin: token.map(Secret::from_stored),
                    enterprise,
                    created,
                    members: members.into_iter().map(|(id, role)| (NodeId(id), role)).collect(),
                    max_members,
                    allowed_ports: ports,
                    description: text.into(),
                },
            )
    }

    proptest! {
        #[test]
        fn rows_round_trip((key, row) in row()) {
            let stored = key.encode();
            prop_assert_eq!(RowKey::decode(&stored), Ok(key));
            for cut in 0..stored.len() {
                prop_assert!(RowKey::decode(&stored[..cut]) != Ok(key));
            }
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            prop_assert_eq!(Row::decode(&key, &bytes), Ok(row));
        }

        #[test]
        fn any_bytes_are_survived(key in proptest::collection::vec(any::<u8>(), 0..12), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = RowKey::decode(&key)
                && let Ok(row) = Row::decode(&key, &bytes)
            {
                let mut again = Vec::new();
                row.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
