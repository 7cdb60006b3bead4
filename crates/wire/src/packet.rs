//! The packet: a 34-byte header and a payload, protected by a CRC-32. `spec/wire.md §3`.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-------+---------------+-------------------------------+
//! |version| flags |   protocol    |        payload length         |  0
//! +-------+-------+---------------+-------------------------------+
//! |         source network        |      source node (high)       |  4
//! +-------------------------------+-------------------------------+
//! |       source node (low)       |      destination network      |  8
//! +-------------------------------+-------------------------------+
//! |                       destination node                        | 12
//! +-------------------------------+-------------------------------+
//! |          source port          |       destination port        | 16
//! +-------------------------------+-------------------------------+
//! |                        sequence number                        | 20
//! +---------------------------------------------------------------+
//! |                     acknowledgment number                     | 24
//! +-------------------------------+-------------------------------+
//! |            window             |        checksum (high)        | 28
//! +-------------------------------+-------------------------------+
//! |        checksum (low)         |          payload …            | 32
//! +-------------------------------+-------------------------------+
//! ```
//!
//! Flag bits, from bit 0: SYN, ACK, FIN, RST. The checksum is CRC-32/IEEE over the header, its own field taken as
//! zero, and exactly `payload length` bytes after it.

use core::fmt;
use core::ops::{BitOr, BitOrAssign};

use crate::Address;
pub use crate::error::EncodeError;
pub use crate::limits::{HEADER_LEN, MAX_PAYLOAD};

/// The only protocol version there is.
pub const VERSION: u8 = 1;

/// Offsets of the header's fields.
mod field {
    use core::ops::Range;

    pub(super) const VERSION_FLAGS: usize = 0;
    pub(super) const PROTOCOL: usize = 1;
    pub(super) const PAYLOAD_LEN: Range<usize> = 2..4;
    pub(super) const SRC: Range<usize> = 4..10;
    pub(super) const DST: Range<usize> = 10..16;
    pub(super) const SRC_PORT: Range<usize> = 16..18;
    pub(super) const DST_PORT: Range<usize> = 18..20;
    pub(super) const SEQ: Range<usize> = 20..24;
    pub(super) const ACK: Range<usize> = 24..28;
    pub(super) const WINDOW: Range<usize> = 28..30;
    pub(super) const CHECKSUM: Range<usize> = 30..34;
}

/// The header's four flag bits. `spec/wire.md §3.1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No flag set.
    pub const EMPTY: Self = Self(0);
    /// Opens a connection.
    pub const SYN: Self = Self(1);
    /// The acknowledgment number is valid.
    pub const ACK: Self = Self(2);
    /// The sender will send no more data.
    pub const FIN: Self = Self(4);
    /// The connection is gone.
    pub const RST: Self = Self(8);

    /// The bits, 0..=15.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The low four bits of `bits`; the others are ignored.
    #[inline]
    pub const fn from_bits_truncate(bits: u8) -> Self {
        Self(bits & 0x0F)
    }

    /// Whether every flag of `other` is set in `self`.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Flags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// For example `SYN|ACK`; `-` when no flag is set.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (flag, name) in [(Self::SYN, "SYN"), (Self::ACK, "ACK"), (Self::FIN, "FIN"), (Self::RST, "RST")] {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({self})")
    }
}

/// What the payload belongs to. `spec/wire.md §3.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// A reliable ordered byte stream.
    Stream = 1,
    /// One message, unreliable.
    Datagram = 2,
    /// Ping and other control messages.
    Control = 3,
}

impl TryFrom<u8> for Protocol {
    type Error = PacketError;

    /// [`PacketError::Protocol`] for a number that is not assigned.
    #[inline]
    fn try_from(number: u8) -> Result<Self, PacketError> {
        match number {
            1 => Ok(Self::Stream),
            2 => Ok(Self::Datagram),
            3 => Ok(Self::Control),
            other => Err(PacketError::Protocol(other)),
        }
    }
}

/// A packet header without what the codec itself fills in (version, payload length, checksum). `spec/wire.md §3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// SYN, ACK, FIN, RST.
    pub flags: Flags,
    /// Stream, datagram or control.
    pub protocol: Protocol,
    /// Sending node, in the network it speaks in.
    pub src: Address,
    /// Receiving node.
    pub dst: Address,
    /// Sending port.
    pub src_port: u16,
    /// Receiving port.
    pub dst_port: u16,
    /// Sequence number of the first payload byte (SYN and FIN count as one byte each).
    pub seq: u32,
    /// Next sequence number expected from the peer; valid with ACK.
    pub ack: u32,
    /// Free receive window in segments, not bytes.
    pub window: u16,
}

