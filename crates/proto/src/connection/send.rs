//! The sending half: what goes out next, and why it may (spec/stream.md §3, §4, §6, §7).

use std::ops::Range;

use pilotage_fault as fault;

use pilotage_wire::packet::{Flags, HEADER_LEN, Header};
use pilotage_wire::sack;

use super::{Connection, Cx, DIALECT_MARK, Dialect, Failure, State};
use crate::congestion::Controller;

/// Segments that a reference peer keeps beyond a missing one.
const HELD_BEYOND_HOLE: u64 = 128;

/// What [`Connection::poll_segment`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentOut {
    /// A packet of this many bytes (header included) was written.
    Packet(usize),
    /// The next packet is longer than `limit`: ask again with a fresh batch.
    TooLong,
    /// Data waits for the congestion window or the pacer of the path.
    PathBlocked,
    /// Nothing to send.
    Idle,
}

/// Where the next payload comes from.
struct Choice {
    range: Range<u64>,
    fin: bool,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Retransmission,
    Probe,
}

impl Connection {
    /// Writes the next packet (header and payload, unsealed) to the start of `space`, with at most `limit` bytes of payload.
    pub(crate) fn poll_segment(&mut self, cx: &mut Cx<'_>, limit: usize, space: &mut [u8]) -> SegmentOut {
        if self.rst_pending {
            self.rst_pending = false;
            if fault::point!("proto.send.lose_reset") {
                return SegmentOut::Idle;
            }
            let mut hdr = self.header(Flags::RST | Flags::ACK);
            hdr.seq = self.seq_of(self.board.nxt());
            hdr.ack = self.ack_number();
            return emit(&hdr, 0, space);
        }
        match self.state {
            State::Failed(_) => return SegmentOut::Idle,
            State::SynSent | State::SynReceived if self.syn_pending => {
                return self.emit_syn(cx, limit, space);
            }
            State::SynReceived if self.keepalive_pending => {
                return self.emit_keepalive(cx, limit, space);
            }
            State::SynSent | State::SynReceived => return SegmentOut::Idle,
            State::Established | State::Done => {}
        }
        if let Some(&(blocks, count)) = self.sacks_kept.last() {
            if sack::encoded_len(count) > limit {
                return SegmentOut::TooLong;
            }
            self.sacks_kept.pop();
            return self.emit_sack(&blocks[..count], cx, space);
        }
        // SACK rides only on packets without data, so it goes first while there are holes.
        if self.ack_pending && self.recv.has_holes() {
            let mut blocks = [(0u64, 0u64); sack::MAX_BLOCKS];
            let count = self.recv.sack_blocks(&mut blocks);
            if sack::encoded_len(count) > limit {
                return SegmentOut::TooLong;
            }
            self.recv.mark_reported();
            self.clear_ack();
            return self.emit_sack(&blocks[..count], cx, space);
        }
        if self.bare_duplicates > 0 {
            self.bare_duplicates -= 1;
            return self.emit_bare_ack(cx, space);
        }
        let mut blocked = false;
        if self.peer_ended {
            if self.parting_fin_is_due() {
                return self.emit_parting_fin(cx, space);
            }
        } else if self.state == State::Established {
            match self.choose(cx, limit) {
                Chosen::Send(choice) => return self.emit_data(choice, cx, space),
                Chosen::TooLong => return SegmentOut::TooLong,
                Chosen::PathBlocked => blocked = true,
                Chosen::Nothing => {}
            }
        }
        if self.ack_pending {
            return self.emit_bare_ack(cx, space);
        }
        if self.keepalive_pending {
            return self.emit_keepalive(cx, limit, space);
        }
        if blocked { SegmentOut::PathBlocked } else { SegmentOut::Idle }
    }

    // ------------------------------------------------------------------ which bytes

