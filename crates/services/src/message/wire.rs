//! Frames of the data exchange (spec/services.md §5.2). All integers big-endian.
//!
//! ```text
//! frame    type u32 | length u32 (at most 16 MiB) | payload
//! file     type 4, payload: name length u16 | name | data
//! answer   type 1, payload: "ACK <NAME> <n> bytes" or "ERR <text>"
//! ```

use std::fmt;

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Longest payload, in bytes.
pub const MAX_PAYLOAD: u32 = 16 * 1024 * 1024;

/// Longest answer that is read, in bytes.
pub const MAX_ANSWER: u32 = 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Text, UTF-8 as a rule.
    Text,
    /// Bytes.
    Binary,
    /// JSON; nobody checks it.
    Json,
    /// A file with its name.
    File,
    /// A type that later peers may have; kept as bytes.
    Unknown(u32),
}

impl Kind {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Json => 3,
            Self::File => 4,
            Self::Unknown(number) => number,
        }
    }

    /// The kind of a number; every number has one.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Text,
            2 => Self::Binary,
            3 => Self::Json,
            4 => Self::File,
            other => Self::Unknown(other),
        }
    }
}

/// The name that answers carry.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("TEXT"),
            Self::Binary => f.write_str("BINARY"),
            Self::Json => f.write_str("JSON"),
            Self::File => f.write_str("FILE"),
            Self::Unknown(number) => write!(f, "UNKNOWN({number})"),
        }
    }
}

/// Why bytes are not this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes is above the limit of 16 MiB")]
    TooLong(u64),
    /// A file frame whose name does not fit in it, or above 65,535 bytes.
    #[error("the name of the file does not fit in its frame")]
    NameLength,
    /// An answer that is neither ACK nor ERR.
    #[error("the answer is not understood: {0:?}")]
    Answer(String),
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Bytes of payload, at most [`MAX_PAYLOAD`].
    pub length: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// The payload would be too long.
    pub fn decode(bytes: [u8; HEADER]) -> Result<Self, WireError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let length = u32::from_be_bytes([e, f, g, h]);
        if length > MAX_PAYLOAD {
            return Err(WireError::TooLong(length.into()));
        }
        Ok(Self { kind: Kind::from_number(u32::from_be_bytes([a, b, c, d])), length })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[4..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// A whole frame in one buffer: peers that gather small writes delay the second one.
///
/// # Errors
/// The payload is too long.
pub fn frame(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let length = length(payload.len())?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&Header { kind, length }.encode());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// A file frame in one buffer.
///
/// # Errors
/// Name or payload are too long.
pub fn file_frame(name: &str, data: &[u8]) -> Result<Vec<u8>, WireError> {
    let name_length = u16::try_from(name.len()).map_err(|_| WireError::NameLength)?;
    let length = length(2 + name.len() + data.len())?;
    let mut bytes = Vec::with_capacity(HEADER + 2 + name.len() + data.len());
    bytes.extend_from_slice(&Header { kind: Kind::File, length }.encode());
    bytes.extend_from_slice(&name_length.to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(data);
    Ok(bytes)
}

fn length(bytes: usize) -> Result<u32, WireError> {
    let fits = u32::try_from(bytes).ok().filter(|length| *length <= MAX_PAYLOAD);
    fits.ok_or(WireError::TooLong(bytes as u64))
}

/// Splits what a file frame of `length` bytes begins with: from the two bytes of the name's length, the length of
/// the name and of the data behind it.
///
/// # Errors
/// The name does not fit.
pub fn file_lengths(length: u32, name_length: [u8; 2]) -> Result<(usize, u64), WireError> {
    let name = u32::from(u16::from_be_bytes(name_length));
    let data = length.checked_sub(2 + name).ok_or(WireError::NameLength)?;
    Ok((name as usize, data.into()))
}

/// What the receiver says to a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Taken.
    Ack {
        /// Name of the kind, as [`Kind`] displays it.
        kind: String,
        /// Bytes of the payload; of a file, of its data.
        bytes: u64,
    },
    /// Not taken, with the reason.
    Refused(String),
}

impl Answer {
    /// The answer to a frame that was taken.
    #[must_use]
    pub fn ack(kind: Kind, bytes: u64) -> Self {
        Self::Ack { kind: kind.to_string(), bytes }
    }

    /// The answer to a frame that was not taken.
    #[must_use]
    pub fn not_saved(kind: Kind, why: &str) -> Self {
        Self::Refused(format!("{kind} save failed: {why}"))
    }

    /// Reads the payload of an answer. Control characters are replaced: it may go to a terminal.
    ///
    /// # Errors
    /// Neither ACK nor ERR.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let text: String = String::from_utf8_lossy(payload)
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        if let Some(why) = text.strip_prefix("ERR") {
            return Ok(Self::Refused(why.trim().to_owned()));
        }
        let mut words = text.split(' ');
        match (words.next(), words.next(), words.next(), words.next(), words.next()) {
            (Some("ACK"), Some(kind), Some(bytes), Some("bytes"), None) if !kind.is_empty() => {
                match bytes.parse() {
                    Ok(bytes) => Ok(Self::Ack { kind: kind.to_owned(), bytes }),
                    Err(_) => Err(WireError::Answer(text)),
                }
            }
            _ => Err(WireError::Answer(text)),
        }
    }

    /// The whole frame; texts are cut to [`MAX_ANSWER`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = self.to_string();
        let mut end = text.len().min(MAX_ANSWER as usize);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let header = Header { kind: Kind::Text, length: text.len() as u32 };
        [&header.encode()[..], text.as_bytes()].concat()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack { kind, bytes } => write!(f, "ACK {kind} {bytes} bytes"),
            Self::Refused(why) => write!(f, "ERR {why}"),
        }
    }
}
