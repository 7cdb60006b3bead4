//! One connection that is fed whatever a peer with the keys could send.

use std::time::Instant;

use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
use pilotage_wire::{Address, SocketAddress, sack};

use super::{Clock, Input, check, fill};
use crate::config::Config;
use crate::connection::{Connection, Cx, Dialect, SegmentOut};
use crate::event::{ConnectError, ConnectionId, ReadError};
use crate::tunnel::path::Path;

/// Most bytes of one write or read.
const CHUNK: usize = 4_096;
/// Operations of one execution.
const OPS: usize = 200;
/// Our bytes and the peer's.
const OURS: u64 = 1;
const THEIRS: u64 = 2;

/// The connection under test with what it may use and what the harness knows.
struct Side {
    conn: Connection,
    path: Path,
    cfg: Config,
    dialect: Dialect,
    clock: Clock,
    written: u64,
    read: u64,
    /// A payload that was neither a piece of their stream nor ignored: contents cannot be predicted any more.
    tainted: bool,
    /// Our FIN was queued: nothing may be written behind it.
    ended: bool,
    /// The rightmost edge that was promised in any packet.
    promised: u64,
}

/// Feeds one connection with segments of arbitrary numbers, flags, windows and SACK blocks, the application's calls
/// and time. Checked: what leaves are bytes that were written, at their places, inside window and buffer; what is
/// delivered are bytes that came, in order; memory stays inside its bounds; the promised window never shrinks;
/// deadlines lead somewhere; in-flight counts agree; a failed connection is silent.
pub fn connection(base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let mut side = Side::new(base, &mut input);
    side.drain();
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        side.step(op, &mut input);
        side.drain();
        side.check();
    }
    // Whatever happened: left alone, the connection ends in bounded time and then stays silent.
    side.with(|c, cx| c.detach(cx.now));
    for _ in 0..2_000 {
        side.drain();
        let Some(deadline) = side.conn.deadline(&side.path, &side.cfg) else { break };
        side.clock.go_to(deadline);
        side.path.paced_until = None;
        side.with(|c, cx| c.on_timeout(cx));
    }
    side.drain();
    assert!(side.conn.view().ended, "a detached connection that nobody answers never ends");
    assert_eq!(side.path.in_flight, 0);
}

impl Side {
    fn new(base: Instant, input: &mut Input<'_>) -> Self {
        let kind = input.u8();
        let dialect = if kind & 1 == 0 { Dialect::Pilotage } else { Dialect::Draft };
        let cfg = Config {
            send_buffer: [256, 4_096, 16_384, 65_536][usize::from(kind >> 2 & 3)],
            recv_buffer: [4_096, 8_192, 16_384, 65_536][usize::from(kind >> 4 & 3)],
            mtu_discovery: false,
            ..Config::default()
        };
        let isn = if kind & 0x40 == 0 { u32::MAX - 600 } else { input.u32() };
        let mut path = Path::new(None, &cfg);
        let id = ConnectionId { index: 0, generation: 0 };
        let (local, remote) = (at(1, 50_000), at(2, 80));
        let conn = if kind & 2 == 0 {
            Connection::connect(id, local, remote, isn, base, &cfg)
        } else {
            let cx = Cx { now: base, path: &mut path, dialect, cfg: &cfg };
            Connection::accept(id, local, remote, isn, &header(Flags::SYN, u32::MAX - 900, 0, 8), &cx)
        };
        let clock = Clock::new(base);
        let mut side = Self {
            conn,
            path,
            cfg,
            dialect,
            clock,
            written: 0,
            read: 0,
            tainted: false,
            ended: false,
            promised: 0,
        };
        // Most inputs begin with an established connection; those with the top bit do not.
        if kind & 0x80 == 0 {
            side.drain();
            let ack = side.conn.view().first_seq;
            let flags = if kind & 2 == 0 { Flags::SYN | Flags::ACK } else { Flags::ACK };
            let seq = if kind & 2 == 0 { u32::MAX - 900 } else { u32::MAX - 899 };
            side.take(&header(flags, seq, ack, 8), &[]);
        }
        side
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Connection, &mut Cx<'_>) -> R) -> R {
        let Self { conn, path, cfg, dialect, clock, .. } = self;
        f(conn, &mut Cx { now: clock.now, path, dialect: *dialect, cfg })
    }

