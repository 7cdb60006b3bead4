//! Tunnel frames: what one UDP datagram between two nodes carries. `spec/wire.md §4`.
//!
//! ```text
//! PILT  plaintext    | "PILT" 4 | packet …                                                            |
//! PILS  sealed       | "PILS" 4 | sender 4 | nonce 12 | ciphertext … | tag 16                         |
//! PILK  bare key     | "PILK" 4 | sender 4 | X25519 32                                                |
//! PILA  signed key   | "PILA" 4 | sender 4 | X25519 32 | Ed25519 32 | signature 64 | trailer …        |
//! PILP  punch        | "PILP" 4 | ignored …                                                           |
//!
//! PILA signs         | "auth" 4 | sender 4 | X25519 32 |
//! PILA trailer       | uvarint capabilities | uvarint flags | optionally "PLTG" 4, dialect version 1 | ignored … |
//! ```
//!
//! Integers are big-endian, uvarint is LEB128 of at most ten bytes.

use core::fmt;

use crate::NodeId;
pub use crate::error::EncodeError;
use crate::error::{room, room_for};
pub use crate::limits::{MAX_DATAGRAM, MAX_PILA_TRAILER, PILS_HEADER_LEN, PILS_OVERHEAD, TAG_LEN};

/// Length of every magic, bytes.
pub const MAGIC_LEN: usize = 4;
/// Starts a plaintext frame.
pub const MAGIC_PILT: [u8; 4] = *b"PILT";
/// Starts a sealed frame.
pub const MAGIC_PILS: [u8; 4] = *b"PILS";
/// Starts an unauthenticated key.
pub const MAGIC_PILK: [u8; 4] = *b"PILK";
/// Starts a signed key.
pub const MAGIC_PILA: [u8; 4] = *b"PILA";
/// Starts a NAT punch.
pub const MAGIC_PILP: [u8; 4] = *b"PILP";

/// Bytes of a PILK frame.
pub const PILK_LEN: usize = 40;
/// Bytes of a PILA frame without trailer.
pub const PILA_LEN: usize = 136;
/// Bytes of a PILP frame as everybody sends it. The draft's text says eight; nothing reads the other four.
pub const PILP_LEN: usize = 4;
/// Bytes that a PILA signature covers.
pub const PILA_SIGNED_LEN: usize = 40;

/// A decoded tunnel frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A packet in the clear. Accept it only from a peer for which plaintext was explicitly allowed.
    Pilt {
        /// The packet's bytes, not yet decoded.
        packet: &'a [u8],
    },
    /// A sealed packet.
    Pils {
        /// Claimed sender; its four bytes are the AEAD's additional data.
        sender: NodeId,
        /// Four-byte prefix and 64-bit counter.
        nonce: [u8; 12],
        /// Ciphertext and tag, at least [`TAG_LEN`] bytes.
        ciphertext: &'a [u8],
    },
    /// A key exchange without proof of identity.
    Pilk {
        /// Claimed sender.
        sender: NodeId,
        /// Its X25519 public key.
        x25519: [u8; 32],
    },
    /// A key exchange signed by the sender's identity.
    Pila(Pila<'a>),
    /// Opens a hole in a NAT; carries nothing and is never answered.
    Pilp,
}

/// The fields of a PILA frame. The signature has NOT been verified. `spec/wire.md §4.4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pila<'a> {
    /// Claimed sender.
    pub sender: NodeId,
    /// Its X25519 public key for this session.
    pub x25519: [u8; 32],
    /// Its Ed25519 identity key.
    pub ed25519: [u8; 32],
    /// Ed25519 over [`pila_signed_message`].
    pub signature: [u8; 64],
    /// Whatever follows; not covered by the signature. Read it with [`PilaTrailer::decode`].
    pub trailer: &'a [u8],
}

