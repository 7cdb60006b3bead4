//! The commonest scenario: A sends a stream to B, both close in order.

use std::time::Duration;

use pilotage_proto::{ConnectionId, ConnectionStats, Event, ReadError, WriteError};
use pilotage_wire::SocketAddress;

use crate::pair::{Pair, Side};

/// The port that B listens on.
const PORT: u16 = 1000;

/// What came of a transfer.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// All bytes that B read before the end of the stream.
    pub received: Vec<u8>,
    /// Virtual time from connecting to B's end of stream.
    pub time: Duration,
    /// Counters of the sender.
    pub stats: ConnectionStats,
}

/// Why a transfer did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferError {
    /// The sender's connection failed.
    Write(WriteError),
    /// The receiver's connection failed after so many bytes.
    Read(ReadError, usize),
    /// What arrived is not what was sent, from this offset on.
    Wrong {
        /// Offset of the first wrong, or missing, byte.
        at: u64,
    },
    /// Neither failed, but it did not finish in the time given.
    Stuck {
        /// Bytes received.
        received: usize,
    },
}

/// Recognisable bytes: every position of the first 16 MiB differs from its neighbours.
pub fn pattern(len: usize, salt: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ (i >> 8) ^ (i >> 16)).wrapping_mul(167).wrapping_add(salt)) as u8).collect()
}

impl Pair {
    /// Sends `data` from A to B and closes. Panics with the reason if it does not finish within 10 virtual minutes.
    pub fn transfer(&mut self, data: &[u8]) -> Outcome {
        match self.try_transfer(data, Duration::from_secs(600)) {
            Ok(outcome) => outcome,
            Err(error) => panic!("transfer failed after {:?}: {error:?}", self.elapsed()),
        }
    }

    /// Opens a connection from A to `port` at B.
    pub fn connect(&mut self, port: u16) -> Result<(ConnectionId, ConnectionId), TransferError> {
        let _ = self.endpoint(Side::B).listen(port);
        let now = self.now;
        let to = SocketAddress { address: self.host(Side::B).address, port };
        let a = self
            .endpoint(Side::A)
            .connect(now, to)
            .map_err(|e| TransferError::Write(WriteError::Connect(e)))?;
        let mut b = None;
        let mut connected = false;
        let done = self.run_until(Duration::from_secs(120), |p| {
            while let Some(event) = p.host(Side::A).events.pop_front() {
                match event {
                    Event::Connected(id) if id == a => connected = true,
                    Event::Closed(id) if id == a => return true,
                    _ => {}
                }
            }
            if b.is_none() {
                b = p.endpoint(Side::B).accept(port).map(|(id, _)| id);
            }
            connected && b.is_some()
        });
        match (b, self.endpoint(Side::A).connect_error(a)) {
            (Some(b), None) if done && connected => Ok((a, b)),
            (_, Some(error)) => Err(TransferError::Write(WriteError::Connect(error))),
            _ => Err(TransferError::Stuck { received: 0 }),
        }
    }

    /// As [`Self::transfer`], with the failure as a value.
    pub fn try_transfer(&mut self, data: &[u8], limit: Duration) -> Result<Outcome, TransferError> {
        let start = self.now;
        let (a, b) = self.connect(PORT)?;
        let mut written = 0;
        let mut received = Vec::with_capacity(data.len());
        let mut end: Option<Result<(), TransferError>> = None;
        let mut chunk = vec![0; 64 * 1024];
        self.run_until(limit, |p| {
            let now = p.now;
            while written < data.len() {
                match p.endpoint(Side::A).write(now, a, &data[written..]) {
                    Ok(n) => written += n,
                    Err(WriteError::Blocked) => break,
                    Err(error) => {
                        end = Some(Err(TransferError::Write(error)));
                        return true;
                    }
                }
                if written == data.len() {
                    let _ = p.endpoint(Side::A).shutdown(now, a);
                }
            }
            if data.is_empty() {
                let _ = p.endpoint(Side::A).shutdown(now, a);
            }
            loop {
                match p.endpoint(Side::B).read(now, b, &mut chunk) {
                    Ok(0) => {
                        end = Some(Ok(()));
                        return true;
                    }
                    Ok(n) => received.extend_from_slice(&chunk[..n]),
                    Err(ReadError::Blocked) => return false,
                    Err(error) => {
                        end = Some(Err(TransferError::Read(error, received.len())));
                        return true;
                    }
                }
            }
        });
        let time = self.now.duration_since(start);
        let stats = self.endpoint(Side::A).connection_stats(a).unwrap_or_default();
        let now = self.now;
        self.endpoint(Side::A).close(now, a);
        self.endpoint(Side::B).close(now, b);
        match end {
            Some(Ok(())) => Ok(Outcome { received, time, stats }),
            Some(Err(error)) => Err(error),
            None => Err(TransferError::Stuck { received: received.len() }),
        }
    }

