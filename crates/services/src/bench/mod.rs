//! Benchmark service, port 1011 (spec/services.md §4): sink, source, request/reply, datagram count.

mod datagram;
mod hello;

pub use datagram::{Counter, DATAGRAM_MAX_RUNS, DatagramMessage, MIN_DATAGRAM, encode_data};
use hello::HELLO_LEN;
pub use hello::{MAX_MESSAGE, Mode, VERSION};

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::duplex::{Duplex, Io};

/// The port that serves it, for streams and for datagrams.
pub const PORT: u16 = 1011;

/// Bytes per read and write in bulk modes.
pub const BLOCK: usize = 256 * 1024;

/// Longest hello wait of the server.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one stream.
///
/// # Errors
/// When the stream fails or the hello is not understood.
pub fn serve<D: Duplex + ?Sized>(stream: &D) -> io::Result<Mode> {
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let mut hello = [0; HELLO_LEN];
    Io(stream).read_exact(&mut hello)?;
    let mode = Mode::decode(&hello).inspect_err(|_| stream.abort())?;
    stream.set_read_timeout(None)?;
    match mode {
        Mode::Sink => {
            let bytes = drain(stream)?;
            Io(stream).write_all(&bytes.to_be_bytes())?;
        }
        Mode::Source { bytes } => {
            pump(stream, bytes, &mut |_| {})?;
        }
        Mode::RequestReply { request, reply } => {
            stream.set_nodelay(true)?;
            let mut request = vec![0; request as usize];
            let reply = vec![0x5a; reply as usize];
            while read_message(stream, &mut request)? {
                Io(stream).write_all(&reply)?;
            }
        }
    }
    stream.finish()?;
    Ok(mode)
}

/// Amount and time of a bulk measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte sent to the confirmation, or to the last byte received.
    pub elapsed: Duration,
}

impl Bulk {
    /// Bits per second; zero for an empty measurement.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 * 8.0 / seconds } else { 0.0 }
    }
}

/// Sends `bytes` bytes and waits for the server's count. `progress` is told the bytes written.
///
/// # Errors
/// When the stream fails, or the server counted otherwise (`InvalidData`).
pub fn upload<D: Duplex + ?Sized>(stream: &D, bytes: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Bulk> {
    let begin = Instant::now();
    Io(stream).write_all(&Mode::Sink.encode())?;
    pump(stream, bytes, progress)?;
    stream.finish()?;
    let mut count = [0; 8];
    Io(stream).read_exact(&mut count)?;
    let elapsed = begin.elapsed();
    if u64::from_be_bytes(count) != bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server counted other bytes than were sent",
        ));
    }
    Ok(Bulk { bytes, elapsed })
}

/// Receives `bytes` bytes. `progress` is told the bytes read.
///
/// # Errors
/// When the stream fails or brings another number of bytes (`InvalidData`).
pub fn download<D: Duplex + ?Sized>(
    stream: &D,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Bulk> {
    let begin = Instant::now();
    Io(stream).write_all(&Mode::Source { bytes }.encode())?;
    stream.finish()?;
    let mut buf = vec![0; BLOCK];
    let mut got = 0;
    loop {
        let len = stream.read(&mut buf)?;
        if len == 0 {
            break;
        }
        got += len as u64;
        progress(got);
    }
    if got != bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "another number of bytes came than was asked for",
        ));
    }
    Ok(Bulk { bytes, elapsed: begin.elapsed() })
}

/// Does `count` round trips of `size` bytes each way, one after another; returns their times in
/// order. `progress` is told how many are done.
///
/// # Errors
/// When the stream fails or `size` is not allowed (`InvalidInput`).
pub fn round_trips<D: Duplex + ?Sized>(
    stream: &D,
    count: usize,
    size: u32,
    progress: &mut dyn FnMut(usize),
) -> io::Result<Vec<Duration>> {
    if !(1..=MAX_MESSAGE).contains(&size) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message has 1 byte to 1 MiB"));
    }
    stream.set_nodelay(true)?;
    Io(stream).write_all(&Mode::RequestReply { request: size, reply: size }.encode())?;
    let mut message = vec![0xa5; size as usize];
    let mut times = Vec::new();
    for done in 1..=count {
        let begin = Instant::now();
        Io(stream).write_all(&message)?;
        Io(stream).read_exact(&mut message)?;
        times.push(begin.elapsed());
        progress(done);
    }
    stream.finish()?;
    Ok(times)
}

/// The value below which `percent` of the sorted `times` lie (nearest rank); `None` if empty.
#[must_use]
pub fn percentile(sorted: &[Duration], percent: f64) -> Option<Duration> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().checked_sub(1)?)).copied()
}

/// Reads to the end; returns the number of bytes.
fn drain<D: Duplex + ?Sized>(stream: &D) -> io::Result<u64> {
    let mut buf = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match stream.read(&mut buf)? {
            0 => return Ok(total),
            len => total += len as u64,
        }
    }
}

/// Writes `bytes` bytes.
fn pump<D: Duplex + ?Sized>(stream: &D, bytes: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let block: Vec<u8> = (0..BLOCK).map(|i| (i % 251) as u8).collect();
    let mut sent = 0;
    while sent < bytes {
        let len = (bytes - sent).min(BLOCK as u64) as usize;
        Io(stream).write_all(&block[..len])?;
        sent += len as u64;
        progress(sent);
    }
    Ok(())
}

/// Fills `buf`; false at the end of the stream before its first byte.
fn read_message<D: Duplex + ?Sized>(stream: &D, buf: &mut [u8]) -> io::Result<bool> {
    let first = stream.read(buf)?;
    if first == 0 {
        return Ok(false);
    }
    Io(stream).read_exact(&mut buf[first..])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duplex::testing::pair;

    #[test]
    fn hello_comes_back_and_bounds_hold() {
        for mode in [
            Mode::Sink,
            Mode::Source { bytes: u64::MAX },
            Mode::RequestReply { request: 1, reply: MAX_MESSAGE },
        ] {
            assert_eq!(Mode::decode(&mode.encode()).unwrap(), mode);
        }
        for (request, reply) in [(0, 1), (1, 0), (MAX_MESSAGE + 1, 1), (1, u32::MAX)] {
            assert!(Mode::decode(&Mode::RequestReply { request, reply }.encode()).is_err());
        }
        let mut hello = Mode::Sink.encode();
        hello[5] = 4;
        assert!(Mode::decode(&hello).is_err());
        hello[4] = 2;
        assert!(Mode::decode(&hello).is_err());
    }

    #[test]
    fn all_modes_work() {
        let serve_one = || {
            let (a, b) = pair();
            (a, std::thread::spawn(move || serve(&b)))
        };
        let (a, server) = serve_one();
        assert_eq!(upload(&a, 3_000_001, &mut |_| {}).unwrap().bytes, 3_000_001);
        assert_eq!(server.join().unwrap().unwrap(), Mode::Sink);
        let (a, server) = serve_one();
        assert_eq!(download(&a, 3_000_001, &mut |_| {}).unwrap().bytes, 3_000_001);
        server.join().unwrap().unwrap();
        let (a, server) = serve_one();
        assert_eq!(round_trips(&a, 50, 64, &mut |_| {}).unwrap().len(), 50);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let ms: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&ms, 50.0), Some(Duration::from_millis(50)));
        assert_eq!(percentile(&ms, 99.0), Some(Duration::from_millis(99)));
        assert_eq!(percentile(&ms, 100.0), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&ms, 0.0), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 50.0), None);
    }
}