/// Decodes one datagram.
///
/// # Errors
///
/// [`FrameError::Magic`] if it is not one of the five frames, [`FrameError::TooShort`] if the frame is incomplete.
/// Either is dropped without an answer.
#[inline]
pub fn decode(buf: &[u8]) -> Result<Frame<'_>, FrameError> {
    let Some((magic, rest)) = buf.split_first_chunk::<MAGIC_LEN>() else {
        return Err(FrameError::TooShort { need: MAGIC_LEN, len: buf.len() });
    };
    match *magic {
        // First because it is every packet of an established tunnel.
        MAGIC_PILS => decode_pils(rest),
        MAGIC_PILT => Ok(Frame::Pilt { packet: rest }),
        MAGIC_PILK => decode_pilk(rest),
        MAGIC_PILA => decode_pila(rest),
        MAGIC_PILP => Ok(Frame::Pilp),
        other => Err(FrameError::Magic(other)),
    }
}

/// Splits a PILS frame for opening in place: sender, nonce, and ciphertext with tag as a mutable slice.
/// `None` if `buf` is not a complete PILS frame.
#[inline]
pub fn split_pils_mut(buf: &mut [u8]) -> Option<(NodeId, [u8; 12], &mut [u8])> {
    let (header, ciphertext) = buf.split_first_chunk_mut::<PILS_HEADER_LEN>()?;
    let (magic, rest) = header.split_first_chunk::<MAGIC_LEN>()?;
    if *magic != MAGIC_PILS || ciphertext.len() < TAG_LEN {
        return None;
    }
    let (sender, nonce) = rest.split_first_chunk::<4>()?;
    Some((node_id(sender), *nonce.first_chunk::<12>()?, ciphertext))
}

/// Writes the magic of a plaintext frame; the packet follows. Returns 4.
///
/// # Errors
///
/// [`EncodeError::BufferTooSmall`].
#[inline]
pub fn encode_pilt_header(buf: &mut [u8]) -> Result<usize, EncodeError> {
    *room_for::<MAGIC_LEN>(buf)? = MAGIC_PILT;
    Ok(MAGIC_LEN)
}

/// Writes the header of a sealed frame; ciphertext and tag follow. Returns [`PILS_HEADER_LEN`].
///
/// # Errors
///
/// [`EncodeError::BufferTooSmall`].
#[inline]
pub fn encode_pils_header(sender: NodeId, nonce: &[u8; 12], buf: &mut [u8]) -> Result<usize, EncodeError> {
    let out = room_for::<PILS_HEADER_LEN>(buf)?;
    out[0..4].copy_from_slice(&MAGIC_PILS);
    out[4..8].copy_from_slice(&sender.0.to_be_bytes());
    out[8..20].copy_from_slice(nonce);
    Ok(PILS_HEADER_LEN)
}

/// The additional data of a sealed frame: the sender's id, big-endian. `spec/wire.md §4.2`.
#[inline]
pub fn pils_aad(sender: NodeId) -> [u8; 4] {
    sender.0.to_be_bytes()
}

/// Writes a PILK frame. Returns [`PILK_LEN`].
///
/// # Errors
///
/// [`EncodeError::BufferTooSmall`].
pub fn encode_pilk(sender: NodeId, x25519: &[u8; 32], buf: &mut [u8]) -> Result<usize, EncodeError> {
    let out = room_for::<PILK_LEN>(buf)?;
    out[0..4].copy_from_slice(&MAGIC_PILK);
    out[4..8].copy_from_slice(&sender.0.to_be_bytes());
    out[8..40].copy_from_slice(x25519);
    Ok(PILK_LEN)
}

/// Writes a PILA frame with its trailer. Returns [`PILA_LEN`] plus the trailer's length.
///
/// # Errors
///
/// [`EncodeError::BufferTooSmall`].
pub fn encode_pila(pila: &Pila<'_>, buf: &mut [u8]) -> Result<usize, EncodeError> {
    let total = PILA_LEN + pila.trailer.len();
    let out = room(buf, total)?;
    let (fixed, trailer) = out.split_at_mut(PILA_LEN);
    let fixed = room_for::<PILA_LEN>(fixed)?;
    fixed[0..4].copy_from_slice(&MAGIC_PILA);
    fixed[4..8].copy_from_slice(&pila.sender.0.to_be_bytes());
    fixed[8..40].copy_from_slice(&pila.x25519);
    fixed[40..72].copy_from_slice(&pila.ed25519);
    fixed[72..136].copy_from_slice(&pila.signature);
    trailer.copy_from_slice(pila.trailer);
    Ok(total)
}

