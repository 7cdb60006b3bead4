//! Pilotage's own beacon messages: proof of a key, discovery of NAT behaviour, beacons among themselves.
//! `spec/wire.md §6.3`.
//!
//! All have type 14, which deployed beacons and nodes ignore, and a kind in the second byte. Layouts after these two:
//!
//! ```text
//! 1 hello        node → beacon   | flags u8 | node u32 | nonce u64 | zeros …
//! 2 challenge    beacon → node   | nonce u64 | cookie 24 | addr |
//! 3 prove        node → beacon   | node u32 | salt u16 | nonce u64 | cookie 24 | key 32 | addr of the beacon
//!                                | accept u8 | count u8 | count × node u32 | signature 64 |
//! 4 registered   beacon → node   | nonce u64 | rank u8 | lifetime u16, s | other port u16 | addr |
//! 5 refused      beacon → node   | nonce u64 | reason u8 | addr |
//! 6 probe        node → beacon   | flags u8 | nonce u64 | zeros …
//! 7 probe reply  beacon → node   | nonce u64 | other port u16 | addr |
//! 8 hairpin      node → itself   | nonce u64 |
//! 9 sync         beacon → beacon | boot u64 | echo u64 | number u64 | flags u8 | count u16 | count × node u32 | tag 16 |
//! 10 carry       beacon → beacon | flags u8 | source u32 | destination u32 | tag 16 | frame …
//! ```

use core::net::SocketAddr;

use super::{BeaconError, EncodeError, IpAddr, NodeIds, Reader, Writer, kind, room};
use crate::NodeId;

/// Bytes of the cookie in a challenge.
pub const COOKIE_LEN: usize = 24;
/// Bytes of the authentication tag of messages between beacons.
pub const TAG_LEN: usize = 16;
/// Most senders that a prove message can permit.
pub const MAX_PERMITTED: usize = 64;
/// Most nodes in one sync message: it fits the smallest IPv6 packet that all links carry.
pub const MAX_SYNC_NODES: usize = 280;
/// Bytes that [`Extension::Carry`] puts before the frame.
pub const CARRY_HEADER_LEN: usize = 2 + 1 + 4 + 4 + TAG_LEN;
/// Bytes of the signature at the end of a prove message.
const SIGNATURE_LEN: usize = 64;

/// Kind numbers, the second byte.
mod number {
    pub(super) const HELLO: u8 = 1;
    pub(super) const CHALLENGE: u8 = 2;
    pub(super) const PROVE: u8 = 3;
    pub(super) const REGISTERED: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const PROBE: u8 = 6;
    pub(super) const PROBE_REPLY: u8 = 7;
    pub(super) const HAIRPIN: u8 = 8;
    pub(super) const SYNC: u8 = 9;
    pub(super) const CARRY: u8 = 10;
}

/// From whom a node takes relayed frames and introductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accept {
    /// From every registered node, those of the reference included.
    #[default]
    Anybody,
    /// From nodes that proved their key to the beacon.
    Proven,
    /// From proven nodes that it named, and those that it itself sent something lately.
    Named,
}

impl Accept {
    const fn number(self) -> u8 {
        match self {
            Self::Anybody => 0,
            Self::Proven => 1,
            Self::Named => 2,
        }
    }
}

/// How sure a beacon is that an id belongs to whom it registered for it. Higher ones displace lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Rank {
    /// The sender named the id, as deployed nodes do.
    #[default]
    Unproven,
    /// It proved a key, but nothing ties the id to that key.
    Claimed,
    /// The id is derived from the key that was proved.
    Derived,
    /// The registry names this key for this id.
    Confirmed,
}

impl Rank {
    /// One word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Claimed => "claimed",
            Self::Derived => "derived",
            Self::Confirmed => "confirmed",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Unproven => 0,
            Self::Claimed => 1,
            Self::Derived => 2,
            Self::Confirmed => 3,
        }
    }
}

