//! Frames of the discovery ports: a length of four bytes, then as many bytes.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::duplex::{Duplex, Io};

/// Writes one frame.
pub(super) fn write<D: Duplex + ?Sized>(stream: &D, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| invalid("too long to be sent"))?;
    // One buffer, so that small frames are one segment.
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(bytes);
    Io(stream).write_all(&frame)
}

/// Reads one frame of at most `most` bytes until `deadline`. Memory is taken as the bytes come, not as the length says.
pub(super) fn read<D: Duplex + ?Sized>(stream: &D, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut head = [0; 4];
    exact(stream, &mut head, deadline)?;
    let length = u32::from_be_bytes(head) as usize;
    if length > most {
        return Err(invalid("a message is longer than allowed"));
    }
    body(stream, length, deadline)
}

/// Reads so many bytes until `deadline`.
pub(super) fn body<D: Duplex + ?Sized>(stream: &D, length: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 * 1_024];
    while bytes.len() < length {
        let most = piece.len().min(length - bytes.len());
        let count = some(stream, &mut piece[..most], deadline)?;
        bytes.extend_from_slice(&piece[..count]);
    }
    Ok(bytes)
}

/// Fills the buffer until `deadline`.
pub(super) fn exact<D: Duplex + ?Sized>(stream: &D, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        filled += some(stream, &mut buffer[filled..], deadline)?;
    }
    Ok(())
}

/// Reads at least one byte. However slowly bytes come, the deadline holds for all of them together.
fn some<D: Duplex + ?Sized>(stream: &D, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
    }
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    match Io(stream).read(buffer) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended early")),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
        }
        other => other,
    }
}

pub(super) fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duplex::testing::pair;

    #[test]
    fn frames_pass_and_bounds_hold() {
        let (a, b) = pair();
        let soon = || Instant::now() + Duration::from_secs(20);
        write(&a, b"hello").unwrap();
        assert_eq!(read(&b, 5, soon()).unwrap(), b"hello");
        write(&a, b"hello!").unwrap();
        assert_eq!(read(&b, 5, soon()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_length_alone_takes_no_memory_and_time_runs_out() {
        let (a, b) = pair();
        Io(&a).write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(read(&b, 100, Instant::now() + Duration::from_secs(20)).is_err());
        let (_quiet, b) = pair();
        let error = read(&b, 100, Instant::now() + Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
