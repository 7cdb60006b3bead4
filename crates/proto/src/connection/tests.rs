//! Single segments in and out, above all towards reference peers, whom the simulator does not play (spec/stream.md).

use std::time::{Duration, Instant};

use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
use pilotage_wire::{Address, SocketAddress, sack};

use super::{Connection, Cx, Dialect, Failure, SegmentFate, SegmentOut, State, WINDOW_UNIT};
use crate::config::Config;
use crate::event::{ConnectError, ConnectionId, ReadError};
use crate::tunnel::path::Path;

mod ends;
mod handshake;
mod order;
mod timers;
mod windows;

const OUR_ISN: u32 = 1_000;
const PEER_ISN: u32 = 5_000;
const MSS: usize = 1_130;
const BOTH: [Dialect; 2] = [Dialect::Draft, Dialect::Pilotage];

/// One side; the test plays the other.
struct Side {
    conn: Connection,
    path: Path,
    cfg: Config,
    dialect: Dialect,
    now: Instant,
}

type Sent = (Header, Vec<u8>);

impl Side {
    #[allow(clippy::disallowed_methods)] // a base for virtual time
    fn dialling(dialect: Dialect) -> Self {
        let (cfg, now) = (Config::default(), Instant::now());
        let (local, remote) = addresses();
        let id = ConnectionId { index: 0, generation: 0 };
        let conn = Connection::connect(id, local, remote, OUR_ISN, now, &cfg);
        let path = Path::new(None, &cfg);
        assert_eq!(path.mss(), MSS);
        Self { conn, path, cfg, dialect, now }
    }

    /// The peer offered `window` in its SYN-ACK.
    fn connected_with(dialect: Dialect, window: u16) -> Self {
        let mut side = Self::dialling(dialect);
        assert_eq!(side.sent()[0].0.flags, Flags::SYN);
        side.wait(10);
        let mut hdr = header(Flags::SYN | Flags::ACK, PEER_ISN, OUR_ISN + 1);
        hdr.window = window;
        side.takes(&hdr, b"");
        assert_eq!(side.sent().len(), 1, "the final ACK");
        side
    }

    fn connected(dialect: Dialect) -> Self {
        Self::connected_with(dialect, 512)
    }

    #[allow(clippy::disallowed_methods)] // a base for virtual time
    fn accepting(dialect: Dialect) -> Self {
        let (cfg, now) = (Config::default(), Instant::now());
        let (local, remote) = addresses();
        let mut path = Path::new(None, &cfg);
        let id = ConnectionId { index: 0, generation: 0 };
        let cx = Cx { now, path: &mut path, dialect, cfg: &cfg };
        let conn = Connection::accept(id, local, remote, OUR_ISN, &header(Flags::SYN, PEER_ISN, 0), &cx);
        Self { conn, path, cfg, dialect, now }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Connection, &mut Cx<'_>) -> R) -> R {
        let Self { conn, path, cfg, dialect, now } = self;
        f(conn, &mut Cx { now: *now, path, dialect: *dialect, cfg })
    }

    fn takes(&mut self, hdr: &Header, payload: &[u8]) -> SegmentFate {
        self.with(|c, cx| c.on_segment(hdr, payload, cx))
    }

    /// Data at an offset, acknowledging `acked` bytes of ours.
    fn takes_data(&mut self, offset: u32, acked: u32, payload: &[u8]) -> SegmentFate {
        self.takes(&header(Flags::ACK, PEER_ISN + 1 + offset, OUR_ISN + 1 + acked), payload)
    }

    fn writes(&mut self, data: &[u8]) {
        assert_eq!(self.conn.write(data), Ok(data.len()));
    }

    /// Everything that leaves now.
    fn sent(&mut self) -> Vec<Sent> {
        let mut out = Vec::new();
        let mut space = vec![0; 2_000];
        while let SegmentOut::Packet(len) = self.with(|c, cx| c.poll_segment(cx, MSS, &mut space)) {
            let packet = Packet::decode(&space[..len]).expect("what we write decodes");
            out.push((packet.header, packet.payload.to_vec()));
            assert!(len <= HEADER_LEN + MSS && out.len() < 10_000);
        }
        out
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.with(|c, cx| c.on_timeout(cx));
    }
}

fn addresses() -> (SocketAddress, SocketAddress) {
    let at = |node, port| SocketAddress { address: Address::new(0, node), port };
    (at(1, 50_000), at(2, 80))
}

