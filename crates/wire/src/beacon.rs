//! Beacon messages over UDP: address discovery, hole punching, relay, gossip between beacons. `spec/wire.md §6`.
//!
//! ```text
//! 1 discover       node → beacon    | 01 | node u32 |
//! 2 discover reply beacon → node    | 02 | ip length 4 or 16 | ip | port u16 |
//! 3 punch request  node → beacon    | 03 | node u32 | target u32 |
//! 4 punch command  beacon → node    | 04 | ip length 4 or 16 | ip | port u16 |
//! 5 relay          node → beacon    | 05 | source u32 | destination u32 | frame … |     (also beacon → beacon)
//! 6 deliver        beacon → node    | 06 | source u32 | frame … |
//! 7 gossip         beacon → beacon  | 07 | beacon u32 | count u16 | count × node u32 |
//! 8 discover-ex    node → beacon    | 08 | node u32 |                                    (newer peers)
//! 9 deliver-ex     beacon → node    | 09 | source u32 | destination u32 | frame … |     (to those who used 8)
//! 14 extension     Pilotage's own   | 0e | kind u8 | see `Extension` |
//! ```
//!
//! None but the extension is authenticated. Who may be believed is decided in `pilotage-nat`.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::NodeId;
pub use crate::error::EncodeError;
use crate::error::room;

mod extension;

pub use extension::{
    Accept, CARRY_HEADER_LEN, COOKIE_LEN, Extension, MAX_PERMITTED, MAX_PROOF_TEXT, MAX_SYNC_NODES, NodeList,
    PROOF_CONTEXT, Rank, Refusal, TAG_LEN, proof_text,
};

/// Bytes that [`Message::Relay`] and [`Message::DeliverEx`] put before the frame.
pub const RELAY_HEADER_LEN: usize = 9;
/// Bytes that [`Message::Deliver`] puts before the frame.
pub const DELIVER_HEADER_LEN: usize = 5;
/// Most nodes that one gossip message can list.
pub const MAX_GOSSIP_NODES: usize = u16::MAX as usize;

/// Type numbers, the first byte of each message.
mod kind {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const DISCOVER_REPLY: u8 = 2;
    pub(super) const PUNCH_REQUEST: u8 = 3;
    pub(super) const PUNCH_COMMAND: u8 = 4;
    pub(super) const RELAY: u8 = 5;
    pub(super) const DELIVER: u8 = 6;
    pub(super) const GOSSIP: u8 = 7;
    pub(super) const DISCOVER_EX: u8 = 8;
    pub(super) const DELIVER_EX: u8 = 9;
    pub(super) const EXTENSION: u8 = 14;
}

/// A beacon message; frames and lists borrow from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// "This is me, tell me my address." Node 0 before registration.
    Discover {
        /// The asking node.
        node: NodeId,
    },
    /// The address from which the discover came.
    DiscoverReply {
        /// As the beacon saw it.
        addr: SocketAddr,
    },
    /// "Introduce me to `target`."
    PunchRequest {
        /// The asking node.
        node: NodeId,
        /// Whom it wants to reach.
        target: NodeId,
    },
    /// "Send punches to this address now." Sent to both sides.
    PunchCommand {
        /// Where the other side was last seen.
        addr: SocketAddr,
    },
    /// "Forward this frame to `dst`." The source is a claim.
    Relay {
        /// Claimed sender.
        src: NodeId,
        /// Receiver.
        dst: NodeId,
        /// The frame's bytes, as they would stand in a datagram of their own.
        frame: &'a [u8],
    },
    /// A forwarded frame.
    Deliver {
        /// Claimed sender.
        src: NodeId,
        /// The frame's bytes.
        frame: &'a [u8],
    },
    /// The nodes that another beacon can reach; replaces what it said before.
    Gossip {
        /// The announcing beacon.
        beacon: u32,
        /// Its nodes.
        nodes: NodeIds<'a>,
    },
    /// As [`Message::Discover`], and asks for [`Message::DeliverEx`] instead of [`Message::Deliver`].
    DiscoverEx {
        /// The asking node.
        node: NodeId,
    },
    /// A forwarded frame that says for whom it is, for sockets shared by several nodes.
    DeliverEx {
        /// Claimed sender.
        src: NodeId,
        /// Receiver.
        dst: NodeId,
        /// The frame's bytes.
        frame: &'a [u8],
    },
    /// One of Pilotage's own messages.
    Extension(Extension<'a>),
}

