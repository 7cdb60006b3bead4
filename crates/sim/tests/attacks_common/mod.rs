//! What the attack tests share: a long-lived connection of a [`Pair`] whose traffic is checked byte by byte.

#![allow(dead_code)] // every test file uses another part

use std::net::SocketAddr;
use std::time::Duration;

use pilotage_proto::{ConnectionId, EndpointStats, Event, ReadError, WriteError};
use pilotage_sim::{Pair, Side, pattern};

/// Milliseconds.
pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An address of nobody.
pub(crate) fn attacker() -> SocketAddr {
    "203.0.113.9:6666".parse().expect("an address")
}

/// The datagrams of one side that begin with a magic.
pub(crate) fn of_kind(recorded: &[(Side, Vec<u8>)], side: Side, magic: &[u8; 4]) -> Vec<Vec<u8>> {
    recorded.iter().filter(|(s, b)| *s == side && b.starts_with(magic)).map(|(_, b)| b.clone()).collect()
}

/// A small, fast generator for choices of a test (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One connection, written and read in both directions; what arrives is compared at once.
pub(crate) struct Duel {
    ids: [ConnectionId; 2],
    data: [Vec<u8>; 2],
    written: [usize; 2],
    read: [usize; 2],
    ended: [bool; 2],
}

impl Duel {
    /// Connects A to `port` at B; each side will send `len` bytes.
    pub(crate) fn new(pair: &mut Pair, port: u16, len: usize) -> Self {
        let (a, b) = pair.connect(port).expect("connects");
        let data = [pattern(len, u64::from(port)), pattern(len, u64::from(port) + 1)];
        Self { ids: [a, b], data, written: [0; 2], read: [0; 2], ended: [false; 2] }
    }

    /// Writes and reads what is possible. Panics on a wrong byte, a reset, an early or missing end.
    pub(crate) fn pump(&mut self, pair: &mut Pair) {
        let now = pair.now;
        for (me, side) in [Side::A, Side::B].into_iter().enumerate() {
            let other = 1 - me;
            let endpoint = pair.endpoint(side);
            while self.written[me] < self.data[me].len() {
                match endpoint.write(now, self.ids[me], &self.data[me][self.written[me]..]) {
                    Ok(n) => self.written[me] += n,
                    Err(WriteError::Blocked) => break,
                    Err(error) => panic!("{side:?} cannot write: {error:?}"),
                }
                if self.written[me] == self.data[me].len() {
                    endpoint.shutdown(now, self.ids[me]).expect("open");
                }
            }
            let mut chunk = [0; 16 * 1024];
            loop {
                match endpoint.read(now, self.ids[me], &mut chunk) {
                    Ok(0) => {
                        assert_eq!(self.read[me], self.data[other].len(), "{side:?} was cut short");
                        self.ended[me] = true;
                        break;
                    }
                    Ok(n) => {
                        let expected = self.data[other].get(self.read[me]..self.read[me] + n);
                        assert!(
                            expected == Some(&chunk[..n]),
                            "{side:?} read wrong bytes at {}",
                            self.read[me]
                        );
                        self.read[me] += n;
                    }
                    Err(ReadError::Blocked) => break,
                    Err(error) => panic!("{side:?} cannot read after {} bytes: {error:?}", self.read[me]),
                }
            }
        }
    }

    /// The connection at A and at B.
    pub(crate) fn ids(&self) -> (ConnectionId, ConnectionId) {
        (self.ids[0], self.ids[1])
    }

    /// Bytes read by both.
    pub(crate) fn progress(&self) -> usize {
        self.read.iter().sum()
    }

    /// Everything arrived and both directions ended in order.
    pub(crate) fn is_over(&self) -> bool {
        self.ended == [true; 2]
    }

    /// Runs to the end without further attacks.
    #[track_caller]
    pub(crate) fn finish(mut self, pair: &mut Pair) {
        let done = pair.run_until(Duration::from_secs(120), |p| {
            self.pump(p);
            self.is_over()
        });
        assert!(done, "stuck after {} bytes, {:?}", self.progress(), pair.elapsed());
        let now = pair.now;
        pair.endpoint(Side::A).close(now, self.ids[0]);
        pair.endpoint(Side::B).close(now, self.ids[1]);
    }

    /// Where each side sends to now.
    pub(crate) fn paths(&self, pair: &mut Pair) -> [Option<SocketAddr>; 2] {
        [(Side::A, 0), (Side::B, 1)]
            .map(|(side, i)| pair.endpoint(side).connection_path(self.ids[i]).map(|p| p.remote))
    }
}

/// Counters of both sides.
pub(crate) fn stats(pair: &mut Pair) -> [EndpointStats; 2] {
    [Side::A, Side::B].map(|side| pair.endpoint(side).stats())
}

/// Whether any side reported that a path changed.
pub(crate) fn path_changes(pair: &mut Pair) -> usize {
    [Side::A, Side::B]
        .map(|side| pair.host(side).events.iter().filter(|e| matches!(e, Event::PathChanged { .. })).count())
        .iter()
        .sum()
}
