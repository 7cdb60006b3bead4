//! Two connections back to back, with a pipe between them that loses, repeats and reorders.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_wire::packet::{Flags, Header, Packet};
use pilotage_wire::{Address, SocketAddress, sack};

use super::{Clock, Input, check, fill};
use crate::config::Config;
use crate::connection::{Connection, Cx, Dialect, SegmentOut};
use crate::event::{ConnectionId, ReadError};
use crate::tunnel::path::Path;

/// Most bytes of one write or read.
const CHUNK: usize = 4_096;
/// Operations of one execution.
const OPS: usize = 150;
/// Segments on their way in one direction; the oldest is lost beyond it, as in a full queue.
const QUEUE: usize = 64;
/// Time from one side to the other while the world heals.
const DELAY: Duration = Duration::from_millis(20);
/// Steps in which everything must have come to an end after the faults stop.
const HEAL_STEPS: usize = 3_000;

/// One of the two.
struct Side {
    conn: Option<Connection>,
    path: Path,
    isn: u32,
    written: u64,
    read: u64,
    /// The end of the peer's stream was read.
    eof: bool,
    shut: bool,
    /// Reset or given up by our own call: nothing is promised any more.
    abandoned: bool,
    /// The handle was given back: nobody reads here.
    detached: bool,
    failed: bool,
}

struct Both {
    sides: [Side; 2],
    /// Towards side 0 and towards side 1.
    pipes: [VecDeque<Vec<u8>>; 2],
    cfg: Config,
    dialect: Dialect,
    clock: Clock,
}

/// Two connections, the application's calls on both, segments lost, repeated and reordered, time passing. Checked:
/// delivered bytes are a prefix of those written, the end of a stream is seen only behind its last byte, counts agree;
/// and once nothing is lost any more, everything written arrives or a failure is reported.
pub fn stream(base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let mut both = Both::new(base, &mut input);
    both.drain();
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        both.step(op, &mut input);
        both.drain();
    }
    both.heal();
}

impl Both {
    fn new(base: Instant, input: &mut Input<'_>) -> Self {
        let kind = input.u8();
        let cfg = Config {
            send_buffer: [1_000, 4_096, 16_384, 65_536][usize::from(kind & 3)],
            recv_buffer: [4_096, 8_192, 16_384, 65_536][usize::from(kind >> 2 & 3)],
            mtu_discovery: false,
            ..Config::default()
        };
        let dialect = if kind & 0x10 == 0 { Dialect::Pilotage } else { Dialect::Draft };
        let isn = |wrap: bool| if wrap { u32::MAX - 3_000 } else { 77 };
        let sides = [isn(kind & 0x20 != 0), isn(kind & 0x40 != 0)].map(|isn| Side {
            conn: None,
            path: Path::new(None, &cfg),
            isn,
            written: 0,
            read: 0,
            eof: false,
            shut: false,
            abandoned: false,
            detached: false,
            failed: false,
        });
        let mut both = Self { sides, pipes: Default::default(), cfg, dialect, clock: Clock::new(base) };
        let conn = Connection::connect(id(), at(0, 50_000), at(1, 80), both.sides[0].isn, base, &both.cfg);
        both.sides[0].conn = Some(conn);
        if kind & 0x80 == 0 {
            both.exchange();
            both.exchange();
        }
        both
    }

    fn with<R>(&mut self, side: usize, f: impl FnOnce(&mut Connection, &mut Cx<'_>) -> R) -> Option<R> {
        let Self { sides, cfg, dialect, clock, .. } = self;
        let Side { conn, path, .. } = &mut sides[side];
        Some(f(conn.as_mut()?, &mut Cx { now: clock.now, path, dialect: *dialect, cfg }))
    }

    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        let side = usize::from(op >> 7);
        match op & 0x0F {
            0 | 1 => self.write(side, input.len(CHUNK)),
            2 => {
                self.read(side, input.len(CHUNK).max(1));
            }
            3..=5 => {
                // In order, some segments.
                for _ in 0..=(op >> 4 & 7) {
                    self.deliver(side, 0);
                }
            }
            6 => {
                let at = input.below(QUEUE);
                self.deliver(side, at);
            }
            7 => {
                for _ in 0..=(op >> 4 & 7) {
                    self.pipes[side].pop_front();
                }
            }
            8 => {
                let at = input.below(QUEUE);
                if let Some(copy) = self.pipes[side].get(at).cloned() {
                    self.pipes[side].push_back(copy);
                }
            }
            9 => self.pipes[side].make_contiguous().reverse(),
            10 => self.pass(input.time()),
            11 | 12 => self.next_deadline(),
            13 => {
                if let Some(done) = self.with(side, |c, _| c.shutdown().is_ok()) {
                    self.sides[side].shut |= done;
                }
            }
            14 => self.exchange(),
            _ => self.rare(side, op >> 4 & 7),
        }
    }