/// Why a beacon did not bind an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another key holds the id, or the registry names another one.
    OtherKey,
    /// The signature, the cookie or the name of the beacon was wrong.
    BadProof,
    /// The beacon is full.
    Full,
    /// Something else: from a newer beacon.
    Other(u8),
}

impl Refusal {
    const fn number(self) -> u8 {
        match self {
            Self::OtherKey => 1,
            Self::BadProof => 2,
            Self::Full => 3,
            Self::Other(number) => number,
        }
    }

    /// A few words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OtherKey => "other-key",
            Self::BadProof => "bad-proof",
            Self::Full => "full",
            Self::Other(_) => "refused",
        }
    }
}

/// One of Pilotage's own beacon messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension<'a> {
    /// "This is me; tell me my address, and challenge me unless you know me here." Node 0 before registration.
    Hello {
        /// A challenge is wanted even if the beacon knows the node: it has something new to say.
        renew: bool,
        /// The asking node.
        node: NodeId,
        /// Comes back in the answer.
        nonce: u64,
    },
    /// "Sign this."
    Challenge {
        /// Of the hello.
        nonce: u64,
        /// Opaque to the node.
        cookie: &'a [u8; COOKIE_LEN],
        /// Where the hello came from.
        addr: SocketAddr,
    },
    /// The signed statement: this key has this id at this address.
    Prove {
        /// The id.
        node: NodeId,
        /// With which the id is derived from the key, if it is.
        salt: u16,
        /// Of the hello.
        nonce: u64,
        /// Of the challenge.
        cookie: &'a [u8; COOKIE_LEN],
        /// Ed25519 public key.
        key: &'a [u8; 32],
        /// To which address the node speaks: the proof is worth nothing to another beacon.
        beacon: SocketAddr,
        /// From whom it takes relayed frames.
        accept: Accept,
        /// Whom it names for [`Accept::Named`]; at most [`MAX_PERMITTED`].
        permitted: NodeIds<'a>,
        /// Over [`PROOF_CONTEXT`], the message up to here, and the address of the challenge ([`proof_text`]).
        signature: &'a [u8; SIGNATURE_LEN],
    },
    /// The id is bound to this address.
    Registered {
        /// Of the hello or prove message.
        nonce: u64,
        /// How sure the beacon is.
        rank: Rank,
        /// Seconds for which it holds without another sign of life.
        lifetime: u16,
        /// The beacon's other port, 0 if it has none.
        other_port: u16,
        /// The node's address.
        addr: SocketAddr,
    },
    /// The id is not bound.
    Refused {
        /// Of the prove message.
        nonce: u64,
        /// Why.
        reason: Refusal,
        /// Where the message came from.
        addr: SocketAddr,
    },
    /// "Tell me my address", without a registration.
    Probe {
        /// The answer is to come from the beacon's other port.
        from_other_port: bool,
        /// Comes back in the answer.
        nonce: u64,
    },
    /// The answer to a probe.
    ProbeReply {
        /// Of the probe.
        nonce: u64,
        /// The port of the beacon that is not the one to which the probe went; 0 if it has none.
        other_port: u16,
        /// Where the probe came from.
        addr: SocketAddr,
    },
    /// A node's message to its own outer address: whether it arrives is what is asked.
    Hairpin {
        /// Known to the sender only.
        nonce: u64,
    },
    /// The nodes that another beacon can reach, some of them.
    Sync {
        /// Number of the sender's present run.
        boot: u64,
        /// The receiver's, as far as the sender knows it; else 0.
        echo: u64,
        /// Grows by each message of a run.
        number: u64,
        /// They proved their keys.
        proven: bool,
        /// The nodes; at most [`MAX_SYNC_NODES`].
        nodes: NodeIds<'a>,
        /// Over all before it.
        tag: &'a [u8; TAG_LEN],
    },
    /// A frame for a node of the receiving beacon.
    Carry {
        /// The source proved its key to the sending beacon.
        proven: bool,
        /// Sender.
        src: NodeId,
        /// Receiver.
        dst: NodeId,
        /// Over the message without the tag.
        tag: &'a [u8; TAG_LEN],
        /// The frame's bytes.
        frame: &'a [u8],
    },
}

