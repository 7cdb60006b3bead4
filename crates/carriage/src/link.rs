//! One WebSocket connection that carries datagrams. Never blocks.

use std::io::ErrorKind;

use mio::net::TcpStream;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Bytes, Error, Message, WebSocket};

use crate::MAX_CARRIED;
use crate::tls::TlsStream;

/// Bytes gathered before they are sealed and written.
const WRITE_BUFFER: usize = 32 * 1024;
/// Bytes that wait for the socket at most; further datagrams are not taken.
const MAX_WRITE_BUFFER: usize = 256 * 1024;
/// Bytes read at a time. Each open link holds such a buffer.
const READ_BUFFER: usize = 16 * 1024;

/// Why a link has ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side closed it.
    #[error("closed by the other side")]
    Closed,
    /// The other side does not keep to the protocol.
    #[error("not understood: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error(transparent)]
    Io(std::io::Error),
}

/// A link that is ready.
#[derive(Debug)]
pub struct Link {
    socket: WebSocket<TlsStream<TcpStream>>,
    /// Messages that are no datagrams.
    pub(crate) strange: u64,
}

pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_CARRIED))
        .max_frame_size(Some(MAX_CARRIED))
}

impl Link {
    pub(crate) fn new(socket: WebSocket<TlsStream<TcpStream>>) -> Self {
        Self { socket, strange: 0 }
    }

    /// The socket, to be registered with a poller.
    pub fn source(&mut self) -> &mut TcpStream {
        &mut self.socket.get_mut().socket
    }

    /// Takes a datagram; `false` if too much waits already, or if it is longer than [`MAX_CARRIED`]. Follow the last one with [`Link::flush`].
    ///
    /// # Errors
    /// The link has ended.
    pub fn send(&mut self, datagram: &[u8]) -> Result<bool, LinkError> {
        if datagram.len() > MAX_CARRIED {
            return Ok(false);
        }
        match self.socket.write(Message::Binary(Bytes::copy_from_slice(datagram))) {
            Ok(()) => Ok(true),
            Err(Error::WriteBufferFull(_)) => Ok(false),
            // It was taken, and waits.
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(explain(error)),
        }
    }

    /// Writes what waits; `false` if the socket is full.
    ///
    /// # Errors
    /// The link has ended.
    pub fn flush(&mut self) -> Result<bool, LinkError> {
        match self.socket.flush() {
            Ok(()) => Ok(true),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(explain(error)),
        }
    }

    /// The next datagram; `None` if there is none yet. Works through at most 32 messages that are none.
    ///
    /// # Errors
    /// The link has ended.
    pub fn receive(&mut self) -> Result<Option<Bytes>, LinkError> {
        for _ in 0..32 {
            match self.socket.read() {
                Ok(Message::Binary(data)) if !data.is_empty() => return Ok(Some(data)),
                Ok(Message::Close(_)) => return Err(LinkError::Closed),
                // Answers to pings are queued by the library.
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(_) => self.strange += 1,
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(explain(error)),
            }
        }
        Err(LinkError::Protocol("too many messages that are no datagrams".into()))
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// The link has ended.
    pub fn ping(&mut self) -> Result<(), LinkError> {
        match self.socket.write(Message::Ping(Bytes::new())) {
            Ok(()) | Err(Error::WriteBufferFull(_)) => self.flush().map(drop),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(explain(error)),
        }
    }

    /// Says farewell, as far as the socket takes it at once.
    pub fn close(mut self) {
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
    }
}

pub(crate) fn explain(error: Error) -> LinkError {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => LinkError::Closed,
        Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => LinkError::Closed,
        Error::Io(error) => LinkError::Io(error),
        other => LinkError::Protocol(other.to_string()),
    }
}