    fn choose(&mut self, cx: &mut Cx<'_>, limit: usize) -> Chosen {
        let mss = cx.path.mss();
        if self.tail.wanted {
            // RFC 8985 §7.3: new data if there is any and the window allows, else the last segment again.
            if let Some(range) = self.next_new(mss, cx, true) {
                return self.sized(range, false, Kind::Probe, limit);
            }
            let Some(seg) = self.board.probe_candidate() else {
                // Everything outstanding is SACKed: nothing to probe with. The timeout comes next (R4.11), or the deadline
                // of this probe would never move.
                self.tail.wanted = false;
                self.tail.out = true;
                return Chosen::Nothing;
            };
            let range = self.split_to_fit(seg.range, seg.fin, mss);
            return self.sized(range, seg.fin, Kind::Probe, limit);
        }
        if let Some(seg) = self.board.next_lost() {
            let range = self.split_to_fit(seg.range, seg.fin, mss);
            let len = range.end - range.start;
            if self.rto_credit == 0
                && cx.path.controller.send_allowance(cx.path.in_flight) < len
                && cx.path.in_flight > 0
            {
                return Chosen::PathBlocked;
            }
            if self.rto_credit == 0
                && cx.path.controller.paces_retransmissions()
                && !cx.path.may_send(cx.now, len)
            {
                return Chosen::PathBlocked;
            }
            let fin = seg.fin && range.end > self.send.end();
            return self.sized(range, fin, Kind::Retransmission, limit);
        }
        if let Some(range) = self.next_new(mss, cx, false) {
            let len = range.end - range.start;
            if !cx.path.may_send(cx.now, len) {
                return Chosen::PathBlocked;
            }
            return self.sized(range, false, Kind::New, limit);
        }
        if self.fin_is_due(cx) {
            let end = self.send.end();
            return Chosen::Send(Choice { range: end..end + 1, fin: true, kind: Kind::New });
        }
        Chosen::Nothing
    }

    fn sized(&self, range: Range<u64>, fin: bool, kind: Kind, limit: usize) -> Chosen {
        if (range.end - range.start - u64::from(fin)) as usize > limit {
            Chosen::TooLong
        } else {
            Chosen::Send(Choice { range, fin, kind })
        }
    }

    /// The path's datagrams may have become smaller since the segment was first cut. Its parts start at
    /// offsets that no earlier segment started at, which reference peers accept (draft-01 facts §6.2).
    fn split_to_fit(&mut self, range: Range<u64>, fin: bool, mss: usize) -> Range<u64> {
        let data_end = range.end - u64::from(fin);
        if (data_end - range.start) as usize <= mss {
            return range;
        }
        let mut at = range.start + mss as u64;
        let mut head = [0u8; 4];
        if data_end - at >= 13 {
            self.send.copy_to(at..at + 4, &mut head);
            at -= u64::from(&head == b"SACK"); // rule C11 holds for the second part too
        }
        self.board.split(range.start, at);
        self.quirks.was_split = true;
        range.start..at
    }

    /// The next never-sent bytes that both windows and Nagle allow, as one segment.
    fn next_new(&mut self, mss: usize, cx: &Cx<'_>, probing: bool) -> Option<Range<u64>> {
        let start = self.send.next();
        let unsent = self.send.unsent();
        if unsent == 0 || self.fin_sent || self.board.is_full() {
            return None;
        }
        let mut allowed = self.window_edge.saturating_sub(start);
        if self.board.len() as u64 >= self.segments_allowed(cx.dialect) {
            allowed = 0;
        }
        if allowed == 0 && self.window_probe {
            allowed = 1; // RFC 9293 §3.8.6.1
        }
        let len = unsent.min(allowed).min(mss as u64);
        if len == 0 {
            return None;
        }
        let len = self.cut_before_sack_lookalike(start, len);
        let full = len == mss as u64;
        // RFC 9293 §3.8.6.2.1: do not dribble into a window smaller than a segment while something is under way.
        let window_limited = len < unsent && !full;
        if !full && !self.board.is_empty() && !probing && !self.window_probe {
            // RFC 896, at most 40 ms (draft "Nagle").
            let nagle_holds = !self.nodelay && !self.fin_queued && !self.nagle_over;
            if nagle_holds {
                self.timers.nagle.get_or_insert(cx.now + super::timers::NAGLE_MAX);
            }
            if nagle_holds || (window_limited && allowed < mss as u64 && len > 4) {
                return None;
            }
        }
        Some(start..start + len)
    }

