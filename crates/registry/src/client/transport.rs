//! One connection of the client: TCP, with or without TLS, and a deadline for everything.

use super::{ClientError, ClientTls, clock};
use crate::tls;
use pilotage_wire::registry::{FrameError, LENGTH_PREFIX, MAX_MESSAGE, MessageError};
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub(super) enum Failure {
    Timeout,
    Io(io::Error),
    Frame(FrameError),
    Message(MessageError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A socket timeout is one or the other, depending on the system.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io(error),
        }
    }
}

impl Transport {
    /// Connects to the first address of `addr` that answers, and agrees on TLS if that is wanted.
    pub(super) fn open(addr: &str, tls: ClientTls, deadline: Instant) -> Result<Self, ClientError> {
        let stream = connect_any(addr, deadline)?;
        match tls {
            ClientTls::Plain => Ok(Self::Plain(stream)),
            ClientTls::Pinned(pin) => shake_hands(addr, stream, pin, deadline),
        }
    }

    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.socket().local_addr().ok()
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &tls.sock,
        }
    }

    /// Sends a framed request; gives the JSON text of the reply.
    pub(super) fn transact(&mut self, frame: &[u8], deadline: Instant) -> Result<Vec<u8>, Failure> {
        self.send(frame, deadline)?;
        self.receive(deadline)
    }

    /// Sends framed requests.
    pub(super) fn send(&mut self, frames: &[u8], deadline: Instant) -> Result<(), Failure> {
        self.socket().set_write_timeout(Some(remaining(deadline).ok_or(Failure::Timeout)?))?;
        self.socket().set_read_timeout(Some(remaining(deadline).ok_or(Failure::Timeout)?))?;
        match self {
            Self::Plain(stream) => stream.write_all(frames)?,
            Self::Tls(tls) => {
                tls.write_all(frames)?;
                tls.flush()?;
            }
        }
        Ok(())
    }

    /// The JSON text of the next reply.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let mut prefix = [0; LENGTH_PREFIX];
        self.read_exact(&mut prefix, deadline)?;
        let len = u32::from_be_bytes(prefix) as usize;
        if len > MAX_MESSAGE {
            return Err(Failure::Frame(FrameError::TooLong { len }));
        }
        let mut json = vec![0; len];
        self.read_exact(&mut json, deadline)?;
        Ok(json)
    }

    /// Like the method of `Read`, with a deadline for the whole.
    fn read_exact(&mut self, mut out: &mut [u8], deadline: Instant) -> Result<(), Failure> {
        while !out.is_empty() {
            self.socket().set_read_timeout(Some(remaining(deadline).ok_or(Failure::Timeout)?))?;
            let read = match self {
                Self::Plain(stream) => stream.read(out),
                Self::Tls(tls) => tls.read(out),
            };
            match read {
                Ok(0) => return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => out = &mut out[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn connect_any(addr: &str, deadline: Instant) -> Result<TcpStream, ClientError> {
    let resolve = |source| ClientError::Resolve { addr: addr.to_owned(), source };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for target in addr.to_socket_addrs().map_err(resolve)? {
        let Some(left) = remaining(deadline) else {
            last = io::ErrorKind::TimedOut.into();
            break;
        };
        match TcpStream::connect_timeout(&target, left) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ClientError::Connect { addr: addr.to_owned(), source: last })
}

fn shake_hands(
    addr: &str,
    mut stream: TcpStream,
    pin: [u8; 32],
    deadline: Instant,
) -> Result<Transport, ClientError> {
    let failed = |detail: String| ClientError::Tls { addr: addr.to_owned(), detail };
    let mut session = tls::client_session(pin).map_err(|error| failed(error.to_string()))?;
    while session.is_handshaking() {
        let Some(left) = remaining(deadline) else {
            return Err(failed("no answer in time".into()));
        };
        let step = stream
            .set_read_timeout(Some(left))
            .and_then(|()| stream.set_write_timeout(Some(left)))
            .and_then(|()| session.complete_io(&mut stream));
        match step {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What rustls found wrong: the certificate, or bytes that are no TLS.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(failed(error.to_string()));
            }
            Err(source) => return Err(ClientError::Connect { addr: addr.to_owned(), source }),
        }
    }
    Ok(Transport::Tls(Box::new(StreamOwned::new(session, stream))))
}

fn remaining(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(clock()).filter(|left| !left.is_zero())
}
