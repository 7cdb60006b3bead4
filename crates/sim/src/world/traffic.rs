//! What the applications on the nodes do, and the oracle that knows what must arrive.
//!
//! A flow is one connection: A connects, writes its number and then a pattern that depends on the number and the
//! position, and ends in one of several ways; B answers with a pattern of its own. The oracle never trusts a byte of
//! the stack: it compares with what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pilotage_proto::{ConnectionId, ReadError, WriteError};

use super::audit::{Audit, Invariant};
use crate::network::HostId;

/// Port of the listeners.
pub const STREAM_PORT: u16 = 7_000;
/// Port of the datagram sockets.
pub const DATAGRAM_PORT: u16 = 7_001;
/// A prime, so that a shift by whole segments shows.
const TABLE: usize = 65_521;

/// How a flow ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both shut down their direction when all is written, and close when all is read.
    Orderly,
    /// A closes its handle at once behind the last byte: B must still get everything.
    CloseAfterWrite,
    /// A resets after so many bytes.
    Reset(u64),
    /// B closes after it has read so many bytes.
    ReaderCloses(u64),
}

/// What a flow is to do.
#[derive(Debug, Clone)]
pub struct FlowPlan {
    /// The host that connects.
    pub from: HostId,
    /// The host that accepts.
    pub to: HostId,
    /// When.
    pub start: Duration,
    /// Bytes from A to B, besides the flow's number in front.
    pub bytes: u64,
    /// Bytes from B to A, after A's end.
    pub back: u64,
    /// Bytes in one write.
    pub chunk: usize,
    /// B reads at most this much at a time and then waits 50 ms.
    pub slow_reader: Option<usize>,
    /// Send small segments at once.
    pub nodelay: bool,
    /// How it ends.
    pub ending: Ending,
}

/// Where one end of a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Not begun (for B: not accepted).
    Idle,
    /// Open.
    Open,
    /// Ended as planned.
    Finished,
    /// Reported an error.
    Failed,
}

/// One flow and what was seen of it.
#[derive(Debug)]
pub struct Flow {
    /// What it is to do.
    pub plan: FlowPlan,
    /// A, then B.
    pub ends: [End; 2],
    /// Bytes written at A and at B.
    pub written: [u64; 2],
    /// Bytes read of those that A, and B, wrote.
    pub read: [u64; 2],
    /// A's, and B's, direction was ended by its writer.
    pub shut: [bool; 2],
    /// The end of A's, and B's, direction was read.
    pub eof: [bool; 2],
    /// Why an end failed.
    pub reasons: [Option<String>; 2],
    /// The end's connection with the boot of its host.
    pub(super) ids: [Option<(u32, ConnectionId)>; 2],
}

impl Flow {
    fn new(plan: FlowPlan) -> Self {
        Self {
            plan,
            ends: [End::Idle; 2],
            written: [0; 2],
            read: [0; 2],
            shut: [false; 2],
            eof: [false; 2],
            reasons: [None, None],
            ids: [None; 2],
        }
    }

    /// Everything that was to be done was done, at both ends.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ends == [End::Finished; 2]
    }

    /// The end will do nothing more.
    #[must_use]
    pub fn is_over(&self, side: usize) -> bool {
        matches!(self.ends[side], End::Finished | End::Failed)
    }

    pub(super) fn host(&self, side: usize) -> HostId {
        if side == 0 { self.plan.from } else { self.plan.to }
    }

    /// Bytes that this side is to write in all.
    pub(super) fn target(&self, side: usize) -> u64 {
        if side == 0 { 8 + self.plan.bytes } else { self.plan.back }
    }

    pub(super) fn fail(&mut self, side: usize, reason: String) {
        if !self.is_over(side) {
            self.ends[side] = End::Failed;
            self.reasons[side] = Some(reason);
        }
    }
}

/// A connection that B accepted and whose number is not read yet.
#[derive(Debug)]
pub(super) struct Unnamed {
    pub(super) peer: pilotage_wire::Address,
    pub(super) head: Vec<u8>,
}

/// All flows and datagrams of a world.
#[derive(Debug)]
pub struct Traffic {
    /// The flows; a flow's number is its place.
    pub flows: Vec<Flow>,
    pub(super) by_id: BTreeMap<(HostId, u32, ConnectionId), (usize, usize)>,
    pub(super) unnamed: BTreeMap<(HostId, u32, ConnectionId), Unnamed>,
    pub(super) closed: BTreeSet<(HostId, u32, ConnectionId)>,
    datagrams: Vec<Datagram>,
    table: Vec<u8>,
    /// Stream bytes delivered and found right.
    pub stream_bytes: u64,
    /// Datagrams delivered.
    pub datagrams_delivered: u64,
    /// Pings answered.
    pub pongs: u64,
}

#[derive(Debug, Clone, Copy)]
struct Datagram {
    from: pilotage_wire::Address,
    to: HostId,
    len: usize,
    delivered: bool,
}

impl Default for Traffic {
    fn default() -> Self {
        let mut state = 0x1234_5678_9abc_def1_u64;
        let table = (0..2 * TABLE)
            .map(|i| {
                // xorshift64*, only to have bytes that look like nothing else.
                if i == TABLE {
                    state = 0x1234_5678_9abc_def1;
                }
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
            })
            .collect();
        Self {
            flows: Vec::new(),
            by_id: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            closed: BTreeSet::new(),
            datagrams: Vec::new(),
            table,
            stream_bytes: 0,
            datagrams_delivered: 0,
            pongs: 0,
        }
    }
}