/// What stands before a proof when it is signed.
pub const PROOF_CONTEXT: &[u8] = b"pilotage 2026 beacon-proof v1";
/// Bytes of the longest text that is signed.
pub const MAX_PROOF_TEXT: usize =
    PROOF_CONTEXT.len() + (2 + 4 + 2 + 8 + COOKIE_LEN + 32 + 19 + 2 + 4 * MAX_PERMITTED) + 19;

/// Writes what a prove message signs: the context, `message` without its last 64 bytes, and the node's address as
/// the challenge named it. Returns its length; `None` for a message that is too short or too long.
pub fn proof_text(message: &[u8], observed: SocketAddr, out: &mut [u8; MAX_PROOF_TEXT]) -> Option<usize> {
    let body = message.get(..message.len().checked_sub(SIGNATURE_LEN)?)?;
    let len = PROOF_CONTEXT.len() + body.len() + addr_len(observed);
    let mut writer = Writer { rest: out.get_mut(..len)? };
    writer.put(PROOF_CONTEXT).put(body).addr(observed);
    Some(len)
}

impl<'a> Extension<'a> {
    /// Decodes what stands behind the type byte; `len` is that of the datagram.
    pub(super) fn decode(body: &'a [u8], len: usize) -> Result<Self, BeaconError> {
        let mut reader = Reader { rest: body, number: kind::EXTENSION, len };
        let [number] = reader.take()?;
        Ok(match number {
            number::HELLO => {
                let [flags] = reader.take()?;
                Self::Hello { renew: flags & 1 != 0, node: reader.node()?, nonce: reader.u64()? }
            }
            number::CHALLENGE => {
                Self::Challenge { nonce: reader.u64()?, cookie: reader.array()?, addr: reader.addr()? }
            }
            number::PROVE => Self::decode_prove(&mut reader)?,
            number::REGISTERED => Self::Registered {
                nonce: reader.u64()?,
                rank: match reader.take()? {
                    [0] => Rank::Unproven,
                    [1] => Rank::Claimed,
                    [2] => Rank::Derived,
                    [_] => Rank::Confirmed,
                },
                lifetime: reader.u16()?,
                other_port: reader.u16()?,
                addr: reader.addr()?,
            },
            number::REFUSED => Self::Refused {
                nonce: reader.u64()?,
                reason: match reader.take()? {
                    [1] => Refusal::OtherKey,
                    [2] => Refusal::BadProof,
                    [3] => Refusal::Full,
                    [other] => Refusal::Other(other),
                },
                addr: reader.addr()?,
            },
            number::PROBE => {
                let [flags] = reader.take()?;
                Self::Probe { from_other_port: flags & 1 != 0, nonce: reader.u64()? }
            }
            number::PROBE_REPLY => {
                Self::ProbeReply { nonce: reader.u64()?, other_port: reader.u16()?, addr: reader.addr()? }
            }
            number::HAIRPIN => Self::Hairpin { nonce: reader.u64()? },
            number::SYNC => {
                let (boot, echo, number) = (reader.u64()?, reader.u64()?, reader.u64()?);
                let [flags] = reader.take()?;
                let count = usize::from(reader.u16()?);
                let nodes = reader.nodes(count, MAX_SYNC_NODES)?;
                Self::Sync { boot, echo, number, proven: flags & 1 != 0, nodes, tag: reader.array()? }
            }
            number::CARRY => {
                let [flags] = reader.take()?;
                Self::Carry {
                    proven: flags & 1 != 0,
                    src: reader.node()?,
                    dst: reader.node()?,
                    tag: reader.array()?,
                    frame: reader.rest,
                }
            }
            other => return Err(BeaconError::Kind(other)),
        })
    }