/// Writes a PILP frame. Returns [`PILP_LEN`].
///
/// # Errors
///
/// [`EncodeError::BufferTooSmall`].
pub fn encode_pilp(buf: &mut [u8]) -> Result<usize, EncodeError> {
    *room_for::<PILP_LEN>(buf)? = MAGIC_PILP;
    Ok(PILP_LEN)
}

/// The bytes that a PILA signature covers: `"auth"`, sender, X25519 key. `spec/wire.md §4.4`.
pub fn pila_signed_message(sender: NodeId, x25519: &[u8; 32]) -> [u8; PILA_SIGNED_LEN] {
    let mut message = [0; PILA_SIGNED_LEN];
    message[0..4].copy_from_slice(b"auth");
    message[4..8].copy_from_slice(&sender.0.to_be_bytes());
    message[8..40].copy_from_slice(x25519);
    message
}

/// What may follow the signature of a PILA frame. Not authenticated: a hint that may be stripped or forged, so nothing
/// that weakens a session may hang on it. `spec/wire.md §4.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PilaTrailer {
    /// Capability bits; bit 0 means membership gossip to newer reference peers.
    pub capabilities: u64,
    /// [`PilaTrailer::REQUEST`], [`PilaTrailer::ANSWER`]; unknown bits are ignored.
    pub flags: u64,
    /// Present if the sender is Pilotage: the version of its dialect.
    pub pilotage: Option<u8>,
}

impl PilaTrailer {
    /// Flag: please answer with your own PILA.
    pub const REQUEST: u64 = 1;
    /// Flag: this is the answer to a request.
    pub const ANSWER: u64 = 2;
    /// Marks the dialect version of a Pilotage peer.
    pub const MARK: [u8; 4] = *b"PLTG";

    /// Reads as much as is well-formed; what is missing or malformed keeps its default. Never fails: the signed part of
    /// the frame stays valid whatever follows it.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut trailer = Self::default();
        let Some((capabilities, rest)) = read_uvarint(bytes) else { return trailer };
        trailer.capabilities = capabilities;
        let Some((flags, rest)) = read_uvarint(rest) else { return trailer };
        trailer.flags = flags;
        if let [b'P', b'L', b'T', b'G', version, ..] = *rest {
            trailer.pilotage = Some(version);
        }
        trailer
    }

    /// Writes the trailer and returns its length, at most [`MAX_PILA_TRAILER`]. If `buf` is too small nothing is
    /// written and 0 is returned, which is a valid (absent) trailer.
    pub fn encode(&self, buf: &mut [u8]) -> usize {
        let mut scratch = [0; MAX_PILA_TRAILER];
        let mut len = write_uvarint(self.capabilities, &mut scratch, 0);
        len = write_uvarint(self.flags, &mut scratch, len);
        if let Some(version) = self.pilotage {
            for byte in Self::MARK.into_iter().chain([version]) {
                scratch[len] = byte;
                len += 1;
            }
        }
        match buf.get_mut(..len) {
            Some(out) => {
                out.copy_from_slice(&scratch[..len]);
                len
            }
            None => 0,
        }
    }
}

/// Why bytes are not a frame. `spec/wire.md §4.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameError {
    /// The magic is none of the five.
    Magic([u8; 4]),
    /// Fewer bytes than the shortest frame of its kind.
    TooShort {
        /// Bytes that the frame needs at least.
        need: usize,
        /// Bytes there are.
        len: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "frame: unknown magic \"{}\"", magic.escape_ascii()),
            Self::TooShort { need, len } => write!(f, "frame: {len} bytes, at least {need} needed"),
        }
    }
}

impl core::error::Error for FrameError {}

#[inline]
fn node_id(bytes: &[u8; 4]) -> NodeId {
    NodeId(u32::from_be_bytes(*bytes))
}

/// The error for a frame of which `rest` bytes follow the magic.
#[cold]
fn too_short(need: usize, rest: &[u8]) -> FrameError {
    FrameError::TooShort { need, len: MAGIC_LEN + rest.len() }
}