    fn take(&mut self, hdr: &Header, payload: &[u8]) {
        self.with(|c, cx| c.on_segment(hdr, payload, cx));
    }

    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        match op % 16 {
            0..=5 => self.segment(op >> 4, input),
            6 => self.sack_segment(input),
            7 | 8 => self.write(input.len(CHUNK)),
            9 => self.read(input.len(CHUNK).max(1)),
            10 => {
                self.ended |= self.conn.shutdown().is_ok();
            }
            11 => self.clock.pass(input.time()),
            12 | 13 => {
                if let Some(deadline) = self.conn.deadline(&self.path, &self.cfg) {
                    self.clock.go_to(deadline);
                }
                self.path.paced_until = None;
                self.with(|c, cx| c.on_timeout(cx));
            }
            14 => {
                self.path.paced_until = None;
                self.with(|c, cx| c.on_timeout(cx));
            }
            _ => self.rare(op >> 4),
        }
    }

    fn rare(&mut self, which: u8) {
        match which {
            0 | 1 => self.conn.set_nodelay(which == 1),
            2 => self.path.squeezed = !self.path.squeezed,
            3 => self.conn.probe_liveness(),
            4 => self.with(|c, cx| c.reset(cx.path)),
            5 => {
                self.with(|c, cx| c.detach(cx.now));
                self.ended = true;
                self.read = self.conn.view().received;
            }
            6 => self.with(|c, cx| c.on_tunnel_failed(ConnectError::HandshakeTimeout, cx.path)),
            _ => {}
        }
    }

    /// A segment near the numbers that are expected, or anywhere.
    fn segment(&mut self, shape: u8, input: &mut Input<'_>) {
        let view = self.conn.view();
        let mut flags = Flags::ACK;
        if shape & 1 != 0 {
            flags = Flags::from_bits_truncate(input.u8());
        }
        let offset = (view.received as i64 + if shape & 2 != 0 { input.delta() } else { 0 }) as u64;
        let acked = if shape & 4 != 0 {
            (view.una as i64 + input.delta()) as u64
        } else {
            view.una + (view.nxt - view.una) * u64::from(input.u8()) / 255
        };
        let window = if shape & 8 != 0 { input.u16() } else { u16::from(input.u8()) };
        let len = input.len(1_500);
        let mut payload = [0u8; 1_500];
        fill(THEIRS, offset as u32 as u64, &mut payload[..len]);
        let hdr = header(
            flags,
            view.peer_first_seq.wrapping_add(offset as u32),
            view.first_seq.wrapping_add(acked as u32),
            window,
        );
        self.take(&hdr, &payload[..len]);
    }

    /// An acknowledgement with up to four blocks, sane or not.
    fn sack_segment(&mut self, input: &mut Input<'_>) {
        let view = self.conn.view();
        let shape = input.u8();
        let outstanding = view.nxt - view.una;
        let mut blocks = [(0u32, 0u32); sack::MAX_BLOCKS];
        let count = usize::from(shape & 3) + 1;
        for block in &mut blocks[..count] {
            let (start, len) = if shape & 4 == 0 {
                (outstanding * u64::from(input.u8()) / 256, u64::from(input.u8()) * 16)
            } else {
                (input.delta() as u64, input.delta() as u64)
            };
            let left = view.first_seq.wrapping_add((view.una.wrapping_add(start)) as u32);
            *block = (left, left.wrapping_add(len as u32));
        }
        let mut payload = [0u8; sack::MAX_LEN];
        let len = sack::encode(&blocks[..count], &mut payload);
        let acked = view.una + if shape & 8 == 0 { 0 } else { outstanding * u64::from(input.u8()) / 255 };
        let hdr = header(
            Flags::ACK,
            view.peer_first_seq.wrapping_add(view.received as u32),
            view.first_seq.wrapping_add(acked as u32),
            u16::from(input.u8()),
        );
        let held = view.held;
        self.take(&hdr, &payload[..len]);
        // Blocks outside of what is outstanding make it data (spec/wire.md): data that their stream does not hold.
        self.tainted |= self.conn.view().held != held || self.conn.view().received != view.received;
    }

    fn write(&mut self, len: usize) {
        let mut buf = [0u8; CHUNK];
        fill(OURS, self.written, &mut buf[..len]);
        if let Ok(n) = self.conn.write(&buf[..len]) {
            assert!(n <= len && !(self.ended && n > 0), "wrote behind the end");
            self.written += n as u64;
        }
    }

    fn read(&mut self, len: usize) {
        let mut buf = [0u8; CHUNK];
        match self.with(|c, cx| c.read(&mut buf[..len], cx)) {
            Ok(n) => {
                if !self.tainted {
                    check_theirs(self.read, &buf[..n]);
                }
                self.read += n as u64;
                assert!(self.read <= self.conn.view().received);
            }
            Err(ReadError::Blocked) => assert_eq!(self.conn.readable(), 0),
            Err(_) => assert!(self.conn.view().failed),
        }
    }

    /// Takes every packet that leaves now.
    fn drain(&mut self) {
        let mut space = [0u8; 2_048];
        let mss = self.path.mss();
        for count in 0.. {
            assert!(count < 1_000, "does not stop sending");
            match self.with(|c, cx| c.poll_segment(cx, mss, &mut space)) {
                SegmentOut::Packet(len) => self.check_packet(&space[..len]),
                SegmentOut::Idle => {
                    self.with(|c, cx| c.arm_persist(cx));
                    break;
                }
                SegmentOut::PathBlocked => break,
                SegmentOut::TooLong => unreachable!("nothing is longer than a full segment"),
            }
        }
    }

    fn check_packet(&mut self, bytes: &[u8]) {
        let packet = Packet::decode(bytes).expect("what leaves decodes");
        let (hdr, view) = (packet.header, self.conn.view());
        assert!(bytes.len() <= HEADER_LEN + self.path.mss());
        assert!(!view.failed || hdr.flags.contains(Flags::RST), "a failed connection sends nothing else");
        if hdr.flags.contains(Flags::ACK) && !hdr.flags.contains(Flags::RST) && view.established {
            let edge = view.received + u64::from(hdr.window) * crate::connection::WINDOW_UNIT;
            assert!(edge <= view.advertised_edge, "promised more than is kept account of");
            self.promised = self.promised.max(edge);
        }
        // A SYN may carry what the dialects tell each other by; it is no part of the stream.
        if packet.payload.is_empty()
            || hdr.flags.contains(Flags::SYN)
            || sack::looks_like_sack(packet.payload)
        {
            return;
        }
        let una = view.una;
        // A keepalive to a reference peer: a byte that it has acknowledged in its own words, whatever it was.
        let below = view.first_seq.wrapping_add(self.conn.stats().bytes_acked as u32).wrapping_sub(1);
        if packet.payload == [0] && hdr.seq == below {
            return;
        }
        let distance = i64::from(hdr.seq.wrapping_sub(view.first_seq.wrapping_add(una as u32)) as i32);
        let offset = una.checked_add_signed(distance).unwrap_or_else(|| {
            panic!("before the stream's beginning: {hdr:?} {} {view:?}", packet.payload.len())
        });
        let end = offset + packet.payload.len() as u64;
        assert!(end <= self.written && end <= view.nxt, "sent what was not written");
        assert!(offset >= una, "sent what was acknowledged");
        check(OURS, offset, packet.payload);
        // One byte beyond the window may probe it (RFC 9293 §3.8.6.1).
        assert!(end <= view.window_edge.max(una + 1).max(self.probe_edge(&view)), "beyond the window");
    }

    /// Bytes that left as a window probe may be sent again.
    fn probe_edge(&self, view: &crate::connection::View) -> u64 {
        if view.nxt > view.window_edge { view.nxt.min(view.window_edge + 2) } else { 0 }
    }

    fn check(&mut self) {
        let view = self.conn.view();
        assert!(
            view.una <= view.nxt && view.nxt <= self.written + 1,
            "acknowledged or sent more than written"
        );
        assert!(view.in_flight <= view.nxt - view.una);
        assert_eq!(self.path.in_flight, if view.failed { 0 } else { view.in_flight });
        assert!(view.held <= self.cfg.recv_buffer, "receive buffer");
        assert!(self.conn.unacknowledged() <= self.cfg.send_buffer, "send buffer");
        assert!(view.segments <= crate::scoreboard::MAX_SEGMENTS && view.sacks_kept <= 64);
        assert!(
            view.received + (self.cfg.recv_buffer as u64) >= self.promised,
            "the promised window was taken back"
        );
        let stats = self.conn.stats();
        assert!(stats.bytes_acked <= self.written && stats.bytes_received == view.received);
        if self.conn.is_over() {
            assert!(!self.conn.wants_to_send() && self.conn.deadline(&self.path, &self.cfg).is_none());
        }
    }
}

/// Their stream repeats after 2³² bytes, as sequence numbers do.
fn check_theirs(from: u64, bytes: &[u8]) {
    check(THEIRS, from as u32 as u64, bytes);
}

fn at(node: u32, port: u16) -> SocketAddress {
    SocketAddress { address: Address::new(0, node), port }
}

fn header(flags: Flags, seq: u32, ack: u32, window: u16) -> Header {
    Header {
        flags,
        protocol: Protocol::Stream,
        src: Address::new(0, 2),
        dst: Address::new(0, 1),
        src_port: 80,
        dst_port: 50_000,
        seq,
        ack,
        window,
    }
}
