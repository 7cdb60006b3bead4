//! Messages between a daemon and its drivers over a local stream socket. `spec/ipc.md`.
//!
//! ```text
//! frame      length u32 (of what follows, 1 to 1,048,576) | command u8 | payload
//!
//! driver → daemon                               daemon → driver
//! 01 bind        port u16                       02 port u16
//! 03 dial        address 6, port u16            04 connection u32
//! 06 send        connection u32, bytes          05 local port u16, connection u32, address 6, port u16
//! 08 close       connection u32                 07 connection u32, bytes
//! 0B sendto      address 6, port u16, bytes     09 connection u32
//! 0D info                                       0A code u16, text
//! 0F handshake   see HandshakeRequest           0C source 6, source port u16, our port u16, bytes
//! 11 resolve     name                           0E 10 12 14 16 18 1A 1C 1E 20 22: JSON, the number of
//! 13 hostname    name, empty = none                the request plus one
//! 15 visibility  u8, 1 = public
//! 17 deregister
//! 19 tags        JSON list
//! 1B webhook     URL, empty = none
//! 1D task exec   u8, 1 = on
//! 1F network     see NetworkRequest
//! 21 health
//! ```
//!
//! Nothing carries a request number: a driver matches a reply with its oldest request that expects this command, or
//! takes `0A`.

mod reply;
mod request;

use core::fmt;

pub use crate::error::EncodeError;
use crate::error::room;
use crate::{Address, NodeId, SocketAddress};

pub use reply::{JsonKind, Reply};
pub use request::{HandshakeRequest, NetworkRequest, Request};

/// Bytes of the length field in front of every message.
pub const LENGTH_PREFIX: usize = 4;

/// Longest message (command and payload), in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Most stream bytes that one [`Request::Send`] or [`Reply::Recv`] can carry.
pub const MAX_DATA: usize = MAX_MESSAGE - 5;

/// Why a message cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpcError {
    /// The length field says 0 or more than [`MAX_MESSAGE`]: the stream is of no further use.
    Length(u32),
    /// A message without a command byte.
    Empty,
    /// A command that this side does not take.
    Command(u8),
    /// A sub-command of `0F` or `1F` that does not exist.
    SubCommand {
        /// The command.
        command: u8,
        /// Its sub-command.
        sub: u8,
    },
    /// The payload is shorter than the command needs.
    TooShort {
        /// The command.
        command: u8,
        /// Bytes of payload it needs.
        need: usize,
        /// Bytes of payload there are.
        have: usize,
    },
    /// A text that is no UTF-8.
    Text(u8),
}

impl fmt::Display for IpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length(len) => write!(f, "message length {len}: expected 1 to {MAX_MESSAGE}"),
            Self::Empty => f.write_str("message without a command"),
            Self::Command(command) => write!(f, "unknown command 0x{command:02X}"),
            Self::SubCommand { command, sub } => {
                write!(f, "unknown sub-command {sub} of command 0x{command:02X}")
            }
            Self::TooShort { command, need, have } => {
                write!(f, "command 0x{command:02X}: {have} bytes of payload where {need} are needed")
            }
            Self::Text(command) => write!(f, "command 0x{command:02X}: the text is not UTF-8"),
        }
    }
}

impl core::error::Error for IpcError {}

/// The first message of `stream`, command and payload without the length field; `None` if it is not complete yet. The
/// next one begins [`LENGTH_PREFIX`] plus its length later.
///
/// # Errors
///
/// [`IpcError::Length`]: nothing behind it can be found any more.
pub fn next_message(stream: &[u8]) -> Result<Option<&[u8]>, IpcError> {
    let Some((prefix, rest)) = stream.split_first_chunk::<LENGTH_PREFIX>() else { return Ok(None) };
    Ok(rest.get(..message_len(*prefix)?))
}

/// Length of the message that this length field announces.
///
/// # Errors
///
/// [`IpcError::Length`] for 0 and above [`MAX_MESSAGE`].
pub fn message_len(prefix: [u8; LENGTH_PREFIX]) -> Result<usize, IpcError> {
    let len = u32::from_be_bytes(prefix);
    match usize::try_from(len) {
        Ok(usable @ 1..=MAX_MESSAGE) => Ok(usable),
        _ => Err(IpcError::Length(len)),
    }
}

/// What is left of a payload, and of which command.
struct Reader<'a> {
    command: u8,
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    fn new(message: &'a [u8]) -> Result<Self, IpcError> {
        let (&command, rest) = message.split_first().ok_or(IpcError::Empty)?;
        Ok(Self { command, rest, len: rest.len() })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], IpcError> {
        let need = self.len - self.rest.len() + N;
        let too_short = IpcError::TooShort { command: self.command, need, have: self.len };
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(too_short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, IpcError> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, IpcError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, IpcError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn node(&mut self) -> Result<NodeId, IpcError> {
        Ok(NodeId(self.u32()?))
    }

    fn socket(&mut self) -> Result<SocketAddress, IpcError> {
        let address = Address::from_bytes(self.take()?);
        Ok(SocketAddress::new(address, self.u16()?))
    }

    fn text(&self) -> Result<&'a str, IpcError> {
        core::str::from_utf8(self.rest).map_err(|_| IpcError::Text(self.command))
    }
}

/// Fills a buffer of the right length from its beginning.
struct Writer<'a> {
    buf: &'a mut [u8],
}

impl<'a> Writer<'a> {
    /// Writes the length field and the command; the rest of the message has room behind them.
    fn begin(buf: &'a mut [u8], command: u8, payload: usize) -> Result<Self, EncodeError> {
        let too_long = EncodeError::TooLong { len: payload.saturating_add(1), max: MAX_MESSAGE };
        if payload >= MAX_MESSAGE {
            return Err(too_long);
        }
        let len = u32::try_from(payload + 1).map_err(|_| too_long)?;
        let mut writer = Self { buf: room(buf, LENGTH_PREFIX + 1 + payload)? };
        writer.put(&len.to_be_bytes());
        writer.put(&[command]);
        Ok(writer)
    }

    /// The caller has counted: what does not fit is left out rather than a reason to panic.
    fn put(&mut self, bytes: &[u8]) {
        let buf = core::mem::take(&mut self.buf);
        let (head, tail) = buf.split_at_mut(bytes.len().min(buf.len()));
        head.copy_from_slice(&bytes[..head.len()]);
        self.buf = tail;
    }

    fn socket(&mut self, socket: SocketAddress) {
        self.put(&socket.address.to_bytes());
        self.put(&socket.port.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
