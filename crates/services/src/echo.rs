//! Echo, port 7 (spec/services.md §2): every byte comes back, and so does the end of the stream.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::duplex::{Duplex, Io};

/// The port that serves it (draft-01 §8.1).
pub const PORT: u16 = 7;

/// Bytes held at a time by [`serve`].
pub const BUFFER: usize = 64 * 1024;

/// Serves one stream until the client ends its direction; returns the bytes echoed.
///
/// # Errors
/// When the stream fails.
pub fn serve<D: Duplex + ?Sized>(stream: &D) -> io::Result<u64> {
    let mut buf = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let len = match stream.read(&mut buf) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if len == 0 {
            stream.finish()?;
            return Ok(total);
        }
        Io(stream).write_all(&buf[..len])?;
        total += len as u64;
    }
}

/// Sends `message`, reads as many bytes back and compares them; returns the time that took.
///
/// # Errors
/// When the stream fails, ends early, or other bytes come back (`InvalidData`).
pub fn round_trip<D: Duplex + ?Sized>(stream: &D, message: &[u8]) -> io::Result<Duration> {
    let begin = Instant::now();
    Io(stream).write_all(message)?;
    let mut reply = vec![0; message.len()];
    io::Read::read_exact(&mut Io(stream), &mut reply)?;
    if reply != message {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "echo: other bytes came back"));
    }
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duplex::testing::pair;

    #[test]
    fn echoes_bytes_and_the_end() {
        let (a, b) = pair();
        let server = std::thread::spawn(move || serve(&b));
        round_trip(&a, b"hello").unwrap();
        let large: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        round_trip(&a, &large[..30_000]).unwrap();
        a.finish().unwrap();
        assert_eq!(Duplex::read(&a, &mut [0; 1]).unwrap(), 0, "the end comes back too");
        assert_eq!(server.join().unwrap().unwrap(), 30_005);
    }
}