    fn rare(&mut self, side: usize, which: u8) {
        match which {
            0 | 1 => {
                self.with(side, |c, _| c.set_nodelay(which == 0));
            }
            2 => self.sides[side].path.squeezed ^= true,
            3 => {
                if self.with(side, |c, cx| c.reset(cx.path)).is_some() {
                    self.sides[side].abandoned = true;
                }
            }
            4 => {
                if self.with(side, |c, cx| c.detach(cx.now)).is_some() {
                    (self.sides[side].abandoned, self.sides[side].detached) = (true, true);
                }
            }
            5 => {
                self.with(side, |c, _| c.probe_liveness());
            }
            _ => {}
        }
    }

    fn write(&mut self, side: usize, len: usize) {
        let mut buf = [0u8; CHUNK];
        fill(side as u64, self.sides[side].written, &mut buf[..len]);
        if let Some(Ok(n)) = self.with(side, |c, _| c.write(&buf[..len])) {
            self.sides[side].written += n as u64;
        }
    }

    /// Whether bytes came.
    fn read(&mut self, side: usize, len: usize) -> bool {
        let mut buf = [0u8; CHUNK];
        if self.sides[side].detached {
            return false;
        }
        let Some(result) = self.with(side, |c, cx| c.read(&mut buf[..len], cx)) else { return false };
        let other = 1 - side;
        match result {
            Ok(0) => {
                self.sides[side].eof = true;
                // A reference peer's FIN ends both directions (draft-01 facts §6.6).
                let either =
                    self.dialect == Dialect::Draft && (self.sides[side].shut || self.sides[side].abandoned);
                let made = self.sides[other].shut || self.sides[other].abandoned;
                assert!(made || either, "an end that nobody made");
                if self.sides[other].shut && self.dialect == Dialect::Pilotage {
                    assert_eq!(self.sides[side].read, self.sides[other].written, "the end came too soon");
                }
            }
            Ok(n) => {
                check(other as u64, self.sides[side].read, &buf[..n]);
                self.sides[side].read += n as u64;
                assert!(self.sides[side].read <= self.sides[other].written, "more than was written");
            }
            Err(ReadError::Blocked) => {}
            Err(_) => self.sides[side].failed = true,
        }
        result.is_ok_and(|n| n > 0)
    }

    /// Hands side `to` the segment at place `at` of what is on its way.
    fn deliver(&mut self, to: usize, at: usize) {
        let Some(bytes) = self.pipes[to].remove(at) else { return };
        let packet = Packet::decode(&bytes).expect("what leaves decodes");
        let hdr = packet.header;
        if self.sides[to].conn.is_none() {
            if to == 1 && hdr.flags == Flags::SYN {
                self.accept(&hdr);
            }
            return;
        }
        // What repeats a reference peer's bytes to it as SACK (spec/stream.md §5.2a) it takes for that; we, who play it here,
        // would not: its data may look so.
        let known = self.dialect == Dialect::Draft && reports_what_is_acknowledged(&hdr, packet.payload);
        let payload = if known { &[] } else { packet.payload };
        self.with(to, |c, cx| c.on_segment(&hdr, payload, cx));
        self.drain_side(to);
    }

    fn accept(&mut self, syn: &Header) {
        let Self { sides, cfg, dialect, clock, .. } = self;
        let side = &mut sides[1];
        let cx = Cx { now: clock.now, path: &mut side.path, dialect: *dialect, cfg };
        side.conn = Some(Connection::accept(id(), at(1, 80), at(0, 50_000), side.isn, syn, &cx));
        self.drain_side(1);
    }

    /// Everything that is on its way arrives in order.
    fn exchange(&mut self) {
        self.drain();
        for to in [0, 1] {
            for _ in 0..self.pipes[to].len() {
                self.deliver(to, 0);
            }
        }
    }

    fn drain(&mut self) {
        for side in [0, 1] {
            self.drain_side(side);
        }
    }

