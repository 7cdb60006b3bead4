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
}
