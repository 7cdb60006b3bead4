//! Counting datagrams (spec/services.md §4.4): the client sends numbered datagrams of one run, then
//! asks how many came.
//!
//! ```text
//! data     "PLBD" | 1 u8 | reserved 3 | run u32 | number u32 | padding
//! query    "PLBD" | 2 u8 | reserved 3 | run u32
//! report   "PLBD" | 3 u8 | reserved 3 | run u32 | datagrams u32 | bytes u64
//! ```

use std::collections::VecDeque;

const MAGIC: [u8; 4] = *b"PLBD";

/// Smallest data datagram, in bytes.
pub const MIN_DATAGRAM: usize = 16;

/// Runs that a [`Counter`] remembers; the oldest is forgotten for a new one.
pub const DATAGRAM_MAX_RUNS: usize = 64;

/// A datagram of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramMessage {
    /// One of a burst.
    Data {
        /// Chosen at random by the client.
        run: u32,
        /// From 0 upward.
        number: u32,
    },
    /// How many came?
    Query {
        /// The run asked for.
        run: u32,
    },
    /// So many.
    Report {
        /// The run asked for.
        run: u32,
        /// Datagrams counted.
        datagrams: u32,
        /// Their bytes.
        bytes: u64,
    },
}

impl DatagramMessage {
    /// Reads a datagram; `None` if it is none of ours.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?));
        if data.get(..4)? != MAGIC {
            return None;
        }
        let run = word(8)?;
        match data.get(4)? {
            1 => Some(Self::Data { run, number: word(12)? }),
            2 => Some(Self::Query { run }),
            3 => {
                let bytes = u64::from_be_bytes(data.get(16..24)?.try_into().ok()?);
                Some(Self::Report { run, datagrams: word(12)?, bytes })
            }
            _ => None,
        }
    }

    /// Bytes of a query or report; a data datagram without padding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let (kind, run): (u8, u32) = match self {
            Self::Data { run, .. } => (1, *run),
            Self::Query { run } => (2, *run),
            Self::Report { run, .. } => (3, *run),
        };
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&run.to_be_bytes());
        match self {
            Self::Data { number, .. } => out.extend_from_slice(&number.to_be_bytes()),
            Self::Query { .. } => {}
            Self::Report { datagrams, bytes, .. } => {
                out.extend_from_slice(&datagrams.to_be_bytes());
                out.extend_from_slice(&bytes.to_be_bytes());
            }
        }
        out
    }
}

/// A data datagram padded to `size` bytes (at least [`MIN_DATAGRAM`]).
#[must_use]
pub fn encode_data(run: u32, number: u32, size: usize) -> Vec<u8> {
    let mut out = DatagramMessage::Data { run, number }.encode();
    out.resize(size.max(MIN_DATAGRAM), 0);
    out
}

/// The server's memory: counts per peer and run, of the latest [`DATAGRAM_MAX_RUNS`] runs.
#[derive(Debug)]
pub struct Counter<P> {
    runs: VecDeque<Run<P>>,
}

#[derive(Debug)]
struct Run<P> {
    peer: P,
    run: u32,
    datagrams: u32,
    bytes: u64,
}

impl<P: Copy + Eq> Counter<P> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { runs: VecDeque::new() }
    }

    /// Takes a datagram of `peer`; returns the answer to send, if there is one.
    pub fn handle(&mut self, peer: P, data: &[u8]) -> Option<Vec<u8>> {
        match DatagramMessage::decode(data)? {
            DatagramMessage::Data { run, .. } => {
                let entry = self.entry(peer, run);
                entry.datagrams = entry.datagrams.saturating_add(1);
                entry.bytes = entry.bytes.saturating_add(data.len() as u64);
                None
            }
            DatagramMessage::Query { run } => {
                let found = self.runs.iter().find(|entry| entry.peer == peer && entry.run == run);
                let (datagrams, bytes) = found.map_or((0, 0), |entry| (entry.datagrams, entry.bytes));
                Some(DatagramMessage::Report { run, datagrams, bytes }.encode())
            }
            DatagramMessage::Report { .. } => None,
        }
    }

    fn entry(&mut self, peer: P, run: u32) -> &mut Run<P> {
        // Searched from the back: the newest run is the one that is being counted.
        let found = self.runs.iter().rposition(|entry| entry.peer == peer && entry.run == run);
        let index = found.unwrap_or_else(|| {
            if self.runs.len() == DATAGRAM_MAX_RUNS {
                self.runs.pop_front();
            }
            self.runs.push_back(Run { peer, run, datagrams: 0, bytes: 0 });
            self.runs.len() - 1
        });
        &mut self.runs[index]
    }
}

impl<P: Copy + Eq> Default for Counter<P> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        for message in [
            DatagramMessage::Data { run: 1, number: 2 },
            DatagramMessage::Query { run: u32::MAX },
            DatagramMessage::Report { run: 3, datagrams: 4, bytes: u64::MAX },
        ] {
            let bytes = message.encode();
            assert_eq!(DatagramMessage::decode(&bytes), Some(message));
            for len in 0..bytes.len() {
                assert_eq!(DatagramMessage::decode(&bytes[..len]), None);
            }
        }
    }

    #[test]
    fn counts_per_peer_and_run() {
        let mut counter = Counter::new();
        for number in 0..10 {
            assert_eq!(counter.handle(1, &encode_data(7, number, 100)), None);
        }
        counter.handle(2, &encode_data(7, 0, 100));
        counter.handle(1, b"noise");
        let report = counter.handle(1, &DatagramMessage::Query { run: 7 }.encode()).unwrap();
        assert_eq!(
            DatagramMessage::decode(&report),
            Some(DatagramMessage::Report { run: 7, datagrams: 10, bytes: 1000 })
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let mut counter = Counter::new();
        for run in 0..10_000 {
            counter.handle(1, &encode_data(run, 0, 16));
        }
        assert_eq!(counter.runs.len(), DATAGRAM_MAX_RUNS);
        let report = counter.handle(1, &DatagramMessage::Query { run: 0 }.encode()).unwrap();
        assert_eq!(
            DatagramMessage::decode(&report),
            Some(DatagramMessage::Report { run: 0, datagrams: 0, bytes: 0 })
        );
    }
}