    /// Sends `total` bytes from A to B without keeping them, compares every one, and closes. Returns how many arrived.
    ///
    /// # Errors
    ///
    /// [`TransferError`]; [`TransferError::Wrong`] at the first wrong byte. Virtual time is not limited but for the
    /// endpoints' own timeouts.
    pub fn stream(&mut self, total: u64) -> Result<u64, TransferError> {
        let (a, b) = self.connect(PORT)?;
        let pattern = Pattern::new();
        let (mut written, mut read) = (0u64, 0u64);
        let mut chunk = vec![0; 256 * 1024];
        let mut end = None;
        while end.is_none() {
            let before = read;
            self.run_until(Duration::from_secs(600), |p| {
                let now = p.now;
                end = pattern
                    .write(p, now, a, total, &mut written)
                    .and_then(|()| pattern.read(p, now, b, &mut chunk, &mut read))
                    .map_err(Some)
                    .and_then(|done| if done { Ok(()) } else { Err(None) })
                    .map_or_else(|e| e.map(Err), |()| Some(Ok(())));
                end.is_some()
            });
            if end.is_none() && read == before {
                end = Some(Err(TransferError::Stuck { received: read as usize }));
            }
        }
        let now = self.now;
        self.endpoint(Side::A).close(now, a);
        self.endpoint(Side::B).close(now, b);
        self.run_for(Duration::from_secs(30));
        for side in [Side::A, Side::B] {
            self.host(side).events.clear();
        }
        end.unwrap_or(Err(TransferError::Stuck { received: read as usize }))?;
        if read == total { Ok(read) } else { Err(TransferError::Wrong { at: read }) }
    }
}

/// Bytes that look like nothing else, of a prime length, so that a shift by whole segments shows.
struct Pattern(Vec<u8>);

impl Pattern {
    const LEN: u64 = 1_048_573;

    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        Self(
            (0..Self::LEN)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 32) as u8
                })
                .collect(),
        )
    }

    fn at(&self, offset: u64, len: usize) -> &[u8] {
        let at = (offset % Self::LEN) as usize;
        &self.0[at..(at + len).min(self.0.len())]
    }

    fn write(
        &self,
        pair: &mut Pair,
        now: std::time::Instant,
        id: ConnectionId,
        total: u64,
        written: &mut u64,
    ) -> Result<(), TransferError> {
        while *written < total {
            let len = (total - *written).min(256 * 1024) as usize;
            match pair.endpoint(Side::A).write(now, id, self.at(*written, len)) {
                Ok(n) => *written += n as u64,
                Err(WriteError::Blocked) => return Ok(()),
                Err(error) => return Err(TransferError::Write(error)),
            }
        }
        pair.endpoint(Side::A).shutdown(now, id).map_err(TransferError::Write)
    }

    /// Whether the end of the stream was read.
    fn read(
        &self,
        pair: &mut Pair,
        now: std::time::Instant,
        id: ConnectionId,
        chunk: &mut [u8],
        read: &mut u64,
    ) -> Result<bool, TransferError> {
        loop {
            match pair.endpoint(Side::B).read(now, id, chunk) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    let mut at = 0;
                    while at < n {
                        let expected = self.at(*read, n - at);
                        if expected != &chunk[at..at + expected.len()] {
                            return Err(TransferError::Wrong { at: *read });
                        }
                        at += expected.len();
                        *read += expected.len() as u64;
                    }
                }
                Err(ReadError::Blocked) => return Ok(false),
                Err(error) => return Err(TransferError::Read(error, *read as usize)),
            }
        }
    }
}