    fn drain_side(&mut self, side: usize) {
        let mut space = [0u8; 2_048];
        let mss = self.sides[side].path.mss();
        for count in 0.. {
            assert!(count < 1_000, "does not stop sending");
            let Some(out) = self.with(side, |c, cx| c.poll_segment(cx, mss, &mut space)) else { return };
            match out {
                SegmentOut::Packet(len) => {
                    let pipe = &mut self.pipes[1 - side];
                    if pipe.len() == QUEUE {
                        pipe.pop_front();
                    }
                    pipe.push_back(space[..len].to_vec());
                }
                SegmentOut::Idle => {
                    self.with(side, |c, cx| c.arm_persist(cx));
                    break;
                }
                SegmentOut::PathBlocked => break,
                SegmentOut::TooLong => unreachable!("nothing is longer than a full segment"),
            }
        }
        let side = &self.sides[side];
        if let Some(conn) = &side.conn {
            let view = conn.view();
            assert_eq!(side.path.in_flight, if view.failed { 0 } else { view.in_flight });
            assert!(view.held <= self.cfg.recv_buffer && conn.unacknowledged() <= self.cfg.send_buffer);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.clock.pass(time);
        self.fire();
    }

    fn next_deadline(&mut self) {
        if let Some(deadline) = self.deadline() {
            self.clock.go_to(deadline);
        }
        self.fire();
    }

    fn deadline(&self) -> Option<Instant> {
        let of = |side: &Side| {
            let conn = side.conn.as_ref()?.deadline(&side.path, &self.cfg);
            [conn, side.path.paced_until].into_iter().flatten().min()
        };
        self.sides.iter().filter_map(of).min()
    }

    fn fire(&mut self) {
        for side in [0, 1] {
            if self.sides[side].path.paced_until.is_some_and(|t| t <= self.clock.now) {
                self.sides[side].path.paced_until = None;
            }
            self.with(side, |c, cx| c.on_timeout(cx));
            self.drain_side(side);
        }
    }

    // ------------------------------------------------------------------ after the faults

    /// Nothing is lost any more, both sides read, both end their direction: it must come out even.
    fn heal(&mut self) {
        for side in [0, 1] {
            self.sides[side].path.squeezed = false;
            if let Some(true) = self.with(side, |c, _| c.shutdown().is_ok()) {
                self.sides[side].shut = true;
            }
        }
        for _ in 0..HEAL_STEPS {
            self.exchange();
            for side in [0, 1, 0, 1] {
                while self.read(side, CHUNK) {}
                self.drain();
            }
            if self.pipes.iter().any(|pipe| !pipe.is_empty()) {
                self.clock.pass(DELAY);
                continue;
            }
            if self.is_over() {
                break;
            }
            // A peer that was dialled late ends its direction too.
            if let Some(true) = self.with(1, |c, _| c.shutdown().is_ok()) {
                self.sides[1].shut = true;
            }
            match self.deadline() {
                Some(deadline) => self.clock.go_to(deadline),
                None => break,
            }
            self.fire();
        }
        self.check_end();
    }

    fn is_over(&self) -> bool {
        self.sides.iter().all(|s| s.conn.as_ref().is_none_or(|c| c.view().ended))
    }

    fn check_end(&self) {
        assert!(self.is_over(), "neither finished nor failed");
        let failed = |s: &Side| s.conn.as_ref().is_none_or(|c| c.view().failed);
        for (me, other) in [(0, 1), (1, 0)] {
            let (me, other) = (&self.sides[me], &self.sides[other]);
            assert_eq!(me.path.in_flight, 0);
            if self.dialect == Dialect::Pilotage && !failed(me) && !me.abandoned && !other.abandoned {
                // It says that all is well: then all has arrived.
                assert!(
                    other.conn.is_some() && !failed(other) || other.read == me.written,
                    "lost without a word"
                );
                assert_eq!(other.read, me.written, "written, never delivered, and no error");
                assert!(me.eof, "the end of the other direction was never seen");
            }
        }
    }
}

/// SACK information of which some lies below the acknowledgement.
fn reports_what_is_acknowledged(hdr: &Header, payload: &[u8]) -> bool {
    sack::decode(payload).is_some_and(|blocks| {
        blocks.as_slice().iter().any(|(left, _)| (left.wrapping_sub(hdr.ack) as i32) < 0)
    })
}

fn id() -> ConnectionId {
    ConnectionId { index: 0, generation: 0 }
}

fn at(node: u32, port: u16) -> SocketAddress {
    SocketAddress { address: Address::new(0, node + 1), port }
}
