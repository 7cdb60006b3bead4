//! Messages of the file transfer: layouts in spec/services.md §3.2 to §3.5. All integers big-endian.
//!
//! ```text
//! offer    "PLFT" | version u8 | flags u8 (1 = size known) | name length u16 | size u64 | name
//! chunk    length u32 (1..=MAX_CHUNK) | data
//! end      0 u32 | size u64 | BLAKE3 32
//! abort    FFFFFFFF u32 | text length u16 | text
//! reply    "PLFR" | status u8 | size u64 | BLAKE3 32 | text length u16 | text
//! ```

use std::io::{self, Read, Write};

/// Version of the protocol in the offer.
pub const VERSION: u8 = 1;

/// Largest chunk that a receiver accepts.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// Longest file name, in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// Longest text in a reply or an abort, in bytes of UTF-8.
pub const MAX_TEXT: usize = 512;

const OFFER_MAGIC: [u8; 4] = *b"PLFT";
const REPLY_MAGIC: [u8; 4] = *b"PLFR";
const FLAG_SIZE_KNOWN: u8 = 1;
const END: u32 = 0;
const ABORT: u32 = u32::MAX;

/// First message of the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// File name without any directory.
    pub name: String,
    /// Size in bytes, if the sender knows it beforehand.
    pub size: Option<u64>,
}

/// Result as the receiver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Stored; length and hash agree.
    Ok,
    /// The hash of the received bytes is another one.
    HashMismatch,
    /// More or fewer bytes than announced.
    LengthMismatch,
    /// The name is not acceptable.
    NameRefused,
    /// A file of that name exists and the receiver does not overwrite.
    Exists,
    /// The receiver could not store the file (disk full, permissions).
    Storage,
    /// The receiver did not understand the sender.
    Protocol,
    /// The receiver takes no file now.
    Busy,
    /// The sender gave up.
    Aborted,
}

impl Status {
    const TABLE: [(Self, u8); 9] = [
        (Self::Ok, 0),
        (Self::HashMismatch, 1),
        (Self::LengthMismatch, 2),
        (Self::NameRefused, 3),
        (Self::Exists, 4),
        (Self::Storage, 5),
        (Self::Protocol, 6),
        (Self::Busy, 7),
        (Self::Aborted, 8),
    ];

    fn code(self) -> u8 {
        Self::TABLE.iter().find(|(status, _)| *status == self).map_or(6, |(_, code)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::TABLE.iter().find(|(_, value)| *value == code).map(|(status, _)| *status)
    }
}

/// Only message of the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The outcome.
    pub status: Status,
    /// Bytes of file data that the receiver got.
    pub size: u64,
    /// BLAKE3 of them.
    pub hash: [u8; 32],
    /// Explanation for a person; empty when all is well.
    pub text: String,
}

/// What follows the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// This many bytes of data follow.
    Chunk(usize),
    /// All sent: total and hash.
    End { size: u64, hash: [u8; 32] },
}

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Zero bytes long.
    #[error("the name is empty")]
    Empty,
    /// More than [`MAX_NAME`] bytes.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// `.` or `..`.
    #[error("the name is a directory reference")]
    Dots,
    /// `/`, `\`, or a control character.
    #[error("the name contains a path separator or a control character")]
    Character,
    /// Names that our temporary files use.
    #[error("names that start with .pilotage- are reserved")]
    Reserved,
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are not this protocol.
    #[error("not the file transfer protocol: {0}")]
    Malformed(&'static str),
    /// The offered name is refused.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The sender gave up and says why.
    #[error("the sender gave up: {0}")]
    Aborted(String),
}

/// Accepts a plain file name (§3.3): no directory part, no control characters, 1 to 255 bytes.
///
/// # Errors
/// The rule that the name breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots);
    }
    if name.chars().any(|c| c == '/' || c == '\\' || c.is_control()) {
        return Err(NameError::Character);
    }
    if name.starts_with(".pilotage-") {
        return Err(NameError::Reserved);
    }
    Ok(())
}

impl Offer {
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut buf = Vec::with_capacity(16 + self.name.len());
        buf.extend_from_slice(&OFFER_MAGIC);
        buf.push(VERSION);
        buf.push(if self.size.is_some() { FLAG_SIZE_KNOWN } else { 0 });
        buf.extend_from_slice(&length16(self.name.len())?);
        buf.extend_from_slice(&self.size.unwrap_or(0).to_be_bytes());
        buf.extend_from_slice(self.name.as_bytes());
        out.write_all(&buf)
    }

    pub(super) fn read(input: &mut impl Read) -> Result<Self, WireError> {
        let mut head = [0; 16];
        input.read_exact(&mut head)?;
        if head[..4] != OFFER_MAGIC {
            return Err(WireError::Malformed("wrong magic in the offer"));
        }
        if head[4] != VERSION {
            return Err(WireError::Malformed("unknown version"));
        }
        let name_len = usize::from(u16::from_be_bytes([head[6], head[7]]));
        if name_len > MAX_NAME {
            return Err(NameError::TooLong.into());
        }
        let size = u64::from_be_bytes(array(&head[8..16]));
        let mut name = vec![0; name_len];
        input.read_exact(&mut name)?;
        let name = String::from_utf8(name).map_err(|_| WireError::Malformed("the name is not UTF-8"))?;
        check_name(&name)?;
        Ok(Self { name, size: (head[5] & FLAG_SIZE_KNOWN != 0).then_some(size) })
    }
}