/// A segment of the peer.
fn header(flags: Flags, seq: u32, ack: u32) -> Header {
    let (dst, src) = addresses();
    Header {
        flags,
        protocol: Protocol::Stream,
        src: src.address,
        dst: dst.address,
        src_port: src.port,
        dst_port: dst.port,
        seq,
        ack,
        window: 512,
    }
}

fn payload_bytes(sent: &[Sent]) -> usize {
    sent.iter().map(|(_, payload)| payload.len()).sum()
}

#[test]
fn a_repeated_syn_is_answered_with_the_original_syn_ack() {
    for dialect in BOTH {
        let mut side = Side::accepting(dialect);
        let first = side.sent();
        assert_eq!(first.len(), 1);
        side.takes(&header(Flags::SYN, PEER_ISN, 0), b"");
        let again = side.sent();
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].0.seq, again[0].0.ack), (OUR_ISN, PEER_ISN + 1));
        assert_eq!(again[0].0.flags, Flags::SYN | Flags::ACK);
        assert_eq!(side.takes(&header(Flags::SYN, PEER_ISN + 9, 0), b""), SegmentFate::Dropped);
    }
}

#[test]
fn a_repeated_or_foreign_syn_ack_is_acknowledged_and_changes_nothing() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.takes_data(0, 0, b"data");
        side.wait(10);
        side.sent();
        let syn_ack = header(Flags::SYN | Flags::ACK, PEER_ISN, OUR_ISN + 1);
        assert_eq!(side.takes(&syn_ack, b""), SegmentFate::Accepted);
        let answer = side.sent();
        assert_eq!(answer.len(), 1);
        assert_eq!((answer[0].0.flags, answer[0].0.ack), (Flags::ACK, PEER_ISN + 5));
        // Another ISN is of another connection: the answer makes a peer that has forgotten ours reset it (RFC 5961 §4.2).
        for flags in [Flags::SYN, Flags::SYN | Flags::ACK] {
            assert_eq!(side.takes(&header(flags, PEER_ISN + 77, OUR_ISN + 1), b""), SegmentFate::Dropped);
            let answer = side.sent();
            assert_eq!(answer.len(), 1);
            assert_eq!((answer[0].0.flags, answer[0].0.ack), (Flags::ACK, PEER_ISN + 5), "numbers of ours");
            assert_eq!((answer[0].1.len(), side.conn.state), (0, State::Established));
        }
    }
}

#[test]
fn a_data_segment_never_looks_like_sack() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.conn.set_nodelay(true);
        for count in 0..7u8 {
            let data = [b"SACK".as_slice(), &[count], &[7; 60]].concat();
            side.writes(&data);
            let sent = side.sent();
            assert!(sent.iter().all(|(_, payload)| !sack::looks_like_sack(payload)), "{count}");
            assert_eq!(sent.concat_payloads(), data);
            assert_eq!(sent.len(), if (1..=4).contains(&count) { 2 } else { 1 }, "{count}");
        }
    }
}

trait Concat {
    fn concat_payloads(&self) -> Vec<u8>;
}

impl Concat for Vec<Sent> {
    fn concat_payloads(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, payload)| payload.clone()).collect()
    }
}

#[test]
fn a_fin_is_answered_by_a_bare_ack_and_never_by_a_fin() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.writes(b"unacknowledged");
        side.sent();
        for flags in [Flags::FIN, Flags::FIN | Flags::ACK, Flags::FIN | Flags::ACK] {
            side.takes(&header(flags, PEER_ISN + 1, OUR_ISN + 1), b"");
            let answer = side.sent();
            assert_eq!(answer.len(), 1, "{dialect:?} {flags:?}");
            let (hdr, payload) = &answer[0];
            assert_eq!((hdr.flags, hdr.ack, payload.len()), (Flags::ACK, PEER_ISN + 2, 0));
        }
        // A bare ACK to our own FIN and the peer's repeated FIN: over, and still no FIN in answer to FIN.
        side.takes_data(0, 14, b"");
        let _ = side.conn.shutdown();
        let fin = side.sent();
        assert_eq!(fin.iter().filter(|(h, _)| h.flags.contains(Flags::FIN)).count(), 1);
        side.takes(&header(Flags::FIN | Flags::ACK, PEER_ISN + 1, OUR_ISN + 16), b"");
        assert_eq!(side.conn.state, State::Done);
        assert!(side.sent().iter().all(|(h, _)| h.flags == Flags::ACK));
    }
}

