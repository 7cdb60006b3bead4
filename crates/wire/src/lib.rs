//! The Pilot Protocol's bytes: addresses, packets, tunnel frames, SACK payloads, beacon and registry messages.
//!
//! # Contract
//!
//! * **Pure**: no IO, no clock, no randomness, no cryptography. Signatures, key exchange and AEAD belong to
//!   `pilotage-proto`; this crate only says where their bytes lie.
//! * **Zero-copy**: decoders borrow from the datagram; encoders write into a buffer of the caller and return the
//!   length written. Nothing allocates, except text and JSON (`registry`, `addressing`).
//! * **Total**: no input makes a decoder panic. Every length is checked before it is used, every error says what was
//!   wrong. Encoders answer a buffer that is too small with an error, not with a panic.
//! * **`no_std`**: without the feature `std` the crate needs `core` only.
//!
//! # Map
//!
//! | module | what | normative text |
//! |---|---|---|
//! | [`Address`], [`SocketAddress`] | 48-bit addresses, text and binary | `spec/wire.md §2` |
//! | [`packet`] | the 34-byte packet header and its CRC-32 | `spec/wire.md §3` |
//! | [`frame`] | PILT, PILS, PILK, PILA, PILP | `spec/wire.md §4` |
//! | [`sack`] | SACK blocks in an ACK's payload | `spec/wire.md §5` |
//! | [`beacon`] | discover, punch, relay, gossip | `spec/wire.md §6` |
//! | [`s1`] | the secure mode: PILI, PILR, PILC, PILN, PILX, data frames | `spec/secure.md` |
//! | `record` | PREC: what an agent says about itself | `spec/registry2.md §2` |
//! | [`ipc`] | messages between a daemon and its local drivers | `spec/ipc.md` |
//! | [`limits`] | every limit of the wire in one place | `spec/wire.md §8` |
//!
//! One UDP socket carries beacon messages and tunnel frames; [`DatagramKind::of`] tells them apart.
//!
//! # Example
//!
//! ```
//! use pilotage_wire::Address;
//! use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
//!
//! let header = Header {
//!     flags: Flags::ACK,
//!     protocol: Protocol::Stream,
//!     src: Address::new(0, 1),
//!     dst: "1:0001.F291.0004".parse()?,
//!     src_port: 49152,
//!     dst_port: 7,
//!     seq: 1,
//!     ack: 1,
//!     window: 512,
//! };
//! let mut buf = [0u8; 64];
//! buf[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(b"hello");
//! let len = header.encode(&mut buf, 5)?;
//!
//! let packet = Packet::decode(&buf[..len])?;
//! assert_eq!(packet.header, header);
//! assert_eq!(packet.payload, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

#[cfg(all(test, not(feature = "std")))]
extern crate std;

pub mod beacon;
pub mod frame;
pub mod ipc;
pub mod limits;
pub mod packet;
pub mod s1;
pub mod sack;

#[cfg(feature = "addressing")]
pub mod addressing;
#[cfg(feature = "addressing")]
pub mod record;
#[cfg(feature = "registry")]
pub mod registry;

mod address;
mod error;

pub use address::{Address, AddressError, NetworkId, NodeId, SocketAddress};
pub use error::EncodeError;

/// What the first bytes of a UDP datagram announce. `spec/wire.md §1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatagramKind {
    /// First byte below `0x10`: a [`beacon`] message.
    Beacon,
    /// Starts with one of the five magics of [`frame`].
    Frame,
    /// Neither: another protocol, a later version or noise. To be dropped silently.
    Unknown,
}

impl DatagramKind {
    /// Looks at the first four bytes only; the decoder of the kind then checks the rest.
    #[inline]
    pub fn of(datagram: &[u8]) -> Self {
        match datagram {
            [b'P', b'I', b'L', b'T' | b'S' | b'K' | b'A' | b'P', ..] => Self::Frame,
            [0x00..=0x0F, ..] => Self::Beacon,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DatagramKind;

    #[test]
    fn kinds_are_told_by_the_first_bytes() {
        for (datagram, kind) in [
            (&b""[..], DatagramKind::Unknown),
            (b"\x00", DatagramKind::Beacon),
            (b"\x0F rest", DatagramKind::Beacon),
            (b"\x10", DatagramKind::Unknown),
            (b"PIL", DatagramKind::Unknown),
            (b"PILS", DatagramKind::Frame),
            (b"PILA rest", DatagramKind::Frame),
            (b"PILI", DatagramKind::Unknown),
            (b"GET /", DatagramKind::Unknown),
        ] {
            assert_eq!(DatagramKind::of(datagram), kind, "{datagram:?}");
        }
    }
}