    fn decode_prove(reader: &mut Reader<'a>) -> Result<Self, BeaconError> {
        let (node, salt, nonce) = (reader.node()?, reader.u16()?, reader.u64()?);
        let (cookie, key, beacon) = (reader.array()?, reader.array()?, reader.addr()?);
        let [accept, count] = reader.take()?;
        let accept = match accept {
            0 => Accept::Anybody,
            1 => Accept::Proven,
            // What is not known is taken for the strictest.
            _ => Accept::Named,
        };
        let permitted = reader.nodes(usize::from(count), MAX_PERMITTED)?;
        let signature = reader.array()?;
        Ok(Self::Prove { node, salt, nonce, cookie, key, beacon, accept, permitted, signature })
    }

    /// Writes the message, type byte included, and returns its length ([`Self::encoded_len`]).
    ///
    /// # Errors
    ///
    /// [`EncodeError::BufferTooSmall`]; nothing is written then.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut writer = Writer { rest: room(buf, self.encoded_len())? };
        writer.put(&[kind::EXTENSION, self.number()]);
        match *self {
            Self::Hello { renew, node, nonce } => writer.put(&[u8::from(renew)]).node(node).u64(nonce),
            Self::Challenge { nonce, cookie, addr } => writer.u64(nonce).put(cookie).addr(addr),
            Self::Prove { node, salt, nonce, cookie, key, beacon, accept, permitted, signature } => writer
                .node(node)
                .put(&salt.to_be_bytes())
                .u64(nonce)
                .put(cookie)
                .put(key)
                .addr(beacon)
                .put(&[accept.number(), permitted.len() as u8])
                .put(permitted.bytes)
                .put(signature),
            Self::Registered { nonce, rank, lifetime, other_port, addr } => writer
                .u64(nonce)
                .put(&[rank.number()])
                .put(&lifetime.to_be_bytes())
                .put(&other_port.to_be_bytes())
                .addr(addr),
            Self::Refused { nonce, reason, addr } => writer.u64(nonce).put(&[reason.number()]).addr(addr),
            Self::Probe { from_other_port, nonce } => writer.put(&[u8::from(from_other_port)]).u64(nonce),
            Self::ProbeReply { nonce, other_port, addr } => {
                writer.u64(nonce).put(&other_port.to_be_bytes()).addr(addr)
            }
            Self::Hairpin { nonce } => writer.u64(nonce),
            Self::Sync { boot, echo, number, proven, nodes, tag } => {
                // A NodeIds of this message holds at most MAX_SYNC_NODES.
                let count = (nodes.len() as u16).to_be_bytes();
                writer
                    .u64(boot)
                    .u64(echo)
                    .u64(number)
                    .put(&[u8::from(proven)])
                    .put(&count)
                    .put(nodes.bytes)
                    .put(tag)
            }
            Self::Carry { proven, src, dst, tag, frame } => {
                writer.put(&[u8::from(proven)]).node(src).node(dst).put(tag).put(frame)
            }
        };
        Ok(self.encoded_len())
    }

    /// Bytes that [`Self::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        2 + match self {
            Self::Hello { .. } => 1 + 4 + 8,
            Self::Challenge { addr, .. } => 8 + COOKIE_LEN + addr_len(*addr),
            Self::Prove { beacon, permitted, .. } => {
                4 + 2 + 8 + COOKIE_LEN + 32 + addr_len(*beacon) + 2 + permitted.bytes.len() + SIGNATURE_LEN
            }
            Self::Registered { addr, .. } => 8 + 1 + 2 + 2 + addr_len(*addr),
            Self::Refused { addr, .. } => 8 + 1 + addr_len(*addr),
            Self::Probe { .. } => 1 + 8,
            Self::ProbeReply { addr, .. } => 8 + 2 + addr_len(*addr),
            Self::Hairpin { .. } => 8,
            Self::Sync { nodes, .. } => 8 + 8 + 8 + 1 + 2 + nodes.bytes.len() + TAG_LEN,
            Self::Carry { frame, .. } => CARRY_HEADER_LEN - 2 + frame.len(),
        }
    }

    const fn number(&self) -> u8 {
        match self {
            Self::Hello { .. } => number::HELLO,
            Self::Challenge { .. } => number::CHALLENGE,
            Self::Prove { .. } => number::PROVE,
            Self::Registered { .. } => number::REGISTERED,
            Self::Refused { .. } => number::REFUSED,
            Self::Probe { .. } => number::PROBE,
            Self::ProbeReply { .. } => number::PROBE_REPLY,
            Self::Hairpin { .. } => number::HAIRPIN,
            Self::Sync { .. } => number::SYNC,
            Self::Carry { .. } => number::CARRY,
        }
    }
}