#[inline]
fn decode_pils(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    if let Some((sender, after)) = rest.split_first_chunk::<4>()
        && let Some((nonce, ciphertext)) = after.split_first_chunk::<12>()
        && ciphertext.len() >= TAG_LEN
    {
        return Ok(Frame::Pils { sender: node_id(sender), nonce: *nonce, ciphertext });
    }
    Err(too_short(PILS_OVERHEAD, rest))
}

fn decode_pilk(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    if let Some((sender, after)) = rest.split_first_chunk::<4>()
        && let Some((x25519, _)) = after.split_first_chunk::<32>()
    {
        return Ok(Frame::Pilk { sender: node_id(sender), x25519: *x25519 });
    }
    Err(too_short(PILK_LEN, rest))
}

fn decode_pila(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    if let Some((sender, after)) = rest.split_first_chunk::<4>()
        && let Some((x25519, after)) = after.split_first_chunk::<32>()
        && let Some((ed25519, after)) = after.split_first_chunk::<32>()
        && let Some((signature, trailer)) = after.split_first_chunk::<64>()
    {
        return Ok(Frame::Pila(Pila {
            sender: node_id(sender),
            x25519: *x25519,
            ed25519: *ed25519,
            signature: *signature,
            trailer,
        }));
    }
    Err(too_short(PILA_LEN, rest))
}

/// LEB128 of a u64; `None` if cut off, longer than ten bytes or above 64 bits.
fn read_uvarint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7F);
        if index == 9 && byte > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// Writes at `at`, where ten bytes must be left; returns the position after it.