#[test]
fn a_fin_of_a_reference_peer_over_a_hole_ends_in_truncated() {
    let mut side = Side::connected(Dialect::Draft);
    side.takes_data(0, 0, b"here");
    side.takes(&header(Flags::FIN, PEER_ISN + 1 + 100, 0), b"");
    assert_eq!(side.with(|c, cx| c.read(&mut [0; 16], cx)), Ok(4));
    assert_eq!(side.with(|c, cx| c.read(&mut [0; 16], cx)), Err(ReadError::Blocked));
    side.wait(2_900);
    assert_eq!(side.conn.state, State::Established);
    side.wait(200);
    assert_eq!(side.conn.state, State::Failed(Failure::Truncated));
    assert_eq!(side.with(|c, cx| c.read(&mut [0; 16], cx)), Err(ReadError::Truncated));
    assert!(side.sent()[0].0.flags.contains(Flags::RST));
}

#[test]
fn a_reference_peer_gets_fin_only_when_all_is_acknowledged() {
    for (dialect, at_once) in [(Dialect::Draft, false), (Dialect::Pilotage, true)] {
        let mut side = Side::connected(dialect);
        side.writes(b"last words");
        side.with(|c, cx| c.detach(cx.now));
        let is_fin = |sent: &[Sent]| sent.iter().any(|(h, _)| h.flags.contains(Flags::FIN));
        let first = side.sent();
        assert_eq!(payload_bytes(&first), 10);
        assert_eq!(is_fin(&first), at_once);
        side.wait(5);
        side.takes_data(0, 10, b"");
        let second = side.sent();
        assert_eq!(is_fin(&second), !at_once);
        if dialect == Dialect::Draft {
            let (hdr, _) = &second[0];
            assert_eq!((hdr.flags, hdr.seq, hdr.ack, hdr.window), (Flags::FIN, OUR_ISN + 11, 0, 0));
        }
    }
}

#[test]
fn resets_count_only_where_they_belong() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        for seq in [PEER_ISN, PEER_ISN.wrapping_sub(70_000), PEER_ISN + 1 + (17 << 20)] {
            assert_eq!(side.takes(&header(Flags::RST, seq, 0), b""), SegmentFate::Dropped);
            let answer = side.sent();
            assert_eq!((answer.len(), answer[0].0.flags), (1, Flags::ACK), "challenged");
        }
        // Zero numbers are how reference peers reset.
        let zero = side.takes(&header(Flags::RST, 0, 0), b"");
        assert_eq!(zero == SegmentFate::Accepted, dialect == Dialect::Draft);
        let mut side = Side::connected(dialect);
        assert_eq!(side.takes(&header(Flags::RST, PEER_ISN + 1, 0), b""), SegmentFate::Accepted);
        assert_eq!(side.conn.state, State::Failed(Failure::Reset));
        assert!(side.sent().is_empty(), "no answer to a reset");

        let mut side = Side::dialling(dialect);
        side.sent();
        assert_eq!(side.takes(&header(Flags::RST, 0, OUR_ISN + 7), b""), SegmentFate::Dropped);
        let refused = side.takes(&header(Flags::RST | Flags::ACK, 0, OUR_ISN + 1), b"");
        assert_eq!(refused, SegmentFate::Accepted);
        assert_eq!(side.conn.connect_error(), Some(ConnectError::Refused));
    }
}

#[test]
fn data_for_a_dropped_handle_is_reset() {
    let mut side = Side::connected(Dialect::Pilotage);
    side.with(|c, cx| c.detach(cx.now));
    assert!(side.sent().iter().any(|(h, _)| h.flags.contains(Flags::FIN)));
    side.takes_data(0, 1, b"");
    assert_eq!(side.conn.state, State::Established, "the peer may still end its direction");
    side.takes_data(0, 1, b"who reads this?");
    assert!(side.sent()[0].0.flags.contains(Flags::RST));
}

#[test]
fn a_reference_peer_is_never_told_a_window_of_zero() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        let buffer = side.cfg.recv_buffer as u32;
        let chunk = vec![1; 65_536];
        for offset in (0..buffer).step_by(chunk.len()) {
            side.takes_data(offset, 0, &chunk);
        }
        side.wait(10);
        let sent = side.sent();
        let window = sent.last().expect("an ACK").0.window;
        assert_eq!(window, u16::from(dialect == Dialect::Draft));
    }
}

#[test]
fn a_reference_peer_gets_no_more_segments_than_its_window() {
    let data = vec![3; 100 * MSS];
    for (dialect, expected) in [(Dialect::Draft, 3), (Dialect::Pilotage, 10)] {
        let mut side = Side::connected_with(dialect, 3);
        side.writes(&data);
        let sent = side.sent();
        assert_eq!(sent.len(), expected, "{dialect:?}: bytes for ten and a bit, segments for three");
        assert!(payload_bytes(&sent) as u64 <= 3 * WINDOW_UNIT);
    }
}