    /// Segments that may be outstanding: a reference peer counts them, and throws away what comes too far beyond a hole.
    pub(super) fn segments_allowed(&self, dialect: Dialect) -> u64 {
        let careful = dialect == Dialect::Draft && self.board.una() < self.quirks.careful_until;
        if careful { self.window_segments.min(HELD_BEYOND_HOLE) } else { self.window_segments }
    }

    /// Rule C11: a segment must not look like SACK information to a reference peer. Cut inside the four letters.
    fn cut_before_sack_lookalike(&self, start: u64, len: u64) -> u64 {
        let mut head = [0u8; 5];
        if len < 13 {
            return len; // shorter than any SACK payload
        }
        self.send.copy_to(start..start + 5, &mut head);
        if &head[..4] == b"SACK" && (1..=4).contains(&head[4]) { 3 } else { len }
    }

    /// Reference peers abandon everything unacknowledged at FIN: they get it only when all was acknowledged.
    fn fin_is_due(&mut self, cx: &Cx<'_>) -> bool {
        if !self.fin_queued || self.fin_sent || self.send.unsent() > 0 {
            return false;
        }
        if cx.dialect == Dialect::Pilotage {
            return true;
        }
        let until = self.fin_waits_until();
        self.timers.fin_hold = (cx.now < until).then_some(until);
        // It repeats one segment at a time: what is missing may take long to come.
        let speaking = self.recv.has_holes() && !self.detached;
        self.send.is_empty() && cx.now >= until && !speaking
    }

    /// A reference peer ended both directions: our FIN follows once everything is acknowledged or given up.
    fn parting_fin_is_due(&self) -> bool {
        self.state == State::Established && self.timers.last_ack.is_none()
    }

    // ------------------------------------------------------------------ writing packets

    fn emit_data(&mut self, choice: Choice, cx: &mut Cx<'_>, space: &mut [u8]) -> SegmentOut {
        let Choice { range, fin, kind } = choice;
        let data_end = range.end - u64::from(fin);
        let len = (data_end - range.start) as usize;
        let Some(target) = space.get_mut(HEADER_LEN..HEADER_LEN + len) else { return SegmentOut::TooLong };
        self.send.copy_to(range.start..data_end, target);
        self.timers.nagle = None;
        self.nagle_over = false;
        let flags = match (fin, cx.dialect) {
            (true, Dialect::Draft) => Flags::FIN,
            (true, Dialect::Pilotage) => Flags::FIN | Flags::ACK,
            (false, _) => Flags::ACK,
        };
        let mut hdr = self.header(flags);
        hdr.seq = self.seq_of(range.start);
        if flags.contains(Flags::ACK) {
            hdr.ack = self.announce(cx);
            hdr.window = self.advertise(cx);
            if !self.recv.has_holes() {
                self.clear_ack();
            }
        }
        let out = emit(&hdr, len, space);
        self.account_sent(range, fin, kind, cx);
        out
    }

    /// The only FIN that is not repeated: the peer asks for none, and if its application is gone it answers none.
    fn emit_parting_fin(&mut self, cx: &mut Cx<'_>, space: &mut [u8]) -> SegmentOut {
        let at = self.board.nxt() - u64::from(self.fin_sent);
        let mut hdr = self.header(Flags::FIN);
        hdr.seq = self.seq_of(at);
        if !self.fin_sent {
            self.board.on_sent(cx.now, at..at + 1, true, true);
        }
        self.board.abandon();
        self.sync_in_flight(cx.path);
        self.fin_sent = true;
        self.fin_acked = true;
        self.maybe_done();
        emit(&hdr, 0, space)
    }