impl Header {
    /// Completes a packet in place: `buf[34..34 + payload_len]` already holds the payload; writes the header with its
    /// CRC-32 into `buf[..34]` and returns the total length, `34 + payload_len`. Bytes after it are left alone.
    ///
    /// # Errors
    ///
    /// [`EncodeError::TooLong`] if `payload_len` is above [`MAX_PAYLOAD`], [`EncodeError::BufferTooSmall`] if `buf` is
    /// shorter than the packet. Nothing is written then.
    #[inline]
    pub fn encode(&self, buf: &mut [u8], payload_len: usize) -> Result<usize, EncodeError> {
        let Ok(length_field) = u16::try_from(payload_len) else {
            return Err(EncodeError::TooLong { len: payload_len, max: MAX_PAYLOAD });
        };
        let total = HEADER_LEN + payload_len;
        let have = buf.len();
        // Header and payload are contiguous, so one CRC pass covers both once the checksum field is zero.
        let packet = buf.get_mut(..total).ok_or(EncodeError::BufferTooSmall { need: total, have })?;
        let head = packet
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(EncodeError::BufferTooSmall { need: total, have })?;
        self.write(head, length_field);
        let checksum = crc32fast::hash(packet);
        if let Some(head) = packet.first_chunk_mut::<HEADER_LEN>() {
            head[field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
        }
        Ok(total)
    }

    /// All fields, the checksum as zero. `head` is an array: constant ranges cost no bounds check.
    #[inline]
    fn write(&self, head: &mut [u8; HEADER_LEN], payload_len: u16) {
        head[field::VERSION_FLAGS] = VERSION << 4 | self.flags.bits();
        head[field::PROTOCOL] = self.protocol as u8;
        head[field::PAYLOAD_LEN].copy_from_slice(&payload_len.to_be_bytes());
        head[field::SRC].copy_from_slice(&self.src.to_bytes());
        head[field::DST].copy_from_slice(&self.dst.to_bytes());
        head[field::SRC_PORT].copy_from_slice(&self.src_port.to_be_bytes());
        head[field::DST_PORT].copy_from_slice(&self.dst_port.to_be_bytes());
        head[field::SEQ].copy_from_slice(&self.seq.to_be_bytes());
        head[field::ACK].copy_from_slice(&self.ack.to_be_bytes());
        head[field::WINDOW].copy_from_slice(&self.window.to_be_bytes());
        head[field::CHECKSUM].fill(0);
    }

    /// Reads the fields; checks version, then protocol. `spec/wire.md §3.4` steps 4 and 5.
    #[inline]
    fn read(head: &[u8; HEADER_LEN]) -> Result<Self, PacketError> {
        // Destructuring the array names every byte once and leaves no index that could be out of bounds.
        #[rustfmt::skip]
        let [
            version_flags, protocol, _, _,
            s0, s1, s2, s3, s4, s5,
            d0, d1, d2, d3, d4, d5,
            sp0, sp1, dp0, dp1,
            q0, q1, q2, q3,
            a0, a1, a2, a3,
            w0, w1, ..
        ] = *head;
        let version = version_flags >> 4;
        if version != VERSION {
            return Err(PacketError::Version(version));
        }
        Ok(Self {
            flags: Flags::from_bits_truncate(version_flags),
            protocol: Protocol::try_from(protocol)?,
            src: Address::from_bytes([s0, s1, s2, s3, s4, s5]),
            dst: Address::from_bytes([d0, d1, d2, d3, d4, d5]),
            src_port: u16::from_be_bytes([sp0, sp1]),
            dst_port: u16::from_be_bytes([dp0, dp1]),
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            window: u16::from_be_bytes([w0, w1]),
        })
    }
}

/// A decoded packet; the payload borrows from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The header's fields.
    pub header: Header,
    /// Exactly as many bytes as the length field says.
    pub payload: &'a [u8],
}

impl Packet<'_> {
    /// Decodes a packet, checking in this order: length, payload length, checksum, version, protocol
    /// (`spec/wire.md §3.4`). Bytes after the payload are ignored.
    ///
    /// # Errors
    ///
    /// The first check that failed. A packet that fails is dropped without an answer.
    #[inline]
    pub fn decode(buf: &[u8]) -> Result<Packet<'_>, PacketError> {
        let (head, payload) = split(buf)?;
        let [.., c0, c1, c2, c3] = *head;
        let stated = u32::from_be_bytes([c0, c1, c2, c3]);
        let computed = checksum(head, payload);
        if stated != computed {
            return Err(PacketError::Checksum { stated, computed });
        }
        Ok(Packet { header: Header::read(head)?, payload })
    }

    /// Like [`Packet::decode`] without the checksum: only for bytes whose integrity an AEAD tag has just proven, where
    /// the CRC adds cost but no knowledge. Lengths, version and protocol are still checked.
    ///
    /// # Errors
    ///
    /// As [`Packet::decode`], except [`PacketError::Checksum`].
    #[inline]
    pub fn decode_trusted(buf: &[u8]) -> Result<Packet<'_>, PacketError> {
        let (head, payload) = split(buf)?;
        Ok(Packet { header: Header::read(head)?, payload })
    }
}

