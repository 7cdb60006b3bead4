//! The bytes of the secure mode S1: handshake frames, data frames, and the frames inside them. `spec/secure.md`.
//!
//! | module | what | normative text |
//! |---|---|---|
//! | [`handshake`] | PILI, PILR, PILC, PILN, PILX | `spec/secure.md §4` |
//! | [`payload`] | what PILI and PILR carry sealed; certificates of prekeys | `spec/secure.md §5` |
//! | [`data`] | the header of a data frame | `spec/secure.md §8` |
//! | [`frames`], [`ack`], [`stream`] | what a data frame carries sealed | `spec/secure.md §11` |
//!
//! Like the rest of the crate: no allocation, no cryptography, no input that panics. All decoders are *strict*: there is
//! exactly one way to write each message, so what decodes encodes to the same bytes again.

pub mod ack;
pub mod data;
pub mod frames;
pub mod handshake;
pub mod payload;
pub mod stream;

mod cursor;

pub use cursor::VARINT_MAX;

use core::fmt;

/// The only version there is.
pub const VERSION: u8 = 1;
/// Bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Bytes of the two MACs of handshake frames.
pub const MAC_LEN: usize = 16;
/// Bytes of a stateless reset token.
pub const TOKEN_LEN: usize = 16;

/// Which S1 frame a datagram claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// PILI.
    Initiation,
    /// PILR.
    Response,
    /// PILC.
    Cookie,
    /// PILN.
    NewPrekey,
    /// PILX.
    Reset,
    /// First byte `B0` to `BF`.
    Data,
}

impl Kind {
    /// Looks at the first four bytes only; `None` if it is none of S1's frames.
    #[inline]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        match *datagram {
            [0xB0..=0xBF, ..] => Some(Self::Data),
            [b'P', b'I', b'L', kind, ..] => match kind {
                b'I' => Some(Self::Initiation),
                b'R' => Some(Self::Response),
                b'C' => Some(Self::Cookie),
                b'N' => Some(Self::NewPrekey),
                b'X' => Some(Self::Reset),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Why bytes are not what a decoder of this module reads. Nothing is ever answered to such bytes before they were
/// authenticated; inside an authenticated frame they end the session. `spec/secure.md §3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Malformed {
    /// The bytes end before the message does.
    Truncated,
    /// There are bytes behind the message, or too many for its kind.
    TooLong,
    /// The magic, or the first byte, is another one.
    Magic,
    /// Another version of S1.
    Version(u8),
    /// No frame type has this number.
    Type(u8),
    /// A number that is not written in the shortest form.
    Varint,
    /// A field has a value that it must not have; its name.
    Value(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("s1: the message is cut off"),
            Self::TooLong => f.write_str("s1: the message is longer than it may be"),
            Self::Magic => f.write_str("s1: another magic"),
            Self::Version(version) => write!(f, "s1: version {version}, only {VERSION} is known"),
            Self::Type(kind) => write!(f, "s1: unknown frame type {kind:#04x}"),
            Self::Varint => f.write_str("s1: a number is not in its shortest form"),
            Self::Value(field) => write!(f, "s1: the field \"{field}\" has a forbidden value"),
        }
    }
}

impl core::error::Error for Malformed {}

#[cfg(test)]
mod tests;