    fn account_sent(&mut self, range: Range<u64>, fin: bool, kind: Kind, cx: &mut Cx<'_>) {
        let bytes = range.end - range.start;
        let is_new = range.start >= self.board.nxt();
        if self.board.is_empty() {
            self.rto_base = cx.now;
            self.progress_at = cx.now;
        }
        self.stats.segments_sent += u64::from(!fin);
        if is_new {
            let room_left = cx.path.controller.send_allowance(cx.path.in_flight) > bytes;
            let app_limited = room_left && self.send.unsent() <= bytes;
            self.board.on_sent(cx.now, range.clone(), fin, app_limited);
            if fin {
                self.fin_sent = true;
            } else {
                self.send.mark_sent(range.end);
                self.notify_of_room();
            }
            self.window_probe = false;
        } else {
            self.stats.segments_retransmitted += 1;
            match kind {
                Kind::Probe => self.board.on_probe(cx.now, range.start),
                _ => {
                    self.rto_credit = self.rto_credit.saturating_sub(1);
                    self.board.on_retransmitted(cx.now, range.start);
                }
            }
        }
        if kind == Kind::Probe {
            self.tail.wanted = false;
            self.tail.out = true;
            self.tail.end = self.board.nxt();
            self.stats.tail_loss_probes += 1;
            self.rto_base = cx.now;
        }
        self.sync_in_flight(cx.path);
        cx.path.on_sent(cx.now, bytes);
    }

    fn emit_syn(&mut self, cx: &mut Cx<'_>, limit: usize, space: &mut [u8]) -> SegmentOut {
        if limit < DIALECT_MARK.len() {
            return SegmentOut::TooLong;
        }
        self.syn_pending = false;
        self.syn_transmissions += 1;
        self.syn_first_sent.get_or_insert(cx.now);
        self.timers.arm_syn(cx.now, self.syn_transmissions, self.isn, &cx.path.rtt);
        let incoming = self.state == State::SynReceived;
        let mut hdr = self.header(if incoming { Flags::SYN | Flags::ACK } else { Flags::SYN });
        hdr.seq = self.isn;
        if incoming {
            hdr.ack = self.peer_isn.wrapping_add(1);
        }
        hdr.window = self.advertise(cx);
        if incoming && cx.dialect == Dialect::Draft {
            return emit(&hdr, 0, space);
        }
        let end = HEADER_LEN + DIALECT_MARK.len();
        let Some(target) = space.get_mut(HEADER_LEN..end) else { return SegmentOut::TooLong };
        target.copy_from_slice(&DIALECT_MARK);
        emit(&hdr, DIALECT_MARK.len(), space)
    }

    fn emit_sack(&mut self, blocks: &[(u64, u64)], cx: &mut Cx<'_>, space: &mut [u8]) -> SegmentOut {
        let base = self.peer_isn.wrapping_add(1);
        let mut wire = [(0u32, 0u32); sack::MAX_BLOCKS];
        for (slot, block) in wire.iter_mut().zip(blocks) {
            *slot = (base.wrapping_add(block.0 as u32), base.wrapping_add(block.1 as u32));
        }
        let Some(target) = space.get_mut(HEADER_LEN..) else { return SegmentOut::TooLong };
        let len = sack::encode(&wire[..blocks.len().min(sack::MAX_BLOCKS)], target);
        let hdr = self.ack_header(cx);
        cx.path.ack_left = true;
        emit(&hdr, len, space)
    }

    /// What has come and what is missing, for another way than the one in use. What is due by that stays due.
    pub(crate) fn copy_of_ack(&mut self, cx: &mut Cx<'_>, limit: usize, space: &mut [u8]) -> SegmentOut {
        if self.state != State::Established {
            return SegmentOut::Idle;
        }
        let left = cx.path.ack_left;
        if !self.recv.has_holes() {
            let hdr = self.ack_header(cx);
            return emit(&hdr, 0, space);
        }
        let mut blocks = [(0u64, 0u64); sack::MAX_BLOCKS];
        let count = self.recv.sack_blocks(&mut blocks);
        if sack::encoded_len(count) > limit {
            return SegmentOut::TooLong;
        }
        let out = self.emit_sack(&blocks[..count], cx, space);
        cx.path.ack_left = left;
        out
    }

