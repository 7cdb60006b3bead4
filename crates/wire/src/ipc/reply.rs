//! What the daemon answers and tells. `spec/ipc.md §4`.

use super::{EncodeError, IpcError, LENGTH_PREFIX, Reader, Writer};
use crate::SocketAddress;

/// What the daemon answers or tells; texts and bytes borrow from the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The port is bound.
    BindOk {
        /// The port.
        port: u16,
    },
    /// The connection is open.
    DialOk {
        /// Its number.
        connection: u32,
    },
    /// Somebody connected to a port that this driver bound.
    Accept {
        /// Our port.
        local_port: u16,
        /// The connection's number.
        connection: u32,
        /// Who it is.
        from: SocketAddress,
    },
    /// Bytes of a connection.
    Recv {
        /// Which connection.
        connection: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// The connection was closed, or its peer will send no more.
    CloseOk {
        /// Which connection.
        connection: u32,
    },
    /// A request failed. The reference knows code 1 only.
    Error {
        /// The code.
        code: u16,
        /// What went wrong.
        text: &'a str,
    },
    /// A datagram; every driver gets every one.
    RecvFrom {
        /// Who sent it, and from which port.
        from: SocketAddress,
        /// To which port of ours.
        port: u16,
        /// The payload.
        data: &'a [u8],
    },
    /// A JSON object.
    Json {
        /// In answer to what.
        kind: JsonKind,
        /// The object's text, as it came.
        body: &'a [u8],
    },
}

/// Requests that are answered with JSON; the number is the answer's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum JsonKind {
    /// To [`Request::Info`](super::Request::Info).
    Info = 0x0E,
    /// To [`Request::Handshake`](super::Request::Handshake).
    Handshake = 0x10,
    /// To [`Request::ResolveHostname`](super::Request::ResolveHostname).
    ResolveHostname = 0x12,
    /// To [`Request::SetHostname`](super::Request::SetHostname).
    SetHostname = 0x14,
    /// To [`Request::SetVisibility`](super::Request::SetVisibility).
    SetVisibility = 0x16,
    /// To [`Request::Deregister`](super::Request::Deregister).
    Deregister = 0x18,
    /// To [`Request::SetTags`](super::Request::SetTags).
    SetTags = 0x1A,
    /// To [`Request::SetWebhook`](super::Request::SetWebhook).
    SetWebhook = 0x1C,
    /// To [`Request::SetTaskExec`](super::Request::SetTaskExec).
    SetTaskExec = 0x1E,
    /// To [`Request::Network`](super::Request::Network).
    Network = 0x20,
    /// To [`Request::Health`](super::Request::Health).
    Health = 0x22,
}

impl JsonKind {
    const ALL: [Self; 11] = [
        Self::Info,
        Self::Handshake,
        Self::ResolveHostname,
        Self::SetHostname,
        Self::SetVisibility,
        Self::Deregister,
        Self::SetTags,
        Self::SetWebhook,
        Self::SetTaskExec,
        Self::Network,
        Self::Health,
    ];

    fn of(command: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == command)
    }
}

impl<'a> Reply<'a> {
    /// Decodes one message (command and payload). JSON is not looked into.
    ///
    /// # Errors
    ///
    /// [`IpcError`]; a driver passes over a command that it does not know.
    pub fn decode(message: &'a [u8]) -> Result<Self, IpcError> {
        let mut r = Reader::new(message)?;
        Ok(match r.command {
            0x02 => Self::BindOk { port: r.u16()? },
            0x04 => Self::DialOk { connection: r.u32()? },
            0x05 => Self::Accept { local_port: r.u16()?, connection: r.u32()?, from: r.socket()? },
            0x07 => Self::Recv { connection: r.u32()?, data: r.rest },
            0x09 => Self::CloseOk { connection: r.u32()? },
            0x0A => Self::Error { code: r.u16()?, text: r.text()? },
            0x0C => Self::RecvFrom { from: r.socket()?, port: r.u16()?, data: r.rest },
            other => match JsonKind::of(other) {
                Some(kind) => Self::Json { kind, body: r.rest },
                None => return Err(IpcError::Command(other)),
            },
        })
    }

    /// The command byte.
    pub fn command(&self) -> u8 {
        match *self {
            Self::BindOk { .. } => 0x02,
            Self::DialOk { .. } => 0x04,
            Self::Accept { .. } => 0x05,
            Self::Recv { .. } => 0x07,
            Self::CloseOk { .. } => 0x09,
            Self::Error { .. } => 0x0A,
            Self::RecvFrom { .. } => 0x0C,
            Self::Json { kind, .. } => kind as u8,
        }
    }

    /// Bytes of the frame, length field included.
    pub fn encoded_len(&self) -> usize {
        LENGTH_PREFIX + 1 + self.payload_len()
    }

    fn payload_len(&self) -> usize {
        match *self {
            Self::BindOk { .. } => 2,
            Self::DialOk { .. } | Self::CloseOk { .. } => 4,
            Self::Accept { .. } => 14,
            Self::Recv { data, .. } => 4 + data.len(),
            Self::Error { text, .. } => 2 + text.len(),
            Self::RecvFrom { data, .. } => 10 + data.len(),
            Self::Json { body, .. } => body.len(),
        }
    }

    /// Writes the frame, length field included, and returns its length.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the buffer is too small or the message longer than [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = Writer::begin(buf, self.command(), self.payload_len())?;
        match *self {
            Self::BindOk { port } => w.put(&port.to_be_bytes()),
            Self::DialOk { connection } | Self::CloseOk { connection } => w.put(&connection.to_be_bytes()),
            Self::Accept { local_port, connection, from } => {
                w.put(&local_port.to_be_bytes());
                w.put(&connection.to_be_bytes());
                w.socket(from);
            }
            Self::Recv { connection, data } => {
                w.put(&connection.to_be_bytes());
                w.put(data);
            }
            Self::Error { code, text } => {
                w.put(&code.to_be_bytes());
                w.put(text.as_bytes());
            }
            Self::RecvFrom { from, port, data } => {
                w.socket(from);
                w.put(&port.to_be_bytes());
                w.put(data);
            }
            Self::Json { body, .. } => w.put(body),
        }
        Ok(self.encoded_len())
    }
}
