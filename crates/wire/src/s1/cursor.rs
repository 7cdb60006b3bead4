//! Reading and writing fields in order; numbers of variable length (RFC 9000 §16, shortest form only).

use super::Malformed;
use crate::error::EncodeError;

/// Largest number of variable length: 2^62 - 1.
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    /// The next `len` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).map_err(|_| Malformed::Truncated)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// `N` bytes that must be zero.
    pub(super) fn zeros<const N: usize>(&mut self, field: &'static str) -> Result<(), Malformed> {
        if self.array::<N>()?.iter().any(|&byte| byte != 0) { Err(Malformed::Value(field)) } else { Ok(()) }
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    /// A number of 1, 2, 4 or 8 bytes; the first two bits say which.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let first = self.u8()?;
        let mut value = u64::from(first & 0x3F);
        let len = 1usize << (first >> 6);
        for _ in 1..len {
            value = value << 8 | u64::from(self.u8()?);
        }
        if varint_len(value) == len { Ok(value) } else { Err(Malformed::Varint) }
    }
}

/// Bytes of a number.
#[inline]
pub(super) const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3F => 1,
        0x40..=0x3FFF => 2,
        0x4000..=0x3FFF_FFFF => 4,
        _ => 8,
    }
}

/// Writes what fits and counts what does not.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    buf: &'a mut [u8],
    at: usize,
    unwritable: Option<EncodeError>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, at: 0, unwritable: None }
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(out) = self.buf.get_mut(self.at..end) {
            out.copy_from_slice(bytes);
        }
        self.at = end;
    }

    #[inline]
    pub(super) fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// A number above [`VARINT_MAX`] makes [`Self::finish`] fail.
    #[inline]
    pub(super) fn varint(&mut self, value: u64) {
        let bytes = value.to_be_bytes();
        let len = varint_len(value);
        if value > VARINT_MAX {
            self.unwritable = Some(EncodeError::TooLong { len: usize::MAX, max: usize::MAX >> 2 });
            return;
        }
        let mut short = bytes;
        let start = bytes.len() - len;
        short[start] |= (len.trailing_zeros() as u8) << 6;
        self.put(&short[start..]);
    }

    /// Bytes behind their length.
    pub(super) fn prefixed(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.put(bytes);
    }

    /// The bytes written, or why the message cannot be.
    pub(super) fn finish(self) -> Result<usize, EncodeError> {
        match self.unwritable {
            Some(error) => Err(error),
            None if self.at > self.buf.len() => {
                Err(EncodeError::BufferTooSmall { need: self.at, have: self.buf.len() })
            }
            None => Ok(self.at),
        }
    }
}