    fn emit_bare_ack(&mut self, cx: &mut Cx<'_>, space: &mut [u8]) -> SegmentOut {
        let hdr = self.ack_header(cx);
        self.clear_ack();
        cx.path.ack_left = true;
        if fault::point!("proto.send.lose_ack") {
            return SegmentOut::Idle;
        }
        emit(&hdr, 0, space)
    }

    /// RFC 9293 §3.8.4: a number just below what the peer expects makes it answer. A reference peer answers nothing without
    /// payload, so it gets one byte that it has acknowledged long ago (RFC 1122 §4.2.3.6) and throws away.
    fn emit_keepalive(&mut self, cx: &mut Cx<'_>, limit: usize, space: &mut [u8]) -> SegmentOut {
        let len = usize::from(cx.dialect == Dialect::Draft);
        if len > limit {
            return SegmentOut::TooLong;
        }
        self.keepalive_pending = false;
        let mut hdr = self.ack_header(cx);
        cx.path.ack_left = true;
        // Acknowledged in the peer's own words: what was given up, or FIN's number, may be news to it.
        let known = if len > 0 { self.send.acked() } else { self.board.nxt() };
        hdr.seq = self.seq_of(known).wrapping_sub(1);
        match space.get_mut(HEADER_LEN..HEADER_LEN + len) {
            Some(target) => target.fill(0),
            None => return SegmentOut::TooLong,
        }
        emit(&hdr, len, space)
    }

    fn ack_header(&mut self, cx: &Cx<'_>) -> Header {
        let mut hdr = self.header(Flags::ACK);
        hdr.seq = self.seq_of(self.board.nxt());
        hdr.ack = self.announce(cx);
        hdr.window = self.advertise(cx);
        hdr
    }

    fn clear_ack(&mut self) {
        self.ack_pending = false;
        self.unacked_segments = 0;
        // What a reference peer was not told yet (`announce`).
        self.timers.delayed_ack = self.ripening.map(|(_, at)| at);
    }

    // ------------------------------------------------------------------ questions of the tunnel

    /// Whether [`Self::poll_segment`] may have something now.
    pub(crate) fn wants_to_send(&self) -> bool {
        if self.rst_pending
            || self.ack_pending
            || !self.sacks_kept.is_empty()
            || self.bare_duplicates > 0
            || self.keepalive_pending
        {
            return true;
        }
        match self.state {
            State::SynSent | State::SynReceived => self.syn_pending,
            State::Established if self.peer_ended => self.parting_fin_is_due(),
            State::Established => {
                self.tail.wanted
                    || self.board.has_lost()
                    || self.send.unsent() > 0
                    || (self.fin_queued && !self.fin_sent)
            }
            State::Done | State::Failed(_) => false,
        }
    }

    /// The tunnel was given up before or while this connection lived.
    pub(crate) fn on_tunnel_failed(&mut self, error: crate::event::ConnectError, path: &mut super::Path) {
        let failure = match self.state {
            State::SynSent | State::SynReceived => Failure::Connect(error),
            _ => Failure::TimedOut,
        };
        self.fail(failure, path);
    }
}

enum Chosen {
    Send(Choice),
    TooLong,
    PathBlocked,
    Nothing,
}

/// Completes a packet whose payload already lies behind the header's place.
fn emit(hdr: &Header, payload_len: usize, space: &mut [u8]) -> SegmentOut {
    tracing::trace!(
        port = hdr.src_port,
        flags = hdr.flags.bits(),
        seq = hdr.seq,
        ack = hdr.ack,
        len = payload_len,
        "segment out"
    );
    match hdr.encode(space, payload_len) {
        Ok(len) => SegmentOut::Packet(len),
        Err(_) => SegmentOut::TooLong,
    }
}
