//! A stream of a node over its control socket, for another process of the same user.
//!
//! ```text
//! length u32 1 to 1,048,576 | bytes      the next bytes of the stream
//! 00000000                               the end of this direction
//! FFFFFFFE                               to the client: the peer has acknowledged everything, the end included
//! FFFFFFFF | kind u8 | length u16 | text the stream has failed
//! ```
//!
//! A socket that ends without the end of its direction stands for a program that was killed: the stream is reset.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilotage::SocketAddress;
use pilotage_services::Duplex;

/// Longest frame that is taken, in bytes.
const MAX_FRAME: usize = 1 << 20;

/// Longest frame that is sent, in bytes.
const CHUNK: usize = 64 << 10;

/// Longest text of a failure, in bytes.
const MAX_TEXT: usize = 1_024;

/// Most bytes that a writer that failed puts aside for the reader.
const MAX_ASIDE: usize = 1 << 20;

const END: u32 = 0;
const FLUSHED: u32 = 0xFFFF_FFFE;
const FAILED: u32 = 0xFFFF_FFFF;

/// Kinds of failure that commands tell apart, by their number.
const KINDS: [io::ErrorKind; 9] = [
    io::ErrorKind::Other,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::TimedOut,
    io::ErrorKind::UnexpectedEof,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::NotConnected,
    io::ErrorKind::PermissionDenied,
];

/// One step of reading.
pub(super) enum Piece {
    /// So many bytes of the stream.
    Data(usize),
    /// The direction ended.
    End,
    /// Everything is acknowledged.
    Flushed,
    /// The stream failed.
    Failed(io::Error),
}

/// Reads frames in pieces, so that a long one needs no memory, and a timeout loses nothing.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    header: [u8; 4],
    have: usize,
    left: usize,
}

impl FrameReader {
    pub(super) fn read(&mut self, mut socket: &UnixStream, buf: &mut [u8]) -> io::Result<Piece> {
        while self.left == 0 {
            while self.have < self.header.len() {
                match socket.read(&mut self.header[self.have..])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    len => self.have += len,
                }
            }
            self.have = 0;
            match u32::from_be_bytes(self.header) {
                END => return Ok(Piece::End),
                FLUSHED => return Ok(Piece::Flushed),
                FAILED => return failure(socket).map(Piece::Failed),
                len => match usize::try_from(len) {
                    Ok(len) if len <= MAX_FRAME => self.left = len,
                    _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long")),
                },
            }
        }
        let len = buf.len().min(self.left);
        match socket.read(&mut buf[..len])? {
            0 if len > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => {
                self.left -= len;
                Ok(Piece::Data(len))
            }
        }
    }
}

fn failure(mut socket: &UnixStream) -> io::Result<io::Error> {
    let mut head = [0; 3];
    socket.read_exact(&mut head)?;
    let len = usize::from(u16::from_be_bytes([head[1], head[2]]));
    if len > MAX_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "text too long"));
    }
    let mut text = vec![0; len];
    socket.read_exact(&mut text)?;
    let kind = KINDS.get(usize::from(head[0])).copied().unwrap_or(io::ErrorKind::Other);
    Ok(io::Error::new(kind, String::from_utf8_lossy(&text).into_owned()))
}

/// One data frame with at most [`CHUNK`] bytes; how many it took.
pub(super) fn write_data(mut socket: &UnixStream, data: &[u8]) -> io::Result<usize> {
    let data = &data[..data.len().min(CHUNK)];
    let mut frame = Vec::with_capacity(4 + data.len());
    frame.extend_from_slice(&(data.len() as u32).to_be_bytes());
    frame.extend_from_slice(data);
    socket.write_all(&frame)?;
    Ok(data.len())
}

pub(super) fn write_end(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(&END.to_be_bytes())
}

pub(super) fn write_flushed(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(&FLUSHED.to_be_bytes())
}

pub(super) fn write_failed(mut socket: &UnixStream, error: &io::Error) -> io::Result<()> {
    let kind = KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or_default();
    let mut text = error.to_string();
    let cut =
        (0..=text.len().min(MAX_TEXT)).rev().find(|cut| text.is_char_boundary(*cut)).unwrap_or_default();
    text.truncate(cut);
    let mut frame = FAILED.to_be_bytes().to_vec();
    frame.push(kind as u8);
    frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    socket.write_all(&frame)
}

/// The client's end of a stream.
#[derive(Debug)]
pub(crate) struct DaemonStream {
    socket: UnixStream,
    /// Its number at the node.
    pub(crate) id: u64,
    pub(crate) peer: SocketAddress,
    reading: Mutex<Reading>,
    writing: Mutex<Writing>,
}

#[derive(Debug, Default)]
struct Reading {
    frames: FrameReader,
    ended: bool,
    flushed: bool,
    failed: Option<(io::ErrorKind, String)>,
    /// Bytes that came while a writer looked for the reason of its failure; at most [`MAX_ASIDE`].
    aside: Vec<u8>,
}

#[derive(Debug, Default)]
struct Writing {
    ended: bool,
}

impl Reading {
    fn failure(&self) -> Option<io::Error> {
        self.failed.as_ref().map(|(kind, text)| io::Error::new(*kind, text.clone()))
    }