/// The checksum of a packet: CRC-32/IEEE over `head` with its checksum field taken as zero, then `payload`.
/// `spec/wire.md §3.3`.
#[inline]
pub fn checksum(head: &[u8; HEADER_LEN], payload: &[u8]) -> u32 {
    let mut zeroed = *head;
    zeroed[field::CHECKSUM].fill(0);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&zeroed);
    crc.update(payload);
    crc.finalize()
}

/// Header and payload after the two length checks. `spec/wire.md §3.4` steps 1 and 2.
#[inline]
fn split(buf: &[u8]) -> Result<(&[u8; HEADER_LEN], &[u8]), PacketError> {
    let Some((head, rest)) = buf.split_first_chunk::<HEADER_LEN>() else {
        return Err(PacketError::TooShort { len: buf.len() });
    };
    let [_, _, l0, l1, ..] = *head;
    let payload_len = usize::from(u16::from_be_bytes([l0, l1]));
    match rest.get(..payload_len) {
        Some(payload) => Ok((head, payload)),
        None => Err(PacketError::Truncated { need: HEADER_LEN + payload_len, len: buf.len() }),
    }
}

/// Why bytes are not a packet, in the order of the checks. `spec/wire.md §3.4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PacketError {
    /// Fewer bytes than a header.
    TooShort {
        /// Bytes there are.
        len: usize,
    },
    /// Fewer bytes than header and stated payload.
    Truncated {
        /// Bytes that the header promises.
        need: usize,
        /// Bytes there are.
        len: usize,
    },
    /// The checksum field does not match.
    Checksum {
        /// Value of the field.
        stated: u32,
        /// Value computed over the bytes.
        computed: u32,
    },
    /// A version other than [`VERSION`].
    Version(u8),
    /// A protocol number that is not assigned.
    Protocol(u8),
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { len } => write!(f, "packet: {len} bytes, a header alone has {HEADER_LEN}"),
            Self::Truncated { need, len } => write!(f, "packet: header promises {need} bytes, {len} arrived"),
            Self::Checksum { stated, computed } => {
                write!(f, "packet: checksum field {stated:08x}, computed {computed:08x}: damaged on the way")
            }
            Self::Version(version) => write!(f, "packet: version {version}, only {VERSION} is known"),
            Self::Protocol(number) => write!(f, "packet: protocol number {number} is not assigned"),
        }
    }
}

