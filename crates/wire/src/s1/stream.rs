//! STREAM frames: numbered bytes of one stream, which begin it where there is none yet. `spec/secure.md §11.3`.

use super::Malformed;
use super::cursor::{Reader, VARINT_MAX, Writer, varint_len};
use super::frames::STREAM;
use crate::error::EncodeError;

const FIN: u8 = 1;
const LEN: u8 = 2;
const OFFSET: u8 = 4;
const OPEN: u8 = 8;

/// A piece of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream<'a> {
    /// Number of the stream: bit 0 says who opened it, bit 1 whether only that side sends.
    pub id: u64,
    /// Present in every frame of a stream until one of them has been acknowledged: source and destination port.
    pub ports: Option<(u16, u16)>,
    /// Place of the first byte of `data` in the stream.
    pub offset: u64,
    /// The stream ends behind `data`.
    pub fin: bool,
    /// The bytes.
    pub data: &'a [u8],
    /// The frame reaches to the end of the packet, and says no length.
    pub to_end: bool,
}

impl<'a> Stream<'a> {
    /// What follows the type byte.
    pub(super) fn read(kind: u8, read: &mut Reader<'a>) -> Result<Self, Malformed> {
        let id = read.varint()?;
        let ports = if kind & OPEN != 0 { Some((read.u16()?, read.u16()?)) } else { None };
        let offset = if kind & OFFSET != 0 { read.varint()? } else { 0 };
        if kind & OFFSET != 0 && offset == 0 {
            return Err(Malformed::Value("offset"));
        }
        let to_end = kind & LEN == 0;
        let data = if to_end { read.rest() } else { len_and_bytes(read)? };
        let this = Self { id, ports, offset, fin: kind & FIN != 0, data, to_end };
        if offset + data.len() as u64 > VARINT_MAX {
            return Err(Malformed::Value("offset"));
        }
        if data.is_empty() && !this.fin && ports.is_none() {
            return Err(Malformed::Value("empty"));
        }
        Ok(this)
    }

    /// All with the type byte, without the data.
    pub(super) fn write_head(&self, len: usize, out: &mut Writer<'_>) {
        let mut kind = STREAM;
        kind |= if self.fin { FIN } else { 0 };
        kind |= if self.to_end { 0 } else { LEN };
        kind |= if self.offset > 0 { OFFSET } else { 0 };
        kind |= if self.ports.is_some() { OPEN } else { 0 };
        out.u8(kind);
        out.varint(self.id);
        if let Some((source, destination)) = self.ports {
            out.put(&source.to_be_bytes());
            out.put(&destination.to_be_bytes());
        }
        if self.offset > 0 {
            out.varint(self.offset);
        }
        if !self.to_end {
            out.varint(len as u64);
        }
    }

    /// Writes all but the data, which is `len` bytes long and follows: so that a sender can read it in place.
    /// `self.data` is not looked at. Returns the bytes written.
    ///
    /// # Errors
    ///
    /// [`EncodeError`].
    pub fn encode_head(&self, len: usize, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut out = Writer::new(buf);
        self.write_head(len, &mut out);
        out.finish()
    }

    /// Bytes of the frame without its data, which is `len` bytes long.
    pub fn head_len(&self, len: usize) -> usize {
        let ports = if self.ports.is_some() { 4 } else { 0 };
        let offset = if self.offset > 0 { varint_len(self.offset) } else { 0 };
        let length = if self.to_end { 0 } else { varint_len(len as u64) };
        1 + varint_len(self.id) + ports + offset + length
    }
}

fn len_and_bytes<'a>(read: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let len = read.varint()?;
    read.bytes(len)
}