fn write_uvarint(mut value: u64, out: &mut [u8; MAX_PILA_TRAILER], mut at: usize) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pila_round_trips(
            sender: u32, x25519: [u8; 32], ed25519: [u8; 32], low: [u8; 32], high: [u8; 32], trailer: Vec<u8>,
        ) {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&low);
            signature[32..].copy_from_slice(&high);
            let pila = Pila { sender: NodeId(sender), x25519, ed25519, signature, trailer: &trailer };
            let mut buf = vec![0; PILA_LEN + trailer.len()];
            prop_assert_eq!(encode_pila(&pila, &mut buf), Ok(buf.len()));
            prop_assert_eq!(decode(&buf), Ok(Frame::Pila(pila)));
            let short = buf.len() - 1;
            let error = EncodeError::BufferTooSmall { need: buf.len(), have: short };
            prop_assert_eq!(encode_pila(&pila, &mut buf[..short]), Err(error));
        }

        #[test]
        fn pilk_and_pils_round_trip(sender: u32, x25519: [u8; 32], nonce: [u8; 12], mut sealed: Vec<u8>) {
            let sender = NodeId(sender);
            let mut buf = [0; PILK_LEN];
            prop_assert_eq!(encode_pilk(sender, &x25519, &mut buf), Ok(PILK_LEN));
            prop_assert_eq!(decode(&buf), Ok(Frame::Pilk { sender, x25519 }));

            sealed.extend_from_slice(&[7; TAG_LEN]);
            let mut frame = vec![0; PILS_HEADER_LEN];
            prop_assert_eq!(encode_pils_header(sender, &nonce, &mut frame), Ok(PILS_HEADER_LEN));
            frame.extend_from_slice(&sealed);
            prop_assert_eq!(decode(&frame), Ok(Frame::Pils { sender, nonce, ciphertext: &sealed }));
            let (got_sender, got_nonce, ciphertext) = split_pils_mut(&mut frame).unwrap();
            prop_assert_eq!((got_sender, got_nonce, &*ciphertext), (sender, nonce, &*sealed));
        }

        #[test]
        fn trailer_round_trips_whatever_follows(
            capabilities: u64, flags: u64, pilotage: Option<u8>, tail: Vec<u8>,
        ) {
            let trailer = PilaTrailer { capabilities, flags, pilotage };
            let mut buf = [0; MAX_PILA_TRAILER];
            let len = trailer.encode(&mut buf);
            let bytes = [&buf[..len], &tail].concat();
            if pilotage.is_some() || !tail.starts_with(&PilaTrailer::MARK) {
                prop_assert_eq!(PilaTrailer::decode(&bytes), trailer);
            }
        }

        #[test]
        fn random_bytes_never_panic(magic in 0usize..6, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let magics = [MAGIC_PILT, MAGIC_PILS, MAGIC_PILK, MAGIC_PILA, MAGIC_PILP, [0; 4]];
            let mut frame = [&magics[magic][..], &rest].concat();
            let _ = decode(&rest);
            let _ = PilaTrailer::decode(&rest);
            let is_pils = matches!(decode(&frame), Ok(Frame::Pils { .. }));
            prop_assert_eq!(split_pils_mut(&mut frame).is_some(), is_pils);
        }
    }

    #[test]
    fn trailer_keeps_what_is_well_formed() {
        let decode = PilaTrailer::decode;
        assert_eq!(decode(&[]), PilaTrailer::default());
        assert_eq!(decode(&[5]), PilaTrailer { capabilities: 5, ..Default::default() });
        // Flags cut off in the middle of a varint: capabilities stay.
        assert_eq!(decode(&[5, 0x80]), PilaTrailer { capabilities: 5, ..Default::default() });
        // Eleven bytes, or more than 64 bits, is no varint.
        assert_eq!(decode(&[0x80; 30]), PilaTrailer::default());
        let mut too_large = [0xFF; 10];
        too_large[9] = 2;
        assert_eq!(decode(&too_large), PilaTrailer::default());
        too_large[9] = 1;
        assert_eq!(decode(&too_large).capabilities, u64::MAX);
        assert_eq!(decode(b"\x00\x01PLTG\x07more").pilotage, Some(7));
        assert_eq!(decode(b"\x00\x01PLTG").pilotage, None);
    }

    #[test]
    fn the_longest_trailer_fits_and_a_small_buffer_gets_none() {
        let trailer = PilaTrailer { capabilities: u64::MAX, flags: u64::MAX, pilotage: Some(255) };
        let mut buf = [0xA5; MAX_PILA_TRAILER];
        assert_eq!(trailer.encode(&mut buf[..MAX_PILA_TRAILER - 1]), 0);
        assert_eq!(buf, [0xA5; MAX_PILA_TRAILER]);
        assert_eq!(trailer.encode(&mut buf), MAX_PILA_TRAILER);
        assert_eq!(PilaTrailer::decode(&buf), trailer);
    }

    #[test]
    fn lengths_at_the_edge() {
        assert_eq!(decode(b"PILP"), Ok(Frame::Pilp));
        assert_eq!(decode(b"PILP\0\0\0\x01"), Ok(Frame::Pilp));
        assert_eq!(decode(b"PILT"), Ok(Frame::Pilt { packet: &[] }));
        assert_eq!(decode(b"PIL"), Err(FrameError::TooShort { need: 4, len: 3 }));
        assert_eq!(
            decode(&[b"PILS", &[0; 31][..]].concat()),
            Err(FrameError::TooShort { need: 36, len: 35 })
        );
        assert!(decode(&[b"PILS", &[0; 32][..]].concat()).is_ok());
        assert_eq!(
            decode(&[b"PILK", &[0; 35][..]].concat()),
            Err(FrameError::TooShort { need: 40, len: 39 })
        );
        assert_eq!(
            decode(&[b"PILA", &[0; 131][..]].concat()),
            Err(FrameError::TooShort { need: 136, len: 135 })
        );
    }

    #[test]
    fn unknown_magics_are_named() {
        assert_eq!(decode(b"PILI...."), Err(FrameError::Magic(*b"PILI")));
        assert_eq!(
            FrameError::Magic([0, b'a', 0xFF, b'"']).to_string(),
            r#"frame: unknown magic "\x00a\xff\"""#
        );
    }

    #[test]
    fn small_buffers_are_errors() {
        let error = |need| Err(EncodeError::BufferTooSmall { need, have: 3 });
        let mut buf = [0; 3];
        assert_eq!(encode_pilt_header(&mut buf), error(4));
        assert_eq!(encode_pilp(&mut buf), error(4));
        assert_eq!(encode_pils_header(NodeId(1), &[0; 12], &mut buf), error(20));
        assert_eq!(encode_pilk(NodeId(1), &[0; 32], &mut buf), error(40));
    }
}