impl core::error::Error for PacketError {}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_header()(
            flags in 0u8..16, protocol in 1u8..=3, src: [u8; 6], dst: [u8; 6], src_port: u16, dst_port: u16,
            seq: u32, ack: u32, window: u16,
        ) -> Header {
            Header {
                flags: Flags::from_bits_truncate(flags),
                protocol: Protocol::try_from(protocol).unwrap(),
                src: Address::from_bytes(src),
                dst: Address::from_bytes(dst),
                src_port, dst_port, seq, ack, window,
            }
        }
    }

    fn packet(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut buf = vec![0xA5; HEADER_LEN];
        buf.extend_from_slice(payload);
        assert_eq!(header.encode(&mut buf, payload.len()), Ok(buf.len()));
        buf
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(header in any_header(), payload: Vec<u8>, tail: [u8; 3]) {
            let mut bytes = packet(&header, &payload);
            let expected = Packet { header, payload: &payload };
            prop_assert_eq!(Packet::decode(&bytes), Ok(expected));
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(Packet::decode(&bytes), Ok(expected));
            prop_assert_eq!(Packet::decode_trusted(&bytes), Ok(expected));
        }

        /// CRC-32 finds every burst of up to 32 bits, so a changed byte can never pass.
        #[test]
        fn a_changed_byte_is_never_accepted(
            header in any_header(), payload: Vec<u8>, at: prop::sample::Index, mask in 1u8..,
        ) {
            let mut bytes = packet(&header, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            prop_assert!(Packet::decode(&bytes).is_err(), "byte {} xor {:02x}", at, mask);
        }

        #[test]
        fn a_cut_packet_is_never_accepted(header in any_header(), payload: Vec<u8>, at: prop::sample::Index) {
            let bytes = packet(&header, &payload);
            let len = at.index(bytes.len());
            let expected = if len < HEADER_LEN {
                PacketError::TooShort { len }
            } else {
                PacketError::Truncated { need: bytes.len(), len }
            };
            prop_assert_eq!(Packet::decode(&bytes[..len]), Err(expected));
            prop_assert_eq!(Packet::decode_trusted(&bytes[..len]), Err(expected));
        }

        /// Whatever decodes encodes to the same bytes: the header has no bit that is lost.
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), fix: bool) {
            if fix && let Some(head) = bytes.first_chunk_mut::<HEADER_LEN>() {
                // Otherwise the length, version and protocol checks would stop nearly all of them.
                head[field::VERSION_FLAGS] = VERSION << 4 | head[field::VERSION_FLAGS] & 0x0F;
                head[field::PROTOCOL] = 1 + head[field::PROTOCOL] % 3;
                head[2] = 0;
            }
            let _ = Packet::decode(&bytes);
            if let Ok(decoded) = Packet::decode_trusted(&bytes) {
                let again = packet(&decoded.header, decoded.payload);
                prop_assert_eq!(&again[..30], &bytes[..30]);
                prop_assert_eq!(&again[HEADER_LEN..], decoded.payload);
            }
        }
    }

    #[test]
    fn encode_refuses_what_does_not_fit_and_writes_nothing() {
        let header = Packet::decode(&packet(&syn(), b"")).unwrap().header;
        let mut buf = [0xA5; HEADER_LEN + 9];
        assert_eq!(header.encode(&mut buf, 10), Err(EncodeError::BufferTooSmall { need: 44, have: 43 }));
        assert_eq!(header.encode(&mut [], 0), Err(EncodeError::BufferTooSmall { need: 34, have: 0 }));
        assert_eq!(header.encode(&mut buf, 65_536), Err(EncodeError::TooLong { len: 65_536, max: 65_535 }));
        assert_eq!(
            header.encode(&mut buf, usize::MAX),
            Err(EncodeError::TooLong { len: usize::MAX, max: 65_535 })
        );
        assert_eq!(buf, [0xA5; HEADER_LEN + 9]);
    }

    #[test]
    fn checks_come_in_the_order_of_the_specification() {
        let good = packet(&syn(), b"x");
        let with = |changes: &[(usize, u8)], fix_checksum: bool| {
            let mut bytes = good.clone();
            for &(at, value) in changes {
                bytes[at] = value;
            }
            if fix_checksum {
                let (head, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
                let sum = checksum(head, payload).to_be_bytes();
                bytes[field::CHECKSUM].copy_from_slice(&sum);
            }
            Packet::decode(&bytes).unwrap_err()
        };
        let (version_2, protocol_9, length_2) = ((0, 0x21), (1, 9), (3, 2));
        assert!(matches!(with(&[version_2, protocol_9, length_2], false), PacketError::Truncated { .. }));
        assert!(matches!(with(&[version_2, protocol_9], false), PacketError::Checksum { .. }));
        assert_eq!(with(&[version_2, protocol_9], true), PacketError::Version(2));
        assert_eq!(with(&[protocol_9], true), PacketError::Protocol(9));
    }

    #[test]
    fn decode_trusted_skips_the_checksum_only() {
        let mut bytes = packet(&syn(), b"x");
        bytes[33] ^= 1;
        assert!(matches!(Packet::decode(&bytes), Err(PacketError::Checksum { .. })));
        assert_eq!(Packet::decode_trusted(&bytes).unwrap().payload, b"x");
        bytes[0] = 0x31;
        assert_eq!(Packet::decode_trusted(&bytes), Err(PacketError::Version(3)));
    }

    #[test]
    fn flags_print_and_combine() {
        assert_eq!((Flags::SYN | Flags::ACK).to_string(), "SYN|ACK");
        assert_eq!(Flags::EMPTY.to_string(), "-");
        assert_eq!(Flags::from_bits_truncate(0xF5).bits(), 5);
        let mut flags = Flags::FIN;
        flags |= Flags::RST;
        assert!(flags.contains(Flags::FIN) && flags.contains(Flags::RST) && !flags.contains(Flags::SYN));
        assert!(!flags.contains(Flags::SYN | Flags::FIN), "contains means all, not any");
    }

    fn syn() -> Header {
        Header {
            flags: Flags::SYN,
            protocol: Protocol::Stream,
            src: Address::new(0, 1),
            dst: Address::new(0, 2),
            src_port: 49_152,
            dst_port: 7,
            seq: 0,
            ack: 0,
            window: 512,
        }
    }
}