    /// One piece, with what it means noted.
    fn step(&mut self, socket: &UnixStream, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        match self.frames.read(socket, buf) {
            Ok(Piece::Data(len)) => return Ok(len),
            Ok(Piece::End) => self.ended = true,
            Ok(Piece::Flushed) => self.flushed = true,
            Ok(Piece::Failed(error)) => {
                self.failed = Some((error.kind(), error.to_string()));
                return Err(error);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = "the running node has ended";
                self.failed = Some((io::ErrorKind::NotConnected, text.into()));
                return Err(io::Error::new(io::ErrorKind::NotConnected, text));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        Ok(0)
    }
}

impl DaemonStream {
    pub(crate) fn new(socket: UnixStream, id: u64, peer: SocketAddress) -> Self {
        Self { socket, id, peer, reading: Mutex::default(), writing: Mutex::default() }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the peer has acknowledged everything, after [`Duplex::finish`]; what still comes is thrown away.
    ///
    /// # Errors
    /// `TimedOut`, or why the stream failed.
    pub(crate) fn wait_flushed(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let mut reading = self.reading();
        let mut buf = [0; 4_096];
        while !reading.flushed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            reading.step(&self.socket, &mut buf)?;
        }
        Ok(())
    }

    /// The node takes nothing more: its reason, if it gave one.
    fn write_error(&self, error: io::Error) -> io::Error {
        // Never waits for a reader: that one reports the reason itself.
        if let Ok(mut reading) = self.reading.try_lock() {
            let mut buf = [0; 4_096];
            let _ = self.socket.set_read_timeout(Some(Duration::from_millis(200)));
            while reading.aside.len() < MAX_ASIDE && !reading.ended {
                match reading.step(&self.socket, &mut buf) {
                    Ok(len) => reading.aside.extend_from_slice(&buf[..len]),
                    Err(_) => break,
                }
            }
            let _ = self.socket.set_read_timeout(None);
            return reading.failure().unwrap_or(error);
        }
        io::Error::new(io::ErrorKind::ConnectionReset, "the stream has failed")
    }
}

impl Duplex for DaemonStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut reading = self.reading();
        if !reading.aside.is_empty() {
            let len = buf.len().min(reading.aside.len());
            buf[..len].copy_from_slice(&reading.aside[..len]);
            reading.aside.drain(..len);
            return Ok(len);
        }
        loop {
            if reading.ended || buf.is_empty() {
                return Ok(0);
            }
            match reading.step(&self.socket, buf)? {
                // "Flushed", or the end.
                0 => {}
                len => return Ok(len),
            }
        }
    }

    fn write(&self, data: &[u8]) -> io::Result<usize> {
        let writing = self.writing();
        if writing.ended {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "this direction was ended"));
        }
        let written = if data.is_empty() { Ok(0) } else { write_data(&self.socket, data) };
        drop(writing);
        written.map_err(|error| self.write_error(error))
    }

    fn finish(&self) -> io::Result<()> {
        let mut writing = self.writing();
        if std::mem::replace(&mut writing.ended, true) {
            return Ok(());
        }
        let written = write_end(&self.socket);
        drop(writing);
        written.map_err(|error| self.write_error(error))
    }

    fn abort(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// The node's end of the stream never gathers small writes.
    fn set_nodelay(&self, _nodelay: bool) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage::Address;

    fn pair() -> (DaemonStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (DaemonStream::new(near, 1, SocketAddress::new(Address::new(0, 2), 7)), far)
    }

    #[test]
    fn data_end_and_acknowledgement() {
        let (near, far) = pair();
        assert_eq!(near.write(&[7; 100_000]).unwrap(), CHUNK);
        near.finish().unwrap();
        near.finish().unwrap();
        assert_eq!(near.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut frames = FrameReader::default();
        let mut buf = vec![0; 50_000];
        let mut total = 0;
        loop {
            match frames.read(&far, &mut buf).unwrap() {
                Piece::Data(len) => total += len,
                Piece::End => break,
                _ => panic!("neither data nor end"),
            }
        }
        assert_eq!(total, CHUNK);
        write_data(&far, b"answer").unwrap();
        write_flushed(&far).unwrap();
        write_data(&far, b"!").unwrap();
        write_end(&far).unwrap();
        let mut got = Vec::new();
        let mut buf = [0; 4];
        loop {
            match Duplex::read(&near, &mut buf).unwrap() {
                0 => break,
                len => got.extend_from_slice(&buf[..len]),
            }
        }
        assert_eq!(got, b"answer!");
        near.wait_flushed(Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn failures_keep_their_kind_and_last() {
        let (near, far) = pair();
        write_failed(&far, &io::Error::new(io::ErrorKind::ConnectionReset, "ä".repeat(2_000))).unwrap();
        for _ in 0..2 {
            let error = Duplex::read(&near, &mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(error.to_string(), "ä".repeat(512));
        }
        drop(far);
        assert_eq!(
            near.write(b"x").unwrap_err().kind(),
            io::ErrorKind::ConnectionReset,
            "not the broken pipe"
        );
    }

    #[test]
    fn a_timeout_loses_nothing_and_a_lost_node_is_named() {
        let (near, mut far) = pair();
        near.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        far.write_all(&[0, 0]).unwrap();
        assert_eq!(Duplex::read(&near, &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        far.write_all(&[0, 3, b'a', b'b']).unwrap();
        let mut buf = [0; 8];
        assert_eq!(Duplex::read(&near, &mut buf).unwrap(), 2);
        assert_eq!(near.wait_flushed(Duration::from_millis(20)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(far);
        let error = Duplex::read(&near, &mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(error.to_string().contains("ended"));
    }

    #[test]
    fn wrong_frames_are_errors() {
        for bytes in [&[0, 0x10, 0, 1][..], &[0xFF, 0xFF, 0xFF, 0xFF, 1, 0xFF, 0xFF], &[0, 0, 0]] {
            let (near, mut far) = pair();
            far.write_all(bytes).unwrap();
            drop(far);
            assert!(Duplex::read(&near, &mut [0; 8]).is_err(), "{bytes:?}");
        }
    }
}