/// Node ids in their wire form, in a buffer of their own: for messages that are to list them.
#[derive(Debug, Clone, Copy)]
pub struct NodeList<const BYTES: usize> {
    bytes: [u8; BYTES],
    len: usize,
}

impl<const BYTES: usize> NodeList<BYTES> {
    /// The first ids of `nodes`, as many as fit: `BYTES / 4`.
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut list = Self { bytes: [0; BYTES], len: 0 };
        for (place, node) in list.bytes.chunks_exact_mut(4).zip(nodes) {
            place.copy_from_slice(&node.0.to_be_bytes());
            list.len += 4;
        }
        list
    }

    /// As it stands in a message.
    pub fn ids(&self) -> NodeIds<'_> {
        NodeIds { bytes: &self.bytes[..self.len] }
    }
}

fn addr_len(addr: SocketAddr) -> usize {
    match addr.ip().to_canonical() {
        IpAddr::V4(_) => 7,
        IpAddr::V6(_) => 19,
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::Message;
    use super::*;

    fn any_addr() -> impl Strategy<Value = SocketAddr> {
        any::<SocketAddr>().prop_map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// Any message; `bytes` are its borrowed parts and hold at least 128.
    fn message(choice: u8, a: u32, b: u64, addr: SocketAddr, bytes: &[u8]) -> Extension<'_> {
        let (node, nonce) = (NodeId(a), b);
        let (small, word) = (a as u8, a as u16);
        let ids = &bytes[128..];
        let ids = NodeIds { bytes: &ids[..ids.len().min(4 * MAX_PERMITTED) / 4 * 4] };
        match choice {
            1 => Extension::Hello { renew: a & 1 != 0, node, nonce },
            2 => Extension::Challenge { nonce, cookie: bytes.first_chunk().unwrap(), addr },
            3 => Extension::Prove {
                node,
                salt: word,
                nonce,
                cookie: bytes.first_chunk().unwrap(),
                key: bytes[24..].first_chunk().unwrap(),
                beacon: addr,
                accept: [Accept::Anybody, Accept::Proven, Accept::Named][usize::from(small % 3)],
                permitted: ids,
                signature: bytes[60..].first_chunk().unwrap(),
            },
            4 => Extension::Registered {
                nonce,
                rank: [Rank::Unproven, Rank::Claimed, Rank::Derived, Rank::Confirmed][usize::from(small % 4)],
                lifetime: word,
                other_port: word ^ 7,
                addr,
            },
            5 => Extension::Refused {
                nonce,
                reason: [Refusal::OtherKey, Refusal::BadProof, Refusal::Full, Refusal::Other(9)]
                    [usize::from(small % 4)],
                addr,
            },
            6 => Extension::Probe { from_other_port: a & 1 != 0, nonce },
            7 => Extension::ProbeReply { nonce, other_port: word, addr },
            8 => Extension::Hairpin { nonce },
            9 => Extension::Sync {
                boot: nonce ^ 1,
                echo: nonce,
                number: a.into(),
                proven: a & 1 != 0,
                nodes: ids,
                tag: bytes.first_chunk().unwrap(),
            },
            _ => Extension::Carry {
                proven: a & 1 != 0,
                src: node,
                dst: NodeId(a ^ 5),
                tag: bytes.first_chunk().unwrap(),
                frame: &bytes[16..],
            },
        }
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(
            choice in 1u8..=10, a: u32, b: u64, addr in any_addr(),
            bytes in prop::collection::vec(any::<u8>(), 128..500),
        ) {
            let message = message(choice, a, b, addr, &bytes);
            let mut buf = vec![0xA5; message.encoded_len()];
            prop_assert_eq!(message.encode(&mut buf), Ok(buf.len()));
            prop_assert_eq!(&buf[..2], &[14, choice]);
            prop_assert_eq!(Message::decode(&buf), Ok(Message::Extension(message)));
            let (need, have) = (buf.len(), buf.len() - 1);
            buf.fill(0xA5);
            prop_assert_eq!(message.encode(&mut buf[..have]), Err(EncodeError::BufferTooSmall { need, have }));
            prop_assert!(buf.iter().all(|&byte| byte == 0xA5));
        }

        #[test]
        fn random_bytes_never_panic(number in 0u8..=11, rest in prop::collection::vec(any::<u8>(), 0..400)) {
            let datagram = [&[14, number], &rest[..]].concat();
            if let Ok(message) = Message::decode(&datagram) {
                let mut buf = vec![0; datagram.len()];
                let len = message.encode(&mut buf).expect("no longer than the input");
                prop_assert_eq!(Message::decode(&buf[..len]), Ok(message));
            }
        }
    }

    #[test]
    fn lists_are_bounded() {
        let many = [NodeId(7); 100];
        let list = NodeList::<{ 4 * MAX_PERMITTED }>::new(many);
        assert_eq!(list.ids().len(), MAX_PERMITTED);
        let bytes = [0u8; 512];
        let message = message(3, 2, 3, "[2001:db8::1]:1".parse().unwrap(), &bytes);
        let mut buf = vec![0; message.encoded_len()];
        message.encode(&mut buf).unwrap();
        let mut text = [0; MAX_PROOF_TEXT];
        let observed = "[2001:db8::1]:1".parse().unwrap();
        assert_eq!(proof_text(&buf, observed, &mut text), Some(MAX_PROOF_TEXT), "the longest fits exactly");
        assert_eq!(proof_text(&buf[..63], observed, &mut text), None);
        // One more than allowed, in the count field.
        let count = buf.len() - 64 - 4 * MAX_PERMITTED - 1;
        assert_eq!(usize::from(buf[count]), MAX_PERMITTED);
        buf[count] += 1;
        buf.extend([0; 4]);
        assert!(Message::decode(&buf).is_err());
    }

    #[test]
    fn the_lengths_that_the_specification_names() {
        let (v4, v6) = ("192.0.2.1:1".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap());
        let lens = |addr| {
            let challenge = Extension::Challenge { nonce: 0, cookie: &[0; 24], addr };
            let registered =
                Extension::Registered { nonce: 0, rank: Rank::Derived, lifetime: 1, other_port: 1, addr };
            let reply = Extension::ProbeReply { nonce: 0, other_port: 1, addr };
            [challenge, registered, reply].map(|message| message.encoded_len())
        };
        assert_eq!(lens(v4), [41, 22, 19]);
        assert_eq!(lens(v6), [53, 34, 31]);
        assert_eq!(CARRY_HEADER_LEN, 27);
        let list = NodeList::<{ 4 * MAX_SYNC_NODES }>::new([NodeId(1); MAX_SYNC_NODES]);
        let (boot, echo, number, proven) = (0, 0, 0, false);
        let sync = Extension::Sync { boot, echo, number, proven, nodes: list.ids(), tag: &[0; 16] };
        assert!(sync.encoded_len() <= 1_280 - 48);
    }

    #[test]
    fn unknown_kinds_and_cut_messages_are_errors() {
        assert_eq!(Message::decode(&[14, 11]), Err(BeaconError::Kind(11)));
        assert_eq!(Message::decode(&[14]), Err(BeaconError::TooShort { number: 14, len: 1 }));
        let bytes: Vec<u8> = vec![1; 300];
        for choice in 1..10 {
            let message = message(choice, 1, 2, "192.0.2.1:1".parse().unwrap(), &bytes);
            let mut buf = vec![0; message.encoded_len()];
            message.encode(&mut buf).unwrap();
            for cut in 2..buf.len() {
                assert!(Message::decode(&buf[..cut]).is_err(), "{choice} cut to {cut}");
            }
        }
    }
}
