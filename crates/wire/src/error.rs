//! The one error of all encoders.

use core::fmt;

/// Why an encoder wrote nothing. Always the caller's mistake, never a peer's. `spec/wire.md §1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncodeError {
    /// The output buffer holds fewer bytes than the message needs.
    BufferTooSmall {
        /// Bytes the message needs.
        need: usize,
        /// Bytes the buffer has.
        have: usize,
    },
    /// The payload or list is longer than its length field can say.
    TooLong {
        /// Length asked for (bytes, or items of a list).
        len: usize,
        /// Longest that fits.
        max: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BufferTooSmall { need, have } => {
                write!(
                    f,
                    "encode: the message needs {need} bytes, the buffer has {have}; pass a larger buffer"
                )
            }
            Self::TooLong { len, max } => {
                write!(
                    f,
                    "encode: length {len} exceeds the {max} that the length field can carry; split the payload"
                )
            }
        }
    }
}

impl core::error::Error for EncodeError {}

/// The first `need` bytes of `buf`, or the error that says how many are missing.
#[inline]
pub(crate) fn room(buf: &mut [u8], need: usize) -> Result<&mut [u8], EncodeError> {
    let have = buf.len();
    buf.get_mut(..need).ok_or(EncodeError::BufferTooSmall { need, have })
}

/// The first `N` bytes of `buf` as an array, so that later writes need no bounds checks.
#[inline]
pub(crate) fn room_for<const N: usize>(buf: &mut [u8]) -> Result<&mut [u8; N], EncodeError> {
    let have = buf.len();
    buf.first_chunk_mut::<N>().ok_or(EncodeError::BufferTooSmall { need: N, have })
}
