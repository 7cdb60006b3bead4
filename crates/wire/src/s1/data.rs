//! The header of a data frame. `spec/secure.md §8`.
//!
//! ```text
//! | 1011 K 000 1 | receiver 4 | packet number 4 | sealed frames … | tag 16 |
//! ```
//!
//! K is the key phase. The low four bits of the first byte and the packet number are masked on the wire; the mask comes
//! from the first 16 sealed bytes.

use super::cursor::Reader;
use super::{Malformed, TAG_LEN};

/// Bytes before the sealed part.
pub const HEADER_LEN: usize = 9;
/// What a data frame adds to the frames in it, bytes.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Bytes of the sealed part that make the mask.
pub const SAMPLE_LEN: usize = 16;
/// The first four bits of a data frame.
pub const FIRST: u8 = 0xB0;
/// The key phase in the first byte, once unmasked.
pub const PHASE: u8 = 0x08;
/// Bits of the first byte that are masked.
pub const MASKED: u8 = 0x0F;

/// The unmasked header of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// Last bit of the number of the key.
    pub phase: bool,
    /// The receiver's index.
    pub receiver: u32,
    /// Number of the packet in its direction of the session.
    pub number: u32,
}

impl Header {
    /// The bytes, unmasked: the additional data of the AEAD.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = FIRST | if self.phase { PHASE } else { 0 };
        out[1..5].copy_from_slice(&self.receiver.to_be_bytes());
        out[5..].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    /// Reads unmasked bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed::Magic`] for another first byte, [`Malformed::Value`] for reserved bits or index 0.
    #[inline]
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let mut read = Reader(bytes);
        let first = read.u8()?;
        if first & !MASKED != FIRST {
            return Err(Malformed::Magic);
        }
        if first & MASKED & !PHASE != 0 {
            return Err(Malformed::Value("reserved"));
        }
        let (receiver, number) = (read.u32()?, read.u32()?);
        if receiver == 0 {
            return Err(Malformed::Value("index"));
        }
        Ok(Self { phase: first & PHASE != 0, receiver, number })
    }
}

/// The index of a data frame that is still masked; `None` if the datagram is too short to be one.
#[inline]
pub fn receiver(datagram: &[u8]) -> Option<u32> {
    if datagram.len() < OVERHEAD {
        return None;
    }
    let mut read = Reader(datagram);
    (read.u8().ok()? & !MASKED == FIRST).then_some(())?;
    read.u32().ok().filter(|index| *index != 0)
}

/// Masks or unmasks a header with five bytes made from the sample.
#[inline]
pub fn mask(header: &mut [u8; HEADER_LEN], mask: [u8; 5]) {
    header[0] ^= mask[0] & MASKED;
    for (byte, mask) in header[5..].iter_mut().zip(&mask[1..]) {
        *byte ^= mask;
    }
}