impl<'a> Message<'a> {
    /// Decodes one datagram. Bytes after a message of fixed length are ignored. An IPv4-mapped IPv6 address comes out
    /// as IPv4. `spec/wire.md §6.2`.
    ///
    /// # Errors
    ///
    /// [`BeaconError`]; such a datagram is dropped without an answer.
    pub fn decode(buf: &'a [u8]) -> Result<Self, BeaconError> {
        let Some((&number, body)) = buf.split_first() else { return Err(BeaconError::Empty) };
        let mut reader = Reader { rest: body, number, len: buf.len() };
        Ok(match number {
            kind::DISCOVER => Self::Discover { node: reader.node()? },
            kind::DISCOVER_REPLY => Self::DiscoverReply { addr: reader.addr()? },
            kind::PUNCH_REQUEST => Self::PunchRequest { node: reader.node()?, target: reader.node()? },
            kind::PUNCH_COMMAND => Self::PunchCommand { addr: reader.addr()? },
            kind::RELAY => Self::Relay { src: reader.node()?, dst: reader.node()?, frame: reader.rest },
            kind::DELIVER => Self::Deliver { src: reader.node()?, frame: reader.rest },
            kind::GOSSIP => {
                let beacon = reader.node()?.0;
                let count = usize::from(u16::from_be_bytes(reader.take()?));
                let bytes = reader.rest.get(..4 * count).ok_or(reader.too_short())?;
                Self::Gossip { beacon, nodes: NodeIds { bytes } }
            }
            kind::DISCOVER_EX => Self::DiscoverEx { node: reader.node()? },
            kind::DELIVER_EX => {
                Self::DeliverEx { src: reader.node()?, dst: reader.node()?, frame: reader.rest }
            }
            kind::EXTENSION => Self::Extension(Extension::decode(body, buf.len())?),
            other => return Err(BeaconError::Type(other)),
        })
    }

    /// Writes the message and returns its length ([`Message::encoded_len`]).
    ///
    /// # Errors
    ///
    /// [`EncodeError::BufferTooSmall`]; nothing is written then.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        if let Self::Extension(extension) = self {
            return extension.encode(buf);
        }
        let mut writer = Writer { rest: room(buf, self.encoded_len())? };
        match *self {
            Self::Discover { node } => writer.put(&[kind::DISCOVER]).node(node),
            Self::DiscoverReply { addr } => writer.put(&[kind::DISCOVER_REPLY]).addr(addr),
            Self::PunchRequest { node, target } => writer.put(&[kind::PUNCH_REQUEST]).node(node).node(target),
            Self::PunchCommand { addr } => writer.put(&[kind::PUNCH_COMMAND]).addr(addr),
            Self::Relay { src, dst, frame } => writer.put(&[kind::RELAY]).node(src).node(dst).put(frame),
            Self::Deliver { src, frame } => writer.put(&[kind::DELIVER]).node(src).put(frame),
            Self::Gossip { beacon, nodes } => {
                // A NodeIds never holds more than its 16-bit count can say.
                let count = nodes.len() as u16;
                writer
                    .put(&[kind::GOSSIP])
                    .put(&beacon.to_be_bytes())
                    .put(&count.to_be_bytes())
                    .put(nodes.bytes)
            }
            Self::DiscoverEx { node } => writer.put(&[kind::DISCOVER_EX]).node(node),
            Self::DeliverEx { src, dst, frame } => {
                writer.put(&[kind::DELIVER_EX]).node(src).node(dst).put(frame)
            }
            Self::Extension(_) => &mut writer,
        };
        Ok(self.encoded_len())
    }

    /// Bytes that [`Message::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Discover { .. } | Self::DiscoverEx { .. } => 5,
            Self::DiscoverReply { addr } | Self::PunchCommand { addr } => match addr.ip().to_canonical() {
                IpAddr::V4(_) => 8,
                IpAddr::V6(_) => 20,
            },
            Self::PunchRequest { .. } => 9,
            Self::Relay { frame, .. } | Self::DeliverEx { frame, .. } => RELAY_HEADER_LEN + frame.len(),
            Self::Deliver { frame, .. } => DELIVER_HEADER_LEN + frame.len(),
            Self::Gossip { nodes, .. } => 7 + nodes.bytes.len(),
            Self::Extension(extension) => extension.encoded_len(),
        }
    }
}

/// Writes a gossip message that lists `nodes`; returns its length. For callers that hold ids, not their wire form.
///
/// # Errors
///
/// [`EncodeError::TooLong`] above [`MAX_GOSSIP_NODES`], [`EncodeError::BufferTooSmall`]; nothing is written then.
pub fn encode_gossip(beacon: u32, nodes: &[NodeId], buf: &mut [u8]) -> Result<usize, EncodeError> {
    let Ok(count) = u16::try_from(nodes.len()) else {
        return Err(EncodeError::TooLong { len: nodes.len(), max: MAX_GOSSIP_NODES });
    };
    let total = 7 + 4 * nodes.len();
    let mut writer = Writer { rest: room(buf, total)? };
    writer.put(&[kind::GOSSIP]).put(&beacon.to_be_bytes()).put(&count.to_be_bytes());
    for &node in nodes {
        writer.node(node);
    }
    Ok(total)
}