impl Next {
    pub(super) fn read(input: &mut impl Read) -> Result<Self, WireError> {
        let mut word = [0; 4];
        input.read_exact(&mut word)?;
        match u32::from_be_bytes(word) {
            END => {
                let mut tail = [0; 40];
                input.read_exact(&mut tail)?;
                Ok(Self::End { size: u64::from_be_bytes(array(&tail[..8])), hash: array(&tail[8..]) })
            }
            ABORT => Err(WireError::Aborted(read_text(input)?)),
            length if length as usize <= MAX_CHUNK => Ok(Self::Chunk(length as usize)),
            _ => Err(WireError::Malformed("chunk longer than 1 MiB")),
        }
    }
}

pub(super) fn write_end(out: &mut impl Write, size: u64, hash: &[u8; 32]) -> io::Result<()> {
    let mut buf = [0; 44];
    buf[4..12].copy_from_slice(&size.to_be_bytes());
    buf[12..].copy_from_slice(hash);
    out.write_all(&buf)
}

pub(super) fn write_abort(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut buf = ABORT.to_be_bytes().to_vec();
    push_text(&mut buf, text);
    out.write_all(&buf)
}

impl Reply {
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut buf = REPLY_MAGIC.to_vec();
        buf.push(self.status.code());
        buf.extend_from_slice(&self.size.to_be_bytes());
        buf.extend_from_slice(&self.hash);
        push_text(&mut buf, &self.text);
        out.write_all(&buf)
    }

    pub(super) fn read(input: &mut impl Read) -> Result<Self, WireError> {
        let mut head = [0; 45];
        input.read_exact(&mut head)?;
        if head[..4] != REPLY_MAGIC {
            return Err(WireError::Malformed("wrong magic in the reply"));
        }
        let status = Status::from_code(head[4]).ok_or(WireError::Malformed("unknown status"))?;
        let size = u64::from_be_bytes(array(&head[5..13]));
        Ok(Self { status, size, hash: array(&head[13..45]), text: read_text(input)? })
    }
}

fn push_text(buf: &mut Vec<u8>, text: &str) {
    let text = clip(text);
    // `clip` keeps it under MAX_TEXT, which fits in 16 bits.
    buf.extend_from_slice(&(text.len() as u16).to_be_bytes());
    buf.extend_from_slice(text.as_bytes());
}

/// At most [`MAX_TEXT`] bytes of `text`, cut between characters.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn read_text(input: &mut impl Read) -> Result<String, WireError> {
    let mut length = [0; 2];
    input.read_exact(&mut length)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_TEXT {
        return Err(WireError::Malformed("text longer than 512 bytes"));
    }
    let mut text = vec![0; length];
    input.read_exact(&mut text)?;
    // It goes to a terminal: no control characters from a peer.
    Ok(String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

fn length16(length: usize) -> io::Result<[u8; 2]> {
    u16::try_from(length)
        .map(u16::to_be_bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "name too long"))
}

/// Copies a slice whose length the caller has fixed by its own slicing.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a b.txt", "..x", "ünï", &"x".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let cases = [
            ("", NameError::Empty),
            (".", NameError::Dots),
            ("..", NameError::Dots),
            ("../x", NameError::Character),
            ("/etc/passwd", NameError::Character),
            ("a\\b", NameError::Character),
            ("a\0b", NameError::Character),
            ("a\nb", NameError::Character),
            (".pilotage-1", NameError::Reserved),
        ];
        for (bad, why) in cases {
            assert_eq!(check_name(bad), Err(why), "{bad:?}");
        }
        assert_eq!(check_name(&"x".repeat(256)), Err(NameError::TooLong));
    }

    #[test]
    fn messages_come_back() {
        for size in [None, Some(0), Some(u64::MAX)] {
            let offer = Offer { name: "n".into(), size };
            let mut buf = Vec::new();
            offer.write(&mut buf).unwrap();
            assert_eq!(Offer::read(&mut &buf[..]).unwrap(), offer);
        }
        let reply = Reply { status: Status::Storage, size: 7, hash: [9; 32], text: "full".into() };
        let mut buf = Vec::new();
        reply.write(&mut buf).unwrap();
        assert_eq!(Reply::read(&mut &buf[..]).unwrap(), reply);
    }

    #[test]
    fn every_status_has_its_own_code() {
        for (status, code) in Status::TABLE {
            assert_eq!(status.code(), code);
            assert_eq!(Status::from_code(code), Some(status));
        }
        assert_eq!(Status::from_code(9), None);
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let mut buf = Vec::new();
        write_abort(&mut buf, &"ä".repeat(300)).unwrap();
        match Next::read(&mut &buf[..]) {
            Err(WireError::Aborted(text)) => assert_eq!(text.len(), 512),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bounds_are_enforced() {
        assert!(Next::read(&mut &(MAX_CHUNK as u32 + 1).to_be_bytes()[..]).is_err());
        let mut buf = Vec::new();
        Offer { name: "x".repeat(255), size: None }.write(&mut buf).unwrap();
        buf[6..8].copy_from_slice(&256u16.to_be_bytes());
        assert!(Offer::read(&mut &buf[..]).is_err());
    }
}