impl Traffic {
    /// Adds a flow and returns its number.
    pub fn add(&mut self, plan: FlowPlan) -> usize {
        self.flows.push(Flow::new(plan));
        self.flows.len() - 1
    }

    /// Up to `len` bytes of a flow's direction from an offset on; fewer at the pattern's seam.
    pub(super) fn piece(&self, flow: usize, side: usize, offset: u64, len: usize) -> &[u8] {
        let salt = (flow as u64 * 2 + side as u64).wrapping_mul(7_919);
        let at = ((offset + salt) % TABLE as u64) as usize;
        &self.table[at..(at + len).min(at + TABLE)]
    }

    /// Bytes `offset..` of what `side` of a flow writes, into `out`; returns how many.
    pub(super) fn produce(&self, flow: usize, side: usize, offset: u64, out: &mut Vec<u8>, len: usize) {
        out.clear();
        if side == 0 && offset < 8 {
            out.extend_from_slice(&(flow as u64).to_le_bytes()[offset as usize..]);
        }
        while out.len() < len {
            let piece = self.piece(flow, side, offset + out.len() as u64, len - out.len());
            out.extend_from_slice(piece);
        }
        out.truncate(len);
    }

    /// Bytes that `side` wrote arrived at the other: they must be the next ones, and must have been written.
    pub fn on_bytes(&mut self, flow: usize, side: usize, bytes: &[u8], audit: &mut Audit) {
        let offset = self.flows[flow].read[side];
        let end = offset + bytes.len() as u64;
        let written = self.flows[flow].written[side];
        audit.require(end <= written, Invariant::Prefix, || {
            format!("flow {flow} side {side}: {end} bytes were read, {written} written")
        });
        let mut at = 0;
        while at < bytes.len() {
            let here = offset + at as u64;
            if side == 0 && here < 8 {
                let good = bytes[at] == (flow as u64).to_le_bytes()[here as usize];
                audit.require(good, Invariant::Prefix, || format!("flow {flow}: wrong number at {here}"));
                at += 1;
                continue;
            }
            let piece = self.piece(flow, side, here, bytes.len() - at);
            let n = piece.len();
            if piece != &bytes[at..at + n] {
                let off = piece.iter().zip(&bytes[at..]).position(|(a, b)| a != b).unwrap_or(0);
                audit.fail(Invariant::Prefix, || {
                    format!("flow {flow} side {side}: wrong byte at {}", here + off as u64)
                });
                return;
            }
            at += n;
        }
        self.flows[flow].read[side] = end;
        self.stream_bytes += bytes.len() as u64;
    }

    /// The end of what `side` writes was read at the other end.
    pub fn on_eof(&mut self, flow: usize, side: usize, audit: &mut Audit) {
        let f = &mut self.flows[flow];
        f.eof[side] = true;
        let (read, written, shut) = (f.read[side], f.written[side], f.shut[side]);
        audit.require(shut && read == written, Invariant::WholeStream, || {
            format!(
                "flow {flow} side {side}: end of stream after {read} of {written} bytes, shut down: {shut}, ends {:?} {:?}, {:?}",
                f.ends, f.reasons, f.plan.ending
            )
        });
    }

    /// A datagram to `to` is about to be sent; returns its bytes. `len` is at least 16.
    pub(super) fn new_datagram(
        &mut self,
        from: pilotage_wire::Address,
        to: HostId,
        len: usize,
        out: &mut Vec<u8>,
    ) {
        let number = self.datagrams.len();
        let len = len.max(16);
        self.datagrams.push(Datagram { from, to, len, delivered: false });
        out.clear();
        out.extend_from_slice(&(number as u64).to_le_bytes());
        let seam = number % TABLE;
        while out.len() < len {
            let n = (len - out.len()).min(TABLE);
            out.extend_from_slice(&self.table[seam..seam + n]);
        }
    }

    /// A datagram was delivered to the application at `host`.
    pub fn on_datagram(
        &mut self,
        host: HostId,
        from: pilotage_wire::Address,
        bytes: &[u8],
        audit: &mut Audit,
    ) {
        let number = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b) as usize);
        let Some(sent) = number.and_then(|n| self.datagrams.get_mut(n)) else {
            audit.fail(Invariant::Authentic, || format!("host {host}: a datagram that nobody sent"));
            return;
        };
        let number = number.unwrap_or_default();
        let seam = number % TABLE;
        let whole = bytes.len() == sent.len
            && bytes[8..].chunks(TABLE).all(|chunk| chunk == &self.table[seam..seam + chunk.len()]);
        audit.require(sent.from.node == from.node && sent.to == host && whole, Invariant::Authentic, || {
            format!("datagram {number} at host {host} from {from}: not as it was sent")
        });
        audit.require(!sent.delivered, Invariant::DatagramOnce, || format!("datagram {number} came twice"));
        sent.delivered = true;
        self.datagrams_delivered += 1;
    }

    /// Flows that are not over at both ends. What A has given up before B heard its number never began for B.
    pub fn open_flows(&self) -> impl Iterator<Item = (usize, &Flow)> {
        self.flows.iter().enumerate().filter(|(_, f)| {
            let b_over = f.is_over(1) || f.ends[1] == End::Idle;
            !(f.is_over(0) && b_over) && f.ends[0] != End::Idle
        })
    }
}

/// The reason in words that do not depend on the machine.
pub(super) fn why_read(error: ReadError) -> String {
    format!("read: {error:?}")
}

/// The reason in words that do not depend on the machine.
pub(super) fn why_write(error: WriteError) -> String {
    format!("write: {error:?}")
}