/// The node ids of a gossip message, still in their wire form. At most [`MAX_GOSSIP_NODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeIds<'a> {
    // A multiple of four bytes.
    bytes: &'a [u8],
}

impl<'a> NodeIds<'a> {
    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The ids in the order of the wire.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = NodeId> + 'a {
        self.bytes.chunks_exact(4).map(|id| match *id {
            [a, b, c, d] => NodeId(u32::from_be_bytes([a, b, c, d])),
            _ => NodeId::UNREGISTERED,
        })
    }
}

/// Why bytes are not a beacon message. `spec/wire.md §6.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BeaconError {
    /// No byte at all.
    Empty,
    /// A type number that is not assigned.
    Type(u8),
    /// Fewer bytes than the message needs.
    TooShort {
        /// Type number of the message.
        number: u8,
        /// Bytes there are.
        len: usize,
    },
    /// An IP address whose length is neither 4 nor 16.
    IpLength(u8),
    /// A kind of extension that is not assigned.
    Kind(u8),
    /// A list that is longer than its message may hold.
    TooMany {
        /// Ids that the message promises.
        count: usize,
        /// Most that it may hold.
        max: usize,
    },
}

impl fmt::Display for BeaconError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("beacon: empty datagram"),
            Self::Type(number) => write!(f, "beacon: message type {number} is not assigned"),
            Self::TooShort { number, len } => {
                write!(f, "beacon: message type {number} cut off after {len} bytes")
            }
            Self::IpLength(len) => write!(f, "beacon: IP address of {len} bytes, only 4 and 16 exist"),
            Self::Kind(kind) => write!(f, "beacon: extension of kind {kind} is not assigned"),
            Self::TooMany { count, max } => {
                write!(f, "beacon: a list of {count} nodes, at most {max} may be")
            }
        }
    }
}

impl core::error::Error for BeaconError {}

/// Takes fixed pieces off the front of a message.
struct Reader<'a> {
    rest: &'a [u8],
    number: u8,
    len: usize,
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], BeaconError> {
        let (piece, rest) = self.rest.split_first_chunk::<N>().ok_or(self.too_short())?;
        self.rest = rest;
        Ok(piece)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BeaconError> {
        self.array().copied()
    }

    fn u16(&mut self) -> Result<u16, BeaconError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, BeaconError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn nodes(&mut self, count: usize, max: usize) -> Result<NodeIds<'a>, BeaconError> {
        if count > max {
            return Err(BeaconError::TooMany { count, max });
        }
        let (bytes, rest) = self.rest.split_at_checked(4 * count).ok_or(self.too_short())?;
        self.rest = rest;
        Ok(NodeIds { bytes })
    }

    fn node(&mut self) -> Result<NodeId, BeaconError> {
        Ok(NodeId(u32::from_be_bytes(self.take()?)))
    }

    fn addr(&mut self) -> Result<SocketAddr, BeaconError> {
        let [ip_len] = self.take()?;
        let ip = match ip_len {
            4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            16 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)).to_canonical(),
            other => return Err(BeaconError::IpLength(other)),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }

    fn too_short(&self) -> BeaconError {
        BeaconError::TooShort { number: self.number, len: self.len }
    }
}

