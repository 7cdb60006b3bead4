//! The two child processes of a run.
//!
//! ```text
//! transfer   'T', u64 bytes, the bytes          → 1 byte, 32 bytes of BLAKE3
//! fetches    'F', then u32 length, again and again → so many bytes each
//! ```
//!
//! They talk to the parent in lines: `ready`; `bytes <µs since 1970> <received so far>`; `fetch <µs>`;
//! `result <JSON>`.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::options::{Options, Peer};
use super::peers::{self, Client, Duplex, Place};
use crate::Failure;

/// Bytes of a write and of the block that a payload repeats.
const BLOCK: usize = 256 << 10;
/// Longest reply that a server gives.
const REPLY_MAX: u32 = 16 << 20;
/// How often the server tells what it has received.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// A transfer that lasts until its processes are ended.
pub(super) const ENDLESS: u64 = u64::MAX;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Task {
    /// Waits for others.
    Serve,
    /// Sends so many bytes.
    Transfer { bytes: u64 },
    /// Asks for so many bytes, again and again.
    Fetch { bytes: u32, parallel: u32, count: u32, way: Way },
}

/// How parallel fetches share a connection or tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    /// A new stream for each fetch.
    Fresh,
    /// As many streams as fetches in parallel, each used again.
    Kept,
    /// All on one stream, one reply behind the other.
    Muxed,
}

/// What a transfer's client measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sent {
    /// From before the handshake to the confirmation of the last byte.
    pub(super) seconds: f64,
    pub(super) verified: bool,
    pub(super) note: String,
}

/// Runs as a side: `--side <JSON of peer's name and task>`.
pub(super) fn run(options: &Options, side: &str) -> Result<(), Failure> {
    end_with(std::os::unix::process::parent_id());
    let (name, task): (String, Task) = serde_json::from_str(side)?;
    let peer: Peer = name.parse()?;
    let place = Place {
        server: options.server.ok_or("--server is missing")?,
        client: options.client.ok_or("--client is missing")?,
        scratch: options.scratch.clone().ok_or("--scratch is missing")?,
    };
    match task {
        Task::Serve => serve(peer, &place),
        Task::Transfer { bytes } => transfer(peer, &place, bytes),
        Task::Fetch { bytes, parallel, count, way: Way::Muxed } => {
            fetch_muxed(&*peers::client(peer, &place)?, bytes, parallel, count)
        }
        Task::Fetch { bytes, parallel, count, way } => {
            fetch(&*peers::client(peer, &place)?, bytes, parallel, count, way == Way::Kept)
        }
    }
}

/// Ends this process soon after its parent has ended in whatever way: a flow without end would go on for ever.
fn end_with(parent: u32) {
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(TELL_EVERY);
        }
        std::process::exit(3);
    });
}

/// One line to the parent.
fn tell(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn block() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    blake3::Hasher::new().update(b"links").finalize_xof().fill(&mut block);
    block
}

fn serve(peer: Peer, place: &Place) -> Result<(), Failure> {
    let mut server = peers::server(peer, place)?;
    let received = Arc::new(AtomicU64::new(0));
    tell("ready")?;
    let seen = received.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TELL_EVERY);
            let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_micros());
            if tell(&format!("bytes {micros} {}", seen.load(Ordering::Relaxed))).is_err() {
                return;
            }
        }
    });
    loop {
        let stream = server.accept()?;
        let received = received.clone();
        std::thread::spawn(move || {
            if let Err(error) = answer(stream, &received) {
                eprintln!("links: server of {peer}: {error}");
            }
        });
    }
}

fn answer(mut stream: Box<dyn Duplex>, received: &AtomicU64) -> Result<(), Failure> {
    let mut task = [0; 1];
    stream.read_exact(&mut task)?;
    match task[0] {
        b'T' => receive(&mut *stream, received),
        b'F' => reply(&mut *stream),
        other => Err(format!("unknown task {other}").into()),
    }
}

fn receive(stream: &mut dyn Duplex, received: &AtomicU64) -> Result<(), Failure> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let mut left = u64::from_be_bytes(size);
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; BLOCK]);
    while left > 0 {
        let wanted = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
        let count = stream.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err("the stream ended early".into());
        }
        hasher.update(&buffer[..count]);
        received.fetch_add(count as u64, Ordering::Relaxed);
        left -= count as u64;
    }
    stream.write_all(&[1])?;
    stream.write_all(hasher.finalize().as_bytes())?;
    stream.flush()?;
    // Stay until the client has it: its end, or its silence, says so.
    let _ = stream.read(&mut buffer);
    Ok(())
}

