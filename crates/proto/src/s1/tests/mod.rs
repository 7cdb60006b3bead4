//! Two real sides, with real cryptography, and everything in between under the test's control.

#![allow(clippy::disallowed_methods, reason = "tests need a clock as a base")]

mod early;
mod erasure;
mod flood;
mod handshake;
mod keys;
mod session;
mod snow;
mod timing;
mod upgrade;
mod vectors;
mod world;

use std::time::{Duration, Instant};

use pilotage_wire::s1::data::{HEADER_LEN, OVERHEAD};
use pilotage_wire::s1::frames::Frame;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use super::model::config;
use super::*;

/// Unix time at which the tests' processes start, ms.
const UNIX: u64 = 1_800_000_000_000;

/// One side: a node, and at most one peer.
struct Side {
    node: Node,
    peer: Option<Association>,
    rng: ChaCha20Rng,
    start: Instant,
    now: Instant,
    /// What its wall clock is ahead, ms.
    skew: i64,
}

impl Side {
    fn new(number: u8, now: Instant) -> Self {
        Self::with(config(number, Limits::default()), number, now, 0)
    }

    fn with(config: NodeConfig, seed: u8, now: Instant, skew: i64) -> Self {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let unix_ms = UNIX.saturating_add_signed(skew);
        let node = Node::new(config, &mut Cx { now, unix_ms, rng: &mut rng });
        Self { node, peer: None, rng, start: now, now, skew }
    }

    fn run<R>(&mut self, f: impl FnOnce(&mut Association, &mut Node, &mut Cx<'_>) -> R) -> R {
        let up = self.now.duration_since(self.start).as_millis() as u64;
        let unix_ms = (UNIX + up).saturating_add_signed(self.skew);
        let mut cx = Cx { now: self.now, unix_ms, rng: &mut self.rng };
        f(self.peer.as_mut().expect("a peer"), &mut self.node, &mut cx)
    }

    fn node<R>(&mut self, f: impl FnOnce(&mut Node, &mut Cx<'_>) -> R) -> R {
        let up = self.now.duration_since(self.start).as_millis() as u64;
        let unix_ms = (UNIX + up).saturating_add_signed(self.skew);
        f(&mut self.node, &mut Cx { now: self.now, unix_ms, rng: &mut self.rng })
    }

    fn knows(&mut self, other: &Side) {
        self.peer = Some(Association::new(1, other.node.prekey(), Secret::new([9; 32])));
    }

    fn connect(&mut self) -> Vec<u8> {
        self.run(|a, node, cx| a.connect(node, Begin::default(), cx)).expect("a good peer").expect("a PILI")
    }

    fn connect_with(&mut self, early: &[u8]) -> Vec<u8> {
        let early = Some(EarlyData::idempotent(early).expect("frames that may be early"));
        let begin = Begin { early, ..Begin::default() };
        self.run(|a, node, cx| a.connect(node, begin, cx)).expect("a good peer").expect("a PILI")
    }

    fn judge(&mut self, pili: &[u8], from: Source) -> Verdict {
        self.node(|node, cx| node.handle_initiation(pili, &from, cx))
    }

    /// Takes a PILI, with its early data, and answers it.
    fn answer(&mut self, pili: &[u8], from: Source) -> Result<Accepted, Refusal> {
        match self.judge(pili, from) {
            Verdict::Incoming(incoming) => {
                let psk = Secret::new([9; 32]);
                self.node(|node, cx| node.accept(*incoming, 1, &psk, true, cx))
            }
            Verdict::Refused(refusal) => Err(refusal),
            Verdict::Answer(answer) => panic!("answered with {}", answer[..4].escape_ascii()),
        }
    }

    fn seal(&mut self, frames: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut buf = vec![0; frames.len() + OVERHEAD];
        buf[HEADER_LEN..HEADER_LEN + frames.len()].copy_from_slice(frames);
        let now = self.now;
        self.run(|a, _, _| a.seal(&mut buf, frames.len(), now))?;
        Ok(buf)
    }

    fn open(&mut self, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut buf = datagram.to_vec();
        let now = self.now;
        let opened = self.run(|a, node, _| a.open(node, &mut buf, now))?;
        Ok(buf[opened.start..opened.end].to_vec())
    }

    fn session(&mut self) -> &mut Session {
        self.peer.as_mut().expect("a peer").current_mut().expect("a session")
    }
}

fn source(last: u8) -> Source {
    Source { addr: ([198, 51, 100, last], 4_000).into(), relayed: None }
}

/// Two nodes that know each other, half a minute after they started.
fn pair() -> (Side, Side) {
    let start = Instant::now();
    let (mut a, mut b) = (Side::new(1, start), Side::new(2, start));
    a.knows(&b);
    b.knows(&a);
    wait(&mut a, &mut b, 30_000);
    (a, b)
}

fn wait(a: &mut Side, b: &mut Side, ms: u64) {
    a.now += Duration::from_millis(ms);
    b.now += Duration::from_millis(ms);
}

/// One whole handshake, confirmed.
fn shake(a: &mut Side, b: &mut Side) {
    let pili = a.connect();
    let accepted = b.answer(&pili, source(1)).expect("a good PILI");
    let now = b.now;
    b.run(|peer, node, _| peer.adopt(node, accepted.session, false, now));
    a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx)).expect("a good PILR");
    let ping = a.seal(&[1]).expect("keys");
    assert_eq!(b.open(&ping).expect("the keys of both"), [1]);
}

fn connected() -> (Side, Side) {
    let (mut a, mut b) = pair();
    shake(&mut a, &mut b);
    (a, b)
}

fn datagram_frame(data: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; data.len() + 16];
    let frame = Frame::Datagram { source: 7, destination: 9, data, to_end: true };
    let len = frame.encode(&mut buf).expect("room");
    buf.truncate(len);
    buf
}

fn random_bytes(rng: &mut ChaCha20Rng, max: usize) -> Vec<u8> {
    let mut out = vec![0; rng.next_u32() as usize % (max + 1)];
    rng.fill_bytes(&mut out);
    out
}