/// Appends to a buffer that was checked to be long enough; a piece that would not fit is dropped.
struct Writer<'a> {
    rest: &'a mut [u8],
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some((out, rest)) = core::mem::take(&mut self.rest).split_at_mut_checked(bytes.len()) {
            out.copy_from_slice(bytes);
            self.rest = rest;
        }
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.put(&number.to_be_bytes())
    }

    fn node(&mut self, node: NodeId) -> &mut Self {
        self.put(&node.0.to_be_bytes())
    }

    fn addr(&mut self, addr: SocketAddr) -> &mut Self {
        match addr.ip().to_canonical() {
            IpAddr::V4(ip) => self.put(&[4]).put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&[16]).put(&ip.octets()),
        };
        self.put(&addr.port().to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        any::<SocketAddr>().prop_map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// A message without borrowed parts, or with `frame` as the borrowed part.
    fn message(choice: u8, a: u32, b: u32, addr: SocketAddr, frame: &[u8]) -> Message<'_> {
        let (src, dst) = (NodeId(a), NodeId(b));
        match choice {
            1 => Message::Discover { node: src },
            2 => Message::DiscoverReply { addr },
            3 => Message::PunchRequest { node: src, target: dst },
            4 => Message::PunchCommand { addr },
            5 => Message::Relay { src, dst, frame },
            6 => Message::Deliver { src, frame },
            7 => Message::Gossip { beacon: a, nodes: NodeIds { bytes: &frame[..frame.len() / 4 * 4] } },
            8 => Message::DiscoverEx { node: src },
            _ => Message::DeliverEx { src, dst, frame },
        }
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(choice in 1u8..=9, a: u32, b: u32, addr in any_addr(), frame: Vec<u8>) {
            let message = message(choice, a, b, addr, &frame);
            let mut buf = vec![0xA5; message.encoded_len()];
            prop_assert_eq!(message.encode(&mut buf), Ok(buf.len()));
            prop_assert_eq!(buf[0], choice);
            prop_assert_eq!(Message::decode(&buf), Ok(message));

            let (need, have) = (buf.len(), buf.len() - 1);
            buf.fill(0xA5);
            prop_assert_eq!(message.encode(&mut buf[..have]), Err(EncodeError::BufferTooSmall { need, have }));
            prop_assert!(buf.iter().all(|&byte| byte == 0xA5));
        }

        #[test]
        fn random_bytes_never_panic(number in 0u8..=10, rest in prop::collection::vec(any::<u8>(), 0..80)) {
            let datagram = [&[number], &rest[..]].concat();
            if let Ok(message) = Message::decode(&datagram) {
                let mut buf = vec![0; datagram.len()];
                let len = message.encode(&mut buf).expect("no longer than the input");
                prop_assert_eq!(Message::decode(&buf[..len]), Ok(message));
            }
            let _ = Message::decode(&rest);
        }

        #[test]
        fn gossip_lists_round_trip(beacon: u32, ids: Vec<u32>) {
            let ids: Vec<NodeId> = ids.into_iter().map(NodeId).collect();
            let mut buf = vec![0; 7 + 4 * ids.len()];
            prop_assert_eq!(encode_gossip(beacon, &ids, &mut buf), Ok(buf.len()));
            let Ok(Message::Gossip { beacon: got, nodes }) = Message::decode(&buf) else { panic!("not gossip") };
            prop_assert_eq!(got, beacon);
            prop_assert_eq!(nodes.iter().collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn gossip_is_bounded_by_its_count_field() {
        let ids = vec![NodeId(1); MAX_GOSSIP_NODES + 1];
        let mut buf = vec![0; 7 + 4 * ids.len()];
        let too_long = EncodeError::TooLong { len: MAX_GOSSIP_NODES + 1, max: MAX_GOSSIP_NODES };
        assert_eq!(encode_gossip(1, &ids, &mut buf), Err(too_long));
        assert_eq!(encode_gossip(1, &ids[1..], &mut buf), Ok(7 + 4 * MAX_GOSSIP_NODES));
        // A count that promises more than there is must not be believed.
        assert_eq!(
            Message::decode(&[7, 0, 0, 0, 9, 0xFF, 0xFF, 0, 0, 0, 1]),
            Err(BeaconError::TooShort { number: 7, len: 11 })
        );
    }

    #[test]
    fn ipv4_mapped_addresses_travel_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:203.0.113.9]:4000".parse().unwrap();
        let plain: SocketAddr = "203.0.113.9:4000".parse().unwrap();
        let mut buf = [0; 20];
        assert_eq!(Message::DiscoverReply { addr: mapped }.encode(&mut buf), Ok(8));
        assert_eq!(Message::decode(&buf[..8]), Ok(Message::DiscoverReply { addr: plain }));
        let mut long = vec![2, 16];
        long.extend_from_slice(&Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().octets());
        long.extend_from_slice(&4000u16.to_be_bytes());
        assert_eq!(Message::decode(&long), Ok(Message::DiscoverReply { addr: plain }));
    }

    #[test]
    fn what_is_not_a_message_is_named() {
        assert_eq!(Message::decode(&[]), Err(BeaconError::Empty));
        assert_eq!(Message::decode(&[0]), Err(BeaconError::Type(0)));
        assert_eq!(Message::decode(&[10]), Err(BeaconError::Type(10)));
        assert_eq!(Message::decode(&[2, 5, 0, 0, 0, 0, 0, 0]), Err(BeaconError::IpLength(5)));
        assert_eq!(Message::decode(&[1, 0, 0, 0]), Err(BeaconError::TooShort { number: 1, len: 4 }));
    }

    #[test]
    fn bytes_after_a_fixed_message_are_ignored() {
        assert_eq!(Message::decode(&[1, 0, 0, 0, 42, 9, 9]), Ok(Message::Discover { node: NodeId(42) }));
    }
}