fn reply(stream: &mut dyn Duplex) -> Result<(), Failure> {
    let block = block();
    let mut length = [0; 4];
    loop {
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let mut left = u32::from_be_bytes(length).min(REPLY_MAX) as usize;
        while left > 0 {
            let part = left.min(block.len());
            stream.write_all(&block[..part])?;
            left -= part;
        }
        stream.flush()?;
    }
}

fn transfer(peer: Peer, place: &Place, bytes: u64) -> Result<(), Failure> {
    let block = block();
    let mut hasher = blake3::Hasher::new();
    if bytes != ENDLESS {
        for part in parts(&block, bytes) {
            hasher.update(part);
        }
    }
    let client = peers::client(peer, place)?;
    let begun = Instant::now();
    let mut stream = client.open()?;
    stream.write_all(b"T")?;
    stream.write_all(&bytes.to_be_bytes())?;
    for part in parts(&block, bytes) {
        stream.write_all(part)?;
    }
    stream.flush()?;
    let mut confirmed = [0; 33];
    stream.read_exact(&mut confirmed)?;
    let seconds = begun.elapsed().as_secs_f64();
    let verified = confirmed[1..] == *hasher.finalize().as_bytes();
    tell(&format!("result {}", serde_json::to_string(&Sent { seconds, verified, note: stream.note() })?))
}

/// The payload, block by block.
fn parts(block: &[u8], bytes: u64) -> impl Iterator<Item = &[u8]> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        let part = block.len().min(usize::try_from(left).unwrap_or(block.len()));
        left -= part as u64;
        (part > 0).then(|| &block[..part])
    })
}

fn told_fetch(begun: Instant) -> Result<(), Failure> {
    tell(&format!("fetch {}", begun.elapsed().as_micros()))
}

fn one_fetch(stream: &mut dyn Duplex, request: u32, buffer: &mut [u8]) -> Result<(), Failure> {
    stream.write_all(&request.to_be_bytes())?;
    stream.flush()?;
    Ok(stream.read_exact(buffer)?)
}

fn fetch(client: &dyn Client, bytes: u32, parallel: u32, count: u32, kept: bool) -> Result<(), Failure> {
    // The connection or tunnel is there before the clocks run.
    let mut first = client.open()?;
    first.write_all(b"F")?;
    one_fetch(&mut *first, 1, &mut [0; 1])?;
    let tickets = AtomicU32::new(0);
    let work = || -> Result<(), Failure> {
        let mut buffer = vec![0; bytes as usize];
        let mut own: Option<Box<dyn Duplex>> = None;
        while tickets.fetch_add(1, Ordering::Relaxed) < count {
            let begun = Instant::now();
            let mut stream = match own.take() {
                Some(stream) => stream,
                None => {
                    let mut stream = client.open()?;
                    stream.write_all(b"F")?;
                    stream
                }
            };
            one_fetch(&mut *stream, bytes, &mut buffer)?;
            told_fetch(begun)?;
            own = kept.then_some(stream);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a fetch panicked".into())))
    })?;
    tell("result null")
}

fn fetch_muxed(client: &dyn Client, bytes: u32, parallel: u32, count: u32) -> Result<(), Failure> {
    let mut stream = client.open()?;
    stream.write_all(b"F")?;
    one_fetch(&mut *stream, 1, &mut [0; 1])?;
    let mut buffer = vec![0; bytes as usize];
    let mut asked = std::collections::VecDeque::new();
    for number in 0..count.saturating_add(parallel) {
        if number >= parallel {
            let Some(begun) = asked.pop_front() else { break };
            stream.read_exact(&mut buffer)?;
            told_fetch(begun)?;
        }
        if number < count {
            asked.push_back(Instant::now());
            stream.write_all(&bytes.to_be_bytes())?;
            stream.flush()?;
        }
    }
    tell("result null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_up_the_whole() {
        let block = block();
        for bytes in [0, 1, BLOCK as u64, BLOCK as u64 * 2 + 7] {
            assert_eq!(parts(&block, bytes).map(|part| part.len() as u64).sum::<u64>(), bytes);
        }
    }

    #[test]
    fn a_side_is_read_as_it_was_written() {
        let task = Task::Fetch { bytes: 1, parallel: 2, count: 3, way: Way::Kept };
        let text = serde_json::to_string(&("quinn-bbr", task)).expect("written");
        let (name, read): (String, Task) = serde_json::from_str(&text).expect("read");
        assert_eq!((name.as_str(), read), ("quinn-bbr", task));
    }
}