#[test]
fn window_zero_of_a_reference_peer_changes_nothing() {
    for (dialect, flags) in [
        (Dialect::Draft, Flags::ACK),
        (Dialect::Draft, Flags::ACK | Flags::FIN),
        (Dialect::Pilotage, Flags::ACK),
    ] {
        let mut side = Side::connected_with(dialect, 2);
        // A FIN that was reached would end our direction; this one has a byte missing below it.
        let seq = PEER_ISN + 1 + u32::from(flags.contains(Flags::FIN));
        let mut zero = header(flags, seq, OUR_ISN + 1);
        zero.window = 0;
        side.writes(&vec![3; 100 * MSS]);
        side.takes(&zero, b"");
        // Neither "no limit" nor "stop": what was granted stays granted.
        let sent = payload_bytes(&side.sent()) as u64;
        assert!(sent > 0 && sent <= 2 * WINDOW_UNIT, "{sent}");
    }
}

#[test]
fn a_hole_is_reported_to_a_reference_peer_by_sack_and_three_bare_duplicates() {
    for (dialect, bare) in [(Dialect::Draft, 3), (Dialect::Pilotage, 0)] {
        let mut side = Side::connected(dialect);
        side.takes_data(1_000, 0, &[1; 1_000]);
        let sent = side.sent();
        assert!(sent.iter().all(|(h, _)| h.flags == Flags::ACK && h.ack == PEER_ISN + 1));
        let blocks = sack::decode(&sent[0].1).expect("SACK comes first");
        assert_eq!(blocks.as_slice(), [(PEER_ISN + 1_001, PEER_ISN + 2_001)]);
        assert_eq!(sent.iter().filter(|(_, payload)| payload.is_empty()).count(), bare, "{dialect:?}");
        // The same hole is announced so once.
        side.takes_data(2_000, 0, &[1; 1_000]);
        assert_eq!(side.sent().len(), 1);
    }
}

#[test]
fn what_looks_like_sack_but_is_not_outstanding_is_data() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.writes(&[5; 500]);
        side.sent();
        let mut look = vec![0; 64];
        let len = sack::encode(&[(OUR_ISN + 1, OUR_ISN + 9_000)], &mut look);
        side.takes_data(0, 0, &look[..len]);
        let mut got = vec![0; 64];
        let read = side.with(|c, cx| c.read(&mut got, cx));
        // A Pilotage peer never sends data of that form.
        let data = if dialect == Dialect::Draft { len } else { 0 };
        assert_eq!(read.unwrap_or(0), data, "beyond what was sent");
        let real = sack::encode(&[(OUR_ISN + 101, OUR_ISN + 501)], &mut look);
        side.takes_data(data as u32, 0, &look[..real]);
        assert_eq!(side.with(|c, cx| c.read(&mut got, cx)), Err(ReadError::Blocked), "SACK");
    }
}

#[test]
fn acks_of_bytes_never_sent_are_dropped_and_answered() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        side.writes(&[5; 500]);
        side.sent();
        let window = crate::congestion::Controller::window(&side.path.controller);
        for beyond in [501, 5_000, 1 << 30] {
            assert_eq!(side.takes_data(0, beyond, b"payload"), SegmentFate::Dropped);
            let answer = side.sent();
            assert_eq!((answer.len(), answer[0].0.ack), (1, PEER_ISN + 1), "the payload was not taken");
        }
        assert!(!side.conn.is_flushed());
        assert_eq!(crate::congestion::Controller::window(&side.path.controller), window);
    }
}

#[test]
fn keepalives_are_answered_and_answers_are_not() {
    for dialect in BOTH {
        let mut side = Side::connected(dialect);
        let probe = header(Flags::ACK, PEER_ISN, OUR_ISN + 1);
        side.takes(&probe, b"");
        assert_eq!(side.sent().len(), 1, "{dialect:?}: below what is expected");
        side.takes_data(0, 0, b"");
        assert!(side.sent().is_empty(), "{dialect:?}: an ordinary ACK");
        let mut reference = header(Flags::ACK, PEER_ISN + 1, OUR_ISN + 1);
        reference.window = 0;
        side.takes(&reference, b"");
        let answers = side.sent();
        assert_eq!(answers.len(), usize::from(dialect == Dialect::Draft));
        assert!(answers.iter().all(|(h, _)| h.window > 0), "else the two would never stop");
        side.wait(30_000);
        let ours = side.sent();
        assert_eq!((ours.len(), ours[0].0.seq), (1, OUR_ISN), "our own");
    }
}
